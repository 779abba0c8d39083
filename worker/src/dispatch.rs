//! From lanes to attempts to outcomes.
//!
//! Whoever puts a delivery into a lane, or frees a place in one, starts what can be started: there is no task between a
//! committed intake and its first attempt. Attempts are a bounded pool; each has its place in the outcome channel
//! before it begins, so that nothing waits once it is sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::{DeliveryKey, SubscriptionId, delivery::AttemptOutcome, store::Store, telemetry};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::{
    attempt::attempt,
    lane::{Job, Lanes},
    lease::{Holding, Lease},
    outbound::Outbound,
    registry::{Found, Registry, Route},
    scheduler::Wake,
};

/// How long a delivery may wait in its lane before the store is asked whether it is still to be sent.
const RECHECK: std::time::Duration = std::time::Duration::from_secs(2);

/// An outcome on its way to the store, with what the metrics want to know.
#[derive(Debug)]
pub struct Ended {
    /// What came of the attempt.
    pub outcome: AttemptOutcome,
    /// Which version of the subscription was sent to.
    pub version: i64,
    /// By which lease it was made: it lives at least until the outcome is written down.
    pub holding: Arc<Holding>,
    /// When the front took the event.
    pub received_at: shared::Timestamp,
}

/// Lanes and what they are emptied by.
pub struct Dispatch {
    lanes: Mutex<Lanes>,
    lease: Arc<Lease>,
    registry: Arc<Registry>,
    client: Outbound,
    store: Store,
    outcomes: mpsc::Sender<Ended>,
    wake: Wake,
    attempts: TaskTracker,
}

/// What became of a delivery at the moment of sending.
enum Before {
    Send(Arc<Route>),
    /// It is not this worker's any more, or was closed.
    NotOurs,
    /// Its subscription is disabled or gone, or the store cannot say: it goes back as it was.
    GiveBack,
}

impl Dispatch {
    /// With nothing to send yet.
    pub fn new(
        lanes: Lanes,
        lease: Arc<Lease>,
        registry: Arc<Registry>,
        client: Outbound,
        store: Store,
        outcomes: mpsc::Sender<Ended>,
        wake: Wake,
    ) -> Arc<Self> {
        let attempts = TaskTracker::new();
        Arc::new(Self {
            lanes: Mutex::new(lanes),
            lease,
            registry,
            client,
            store,
            outcomes,
            wake,
            attempts,
        })
    }

    /// The lanes, for a moment: nothing may be awaited meanwhile.
    pub fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts deliveries, for which room was reserved, into their lanes, and starts what can be started.
    pub fn push(self: &Arc<Self>, jobs: impl IntoIterator<Item = Job>) {
        let mut lanes = self.lanes();
        for job in jobs {
            lanes.push(job);
        }
        self.start(lanes);
    }

    /// Starts what can be started.
    pub fn pump(self: &Arc<Self>) {
        self.start(self.lanes());
    }

    fn start(self: &Arc<Self>, mut lanes: MutexGuard<'_, Lanes>) {
        while let Some(job) = lanes.next() {
            let dispatch = Arc::clone(self);
            self.attempts.spawn(async move { dispatch.attempt(job).await });
        }
        #[expect(clippy::cast_precision_loss, reason = "a gauge of some thousands")]
        {
            let (busy, waiting, in_flight) = lanes.load();
            telemetry::lanes_busy().set(busy as f64);
            telemetry::lane_deliveries().set(waiting as f64);
            telemetry::attempts_in_flight().set(in_flight as f64);
        }
    }

    async fn attempt(self: Arc<Self>, job: Job) {
        let subscription = job.key.subscription;
        // Freed on every way out, a panic included.
        let place = Place {
            dispatch: Arc::clone(&self),
            subscription,
            weight: job.weight(),
        };
        let Ok(permit) = self.outcomes.reserve().await else {
            return;
        };
        match self.before(&job).await {
            Before::Send(route) => {
                let (holding, received_at) = (Arc::clone(&job.holding), job.event.received_at);
                let (event, version) = (job.key.event, route.subscription.version);
                let outcome = attempt(&self.client, &route, job).await;
                tracing::debug!(
                    event.id = %event, subscription.id = %subscription, attempt = outcome.number,
                    duration_ms = u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX),
                    result = ?outcome.result, "attempt"
                );
                permit.send(Ended {
                    outcome,
                    version,
                    holding,
                    received_at,
                });
                drop(place);
            }
            Before::NotOurs => {
                tracing::debug!(event.id = %job.key.event, subscription.id = %subscription, "closed or taken meanwhile");
            }
            Before::GiveBack => self.give_back(vec![job]).await,
        }
    }

    async fn before(&self, job: &Job) -> Before {
        if !job.holding.is_live() {
            // By the store's clock it may live yet, and be renewed: nobody else would send this then.
            self.lease.doubt();
            return Before::NotOurs;
        }
        if job.since.elapsed() > RECHECK {
            match self
                .store
                .deliveries
                .still_held(job.holding.worker(), &[job.key])
                .await
            {
                Ok(held) if held.contains(&job.key) => {}
                Ok(_) => return Before::NotOurs,
                Err(error) => {
                    tracing::debug!(%error, event.id = %job.key.event, "the store cannot say whether to send");
                    return Before::GiveBack;
                }
            }
        }
        match self.registry.route(job.key.subscription).await {
            Ok(Found::Enabled(route)) => Before::Send(route),
            Ok(Found::Disabled | Found::Gone) | Err(_) => Before::GiveBack,
        }
    }

    /// Gives deliveries back to the store. If that fails they stay held until the lease by which they are ends.
    pub async fn give_back(&self, jobs: Vec<Job>) {
        for same in jobs.chunk_by(|one, other| one.holding.worker() == other.holding.worker()) {
            let keys: Vec<DeliveryKey> = same.iter().map(|job| job.key).collect();
            for some in keys.chunks(500) {
                if let Err(error) = self
                    .store
                    .deliveries
                    .release(same[0].holding.worker(), some)
                    .await
                {
                    tracing::warn!(%error, "deliveries could not be given back; a new lease frees them");
                    self.lease.doubt();
                }
            }
        }
    }

    /// Sends nothing more, and waits for the attempts under way.
    pub async fn finish(&self) {
        self.lanes().close();
        self.attempts.close();
        self.attempts.wait().await;
    }
}

/// An attempt's place in its lane and in the pool.
struct Place {
    dispatch: Arc<Dispatch>,
    subscription: SubscriptionId,
    weight: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Its delivery is forgotten, and still held.
            self.dispatch.lease.doubt();
        }
        let mut lanes = self.dispatch.lanes();
        if lanes.finished(self.subscription, self.weight) {
            self.dispatch.wake.feed(self.subscription);
        }
        self.dispatch.start(lanes);
    }
}
