//! The worker: consume, deduplicate, persist, fan out, push with retry and backoff.
//!
//! Frames come out of the queue into the store ([`intake`]); deliveries that found room go straight on into
//! lanes ([`lane`], [`dispatch`]), others are fed back from the store ([`scheduler`]); each attempt ([`attempt`]) ends in
//! an outcome that is written down with many others ([`outcome`]). Any number of workers run at once: what one holds is
//! its own for as long as its [`lease`] lives.

mod attempt;
mod dispatch;
mod intake;
mod keep;
mod lane;
mod lease;
mod outbound;
mod outcome;
mod registry;
mod scheduler;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use shared::{
    config::WorkerArgs,
    engine::Engine,
    guard::TargetPolicy,
    http::ops::{ReadyCheck, StoreReady},
    lifecycle::Lifecycle,
    queue::{DynQueue, SourceLane},
    store::{self, Change, Store},
    telemetry,
};
use tokio::{sync::broadcast::error::RecvError, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::Dispatch,
    intake::Intake,
    lane::{Bounds, Lanes},
    lease::Lease,
    registry::Registry,
    scheduler::Scheduler,
};

/// How often the subscriptions that have a lane are read anew, whatever word has come.
const POLL: Duration = Duration::from_secs(1);

/// Starts a worker; it drains and ends with the lifecycle.
pub fn start(
    engine: &Engine,
    policy: TargetPolicy,
    args: &WorkerArgs,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    let store = engine.store.clone();
    let lease = Arc::new(Lease::new());
    let registry = Arc::new(Registry::new(store.clone(), Arc::clone(&engine.sealer)));
    let client = outbound::client(Arc::new(policy))?;
    let (ended_sender, ended) = outcome::channel();
    let (wake, words) = scheduler::wake();
    let bounds = Bounds {
        in_flight: args.max_attempts as usize,
        ..Bounds::default()
    };
    let dispatch = Dispatch::new(
        Lanes::new(bounds),
        Arc::clone(&lease),
        Arc::clone(&registry),
        client,
        store.clone(),
        ended_sender,
        wake.clone(),
    );
    let (soft, drained, recorded) = (
        lifecycle.soft.clone(),
        CancellationToken::new(),
        CancellationToken::new(),
    );

    let recording = outcome::record(store.clone(), ended, wake.clone(), drained.clone());
    let all_recorded = recorded.clone();
    lifecycle.critical("outcomes", async move {
        let result = recording.await;
        all_recorded.cancel();
        result
    });
    let intake = Intake {
        queue: Arc::clone(&engine.queue),
        store: store.clone(),
        registry: Arc::clone(&registry),
        dispatch: Arc::clone(&dispatch),
        lease: Arc::clone(&lease),
    };
    let holding = hold(
        Arc::clone(&lease),
        Arc::clone(&dispatch),
        store.clone(),
        soft.clone(),
        recorded,
    );
    // Nothing is taken before there is a lease to hold it by.
    let (scheduler_lease, scheduler_registry) = (Arc::clone(&lease), Arc::clone(&registry));
    let (starting, starting_store, starting_dispatch) =
        (lifecycle.clone(), store.clone(), Arc::clone(&dispatch));
    lifecycle.critical("lease", async move {
        if !enlisted(&scheduler_lease, &starting_store, &starting.soft).await {
            return Ok(());
        }
        let scheduler = Scheduler {
            dispatch: Arc::clone(&starting_dispatch),
            lease: scheduler_lease,
            registry: scheduler_registry,
            store: starting_store,
            words,
        };
        starting.critical("scheduler", scheduler.run(starting.soft.clone()));
        starting.critical(
            "intake",
            intake.clone().run(SourceLane::Main, starting.soft.clone()),
        );
        starting.critical(
            "intake of dead frames",
            intake.run(SourceLane::Dead, starting.soft.clone()),
        );
        holding.await
    });
    lifecycle.critical(
        "changes",
        heed_changes(registry, Arc::clone(&dispatch), wake, store.clone(), soft.clone()),
    );
    lifecycle.critical("attempts", {
        let soft = soft.clone();
        async move {
            soft.cancelled().await;
            dispatch.finish().await;
            drained.cancel();
            Ok(())
        }
    });
    let retention = Duration::from_secs(u64::from(args.retention_days) * 24 * 3600);
    lifecycle.critical("retention", keep::keep(store.clone(), retention, soft.clone()));
    lifecycle.critical("cancelling", keep::cancel(store.clone(), soft.clone()));
    lifecycle.critical("gauges", keep::gauges(store, Arc::clone(&engine.queue), soft));
    Ok(())
}

/// Takes a lease, however long that takes; `false` if the worker is to stop first.
async fn enlisted(lease: &Lease, store: &Store, soft: &CancellationToken) -> bool {
    loop {
        tokio::select! {
            () = soft.cancelled() => return false,
            enlisted = lease.enlist(&*store.deliveries) => match enlisted {
                Ok(worker) => {
                    tracing::info!(worker.id = %worker, "the worker is enlisted");
                    return true;
                }
                Err(error) => tracing::warn!(%error, "the worker waits for the store"),
            },
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Renews the lease until everything is recorded, then resigns.
async fn hold(
    lease: Arc<Lease>,
    dispatch: Arc<Dispatch>,
    store: Store,
    soft: CancellationToken,
    recorded: CancellationToken,
) -> anyhow::Result<()> {
    let mut every = tokio::time::interval_at(Instant::now() + lease::RENEWAL, lease::RENEWAL);
    loop {
        tokio::select! {
            () = recorded.cancelled() => break,
            _ = every.tick() => {}
        }
        match lease.renew(&*store.deliveries).await {
            Ok(store::Lease::Held) => {}
            Ok(store::Lease::Lost) => {
                telemetry::lease_lost().increment(1);
                tracing::warn!(worker.id = %lease.worker(), "the lease ran out: others may have taken what this worker held");
                if soft.is_cancelled() {
                    continue;
                }
                match lease.enlist(&*store.deliveries).await {
                    Ok(worker) => {
                        dispatch.lanes().keep_held_by(worker);
                        tracing::info!(worker.id = %worker, "the worker is enlisted anew");
                    }
                    Err(error) => tracing::warn!(%error, "the worker waits for the store"),
                }
            }
            Err(error) => tracing::warn!(%error, "the lease could not be renewed"),
        }
    }
    // If this fails the lease runs out by itself.
    if let Err(error) = store.deliveries.resign(lease.worker()).await {
        tracing::warn!(%error, "the worker could not resign");
    }
    Ok(())
}

/// Acts on word of changes, and looks by itself every second.
async fn heed_changes(
    registry: Arc<Registry>,
    dispatch: Arc<Dispatch>,
    wake: scheduler::Wake,
    store: Store,
    soft: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = store.keeper.changes();
    let mut poll = tokio::time::interval(POLL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let change = tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = poll.tick() => Change::Everything,
            change = changes.recv() => match change {
                Ok(change) => change,
                Err(RecvError::Lagged(_)) => Change::Everything,
                // The store is being closed.
                Err(RecvError::Closed) => return Ok(()),
            },
        };
        let subscriptions = match change {
            Change::Closed(event) => {
                dispatch.lanes().drain_event(event);
                continue;
            }
            Change::Subscription(subscription) => vec![subscription],
            Change::Everything => dispatch.lanes().subscriptions(),
        };
        if let Err(error) = registry.refresh(&subscriptions).await {
            tracing::debug!(%error, "subscriptions could not be read anew");
            continue;
        }
        for subscription in subscriptions {
            match registry.route(subscription).await {
                Ok(registry::Found::Enabled(route)) => {
                    let max_in_flight = usize::from(route.push.max_in_flight.get());
                    dispatch.lanes().set_max_in_flight(subscription, max_in_flight);
                    if matches!(change, Change::Subscription(_)) {
                        wake.feed(subscription);
                    }
                }
                Ok(registry::Found::Disabled | registry::Found::Gone) => {
                    let parked = dispatch.lanes().drain(subscription);
                    dispatch.give_back(parked).await;
                }
                Err(_) => {}
            }
        }
        dispatch.pump();
    }
}

/// What a worker cannot do its work without.
pub fn ready_checks(engine: &Engine) -> [Box<dyn ReadyCheck>; 2] {
    [
        Box::new(QueueReady(Arc::clone(&engine.queue))),
        Box::new(StoreReady(engine.store.clone())),
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
