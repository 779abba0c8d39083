//! Erasing what a producer sent.
//!
//! What is stored is erased in place: the event stays, with its id, its type, its times at our side and the course of its
//! deliveries; all else that its producer sent is gone, and so is what subscribers answered. What is open is cancelled.
//!
//! An id is good from the moment it is answered, and its event may still be in the queue then. So an id that is not stored
//! is marked: intake finds the mark in its own transaction, and stores the event erased, with nothing left to send. No
//! intake falls in between: one that began before the mark was there is over before it is looked a second time.

use std::time::Duration;

use async_trait::async_trait;

use super::Result;
#[cfg(doc)]
use super::{Change, MAX_AHEAD};
use crate::{EventId, OrganizationId, Timestamp, store::is_in_range};

/// How long a mark stays: the longest that an event may be on its way to the store.
pub const ERASURE_KEPT: Duration = Duration::from_hours(30 * 24);
/// The most marks that an organization has.
pub const MAX_MARKS: u32 = 10_000;
/// How long a mark is left alone after a look.
pub(crate) const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// What the store keeps in place of an erased payload.
pub(crate) const NO_PAYLOAD: &str = "null";

/// What came of asking for an erasure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased {
    /// It is erased.
    Done {
        /// The first event's id, if an alias was given.
        event: EventId,
    },
    /// It is not stored, and will be stored erased.
    Marked,
    /// There is no such event, and none is on its way: the id is older than [`ERASURE_KEPT`], or more than
    /// [`MAX_AHEAD`] ahead.
    NotFound,
    /// The organization has [`MAX_MARKS`] already.
    TooMany,
}

/// Erasing what a producer sent.
#[async_trait]
pub trait Erasures: Send + Sync {
    /// Erases an event by its id, an alias of it, or an id that it had formerly; again changes nothing. What a worker
    /// holds of it is announced as [`Change::Closed`]. What was set aside of it is forgotten.
    async fn erase(&self, organization: OrganizationId, id: EventId) -> Result<Erased>;
    /// Looks again at marks that were not looked at of late, `most` at once: ids that lead to an event by now (an alias
    /// does so without intake's doing) erase it. How many there were.
    async fn settle_erasures(&self, most: u32) -> Result<u32>;
}

/// Whether an event with this id may be on its way.
pub(crate) fn may_come(id: EventId, now: Timestamp) -> bool {
    is_in_range(id, now, ERASURE_KEPT)
}
