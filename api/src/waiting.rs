//! Waiting for what was accepted a moment ago and is not stored yet.
//!
//! An id is good from the moment it is answered, which may be before intake has stored its event. Whoever asks for an
//! id younger than a minute therefore waits a little; an id of another organization waits just the same, so that the
//! time tells nothing. Waits are bounded in length and number, over all and for an organization: past that the answer comes
//! at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{EventId, OrganizationId, Timestamp, shares::Shares};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most requests that wait at once.
const MAX_WAITERS: usize = 1_024;
/// The most of one organization.
const SHARE: usize = MAX_WAITERS / 4;
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
pub(crate) struct Waiters {
    all: Arc<Semaphore>,
    shares: Shares<OrganizationId>,
}

impl Default for Waiters {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_WAITERS)),
            shares: Shares::of_each(SHARE),
        }
    }
}

impl Waiters {
    /// A wait of `limit` at most, from now, of somebody of this organization.
    pub(crate) fn wait(&self, organization: OrganizationId, limit: Duration) -> Wait<'_> {
        Wait {
            room: self,
            organization,
            seat: None,
            deadline: Instant::now() + limit,
            pause: FIRST_PAUSE,
        }
    }

    /// A place to wait at, if there is one left.
    fn seat(&self, organization: OrganizationId) -> Option<Seat> {
        Some(Seat {
            _share: self.shares.of(organization).try_acquire_owned().ok()?,
            _all: Arc::clone(&self.all).try_acquire_owned().ok()?,
        })
    }
}

/// A place to wait at. It is given up when dropped, as when the client is gone.
struct Seat {
    _share: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// One request's wait.
pub(crate) struct Wait<'a> {
    room: &'a Waiters,
    organization: OrganizationId,
    seat: Option<Seat>,
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
        if self.seat.is_none() {
            self.seat = self.room.seat(self.organization);
        }
        if self.seat.is_none() {
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
        let waiters = Waiters::default();
        let ours = OrganizationId::new();
        let started = Instant::now();
        let mut wait = waiters.wait(ours, Duration::from_millis(40));
        let mut looks = 0;
        while wait.pause().await {
            looks += 1;
        }
        assert_eq!(looks, 3, "after 10, 30 and 40 ms");
        assert!(started.elapsed() >= Duration::from_millis(40));
        assert_eq!(waiters.all.available_permits(), MAX_WAITERS - 1);
        drop(wait);
        assert_eq!(waiters.all.available_permits(), MAX_WAITERS);
        assert!(!waiters.wait(ours, Duration::ZERO).pause().await);
    }

    #[tokio::test]
    async fn an_organization_has_a_quarter_and_past_the_bound_nobody_waits() {
        let waiters = Waiters::default();
        let organizations: Vec<_> = (0..5).map(|_| OrganizationId::new()).collect();
        let mut seats = Vec::new();
        for organization in &organizations[..4] {
            seats.extend(std::iter::from_fn(|| waiters.seat(*organization)));
            let mut wait = waiters.wait(*organization, Duration::from_secs(30));
            assert!(!wait.pause().await, "it has as many as it may");
            if seats.len() < MAX_WAITERS {
                let mut another = waiters.wait(organizations[4], Duration::from_millis(10));
                assert!(another.pause().await, "others wait all the same");
            }
        }
        assert_eq!(seats.len(), MAX_WAITERS);
        assert!(
            !waiters
                .wait(organizations[4], Duration::from_secs(30))
                .pause()
                .await
        );
        seats.pop();
        assert!(
            waiters
                .wait(organizations[4], Duration::from_millis(10))
                .pause()
                .await
        );
    }

    #[test]
    fn only_ids_of_this_minute_are_fresh() {
        assert!(is_fresh(EventId::new()));
        let old = "evt_01h455vb4pex5vsknk084sn02q".parse().unwrap();
        assert!(!is_fresh(old));
        assert!(!is_fresh(EventId::from_uuid(uuid::Uuid::new_v4())));
    }
}
