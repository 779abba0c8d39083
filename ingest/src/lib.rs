//! The lean HTTP front: authenticate, limit, validate, frame, enqueue, answer.

use std::sync::Arc;

use axum::Router;
use shared::{auth::Auth, queue::Publisher};

/// What the posting routes need.
pub struct Ingest {
    /// Who a request is from.
    pub auth: Arc<Auth>,
    /// The way into the queue.
    pub publisher: Publisher,
}

/// The routes that post events: `POST /v1/events` and `POST /api/events`.
pub fn routes(_ingest: Arc<Ingest>) -> Router {
    Router::new()
}
