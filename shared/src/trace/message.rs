//! The spans of an event at the queue.

use std::time::Duration;

use opentelemetry::trace::SpanKind;

use super::{Open, is_on, start_ago};
use crate::AcceptedEvent;

/// Begins the span of putting an event into the queue ([`SpanKind::Producer`]) or of taking it in, which began that long ago,
/// below the event's own trace. An event without one has no spans: whoever took it has decided so.
///
/// By the [conventions for messaging](https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/). The event is the
/// message, not the frame that it shares with others, and whichever the engine is, the system is ours.
pub fn message(kind: SpanKind, event: &AcceptedEvent, ago: Duration) -> Option<Open> {
    if !is_on() {
        return None;
    }
    let trace = event.trace.as_ref()?;
    let (name, operation) = if kind == SpanKind::Producer {
        ("send events", "send")
    } else {
        ("process events", "process")
    };
    let mut span = start_ago(ago, kind, name, trace)?;
    let bytes = event.payload.as_bytes().len();
    span.set("messaging.system", "triggers");
    span.set("messaging.destination.name", "events");
    span.set("messaging.operation.name", operation);
    span.set("messaging.operation.type", operation);
    span.set("messaging.message.id", event.id.to_string());
    span.set("triggers.event.id", event.id.to_string());
    span.set(
        "messaging.message.body.size",
        i64::try_from(bytes).unwrap_or(i64::MAX),
    );
    span.set("triggers.event.type", event.event_type.as_str().to_owned());
    span.set("triggers.organization.id", event.organization.to_string());
    Some(span)
}
