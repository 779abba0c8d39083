//! Which subscriptions have no delivery of an event, and why, by the subscriptions as they are now.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    EventType, Filter, OrganizationId, SubscriptionId,
    filter::{NotNow, Subject, Verdict, steps_each},
    http::ApiError,
    store::{EventRecord, PageRequest},
    subscription::{MAX_SUBSCRIPTIONS, NoMatch},
};

use crate::{Control, room::Held};

/// How many of an organization's subscriptions are looked at, in order of id: as many as it may have, and the built-in inbox. One
/// that had more before there was a bound still has.
const LOOKED_AT: u32 = MAX_SUBSCRIPTIONS + 1;
/// How many times its size a payload takes as values, which filters look at, at most.
const AS_VALUES: usize = 64;
/// How many times its size an event takes to be shown: as it was read, and as JSON, which may be longer.
pub(crate) const SHOWN: usize = 3;

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

/// What is kept of a subscription that was looked at and has no delivery of the event.
struct Candidate {
    id: SubscriptionId,
    /// Why, whatever its filter says.
    reason: NoMatch,
    /// What is to be asked, if it is.
    filter: Option<Filter>,
}

impl Unmatched {
    /// Looks at the first so many subscriptions: page by page, of which no more is kept than is needed. The room that the event
    /// was read in holds a page; it keeps what the event takes to be shown.
    pub(crate) async fn of(
        control: &Control,
        organization: OrganizationId,
        event: &EventRecord,
        held: &mut Held,
    ) -> Result<Self, ApiError> {
        let event_type = EventType::parse_any(&event.event_type)
            .map_err(|error| ApiError::internal(&format!("a stored event type: {error}")))?;
        let matched: HashSet<SubscriptionId> = event
            .deliveries
            .iter()
            .map(|delivery| delivery.subscription)
            .collect();
        let (mut candidates, mut filters) = (Vec::new(), 0);
        let mut page = PageRequest {
            after: None,
            limit: LOOKED_AT,
        };
        let incomplete = loop {
            let read = control
                .api
                .store
                .subscriptions
                .list(organization, page.clone())
                .await?;
            page.limit = page
                .limit
                .saturating_sub(u32::try_from(read.items.len()).unwrap_or(u32::MAX));
            for subscription in read.items {
                let asked = subscription.filter.is_some() && subscription.wants(&event_type);
                filters += usize::from(asked);
                if !matched.contains(&subscription.id) {
                    candidates.push(Candidate {
                        id: subscription.id,
                        reason: NoMatch::why(&subscription, &event_type, event.received_at),
                        filter: subscription.filter.filter(|_| asked),
                    });
                }
            }
            page.after = read.next;
            if page.after.is_none() || page.limit == 0 {
                break page.after.is_some();
            }
        };
        held.shrink_to(SHOWN * event.weight());
        let asked: Vec<(SubscriptionId, Filter)> = candidates
            .iter_mut()
            .filter_map(|one| Some((one.id, one.filter.take()?)))
            .collect();
        let verdicts = verdicts(control, organization, asked, filters, event).await?;
        let not_matched = candidates.into_iter().map(|one| {
            let verdict = verdicts.get(&one.id);
            UnmatchedView {
                subscription: one.id,
                reason: one.reason.or_filter(verdict),
                detail: match verdict {
                    Some(Verdict::Failed(why)) => Some(why.clone()),
                    _ => None,
                },
            }
        });
        Ok(Self {
            not_matched: not_matched.collect(),
            not_matched_incomplete: incomplete,
        })
    }
}

/// What these filters say of the event. Each has the steps that it had at intake, if there were so many in all.
async fn verdicts(
    control: &Control,
    organization: OrganizationId,
    asked: Vec<(SubscriptionId, Filter)>,
    filters: usize,
    event: &EventRecord,
) -> Result<HashMap<SubscriptionId, Verdict>, ApiError> {
    if asked.is_empty() {
        return Ok(HashMap::new());
    }
    if event.erased_at.is_some() {
        let gone = || Verdict::Failed("the event is erased: there is nothing left to judge it by".to_owned());
        return Ok(asked.into_iter().map(|(id, _)| (id, gone())).collect());
    }
    let weight = AS_VALUES * event.payload.len();
    let held = control.room.take_for(Some(organization), weight).await?;
    let steps = steps_each(filters);
    let (filters, event_type, source) = (
        Arc::clone(&control.filters),
        event.event_type.clone(),
        event.source.clone(),
    );
    let (occurred_at, payload) = (event.occurred_at, event.payload.clone());
    let judging = tokio::task::spawn_blocking(move || {
        let _held = held;
        let subject = Subject::new(&event_type, source.as_deref(), occurred_at, &payload);
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
