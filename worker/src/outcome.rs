//! Writing outcomes down, many in one transaction.
//!
//! An outcome applies only if the delivery is open, still this worker's, and at the attempt that was made: what others
//! did meanwhile stands. While the store is away outcomes wait here, within the bound of their channel; attempts need a
//! place in it before they begin, so nothing piles up.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use shared::{
    DeliveryKey, OrganizationId, SubscriptionId, Timestamp, WorkerId,
    delivery::{AttemptOutcome, AttemptResult, Next},
    store::{Store, StoreError},
    telemetry::{self, Ending},
};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::{Dispatch, Ended},
    failing::{Failing, Went},
    lease::Lease,
    pauses,
    scheduler::Wake,
    statistics::Statistics,
};

/// Outcomes that wait or are about to be: attempts under way have their place here.
pub const CHANNEL: usize = 4_096;
/// The most outcomes of one transaction.
const BATCH: usize = 1_000;
/// How long outcomes gather. Nobody waits for them to be written but those who look.
const GATHER: Duration = Duration::from_millis(5);

/// Who is told of the attempts that have ended, beside the store.
#[derive(Debug)]
pub struct Told {
    /// Disables what fails for too long.
    pub failing: Failing,
    /// Counts how subscriptions fare.
    pub statistics: Arc<Statistics>,
}

/// Writes outcomes down until `drained` is given and none is left.
pub async fn record(
    store: Store,
    mut ended: mpsc::Receiver<Ended>,
    wake: Wake,
    lease: Arc<Lease>,
    dispatch: Arc<Dispatch>,
    mut told: Told,
    drained: CancellationToken,
) -> anyhow::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    let mut settle = tokio::time::interval(told.failing.every());
    settle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let first = tokio::select! {
            biased;
            first = ended.recv() => first,
            () = drained.cancelled() => ended.try_recv().ok(),
            _ = settle.tick() => {
                told.failing.note(&store, &[]).await;
                continue;
            }
        };
        let Some(first) = first else {
            told.failing.settle(&store, Duration::ZERO).await;
            return Ok(());
        };
        batch.push(first);
        if !drained.is_cancelled() {
            tokio::time::sleep(GATHER).await;
        }
        while batch.len() < BATCH
            && let Ok(more) = ended.try_recv()
        {
            batch.push(more);
        }
        told.statistics.note(&batch);
        let went: Vec<Went> = batch.iter().filter_map(went).collect();
        let pauses = pauses::of(&batch);
        let settled = write(&store, &wake, &lease, std::mem::take(&mut batch)).await;
        dispatch.settle(&settled);
        pauses::tell(&store, &pauses).await;
        told.failing.note(&store, &went).await;
    }
}

/// Subscriptions whose subscribers said that they are gone for good.
type Gone = HashMap<(OrganizationId, SubscriptionId), Said>;

/// Who said so.
#[derive(Debug, Clone, Copy)]
struct Said {
    /// By which version it was sent to.
    version: i64,
    /// Whether that is announced: it was said of an event that is not the system's own.
    announced: bool,
}

/// Writes a batch down, however long it takes, and sees to what follows from it. Says of each lane in order whether it goes
/// on with its next.
async fn write(store: &Store, wake: &Wake, lease: &Lease, batch: Vec<Ended>) -> Vec<(SubscriptionId, bool)> {
    let mut holders: Vec<WorkerId> = batch.iter().map(|ended| ended.holding.worker()).collect();
    holders.sort_unstable();
    holders.dedup();
    let (mut gone, mut settled) = (Gone::new(), Vec::new());
    for holder in holders {
        let of_holder = batch.iter().filter(|ended| ended.holding.worker() == holder);
        let outcomes: Vec<AttemptOutcome> = of_holder.clone().map(|ended| ended.outcome.clone()).collect();
        let applied = apply(store, lease, holder, &outcomes).await;
        for ended in of_holder {
            let applied = applied.contains(&ended.outcome.delivery);
            if applied && !ended.is_test && says_gone(&ended.outcome.result) {
                let lane = (ended.outcome.organization, ended.outcome.delivery.subscription);
                let said = gone.entry(lane).or_insert(Said {
                    version: ended.version,
                    announced: false,
                });
                said.version = ended.version.max(said.version);
                said.announced |= ended.begets;
            }
            announce(wake, ended, applied);
            if ended.in_order {
                let goes_on = applied && is_final(&ended.outcome.result);
                settled.push((ended.outcome.delivery.subscription, goes_on));
            }
        }
    }
    disable(store, gone).await;
    settled
}

/// How the subscriber fared. That a test push fails is not held against it; that one succeeds speaks for it.
fn went(ended: &Ended) -> Option<Went> {
    let outcome = &ended.outcome;
    let well = matches!(outcome.result, AttemptResult::Delivered { .. });
    (well || !ended.is_test).then_some(Went {
        organization: outcome.organization,
        subscription: outcome.delivery.subscription,
        version: ended.version,
        well,
        begets: ended.begets,
    })
}

/// Whether nothing more is sent of a delivery that ended so.
fn is_final(result: &AttemptResult) -> bool {
    match result {
        AttemptResult::Delivered { .. } => true,
        AttemptResult::Failed { next, .. } => *next == Next::DeadLetter,
    }
}

/// Whether a subscriber asks to be sent nothing more.
fn says_gone(result: &AttemptResult) -> bool {
    matches!(result, AttemptResult::Failed { failure, .. } if failure.status_code == Some(410))
}

/// Disables subscriptions, unless they have changed since they were sent to: the new URL has said nothing yet.
async fn disable(store: &Store, gone: Gone) {
    let reason = "the subscriber answered 410 Gone";
    for ((organization, subscription), Said { version, announced }) in gone {
        let disabled = store
            .subscriptions
            .disable(organization, subscription, version, reason, announced)
            .await;
        match disabled {
            Ok(true) => tracing::info!(subscription.id = %subscription, reason, "a subscription is disabled"),
            Ok(false) => {}
            // The next attempt is answered the same, and tries again.
            Err(error) => tracing::warn!(%error, subscription.id = %subscription, "could not be disabled"),
        }
    }
}

async fn apply(
    store: &Store,
    lease: &Lease,
    holder: WorkerId,
    outcomes: &[AttemptOutcome],
) -> HashSet<DeliveryKey> {
    let mut pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter()
        .build();
    loop {
        match store.deliveries.record(holder, outcomes).await {
            Ok(applied) => return applied.into_iter().collect(),
            Err(error @ StoreError::Unavailable(_)) => {
                tracing::warn!(%error, outcomes = outcomes.len(), "outcomes wait: the store is away");
                tokio::time::sleep(pauses.next().unwrap_or(Duration::from_secs(2))).await;
            }
            Err(error) if outcomes.len() > 1 => {
                tracing::warn!(%error, outcomes = outcomes.len(), "outcomes are refused as a batch; parting it");
                let (some, others) = outcomes.split_at(outcomes.len() / 2);
                let mut applied = Box::pin(apply(store, lease, holder, some)).await;
                applied.extend(Box::pin(apply(store, lease, holder, others)).await);
                return applied;
            }
            Err(error) => {
                // It is attempted again once a new lease has freed it: at least once, not at most.
                lease.doubt();
                let event = outcomes.first().map(|outcome| outcome.delivery.event);
                tracing::error!(%error, event.id = ?event, "an outcome cannot be written down");
                return HashSet::new();
            }
        }
    }
}

/// Counts an outcome, and gives word of what comes next.
fn announce(wake: &Wake, ended: &Ended, applied: bool) {
    let outcome = &ended.outcome;
    let delivery = outcome.delivery;
    telemetry::attempt_seconds().record(outcome.duration);
    if let AttemptResult::Failed { failure, .. } = &outcome.result {
        telemetry::attempt_failures(failure.kind).increment(1);
    }
    if ended.is_test {
        tracing::info!(
            event.id = %delivery.event, subscription.id = %delivery.subscription, result = ?outcome.result,
            "a test push ended"
        );
        return;
    }
    let ending = match &outcome.result {
        _ if !applied => Ending::Superseded,
        AttemptResult::Delivered { .. } => {
            let ended_at = outcome.started_at.plus(outcome.duration);
            telemetry::delivery_seconds().record(Timestamp::since(ended_at, ended.received_at));
            Ending::Delivered
        }
        AttemptResult::Failed {
            failure,
            next: Next::Retry { after },
        } => {
            wake.due_after(delivery.subscription, *after);
            tracing::info!(
                event.id = %delivery.event, subscription.id = %delivery.subscription, attempt = outcome.number,
                failure.kind = failure.kind.as_str(), failure.status_code = ?failure.status_code,
                retry_in_seconds = after.as_secs_f32(), "an attempt failed"
            );
            Ending::Retrying
        }
        AttemptResult::Failed {
            failure,
            next: Next::DeadLetter,
        } => {
            tracing::warn!(
                event.id = %delivery.event, subscription.id = %delivery.subscription, attempt = outcome.number,
                failure.kind = failure.kind.as_str(), failure.status_code = ?failure.status_code,
                "the last attempt failed: dead letter"
            );
            Ending::DeadLetter
        }
    };
    telemetry::deliveries(ending).increment(1);
}

/// The channel of outcomes.
pub fn channel() -> (mpsc::Sender<Ended>, mpsc::Receiver<Ended>) {
    mpsc::channel(CHANNEL)
}

#[cfg(test)]
mod tests;
