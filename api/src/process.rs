//! A process that has the control plane: `api`, and `triggers` with every role in it.

use std::sync::Arc;

use axum::Router;
use ingest::{Ingest, QueueReady};
use secrecy::SecretString;
use shared::{
    auth::{AddressRules, Auth},
    engine::Engine,
    http::{ops, reference, server},
    lifecycle::Lifecycle,
    queue::Publisher,
    telemetry::PrometheusHandle,
};

use crate::{Api, Pullers, Signup, Targets};

/// What such a process is told by its settings.
pub struct Settings {
    /// Its name in answers about its health.
    pub role: &'static str,
    /// Where subscriptions may point.
    pub targets: Targets,
    /// Who may create an organization.
    pub signup: Signup,
    /// The deployment's own token.
    pub admin_token: Option<SecretString>,
    /// How many days the deployment keeps events.
    pub retention_days: u16,
    /// What addresses may do without a key.
    pub addresses: AddressRules,
}

/// Starts what its routes work with, and gives all of them: the control plane, posting events, health and metrics.
pub fn routes(
    engine: &Engine,
    settings: Settings,
    metrics: PrometheusHandle,
    lifecycle: &Lifecycle,
) -> Router {
    let publisher = Publisher::start(Arc::clone(&engine.queue), lifecycle);
    let auth = Auth::start(engine, settings.addresses, lifecycle);
    let queue = QueueReady(publisher.clone());
    let store = ops::StoreReady(engine.store.clone());
    let secret_key = ops::SecretKeyReady::new(engine.store.clone(), Arc::clone(&engine.sealer));
    let ops = ops::Ops {
        role: settings.role,
        checks: Arc::new([Box::new(queue), Box::new(store), Box::new(secret_key)]),
        metrics,
    };
    let api = Api {
        store: engine.store.clone(),
        sealer: Arc::clone(&engine.sealer),
        auth: Arc::clone(&auth),
        publisher: publisher.clone(),
        pullers: Pullers::start(&engine.store, lifecycle),
        targets: settings.targets,
        signup: settings.signup,
        admin_token: settings.admin_token,
        retention_days: settings.retention_days,
        lifecycle: lifecycle.clone(),
    };
    let routes = ingest::routes(Ingest::start(engine, auth, publisher, lifecycle))
        .merge(crate::routes(Arc::new(api)))
        .merge(ops::routes(ops))
        .merge(reference::routes());
    server::with_fallbacks(routes)
}
