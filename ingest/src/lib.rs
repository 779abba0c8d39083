//! The lean HTTP front: authenticate, limit, validate, frame, enqueue, answer.
//!
//! It knows the queue, and never waits for the store: keys are served from a cache. A 202 is sent only once the queue
//! has confirmed that the event is on disk; everything else is a problem that says what to do.

mod accepted;
mod batch;
mod cloud_event;
mod describing;
mod limit;
mod post;
mod posted;
mod poster;
mod recent;
mod sending;

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use shared::{
    auth::Auth,
    engine::Engine,
    http::{
        Code, body,
        openapi::{Routes, doc, post},
        ops::ReadyCheck,
        room::Room,
    },
    lifecycle::Lifecycle,
    queue::Publisher,
    trace,
};

pub use limit::Limits;
pub use recent::Recent;

/// What the posting routes need.
pub struct Ingest {
    auth: Arc<Auth>,
    publisher: Publisher,
    limits: Arc<Limits>,
    recent: Recent,
    /// Room for the bodies of batches, and of events alone.
    batches: Room,
    bodies: Room,
}

impl Ingest {
    /// A front that asks `auth` who a request is from, puts events into the queue through `publisher`, and agrees with others
    /// on the limits of organizations through the engine's store.
    pub fn start(engine: &Engine, auth: Arc<Auth>, publisher: Publisher, lifecycle: &Lifecycle) -> Arc<Self> {
        Arc::new(Self {
            auth,
            publisher,
            limits: Limits::start(&engine.store, lifecycle),
            recent: Recent::default(),
            batches: Room::new(batch::ROOM, batch::NO_ROOM),
            bodies: Room::new(post::ROOM, body::NO_ROOM),
        })
    }
}

/// The routes that post events: `POST /v1/events`, `POST /v1/events/batch` and `POST /api/events`.
pub fn routes(ingest: Arc<Ingest>) -> Router {
    trace::routes(table().into_router().with_state(ingest))
}

/// The routes, each with its description.
pub fn table() -> Routes<Arc<Ingest>> {
    Routes::of("Events")
        .at(
            "/v1/events",
            post(
                post::v1,
                doc("postEvent", "Post an event")
                    .text(
                        "202 once the event is on disk, never before. A repeat of the same key within 24 hours creates nothing. \
                         CloudEvents are taken in all three modes: structured, batched, and binary, whose attributes are `ce-` \
                         headers and whose body may be of any type.",
                    )
                    .with(describing::one)
                    .link(202, "getEvent", &[("id", "$response.body#/id")])
                    .link(202, "acknowledgeEvent", &[("event_id", "$response.body#/id")]),
            ),
        )
        .at(
            "/v1/events/batch",
            post(
                batch::plain,
                doc("postEvents", "Post many events")
                    .text(
                        "At most 1,000 and 4 MiB, as a JSON array or a line each. Every event is accepted or refused by itself; the \
                         results are in their order.",
                    )
                    .with(describing::many),
            ),
        )
        .merge(Routes::of("Zapier Triggers API").at(
            "/api/events",
            post(
                post::compatible,
                doc("compatPostEvent", "Post an event")
                    .with(describing::compatible)
                    .link(202, "compatAcknowledge", &[("id", "$response.body#/id")])
                    .problem(Code::Duplicate, "an event with this key was posted before, and this node knows of it"),
            ),
        ))
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
