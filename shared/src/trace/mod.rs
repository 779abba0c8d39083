//! Traces: what happened to an event, as OpenTelemetry spans, from the producer's `traceparent` to the subscriber's.
//!
//! Off unless a collector is set ([`TraceArgs`]): then [`start`] is a look at a static, and nothing is made or kept. On, a
//! span is made where the sampler says so, as a rule where the producer's trace is sampled; where it is not, the producer's
//! `traceparent` goes on as it came. Spans are sent from a queue with a bound: a collector that is slow or away costs spans,
//! which are counted, and holds up nothing.
//!
//! A trace begins with a request ([`routes`]) and nowhere else: what has none when it comes to a worker gets none there.

mod collector;
mod export;
mod message;
mod request;
mod settings;

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime},
};

pub use opentelemetry::trace::SpanKind;
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
        Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span, SpanLimits};

pub use self::{export::Export, message::message, request::routes, settings::TraceArgs};
use crate::{TraceParent, VERSION};

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Begins to trace, if the settings say where to. Needs a runtime. What it gives is to be closed at the end.
pub fn init(args: &TraceArgs) -> anyhow::Result<Option<Export>> {
    let Some(collector) = args.collector()? else {
        return Ok(None);
    };
    let (sampler, resource) = (args.sampler()?, args.resource()?);
    let url = collector.shown();
    let (queue, export) = export::begin(collector, &resource);
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampler)
        // Not those of the environment: no span comes near them.
        .with_span_limits(SpanLimits::default())
        .with_resource(resource)
        .with_span_processor(queue)
        .build();
    let scope = opentelemetry::InstrumentationScope::builder("triggers")
        .with_version(VERSION)
        .build();
    // Once a process: there is one such setting, too.
    TRACER.get_or_init(|| provider.tracer_with_scope(scope));
    tracing::info!(collector.url = url, "traces are on");
    Ok(Some(export))
}

/// Whether anything is traced.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// Begins a span below `parent`, or a trace where there is none; `None` if it is not to be traced.
pub fn start(kind: SpanKind, name: &'static str, parent: Option<&TraceParent>) -> Option<Open> {
    start_at(None, kind, name, parent)
}

/// As [`start`], of what began that long ago.
fn start_ago(ago: Duration, kind: SpanKind, name: &'static str, parent: &TraceParent) -> Option<Open> {
    start_at(SystemTime::now().checked_sub(ago), kind, name, Some(parent))
}

fn start_at(
    at: Option<SystemTime>,
    kind: SpanKind,
    name: &'static str,
    parent: Option<&TraceParent>,
) -> Option<Open> {
    let tracer = TRACER.get()?;
    let parent = parent.map_or_else(Context::new, |parent| {
        Context::new().with_remote_span_context(parent.into())
    });
    let mut builder = tracer.span_builder(name).with_kind(kind);
    builder.start_time = at;
    let span = tracer.build_with_context(builder, &parent);
    span.is_recording().then(|| Open(Box::new(span)))
}

/// A span that is open. It ends when dropped.
#[derive(Debug)]
pub struct Open(
    // In a box, so that what may hold one is as small as without while nothing is traced.
    Box<Span>,
);

impl Open {
    /// What the next span is below of.
    pub fn context(&self) -> TraceParent {
        self.0.span_context().into()
    }

    /// Names it otherwise than at its beginning.
    pub fn rename(&mut self, name: String) {
        self.0.update_name(name);
    }

    /// Says something about it: never payloads, keys or secrets.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// It failed, with a kind of failure from a short list.
    pub fn fail(&mut self, kind: &'static str) {
        self.set("error.type", kind);
        self.0.set_status(Status::error(""));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail("panic");
        }
    }
}

impl From<&TraceParent> for SpanContext {
    fn from(parent: &TraceParent) -> Self {
        // 00-(32 digits)-(16 digits)-(2 digits), which parsing has made sure of.
        let text = parent.as_str();
        let flags = u8::from_str_radix(&text[53..], 16).unwrap_or_default();
        Self::new(
            TraceId::from_hex(&text[3..35]).unwrap_or(TraceId::INVALID),
            SpanId::from_hex(&text[36..52]).unwrap_or(SpanId::INVALID),
            TraceFlags::new(flags),
            true,
            TraceState::NONE,
        )
    }
}

impl From<&SpanContext> for TraceParent {
    fn from(context: &SpanContext) -> Self {
        Self::of(
            context.trace_id().to_bytes(),
            context.span_id().to_bytes(),
            context.trace_flags().to_u8(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_read_and_written() {
        for text in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000001-0000000000000001-00",
        ] {
            let parent = TraceParent::parse(text).unwrap();
            let context = SpanContext::from(&parent);
            assert!(context.is_valid() && context.is_remote());
            assert_eq!(context.is_sampled(), text.ends_with("01"));
            assert_eq!(TraceParent::from(&context), parent);
        }
    }

    #[test]
    fn nothing_is_traced_unless_it_is_set() {
        assert!(!is_on());
        assert!(start(SpanKind::Server, "a", None).is_none());
    }
}
