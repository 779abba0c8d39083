//! How subscribers fare, told to the store for those who look: attempts, counted by subscription and minute, and circuits
//! that are open.
//!
//! Counting is adding to a number in memory, once for each attempt that has ended, many under one lock. A task of its own writes
//! every few seconds what has changed: whole counts, so that a write whose answer was lost is repeated without harm. Delivery
//! waits for none of it. While the store is away counts stay here, an hour at most; a crash loses those of the last seconds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    FailureKind, SubscriptionId, WorkerId,
    delivery::AttemptResult,
    statistics::Tally,
    store::{self, COUNTED_FOR, Insight, Minute, OpenCircuit, Store},
    telemetry,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::{Dispatch, Ended},
    lane::OpenedCircuit,
    lease::Lease,
};

/// How often what has changed is written.
const WRITE: Duration = Duration::from_secs(3);
/// The most subscriptions and minutes that are counted at once; about 1 KiB each. Attempts beyond are not counted.
const MOST: usize = 10_000;
/// The most rows of one write.
const AT_ONCE: usize = 1_000;
/// How long the last write, when all has ended, may take.
const LAST_WRITE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Count {
    tally: Tally,
    last_success: Option<Instant>,
    last_failure: Option<Instant>,
    /// How many attempts of it the store knows of.
    written: u64,
}

/// The counts of this worker.
#[derive(Debug)]
pub struct Statistics {
    counter: WorkerId,
    began: Instant,
    counts: Mutex<HashMap<(SubscriptionId, i64), Count>>,
}

impl Statistics {
    /// With nothing counted yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            counter: WorkerId::new(),
            began: Instant::now(),
            counts: Mutex::default(),
        })
    }

    /// Counts attempts that have ended, but for test pushes.
    pub fn note(&self, ended: &[Ended]) {
        let now = Instant::now();
        let mut counts = self.counts();
        for ended in ended.iter().filter(|ended| !ended.is_test) {
            let outcome = &ended.outcome;
            let failure = match &outcome.result {
                AttemptResult::Delivered { .. } => None,
                AttemptResult::Failed { failure, .. } => Some(failure.kind),
            };
            let key = (outcome.delivery.subscription, self.minute(now));
            add(&mut counts, key, failure, outcome.duration, now);
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<(SubscriptionId, i64), Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn minute(&self, at: Instant) -> i64 {
        i64::try_from(at.duration_since(self.began).as_secs() / 60).unwrap_or(i64::MAX)
    }

    /// What the store does not know yet. What it knows of minutes that are over is forgotten, and so is what is too old to
    /// be of use.
    fn news(&self, now: Instant) -> Vec<Minute> {
        let this = self.minute(now);
        let oldest = this - i64::try_from(COUNTED_FOR.as_secs() / 60).unwrap_or(i64::MAX);
        let mut counts = self.counts();
        counts.retain(|(_, minute), count| {
            *minute > oldest && (*minute == this || count.written < count.tally.attempts())
        });
        let ago = |at: Option<Instant>| at.map(|at| now.duration_since(at));
        counts
            .iter()
            .filter(|(_, count)| count.written < count.tally.attempts())
            .map(|((subscription, minute), count)| Minute {
                subscription: *subscription,
                number: *minute,
                tally: count.tally.clone(),
                success_ago: ago(count.last_success),
                failure_ago: ago(count.last_failure),
            })
            .collect()
    }

    fn known(&self, minutes: &[Minute]) {
        let mut counts = self.counts();
        for minute in minutes {
            if let Some(count) = counts.get_mut(&(minute.subscription, minute.number)) {
                count.written = minute.tally.attempts();
            }
        }
    }

    async fn write(&self, insight: &dyn Insight) -> store::Result<()> {
        let mut news = self.news(Instant::now());
        // In the order of the store's key.
        news.sort_unstable_by_key(|minute| (minute.subscription, minute.number));
        for some in news.chunks(AT_ONCE) {
            insight.write_minutes(self.counter, some).await?;
            self.known(some);
        }
        Ok(())
    }
}

fn add(
    counts: &mut HashMap<(SubscriptionId, i64), Count>,
    key: (SubscriptionId, i64),
    failure: Option<FailureKind>,
    duration: Duration,
    now: Instant,
) {
    if counts.len() >= MOST && !counts.contains_key(&key) {
        telemetry::attempts_uncounted().increment(1);
        return;
    }
    let count = counts.entry(key).or_default();
    count.tally.add(failure, duration);
    let last = if failure.is_none() {
        &mut count.last_success
    } else {
        &mut count.last_failure
    };
    *last = Some(now);
}

/// The circuits that the store was told of, and as whose.
#[derive(Debug, Default)]
struct Circuits {
    worker: Option<WorkerId>,
    told: HashMap<SubscriptionId, OpenedCircuit>,
}

impl Circuits {
    /// Tells the store what has changed: nothing, while no circuit opens or closes and no probe fails.
    async fn write(
        &mut self,
        insight: &dyn Insight,
        worker: WorkerId,
        open: Vec<OpenedCircuit>,
    ) -> store::Result<()> {
        if let Some(former) = self.worker.filter(|former| *former != worker) {
            // They are told anew as of the new lease.
            let told: Vec<SubscriptionId> = self.told.keys().copied().collect();
            if !told.is_empty() {
                insight.write_circuits(former, &[], &told).await?;
            }
            self.told.clear();
        }
        self.worker = Some(worker);
        let now = Instant::now();
        let open: HashMap<SubscriptionId, OpenedCircuit> = open
            .into_iter()
            .map(|circuit| (circuit.subscription, circuit))
            .collect();
        let changed = open
            .values()
            .filter(|circuit| self.told.get(&circuit.subscription) != Some(circuit));
        let changed: Vec<OpenCircuit> = changed
            .map(|circuit| OpenCircuit {
                subscription: circuit.subscription,
                open_for: now.duration_since(circuit.since),
                next_probe_in: circuit.next_probe.saturating_duration_since(now),
            })
            .collect();
        let closed = self
            .told
            .keys()
            .filter(|subscription| !open.contains_key(subscription));
        let closed: Vec<SubscriptionId> = closed.copied().collect();
        if changed.is_empty() && closed.is_empty() {
            return Ok(());
        }
        for some in changed.chunks(AT_ONCE) {
            insight.write_circuits(worker, some, &[]).await?;
        }
        if !closed.is_empty() {
            insight.write_circuits(worker, &[], &closed).await?;
        }
        self.told = open;
        Ok(())
    }
}

/// Writes what has changed, until all outcomes are recorded; then once more.
pub async fn write(
    statistics: Arc<Statistics>,
    store: Store,
    lease: Arc<Lease>,
    dispatch: Arc<Dispatch>,
    recorded: CancellationToken,
) -> anyhow::Result<()> {
    let mut circuits = Circuits::default();
    let mut every = tokio::time::interval(WRITE);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let insight = &*store.insight;
    loop {
        tokio::select! {
            () = recorded.cancelled() => break,
            _ = every.tick() => {}
        }
        let open = dispatch.lanes().opened_circuits();
        let worker = lease.current().worker();
        if let Err(error) = circuits.write(insight, worker, open).await {
            tracing::debug!(%error, "the store could not be told which circuits are open");
        }
        if let Err(error) = statistics.write(insight).await {
            tracing::debug!(%error, "what was counted has to wait");
        }
    }
    let last = tokio::time::timeout(LAST_WRITE, statistics.write(insight)).await;
    if !matches!(last, Ok(Ok(()))) {
        tracing::debug!("the last counts are not written down");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real_store::RealStore;

    const OK: Option<FailureKind> = None;

    fn count(
        statistics: &Statistics,
        subscription: SubscriptionId,
        failure: Option<FailureKind>,
        at: Instant,
    ) {
        let key = (subscription, statistics.minute(at));
        add(
            &mut statistics.counts(),
            key,
            failure,
            Duration::from_millis(4),
            at,
        );
    }

    #[tokio::test]
    async fn whole_counts_are_written_while_they_grow() {
        let real = RealStore::open().await;
        let (statistics, now) = (Statistics::new(), Instant::now());
        let insight = &*real.store.insight;
        let subscription = SubscriptionId::new();
        let told = async || {
            statistics.write(insight).await.unwrap();
            insight.subscription_stats(subscription).await.unwrap().tally
        };
        count(&statistics, subscription, OK, now);
        assert_eq!(told().await.attempts(), 1);
        assert!(statistics.news(now).is_empty(), "it is known");
        count(&statistics, subscription, OK, now);
        count(&statistics, subscription, Some(FailureKind::Dns), now);
        let tally = told().await;
        assert_eq!((tally.succeeded(), tally.failed()), (2, 1));
        // A minute that is over is forgotten once it is known, and not before.
        let next = now + Duration::from_mins(1);
        count(&statistics, subscription, OK, next);
        assert_eq!(statistics.news(next).len(), 1);
        assert_eq!(statistics.counts().len(), 1);
        assert_eq!(told().await.attempts(), 4);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_kept_for_an_hour_and_within_bounds() {
        let (statistics, now) = (Statistics::new(), Instant::now());
        for _ in 0..=MOST {
            count(&statistics, SubscriptionId::new(), OK, now);
        }
        assert_eq!(statistics.news(now).len(), MOST);
        let minutes = |minutes| now + Duration::from_mins(minutes);
        assert_eq!(statistics.news(minutes(59)).len(), MOST);
        assert!(statistics.news(minutes(61)).is_empty());
        assert!(statistics.counts().is_empty());
    }

    #[tokio::test]
    async fn circuits_are_told_as_they_change_and_anew_by_another_lease() {
        let real = RealStore::open().await;
        let (store, now) = (real.store.clone(), Instant::now());
        let [mine, later] = [WorkerId::new(), WorkerId::new()];
        for worker in [mine, later] {
            store
                .deliveries
                .enlist(worker, Duration::from_hours(1))
                .await
                .unwrap();
        }
        let mut circuits = Circuits::default();
        let [one, other] = [SubscriptionId::new(), SubscriptionId::new()];
        let open = |subscription| OpenedCircuit {
            subscription,
            since: now,
            next_probe: now + Duration::from_mins(1),
        };
        let workers = async |subscription| {
            let stats = store.insight.subscription_stats(subscription).await.unwrap();
            stats.circuit.map_or(0, |circuit| circuit.workers)
        };
        circuits
            .write(&*store.insight, mine, vec![open(one), open(other)])
            .await
            .unwrap();
        assert_eq!((workers(one).await, workers(other).await), (1, 1));
        circuits
            .write(&*store.insight, mine, vec![open(one)])
            .await
            .unwrap();
        assert_eq!((workers(one).await, workers(other).await), (1, 0));
        // The former lease lives on for a while; it is one worker all the same.
        circuits
            .write(&*store.insight, later, vec![open(one)])
            .await
            .unwrap();
        assert_eq!(workers(one).await, 1);
        circuits.write(&*store.insight, later, Vec::new()).await.unwrap();
        assert_eq!(workers(one).await, 0);
    }
}
