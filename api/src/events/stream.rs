//! `GET /v1/events/stream`: events as they come, as server-sent events, in order of `seq`.
//!
//! A stream is a place in that order. It begins after the event that `Last-Event-ID` names, else with what was accepted `since`
//! then, else where events are settled now; it misses and repeats nothing: what it reads lies below all that may still be
//! committed. What has been read is the client's to say; a connection that ends, however it ends, is taken up again by the
//! last id.
//!
//! How it ends: with the process's soft signal, at once; when its key is revoked or has expired, within seconds; when
//! the store fails; some seconds after its `until`; and when its client takes nothing for a while, which is the server's to
//! see. It holds one page, and reads the next once the client has taken that.

use std::{convert::Infallible, sync::Arc, time::Duration, vec};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::{
    EventId, EventPattern, EventStatus, OrganizationId, Scope, Timestamp,
    http::{
        ApiError, Code, FieldError, Query,
        openapi::{Header, Operation, Parameter, Parameters},
    },
    store::{self, EventQuery, FeedEvent},
};
use tokio::time::{Instant, sleep_until};

use super::{not_found, raw};
use crate::{
    Control,
    access::{Caller, Events},
    followers::Following,
    waiting,
};

/// How long a stream says nothing, at most.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often it is asked whether its key is still good.
const CHECK: Duration = Duration::from_secs(5);
/// How many bytes are handed on at once, about.
const PIECE: usize = 64 * 1024;
/// How long it waits for the event that it is to go on after, if that is on its way.
const WAIT: Duration = Duration::from_secs(2);
/// How long after its `until` a stream goes on: what was accepted before may be on its way to the store.
const BELATED: Duration = Duration::from_secs(10);
/// How many pages without an event are read before the first word of a stream whose time is over.
const LOOKS: u32 = 16;
/// A stream's first words: they bring its head to the client, and say when to come again once it ends.
const GREETING: &[u8] = b": events from here on\nretry: 2000\n\n";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// An event as it comes.
#[derive(Serialize, JsonSchema)]
struct StreamedView {
    id: EventId,
    r#type: String,
    source: Option<String>,
    dedup_id: Option<String>,
    occurred_at: Option<Timestamp>,
    received_at: Timestamp,
    payload: Box<RawValue>,
    erased_at: Option<Timestamp>,
}

/// The parameters of a stream.
pub(super) struct Filters;

impl Parameters for Filters {
    const ALL: &'static [Parameter] = &[
        Parameter::of::<EventPattern>("type", "Those whose type this pattern matches alone."),
        Parameter::of::<EventId>(
            "last_event_id",
            "Where to begin, as `Last-Event-ID`, which counts for more.",
        ),
        Parameter::of::<Timestamp>(
            "since",
            "Those accepted then or later: it begins with those that are stored, unless it goes on after an event.",
        ),
        Parameter::of::<Timestamp>(
            "until",
            "Those accepted before: it ends some seconds after that time.",
        ),
        Parameter::of::<EventStatus>(
            "status",
            "Those that are so at the moment at which they are sent. None is sent again once it has become so.",
        ),
    ];
}

/// What its handler's signature does not say.
pub(super) fn describe(operation: &mut Operation<'_>) {
    let id = serde_json::json!({"$ref": "#/components/schemas/EventId"});
    operation.request_header(
        "Last-Event-ID",
        "Where to go on: the id of the last event that was seen.",
        &id,
    );
    let text = "A stream of `id`, `event` and `data` fields (the WHATWG HTML standard, section 9.2).";
    operation.answer_of(
        200,
        "text/event-stream",
        &serde_json::json!({"type": "string", "description": text}),
    );
    operation.header(200, Header::NoStore);
    // It tells an `EventSource` not to come again.
    operation.answer_nothing(204);
    operation.problem(Code::NotFound, "there is no event to go on after");
    operation.header(404, Header::RetryAfter);
}

pub(super) async fn follow(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    headers: HeaderMap,
    mut query: Query<Filters>,
) -> Result<Response, ApiError> {
    let wanted = EventQuery {
        event_type: query.optional("type", EventPattern::parse),
        since: query.optional("since", str::parse::<Timestamp>),
        until: query.optional("until", str::parse::<Timestamp>),
        status: query.optional("status", str::parse::<EventStatus>),
    };
    let begin = query.optional("last_event_id", str::parse::<EventId>);
    query.finish()?;
    // Who comes again has the newer one in the header, and the same query.
    let last = named(&headers)?.or(begin);
    let organization = caller.organization();
    let following = control.followers.follow(organization)?;
    let feed = &control.api.store.feed;
    let after = match (last, wanted.since) {
        (Some(event), _) => place(&control, organization, event).await?,
        (None, Some(since)) => feed.place_before(organization, since).await?,
        (None, None) => feed.settled().await?,
    };
    let now = Instant::now();
    let mut stream = Stream {
        control,
        following,
        organization,
        credentials: credentials(&headers),
        wanted,
        after,
        last: None,
        page: Vec::new().into_iter(),
        greeted: false,
        heartbeat: now + HEARTBEAT,
        check: now + CHECK,
    };
    if stream.is_spent().await? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let body = Body::from_stream(stream::unfold(stream, async |mut stream| {
        let piece = stream.piece().await?;
        Some((Ok::<_, Infallible>(piece), stream))
    }));
    let head = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Proxies that gather answers are to let this one pass.
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    Ok((head, body).into_response())
}

fn named(headers: &HeaderMap) -> Result<Option<EventId>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    id.map(Some).ok_or_else(|| {
        let rule = "must be the id of an event";
        ApiError::invalid(vec![FieldError::header("last-event-id", rule)])
    })
}

/// Where an event is that a stream is to go on after. One that is on its way is waited for.
async fn place(control: &Control, organization: OrganizationId, event: EventId) -> Result<i64, ApiError> {
    let fresh = waiting::is_fresh(event);
    let mut wait = control.waiters.wait(organization, WAIT);
    loop {
        if let Some(place) = control.api.store.feed.place(organization, event).await? {
            return Ok(place);
        }
        if !(fresh && wait.pause().await) {
            return Err(not_found(fresh));
        }
    }
}

fn credentials(headers: &HeaderMap) -> HeaderMap {
    let mut credentials = HeaderMap::new();
    for name in [header::AUTHORIZATION, X_API_KEY] {
        for value in headers.get_all(&name) {
            credentials.append(name.clone(), value.clone());
        }
    }
    credentials
}

/// A stream on its way to the client.
struct Stream {
    control: Arc<Control>,
    following: Following,
    organization: OrganizationId,
    /// What the client showed that it may read.
    credentials: HeaderMap,
    wanted: EventQuery,
    /// All up to here has been read.
    after: i64,
    /// Where it ends, once its time is over.
    last: Option<i64>,
    /// What was read and is not written yet.
    page: vec::IntoIter<FeedEvent>,
    greeted: bool,
    /// When it is to say something, if nothing happens.
    heartbeat: Instant,
    /// When its key is to be looked at again.
    check: Instant,
}

impl Stream {
    /// The next piece of the text; `None` is the end.
    async fn piece(&mut self) -> Option<Bytes> {
        if !self.greeted {
            self.greeted = true;
            return Some(Bytes::from_static(GREETING));
        }
        let soft = self.control.api.lifecycle.soft.clone();
        loop {
            if soft.is_cancelled() || (Instant::now() >= self.check && !self.is_allowed().await) {
                return None;
            }
            let text = match self.written() {
                Ok(text) => text,
                Err(error) => {
                    tracing::error!(%error, "a stream was broken off");
                    return None;
                }
            };
            if !text.is_empty() {
                self.heartbeat = Instant::now() + HEARTBEAT;
                return Some(text.into());
            }
            match soft.run_until_cancelled(self.read()).await? {
                Ok(true) if Instant::now() < self.heartbeat => continue,
                Ok(true) => return Some(self.beat()),
                Ok(false) if self.last.is_some() => return None,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "a stream ends: the store does not answer");
                    return None;
                }
            }
            tokio::select! {
                () = soft.cancelled() => return None,
                () = self.following.news() => {}
                () = sleep_until(self.check) => {}
                () = sleep_until(self.heartbeat) => return Some(self.beat()),
            }
        }
    }

    fn beat(&mut self) -> Bytes {
        self.heartbeat = Instant::now() + HEARTBEAT;
        Bytes::from_static(b":\n\n")
    }

    /// Reads the next page, if there is more: whether there was.
    async fn read(&mut self) -> store::Result<bool> {
        let up_to = self.up_to().await?;
        if up_to <= self.after {
            return Ok(false);
        }
        // It is never closed.
        let _turn = self.control.reading.of(self.organization).acquire_owned().await;
        let feed = &self.control.api.store.feed;
        let page = feed
            .follow(self.organization, &self.wanted, self.after, up_to)
            .await?;
        self.after = page.up_to;
        self.page = page.events.into_iter();
        Ok(true)
    }

    /// Up to where there is something to read: what is settled, as far as is known; once its time is over, what was settled then.
    async fn up_to(&mut self) -> store::Result<i64> {
        if self.last.is_none() && self.time_is_over() {
            let feed = &self.control.api.store.feed;
            let settled = feed.settled().await?;
            let newest = feed.newest(&[self.organization], settled).await?;
            self.last = Some(newest.first().map_or(i64::MIN, |(_, seq)| *seq));
        }
        Ok(self.last.unwrap_or_else(|| self.following.newest()))
    }

    fn time_is_over(&self) -> bool {
        let until = self.wanted.until;
        until.is_some_and(|until| Timestamp::now() >= until.plus(BELATED))
    }

    /// Whether its time is over before it begins, and nothing is left to send.
    async fn is_spent(&mut self) -> Result<bool, ApiError> {
        if !self.time_is_over() {
            return Ok(false);
        }
        for _ in 0..LOOKS {
            if !self.read().await? {
                return Ok(true);
            }
            if !self.page.as_slice().is_empty() {
                break;
            }
        }
        Ok(false)
    }

    /// A piece of what was read.
    fn written(&mut self) -> Result<Vec<u8>, ApiError> {
        let mut text = Vec::new();
        while text.len() < PIECE
            && let Some(event) = self.page.next()
        {
            write(&mut text, event)?;
        }
        Ok(text)
    }

    /// Whether its key is good for it now. While nobody can tell, it was.
    async fn is_allowed(&mut self) -> bool {
        self.check = Instant::now() + CHECK;
        match self.control.api.auth.authenticate(&self.credentials, None).await {
            Ok(grant) => grant.organization == self.organization && grant.scopes.contains(Scope::EventsRead),
            Err(error) => error.code() != Code::Unauthorized,
        }
    }
}

/// Writes an event as [server-sent events](https://html.spec.whatwg.org/multipage/server-sent-events.html) have it. A payload
/// may hold line breaks, as white space between its parts: each begins another line of data, and the client puts them
/// together again.
fn write(text: &mut Vec<u8>, event: FeedEvent) -> Result<(), ApiError> {
    text.extend(format!("id: {}\nevent: {}\n", event.id, event.event_type).bytes());
    let view = StreamedView {
        id: event.id,
        r#type: event.event_type,
        source: event.source,
        dedup_id: event.dedup_id,
        occurred_at: event.occurred_at,
        received_at: event.received_at,
        payload: raw(event.payload)?,
        erased_at: event.erased_at,
    };
    let json = serde_json::to_vec(&view).map_err(|error| ApiError::internal(&error))?;
    for line in json.split(|byte| matches!(byte, b'\n' | b'\r')) {
        text.extend(b"data: ");
        text.extend(line);
        text.push(b'\n');
    }
    text.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_with_line_breaks_is_one_event() {
        let event = FeedEvent {
            id: "evt_01h455vb4pex5vsknk084sn02q".parse().unwrap(),
            seq: 1,
            event_type: "user.created".into(),
            dedup_id: None,
            source: None,
            occurred_at: None,
            received_at: Timestamp::from_millis(0),
            payload: "{\n  \"a\": 1,\r\n\"b\":\r2 }".into(),
            erased_at: None,
        };
        let mut text = Vec::new();
        write(&mut text, event).unwrap();
        insta::assert_snapshot!(String::from_utf8(text).unwrap());
    }
}
