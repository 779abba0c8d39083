//! Sending spans to a collector: from a queue with a bound, in batches, by a task that nothing waits for.

use std::{collections::HashMap, sync::Arc, time::Duration};

use opentelemetry::Context;
use opentelemetry_otlp::{RetryPolicy, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{http::Client, settings::Collector};
use crate::{config::SettingError, telemetry};

/// How many spans wait at most: some megabytes.
const WAITING: usize = 8_192;
/// How many are sent at once.
const BATCH: usize = 512;
/// How long spans gather.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch. Meanwhile others wait, up to the bound.
const TAKES: Duration = Duration::from_secs(10);
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
pub struct Export {
    task: JoinHandle<()>,
    closing: CancellationToken,
}

impl Export {
    /// Sends what waits, if that takes no longer than a few seconds. Spans that end from now on may be lost.
    pub async fn close(self) {
        self.closing.cancel();
        if tokio::time::timeout(CLOSE, self.task).await.is_err() {
            tracing::warn!("the last spans were not sent: the collector does not take them");
        }
    }
}

/// Begins to send.
pub(super) fn begin(collector: &Collector, resource: &Resource) -> Result<(Queue, Export), SettingError> {
    let headers: HashMap<_, _> = collector.headers.iter().cloned().collect();
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(collector.url.as_str())
        .with_headers(headers)
        .with_http_client(Client::new())
        // The next batch is the next try: what waits longer than that waits in the queue.
        .with_retry_policy(RetryPolicy::disabled())
        .build()
        .map_err(|error| SettingError::new("OTEL_EXPORTER_OTLP_ENDPOINT", error.to_string()))?;
    exporter.set_resource(resource);
    let (sender, spans) = mpsc::channel(WAITING);
    let closing = CancellationToken::new();
    let task = tokio::spawn(send(spans, Arc::new(exporter), closing.clone()));
    Ok((Queue(sender), Export { task, closing }))
}

async fn send(
    mut spans: mpsc::Receiver<SpanData>,
    exporter: Arc<opentelemetry_otlp::SpanExporter>,
    closing: CancellationToken,
) {
    let mut taken = true;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        tokio::select! {
            count = spans.recv_many(&mut batch, BATCH) => if count == 0 { return },
            () = closing.cancelled() => {}
        }
        if batch.len() < BATCH && !closing.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = closing.cancelled() => {}
            }
        }
        while batch.len() < BATCH
            && let Ok(span) = spans.try_recv()
        {
            batch.push(span);
        }
        if batch.is_empty() {
            // It is closing, and nothing is left.
            return;
        }
        let count = batch.len() as u64;
        let sent = tokio::time::timeout(TAKES, exporter.export(batch)).await;
        let failure = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it does not answer".to_owned()),
        };
        match failure {
            None => telemetry::spans_exported().increment(count),
            Some(error) => {
                telemetry::spans_dropped().increment(count);
                // Once for as long as it lasts.
                if taken {
                    tracing::warn!(error, "the collector does not take spans; they are dropped");
                }
            }
        }
        taken = failure.is_none();
    }
}
