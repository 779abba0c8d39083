//! The Zapier Triggers API as its existing clients know it: a thin layer over the same operations as `/v1`.
//!
//! Ids are plain UUIDs, fields that a route does not know are ignored, a broken rule is a 400, and problems carry
//! `error` and `message` besides (the server sees to the last two, by the path). `POST /api/events` is the `ingest`
//! crate's.

mod inbox;
mod keys;
mod webhook;

use std::sync::Arc;

use axum::{
    Router,
    routing::{get, post},
};

use crate::Control;

pub(crate) fn routes() -> Router<Arc<Control>> {
    Router::new()
        .route("/api/keys/generate", post(keys::generate))
        .route("/api/keys", get(keys::show))
        .route("/api/keys/rotate", post(keys::rotate))
        .route("/api/webhook/config", post(webhook::configure))
        .route("/api/inbox", get(inbox::list))
        .route("/api/ack/{id}", post(inbox::acknowledge))
}
