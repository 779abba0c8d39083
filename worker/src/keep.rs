//! What must be done now and then: retention, partitions, deleted subscriptions, and the gauges that the store and the
//! queue are asked for.

use std::{sync::Arc, time::Duration};

use shared::{
    Timestamp,
    queue::DynQueue,
    store::{BacklogAge, Fleet, Retention, Store, SuccessBand},
    telemetry::{self, Circuit, Open},
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::intake::Progress;

/// How often retention and partitions are seen to.
const KEEP: Duration = Duration::from_mins(5);
/// How often deleted subscriptions are.
const CANCEL: Duration = Duration::from_secs(5);
/// How often erasures of what was not stored are looked at, and how many at once.
const ERASE: Duration = Duration::from_secs(2);
const ERASURES: u32 = 100;
/// How often the gauges are read.
const GAUGES: Duration = Duration::from_secs(5);
/// How often subscriptions are looked over for their gauges.
const FLEET: Duration = Duration::from_secs(15);

/// Retention and partitions, until the soft signal.
pub async fn keep(store: Store, retention: Duration, soft: CancellationToken) -> anyhow::Result<()> {
    let mut every = interval(KEEP);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = every.tick() => {}
        }
        match store.keeper.keep(retention).await {
            Ok(done) => {
                telemetry::expired().increment(done.expired);
                telemetry::set_aside_expired().increment(done.set_aside_removed);
                if done != Retention::default() {
                    tracing::info!(
                        deliveries.expired = done.expired,
                        removed = done.removed,
                        removed_early = done.removed_early,
                        set_aside.removed = done.set_aside_removed,
                        "retention"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "retention has to wait"),
        }
    }
}

/// Entries of the audit log that are older than this, until the soft signal.
pub async fn audit_log(store: Store, kept: Duration, soft: CancellationToken) -> anyhow::Result<()> {
    let mut every = interval(KEEP);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = every.tick() => {}
        }
        while !soft.is_cancelled() {
            match store.audit_log.forget_audit_entries(kept).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "old entries of the audit log have to wait");
                    break;
                }
            }
        }
    }
}

/// Open deliveries of deleted subscriptions, until the soft signal.
pub async fn cancel(store: Store, soft: CancellationToken) -> anyhow::Result<()> {
    let mut every = interval(CANCEL);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = every.tick() => {}
        }
        while !soft.is_cancelled() {
            match store.keeper.cancel_deleted().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::debug!(%error, "deliveries of deleted subscriptions have to wait");
                    break;
                }
            }
        }
    }
}

/// Erasures of what was not stored when they were asked for, until the soft signal.
pub async fn erase(store: Store, soft: CancellationToken) -> anyhow::Result<()> {
    let mut every = interval(ERASE);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = every.tick() => {}
        }
        match store.erasures.settle_erasures(ERASURES).await {
            Ok(0) => {}
            Ok(settled) => tracing::info!(settled, "events were erased that came after that was asked"),
            Err(error) => tracing::debug!(%error, "erasures have to wait"),
        }
    }
}

/// Gauges, until the soft signal.
#[expect(clippy::cast_precision_loss, reason = "gauges")]
pub async fn gauges(
    store: Store,
    queue: DynQueue,
    progress: Arc<Progress>,
    soft: CancellationToken,
) -> anyhow::Result<()> {
    let mut every = interval(GAUGES);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = every.tick() => {}
        }
        match queue.depth().await {
            Ok(depth) => {
                telemetry::queue_frames().set(depth.frames as f64);
                telemetry::queue_dead_frames().set(depth.dead as f64);
                let newest = progress.newest().filter(|_| depth.frames + depth.dead > 0);
                let age = newest.map_or(Duration::ZERO, |newest| Timestamp::now().since(newest));
                telemetry::queue_age().set(age.as_secs_f64());
            }
            Err(error) => tracing::debug!(%error, "the queue does not say how full it is"),
        }
        match store.deliveries.backlog().await {
            Ok(backlog) => {
                telemetry::backlog(Open::Pending).set(backlog.pending as f64);
                telemetry::backlog(Open::Retrying).set(backlog.retrying as f64);
                telemetry::backlog(Open::Parked).set(backlog.parked as f64);
                telemetry::backlog_oldest().set(backlog.oldest_due.as_secs_f64());
            }
            Err(error) => tracing::debug!(%error, "the store does not say what is open"),
        }
        if let Ok(count) = store.events.count_set_aside().await {
            telemetry::set_aside_now().set(count as f64);
        }
    }
}

/// Gauges of how subscriptions fare, all together, until the soft signal.
pub async fn fleet(store: Store, soft: CancellationToken) -> anyhow::Result<()> {
    let mut every = interval(FLEET);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = every.tick() => {}
        }
        match store.insight.fleet().await {
            Ok(fleet) => show(&fleet),
            Err(error) => tracing::debug!(%error, "the store does not say how subscriptions fare"),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges")]
fn show(fleet: &Fleet) {
    let closed = fleet.subscriptions.saturating_sub(fleet.open + fleet.half_open);
    for (circuit, count) in [
        (Circuit::Closed, closed),
        (Circuit::Open, fleet.open),
        (Circuit::HalfOpen, fleet.half_open),
    ] {
        telemetry::subscriptions(circuit).set(count as f64);
    }
    for (band, count) in SuccessBand::ALL.into_iter().zip(fleet.by_success) {
        telemetry::subscriptions_by_success(band).set(count as f64);
    }
    for (age, count) in BacklogAge::ALL.into_iter().zip(fleet.backlogged) {
        telemetry::subscriptions_backlogged(age).set(count as f64);
    }
    telemetry::oldest_undelivered().set(fleet.oldest_undelivered.as_secs_f64());
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
