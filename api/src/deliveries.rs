//! `GET /v1/deliveries`: deliveries over all events, newest first. One with its attempts is under its event
//! ([`events`](crate::events)).
//!
//! A page takes a bounded look at what is there, however rare it is that is asked for: one may be short, or empty, and
//! still name the next.

use std::sync::Arc;

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    DeliveryStatus, EventId, SubscriptionId, Timestamp,
    http::{
        ApiError, Query,
        openapi::{Parameter, Parameters, Routes, doc, get},
    },
    store::{DeliveryFilter, ListedDelivery, PageRequest},
};

use crate::{
    Control,
    access::{Caller, Events},
    answer::{Answer, CURSOR, LIMIT, Listing},
    cursor::List,
};

pub(crate) fn routes() -> Routes<Arc<Control>> {
    Routes::of("Deliveries").at(
        "/v1/deliveries",
        get(
            list,
            doc("listDeliveries", "List deliveries")
                .text("Newest first. A page may be short, or empty, and still name the next."),
        ),
    )
}

/// The parameters of the list.
struct Filters;

impl Parameters for Filters {
    const ALL: &'static [Parameter] = &[
        LIMIT,
        CURSOR,
        Parameter::of::<SubscriptionId>("subscription", "Those to this subscription alone."),
        Parameter::of::<DeliveryStatus>("status", "Those that are so alone."),
        Parameter::of::<Timestamp>("since", "Those of events that were accepted then or later."),
    ];
}

/// A delivery as it is listed.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ListedDelivery")]
struct ListedView {
    event: EventId,
    event_type: String,
    subscription: SubscriptionId,
    status: DeliveryStatus,
    attempts: u32,
    next_attempt_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_until: Option<Timestamp>,
    /// When the event was accepted.
    received_at: Timestamp,
    updated_at: Timestamp,
}

impl From<ListedDelivery> for ListedView {
    fn from(delivery: ListedDelivery) -> Self {
        Self {
            event: delivery.event,
            event_type: delivery.event_type,
            subscription: delivery.subscription,
            status: delivery.status,
            attempts: delivery.attempts,
            next_attempt_at: delivery.next_attempt_at,
            lease_until: delivery.lease_until,
            received_at: delivery.received_at,
            updated_at: delivery.updated_at,
        }
    }
}

async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    mut query: Query<Filters>,
) -> Result<Answer<Listing<ListedView>>, ApiError> {
    let limit = query.limit();
    let after = query.optional("cursor", |cursor| List::Deliveries.place(cursor));
    let filter = DeliveryFilter {
        subscription: query.optional("subscription", str::parse),
        status: query.optional("status", str::parse),
        since: query.optional("since", str::parse),
    };
    query.finish()?;
    let insight = &control.api.store.insight;
    let page = insight
        .list_deliveries(caller.organization(), &filter, PageRequest { after, limit })
        .await?;
    Ok(Answer::ok(Listing {
        data: page.items.into_iter().map(ListedView::from).collect(),
        next_cursor: page.next.map(|place| List::Deliveries.cursor(&place)),
    }))
}
