//! Waiting for what was accepted a moment ago and is not stored yet.
//!
//! An id is good from the moment it is answered, which may be before intake has stored its event. Whoever asks for an
//! id younger than a minute therefore waits a little; an id of another organization waits just the same, so that the
//! time tells nothing. Waits are bounded in length and number: past [`MAX_WAITERS`] the answer comes at once.

use std::time::{Duration, Instant};

use shared::{EventId, Timestamp};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The most requests that wait at once.
const MAX_WAITERS: usize = 1_024;
/// How old an event may be that is not stored yet.
const FRESH: Duration = Duration::from_mins(1);
/// The first pause between two looks; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest.
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// Whether an event with this id may be on its way to the store. Clocks differ, so the near future is fresh too.
pub(crate) fn is_fresh(id: EventId) -> bool {
    let now = Timestamp::now();
    id.created_at()
        .is_some_and(|made| now.since(made) < FRESH && made.since(now) < FRESH)
}

/// The room for requests that wait.
pub(crate) struct Waiters(Semaphore);

impl Waiters {
    pub(crate) const fn new() -> Self {
        Self(Semaphore::const_new(MAX_WAITERS))
    }

    /// A wait of `limit` at most, from now.
    pub(crate) fn wait(&self, limit: Duration) -> Wait<'_> {
        Wait {
            room: &self.0,
            permit: None,
            deadline: Instant::now() + limit,
            pause: FIRST_PAUSE,
        }
    }
}

/// One request's wait.
pub(crate) struct Wait<'a> {
    room: &'a Semaphore,
    permit: Option<SemaphorePermit<'a>>,
    deadline: Instant,
    pause: Duration,
}

impl Wait<'_> {
    /// Pauses before another look; `false` at once when the time is up or there is no room to wait.
    pub(crate) async fn pause(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        if self.permit.is_none() {
            self.permit = self.room.try_acquire().ok();
        }
        if self.permit.is_none() {
            return false;
        }
        tokio::time::sleep(self.pause.min(left)).await;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_and_gives_its_room_back() {
        let waiters = Waiters::new();
        let started = Instant::now();
        let mut wait = waiters.wait(Duration::from_millis(40));
        let mut looks = 0;
        while wait.pause().await {
            looks += 1;
        }
        assert_eq!(looks, 3, "after 10, 30 and 40 ms");
        assert!(started.elapsed() >= Duration::from_millis(40));
        drop(wait);
        assert_eq!(waiters.0.available_permits(), MAX_WAITERS);
        assert!(!waiters.wait(Duration::ZERO).pause().await);
    }

    #[tokio::test]
    async fn past_the_bound_nobody_waits() {
        let waiters = Waiters::new();
        let _all = waiters
            .0
            .try_acquire_many(u32::try_from(MAX_WAITERS).unwrap())
            .unwrap();
        assert!(!waiters.wait(Duration::from_secs(30)).pause().await);
    }

    #[test]
    fn only_ids_of_this_minute_are_fresh() {
        assert!(is_fresh(EventId::new()));
        let old = "evt_01h455vb4pex5vsknk084sn02q".parse().unwrap();
        assert!(!is_fresh(old));
        assert!(!is_fresh(EventId::from_uuid(uuid::Uuid::new_v4())));
    }
}
