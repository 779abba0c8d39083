//! `/health`, `/health/live`, `/health/ready` and `/metrics`, which every role serves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::openapi::{Header, Routes, doc, get};
use crate::{Timestamp, VERSION, seal::Sealer, store::Store};

/// How long a readiness check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Something that a role cannot do its work without.
#[async_trait]
pub trait ReadyCheck: Send + Sync {
    /// Its name in the answer: `queue`, `store` or `secret_key`.
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

/// Ready while the secret key is the deployment's. At the start that is checked, too; this is for a process that runs on while
/// the deployment's key is changed. Where the store cannot say, that is the store's to be told of.
pub struct SecretKeyReady {
    store: Store,
    sealer: Arc<Sealer>,
    is_told: AtomicBool,
}

impl SecretKeyReady {
    /// Whether that key is the one by which the store's deployment knows its own.
    pub const fn new(store: Store, sealer: Arc<Sealer>) -> Self {
        Self {
            store,
            sealer,
            is_told: AtomicBool::new(false),
        }
    }
}

#[async_trait]
impl ReadyCheck for SecretKeyReady {
    fn name(&self) -> &'static str {
        "secret_key"
    }

    async fn check(&self) -> Result<(), &'static str> {
        let Ok(Some(kept)) = self.store.keeper.kept_secret_check().await else {
            return Ok(());
        };
        let opens = self.sealer.check(&kept).is_ok();
        if !self.is_told.swap(!opens, Ordering::Relaxed) && !opens {
            tracing::error!(
                "TRIGGERS_SECRET_KEY is not the key of this deployment any more: nothing is sent by what it does not open; \
                 restart this process with the one that it was changed to"
            );
        }
        if opens {
            Ok(())
        } else {
            Err("the secret key is not this deployment's any more")
        }
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
    table().into_router().with_state(ops)
}

/// The routes, each with its description.
pub fn table() -> Routes<Ops> {
    Routes::of("Operating")
        .at(
            "/health",
            get(live, doc("getHealth", "As /health/live").answers::<Health>(200)),
        )
        .at(
            "/health/live",
            get(
                live,
                doc("getLiveness", "Whether the process is up").answers::<Health>(200),
            ),
        )
        .at(
            "/health/ready",
            get(
                ready,
                doc("getReadiness", "Whether the process can do its work")
                    .answers::<Health>(200)
                    .answers::<Health>(503)
                    .header(503, Header::RetryAfter),
            ),
        )
        .at(
            "/metrics",
            get(
                metrics,
                doc("getMetrics", "Metrics, as Prometheus reads them").with(|operation| {
                    let text = "The Prometheus text format, version 0.0.4.";
                    operation.answer_of(200, "text/plain", &json!({"type": "string", "description": text}));
                }),
            ),
        )
}

/// How a process is.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it is the shape of an answer")]
struct Health {
    status: Condition,
    timestamp: Timestamp,
    /// `all`, `ingest`, `worker` or `api`.
    role: String,
    version: String,
    /// What readiness depends on, by name: `ok`, or why not.
    #[schemars(skip_serializing_if = "Option::is_none")]
    checks: Option<std::collections::BTreeMap<String, String>>,
}

/// How it is in a word.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case", inline)]
#[expect(dead_code, reason = "it is the shape of an answer")]
enum Condition {
    Ok,
    Unavailable,
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

async fn live(State(ops): State<Ops>) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        health(&ops, "ok", None),
    )
        .into_response()
}

async fn ready(State(ops): State<Ops>) -> Response {
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

async fn metrics(State(ops): State<Ops>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        ops.metrics.render(),
    )
        .into_response()
}
