//! What could not be taken in, kept until somebody has looked at it.

use sha2::{Digest, Sha256};

use crate::{EventId, OrganizationId, SetAsideId, Timestamp};

/// The reason of an event whose id [has no place](super::is_in_range): put back, it gets another.
pub const ID_OUT_OF_RANGE: &str = "id_out_of_range";

/// What was set aside: a frame, or one event of it, that could not be taken in.
#[derive(Debug, Clone)]
pub struct SetAside {
    /// Its id, [of its content](SetAside::id_of): the same again is the same row.
    pub id: SetAsideId,
    /// Why, as a stable word: `unreadable`, `refused`, `unknown_organization`, `id_out_of_range`, `repeatedly_failing`.
    pub reason: String,
    /// Why, for people.
    pub detail: String,
    /// Whose it is, where that can be told.
    pub organization: Option<OrganizationId>,
    /// Which event it is, where that can be told.
    pub event: Option<EventId>,
    /// The frame: as it came, or with this one event alone.
    pub frame: Vec<u8>,
    /// When; of what came more than once, the last time.
    pub at: Timestamp,
    /// How often it came.
    pub times: u64,
}

/// A place in the list of what was set aside, which is in order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetAsidePlace {
    /// When it was set aside.
    pub at: Timestamp,
    /// Which it is, of those of the same time.
    pub id: SetAsideId,
}

impl SetAside {
    /// The id of a frame, or of one event of it, whatever the reason: a version 8 UUID of their SHA-256.
    pub fn id_of(event: Option<EventId>, frame: &[u8]) -> SetAsideId {
        let mut hash = Sha256::new();
        hash.update(frame);
        if let Some(event) = event {
            hash.update(event.uuid().as_bytes());
        }
        let full: [u8; 32] = hash.finalize().into();
        let mut short = [0; 16];
        short.copy_from_slice(&full[..16]);
        SetAsideId::from_uuid(uuid::Builder::from_custom_bytes(short).into_uuid())
    }

    /// Where it is in the list.
    pub fn place(&self) -> SetAsidePlace {
        SetAsidePlace {
            at: self.at,
            id: self.id,
        }
    }
}
