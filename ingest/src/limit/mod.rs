//! The rate limit of an organization on this node: a bucket that holds one minute's worth and refills evenly.
//!
//! It is the generic cell rate algorithm: one atomic number an organization, the time at which its bucket is full again,
//! moved on by each event. Nothing is locked and nothing ticks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use quick_cache::sync::Cache;
use shared::{Grant, OrganizationId, Tier};

/// How much time's worth a bucket holds.
const WINDOW: Duration = Duration::from_mins(1);
/// The most organizations that are remembered; one that is forgotten finds its bucket full.
const MAX_ORGANIZATIONS: usize = 100_000;

/// The buckets of a node.
pub struct Limits {
    buckets: Cache<OrganizationId, Arc<Bucket>>,
    started: Instant,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            buckets: Cache::new(MAX_ORGANIZATIONS),
            started: Instant::now(),
        }
    }
}

struct Bucket {
    tier: Tier,
    /// Nanoseconds after the start at which it is full again.
    full_at: AtomicU64,
}

/// What became of asking for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is no limit.
    Unlimited,
    /// There was room; one event's worth is taken.
    Taken(State),
    /// There is none; nothing is taken.
    Full {
        /// How long until there is room for one.
        retry_after: Duration,
        /// How it stands.
        state: State,
    },
}

/// How a limit stands, as the `RateLimit-*` headers show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    limit: u32,
    remaining: u32,
    /// How long until the bucket is full.
    reset: Duration,
}

impl Limits {
    /// Takes one event's worth from the organization's bucket, if it is there.
    pub fn take(&self, grant: &Grant) -> Room {
        let Some(limit) = grant.tier.events_per_minute() else {
            return Room::Unlimited;
        };
        self.bucket(grant).take(self.now(), limit)
    }

    /// How the organization's limit stands; `None` if it has none. Nothing is taken.
    pub fn state(&self, grant: &Grant) -> Option<State> {
        let limit = grant.tier.events_per_minute()?;
        Some(self.bucket(grant).state(self.now(), limit))
    }

    /// Gives so many events' worth back: they were not accepted.
    pub fn give_back(&self, grant: &Grant, events: usize) {
        if let Some(limit) = grant.tier.events_per_minute() {
            let worth = cost(limit).saturating_mul(events as u64);
            let give_back = |full_at: u64| Some(full_at.saturating_sub(worth));
            let bucket = self.bucket(grant);
            let _ = bucket
                .full_at
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, give_back);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn bucket(&self, grant: &Grant) -> Arc<Bucket> {
        match self.buckets.get(&grant.organization) {
            Some(bucket) if bucket.tier == grant.tier => bucket,
            _ => {
                // Not zero, so that giving back cannot go below it.
                let full_at = AtomicU64::new(cost(1));
                let bucket = Arc::new(Bucket {
                    tier: grant.tier,
                    full_at,
                });
                self.buckets.insert(grant.organization, Arc::clone(&bucket));
                bucket
            }
        }
    }
}

impl Bucket {
    fn take(&self, now: u64, limit: u32) -> Room {
        let (now, cost, window) = (now.saturating_add(self::cost(1)), cost(limit), nanos(WINDOW));
        let mut room = Room::Unlimited;
        let moved = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let taken = full_at.max(now) + cost;
                // Compared with a grain of slack, since a minute seldom parts evenly.
                let fits = taken <= now + window + cost / 2;
                let used = if fits {
                    taken - now
                } else {
                    full_at.saturating_sub(now)
                };
                let state = State::of(used, limit);
                room = if fits {
                    Room::Taken(state)
                } else {
                    Room::Full {
                        retry_after: Duration::from_nanos(taken - now - window),
                        state,
                    }
                };
                fits.then_some(taken)
            });
        debug_assert_eq!(moved.is_ok(), matches!(room, Room::Taken(_)));
        room
    }

    fn state(&self, now: u64, limit: u32) -> State {
        let now = now.saturating_add(cost(1));
        State::of(self.full_at.load(Ordering::Relaxed).saturating_sub(now), limit)
    }
}

/// What one event costs, in time.
fn cost(limit: u32) -> u64 {
    nanos(WINDOW) / u64::from(limit.max(1))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

static NAMES: [[HeaderName; 2]; 3] = [
    [
        HeaderName::from_static("ratelimit-limit"),
        HeaderName::from_static("x-ratelimit-limit"),
    ],
    [
        HeaderName::from_static("ratelimit-remaining"),
        HeaderName::from_static("x-ratelimit-remaining"),
    ],
    [
        HeaderName::from_static("ratelimit-reset"),
        HeaderName::from_static("x-ratelimit-reset"),
    ],
];

impl State {
    /// Of a bucket that is full again in `used` nanoseconds.
    fn of(used: u64, limit: u32) -> Self {
        let (cost, window) = (cost(limit), nanos(WINDOW));
        let remaining = u32::try_from((window + cost / 2).saturating_sub(used) / cost).unwrap_or(u32::MAX);
        Self {
            limit,
            remaining: remaining.min(limit),
            reset: Duration::from_nanos(used.min(window)),
        }
    }

    /// Adds the headers: `RateLimit-Limit`, `-Remaining` and `-Reset` (whole seconds), and the same with `X-`.
    pub fn show(self, headers: &mut HeaderMap) {
        let reset = self.reset.as_secs() + u64::from(self.reset.subsec_nanos() > 0);
        for (names, value) in NAMES
            .iter()
            .zip([u64::from(self.limit), u64::from(self.remaining), reset])
        {
            for name in names {
                headers.insert(name.clone(), HeaderValue::from(value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn bucket(tier: Tier) -> Bucket {
        Bucket {
            tier,
            full_at: AtomicU64::new(cost(1)),
        }
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_evenly() {
        for tier in [Tier::Free, Tier::Pro, Tier::Business, Tier::Enterprise] {
            let limit = tier.events_per_minute().unwrap();
            let bucket = bucket(tier);
            let taken = |now: u64, tries: u32| {
                (0..tries)
                    .filter(|_| matches!(bucket.take(now, limit), Room::Taken(_)))
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
        let bucket = bucket(Tier::Free);
        let Room::Taken(state) = bucket.take(0, 100) else {
            panic!("room")
        };
        assert_eq!(
            state,
            State {
                limit: 100,
                remaining: 99,
                reset: Duration::from_millis(600)
            }
        );
        assert_eq!(bucket.state(0, 100), state, "looking takes nothing");
        assert_eq!(bucket.state(6 * SECOND / 10, 100).remaining, 100);
        for _ in 0..99 {
            bucket.take(0, 100);
        }
        let Room::Full { retry_after, state } = bucket.take(0, 100) else {
            panic!("no room")
        };
        assert_eq!(retry_after, Duration::from_millis(600));
        assert_eq!((state.remaining, state.reset), (0, WINDOW));
        assert_eq!(bucket.state(0, 100), state);
        assert!(
            matches!(bucket.take(6 * SECOND / 10, 100), Room::Taken(_)),
            "as it said"
        );
    }
}
