//! Room for lists: how much memory their answers may take together.
//!
//! A list is read and written in pages ([`crate::listing`]), and takes room for one page on its way from the store to the
//! socket, for as long as it is written. One that turns out to be short gives back what it does not need. An organization
//! has a share: whoever reads many large lists slowly waits for itself, not the others for it. Past that a list waits a
//! moment, and then the answer is 503 with `Retry-After`.

use std::{sync::Arc, time::Duration};

use shared::{OrganizationId, http::ApiError, shares::Shares};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// The unit that room is counted in, in bytes.
const UNIT: usize = 64 * 1024;
/// What a list takes: a page of 1 MiB of payloads as the store's client has it, as events, and as JSON, and what is around
/// them. 4 MiB.
const LIST: u32 = 64;
/// What all lists take: 128 MiB.
const ALL: usize = 32 * LIST as usize;
/// What those of one organization take: a quarter.
const SHARE: usize = ALL / 4;
/// How long a list waits for room.
const WAIT: Duration = Duration::from_millis(500);

/// The room that there is.
pub(crate) struct Room {
    all: Arc<Semaphore>,
    shares: Shares<OrganizationId>,
    /// How long a list waits for some.
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
            all: Arc::new(Semaphore::new(ALL)),
            shares: Shares::of_each(SHARE),
            wait: WAIT,
        }
    }

    /// Takes room for a list.
    pub(crate) async fn take(&self, organization: OrganizationId) -> Result<Held, ApiError> {
        let (all, share) = (Arc::clone(&self.all), self.shares.of(organization));
        let taking = async move {
            // The share first: whoever has used it up holds nothing of the whole meanwhile.
            let share = share.acquire_many_owned(LIST).await?;
            let all = all.acquire_many_owned(LIST).await?;
            Ok::<_, AcquireError>(Held { all, share })
        };
        match tokio::time::timeout(self.wait, taking).await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(_)) | Err(_) => Err(ApiError::unavailable(
                "more lists are being read than there is room for; try again",
                Duration::from_secs(1),
            )),
        }
    }
}

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
