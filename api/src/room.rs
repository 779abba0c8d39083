//! Room for answers: how much memory they may take together.
//!
//! A list is read and written in pages ([`crate::listing`]), and takes room for one page on its way from the store to the
//! socket, for as long as it is written. What is read whole, as an event with its attempts, takes as much while it is read, and
//! then what it weighs. Any other answer takes [what it weighs](crate::weighed) until it is sent, unless that is little.
//!
//! An organization has a share: whoever reads many large answers slowly waits for itself, not the others for it. Past that an
//! answer waits a moment, and then it is 503 with `Retry-After`.

use std::{sync::Arc, time::Duration};

use shared::{OrganizationId, http::ApiError, shares::Shares};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// The unit that room is counted in, in bytes.
const UNIT: usize = 64 * 1024;
/// What a list takes: a page of 1 MiB of payloads as the store's client has it, as events, and as JSON, and what is around
/// them. 4 MiB.
const LIST: u32 = 64;
/// What an answer takes that is made before it can be weighed, as a changed subscription's or the results for 1,000 ids: at its
/// largest, and what it is made of. 512 KiB.
const SINGLE: u32 = 8;
/// The most bytes of an answer that takes no room: with all connections that is 128 MiB.
pub(crate) const LITTLE: usize = 8 * 1024;
/// What all answers take: 128 MiB.
const ALL: u32 = 32 * LIST;
/// What those of one organization take: a quarter.
const SHARE: u32 = ALL / 4;
/// How long an answer waits for room.
const WAIT: Duration = Duration::from_millis(500);

/// Whose an answer is: an organization's, or, all together, that of those who are of none.
pub(crate) type Whose = Option<OrganizationId>;

/// The room that there is.
pub(crate) struct Room {
    all: Arc<Semaphore>,
    shares: Shares<Whose>,
    /// How long an answer waits for some.
    wait: Duration,
}

/// Room that is taken, until it is dropped.
pub(crate) struct Held {
    all: OwnedSemaphorePermit,
    share: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL as usize)),
            shares: Shares::of_each(SHARE as usize),
            wait: WAIT,
        }
    }

    /// Takes room for a list, or for what is read whole.
    pub(crate) async fn take(&self, organization: OrganizationId) -> Result<Held, ApiError> {
        let refusal = "more lists are being read than there is room for; try again";
        self.units(Some(organization), LIST, refusal).await
    }

    /// Takes room for an answer that is made before it can be weighed.
    pub(crate) async fn take_single(&self, whose: Whose) -> Result<Held, ApiError> {
        self.units(whose, SINGLE, LARGE).await
    }

    /// Takes room for so many bytes; for a share, where that is less.
    pub(crate) async fn take_for(&self, whose: Whose, bytes: usize) -> Result<Held, ApiError> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        self.units(whose, units.min(SHARE), LARGE).await
    }

    async fn units(&self, whose: Whose, units: u32, refusal: &'static str) -> Result<Held, ApiError> {
        let (all, share) = (Arc::clone(&self.all), self.shares.of(whose));
        let taking = async move {
            // The share first: whoever has used it up holds nothing of the whole meanwhile.
            let share = share.acquire_many_owned(units).await?;
            let all = all.acquire_many_owned(units).await?;
            Ok::<_, AcquireError>(Held { all, share })
        };
        match tokio::time::timeout(self.wait, taking).await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(_)) | Err(_) => Err(ApiError::unavailable(refusal, Duration::from_secs(1))),
        }
    }
}

const LARGE: &str = "more large answers are being sent than there is room for; try again";

impl Held {
    /// Gives back what an answer of so many bytes does not need.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let needed = bytes.div_ceil(UNIT);
        for permit in [&mut self.all, &mut self.share] {
            let unneeded = permit.num_permits().saturating_sub(needed);
            drop(permit.split(unneeded));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn impatient() -> Room {
        Room {
            wait: Duration::from_millis(1),
            ..Room::new()
        }
    }

    async fn fill(room: &Room, organization: OrganizationId) -> Vec<Held> {
        let mut held = Vec::new();
        while let Ok(one) = room.take(organization).await {
            held.push(one);
        }
        held
    }

    #[tokio::test]
    async fn an_organization_has_a_quarter_and_all_have_the_whole() {
        let room = impatient();
        let organizations: Vec<_> = (0..5).map(|_| OrganizationId::new()).collect();
        let mut held = Vec::new();
        for organization in &organizations[..4] {
            let of_one = fill(&room, *organization).await;
            assert_eq!(of_one.len(), 8);
            held.extend(of_one);
        }
        let refused = room.take(organizations[4]).await.err().unwrap();
        assert_eq!(refused.code(), shared::http::Code::Unavailable);
        held.pop();
        assert!(room.take(organizations[4]).await.is_ok());
    }

    #[tokio::test]
    async fn an_answer_takes_what_it_weighs() {
        let room = impatient();
        let organization = Some(OrganizationId::new());
        let share = room.shares.of(organization);
        let left = || share.available_permits();
        let held = room.take_for(organization, 3 * UNIT + 1).await.unwrap();
        assert_eq!(left(), SHARE as usize - 4);
        drop(held);
        // However large it is, there is room for it once nobody else has any.
        let held = room.take_for(organization, usize::MAX).await.unwrap();
        assert_eq!(left(), 0);
        assert!(room.take_single(organization).await.is_err());
        assert!(room.take_single(None).await.is_ok());
        drop(held);
        assert_eq!(left(), SHARE as usize);
    }

    #[tokio::test]
    async fn a_short_list_gives_back_what_it_does_not_need() {
        let room = impatient();
        let organization = OrganizationId::new();
        let mut held = fill(&room, organization).await;
        for one in &mut held {
            one.shrink_to(100);
        }
        let more = fill(&room, organization).await;
        assert_eq!(more.len(), 7, "8 units of 64 KiB are held, of 8 times 64");
        drop((held, more));
        assert_eq!(fill(&room, organization).await.len(), 8);
    }
}
