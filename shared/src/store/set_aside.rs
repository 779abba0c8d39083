//! What could not be taken in, kept until somebody has looked at it.

use crate::{EventId, OrganizationId, SetAsideId, Timestamp};

/// What was set aside: a frame, or one event of it, that could not be taken in.
#[derive(Debug, Clone)]
pub struct SetAside {
    /// Its id.
    pub id: SetAsideId,
    /// Why, as a stable word: `unreadable`, `refused`, `unknown_organization`, `id_out_of_range`, `too_large`.
    pub reason: String,
    /// Why, for people.
    pub detail: String,
    /// Whose it is, where that can be told.
    pub organization: Option<OrganizationId>,
    /// Which event it is, where that can be told.
    pub event: Option<EventId>,
    /// The frame: as it came, or with this one event alone.
    pub frame: Vec<u8>,
    /// When.
    pub at: Timestamp,
}
