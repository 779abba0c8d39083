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
    http::LimitState,
    store::{LimitReport, LimitStanding},
};
use uuid::Uuid;

use super::{Room, demand::Demand};

const SECOND: i64 = 1_000_000_000;
/// How much a bucket holds.
pub(super) const WINDOW: i64 = 60 * SECOND;
/// The part of the refill that is shared evenly, whatever the demand: nobody's share is nothing.
const EVENLY: f64 = 0.05;
/// How old the store's word may be before the next event asks for a new one at once.
const STALE: i64 = 2 * SECOND;
/// After how long without a word a counting begins anew: well before the store forgets it, after [`LIMITS_KEPT`].
///
/// [`LIMITS_KEPT`]: shared::store::LIMITS_KEPT
const FORGOTTEN: i64 = 12 * 3_600 * SECOND;
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
    /// When the bucket is full again, as best known: what the store said, and what was taken here since.
    full_at: i64,
    /// What this node may take now, at `room_at`; no more than `most` gathers.
    room: i64,
    room_at: i64,
    most: i64,
    /// Its part of the refill.
    share: f64,
    /// Whether no other node has a part in it.
    alone: bool,
    demand: Demand,
    told: Told,
    hurry: Hurry,
}

/// What was taken here, and what the store knows of it.
#[derive(Debug)]
struct Told {
    /// Whose counting this is, and when it was last heard of.
    counter: Uuid,
    counter_at: i64,
    /// All that was taken in this counting.
    spent: i64,
    /// So much of it the store has confirmed.
    confirmed: i64,
    /// When the first was taken of what it has not.
    since: Option<i64>,
    /// What it was told last and has not answered yet: when, and how much.
    sent: Option<(i64, i64)>,
    heard_at: Option<i64>,
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
            full_at: now,
            room: 0,
            room_at: now,
            most: WINDOW,
            share: 1.0,
            alone: true,
            demand: Demand::from(now),
            told: Told {
                counter: Uuid::new_v4(),
                counter_at: now,
                spent: 0,
                confirmed: 0,
                since: None,
                sent: None,
                heard_at: None,
            },
            hurry: Hurry {
                below: i64::MIN,
                asked: false,
            },
        };
        bucket.alone = nodes <= 1;
        bucket.divide(now, WINDOW, 0.0, nodes);
        bucket
    }

    /// Takes one event's worth, if it is there.
    pub(super) fn take(&mut self, now: i64) -> Taking {
        let room = self.room_at(now);
        // Compared with a grain of slack, since a minute seldom parts evenly.
        let fits = room >= self.cost - self.cost / 2;
        if fits {
            self.demand.took(1);
            (self.room, self.room_at) = (room - self.cost, now);
            self.full_at = self.full_at.max(now) + self.cost;
            self.told.spent += self.cost;
            self.told.since.get_or_insert(now);
        }
        let hurry = self.is_to_hurry(now, fits);
        let state = self.state(now);
        let room = if fits {
            Room::Taken(state)
        } else {
            Room::Full {
                retry_after: self.wait(self.cost - room),
                // Whatever may be left elsewhere.
                state: LimitState {
                    remaining: 0,
                    ..state
                },
            }
        };
        Taking { room, hurry }
    }

    /// So many events were refused for want of room.
    pub(super) fn refused(&mut self, events: i64) {
        self.demand.refused(events);
    }

    /// Gives so many events' worth back: they were not accepted.
    pub(super) fn give_back(&mut self, events: i64) {
        let worth = self.cost.saturating_mul(events);
        self.room = self.room.saturating_add(worth);
        self.full_at = self.full_at.saturating_sub(worth);
        self.told.spent = self.told.spent.saturating_sub(worth);
        self.demand.took(-events);
    }

    /// How the limit stands, over all nodes.
    pub(super) fn state(&self, now: i64) -> LimitState {
        let used = self.full_at.saturating_sub(now).max(0);
        let remaining = u32::try_from((WINDOW + self.cost / 2).saturating_sub(used).max(0) / self.cost);
        LimitState {
            limit: self.limit,
            remaining: remaining.unwrap_or(u32::MAX).min(self.limit),
            reset: Duration::from_nanos(used.min(WINDOW).unsigned_abs()),
        }
    }

    fn room_at(&self, now: i64) -> i64 {
        let refilled = part(now.saturating_sub(self.room_at), self.share);
        let most = self.most.max(self.room);
        self.room.saturating_add(refilled).min(most)
    }

    /// How long it takes until this is there.
    fn wait(&self, short: i64) -> Duration {
        let here = part(short, 1.0 / self.share).min(SHARES_MOVE).max(short);
        Duration::from_nanos(here.max(0).unsigned_abs())
    }

    fn is_to_hurry(&mut self, now: i64, fits: bool) -> bool {
        let is_old = self.told.heard_at.is_none_or(|at| now - at > STALE);
        let is_short = self.room < self.hurry.below || (!fits && self.demand.has_grown(self.cost, now));
        let hurry = is_old || (is_short && !self.alone);
        hurry && !std::mem::replace(&mut self.hurry.asked, true)
    }

    /// Whether the store is to be asked before its time.
    pub(super) fn hurries(&self) -> bool {
        self.hurry.asked
    }

    /// Whether the store is to be told of it: something was asked for here, and not so long ago that nothing of it is left.
    pub(super) fn is_in_use(&self) -> bool {
        self.demand.is_there() || self.told.spent != self.told.confirmed
    }

    /// What the store is to be told: all that was taken here, ever, so that it may be told twice.
    pub(super) fn report(&mut self, organization: OrganizationId, now: i64) -> LimitReport {
        self.demand.measure(self.cost, now);
        let told = &mut self.told;
        if now - told.counter_at > FORGOTTEN {
            (told.counter, told.counter_at) = (Uuid::new_v4(), now);
            told.spent -= told.confirmed;
            told.confirmed = 0;
        }
        told.sent = Some((now, told.spent));
        self.hurry.asked = false;
        LimitReport {
            organization,
            counter: told.counter,
            spent: told.spent,
            within: told.since.map_or(0, |since| now - since),
            wanted: self.demand.wanted(),
            took: self.demand.taken(),
        }
    }

    /// The store has answered the last report.
    pub(super) fn heard(&mut self, standing: &LimitStanding, nodes: u32, now: i64) {
        let told = &mut self.told;
        let Some((sent_at, sent)) = told.sent.take() else {
            return;
        };
        let meanwhile = told.spent - sent;
        (told.confirmed, told.counter_at, told.heard_at) = (sent, now, Some(now));
        told.since = (meanwhile != 0).then_some(sent_at);
        if standing.others_silent {
            // The store was away: until all have told what they took meanwhile, each goes on with the share that it has.
            return;
        }
        // It was as it says at some time between asking and hearing.
        let heard = (sent_at + (now - sent_at) / 2).saturating_add(standing.used);
        let was_alone = self.alone;
        self.alone = nodes <= 1 && standing.others_wanted <= 0.0;
        // The store takes what comes between two words for one; alone, we know better.
        let exact = was_alone && self.alone;
        let full_at = if exact {
            heard.max(self.full_at - meanwhile)
        } else {
            heard
        };
        self.full_at = full_at.max(now) + meanwhile;
        let used = full_at.saturating_add(standing.others_unreported) - now;
        let left = WINDOW - used.max(0);
        self.divide(now, left, standing.others_wanted, nodes);
        self.room -= meanwhile;
    }

    /// Divides what is in the bucket, or is owed, among the nodes.
    fn divide(&mut self, now: i64, left: i64, others_wanted: f64, nodes: u32) {
        self.room_at = now;
        if self.alone {
            (self.share, self.most, self.room, self.hurry.below) = (1.0, WINDOW, left, i64::MIN);
            return;
        }
        let (wanted, nodes) = (self.demand.wanted(), f64::from(nodes.max(2)));
        let demanded = if wanted + others_wanted > 0.0 {
            wanted / (wanted + others_wanted)
        } else {
            1.0 / nodes
        };
        let promised = demanded + (1.0 - demanded) / (nodes - 1.0);
        self.share = (1.0 - EVENLY) * demanded + EVENLY / nodes;
        self.most = part(WINDOW, promised);
        // What is owed is owed once.
        self.room = part(left, if left < 0 { demanded } else { promised });
        // Near its end a bucket empties by as much as it refills; there is nothing to hurry for.
        self.hurry.below = if self.room > 2 * SECOND {
            self.room / 2
        } else {
            i64::MIN
        };
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
    fn a_counting_that_the_store_may_have_forgotten_begins_anew() {
        let (organization, mut bucket) = (OrganizationId::new(), bucket(60));
        let standing = LimitStanding {
            organization,
            used: 3 * SECOND,
            others_wanted: 0.0,
            others_unreported: 0,
            others_silent: false,
        };
        for _ in 0..3 {
            bucket.take(0);
        }
        let first = bucket.report(organization, 0);
        assert_eq!(first.spent, 3 * SECOND);
        bucket.heard(&standing, 1, 0);
        bucket.take(SECOND);
        let second = bucket.report(organization, FORGOTTEN);
        assert_eq!((second.counter, second.spent), (first.counter, 4 * SECOND));
        // It was not heard: what the store knows of the former counting is not told again.
        let third = bucket.report(organization, FORGOTTEN + 2 * SECOND);
        assert_ne!(third.counter, first.counter);
        assert_eq!((third.spent, third.within), (SECOND, FORGOTTEN + SECOND));
    }

    #[test]
    fn it_says_how_it_stands() {
        let mut bucket = bucket(100);
        let Room::Taken(state) = bucket.take(0).room else {
            panic!("room")
        };
        let expected = LimitState {
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
