//! Traces: what happened to an event, as OpenTelemetry spans, from the producer's `traceparent` to the subscriber's.
//!
//! Off unless a collector is set ([`TraceArgs`](crate::config::TraceArgs)): then [`start`] is a look at a static, and nothing is made or kept. On, a
//! span is made where the sampler says so, as a rule where the producer's trace is sampled. Spans are sent from a queue
//! with a bound: a collector that is slow or away costs spans, which are counted, and holds up nothing.

mod export;
mod http;
mod request;
mod settings;

use std::sync::OnceLock;

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
        Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider, Span},
};

pub use self::{export::Export, request::traced, settings::TraceArgs};
use crate::{TraceParent, VERSION, config::SettingError};

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// What a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request that somebody makes here.
    Server,
    /// Putting an event into the queue.
    Producer,
    /// Taking one out of it.
    Consumer,
    /// A request that is made from here.
    Client,
}

impl From<Kind> for SpanKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Server => Self::Server,
            Kind::Producer => Self::Producer,
            Kind::Consumer => Self::Consumer,
            Kind::Client => Self::Client,
        }
    }
}

/// Begins to trace, if the settings say where to. Needs a runtime. What it gives is to be closed at the end.
pub fn init(args: &TraceArgs) -> Result<Option<Export>, SettingError> {
    let Some(collector) = args.collector()? else {
        return Ok(None);
    };
    let sampler = args.sampler()?;
    let resource = Resource::builder()
        .with_service_name(args.service_name())
        .with_attributes([
            KeyValue::new("service.version", VERSION),
            KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
        ])
        .build();
    let (queue, export) = export::begin(&collector, &resource)?;
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampler)
        .with_resource(resource)
        .with_span_processor(queue)
        .build();
    // Once a process: there is one such setting, too.
    TRACER.get_or_init(|| provider.tracer("triggers"));
    tracing::info!(collector.url = %collector.shown(), "tracing");
    Ok(Some(export))
}

/// Whether anything is traced.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// Begins a span below `parent`, or a trace, if it is to be traced.
pub fn start(kind: Kind, name: &'static str, parent: Option<&TraceParent>) -> Option<Open> {
    let tracer = TRACER.get()?;
    let parent = parent.map_or_else(Context::new, |parent| {
        Context::new().with_remote_span_context(parent.into())
    });
    let builder = tracer.span_builder(name).with_kind(kind.into());
    let span = tracer.build_with_context(builder, &parent);
    span.is_recording().then_some(Open(span))
}

/// A span that is open. It ends when dropped.
pub struct Open(Span);

impl Open {
    /// What the next span is below of.
    pub fn context(&self) -> TraceParent {
        self.0.span_context().into()
    }

    /// Says something about it: never payloads, keys or secrets.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// It failed, with a kind of failure from a short list.
    pub fn fail(&mut self, kind: &'static str) {
        self.set("error.type", kind);
        self.0.set_status(Status::error(kind));
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
            &context.trace_id().to_string(),
            &context.span_id().to_string(),
            context.trace_flags().to_u8(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_read_and_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = TraceParent::parse(text).unwrap();
        let context = SpanContext::from(&parent);
        assert!(context.is_valid() && context.is_remote() && context.is_sampled());
        assert_eq!(TraceParent::from(&context), parent);
    }

    #[test]
    fn nothing_is_traced_unless_it_is_set() {
        assert!(!is_on());
        assert!(start(Kind::Server, "a", None).is_none());
    }
}
