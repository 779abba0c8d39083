//! Posting many events at once: `POST /v1/events/batch`, and CloudEvents in batched mode on `POST /v1/events`.
//!
//! Each event is accepted or refused by itself, as if it were posted alone, and the answer has a result for each, in their
//! order. Events are stored in the order of the batch: ids grow along it, and what does not fit into one frame goes in
//! several, each only once the one before it is confirmed ([`taking`]). So where the queue or the limit refuse, they refuse
//! the end of the batch, never the middle, and posting that again keeps the order.

pub(crate) mod answer;
mod items;
mod taking;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use shared::{
    TraceParent,
    http::{
        ApiError, Code, Fields, Unknown,
        body::{self, Cap, MediaType, unsupported},
        room::Held,
        server::Peer,
    },
};

use self::items::Layout;
use crate::{
    Ingest, cloud_event, post,
    posted::{self, Posted},
    poster::Poster,
};

/// The most events of a batch.
pub(crate) const MAX_EVENTS: usize = 1_000;
/// How large a batch may be.
const CAP: Cap = Cap {
    bytes: 4 * 1024 * 1024,
    rule: "the body must be at most 4194304 bytes, each payload at most 262144",
};
/// What all bodies of batches may take together.
pub(crate) const ROOM: usize = 64 * 1024 * 1024;
/// What whoever finds none is told.
pub(crate) const NO_ROOM: &str = "more batches are under way than there is room for; try again";
/// How many bytes are read before others have their turn.
const TURN: usize = 256 * 1024;

/// What the events of a batch are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Objects of ours.
    Plain,
    /// CloudEvents in the JSON format.
    CloudEvents,
}

/// `POST /v1/events/batch`.
pub(crate) async fn plain(State(ingest): State<Arc<Ingest>>, request: Request) -> Result<Response, ApiError> {
    accept(&ingest, request, Kind::Plain).await
}

/// `POST /v1/events` with a batch of CloudEvents.
pub(crate) async fn cloud_events(ingest: &Ingest, request: Request) -> Result<Response, ApiError> {
    accept(ingest, request, Kind::CloudEvents).await
}

async fn accept(ingest: &Ingest, request: Request, kind: Kind) -> Result<Response, ApiError> {
    let peer = Peer::of(request.extensions());
    let accepted = match Poster::of(ingest, request.headers(), peer).await {
        Ok(poster) => accept_from(&poster, request, kind)
            .await
            .map_err(|error| poster.refusal(error)),
        Err(error) => Err(error),
    };
    accepted.inspect_err(post::count_refusal)
}

async fn accept_from(poster: &Poster<'_>, request: Request, kind: Kind) -> Result<Response, ApiError> {
    poster.may_post()?;
    let (parts, body) = request.into_parts();
    let layout = layout(MediaType::of(&parts.headers).as_ref(), kind)?;
    let rule = "must not be sent with a batch, whose events have keys of their own";
    posted::refuse_idempotency_key(&parts.headers, rule)?;
    body::refuse_compressed(&parts.headers)?;
    let (room, whose) = (&poster.ingest.batches, Some(poster.grant.organization));
    let mut held = Held::default();
    let body = body::read(body, CAP, |bytes| room.grow(whose, &mut held, bytes)).await?;
    let deadline = poster.deadline();
    let events = read(&body, layout, kind, posted::trace(&parts.headers)).await?;
    let outcomes = taking::take(poster, events, deadline).await;
    answer::of(&outcomes, poster)
}

fn layout(media: Option<&MediaType>, kind: Kind) -> Result<Layout, ApiError> {
    match (kind, media) {
        // The route was chosen by it.
        (Kind::CloudEvents, _) => Ok(Layout::Array),
        (Kind::Plain, Some(media)) if media.is("application/json") => Ok(Layout::Array),
        (Kind::Plain, Some(media)) if media.is("application/x-ndjson") => Ok(Layout::Lines),
        (Kind::Plain, _) => Err(unsupported(
            "the content-type must be application/json (an array) or application/x-ndjson; a batch of CloudEvents goes to \
             /v1/events",
        )),
    }
}

/// Reads each event, or says what is wrong with it.
async fn read(
    body: &Bytes,
    layout: Layout,
    kind: Kind,
    trace: Option<TraceParent>,
) -> Result<Vec<Result<Posted, ApiError>>, ApiError> {
    let items = layout.split(body)?;
    // An empty batch of CloudEvents is one, by the JSON format, section 4.3.
    if items.is_empty() && kind == Kind::Plain {
        let detail = "a batch must have at least one event";
        return Err(ApiError::new(Code::InvalidRequest, detail));
    }
    let mut events = Vec::with_capacity(items.len());
    let mut bytes = 0;
    for item in items {
        bytes += item.len();
        if bytes > TURN {
            bytes = 0;
            tokio::task::yield_now().await;
        }
        events.push(read_one(item, body, kind, trace.clone()));
    }
    Ok(events)
}

fn read_one(item: &[u8], body: &Bytes, kind: Kind, trace: Option<TraceParent>) -> Result<Posted, ApiError> {
    let what = "the event";
    match kind {
        Kind::Plain => {
            let fields = Fields::parse_part(what, item, Unknown::Refuse)?;
            Posted::from_fields(fields, body, Ok(None), trace)
        }
        Kind::CloudEvents => cloud_event::structured(what, item, body, trace),
    }
}

#[cfg(test)]
pub(crate) mod tests;
