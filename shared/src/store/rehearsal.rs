//! The event that nobody posted, by which a store shows that it takes events in.

use std::slice::from_ref;

use bytes::Bytes;
use uuid::{NoContext, Uuid};

use super::{IntakeBatch, PlannedDelivery};
use crate::{
    AcceptedEvent, DedupId, EventId, EventType, OrganizationId, Payload, SubscriptionId, Timestamp, WorkerId,
};

/// An event of an organization that does not exist, of the store's own time; with a key, so that every table has its part.
pub(super) fn event(now: Timestamp) -> AcceptedEvent {
    let seconds = u64::try_from(now.seconds()).unwrap_or(0);
    let id = EventId::from_uuid(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, 0)));
    let (Ok(event_type), Ok(key), Ok(payload)) = (
        EventType::parse_any("triggers.rehearsal"),
        DedupId::parse("rehearsal"),
        Payload::from_trusted(Bytes::from_static(b"{}")),
    ) else {
        unreachable!("they follow their rules");
    };
    AcceptedEvent {
        id,
        former_ids: Vec::new(),
        organization: OrganizationId::new(),
        event_type,
        dedup_id: Some(key),
        received_at: now,
        occurred_at: None,
        source: None,
        trace: None,
        payload,
    }
}

/// Its one delivery, to a subscription that does not exist.
pub(super) fn delivery() -> PlannedDelivery {
    PlannedDelivery {
        event: 0,
        subscription: SubscriptionId::new(),
        held: false,
    }
}

/// The batch of the two. It was planned by no version, so that none makes it stale.
pub(super) fn batch<'a>(event: &'a AcceptedEvent, delivery: &'a PlannedDelivery) -> IntakeBatch<'a> {
    IntakeBatch {
        worker: WorkerId::new(),
        events: from_ref(event),
        deliveries: from_ref(delivery),
        versions: &[],
        repeats: &[],
    }
}
