//! An OpenTelemetry collector: a real HTTP server that takes traces by OTLP.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;

use crate::{Authority, Receiver, Reply, eventually, tls::Flaw};

/// How long spans may take to arrive where nothing holds them up.
const SOON: Duration = Duration::from_secs(15);
const PATH: &str = "/v1/traces";

/// The server. It ends when dropped.
pub struct Collector(Receiver);

/// A span as it arrived.
#[derive(Debug, Clone)]
pub struct Traced {
    /// What the process calls itself.
    pub service: String,
    /// The span's name.
    pub name: String,
    /// Its kind.
    pub kind: SpanKind,
    /// Its trace's id.
    pub trace: String,
    /// Its own id.
    pub id: String,
    /// That of the span that it is below of, if there is one.
    pub parent: String,
    /// What is said about it, as text.
    pub attributes: BTreeMap<String, String>,
    /// Whether it is marked as failed.
    pub failed: bool,
    /// When it began and ended, in nanoseconds since 1970.
    pub times: [u64; 2],
}

impl Traced {
    /// What is said about it under this name, or an empty text.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// The `traceparent` of what is below it.
    pub fn context(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.id)
    }

    fn of(service: &str, span: Span) -> Self {
        Self {
            service: service.to_owned(),
            kind: span.kind(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            failed: span
                .status
                .is_some_and(|status| status.code() == StatusCode::Error),
            name: span.name,
            attributes: texts(span.attributes),
            times: [span.start_time_unix_nano, span.end_time_unix_nano],
        }
    }
}

impl Collector {
    /// Starts one on a loopback port.
    pub async fn start() -> Self {
        Self(Receiver::start().await)
    }

    /// Starts one that speaks TLS, with a certificate of the authority's.
    pub async fn start_tls(authority: &Authority) -> Self {
        Self(Receiver::start_tls(authority, Flaw::None, &["http/1.1"]).await)
    }

    /// Its base.
    pub fn url(&self) -> String {
        self.0.url("")
    }

    /// Answers so from now on.
    pub fn always(&self, reply: Reply) {
        self.0.always(PATH, reply);
    }

    /// What was sent to it, as it was sent, with the headers.
    pub fn received(&self) -> Vec<crate::Received> {
        self.0.received(PATH)
    }

    /// The spans that were sent to it.
    pub fn spans(&self) -> Vec<Traced> {
        let received = self.received();
        let requests = received.iter().map(|request| {
            assert_eq!(request.header("content-type"), "application/x-protobuf");
            ExportTraceServiceRequest::decode(&*request.body).expect("OTLP")
        });
        let mut spans = Vec::new();
        for of_process in requests.flat_map(|request| request.resource_spans) {
            let resource = of_process.resource.expect("a resource");
            let service = texts(resource.attributes)
                .remove("service.name")
                .unwrap_or_default();
            let found = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(found.map(|span| Traced::of(&service, span)));
        }
        spans
    }

    /// Waits until it has so many spans of a trace, and gives those that it has, in the order in which they began.
    pub async fn wait_for(&self, trace: &str, count: usize) -> Vec<Traced> {
        let what = format!("{count} spans of {trace} arrive");
        let mut spans = eventually(&what, SOON, async || {
            let mut spans = self.spans();
            spans.retain(|span| span.trace == trace);
            if spans.len() >= count {
                Ok(spans)
            } else {
                Err(format!("{spans:#?}"))
            }
        })
        .await;
        spans.sort_by_key(|span| span.times);
        spans
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: AnyValue| match value.value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let texts = attributes
        .into_iter()
        .filter_map(|attribute| Some((attribute.key, text(attribute.value?))));
    texts.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
