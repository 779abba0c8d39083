//! Room for bodies: how much memory they may take together.
//!
//! A body takes room before it is read, or piece by piece as it comes, and gives it back once its request is answered. An
//! organization has a share: whoever sends many large bodies at once, or sends them slowly, is refused before others are.
//! Nobody waits for room.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;
use crate::{OrganizationId, shares::Shares};

/// Whose a body is: an organization's, or, all together, that of those who are of none.
pub type Whose = Option<OrganizationId>;

/// The room that there is.
pub struct Room {
    all: Arc<Semaphore>,
    /// What one organization may take, in bytes.
    shares: Shares<Whose>,
    /// What whoever finds none is told.
    refusal: &'static str,
}

/// The room of one body, until it is dropped: none yet, by default.
#[derive(Debug, Default)]
pub struct Held(Option<[OwnedSemaphorePermit; 2]>);

impl Room {
    /// For so many bytes, a quarter of them for one organization.
    pub fn new(bytes: usize, refusal: &'static str) -> Self {
        Self {
            all: Arc::new(Semaphore::new(bytes)),
            shares: Shares::of_each(bytes / 4),
            refusal,
        }
    }

    /// Takes room for so many bytes more of a body. 503 if there is none.
    pub fn grow(&self, whose: Whose, held: &mut Held, bytes: usize) -> Result<(), ApiError> {
        let more = self.take(whose, held, bytes).ok_or_else(|| {
            // What is held already goes with the body, when it is refused.
            ApiError::unavailable(self.refusal, Duration::from_secs(1))
        })?;
        match &mut held.0 {
            Some(permits) => {
                for (permit, more) in permits.iter_mut().zip(more) {
                    permit.merge(more);
                }
            }
            None => held.0 = Some(more),
        }
        Ok(())
    }

    fn take(&self, whose: Whose, held: &Held, bytes: usize) -> Option<[OwnedSemaphorePermit; 2]> {
        let bytes = u32::try_from(bytes).ok()?;
        let share = match &held.0 {
            Some([share, _]) => Arc::clone(share.semaphore()),
            None => self.shares.of(whose),
        };
        let take = |semaphore: Arc<Semaphore>| semaphore.try_acquire_many_owned(bytes).ok();
        // The share first: whoever has used it up takes nothing of the whole.
        Some([take(share)?, take(Arc::clone(&self.all))?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = 64 * 1024 * 1024;
    const BODY: usize = 4 * 1024 * 1024;

    fn room() -> Room {
        Room::new(ALL, "there is no room")
    }

    fn one() -> OrganizationId {
        OrganizationId::new()
    }

    fn fill(room: &Room, whose: Whose) -> Vec<Held> {
        let mut all = Vec::new();
        loop {
            let mut held = Held::default();
            if room.grow(whose, &mut held, BODY).is_err() {
                return all;
            }
            all.push(held);
        }
    }

    #[test]
    fn an_organization_has_a_quarter_and_all_have_the_whole() {
        let room = room();
        let all = [None, Some(one()), Some(one()), Some(one()), Some(one())];
        let mut held = Vec::new();
        for whose in &all[..4] {
            let of_one = fill(&room, *whose);
            assert_eq!(of_one.len(), 4);
            held.extend(of_one);
        }
        let mut last = Held::default();
        let refused = room.grow(all[4], &mut last, 1).unwrap_err();
        assert_eq!(refused.code(), crate::http::Code::Unavailable);
        assert_eq!(refused.detail(), "there is no room");
        held.pop();
        for _ in 0..BODY / 1_024 {
            room.grow(all[4], &mut last, 1_024).unwrap();
        }
        assert!(room.grow(all[4], &mut last, 1).is_err());
        drop((held, last));
        assert_eq!(room.all.available_permits(), ALL);
    }

    #[test]
    fn whoever_finds_no_room_takes_none() {
        let room = room();
        let mut held = Held::default();
        assert!(room.grow(Some(one()), &mut held, ALL / 4 + 1).is_err());
        assert!(room.grow(Some(one()), &mut held, usize::MAX).is_err());
        assert_eq!(room.all.available_permits(), ALL);
        let ours = Some(one());
        let _all = [
            fill(&room, Some(one())),
            fill(&room, Some(one())),
            fill(&room, Some(one())),
        ];
        let mut most = Held::default();
        room.grow(Some(one()), &mut most, ALL / 4 - 1).unwrap();
        assert!(room.grow(ours, &mut held, 2).is_err(), "the whole is used up");
        room.grow(ours, &mut held, 1).unwrap();
    }
}
