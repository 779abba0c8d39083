//! Room for the bodies of batches: how much memory they may take together.
//!
//! A body takes room piece by piece as it comes, and gives it back when its batch is answered. An organization has a share:
//! whoever posts many large batches at once, or sends them slowly, is refused before others are. Nobody waits for room.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::{OrganizationId, http::ApiError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What all bodies take, in bytes.
const ALL: usize = 64 * 1024 * 1024;
/// What those of one organization take.
const SHARE: usize = ALL / 4;
/// Past this many shares, those that nobody uses are forgotten.
const MAX_SHARES: usize = 1_024;

/// The room that there is.
pub(crate) struct Room {
    all: Arc<Semaphore>,
    shares: Mutex<HashMap<OrganizationId, Arc<Semaphore>>>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL)),
            shares: Mutex::default(),
        }
    }
}

/// The room of one body, until it is dropped.
pub(super) struct Held {
    all: Arc<Semaphore>,
    share: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Room {
    /// None yet, for a body of this organization's.
    pub(super) fn of(&self, organization: OrganizationId) -> Held {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if shares.len() >= MAX_SHARES {
            shares.retain(|_, share| Arc::strong_count(share) > 1);
        }
        let share = shares
            .entry(organization)
            .or_insert_with(|| Arc::new(Semaphore::new(SHARE)));
        Held {
            all: Arc::clone(&self.all),
            share: Arc::clone(share),
            permits: Vec::with_capacity(2),
        }
    }
}

impl Held {
    /// Takes room for so many bytes more.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let refused = || {
            let detail = "more batches are under way than there is room for; try again";
            ApiError::unavailable(detail, Duration::from_secs(1))
        };
        let bytes = u32::try_from(bytes).map_err(|_| refused())?;
        for semaphore in [&self.share, &self.all] {
            let permit = Arc::clone(semaphore)
                .try_acquire_many_owned(bytes)
                .map_err(|_| refused())?;
            // Those of one semaphore become one, so that this stays as small as it is.
            match self
                .permits
                .iter_mut()
                .find(|held| Arc::ptr_eq(held.semaphore(), semaphore))
            {
                Some(held) => held.merge(permit),
                None => self.permits.push(permit),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: usize = 4 * 1024 * 1024;

    fn fill(room: &Room, organization: OrganizationId) -> Vec<Held> {
        let mut held = Vec::new();
        loop {
            let mut one = room.of(organization);
            if one.grow(BODY).is_err() {
                return held;
            }
            held.push(one);
        }
    }

    #[test]
    fn an_organization_has_a_quarter_and_all_have_the_whole() {
        let room = Room::default();
        let organizations: Vec<_> = (0..5).map(|_| OrganizationId::new()).collect();
        let mut held = Vec::new();
        for organization in &organizations[..4] {
            let of_one = fill(&room, *organization);
            assert_eq!(of_one.len(), 4);
            held.extend(of_one);
        }
        let mut last = room.of(organizations[4]);
        let refused = last.grow(1).unwrap_err();
        assert_eq!(refused.code(), shared::http::Code::Unavailable);
        held.pop();
        for _ in 0..BODY / 1_024 {
            last.grow(1_024).unwrap();
        }
        assert!(last.grow(1).is_err());
        assert_eq!(last.permits.len(), 2);
        drop((held, last));
        assert_eq!(room.all.available_permits(), ALL);
    }

    #[test]
    fn shares_that_nobody_uses_are_forgotten() {
        let room = Room::default();
        let used = OrganizationId::new();
        let held = room.of(used);
        for _ in 0..3 * MAX_SHARES {
            drop(room.of(OrganizationId::new()));
        }
        let shares = room.shares.lock().unwrap();
        assert!(shares.len() <= MAX_SHARES);
        assert!(shares.contains_key(&used));
        drop(held);
    }
}
