//! `/v1/inbox`: the events that nobody has taken yet, oldest first, and acknowledging them.
//!
//! Acknowledging closes every open delivery of an event: nothing more is sent. Doing it again changes nothing. It goes
//! with the scope `events:read`: whoever fetches events must be able to say that they have them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use axum::{extract::State, response::Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::{
    EventId, EventStatus, EventType, Invalid, OrganizationId, Timestamp,
    http::openapi::AnyEventId,
    http::{
        ApiError, JsonBody, Query, Unknown, fields,
        openapi::{Header, Parameter, Parameters, Routes, doc, get, post},
    },
    id::EventKind,
    store::{Acknowledged, EventFilter, Order, PageRequest},
};

use crate::{
    Control,
    access::{Caller, Events},
    answer::{Answer, CURSOR, LIMIT, Listing},
    cursor::List,
    events::{self, EventView},
    listing,
    path::PathId,
    waiting,
    weighed::Roomed,
};

/// How long acknowledging waits for events that are on their way.
const WAIT: Duration = Duration::from_secs(2);
/// The most events that one request names.
const MAX_EVENTS: usize = 1_000;

pub(crate) fn routes() -> Routes<Arc<Control>> {
    Routes::of("Inbox")
        .at(
            "/v1/inbox",
            get(
                list,
                doc("listInbox", "List what nobody has taken yet")
                    .text("Every event with an open delivery, oldest first.")
                    .answers::<Listing<EventView>>(200),
            ),
        )
        .at(
            "/v1/inbox/ack",
            post(
                acknowledge_many,
                doc("acknowledgeEvents", "Acknowledge events")
                    .text("Closes every open delivery of each: nothing more is sent. Doing it again changes nothing."),
            ),
        )
        .at(
            "/v1/inbox/{event_id}/ack",
            post(
                acknowledge_one,
                doc("acknowledgeEvent", "Acknowledge an event")
                    .text("Closes every open delivery of it: nothing more is sent. Doing it again changes nothing.")
                    .header(404, Header::RetryAfter),
            ),
        )
}

/// The parameters of the list.
struct Filters;

impl Parameters for Filters {
    const ALL: &'static [Parameter] = &[
        LIMIT,
        CURSOR,
        Parameter::of::<EventType>("type", "Those of this type alone."),
        Parameter::of::<Open>("status", "`pending`, which all of them are."),
    ];
}

/// The one status that what is in the inbox has.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case", inline)]
#[expect(dead_code, reason = "it is the shape of a parameter")]
enum Open {
    Pending,
}

/// Ids of events.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct EventIds {
    /// Each an id that was answered for an event, or for a repeat of one.
    #[schemars(length(min = 1, max = 1_000))]
    event_ids: Vec<AnyEventId>,
}

/// How many bytes of payloads make a list of the inbox long enough: what a client reads again if it breaks off.
const ENOUGH: usize = 8 * 1024 * 1024;

/// The inbox as it is listed.
struct InboxForm;

#[derive(Serialize, JsonSchema)]
struct Rest {
    next_cursor: Option<String>,
}

impl listing::Form for InboxForm {
    const EVENTS: &'static str = "data";
    type Event = EventView;
    type Rest = Rest;

    fn rest(&self, _: u64, next: Option<i64>) -> Rest {
        Rest {
            next_cursor: next.map(|place| List::Inbox.cursor(&place)),
        }
    }
}

async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    mut query: Query<Filters>,
) -> Result<Response, ApiError> {
    let limit = query.limit();
    let after = query.optional("cursor", |cursor| List::Inbox.place(cursor));
    let event_type = query.optional("type", |text| {
        EventType::parse_any(text).map(|kind| kind.to_string())
    });
    query.optional("status", |text| match text {
        "pending" => Ok(()),
        _ => Err(Invalid::new("must be pending: the inbox holds what is open")),
    });
    query.finish()?;
    let wanted = listing::Wanted {
        organization: caller.organization(),
        source: listing::Source::List {
            filter: EventFilter {
                statuses: vec![EventStatus::Pending],
                failed: None,
                event_type,
            },
            order: Order::OldestFirst,
            offset: 0,
        },
        page: PageRequest { after, limit },
        enough: ENOUGH,
    };
    let held = control.room.take(wanted.organization).await?;
    listing::answer(&control.api.store, wanted, InboxForm, held).await
}

/// Reads the ids of the events that something is to be done to.
pub(crate) fn event_ids(value: &RawValue) -> Result<Vec<EventId>, fields::Broken> {
    let ids = fields::strings(MAX_EVENTS, str::parse::<EventId>)(value)?;
    if ids.is_empty() {
        return Err(Invalid::new("must have at least one entry").into());
    }
    Ok(ids)
}

/// What acknowledging the events that exist came to, by the id that was given. Those that are not stored yet are
/// waited for.
async fn acknowledge(
    control: &Control,
    organization: OrganizationId,
    events: &[EventId],
) -> Result<HashMap<EventId, (EventId, Timestamp)>, ApiError> {
    let mut missing: Vec<EventId> = Vec::with_capacity(events.len());
    let mut seen = HashSet::with_capacity(events.len());
    missing.extend(events.iter().copied().filter(|event| seen.insert(*event)));
    let mut done = HashMap::with_capacity(missing.len());
    let mut wait = control.waiters.wait(organization, WAIT);
    loop {
        let outcomes = control
            .api
            .store
            .deliveries
            .acknowledge(organization, &missing)
            .await?;
        let mut left = Vec::new();
        for (given, outcome) in missing.into_iter().zip(outcomes) {
            match outcome {
                Acknowledged::Done { event, at } => {
                    done.insert(given, (event, at));
                }
                Acknowledged::NotFound if waiting::is_fresh(given) => left.push(given),
                Acknowledged::NotFound => {}
            }
        }
        missing = left;
        if missing.is_empty() || !wait.pause().await {
            return Ok(done);
        }
    }
}

/// Acknowledges one event: its first id, and when; else 404.
pub(crate) async fn acknowledge_event(
    control: &Control,
    organization: OrganizationId,
    event: EventId,
) -> Result<(EventId, Timestamp), ApiError> {
    let mut done = acknowledge(control, organization, &[event]).await?;
    done.remove(&event)
        .ok_or_else(|| events::not_found(waiting::is_fresh(event)))
}

/// What became of one id.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Acknowledgement")]
struct AckView {
    /// As it was given.
    id: EventId,
    /// The event that it stands for, which is another where the id was given for a repeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<EventId>,
    status: AckStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledged_at: Option<Timestamp>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum AckStatus {
    Acknowledged,
    NotFound,
}

impl AckView {
    fn of(id: EventId, done: Option<(EventId, Timestamp)>) -> Self {
        Self {
            id,
            event_id: done.map(|(event, _)| event),
            status: if done.is_some() {
                AckStatus::Acknowledged
            } else {
                AckStatus::NotFound
            },
            acknowledged_at: done.map(|(_, at)| at),
        }
    }
}

async fn acknowledge_one(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    PathId(event): PathId<EventKind>,
) -> Result<Answer<AckView>, ApiError> {
    let done = acknowledge_event(&control, caller.organization(), event).await?;
    Ok(Answer::ok(AckView::of(event, Some(done))))
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Acknowledgements")]
struct Results {
    /// In the order of the ids given.
    results: Vec<AckView>,
}

async fn acknowledge_many(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    _: Roomed,
    body: JsonBody<EventIds>,
) -> Result<Answer<Results>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
    let events = fields.required("event_ids", event_ids);
    let events = fields.finish(events)?;
    let done = acknowledge(&control, caller.organization(), &events).await?;
    let results = events
        .into_iter()
        .map(|event| AckView::of(event, done.get(&event).copied()));
    Ok(Answer::ok(Results {
        results: results.collect(),
    }))
}
