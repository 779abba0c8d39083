//! What is answered of an event that is accepted, now or before.

use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    Entry, EventId, EventType, OrganizationId, Payload, Repeat, Timestamp, event::Digest16, telemetry,
};

use crate::recent::First;

/// An event that was accepted, now or before.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) id: EventId,
    pub(crate) event_type: EventType,
    pub(crate) received_at: Timestamp,
    /// For a repeat that this node knows: whether it differs from the first.
    pub(crate) repeat: Option<bool>,
}

/// An event that was accepted, now or before.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Accepted")]
pub(crate) struct Answer<'a> {
    id: EventId,
    r#type: &'a EventType,
    status: &'static str,
    received_at: Timestamp,
    /// Whether this node knows that it was posted before; `id` is the first event's then.
    duplicate: bool,
    /// Whether a repeat is another event than the first, which counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    differs: Option<bool>,
}

impl Accepted {
    /// The first event's answer again, and a note that it was asked for: it goes to the store by way of the queue.
    pub(crate) fn again(
        first: &First,
        organization: OrganizationId,
        event_type: EventType,
        payload: &Payload,
    ) -> (Self, Entry) {
        let differs = Digest16::of(&event_type, payload) != first.digest;
        let note = Repeat {
            id: EventId::new(),
            organization,
            first: first.id,
            differs,
        };
        telemetry::repeats().increment(1);
        let accepted = Self {
            id: first.id,
            event_type,
            received_at: first.received_at,
            repeat: Some(differs),
        };
        (accepted, Entry::Repeat(note))
    }

    /// What `/v1` answers.
    pub(crate) fn answer(&self) -> Answer<'_> {
        Answer {
            id: self.id,
            r#type: &self.event_type,
            status: "accepted",
            received_at: self.received_at,
            duplicate: self.repeat.is_some(),
            differs: self.repeat.filter(|differs| *differs),
        }
    }
}
