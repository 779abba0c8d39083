//! The spans of intake: of each event, from when its frame was here until what became of it was in the store.

use std::collections::HashSet;

use shared::{
    AcceptedEvent, EventId,
    store::StoredEvent,
    trace::{self, SpanKind},
};
use tokio::time::Instant;

use super::aside::Reason;

/// Events are in the store: now, or since before.
pub(super) fn stored(events: &[AcceptedEvent], stored: &[StoredEvent], since: Instant) {
    if !trace::is_on() {
        return;
    }
    let ago = since.elapsed();
    let stored: HashSet<EventId> = stored.iter().map(|event| event.id).collect();
    for event in events {
        if let Some(mut span) = trace::message(SpanKind::Consumer, event, ago) {
            let is_new = stored.contains(&event.id);
            let outcome = if is_new { "stored" } else { "duplicate" };
            span.set("triggers.intake.outcome", outcome);
        }
    }
}

/// Events are not taken in: they are set aside, or dropped with their organization.
pub(super) fn not_stored(events: &[AcceptedEvent], reason: Reason, since: Instant) {
    for event in events {
        if let Some(mut span) = trace::message(SpanKind::Consumer, event, since.elapsed()) {
            span.set("triggers.intake.outcome", "not_stored");
            span.fail(reason.as_str());
        }
    }
}
