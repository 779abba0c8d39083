//! Which subscriptions have no delivery of an event, and why, by the subscriptions as they are now.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    EventType, Filter, OrganizationId, SubscriptionId,
    filter::{Filters, NotNow, Subject, Verdict, steps_each},
    http::ApiError,
    store::{EventRecord, PageRequest},
    subscription::NoMatch,
};

use crate::Control;

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
    /// What its filter failed at.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Unmatched {
    /// Looks at the first so many subscriptions.
    pub(crate) async fn of(
        control: &Control,
        organization: OrganizationId,
        event: &EventRecord,
    ) -> Result<Self, ApiError> {
        let event_type = EventType::parse_any(&event.event_type)
            .map_err(|error| ApiError::internal(&format!("a stored event type: {error}")))?;
        let first = PageRequest {
            after: None,
            limit: LOOKED_AT,
        };
        let page = control.api.store.subscriptions.list(organization, first).await?;
        let matched: HashSet<SubscriptionId> = event
            .deliveries
            .iter()
            .map(|delivery| delivery.subscription)
            .collect();
        let asked: Vec<(SubscriptionId, Filter)> = page
            .items
            .iter()
            .filter(|one| one.wants(&event_type))
            .filter_map(|one| Some((one.id, one.filter.clone()?)))
            .collect();
        let verdicts = verdicts(&control.filters, asked, event).await?;
        let others = page.items.iter().filter(|one| !matched.contains(&one.id));
        let not_matched = others.map(|subscription| {
            let verdict = verdicts.get(&subscription.id);
            UnmatchedView {
                subscription: subscription.id,
                reason: NoMatch::why(subscription, &event_type, event.received_at, verdict),
                detail: match verdict {
                    Some(Verdict::Failed(why)) => Some(why.clone()),
                    _ => None,
                },
            }
        });
        Ok(Self {
            not_matched: not_matched.collect(),
            not_matched_incomplete: page.next.is_some(),
        })
    }
}

/// What these filters say of the event. Each has the steps that it had at intake, if these are all that there were.
async fn verdicts(
    filters: &Arc<Filters>,
    asked: Vec<(SubscriptionId, Filter)>,
    event: &EventRecord,
) -> Result<HashMap<SubscriptionId, Verdict>, ApiError> {
    if asked.is_empty() {
        return Ok(HashMap::new());
    }
    if event.erased_at.is_some() {
        let gone = || Verdict::Failed("the event is erased: there is nothing left to judge it by".to_owned());
        return Ok(asked.into_iter().map(|(id, _)| (id, gone())).collect());
    }
    let (filters, event_type, source) = (
        Arc::clone(filters),
        event.event_type.clone(),
        event.source.clone(),
    );
    let (occurred_at, payload) = (event.occurred_at, event.payload.clone());
    let judging = tokio::task::spawn_blocking(move || {
        let subject = Subject::new(&event_type, source.as_deref(), occurred_at, &payload);
        let steps = steps_each(asked.len());
        let (ids, asked): (Vec<SubscriptionId>, Vec<Filter>) = asked.into_iter().unzip();
        let ready = filters.ready(&asked)?;
        let judge = |(place, id)| (id, ready.judge(place, &subject, steps));
        Ok::<_, NotNow>(ids.into_iter().enumerate().map(judge).collect())
    });
    let judged = judging
        .await
        .map_err(|error| ApiError::internal(&format!("filters were not evaluated: {error}")))?;
    Ok(judged?)
}
