//! Sending spans to a collector: from a queue with a bound, in batches, by a task that nothing waits for.
//!
//! What ends while the queue is full is dropped, and what the collector does not take after a few tries is, too; both are
//! counted. While a collector is away each batch is tried once, so that what waits is never old. That it is away is
//! logged once.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{
        common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};
use prost::Message;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::collector::{Collector, NotTaken};
use crate::telemetry;

/// How many spans wait at most: about 12 MiB.
const WAITING: usize = 8_192;
/// How many are sent at once.
const BATCH: usize = 512;
/// How long spans gather, unless a batch is full sooner.
const GATHER: Duration = Duration::from_secs(1);
/// How often it is looked whether one is: often enough that 400,000 a second do not fill the queue in between.
const LOOK: Duration = Duration::from_millis(20);
/// The pauses after which a batch is tried again that a collector does not take which took the one before: it may be
/// starting anew.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// How long the last ones may take when the process stops.
const CLOSE: Duration = Duration::from_secs(5);

/// Where spans wait. One too many is dropped, and counted.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.0.try_send(span).is_err() {
            telemetry::spans_dropped().increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends.
#[derive(Debug)]
pub struct Export {
    task: JoinHandle<()>,
    closing: CancellationToken,
}

impl Export {
    /// Sends what waits, if that takes no longer than five seconds. Spans that end from now on may be lost.
    pub async fn close(self) {
        self.closing.cancel();
        match tokio::time::timeout(CLOSE, self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the task that sends spans had ended: they were dropped");
            }
            Err(_) => {
                tracing::warn!("the last spans were not sent: the collector does not take them in time");
            }
        }
    }
}

/// Begins to send.
pub(super) fn begin(collector: Collector, resource: &Resource) -> (Queue, Export) {
    let (sender, spans) = mpsc::channel(WAITING);
    let closing = CancellationToken::new();
    let sending = Sending {
        collector,
        resource: resource.into(),
        closing: closing.clone(),
        away: false,
    };
    let task = tokio::spawn(sending.run(spans));
    (Queue(sender), Export { task, closing })
}

struct Sending {
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    closing: CancellationToken,
    /// Whether the last batch was not taken.
    away: bool,
}

impl Sending {
    async fn run(mut self, mut spans: mpsc::Receiver<SpanData>) {
        loop {
            let batch = self.gather(&mut spans).await;
            if batch.is_empty() {
                // It is closing, and nothing is left.
                return;
            }
            let count = batch.len() as u64;
            let request = ExportTraceServiceRequest {
                resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
            };
            let sent = self.send(request.encode_to_vec().into()).await;
            let refused = sent.as_ref().map_or(count, |refused| count.min(*refused));
            telemetry::spans_exported().increment(count - refused);
            telemetry::spans_dropped().increment(refused);
            let trouble = match sent {
                Ok(0) => None,
                Ok(_) => Some("it refuses some of them".to_owned()),
                Err(NotTaken { why, .. }) => Some(why),
            };
            match &trouble {
                None if self.away => tracing::info!("the collector takes spans again"),
                Some(why) if !self.away => {
                    tracing::warn!(
                        why,
                        "the collector does not take spans: they are dropped until it does"
                    );
                }
                _ => {}
            }
            self.away = trouble.is_some();
        }
    }

    /// Waits for spans, and a while for more of them. None once it is closing and none is left.
    async fn gather(&self, spans: &mut mpsc::Receiver<SpanData>) -> Vec<SpanData> {
        let mut batch = Vec::with_capacity(BATCH);
        tokio::select! {
            _ = spans.recv_many(&mut batch, BATCH) => {}
            () = self.closing.cancelled() => {}
        }
        let until = Instant::now() + GATHER;
        while batch.len() + spans.len() < BATCH && Instant::now() < until && !self.closing.is_cancelled() {
            self.pause(LOOK).await;
        }
        while batch.len() < BATCH
            && let Ok(span) = spans.try_recv()
        {
            batch.push(span);
        }
        batch
    }

    /// Sends a batch, and gives how many spans of it were refused.
    async fn send(&self, batch: Bytes) -> Result<u64, NotTaken> {
        let mut sent = self.collector.send(batch.clone()).await;
        for pause in PAUSES {
            if self.away || !sent.as_ref().is_err_and(|not_taken| not_taken.may_be_later) {
                break;
            }
            self.pause(pause).await;
            sent = self.collector.send(batch.clone()).await;
        }
        sent
    }

    /// Waits, unless it is closing.
    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.closing.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Router, http::StatusCode, routing::post};
    use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tokio::net::TcpListener;

    use super::*;
    use crate::tls;

    fn spans(queue: Queue, count: usize) {
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        let tracer = provider.tracer("test");
        for _ in 0..count {
            tracer.start("a span").end();
        }
    }

    #[tokio::test]
    async fn a_full_queue_holds_up_nothing() {
        let (sender, waiting) = mpsc::channel(2);
        spans(Queue(sender), 5);
        assert_eq!(waiting.len(), 2);
    }

    /// Sends some spans to one that answers with these statuses, and then with 200; how many spans each request had.
    async fn sent(count: usize, statuses: &[u16]) -> Vec<usize> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, statuses) = (Arc::clone(&requests), statuses.to_vec());
        let take = async move |body: Bytes| {
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            let of_scopes = request.resource_spans.iter().flat_map(|spans| &spans.scope_spans);
            let mut seen = seen.lock().unwrap();
            let status = statuses.get(seen.len()).copied().unwrap_or(200);
            seen.push(of_scopes.map(|scope| scope.spans.len()).sum());
            StatusCode::from_u16(status).unwrap()
        };
        let router = Router::new().route("/", post(take));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let tls = tls::client("A_FILE", None).unwrap();
        let collector = Collector::new(uri.parse().unwrap(), http::HeaderMap::new(), tls);
        let (queue, export) = begin(collector, &Resource::builder_empty().build());
        spans(queue, count);
        export.close().await;
        serving.abort();
        let requests = requests.lock().unwrap();
        requests.clone()
    }

    #[tokio::test]
    async fn what_waits_is_sent_at_the_end() {
        assert_eq!(sent(1_100, &[]).await, [512, 512, 76]);
        assert_eq!(sent(0, &[]).await, [0; 0]);
    }

    #[tokio::test]
    async fn a_batch_is_tried_again_and_during_an_outage_it_is_not() {
        assert_eq!(sent(600, &[503]).await, [512, 512, 88]);
        assert_eq!(sent(1_100, &[503; 5]).await, [512, 512, 512, 512, 76]);
        assert_eq!(sent(600, &[400]).await, [512, 88]);
    }
}
