//! The lean HTTP front: authenticate, limit, validate, frame, enqueue, answer.
//!
//! It knows the queue, and never waits for the store: keys are served from a cache. A 202 is sent only once the queue
//! has confirmed that the event is on disk; everything else is a problem that says what to do.

mod accepted;
mod batch;
mod cloud_event;
mod limit;
mod post;
mod posted;
mod poster;
mod recent;

use std::sync::Arc;

use async_trait::async_trait;
use axum::{Router, routing::post};
use shared::{auth::Auth, http::ops::ReadyCheck, queue::Publisher};

pub use limit::Limits;
pub use recent::Recent;

/// What the posting routes need.
pub struct Ingest {
    auth: Arc<Auth>,
    publisher: Publisher,
    limits: Limits,
    recent: Recent,
    room: batch::Room,
}

impl Ingest {
    /// A front that asks `auth` who a request is from, and puts events into the queue through `publisher`.
    pub fn new(auth: Arc<Auth>, publisher: Publisher) -> Arc<Self> {
        Arc::new(Self {
            auth,
            publisher,
            limits: Limits::default(),
            recent: Recent::default(),
            room: batch::Room::default(),
        })
    }
}

/// The routes that post events: `POST /v1/events`, `POST /v1/events/batch` and `POST /api/events`.
pub fn routes(ingest: Arc<Ingest>) -> Router {
    Router::new()
        .route("/v1/events", post(post::v1))
        .route("/v1/events/batch", post(batch::plain))
        .route("/api/events", post(post::compatible))
        .with_state(ingest)
}

/// Ready while the queue can be written to.
pub struct QueueReady(pub Publisher);

#[async_trait]
impl ReadyCheck for QueueReady {
    fn name(&self) -> &'static str {
        "queue"
    }

    async fn check(&self) -> Result<(), &'static str> {
        if self.0.is_open() {
            Ok(())
        } else {
            Err("the queue cannot be reached")
        }
    }
}
