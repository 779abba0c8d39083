//! `/v1/subscriptions/{id}/pull`, `…/ack`, `…/release` and `…/extend`: events that are fetched instead of pushed.
//!
//! A pull leases events: until the lease ends nobody else gets them. Whoever has dealt with one acknowledges it; what is
//! not acknowledged in time, because its puller died or its answer got lost, is there for the next pull. So an event
//! comes at least once.
//!
//! A client that goes while it waits has leased nothing. One that goes while it is answered has, and the lease ends by
//! itself. It goes with the scope `events:read`: whoever fetches events must be able to say that they have them.

mod waiting;

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::{
    DeliveryStatus, EventId, Invalid, SubscriptionId, Timestamp,
    http::{
        ApiError, Code, Fields, JsonBody, Unknown, fields,
        openapi::{AnyEventId, Routes, doc, post},
    },
    id::SubscriptionKind,
    store::{LeaseChange, PullSource, Pulled, PulledEvent, Settled},
    telemetry,
};
use tokio::time::Instant;

pub use self::waiting::Pullers;
use crate::{
    Control,
    access::{Caller, Events},
    answer::Answer,
    events::raw,
    inbox::event_ids,
    listing,
    path::PathId,
    room::Held,
    subscriptions,
    weighed::Roomed,
};

/// How many events a pull leases at most, unless it says.
const DEFAULT_MAX: u32 = 100;
/// The most that it may say.
const MAX: u64 = 1_000;
/// How long a lease is, unless the pull says.
const DEFAULT_LEASE: Duration = Duration::from_secs(30);
/// The longest lease and the longest delay, in seconds.
const MAX_SECONDS: u64 = 3_600;
/// The longest wait, in milliseconds.
const MAX_WAIT_MS: u64 = 30_000;

pub(crate) fn routes() -> Routes<Arc<Control>> {
    let not_pulled = "the subscription is of kind push";
    Routes::of("Pull")
        .at(
            "/v1/subscriptions/{id}/pull",
            post(
                pull,
                doc("pullEvents", "Pull events")
                    .text("Leases events: until the lease ends nobody else gets them. Waits for some, if asked to.")
                    .answers::<Batch>(200)
                    .problem(Code::Conflict, "the subscription is of kind push, or disabled"),
            ),
        )
        .at(
            "/v1/subscriptions/{id}/ack",
            post(
                acknowledge,
                doc("acknowledgePulled", "Acknowledge pulled events")
                    .text("The deliveries to this subscription are done.")
                    .problem(Code::Conflict, not_pulled),
            ),
        )
        .at(
            "/v1/subscriptions/{id}/release",
            post(
                release,
                doc("releasePulled", "Give pulled events back")
                    .text("Their leases end, and the next pull may get them.")
                    .problem(Code::Conflict, not_pulled),
            ),
        )
        .at(
            "/v1/subscriptions/{id}/extend",
            post(
                extend,
                doc("extendPulled", "Extend leases")
                    .problem(Code::Conflict, not_pulled),
            ),
        )
}

/// What is to be pulled.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct PullBody {
    /// How many events at most; 100 unless given.
    #[schemars(range(min = 1, max = 1_000))]
    max: Option<u32>,
    /// How long they are leased; 30 unless given.
    #[schemars(range(min = 1, max = 3_600))]
    lease_seconds: Option<u32>,
    /// How long to wait for one; not at all unless given.
    #[schemars(range(max = 30_000))]
    wait_ms: Option<u32>,
}

/// Events that were dealt with.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct AckBody {
    #[schemars(length(min = 1, max = 1_000))]
    event_ids: Vec<AnyEventId>,
}

/// Events that are given back.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct ReleaseBody {
    #[schemars(length(min = 1, max = 1_000))]
    event_ids: Vec<AnyEventId>,
    /// How long they are not to be pulled; not at all unless given.
    #[schemars(range(max = 3_600))]
    delay_seconds: Option<u32>,
}

/// Events whose leases are to last.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct ExtendBody {
    #[schemars(length(min = 1, max = 1_000))]
    event_ids: Vec<AnyEventId>,
    /// From now.
    #[schemars(range(min = 1, max = 3_600))]
    lease_seconds: u32,
}

/// What a pull asks for.
struct Wanted {
    most: u32,
    lease: Duration,
    wait: Duration,
}

impl Wanted {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body, Unknown::Refuse)?.documented::<PullBody>();
        let most = fields.optional(
            "max",
            fields::number(|max| match u32::try_from(max) {
                Ok(most @ 1..) if max <= MAX => Ok(most),
                _ => Err(Invalid::new(format!("must be a whole number from 1 to {MAX}"))),
            }),
        );
        let lease = fields.optional("lease_seconds", fields::number(lease_seconds));
        let wait = fields.optional(
            "wait_ms",
            fields::number(|wait| match wait {
                0..=MAX_WAIT_MS => Ok(Duration::from_millis(wait)),
                _ => Err(Invalid::new(format!(
                    "must be a whole number from 0 to {MAX_WAIT_MS}"
                ))),
            }),
        );
        fields.finish(Some(Self {
            most: most.unwrap_or(DEFAULT_MAX),
            lease: lease.unwrap_or(DEFAULT_LEASE),
            wait: wait.unwrap_or_default(),
        }))
    }
}

fn lease_seconds(seconds: u64) -> Result<Duration, Invalid> {
    match seconds {
        1..=MAX_SECONDS => Ok(Duration::from_secs(seconds)),
        _ => Err(Invalid::new(format!(
            "must be a whole number from 1 to {MAX_SECONDS}"
        ))),
    }
}

fn delay_seconds(seconds: u64) -> Result<Duration, Invalid> {
    match seconds {
        0..=MAX_SECONDS => Ok(Duration::from_secs(seconds)),
        _ => Err(Invalid::new(format!(
            "must be a whole number from 0 to {MAX_SECONDS}"
        ))),
    }
}

/// An event that was leased, as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PulledEvent")]
struct PulledView {
    id: EventId,
    r#type: String,
    source: Option<String>,
    dedup_id: Option<String>,
    occurred_at: Option<Timestamp>,
    received_at: Timestamp,
    /// As it was sent, byte for byte.
    payload: Box<RawValue>,
    /// How often it was leased, this time included.
    pulls: u32,
    lease_until: Timestamp,
}

impl TryFrom<PulledEvent> for PulledView {
    type Error = ApiError;

    fn try_from(event: PulledEvent) -> Result<Self, ApiError> {
        Ok(Self {
            id: event.id,
            r#type: event.event_type,
            source: event.source,
            dedup_id: event.dedup_id,
            occurred_at: event.occurred_at,
            received_at: event.received_at,
            payload: raw(event.payload)?,
            pulls: event.pulls,
            lease_until: event.lease_until,
        })
    }
}

/// What was leased.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PulledEvents")]
struct Batch {
    data: Vec<PulledView>,
}

/// The answer that is these events, with the room that it takes.
fn answer(events: Vec<PulledEvent>, held: Held) -> Result<Response, ApiError> {
    let data = events.into_iter().map(PulledView::try_from);
    let batch = Batch {
        data: data.collect::<Result<_, _>>()?,
    };
    let text = serde_json::to_vec(&batch).map_err(|error| ApiError::internal(&error))?;
    Ok(listing::whole(text.into(), held))
}

async fn pull(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    PathId(subscription): PathId<SubscriptionKind>,
    body: JsonBody<PullBody>,
) -> Result<Response, ApiError> {
    let wanted = Wanted::parse(&body.bytes)?;
    let source = PullSource {
        organization: caller.organization(),
        subscription,
    };
    let pulls = &control.api.store.pulls;
    let deadline = Instant::now() + wanted.wait;
    let seat = if wanted.wait.is_zero() {
        None
    } else {
        control.api.pullers.seat(source)
    };
    loop {
        let held = control.room.take(source.organization).await?;
        let pulled = pulls.pull(source, wanted.most, wanted.lease).await?;
        if let Pulled::Nothing { due_in } = pulled {
            let Some(seat) = &seat else {
                return answer(Vec::new(), held);
            };
            // Whoever waits takes no room.
            drop(held);
            if seat.is_to_tell()
                && let Err(error) = pulls.tell_awaited(subscription).await
            {
                tracing::debug!(%error, "workers could not be told that somebody waits");
            }
            if seat.wait(deadline, due_in).await {
                continue;
            }
            return Ok(Answer::ok(Batch { data: Vec::new() }).into_response());
        }
        if let Some(seat) = &seat {
            seat.pass_on();
        }
        return match pulled {
            Pulled::Events(events) => {
                telemetry::pulled().increment(events.len() as u64);
                answer(events, held)
            }
            Pulled::Nothing { .. } => answer(Vec::new(), held),
            Pulled::Disabled => Err(ApiError::new(
                Code::Conflict,
                "the subscription is disabled: its events are kept until it is enabled",
            )),
            Pulled::Pushed => Err(pushed()),
            Pulled::NotFound => Err(ApiError::not_found("subscription")),
        };
    }
}

fn pushed() -> ApiError {
    ApiError::new(
        Code::Conflict,
        "the subscription is of kind push: its events are sent to its URL, and cannot be pulled",
    )
}

/// Where these deliveries are; a subscription that cannot be pulled from is refused.
async fn source(
    control: &Control,
    caller: &Caller<Events>,
    id: SubscriptionId,
) -> Result<PullSource, ApiError> {
    let subscription = subscriptions::found(control, caller.organization(), id).await?;
    if subscription.push().is_some() {
        return Err(pushed());
    }
    Ok(PullSource {
        organization: subscription.organization,
        subscription: id,
    })
}

/// What became of one id.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Settled")]
struct SettledView {
    /// As it was given.
    id: EventId,
    /// The event that it stands for, which is another where the id was given for a repeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<EventId>,
    status: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledged_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_until: Option<Timestamp>,
}

/// How the delivery is now, if there is one.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "SettledStatus")]
enum Outcome {
    Delivery(DeliveryStatus),
    Missing(Missing),
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Missing {
    NotFound,
}

impl SettledView {
    fn of(id: EventId, settled: Settled) -> Self {
        match settled {
            Settled::Delivery {
                event,
                status,
                updated_at,
                lease_until,
            } => Self {
                id,
                event_id: Some(event),
                status: Outcome::Delivery(status),
                acknowledged_at: (status == DeliveryStatus::Acknowledged).then_some(updated_at),
                lease_until,
            },
            Settled::NotFound => Self {
                id,
                event_id: None,
                status: Outcome::Missing(Missing::NotFound),
                acknowledged_at: None,
                lease_until: None,
            },
        }
    }
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SettledEvents")]
struct Results {
    /// In the order of the ids given.
    results: Vec<SettledView>,
}

fn results(events: Vec<EventId>, settled: Vec<Settled>) -> Answer<Results> {
    let views = events.into_iter().zip(settled);
    Answer::ok(Results {
        results: views.map(|(id, settled)| SettledView::of(id, settled)).collect(),
    })
}

async fn acknowledge(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    _: Roomed,
    PathId(id): PathId<SubscriptionKind>,
    body: JsonBody<AckBody>,
) -> Result<Answer<Results>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
    let events = fields.required("event_ids", event_ids);
    let events = fields.finish(events)?;
    let source = source(&control, &caller, id).await?;
    let pulls = &control.api.store.pulls;
    let settled = pulls.acknowledge_pulled(source, &events).await?;
    Ok(results(events, settled))
}

async fn release(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    _: Roomed,
    PathId(id): PathId<SubscriptionKind>,
    body: JsonBody<ReleaseBody>,
) -> Result<Answer<Results>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
    let events = fields.required("event_ids", event_ids);
    let due_in = fields.optional("delay_seconds", fields::number(delay_seconds));
    let events = fields.finish(events)?;
    let change = LeaseChange::Release {
        due_in: due_in.unwrap_or_default(),
    };
    change_leases(&control, &caller, id, events, change).await
}

async fn extend(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    _: Roomed,
    PathId(id): PathId<SubscriptionKind>,
    body: JsonBody<ExtendBody>,
) -> Result<Answer<Results>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
    let events = fields.required("event_ids", event_ids);
    let lease = fields.required("lease_seconds", fields::number(lease_seconds));
    let (events, lease) = fields.finish(events.zip(lease))?;
    change_leases(&control, &caller, id, events, LeaseChange::Extend { lease }).await
}

async fn change_leases(
    control: &Control,
    caller: &Caller<Events>,
    id: SubscriptionId,
    events: Vec<EventId>,
    change: LeaseChange,
) -> Result<Answer<Results>, ApiError> {
    let source = source(control, caller, id).await?;
    let pulls = &control.api.store.pulls;
    let settled = pulls.change_leases(source, &events, change).await?;
    Ok(results(events, settled))
}
