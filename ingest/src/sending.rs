//! The span of an event's way into the queue, until it is confirmed.

use std::time::Duration;

use shared::{
    AcceptedEvent,
    queue::PublishError,
    trace::{self, Open, SpanKind},
};

/// An event's way into the queue, which has a span if it is traced.
pub(crate) struct Sending(Option<Open>);

impl Sending {
    /// It is about to be written. From here on the event is part of the span: whoever stores it and pushes it goes on from there.
    pub(crate) fn begin(event: &mut AcceptedEvent) -> Self {
        let span = trace::message(SpanKind::Producer, event, Duration::ZERO);
        if let Some(span) = &span {
            event.trace = Some(span.context());
        }
        Self(span)
    }

    /// It is confirmed, or not.
    pub(crate) fn ended(&mut self, published: Result<&(), &PublishError>) {
        if let (Some(mut span), Err(error)) = (self.0.take(), published) {
            span.fail(match error {
                PublishError::Overloaded => "overloaded",
                PublishError::Unavailable => "unavailable",
                PublishError::Full => "full",
                PublishError::TimedOut => "timeout",
            });
        }
    }

    /// Something before it was not confirmed.
    pub(crate) fn not_tried(self) {
        if let Some(mut span) = self.0 {
            span.fail("not_tried");
        }
    }
}
