//! Posting an event: `POST /v1/events`, and `POST /api/events` for existing clients.
//!
//! Who is it, is it well formed, is there room, is it a repeat; then it is on disk, and only then is it a 202.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{FromRequest, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use shared::{
    AcceptedEvent, DedupId, Entry, EventId, EventType, Grant, Payload, Repeat, Scope, Source, Timestamp,
    TraceParent,
    auth::LOOK_UP_TIMEOUT,
    event::Digest16,
    http::{ApiError, Code, FieldError, Fields, JsonBody, Unknown, fields},
    queue::{PublishError, frame},
    telemetry::{self, Refusal},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    Ingest,
    limit::Room,
    recent::{Claim, First},
};

/// How long a producer waits for what we wait for, in all: it is to see a 202 or a 503 within two seconds of the head of
/// its request. How long its body takes is its own time.
const PATIENCE: Duration = Duration::from_millis(1_900);
// Whatever a look-up takes, the queue has time to confirm.
const _: () = assert!(LOOK_UP_TIMEOUT.as_millis() + 500 <= PATIENCE.as_millis());

/// An event that was accepted, now or before.
struct Accepted {
    id: EventId,
    event_type: EventType,
    received_at: Timestamp,
    /// For a repeat that this node knows: whether it differs from the first.
    repeat: Option<bool>,
    /// How the rate limit stands.
    headers: HeaderMap,
}

#[derive(Serialize)]
struct Answer<'a> {
    id: EventId,
    r#type: &'a EventType,
    status: &'static str,
    received_at: Timestamp,
    duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    differs: Option<bool>,
}

#[derive(Serialize)]
struct CompatibleAnswer<'a> {
    id: uuid::Uuid,
    event_id: uuid::Uuid,
    r#type: &'a EventType,
    status: &'static str,
    created_at: Timestamp,
}

/// `POST /v1/events`.
pub(crate) async fn v1(State(ingest): State<Arc<Ingest>>, request: Request) -> Result<Response, ApiError> {
    let accepted = counted(accept(&ingest, request, Unknown::Refuse).await)?;
    let answer = Answer {
        id: accepted.id,
        r#type: &accepted.event_type,
        status: "accepted",
        received_at: accepted.received_at,
        duplicate: accepted.repeat.is_some(),
        differs: accepted.repeat.filter(|differs| *differs),
    };
    Ok(answered(&answer, accepted.headers))
}

/// `POST /api/events`.
pub(crate) async fn compatible(
    State(ingest): State<Arc<Ingest>>,
    request: Request,
) -> Result<Response, ApiError> {
    let accepted = counted(accept(&ingest, request, Unknown::Ignore).await)?;
    let id = accepted.id.uuid();
    if accepted.repeat.is_some() {
        let detail = "an event with this dedup_id was posted before; its id is in event_id";
        return Err(ApiError::new(Code::Duplicate, detail)
            .with_member("id", id.to_string())
            .with_member("event_id", id.to_string())
            .with_headers(accepted.headers));
    }
    let answer = CompatibleAnswer {
        id,
        event_id: id,
        r#type: &accepted.event_type,
        status: "accepted",
        created_at: accepted.received_at,
    };
    Ok(answered(&answer, accepted.headers))
}

fn answered(answer: &impl Serialize, headers: HeaderMap) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => {
            let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            (StatusCode::ACCEPTED, headers, json, body).into_response()
        }
        Err(error) => ApiError::internal(&error).into_response(),
    }
}

/// Every answer from here on shows how the limit stands, once it is known whose it is.
async fn accept(ingest: &Ingest, request: Request, unknown: Unknown) -> Result<Accepted, ApiError> {
    let asked = Instant::now();
    let grant = ingest.auth.authenticate(request.headers()).await?;
    let looked_up = asked.elapsed();
    let accepted = accept_from(ingest, &grant, looked_up, request, unknown).await;
    accepted.map_err(|error| {
        let mut headers = HeaderMap::new();
        // A 429 has shown it already, as it was when there was no room.
        if error.code() != Code::RateLimited
            && let Some(state) = ingest.limits.state(&grant)
        {
            state.show(&mut headers);
        }
        error.with_headers(headers)
    })
}

async fn accept_from(
    ingest: &Ingest,
    grant: &Grant,
    looked_up: Duration,
    request: Request,
    unknown: Unknown,
) -> Result<Accepted, ApiError> {
    if !grant.scopes.contains(Scope::EventsWrite) {
        return Err(ApiError::missing_scope(Scope::EventsWrite));
    }
    let idempotency_key = idempotency_key(request.headers());
    let trace = request
        .headers()
        .get("traceparent")
        .and_then(|value| TraceParent::parse(value.to_str().ok()?));
    let JsonBody(body) = JsonBody::from_request(request, &()).await?;
    let deadline = Instant::now() + PATIENCE.saturating_sub(looked_up);
    let posted = Posted::parse(&body, idempotency_key, unknown)?;

    let mut headers = HeaderMap::new();
    match ingest.limits.take(grant) {
        Room::Unlimited => {}
        Room::Taken(state) => state.show(&mut headers),
        Room::Full { retry_after, state } => {
            state.show(&mut headers);
            let tier = grant.tier.as_str();
            let limit = grant.tier.events_per_minute().unwrap_or_default();
            let detail = format!("the limit of the tier {tier} is {limit} events a minute");
            return Err(ApiError::rate_limited(detail, retry_after).with_headers(headers));
        }
    }
    let accepted = enqueue(ingest, grant, posted, trace, deadline).await;
    if accepted.is_err() {
        ingest.limits.give_back(grant);
    }
    accepted.map(|accepted| Accepted { headers, ..accepted })
}

async fn enqueue(
    ingest: &Ingest,
    grant: &Grant,
    posted: Posted,
    trace: Option<TraceParent>,
    deadline: Instant,
) -> Result<Accepted, ApiError> {
    let Posted {
        event_type,
        payload,
        dedup_id,
        occurred_at,
        source,
    } = posted;
    let pending = match &dedup_id {
        None => None,
        Some(dedup_id) => {
            // A repeat that waits for the first, and then must try itself, waits no longer in all than any other.
            let claim = ingest.recent.claim(grant.organization, dedup_id);
            match timeout_at(deadline, claim)
                .await
                .map_err(|_| PublishError::TimedOut)?
            {
                Claim::New(pending) => Some((pending, Digest16::of(&event_type, &payload))),
                Claim::Known(first) => return Ok(repeat(ingest, grant, first, event_type, &payload)),
            }
        }
    };
    let (id, received_at) = (EventId::new(), Timestamp::now());
    let event = AcceptedEvent {
        id,
        former_ids: Vec::new(),
        organization: grant.organization,
        event_type: event_type.clone(),
        dedup_id,
        received_at,
        occurred_at,
        source,
        trace,
        payload,
    };
    ingest
        .publisher
        .publish_by(frame::encode(&Entry::Event(event)), deadline)
        .await?;
    if let Some((pending, digest)) = pending {
        pending.confirm(First::new(id, received_at, digest));
    }
    Ok(Accepted {
        id,
        event_type,
        received_at,
        repeat: None,
        headers: HeaderMap::new(),
    })
}

/// The first event's answer again; a note that it was asked for goes to the store by way of the queue.
fn repeat(
    ingest: &Ingest,
    grant: &Grant,
    first: First,
    event_type: EventType,
    payload: &Payload,
) -> Accepted {
    let differs = Digest16::of(&event_type, payload) != first.digest;
    let note = Repeat {
        id: EventId::new(),
        organization: grant.organization,
        first: first.id,
        differs,
    };
    ingest
        .publisher
        .publish_unconfirmed(frame::encode(&Entry::Repeat(note)));
    telemetry::repeats().increment(1);
    Accepted {
        id: first.id,
        event_type,
        received_at: first.received_at,
        repeat: Some(differs),
        headers: HeaderMap::new(),
    }
}

fn counted(result: Result<Accepted, ApiError>) -> Result<Accepted, ApiError> {
    match &result {
        Ok(_) => telemetry::accepted().increment(1),
        Err(error) => {
            let reason = match error.code() {
                Code::Unauthorized | Code::Forbidden => Refusal::Unauthorized,
                Code::RateLimited => Refusal::RateLimited,
                Code::Unavailable | Code::Internal => Refusal::Unavailable,
                _ => Refusal::Invalid,
            };
            telemetry::refused(reason).increment(1);
        }
    }
    result
}

/// A well-formed event, as it was posted.
struct Posted {
    event_type: EventType,
    payload: Payload,
    dedup_id: Option<DedupId>,
    occurred_at: Option<Timestamp>,
    source: Option<Source>,
}

impl Posted {
    fn parse(
        body: &[u8],
        idempotency_key: Result<Option<DedupId>, FieldError>,
        unknown: Unknown,
    ) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body, unknown)?;
        let event_type = fields.required("type", fields::string(EventType::parse));
        let payload = fields.required("payload", Payload::parse);
        let dedup_id = fields.optional("dedup_id", fields::string(DedupId::parse));
        let occurred_at = fields.optional("occurred_at", fields::string(str::parse));
        let source = fields.optional("source", fields::string(Source::parse));
        let dedup_id = match (dedup_id, idempotency_key) {
            (field, Err(error)) => {
                fields.refuse(error);
                field
            }
            (Some(field), Ok(Some(header))) if field != header => {
                fields.refuse(FieldError::at(
                    &["dedup_id"],
                    "differs from the header Idempotency-Key",
                ));
                None
            }
            (field, Ok(header)) => field.or(header),
        };
        let both = event_type.zip(payload);
        let (event_type, payload) = fields.finish(both)?;
        Ok(Self {
            event_type,
            payload,
            dedup_id,
            occurred_at,
            source,
        })
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<DedupId>, FieldError> {
    const NAME: &str = "Idempotency-Key";
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(value) = given.next() else {
        return Ok(None);
    };
    if given.next().is_some() {
        return Err(FieldError::header(NAME, "is given more than once"));
    }
    let text =
        std::str::from_utf8(value.as_bytes()).map_err(|_| FieldError::header(NAME, "must be UTF-8"))?;
    DedupId::parse(text)
        .map(Some)
        .map_err(|invalid| FieldError::header(NAME, invalid.rule()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> DedupId {
        DedupId::parse(text).unwrap()
    }

    #[test]
    fn header_and_field_must_agree() {
        let body = br#"{"type":"a","payload":{},"dedup_id":"one"}"#;
        assert!(Posted::parse(body, Ok(Some(key("one"))), Unknown::Refuse).is_ok());
        assert!(Posted::parse(body, Ok(None), Unknown::Refuse).is_ok());
        let error = Posted::parse(body, Ok(Some(key("two"))), Unknown::Refuse)
            .err()
            .unwrap();
        assert_eq!(error.detail(), "dedup_id differs from the header Idempotency-Key");
        let posted = Posted::parse(
            br#"{"type":"a","payload":{}}"#,
            Ok(Some(key("two"))),
            Unknown::Refuse,
        )
        .ok()
        .unwrap();
        assert_eq!(posted.dedup_id.unwrap().as_str(), "two");
    }
}
