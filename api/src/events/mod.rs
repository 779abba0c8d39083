//! `GET /v1/events/{id}`: an event, where its deliveries are, and the last attempts; and one delivery alone, under
//! `/deliveries/{subscription}`. Beside it [searching](search), [erasing](erase) and [following](stream) events.

mod erase;
mod search;
mod stream;

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::{
    DeliveryKey, DeliveryStatus, EventId, EventStatus, FailureKind, Invalid, OrganizationId, SubscriptionId,
    Timestamp,
    http::{
        ApiError, Code, Query,
        openapi::{Header, Parameter, Parameters, Routes, doc, get, post},
    },
    id::{EventKind, SubscriptionKind},
    store::{ActedOn, AttemptRecord, DeliveryRecord, EventRecord},
};

use crate::{
    Control,
    access::{Caller, Deliveries, Events},
    answer::{Answer, Listing, Taken},
    path::{PathId, PathIds},
    room::Held,
    unmatched::Unmatched,
    waiting,
};

/// How long a `GET` waits for an event that is on its way, unless asked otherwise.
const DEFAULT_WAIT_MS: u64 = 2_000;
/// How long it may be asked to wait.
const MAX_WAIT_MS: u64 = 30_000;

/// A delivery of an event that is shown.
const A_DELIVERY: &[(&str, &str)] = &[
    ("id", "$response.body#/id"),
    ("subscription", "$response.body#/deliveries/0/subscription"),
];

pub(crate) fn routes() -> Routes<Arc<Control>> {
    let events = Routes::of("Events")
        .at(
            "/v1/events",
            get(
                search::search,
                doc("listEvents", "List events")
                    .text("Newest first. A page may be short, or empty, and still name the next.")
                    .answers::<Listing<EventView>>(200),
            ),
        )
        .at(
            "/v1/events/stream",
            get(
                stream::follow,
                doc("streamEvents", "Follow events as they come")
                    .text(
                        "Server-sent events, in order; each has the event's id as `id`, its type as `event` and JSON as `data`. \
                         Goes on after `Last-Event-ID`; 204 where its `until` is over and nothing is left of it.",
                    )
                    .with(stream::describe),
            ),
        )
        .at(
            "/v1/events/{id}",
            get(
                show,
                doc("getEvent", "Get an event")
                    .text(
                        "With its deliveries, their last attempts (1,000 over all deliveries, as many of each as of any other), and \
                         which subscriptions do not match and why.",
                    )
                    .header(404, Header::RetryAfter)
                    .link(200, "getDelivery", A_DELIVERY)
                    .link(200, "retryDelivery", A_DELIVERY)
                    .link(200, "cancelDelivery", A_DELIVERY),
            )
            .and_delete(
                erase::erase,
                doc("eraseEvent", "Erase an event")
                    .text("Its payload is gone, and what is open is cancelled. It cannot be undone.")
                    .problem(Code::Conflict, "too many ids that are not stored yet are to be erased"),
            ),
        );
    let deliveries = Routes::of("Deliveries")
        .at(
            "/v1/events/{id}/deliveries/{subscription}",
            get(
                show_delivery,
                doc("getDelivery", "Get a delivery")
                    .text("With its attempts, the last 1,000 of them.")
                    .header(404, Header::RetryAfter),
            ),
        )
        .at(
            "/v1/events/{id}/deliveries/{subscription}/retry",
            post(
                retry,
                doc("retryDelivery", "Try a delivery again")
                    .text(
                        "One that has ended is opened, with its schedule anew; one that is open is due now.",
                    )
                    .header(404, Header::RetryAfter)
                    .problem(Code::Conflict, "the event is erased, or the subscription deleted"),
            ),
        )
        .at(
            "/v1/events/{id}/deliveries/{subscription}/cancel",
            post(
                cancel,
                doc("cancelDelivery", "Cancel a delivery")
                    .text("Nothing more is sent, but for an attempt that is under way.")
                    .header(404, Header::RetryAfter)
                    .problem(Code::Conflict, "the delivery has ended"),
            ),
        );
    events.merge(deliveries)
}

/// The parameters of looking one event up.
pub(crate) struct Waiting;

impl Parameters for Waiting {
    const ALL: &'static [Parameter] = &[Parameter::of::<WaitMs>(
        "wait_ms",
        "How long to wait for an event younger than a minute that is not stored yet.",
    )];
}

/// 0 to 30,000.
struct WaitMs;

impl JsonSchema for WaitMs {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "WaitMs".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "integer", "minimum": 0, "maximum": MAX_WAIT_MS, "default": DEFAULT_WAIT_MS})
    }
}

/// An event as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Event")]
pub(crate) struct EventView {
    id: EventId,
    r#type: String,
    status: EventStatus,
    source: Option<String>,
    dedup_id: Option<String>,
    occurred_at: Option<Timestamp>,
    received_at: Timestamp,
    /// As it was sent, byte for byte; `null` once it is erased.
    payload: Box<RawValue>,
    erased_at: Option<Timestamp>,
    /// How often it was posted again, and how many of those were not the same.
    repeats: u64,
    differing_repeats: u64,
    deliveries: Vec<DeliveryView>,
}

/// An event that was asked for alone.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "EventInFull")]
struct Shown {
    #[serde(flatten)]
    event: EventView,
    #[serde(flatten)]
    unmatched: Unmatched,
}

/// One event to one subscription.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Delivery")]
struct DeliveryView {
    subscription: SubscriptionId,
    status: DeliveryStatus,
    /// How many attempts were made; of what is pulled, how often it was leased.
    attempts: u32,
    next_attempt_at: Option<Timestamp>,
    /// When its lease ends, while somebody who pulled it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_until: Option<Timestamp>,
    updated_at: Timestamp,
    /// The attempts, in order, of which there are at most 1,000 for all deliveries of the event; in lists the last alone.
    log: Vec<AttemptView>,
}

/// One try.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Attempt")]
pub(crate) struct AttemptView {
    number: u32,
    started_at: Timestamp,
    duration_ms: u64,
    /// The answer's, where there was one.
    status_code: Option<u16>,
    /// What went wrong; `null` is success.
    error: Option<FailureKind>,
    /// The answer's first 1 KiB, or what the error said.
    detail: Option<String>,
}

impl TryFrom<EventRecord> for EventView {
    type Error = ApiError;

    fn try_from(event: EventRecord) -> Result<Self, ApiError> {
        Ok(Self {
            id: event.id,
            status: event.status(),
            r#type: event.event_type,
            source: event.source,
            dedup_id: event.dedup_id,
            occurred_at: event.occurred_at,
            received_at: event.received_at,
            payload: raw(event.payload)?,
            erased_at: event.erased_at,
            repeats: event.repeats,
            differing_repeats: event.differing_repeats,
            deliveries: event.deliveries.into_iter().map(DeliveryView::from).collect(),
        })
    }
}

impl From<DeliveryRecord> for DeliveryView {
    fn from(delivery: DeliveryRecord) -> Self {
        Self {
            subscription: delivery.subscription,
            status: delivery.status,
            attempts: delivery.attempts,
            next_attempt_at: delivery.next_attempt_at.filter(|_| delivery.status.is_open()),
            lease_until: delivery.lease_until,
            updated_at: delivery.updated_at,
            log: delivery.log.into_iter().map(AttemptView::from).collect(),
        }
    }
}

impl From<AttemptRecord> for AttemptView {
    fn from(attempt: AttemptRecord) -> Self {
        Self {
            number: attempt.number,
            started_at: attempt.started_at,
            duration_ms: u64::try_from(attempt.duration.as_millis()).unwrap_or(u64::MAX),
            status_code: attempt.status_code,
            error: attempt.failure,
            detail: attempt.detail,
        }
    }
}

/// A stored payload, to be written out as it is.
pub(crate) fn raw(payload: String) -> Result<Box<RawValue>, ApiError> {
    RawValue::from_string(payload).map_err(|error| ApiError::internal(&format!("a stored payload: {error}")))
}

/// 404 for an event; while it may be on its way, with when to try again.
pub(crate) fn not_found(fresh: bool) -> ApiError {
    let error = ApiError::not_found("event");
    if fresh {
        error.with_retry_after(Duration::from_secs(1))
    } else {
        error
    }
}

/// Reads an event, or with `only` as much of it as belongs to that delivery, with the room that this takes.
async fn read(
    control: &Control,
    organization: OrganizationId,
    id: EventId,
    only: Option<SubscriptionId>,
) -> Result<Option<(EventRecord, Held)>, ApiError> {
    let held = control.room.take(organization).await?;
    let event = read_within(&held, control, organization, id, only).await?;
    Ok(event.map(|event| (event, held)))
}

/// As [`read`], where there is room already.
async fn read_within(
    _: &Held,
    control: &Control,
    organization: OrganizationId,
    id: EventId,
    only: Option<SubscriptionId>,
) -> Result<Option<EventRecord>, ApiError> {
    let events = &control.api.store.events;
    Ok(match only {
        Some(subscription) => events.get_delivery(organization, id, subscription).await?,
        None => events.get(organization, id).await?,
    })
}

/// Looks an event up; one that may be on its way is waited for, as long as the query says. Whoever waits takes no room.
async fn found(
    control: &Control,
    organization: OrganizationId,
    id: EventId,
    only: Option<SubscriptionId>,
    mut query: Query<Waiting>,
) -> Result<(EventRecord, Held), ApiError> {
    let wait_ms = query.optional("wait_ms", |text| match text.parse() {
        Ok(wait) if wait <= MAX_WAIT_MS => Ok(wait),
        _ => Err(Invalid::new("must be a whole number from 0 to 30000")),
    });
    query.finish()?;
    let fresh = waiting::is_fresh(id);
    let limit = Duration::from_millis(wait_ms.unwrap_or(DEFAULT_WAIT_MS));
    let mut wait = control.waiters.wait(organization, limit);
    loop {
        if let Some(found) = read(control, organization, id, only).await? {
            return Ok(found);
        }
        loop {
            if !(fresh && wait.pause().await) {
                return Err(not_found(fresh));
            }
            if control.api.store.feed.place(organization, id).await?.is_some() {
                break;
            }
        }
    }
}

async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    PathId(id): PathId<EventKind>,
    query: Query<Waiting>,
) -> Result<Answer<Shown>, ApiError> {
    let organization = caller.organization();
    let (event, mut held) = found(&control, organization, id, None, query).await?;
    let unmatched = Unmatched::of(&control, organization, &event, &mut held).await?;
    let shown = Shown {
        event: EventView::try_from(event)?,
        unmatched,
    };
    Ok(Answer::ok(shown).keeping(held))
}

async fn show_delivery(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    PathIds(id, subscription): PathIds<EventKind, SubscriptionKind>,
    query: Query<Waiting>,
) -> Result<Answer<DeliveryView>, ApiError> {
    let organization = caller.organization();
    let (event, held) = found(&control, organization, id, Some(subscription), query).await?;
    let delivery = delivery_of(event, subscription)?;
    Ok(Answer::ok(DeliveryView::from(delivery)).keeping(held))
}

fn delivery_of(event: EventRecord, subscription: SubscriptionId) -> Result<DeliveryRecord, ApiError> {
    let mut deliveries = event.deliveries.into_iter();
    let delivery = deliveries.find(|delivery| delivery.subscription == subscription);
    delivery.ok_or_else(|| ApiError::not_found("delivery"))
}

/// Opens a delivery again that has ended, with its schedule anew, or makes an open one due now.
async fn retry(
    State(control): State<Arc<Control>>,
    caller: Caller<Deliveries>,
    PathIds(id, subscription): PathIds<EventKind, SubscriptionKind>,
    query: Query<Waiting>,
) -> Result<Taken<DeliveryView>, ApiError> {
    let organization = caller.organization();
    let (key, held) = key(&control, organization, id, subscription, query).await?;
    match control.api.store.replays.retry(organization, key).await? {
        ActedOn::Done => {
            let delivery = look_again(&held, &control, organization, key).await?;
            Ok(Taken::accepted(delivery).keeping(held))
        }
        ActedOn::Refused => {
            let event = read_within(&held, &control, organization, key.event, Some(subscription)).await?;
            let why = if event.is_some_and(|event| event.erased_at.is_some()) {
                "the event is erased: there is nothing left to send"
            } else {
                "its subscription is deleted: there is nobody to send it to"
            };
            Err(ApiError::new(Code::Conflict, why))
        }
    }
}

/// Closes an open delivery: nothing more is sent, but for an attempt that is under way.
async fn cancel(
    State(control): State<Arc<Control>>,
    caller: Caller<Deliveries>,
    PathIds(id, subscription): PathIds<EventKind, SubscriptionKind>,
    query: Query<Waiting>,
) -> Result<Answer<DeliveryView>, ApiError> {
    let organization = caller.organization();
    let (key, held) = key(&control, organization, id, subscription, query).await?;
    let done = control.api.store.replays.cancel(organization, key).await?;
    let delivery = look_again(&held, &control, organization, key).await?;
    if done == ActedOn::Refused && delivery.status != DeliveryStatus::Cancelled {
        return Err(ApiError::new(
            Code::Conflict,
            "the delivery has ended: there is nothing left to cancel",
        ));
    }
    Ok(Answer::ok(delivery).keeping(held))
}

/// The delivery's own address: the id may be an alias of the event's. With room for what is answered, so that whatever is done to
/// it can be told.
async fn key(
    control: &Control,
    organization: OrganizationId,
    id: EventId,
    subscription: SubscriptionId,
    query: Query<Waiting>,
) -> Result<(DeliveryKey, Held), ApiError> {
    let (event, held) = found(control, organization, id, Some(subscription), query).await?;
    let key = DeliveryKey {
        event: event.id,
        subscription,
    };
    delivery_of(event, subscription).map(|_| (key, held))
}

async fn look_again(
    held: &Held,
    control: &Control,
    organization: OrganizationId,
    key: DeliveryKey,
) -> Result<DeliveryView, ApiError> {
    let event = read_within(held, control, organization, key.event, Some(key.subscription)).await?;
    let event = event.ok_or_else(|| not_found(false))?;
    delivery_of(event, key.subscription).map(DeliveryView::from)
}
