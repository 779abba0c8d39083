//! `GET /api/inbox` and `POST /api/ack/{id}`: every event of the organization, newest first, in one word each.

use std::{str::FromStr, sync::Arc};

use axum::{extract::State, response::Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::{
    EventStatus, FailureKind, Invalid, Timestamp,
    http::{
        ApiError, FieldError, Query,
        openapi::{Parameter, Parameters},
    },
    id::EventKind,
    store::{AttemptRecord, EventFilter, EventRecord, Order, PageRequest},
};
use uuid::Uuid;

use crate::{
    Control,
    access::{Caller, Events},
    answer::{Answer, CURSOR, LIMIT},
    cursor::List,
    events, inbox, listing,
    path::PathId,
};

/// How far events are counted. With a status, that many and some more are looked at, and no further.
const MAX_TOTAL: u64 = 10_000;
/// How many events may be skipped: going further takes the cursor, whose cost does not grow.
const MAX_OFFSET: u64 = 100_000;

/// What existing clients know of where an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "CompatStatus")]
pub(super) enum Status {
    /// Open, and no attempt has failed since it was opened (by a retry or a replay, if that was the last to do so).
    Pending,
    /// Open, and an attempt has failed since.
    Failed,
    /// Delivered or acknowledged.
    Delivered,
    /// Nothing more is tried: the last retry failed, retention ended it, or all was called off (cancelled).
    DeadLetter,
}

impl FromStr for Status {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "pending" => Ok(Self::Pending),
            "failed" => Ok(Self::Failed),
            "delivered" => Ok(Self::Delivered),
            "dead_letter" => Ok(Self::DeadLetter),
            _ => Err(Invalid::new("must be pending, failed, delivered or dead_letter")),
        }
    }
}

impl Status {
    fn of(event: &EventRecord) -> Self {
        match event.status() {
            EventStatus::Pending if event.has_failed() => Self::Failed,
            EventStatus::Pending => Self::Pending,
            EventStatus::Delivered | EventStatus::Acknowledged => Self::Delivered,
            EventStatus::DeadLetter | EventStatus::Expired | EventStatus::Cancelled => Self::DeadLetter,
        }
    }

    /// The filter that shows the events that [`Status::of`] gives this status.
    fn filter(self) -> EventFilter {
        use EventStatus as S;
        let (statuses, failed) = match self {
            Self::Pending => (vec![S::Pending], Some(false)),
            Self::Failed => (vec![S::Pending], Some(true)),
            Self::Delivered => (vec![S::Delivered, S::Acknowledged], None),
            Self::DeadLetter => (vec![S::DeadLetter, S::Expired, S::Cancelled], None),
        };
        EventFilter {
            statuses,
            failed,
            event_type: None,
        }
    }
}

/// The last failure, if the last attempt at any delivery failed, in a line.
fn last_error(event: &EventRecord) -> Option<String> {
    let last_attempts = event.deliveries.iter().filter_map(|delivery| delivery.log.last());
    let last_failure = last_attempts
        .filter(|attempt| attempt.failure.is_some())
        .max_by_key(|attempt| attempt.started_at)?;
    let AttemptRecord {
        failure,
        status_code,
        detail,
        ..
    } = last_failure;
    let what = match (failure, status_code) {
        (Some(FailureKind::Status), Some(code)) => format!("HTTP {code}"),
        (Some(kind), _) => kind.as_str().to_owned(),
        (None, _) => return None,
    };
    match detail.as_deref().filter(|detail| !detail.is_empty()) {
        Some(detail) => Some(format!("{what}: {detail}")),
        None => Some(what),
    }
}

/// The parameters of the list.
pub(super) struct Filters;

impl Parameters for Filters {
    const ALL: &'static [Parameter] = &[
        LIMIT,
        CURSOR,
        Parameter::of::<Status>("status", "Those that are so alone; all, unless given."),
        Parameter::of::<Offset>("offset", "How many are passed over. Not beside `cursor`."),
    ];
}

/// 0 to 100,000.
struct Offset;

impl JsonSchema for Offset {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Offset".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0})
    }
}

/// A page of events.
#[derive(JsonSchema)]
#[schemars(rename = "CompatInbox")]
#[expect(dead_code, reason = "it is the shape of what is written event by event")]
pub(super) struct Page {
    events: Vec<EventView>,
    #[schemars(flatten)]
    rest: Rest,
}

/// An event.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CompatEvent")]
struct EventView {
    id: Uuid,
    r#type: String,
    event_type: String,
    dedup_id: Option<String>,
    payload: Box<RawValue>,
    status: Status,
    delivery_status: Status,
    attempts: u32,
    last_error: Option<String>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl TryFrom<EventRecord> for EventView {
    type Error = ApiError;

    fn try_from(event: EventRecord) -> Result<Self, ApiError> {
        let status = Status::of(&event);
        let deliveries = event.deliveries.iter();
        let updated = deliveries.clone().map(|delivery| delivery.updated_at).max();
        Ok(Self {
            id: event.id.uuid(),
            status,
            delivery_status: status,
            attempts: deliveries.map(|delivery| delivery.attempts).max().unwrap_or(0),
            last_error: last_error(&event),
            created_at: event.received_at,
            updated_at: updated.unwrap_or(event.received_at),
            r#type: event.event_type.clone(),
            event_type: event.event_type,
            dedup_id: event.dedup_id,
            payload: events::raw(event.payload)?,
        })
    }
}

/// The inbox as it is listed.
struct InboxForm {
    total: u64,
    limit: u32,
    offset: u64,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CompatRest")]
struct Rest {
    pagination: Pagination,
    next_cursor: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Pagination {
    /// Exact to 10,000. With a `status` those of the newest 12,000 events that it is looked for among: there may be more.
    total: u64,
    limit: u32,
    offset: u64,
    has_more: bool,
}

impl listing::Form for InboxForm {
    const EVENTS: &'static str = "events";
    type Event = EventView;
    type Rest = Rest;

    fn rest(&self, shown: u64, next: Option<i64>) -> Rest {
        // What is shown is there, however far it was counted.
        let seen = if shown > 0 { self.offset + shown } else { 0 };
        Rest {
            pagination: Pagination {
                total: self.total.max(seen),
                limit: self.limit,
                offset: self.offset,
                has_more: next.is_some(),
            },
            next_cursor: next.map(|place| List::CompatInbox.cursor(&place)),
        }
    }
}

pub(super) async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    mut query: Query<Filters>,
) -> Result<Response, ApiError> {
    let limit = query.limit();
    let status = query.optional("status", Status::from_str);
    let offset = query.optional("offset", |text| match text.parse() {
        Ok(offset) if offset <= MAX_OFFSET => Ok(offset),
        _ => Err(Invalid::new(
            "must be a whole number from 0 to 100000; to go further, use cursor",
        )),
    });
    let after = query.optional("cursor", |cursor| List::CompatInbox.place(cursor));
    query.finish()?;
    let offset = offset.unwrap_or(0);
    if after.is_some() && offset > 0 {
        let rule = "cannot be given with cursor, which says where to go on";
        return Err(ApiError::invalid(vec![FieldError::parameter("offset", rule)]));
    }
    let (organization, filter) = (
        caller.organization(),
        status.map(Status::filter).unwrap_or_default(),
    );
    let held = control.room.take(organization).await?;
    let store = &control.api.store;
    let total = store.events.count(organization, &filter, MAX_TOTAL).await?;
    let wanted = listing::Wanted {
        organization,
        source: listing::Source::List {
            filter,
            order: Order::NewestFirst,
            offset,
        },
        page: PageRequest { after, limit },
        // Never short of bytes: existing clients add `limit` to `offset`, and would skip what was left out. Where a status is rare
        // a page is short all the same, for it looks at so many events and no more; what is left out then is found by the cursor.
        enough: usize::MAX,
    };
    let form = InboxForm { total, limit, offset };
    listing::answer(store, wanted, form, held).await
}

/// An event that was acknowledged.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CompatAcknowledgement")]
pub(super) struct AckView {
    id: Uuid,
    status: Status,
    acknowledged_at: Timestamp,
    success: bool,
}

/// Acknowledges, as `POST /v1/inbox/{event_id}/ack` does.
pub(super) async fn acknowledge(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    PathId(event): PathId<EventKind>,
) -> Result<Answer<AckView>, ApiError> {
    let (event, at) = inbox::acknowledge_event(&control, caller.organization(), event).await?;
    Ok(Answer::ok(AckView {
        id: event.uuid(),
        status: Status::Delivered,
        acknowledged_at: at,
        success: true,
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared::{DeliveryStatus as D, EventId, SubscriptionId, store::DeliveryRecord};

    use super::*;

    /// A delivery that has failed if it has a failure, and is open.
    fn delivery(status: D, attempts: u32, failure: Option<(FailureKind, &str)>) -> DeliveryRecord {
        let at = Timestamp::from_millis(1_700_000_000_000 + i64::from(attempts));
        let log = failure.map(|(kind, detail)| AttemptRecord {
            number: attempts,
            started_at: at,
            duration: Duration::from_millis(5),
            status_code: (kind == FailureKind::Status).then_some(503),
            failure: Some(kind),
            detail: Some(detail.to_owned()),
        });
        DeliveryRecord {
            subscription: SubscriptionId::new(),
            status,
            has_failed: status.is_open() && failure.is_some(),
            attempts,
            lease_until: None,
            next_attempt_at: None,
            updated_at: at,
            log: log.into_iter().collect(),
        }
    }

    fn event(deliveries: Vec<DeliveryRecord>) -> EventRecord {
        EventRecord {
            id: EventId::new(),
            seq: 1,
            event_type: "user.created".into(),
            dedup_id: None,
            source: None,
            occurred_at: None,
            received_at: Timestamp::from_millis(0),
            payload: "{}".into(),
            erased_at: None,
            repeats: 0,
            differing_repeats: 0,
            deliveries,
        }
    }

    #[test]
    fn an_event_has_one_of_four_statuses_and_the_filter_agrees() {
        let failure = Some((FailureKind::Timeout, "no answer"));
        for (deliveries, expected) in [
            (vec![delivery(D::Pending, 0, None)], Status::Pending),
            (vec![delivery(D::InFlight, 0, None)], Status::Pending),
            (
                vec![delivery(D::Parked, 0, None), delivery(D::DeadLetter, 8, None)],
                Status::Pending,
            ),
            (vec![delivery(D::Retrying, 1, failure)], Status::Failed),
            (vec![delivery(D::InFlight, 2, failure)], Status::Failed),
            // Leased and released, or opened again.
            (vec![delivery(D::Pending, 2, None)], Status::Pending),
            (vec![delivery(D::InFlight, 9, None)], Status::Pending),
            (
                vec![delivery(D::Pending, 0, None), delivery(D::Delivered, 1, None)],
                Status::Pending,
            ),
            (vec![delivery(D::Delivered, 1, None)], Status::Delivered),
            (vec![delivery(D::Acknowledged, 0, None)], Status::Delivered),
            (
                vec![delivery(D::Delivered, 1, None), delivery(D::DeadLetter, 8, None)],
                Status::DeadLetter,
            ),
            (vec![delivery(D::Expired, 3, None)], Status::DeadLetter),
            (vec![delivery(D::Cancelled, 0, None)], Status::DeadLetter),
        ] {
            let event = event(deliveries);
            assert_eq!(Status::of(&event), expected, "{event:?}");
            for status in ["pending", "failed", "delivered", "dead_letter"].map(|text| text.parse().unwrap())
            {
                let shown = Status::filter(status).shows(&event);
                assert_eq!(shown, status == expected, "{status:?} {event:?}");
            }
        }
    }

    #[test]
    fn the_last_failure_is_told_in_a_line() {
        let told = |deliveries| last_error(&event(deliveries));
        assert_eq!(told(vec![delivery(D::Pending, 0, None)]), None);
        let late = delivery(D::Retrying, 2, Some((FailureKind::Status, "busy")));
        let early = delivery(D::Retrying, 1, Some((FailureKind::Timeout, "no answer")));
        assert_eq!(told(vec![early.clone()]).as_deref(), Some("timeout: no answer"));
        assert_eq!(
            told(vec![early.clone(), late.clone()]).as_deref(),
            Some("HTTP 503: busy")
        );
        assert_eq!(told(vec![late, early]).as_deref(), Some("HTTP 503: busy"));
        let silent = delivery(D::DeadLetter, 1, Some((FailureKind::Status, "")));
        assert_eq!(told(vec![silent]).as_deref(), Some("HTTP 503"));
    }
}
