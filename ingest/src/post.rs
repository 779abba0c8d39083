//! Posting an event: `POST /v1/events`, and `POST /api/events` for existing clients.
//!
//! Who is it, is it well formed, is there room, is it a repeat; then it is on disk, and only then is it a 202.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    Entry, EventId, EventType, Timestamp,
    event::Digest16,
    http::{ApiError, Code, Fields, JsonBody, Unknown, body, room::Held, server::Peer},
    queue::{PublishError, frame},
    telemetry::{self, Refusal},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    Ingest,
    accepted::Accepted,
    batch,
    cloud_event::{self, Form},
    describing::NewEvent,
    limit::Taken,
    posted::{self, Posted},
    poster::Poster,
    recent::{Claim, First},
    sending::Sending,
};

/// What the bodies of events that are posted alone may take together.
pub(crate) const ROOM: usize = 128 * 1024 * 1024;

/// An event that was accepted, as existing clients know it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CompatAccepted")]
pub(crate) struct CompatibleAnswer<'a> {
    id: uuid::Uuid,
    event_id: uuid::Uuid,
    r#type: &'a EventType,
    status: &'static str,
    created_at: Timestamp,
}

/// `POST /v1/events`.
pub(crate) async fn v1(State(ingest): State<Arc<Ingest>>, request: Request) -> Result<Response, ApiError> {
    if cloud_event::is_batch(request.headers()) {
        return batch::cloud_events(&ingest, request).await;
    }
    let (accepted, limit) = counted(accept(&ingest, request, Unknown::Refuse).await)?;
    Ok(answered(&accepted.answer(), limit))
}

/// `POST /api/events`.
pub(crate) async fn compatible(
    State(ingest): State<Arc<Ingest>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (accepted, limit) = counted(accept(&ingest, request, Unknown::Ignore).await)?;
    let id = accepted.id.uuid();
    if accepted.repeat.is_some() {
        let detail = "an event with this dedup_id was posted before; its id is in event_id";
        return Err(ApiError::new(Code::Duplicate, detail)
            .with_member("id", id.to_string())
            .with_member("event_id", id.to_string())
            .with_headers(limit));
    }
    let answer = CompatibleAnswer {
        id,
        event_id: id,
        r#type: &accepted.event_type,
        status: "accepted",
        created_at: accepted.received_at,
    };
    Ok(answered(&answer, limit))
}

/// 202, with how the limit stands.
pub(crate) fn answered(answer: &impl Serialize, limit: HeaderMap) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => {
            let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            (StatusCode::ACCEPTED, limit, json, body).into_response()
        }
        Err(error) => ApiError::internal(&error).into_response(),
    }
}

async fn accept(
    ingest: &Ingest,
    request: Request,
    unknown: Unknown,
) -> Result<(Accepted, HeaderMap), ApiError> {
    let peer = Peer::of(request.extensions());
    let poster = Poster::of(ingest, request.headers(), peer).await?;
    let accepted = accept_from(&poster, request, unknown).await;
    accepted.map_err(|error| poster.refusal(error))
}

async fn accept_from(
    poster: &Poster<'_>,
    request: Request,
    unknown: Unknown,
) -> Result<(Accepted, HeaderMap), ApiError> {
    poster.may_post()?;
    // Its bytes are the payload's until that is in the queue.
    let (event, _held) = match unknown {
        Unknown::Refuse => read(poster, request).await?,
        Unknown::Ignore => read_plain(poster, request, unknown).await?,
    };
    let deadline = poster.deadline();
    let (taken, limit) = poster.take_room().inspect_err(|_| poster.count_refused(1))?;
    let accepted = enqueue(poster, event, taken, deadline).await?;
    Ok((accepted, limit))
}

/// The event, in whichever form it comes.
async fn read(poster: &Poster<'_>, request: Request) -> Result<(Posted, Held), ApiError> {
    let form = Form::of(request.headers())?;
    if form == Form::Plain {
        return read_plain(poster, request, Unknown::Refuse).await;
    }
    let (parts, body) = request.into_parts();
    let rule = "must not be sent with a CloudEvent, whose source and id are its key";
    posted::refuse_idempotency_key(&parts.headers, rule)?;
    body::refuse_compressed(&parts.headers)?;
    let (room, whose) = (&poster.ingest.bodies, Some(poster.grant.organization));
    let (body, held) = body::read_within(body, room, whose).await?;
    let event = match form {
        Form::Binary => cloud_event::binary(&parts.headers, &body),
        _ => cloud_event::structured("the body", &body, &body, posted::trace(&parts.headers)),
    }?;
    Ok((event, held))
}

async fn read_plain(
    poster: &Poster<'_>,
    request: Request,
    unknown: Unknown,
) -> Result<(Posted, Held), ApiError> {
    let idempotency_key = posted::idempotency_key(request.headers());
    let trace = posted::trace(request.headers());
    let (room, whose) = (&poster.ingest.bodies, Some(poster.grant.organization));
    let body = JsonBody::<NewEvent>::read(request, room, whose).await?;
    let fields = Fields::parse(&body.bytes, unknown)?;
    let event = Posted::from_fields(fields, &body.bytes, idempotency_key, trace)?;
    Ok((event, body.into_held()))
}

/// Puts an event into the queue. What was `taken` for it is settled there: whoever posts it may hang up meanwhile.
async fn enqueue(
    poster: &Poster<'_>,
    event: Posted,
    mut taken: Taken,
    deadline: Instant,
) -> Result<Accepted, ApiError> {
    let Poster { ingest, grant, .. } = poster;
    let pending = match &event.dedup_id {
        None => None,
        Some(dedup_id) => {
            // A repeat that waits for the first, and then must try itself, waits no longer in all than any other.
            let claim = ingest.recent.claim(grant.organization, dedup_id);
            match timeout_at(deadline, claim)
                .await
                .map_err(|_| PublishError::TimedOut)?
            {
                Claim::New(pending) => Some((pending, Digest16::of(&event.event_type, &event.payload))),
                Claim::Known(first) => {
                    let (accepted, note) =
                        Accepted::again(&first, grant.organization, event.event_type, &event.payload);
                    taken.accept(1);
                    ingest.publisher.publish_unconfirmed(frame::encode(&note));
                    return Ok(accepted);
                }
            }
        }
    };
    let (id, received_at) = (EventId::new(), Timestamp::now());
    let event_type = event.event_type.clone();
    let mut event = event.under(id, grant.organization, received_at);
    let mut sending = Sending::begin(&mut event);
    let entry = frame::encode(&Entry::Event(event));
    let published = ingest
        .publisher
        .publish_for(entry, Box::new(taken), deadline)
        .await;
    sending.ended(published.as_ref());
    published?;
    if let Some((pending, digest)) = pending {
        pending.confirm(First::new(id, received_at, digest));
    }
    Ok(Accepted {
        id,
        event_type,
        received_at,
        repeat: None,
    })
}

fn counted<T>(result: Result<T, ApiError>) -> Result<T, ApiError> {
    match &result {
        Ok(_) => telemetry::accepted().increment(1),
        Err(error) => count_refusal(error),
    }
    result
}

/// Counts a refusal, of an event or of a whole request.
pub(crate) fn count_refusal(error: &ApiError) {
    let reason = match error.code() {
        Code::Unauthorized | Code::Forbidden => Refusal::Unauthorized,
        Code::RateLimited => Refusal::RateLimited,
        Code::Unavailable | Code::Internal => Refusal::Unavailable,
        _ => Refusal::Invalid,
    };
    telemetry::refused(reason).increment(1);
}

#[cfg(test)]
mod tests;
