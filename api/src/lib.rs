//! The api role: the control plane. Organizations, keys and subscriptions; looking events up; the inbox and its
//! acknowledgements; pulling; what was set aside; and the routes that existing clients of the Zapier Triggers API use.
//!
//! It reads the store and writes intents that a worker acts on; it never talks to a subscriber. Everything a key asks
//! for is within its own organization: what belongs to another is 404, never 403. While the store is away every route
//! answers 503 with `Retry-After`. Posting events is the `ingest` crate's.

mod access;
mod answer;
mod audit_log;
mod compat;
mod cursor;
mod deliveries;
mod events;
mod followers;
mod inbox;
mod keys;
mod listing;
mod organizations;
mod path;
pub mod process;
mod pulls;
mod room;
mod set_aside;
mod subscriptions;
mod targets;
mod this_machine;
mod unmatched;
mod usage;
mod waiting;
mod weighed;

use std::sync::Arc;

use axum::Router;
use secrecy::SecretString;
use shared::{
    OrganizationId,
    auth::Auth,
    filter::Filters,
    http::{
        body,
        openapi::{self, Routes},
        ops, reference,
        room::Room,
    },
    lifecycle::Lifecycle,
    queue::Publisher,
    seal::Sealer,
    shares::Shares,
    store::Store,
};

pub use access::Signup;
pub use pulls::Pullers;
pub use targets::Targets;

/// What the control plane works with.
pub struct Api {
    /// Where everything is.
    pub store: Store,
    /// Seals signing secrets before they are stored.
    pub sealer: Arc<Sealer>,
    /// Who a request is from.
    pub auth: Arc<Auth>,
    /// The way back into the queue for what was set aside.
    pub publisher: Publisher,
    /// Those who wait for something to pull.
    pub pullers: Arc<Pullers>,
    /// Where subscriptions may point.
    pub targets: Targets,
    /// Who may create an organization.
    pub signup: Signup,
    /// The deployment's own token, at least 16 characters, if it has one.
    pub admin_token: Option<SecretString>,
    /// How many days the deployment keeps events: an organization may keep its own for fewer.
    pub retention_days: u16,
    /// When it is to end: streams do so at once.
    pub lifecycle: Lifecycle,
}

/// What all bodies may take together, but for those of the posting routes.
const BODIES: usize = 32 * 1024 * 1024;

/// An [`Api`], and what its routes share while they run.
/// How many pages the streams of one organization read at once, however many they are and however far behind.
const READ_AT_ONCE: usize = 2;

struct Control {
    api: Arc<Api>,
    waiters: waiting::Waiters,
    room: room::Room,
    bodies: Room,
    followers: Arc<followers::Followers>,
    /// How many pages the streams of an organization read at once.
    reading: Shares<OrganizationId>,
    tests: subscriptions::Tests,
    filters: Arc<Filters>,
}

impl body::Bodies for Control {
    fn bodies(&self) -> &Room {
        &self.bodies
    }
}

/// The routes, and what looks out for those who follow events. Problems, request ids, and 404 and 405 for what is not here are the server's
/// ([`shared::http::server`]).
pub fn routes(api: Arc<Api>) -> Router {
    let followers = followers::Followers::new(Arc::clone(&api.store.feed));
    let looking_out = Arc::clone(&followers).look_out(api.lifecycle.soft.clone());
    api.lifecycle.critical("streams", looking_out);
    let control = Control {
        followers,
        reading: Shares::of_each(READ_AT_ONCE),
        api,
        waiters: waiting::Waiters::default(),
        room: room::Room::new(),
        bodies: Room::new(BODIES, body::NO_ROOM),
        tests: subscriptions::Tests::default(),
        filters: Arc::default(),
    };
    let attributed = axum::middleware::from_fn(audit_log::attributed);
    let control = Arc::new(control);
    let weighed = axum::middleware::from_fn_with_state(Arc::clone(&control), weighed::weighed);
    table()
        .into_router()
        .with_state(control)
        .layer(weighed)
        .layer(attributed)
}

/// The routes, each with its description.
fn table() -> Routes<Arc<Control>> {
    Routes::of("Organizations")
        .merge(organizations::routes())
        .merge(keys::routes())
        .merge(usage::routes())
        .merge(subscriptions::routes())
        .merge(events::routes())
        .merge(deliveries::routes())
        .merge(inbox::routes())
        .merge(pulls::routes())
        .merge(set_aside::routes())
        .merge(audit_log::routes())
        .merge(compat::routes())
}

/// The description of every route of a deployment, those of `ingest` included: an OpenAPI 3.1 document.
pub fn document() -> serde_json::Value {
    let mut operations = ingest::table().into_operations();
    operations.extend(table().into_operations());
    operations.extend(ops::table().into_operations());
    operations.extend(reference::table::<()>().into_operations());
    openapi::document(operations)
}
