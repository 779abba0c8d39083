//! `GET /v1/subscriptions/{id}/stats`: how a subscription fares, over all workers; some seconds old.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    SubscriptionId, Timestamp,
    http::ApiError,
    id::SubscriptionKind,
    store::{BACKLOG_COUNTED, CircuitReport, SubscriptionStats},
    subscription::Target,
};

use super::found;
use crate::{
    Control,
    access::{Caller, SeeSubscriptions},
    answer::Answer,
    path::PathId,
};

/// How a subscription fares.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SubscriptionStats")]
pub(super) struct StatsView {
    subscription: SubscriptionId,
    last_hour: AttemptsView,
    last_success_at: Option<Timestamp>,
    last_failure_at: Option<Timestamp>,
    /// Open deliveries.
    backlog: u32,
    /// Whether there are more than were counted.
    backlog_capped: bool,
    /// How long the oldest of those that were counted has waited.
    oldest_undelivered_age_seconds: Option<u64>,
    /// `null` for a subscription of kind `pull`.
    circuit: Option<CircuitView>,
}

/// Attempts, over all workers.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AttemptCounts")]
struct AttemptsView {
    attempts: u64,
    succeeded: u64,
    failed: u64,
    /// From 0 to 1; `null` where there was no attempt.
    success_rate: Option<f64>,
    /// The median of how long they took, within a sixteenth.
    p50_ms: Option<u64>,
    p95_ms: Option<u64>,
    /// By kind of failure.
    failures: BTreeMap<&'static str, u64>,
}

/// Whether all that is due is sent, or only a probe now and then.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Circuit")]
struct CircuitView {
    state: CircuitName,
    since: Option<Timestamp>,
    next_probe_at: Option<Timestamp>,
    /// How many workers send nothing but probes.
    workers: u32,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "CircuitState")]
enum CircuitName {
    Closed,
    Open,
    HalfOpen,
}

impl CircuitView {
    fn of(report: Option<CircuitReport>) -> Self {
        Self {
            state: match report {
                None => CircuitName::Closed,
                Some(report) if report.is_half_open => CircuitName::HalfOpen,
                Some(_) => CircuitName::Open,
            },
            since: report.map(|report| report.since),
            next_probe_at: report.map(|report| report.next_probe_at),
            workers: report.map_or(0, |report| report.workers),
        }
    }
}

impl StatsView {
    fn of(subscription: SubscriptionId, target: &Target, stats: &SubscriptionStats) -> Self {
        let tally = &stats.tally;
        Self {
            subscription,
            last_hour: AttemptsView {
                attempts: tally.attempts(),
                succeeded: tally.succeeded(),
                failed: tally.failed(),
                success_rate: tally.success_rate(),
                p50_ms: tally.percentile_ms(50),
                p95_ms: tally.percentile_ms(95),
                failures: tally.failures(),
            },
            last_success_at: stats.last_success_at,
            last_failure_at: stats.last_failure_at,
            backlog: stats.backlog.min(BACKLOG_COUNTED),
            backlog_capped: stats.backlog > BACKLOG_COUNTED,
            oldest_undelivered_age_seconds: stats.oldest_undelivered.map(|age: Duration| age.as_secs()),
            circuit: match target {
                Target::Push(_) => Some(CircuitView::of(stats.circuit)),
                Target::Pull => None,
            },
        }
    }
}

pub(super) async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller<SeeSubscriptions>,
    PathId(id): PathId<SubscriptionKind>,
) -> Result<Answer<StatsView>, ApiError> {
    let subscription = found(&control, caller.organization(), id).await?;
    let stats = control.api.store.insight.subscription_stats(id).await?;
    Ok(Answer::ok(StatsView::of(id, &subscription.target, &stats)))
}
