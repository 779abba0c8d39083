//! `POST /v1/subscriptions/{id}/test`: sends a test event now, and answers with what came back.
//!
//! The api talks to no subscriber: it asks for a test push, which a worker takes, and waits for the first attempt of its
//! delivery. That wait is bounded, and so is how many tests an organization has under way and begins: whoever may test
//! could else have any URL flooded.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    DeliveryStatus, EventId, OrganizationId, SubscriptionId,
    http::{ApiError, Code},
    id::SubscriptionKind,
    store::{DeliveryRecord, StoreError},
};

use super::found;
use crate::{
    Control,
    access::{Caller, Subscriptions},
    answer::{Answer, Taken},
    events::AttemptView,
    path::PathId,
};

/// How long a worker may take, beside the attempt itself, to take a test and to write down what came of it.
const BESIDE: Duration = Duration::from_secs(3);
/// The most tests of an organization that are under way at once, and that wait for a worker.
const AT_ONCE: u32 = 4;
/// The most tests of an organization that begin within a minute.
const A_MINUTE: usize = 60;
const MINUTE: Duration = Duration::from_mins(1);
/// The most organizations that test within a minute: there are not that many people awake.
const MOST: usize = 10_000;

/// The tests that this process waits for.
#[derive(Default)]
pub(crate) struct Tests(Mutex<HashMap<OrganizationId, Recent>>);

#[derive(Default)]
struct Recent {
    under_way: u32,
    /// When those of the last minute began.
    begun: VecDeque<Instant>,
}

impl Recent {
    fn forget(&mut self, now: Instant) {
        while self
            .begun
            .front()
            .is_some_and(|at| now.duration_since(*at) >= MINUTE)
        {
            self.begun.pop_front();
        }
    }
}

impl Tests {
    /// Begins a test, or says how long until one may begin.
    fn begin(&self, organization: OrganizationId, now: Instant) -> Result<UnderWay<'_>, Duration> {
        let mut tests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tests.len() >= MOST {
            tests.retain(|_, recent| {
                recent.forget(now);
                recent.under_way > 0 || !recent.begun.is_empty()
            });
        }
        if tests.len() >= MOST && !tests.contains_key(&organization) {
            return Err(MINUTE);
        }
        let recent = tests.entry(organization).or_default();
        recent.forget(now);
        if recent.under_way >= AT_ONCE {
            return Err(Duration::from_secs(1));
        }
        if recent.begun.len() >= A_MINUTE {
            let oldest = recent.begun.front().copied().unwrap_or(now);
            return Err(MINUTE.saturating_sub(now.duration_since(oldest)));
        }
        recent.under_way += 1;
        recent.begun.push_back(now);
        Ok(UnderWay {
            tests: self,
            organization,
        })
    }
}

/// A test under way.
struct UnderWay<'a> {
    tests: &'a Tests,
    organization: OrganizationId,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut tests = self.tests.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recent) = tests.get_mut(&self.organization) {
            recent.under_way = recent.under_way.saturating_sub(1);
        }
    }
}

/// A test push.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TestPush")]
pub(super) struct TestView {
    /// The event that was sent; it can be looked up as any.
    event: EventId,
    subscription: SubscriptionId,
    status: DeliveryStatus,
    /// What came back; `null` where the attempt has not ended yet.
    attempt: Option<AttemptView>,
}

fn too_many(after: Duration) -> ApiError {
    ApiError::rate_limited(
        "an organization tests 4 times at once, and 60 times a minute",
        after,
    )
}

pub(super) async fn test(
    State(control): State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    PathId(id): PathId<SubscriptionKind>,
) -> Result<Response, ApiError> {
    let organization = caller.organization();
    let subscription = found(&control, organization, id).await?;
    let Some(push) = subscription.push() else {
        let detail = "nothing is sent to a subscription of kind pull";
        return Err(ApiError::new(Code::Conflict, detail));
    };
    if !subscription.enabled {
        let detail = "nothing is sent to a subscription that is disabled; enable it first";
        return Err(ApiError::new(Code::Conflict, detail));
    }
    let _under_way = control
        .tests
        .begin(organization, Instant::now())
        .map_err(too_many)?;
    let (tests, event) = (&control.api.store.tests, EventId::new());
    let limit = push.timeout.duration() + BESIDE;
    let mut wait = control.waiters.wait(organization, limit);
    if !tests.ask_test(organization, id, event, AT_ONCE).await? {
        return Err(too_many(Duration::from_secs(1)));
    }
    let view = |status, attempt| TestView {
        event,
        subscription: id,
        status,
        attempt,
    };
    let mut status = DeliveryStatus::Pending;
    loop {
        let delivery = delivery(&control, organization, event, id).await?;
        if let Some(mut delivery) = delivery {
            status = delivery.status;
            if let Some(attempt) = delivery.log.pop() {
                return Ok(Answer::ok(view(status, Some(attempt.into()))).into_response());
            }
        }
        if !wait.pause().await {
            break;
        }
    }
    if tests.withdraw_test(event).await? {
        let detail = "no worker is there to send it: nothing was sent";
        return Err(ApiError::unavailable(detail, Duration::from_secs(5)));
    }
    Ok(Taken::accepted(view(status, None)).into_response())
}

async fn delivery(
    control: &Control,
    organization: OrganizationId,
    event: EventId,
    subscription: SubscriptionId,
) -> Result<Option<DeliveryRecord>, StoreError> {
    let events = &control.api.store.events;
    let event = events.get_delivery(organization, event, subscription).await?;
    let deliveries = event.into_iter().flat_map(|event| event.deliveries);
    Ok(deliveries
        .into_iter()
        .find(|delivery| delivery.subscription == subscription))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_so_many_a_minute() {
        let (tests, now) = (Tests::default(), Instant::now());
        let (ours, theirs) = (OrganizationId::new(), OrganizationId::new());
        let under_way: Vec<_> = (0..AT_ONCE)
            .map(|_| tests.begin(ours, now).ok().unwrap())
            .collect();
        assert!(tests.begin(ours, now).is_err());
        assert!(tests.begin(theirs, now).is_ok());
        drop(under_way);
        for _ in AT_ONCE as usize..A_MINUTE {
            assert!(tests.begin(ours, now).is_ok());
        }
        let later = now + Duration::from_secs(10);
        assert_eq!(tests.begin(ours, later).err(), Some(Duration::from_secs(50)));
        assert!(tests.begin(ours, now + MINUTE).is_ok());
    }
}
