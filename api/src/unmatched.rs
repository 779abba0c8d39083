//! Which subscriptions have no delivery of an event, and why, by the subscriptions as they are now.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    EventType, OrganizationId, SubscriptionId,
    http::ApiError,
    store::{EventRecord, PageRequest, Store},
    subscription::NoMatch,
};

/// How many of an organization's subscriptions are looked at, in order of id.
const LOOKED_AT: u32 = 200;

/// What of an organization's subscriptions an event was not for.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Unmatched {
    not_matched: Vec<UnmatchedView>,
    /// There are more subscriptions than were looked at.
    not_matched_incomplete: bool,
}

/// A subscription that has no delivery of an event.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "NotMatched")]
struct UnmatchedView {
    subscription: SubscriptionId,
    reason: NoMatch,
}

impl Unmatched {
    /// Looks at the first so many subscriptions.
    pub(crate) async fn of(
        store: &Store,
        organization: OrganizationId,
        event: &EventRecord,
    ) -> Result<Self, ApiError> {
        let event_type = EventType::parse_any(&event.event_type)
            .map_err(|error| ApiError::internal(&format!("a stored event type: {error}")))?;
        let first = PageRequest {
            after: None,
            limit: LOOKED_AT,
        };
        let page = store.subscriptions.list(organization, first).await?;
        let matched: HashSet<SubscriptionId> = event
            .deliveries
            .iter()
            .map(|delivery| delivery.subscription)
            .collect();
        let others = page.items.iter().filter(|one| !matched.contains(&one.id));
        let not_matched = others.map(|subscription| UnmatchedView {
            subscription: subscription.id,
            reason: NoMatch::why(subscription, &event_type, event.received_at),
        });
        Ok(Self {
            not_matched: not_matched.collect(),
            not_matched_incomplete: page.next.is_some(),
        })
    }
}
