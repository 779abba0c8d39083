//! `/health`, `/health/live`, `/health/ready` and `/metrics`, which every role serves.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{Router, extract::State, response::IntoResponse, routing::get};
use http::{HeaderValue, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Map, Value, json};

use crate::{Timestamp, VERSION, store::Store};

/// How long a readiness check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Something that a role cannot do its work without.
#[async_trait]
pub trait ReadyCheck: Send + Sync {
    /// Its name in the answer: `queue` or `store`.
    fn name(&self) -> &'static str;
    /// `Ok`, or why not, in a few words that tell nothing of the inside.
    async fn check(&self) -> Result<(), &'static str>;
}

/// Ready while the store answers.
pub struct StoreReady(pub Store);

#[async_trait]
impl ReadyCheck for StoreReady {
    fn name(&self) -> &'static str {
        "store"
    }

    async fn check(&self) -> Result<(), &'static str> {
        self.0
            .keeper
            .ping()
            .await
            .map_err(|_| "the store cannot be reached")
    }
}

/// What the routes need.
#[derive(Clone)]
pub struct Ops {
    /// The role's name in the answer.
    pub role: &'static str,
    /// What readiness depends on.
    pub checks: Arc<[Box<dyn ReadyCheck>]>,
    /// The metrics to show.
    pub metrics: PrometheusHandle,
}

/// The routes.
pub fn routes(ops: Ops) -> Router {
    Router::new()
        .route("/health", get(live))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(ops)
}

fn health(ops: &Ops, status: &str, checks: Option<Map<String, Value>>) -> String {
    let mut health = json!({
        "status": status,
        "timestamp": Timestamp::now(),
        "role": ops.role,
        "version": VERSION,
    });
    if let Some(checks) = checks {
        health["checks"] = Value::Object(checks);
    }
    health.to_string()
}

async fn live(State(ops): State<Ops>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        health(&ops, "ok", None),
    )
}

async fn ready(State(ops): State<Ops>) -> impl IntoResponse {
    let results = futures_util::future::join_all(ops.checks.iter().map(async |check| {
        let checked = tokio::time::timeout(CHECK_TIMEOUT, check.check()).await;
        (check.name(), checked.unwrap_or(Err("no answer within 2 seconds")))
    }))
    .await;
    let ok = results.iter().all(|(_, result)| result.is_ok());
    let checks = results
        .into_iter()
        .map(|(name, result)| (name.to_owned(), result.map_or_else(Value::from, |()| "ok".into())))
        .collect();
    let status = if ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = health(&ops, if ok { "ok" } else { "unavailable" }, Some(checks));
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    if !ok {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

async fn metrics(State(ops): State<Ops>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        ops.metrics.render(),
    )
}
