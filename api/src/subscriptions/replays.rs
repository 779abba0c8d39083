//! `POST /v1/subscriptions/{id}/replay`, which opens deliveries again that have ended, and
//! `/v1/subscriptions/{id}/replays`, which says how far that is.

use std::sync::Arc;

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::{
    DeliveryState, EventPattern, Invalid, OrganizationId, ReplayId, SubscriptionId, Timestamp,
    http::{ApiError, Code, FieldError, JsonBody, Unknown, fields},
    id::{ReplayKind, SubscriptionKind},
    store::{NewReplay, Replay, ReplayStatus},
};

use super::{found, request};
use crate::{
    Control,
    access::{Caller, SeeSubscriptions, Subscriptions},
    answer::{Answer, Listing, NoContent, Taken},
    path::{PathId, PathIds},
};

/// The most replays of an organization that run at once.
const MOST_RUNNING: u32 = 10;
/// How many replays of a subscription are listed: those that are over go after a week.
const LISTED: u32 = 100;

/// What is to be replayed.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
pub(super) struct NewReplayBody {
    /// Events accepted then or later; from the beginning unless given.
    since: Option<Timestamp>,
    /// Events accepted before; until now unless given.
    until: Option<Timestamp>,
    /// Deliveries that ended so; `dead_letter` unless given.
    #[schemars(length(min = 1, max = 7))]
    statuses: Option<Vec<Ended>>,
    /// Events whose type one of these matches; all unless given.
    #[schemars(length(min = 1, max = 100))]
    event_types: Option<Vec<EventPattern>>,
}

/// How a delivery that is over has ended.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case", rename = "EndedDeliveryState")]
#[expect(dead_code, reason = "it is the shape of a field")]
enum Ended {
    Delivered,
    DeadLetter,
    Acknowledged,
    Cancelled,
    Expired,
}

/// Deliveries that are opened again, and how far that is.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Replay")]
pub(super) struct ReplayView {
    id: ReplayId,
    subscription: SubscriptionId,
    status: ReplayStatus,
    since: Option<Timestamp>,
    until: Timestamp,
    statuses: Vec<DeliveryState>,
    event_types: Vec<EventPattern>,
    /// How far it is, from 0 to 1; it never goes back.
    #[schemars(range(min = 0, max = 1))]
    progress: f64,
    /// Events that have been looked at.
    looked_at: u64,
    /// Deliveries that were opened.
    opened: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<Replay> for ReplayView {
    fn from(replay: Replay) -> Self {
        Self {
            progress: replay.progress(),
            id: replay.id,
            subscription: replay.subscription,
            status: replay.status,
            since: replay.since,
            until: replay.until,
            statuses: replay.statuses,
            event_types: replay.event_types,
            looked_at: replay.looked_at,
            opened: replay.opened,
            created_at: replay.created_at,
            updated_at: replay.updated_at,
        }
    }
}

pub(super) async fn create(
    State(control): State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    PathId(id): PathId<SubscriptionKind>,
    body: JsonBody<NewReplayBody>,
) -> Result<Taken<ReplayView>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
    let since: Option<Timestamp> = fields.optional("since", fields::string(str::parse));
    let until: Option<Timestamp> = fields.optional("until", fields::string(str::parse));
    let statuses = fields.optional("statuses", statuses);
    let event_types = fields.optional("event_types", request::patterns);
    if let (Some(since), Some(until)) = (since, until)
        && since >= until
    {
        fields.refuse(FieldError::at(&["until"], "must be after since"));
    }
    fields.finish(Some(()))?;
    let organization = caller.organization();
    found(&control, organization, id).await?;
    let new = NewReplay {
        id: ReplayId::new(),
        organization,
        subscription: id,
        since,
        until,
        statuses: statuses.unwrap_or_else(|| vec![DeliveryState::DeadLetter]),
        event_types: event_types.unwrap_or_else(|| vec![EventPattern::all()]),
    };
    let made = control.api.store.replays.create_replay(new, MOST_RUNNING).await?;
    let replay = made.ok_or_else(|| {
        let detail = "ten replays of this organization are running; wait for one to be done, or cancel one";
        ApiError::new(Code::Conflict, detail)
    })?;
    let path = format!("/v1/subscriptions/{id}/replays/{}", replay.id);
    Ok(Taken::accepted(ReplayView::from(replay)).at(&path))
}

/// Statuses of deliveries that have ended; those that are open need not be opened.
fn statuses(value: &RawValue) -> Result<Vec<DeliveryState>, fields::Broken> {
    let closed = |text: &str| match text.parse::<DeliveryState>() {
        Ok(state) if !state.is_open() => Ok(state),
        _ => Err(Invalid::new(
            "must be delivered, dead_letter, acknowledged, cancelled or expired",
        )),
    };
    let statuses = fields::strings(DeliveryState::ALL.len(), closed)(value)?;
    if statuses.is_empty() {
        return Err(Invalid::new("must have at least one entry").into());
    }
    Ok(statuses)
}

pub(super) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller<SeeSubscriptions>,
    PathId(id): PathId<SubscriptionKind>,
) -> Result<Answer<Listing<ReplayView>>, ApiError> {
    found(&control, caller.organization(), id).await?;
    let replays = &control.api.store.replays;
    let listed = replays.list_replays(caller.organization(), id, LISTED).await?;
    Ok(Answer::ok(Listing {
        data: listed.into_iter().map(ReplayView::from).collect(),
        next_cursor: None,
    }))
}

async fn one(
    control: &Control,
    organization: OrganizationId,
    subscription: SubscriptionId,
    id: ReplayId,
) -> Result<Replay, ApiError> {
    let replay = control.api.store.replays.get_replay(organization, id).await?;
    replay
        .filter(|replay| replay.subscription == subscription)
        .ok_or_else(|| ApiError::not_found("replay"))
}

pub(super) async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller<SeeSubscriptions>,
    PathIds(subscription, id): PathIds<SubscriptionKind, ReplayKind>,
) -> Result<Answer<ReplayView>, ApiError> {
    let replay = one(&control, caller.organization(), subscription, id).await?;
    Ok(Answer::ok(ReplayView::from(replay)))
}

/// Calls one off; one that is over stays as it is.
pub(super) async fn cancel(
    State(control): State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    PathIds(subscription, id): PathIds<SubscriptionKind, ReplayKind>,
) -> Result<NoContent, ApiError> {
    let replay = one(&control, caller.organization(), subscription, id).await?;
    control
        .api
        .store
        .replays
        .cancel_replay(replay.organization, replay.id)
        .await?;
    Ok(NoContent)
}
