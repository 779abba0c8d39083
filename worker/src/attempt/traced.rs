//! The span of an attempt, whose context the subscriber gets.
//!
//! Of the URL it has the host and the port alone: paths and queries of webhooks often hold secrets.

use shared::{
    TraceParent,
    delivery::AttemptResult,
    trace::{self, Open, SpanKind},
};

use crate::{lane::Job, registry::Route};

/// Begins it, if the event is traced.
pub(super) fn begin(route: &Route, job: &Job, number: u32) -> Option<Open> {
    if !trace::is_on() {
        return None;
    }
    let trace = job.event.trace.as_deref().and_then(TraceParent::parse)?;
    let mut span = trace::start(SpanKind::Client, "POST", Some(&trace))?;
    span.set("http.request.method", "POST");
    if let Ok(uri) = &route.uri {
        let scheme = uri.scheme_str().unwrap_or("https");
        let usual = if scheme == "http" { 80 } else { 443 };
        // An address of IPv6 is in brackets in a URL alone.
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        span.set("url.scheme", scheme.to_owned());
        span.set("server.address", host.to_owned());
        span.set("server.port", i64::from(uri.port_u16().unwrap_or(usual)));
    }
    span.set("triggers.organization.id", job.organization.to_string());
    span.set("triggers.event.id", job.key.event.to_string());
    span.set("triggers.event.type", job.event.event_type.to_string());
    span.set("triggers.subscription.id", job.key.subscription.to_string());
    span.set("triggers.attempt", i64::from(number));
    Some(span)
}

/// Says what came of it.
pub(super) fn ended(span: &mut Open, result: &AttemptResult) {
    let status_code = match result {
        AttemptResult::Delivered { status_code } => Some(*status_code),
        AttemptResult::Failed { failure, .. } => {
            span.fail(failure.kind.as_str());
            failure.status_code
        }
    };
    if let Some(status_code) = status_code {
        span.set("http.response.status_code", i64::from(status_code));
    }
}

/// This process lacked what it needs to make it.
pub(super) fn not_made(span: Option<Open>) {
    if let Some(mut span) = span {
        span.fail("not_made");
    }
}
