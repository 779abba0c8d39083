//! A node's part in the bucket of an organization, which all nodes share through the store.
//!
//! A bucket holds one minute's worth of events and refills evenly. The store keeps it, as the time at which it is full again
//! (so do we: the generic cell rate algorithm). Between two words from the store a node decides by what it was left:
//!
//! - **room**: its share of what was in the bucket, where shares follow demand. Whatever others are promised it is promised an
//!   equal part of besides, so that a node whose traffic comes suddenly is not refused what is there. Over all nodes that is the
//!   bucket twice over, and no more; what is overdrawn so is owed, and refused afterwards.
//! - **refill**: its share of the rate, to which all shares add up.
//!
//! Alone, a node has all of the room and all of the refill, and is exact. While the store is away it goes on with its last share
//! of the refill.
//!
//! Times are nanoseconds of a clock of this process; amounts are nanoseconds of refill, so that a limit is what an event costs.

use std::time::Duration;

use shared::{
    OrganizationId,
    store::{LimitReport, LimitStanding},
};
use uuid::Uuid;

use super::{Room, State};

const SECOND: i64 = 1_000_000_000;
/// How much a bucket holds.
pub(super) const WINDOW: i64 = 60 * SECOND;
/// Over how long demand is averaged, nearly.
const MEMORY: f64 = 2e9;
/// The part of the refill that is shared evenly, whatever the demand: nobody's share is nothing.
const EVENLY: f64 = 0.05;
/// How old the store's word may be before the next event asks for a new one at once.
const STALE: i64 = 2 * SECOND;
/// After how long without a word a counting begins anew: well before the store forgets it.
const FORGOTTEN: i64 = 300 * SECOND;
/// How much longer than an organization has to wait a node says that it has to, at most: shares move meanwhile.
const SHARES_MOVE: i64 = 2 * SECOND;

/// What one event costs.
pub(super) fn cost(limit: u32) -> i64 {
    WINDOW / i64::from(limit.max(1))
}

/// A node's part in a bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: u32,
    cost: i64,
    /// Whose counting this is, for the store, and when it was last heard of.
    counter: Uuid,
    counter_at: i64,
    /// When the bucket is full again, as best known: what the store said, and what was taken here since.
    full_at: i64,
    /// What this node may take now, at `room_at`.
    room: i64,
    room_at: i64,
    /// Its part of the refill.
    share: f64,
    /// Whether no other node has a part in it.
    alone: bool,
    demand: Demand,
    acknowledged: Acknowledged,
    sent: Option<Sent>,
    hurry: Hurry,
}

/// What is asked for here and what is taken, on average, as parts of the refill.
#[derive(Debug, Default)]
struct Demand {
    asked: i64,
    taken: i64,
    measured_at: i64,
    wanted: f64,
    took: f64,
}

/// What the store has answered last.
#[derive(Debug)]
struct Acknowledged {
    at: Option<i64>,
    full_at: i64,
    /// All that was taken here, as the store knows it.
    spent: i64,
}

/// What the store was told and has not answered yet.
#[derive(Debug)]
struct Sent {
    at: i64,
    full_at: i64,
    spent: i64,
}

/// When the store is to be asked before its time.
#[derive(Debug)]
struct Hurry {
    /// Once there is less room than this.
    below: i64,
    /// It is asked for already.
    asked: bool,
}

/// What became of asking for room, and whether the store should hear of it soon.
pub(super) struct Taking {
    pub(super) room: Room,
    pub(super) hurry: bool,
}

impl Bucket {
    /// One that nothing is known of, where so many nodes live.
    pub(super) fn new(limit: u32, now: i64, nodes: u32) -> Self {
        let mut bucket = Self {
            limit,
            cost: cost(limit),
            counter: Uuid::new_v4(),
            counter_at: now,
            full_at: now,
            room: 0,
            room_at: now,
            share: 1.0,
            alone: true,
            demand: Demand {
                measured_at: now,
                ..Demand::default()
            },
            acknowledged: Acknowledged {
                at: None,
                full_at: now,
                spent: 0,
            },
            sent: None,
            hurry: Hurry {
                below: 0,
                asked: false,
            },
        };
        bucket.divide(now, WINDOW, 0.0, nodes);
        bucket
    }

    /// Takes one event's worth, if it is there.
    pub(super) fn take(&mut self, now: i64) -> Taking {
        self.demand.asked += 1;
        let room = self.room_at(now);
        // Compared with a grain of slack, since a minute seldom parts evenly.
        let fits = room >= self.cost - self.cost / 2;
        if fits {
            self.demand.taken += 1;
            (self.room, self.room_at) = (room - self.cost, now);
            self.full_at = self.full_at.max(now) + self.cost;
        }
        let hurry = self.is_to_hurry(now, fits);
        let state = self.state(now);
        let room = if fits {
            Room::Taken(state)
        } else {
            Room::Full {
                retry_after: self.wait(self.cost - room),
                state: state.without_room(),
            }
        };
        Taking { room, hurry }
    }

    /// Gives so many events' worth back: they were not accepted.
    pub(super) fn give_back(&mut self, events: i64) {
        let worth = self.cost.saturating_mul(events);
        self.room = self.room.saturating_add(worth);
        self.full_at = self.full_at.saturating_sub(worth);
        self.demand.taken -= events;
    }

    /// How the limit stands, over all nodes.
    pub(super) fn state(&self, now: i64) -> State {
        State::of(self.full_at.saturating_sub(now), self.limit)
    }

    fn room_at(&self, now: i64) -> i64 {
        let refilled = part(now.saturating_sub(self.room_at), self.share);
        self.room.saturating_add(refilled).min(WINDOW)
    }

    /// How long it takes until this is there.
    fn wait(&self, short: i64) -> Duration {
        let here = part(short, 1.0 / self.share).min(SHARES_MOVE).max(short);
        Duration::from_nanos(here.max(0).unsigned_abs())
    }

    fn is_to_hurry(&mut self, now: i64, fits: bool) -> bool {
        let heard = self.acknowledged.at.is_some_and(|at| now - at <= STALE);
        let hurry = !heard || (!fits && !self.alone) || self.room < self.hurry.below;
        hurry && !std::mem::replace(&mut self.hurry.asked, true)
    }

    /// Whether the store has to be asked: something was asked for here, or the bucket is not full again yet.
    pub(super) fn is_in_use(&self, now: i64) -> bool {
        self.demand.asked > 0 || self.full_at > now
    }

    /// What the store is to be told: all that was taken here, ever, so that it may be told twice.
    pub(super) fn report(&mut self, organization: OrganizationId, now: i64) -> LimitReport {
        self.demand.measure(self.cost, now);
        if now - self.counter_at > FORGOTTEN {
            (self.counter, self.counter_at) = (Uuid::new_v4(), now);
            self.acknowledged.spent = 0;
        }
        // What it took is by how much it left the bucket emptier than it would be now: nothing runs over twice.
        let spent =
            self.acknowledged.spent + self.full_at.max(now) - self.acknowledged.full_at.max(now);
        self.sent = Some(Sent {
            at: now,
            full_at: self.full_at,
            spent,
        });
        self.hurry.asked = false;
        LimitReport {
            organization,
            counter: self.counter,
            spent,
            wanted: self.demand.wanted,
            took: self.demand.took,
        }
    }

    /// The store has answered the last report.
    pub(super) fn heard(&mut self, standing: &LimitStanding, nodes: u32, now: i64) {
        let Some(sent) = self.sent.take() else { return };
        let meanwhile = self.full_at.max(now) - sent.full_at.max(now);
        // It was as it says at some time between asking and hearing.
        let at = sent.at + (now - sent.at) / 2;
        let full_at = at.saturating_add(standing.used);
        self.acknowledged = Acknowledged {
            at: Some(now),
            full_at,
            spent: sent.spent,
        };
        self.counter_at = now;
        self.full_at = full_at.max(now) + meanwhile;
        let left = WINDOW - (full_at - now).max(0) - standing.others_unreported;
        self.divide(now, left, standing.others_wanted, nodes);
        self.room -= meanwhile;
    }

    /// Divides what is in the bucket, or is owed, among the nodes.
    fn divide(&mut self, now: i64, left: i64, others_wanted: f64, nodes: u32) {
        let wanted = self.demand.wanted;
        self.alone = nodes <= 1 && others_wanted <= 0.0;
        let nodes = f64::from(nodes.max(if self.alone { 1 } else { 2 }));
        let demanded = if wanted + others_wanted > 1e-6 {
            wanted / (wanted + others_wanted)
        } else {
            1.0 / nodes
        };
        let promised = if self.alone || left < 0 {
            demanded
        } else {
            demanded + (1.0 - demanded) / (nodes - 1.0)
        };
        (self.share, self.room) = if self.alone {
            (1.0, left)
        } else {
            ((1.0 - EVENLY) * demanded + EVENLY / nodes, part(left, promised))
        };
        self.room_at = now;
        self.hurry.below = self.room / 2;
    }
}

impl Demand {
    /// Takes what was asked for since the last time into the averages.
    #[expect(clippy::cast_precision_loss, reason = "averages")]
    fn measure(&mut self, cost: i64, now: i64) {
        let passed = (now - self.measured_at).max(1) as f64;
        let (former, new) = ((-passed / MEMORY).exp(), -(-passed / MEMORY).exp_m1());
        let rate = |events: i64| (events * cost) as f64 / passed;
        self.wanted = self.wanted * former + rate(self.asked) * new;
        self.took = (self.took * former + rate(self.taken) * new).max(0.0);
        (self.asked, self.taken, self.measured_at) = (0, 0, now);
    }
}

/// A part of an amount.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "exact to the nanosecond for a hundred days, and saturating"
)]
fn part(amount: i64, part: f64) -> i64 {
    (amount as f64 * part) as i64
}

#[cfg(test)]
mod tests {
    use shared::Tier;

    use super::*;

    fn bucket(limit: u32) -> Bucket {
        Bucket::new(limit, 0, 1)
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_evenly() {
        for tier in [Tier::Free, Tier::Pro, Tier::Business, Tier::Enterprise] {
            let limit = tier.events_per_minute().unwrap();
            let mut bucket = bucket(limit);
            let mut taken = |now: i64, tries: u32| {
                (0..tries)
                    .filter(|_| matches!(bucket.take(now).room, Room::Taken(_)))
                    .count()
            };
            assert_eq!(taken(0, limit + 10), limit as usize);
            assert_eq!(
                taken(30 * SECOND, limit),
                limit as usize / 2,
                "half a minute refills half"
            );
            assert_eq!(
                taken(3_600 * SECOND, 2 * limit),
                limit as usize,
                "it holds no more than a minute's worth"
            );
        }
    }

    #[test]
    fn it_says_how_it_stands() {
        let mut bucket = bucket(100);
        let Room::Taken(state) = bucket.take(0).room else {
            panic!("room")
        };
        let expected = State {
            limit: 100,
            remaining: 99,
            reset: Duration::from_millis(600),
        };
        assert_eq!(state, expected);
        assert_eq!(bucket.state(0), state, "looking takes nothing");
        assert_eq!(bucket.state(6 * SECOND / 10).remaining, 100);
        for _ in 0..99 {
            bucket.take(0);
        }
        let Room::Full { retry_after, state } = bucket.take(0).room else {
            panic!("no room")
        };
        assert_eq!(retry_after, Duration::from_millis(600));
        assert_eq!((state.remaining, state.reset), (0, Duration::from_mins(1)));
        assert_eq!(bucket.state(0), state);
        assert!(
            matches!(bucket.take(6 * SECOND / 10).room, Room::Taken(_)),
            "as it said"
        );
        bucket.give_back(50);
        assert_eq!(bucket.state(6 * SECOND / 10).remaining, 50);
    }
}
