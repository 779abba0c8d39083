//! Deliveries that this worker holds.

use std::sync::Arc;

use bytes::Bytes;
use shared::{DeliveryKey, EventId, OrganizationId, Timestamp};
use tokio::time::Instant;

use crate::lease::Holding;

/// The event that deliveries are of, shared by all of them.
#[derive(Debug)]
pub struct EventBody {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: Arc<str>,
    /// When the front took it.
    pub received_at: Timestamp,
    /// When it happened, as the producer says.
    pub occurred_at: Option<Timestamp>,
    /// Where it comes from, as the producer says.
    pub source: Option<String>,
    /// The trace that it is part of.
    pub trace: Option<String>,
    /// Its payload.
    pub payload: Bytes,
}

/// A delivery that this worker holds.
#[derive(Debug)]
pub struct Job {
    /// Its address.
    pub key: DeliveryKey,
    /// Whose it is.
    pub organization: OrganizationId,
    /// It was taken as the next in order, not as something that is due.
    pub in_order: bool,
    /// Attempts made so far.
    pub attempts: u32,
    /// How many of those were made before it was opened again: its schedule begins there.
    pub attempts_before: u32,
    /// What to send.
    pub event: Arc<EventBody>,
    /// By which lease this worker holds it.
    pub holding: Arc<Holding>,
    /// Since when.
    pub since: Instant,
}

impl Job {
    /// What it counts for against bounds of bytes: its payload, and about what is around it.
    pub fn weight(&self) -> usize {
        weight_of(self.event.payload.len())
    }
}

/// What a delivery with a payload of so many bytes counts for.
pub fn weight_of(payload: usize) -> usize {
    payload + 512
}
