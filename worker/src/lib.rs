//! The worker: consume, deduplicate, persist, fan out, push with retry and backoff.
//!
//! Frames come out of the queue into the store ([`intake`]); deliveries that found room go straight on into
//! lanes ([`lane`], [`dispatch`]), others are fed back from the store ([`scheduler`]); each attempt ([`attempt`]) ends in
//! an outcome that is written down with many others ([`outcome`]). Any number of workers run at once: what one holds is
//! its own for as long as its [`lease`] lives.

mod announcing;
mod attempt;
mod awaited;
mod changes;
mod dispatch;
mod envelope;
mod failing;
mod intake;
mod keep;
mod lane;
mod lease;
mod outbound;
mod outcome;
mod ownership;
mod pauses;
#[cfg(test)]
mod real_store;
mod registry;
mod remove;
mod replay;
mod retry_after;
mod rounds;
mod scheduler;
#[cfg(test)]
mod simulated;
mod statistics;

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use shared::{
    SubscriptionId,
    config::WorkerArgs,
    engine::Engine,
    http::ops::{ReadyCheck, SecretKeyReady, StoreReady},
    lifecycle::Lifecycle,
    queue::{DynQueue, SourceLane},
    store::{self, Store},
    telemetry,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub use crate::outbound::Outbound;
use crate::{
    awaited::Awaited,
    changes::Changes,
    dispatch::Dispatch,
    failing::Failing,
    intake::{Intake, Progress},
    lane::{Bounds, Lanes},
    lease::{Lease, Renewed},
    ownership::Ownership,
    registry::Registry,
    scheduler::Scheduler,
    statistics::Statistics,
};

/// Starts a worker; it drains and ends with the lifecycle.
pub fn start(
    engine: &Engine,
    client: Outbound,
    args: &WorkerArgs,
    retention: Duration,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    let bounds = Bounds {
        in_flight: args.max_attempts as usize,
        ..Bounds::default()
    };
    let times = Times {
        retention,
        disable_after: Duration::from_secs(u64::from(args.disable_after_seconds)),
    };
    let (store, soft) = (engine.store.clone(), lifecycle.soft.clone());
    lifecycle.critical("retention", keep::keep(store.clone(), retention, soft.clone()));
    lifecycle.critical("cancelling", keep::cancel(store.clone(), soft.clone()));
    lifecycle.critical("erasures", keep::erase(store.clone(), soft.clone()));
    let audit_log = Duration::from_hours(24 * u64::from(args.audit_log_days));
    lifecycle.critical(
        "audit log",
        keep::audit_log(store.clone(), audit_log, soft.clone()),
    );
    lifecycle.critical("removals", remove::remove(store.clone(), soft.clone()));
    lifecycle.critical("replays", replay::replay(store, soft));
    let (engine, starting) = (engine.clone(), lifecycle.clone());
    lifecycle.critical("worker", async move {
        // Nothing is taken before there is a lease to hold it by.
        match enlisted(&engine.store, &starting.soft).await {
            Some((lease, ownership)) => {
                let lanes = Lanes::new(bounds);
                work(&engine, lease, ownership, lanes, client, times, &starting).await
            }
            None => Ok(()),
        }
    });
    Ok(())
}

/// How long things are kept up.
#[derive(Debug, Clone, Copy)]
struct Times {
    retention: Duration,
    /// How long a subscription may fail without one success.
    disable_after: Duration,
}

/// Starts what a worker consists of, and keeps its lease until all of it has drained.
async fn work(
    engine: &Engine,
    lease: Arc<Lease>,
    ownership: Arc<Ownership>,
    lanes: Lanes,
    client: Outbound,
    times: Times,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    let (store, soft) = (engine.store.clone(), lifecycle.soft.clone());
    let registry = Arc::new(Registry::new(store.clone(), Arc::clone(&engine.sealer)));
    let (ended_sender, ended) = outcome::channel();
    let (wake, words) = scheduler::wake();
    let dispatch = Dispatch::new(
        lanes,
        Arc::clone(&lease),
        Arc::clone(&registry),
        client,
        store.clone(),
        ended_sender,
        wake.clone(),
    );
    // Before anything is sent: whoever asked the worker before to wait meant this one, too.
    pauses::heed(&store, &dispatch).await;
    let (drained, recorded) = (CancellationToken::new(), CancellationToken::new());
    let told = outcome::Told {
        failing: Failing::new(times.disable_after),
        statistics: keep_statistics(lifecycle, &store, &lease, &dispatch, &recorded),
    };
    let recording = outcome::record(
        store.clone(),
        ended,
        wake.clone(),
        Arc::clone(&lease),
        Arc::clone(&dispatch),
        told,
        drained.clone(),
    );
    let all_recorded = recorded.clone().drop_guard();
    lifecycle.critical("outcomes", async move {
        let _all_recorded = all_recorded;
        recording.await
    });
    let scheduler = Scheduler {
        dispatch: Arc::clone(&dispatch),
        lease: Arc::clone(&lease),
        registry: Arc::clone(&registry),
        ownership: Arc::clone(&ownership),
        store: store.clone(),
        words,
    };
    lifecycle.critical("scheduler", scheduler.run(soft.clone()));
    let looking_over = Arc::clone(&ownership).look_over(Arc::clone(&dispatch), soft.clone());
    lifecycle.critical("ownership", looking_over);
    let progress = Arc::new(Progress::default());
    let gauges = keep::gauges(
        store.clone(),
        Arc::clone(&engine.queue),
        Arc::clone(&progress),
        soft.clone(),
    );
    lifecycle.critical("gauges", gauges);
    lifecycle.critical(
        "gauges of subscriptions",
        keep::fleet(store.clone(), soft.clone()),
    );
    let awaited = Arc::new(Awaited::default());
    let intake = Intake {
        queue: Arc::clone(&engine.queue),
        store: store.clone(),
        registry: Arc::clone(&registry),
        filters: Arc::default(),
        dispatch: Arc::clone(&dispatch),
        ownership: Arc::clone(&ownership),
        awaited: Arc::clone(&awaited),
        wake: wake.clone(),
        lease: Arc::clone(&lease),
        progress: Arc::clone(&progress),
        retention: times.retention,
    };
    lifecycle.critical("announcements", announcing::take_in(intake.clone(), soft.clone()));
    lifecycle.critical("test pushes", intake.clone().take_tests(soft.clone()));
    lifecycle.critical("intake", intake.clone().run(SourceLane::Main, soft.clone()));
    lifecycle.critical(
        "intake of dead frames",
        intake.run(SourceLane::Dead, soft.clone()),
    );
    let owning = Arc::clone(&ownership);
    let changes = Changes {
        registry,
        ownership,
        awaited,
        dispatch: Arc::clone(&dispatch),
        wake,
        store: store.clone(),
    };
    lifecycle.critical("changes", changes.heed(store.keeper.changes(), soft.clone()));
    let finishing = finish(Arc::clone(&dispatch), Arc::clone(&owning), soft, drained);
    lifecycle.critical("attempts", finishing);
    hold(&lease, &owning, &dispatch, &store, recorded).await;
    Ok(())
}

/// Once the worker is told to stop: leaves to others what it can, while the last attempts end.
async fn finish(
    dispatch: Arc<Dispatch>,
    ownership: Arc<Ownership>,
    soft: CancellationToken,
    drained: CancellationToken,
) -> anyhow::Result<()> {
    soft.cancelled().await;
    tokio::select! {
        () = dispatch.finish() => {}
        never = ownership.leave(&dispatch) => match never {},
    }
    drained.cancel();
    Ok(())
}

/// Counts of attempts, which a task writes down until all are `recorded`.
fn keep_statistics(
    lifecycle: &Lifecycle,
    store: &Store,
    lease: &Arc<Lease>,
    dispatch: &Arc<Dispatch>,
    recorded: &CancellationToken,
) -> Arc<Statistics> {
    let statistics = Statistics::new();
    let writing = statistics::write(
        Arc::clone(&statistics),
        store.clone(),
        Arc::clone(lease),
        Arc::clone(dispatch),
        recorded.clone(),
    );
    lifecycle.critical("statistics", writing);
    statistics
}

/// Takes a lease, however long that takes; `None` if the worker is to stop first.
async fn enlisted(store: &Store, soft: &CancellationToken) -> Option<(Arc<Lease>, Arc<Ownership>)> {
    let enlist = async || {
        let lease = Arc::new(Lease::enlist(&*store.deliveries).await?);
        let ownership = Ownership::begin(store.clone(), Arc::clone(&lease)).await?;
        Ok::<_, store::StoreError>((lease, Arc::new(ownership)))
    };
    loop {
        tokio::select! {
            () = soft.cancelled() => return None,
            enlisted = enlist() => match enlisted {
                Ok(enlisted) => return Some(enlisted),
                Err(error) => tracing::warn!(%error, "the worker waits for the store"),
            },
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Renews the lease until everything is recorded, then resigns.
async fn hold(
    lease: &Lease,
    ownership: &Ownership,
    dispatch: &Arc<Dispatch>,
    store: &Store,
    recorded: CancellationToken,
) {
    let mut every = tokio::time::interval_at(Instant::now() + lease::RENEWAL, lease::RENEWAL);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = recorded.cancelled() => break,
            _ = every.tick() => {}
        }
        renew(lease, ownership, dispatch, store).await;
    }
    // If this fails the lease runs out by itself.
    if let Err(error) = lease.resign(&*store.deliveries).await {
        tracing::warn!(%error, "the worker could not resign");
    }
}

/// Renews the lease, and sees to what follows from that. Whatever there is to be given back, the next renewal does not wait for it: the
/// lease would run out.
async fn renew(lease: &Lease, ownership: &Ownership, dispatch: &Arc<Dispatch>, store: &Store) {
    let renewed = lease.renew(&*store.deliveries).await;
    match &renewed {
        Ok(Renewed::Same) => {}
        Ok(Renewed::Anew) => {
            tracing::info!("a call's outcome was in doubt: what it may have taken is freed");
        }
        Ok(Renewed::AfterLoss) => {
            telemetry::lease_lost().increment(1);
            tracing::warn!("the lease ran out: others may have taken what this worker held");
        }
        Err(error) => tracing::warn!(%error, "the lease could not be renewed"),
    }
    let mut hungry: HashSet<SubscriptionId> = HashSet::new();
    if matches!(renewed, Ok(Renewed::Anew | Renewed::AfterLoss)) {
        let dropped = dispatch.lanes().keep_held_by(lease.current().worker());
        if matches!(renewed, Ok(Renewed::Anew)) {
            // They are known: they need not wait for the old lease to end.
            dispatch.give_back_and_feed(dropped);
        } else {
            hungry.extend(dropped.iter().map(|job| job.key.subscription));
        }
    }
    match ownership.take_along().await {
        Ok(lanes) => hungry.extend(lanes),
        Err(error) => {
            tracing::debug!(%error, "lanes could not be taken along; the next renewal tries again");
        }
    }
    dispatch.feed(hungry);
}

/// What a worker cannot do its work without.
pub fn ready_checks(engine: &Engine) -> [Box<dyn ReadyCheck>; 3] {
    let (store, sealer) = (engine.store.clone(), Arc::clone(&engine.sealer));
    [
        Box::new(QueueReady(Arc::clone(&engine.queue))),
        Box::new(StoreReady(engine.store.clone())),
        Box::new(SecretKeyReady::new(store, sealer)),
    ]
}

/// Ready while the queue answers.
struct QueueReady(DynQueue);

#[async_trait]
impl ReadyCheck for QueueReady {
    fn name(&self) -> &'static str {
        "queue"
    }

    async fn check(&self) -> Result<(), &'static str> {
        self.0
            .depth()
            .await
            .map(drop)
            .map_err(|_| "the queue cannot be reached")
    }
}
