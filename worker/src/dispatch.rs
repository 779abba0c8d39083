//! From lanes to attempts to outcomes.
//!
//! Whoever puts a delivery into a lane, or frees a place in one, starts what can be started: there is no task between a
//! committed intake and its first attempt. Attempts are a bounded pool; each has its place in the outcome channel
//! before it begins, so that nothing waits once it is sent.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    DeliveryKey, SubscriptionId, announcement,
    delivery::AttemptOutcome,
    store::{Pause, Store},
    subscription::Subscriber,
    telemetry,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tokio_util::task::TaskTracker;

#[cfg(not(test))]
use crate::attempt::attempt;
#[cfg(test)]
use crate::simulated::attempt;
use crate::{
    attempt::{Attempted, Lack},
    lane::{self, CircuitState, Job, Lanes},
    lease::{Holding, Lease},
    outbound::{Outbound, Way},
    registry::{Found, Registry, Route},
    scheduler::Wake,
};

/// How long a delivery may wait in its lane before the store is asked whether it is still to be sent.
const RECHECK: Duration = Duration::from_secs(2);

/// The most test pushes under way at once, beside the pools of attempts.
const TESTS: usize = 32;

/// The most deliveries that one call gives back.
const RELEASED_AT_ONCE: usize = 500;

/// An outcome on its way to the store, with what the metrics want to know.
#[derive(Debug)]
pub struct Ended {
    /// What came of the attempt.
    pub outcome: AttemptOutcome,
    /// Which version of the subscription was sent to.
    pub version: i64,
    /// Who was sent to.
    pub subscriber: Subscriber,
    /// By which lease it was made: it lives at least until the outcome is written down.
    pub holding: Arc<Holding>,
    /// Whether it began in order: its lane waits for this to be written down.
    pub in_order: bool,
    /// For how long the subscriber asked to be left alone, if it did.
    pub asked_to_wait: Option<Duration>,
    /// Whether it was a test push; that one fails says nothing of how the subscription fares.
    pub is_test: bool,
    /// Whether what follows from it may be announced. What follows from events of the system's own may not, but for test pushes,
    /// which somebody asked for.
    pub begets: bool,
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
    tests: Arc<Semaphore>,
    /// Told when a lane's time comes sooner than was known.
    alarm: Notify,
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
            tests: Arc::new(Semaphore::new(TESTS)),
            alarm: Notify::new(),
        })
    }

    /// The lanes, for a moment: nothing may be awaited meanwhile.
    pub fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts deliveries, for which room was reserved, into their lanes, and starts what can be started.
    pub fn push(self: &Arc<Self>, jobs: impl IntoIterator<Item = Job>) {
        let (mut lanes, now) = (self.lanes(), Instant::now());
        for job in jobs {
            lanes.push(job, now);
        }
        self.start(lanes);
    }

    /// Starts what can be started.
    pub fn pump(self: &Arc<Self>) {
        self.start(self.lanes());
    }

    fn start(self: &Arc<Self>, mut lanes: MutexGuard<'_, Lanes>) {
        let (alarm, now) = (lanes.next_alarm(), Instant::now());
        while let Some((job, taken)) = lanes.next(now) {
            // Freed on every way out, a panic included.
            let place = Place {
                dispatch: Arc::clone(self),
                taken,
                ending: lane::Ending::NotMade,
            };
            let dispatch = Arc::clone(self);
            self.attempts
                .spawn(async move { dispatch.attempt(job, place).await });
        }
        let (load, strays) = (lanes.load(), lanes.take_strays());
        let sooner = lanes
            .next_alarm()
            .is_some_and(|at| alarm.is_none_or(|known| at < known));
        drop(lanes);
        if sooner {
            self.alarm.notify_one();
        }
        #[expect(clippy::cast_precision_loss, reason = "gauges of some thousands")]
        {
            telemetry::lanes_busy().set(load.busy as f64);
            telemetry::lane_deliveries().set(load.held as f64);
            telemetry::attempts_in_flight().set((load.trusted + load.suspect) as f64);
            telemetry::suspect_attempts_in_flight().set(load.suspect as f64);
            telemetry::open_circuits().set(load.open_circuits as f64);
        }
        self.give_back_soon(strays);
    }

    /// Waits until a lane's time may have come that was put off.
    pub async fn alarmed(&self) {
        let told = self.alarm.notified();
        let at = self.lanes().next_alarm();
        match at {
            Some(at) => {
                let _ = tokio::time::timeout_at(at, told).await;
            }
            None => told.await,
        }
    }

    async fn attempt(self: Arc<Self>, job: Job, mut place: Place) {
        let subscription = job.key.subscription;
        let Ok(permit) = self.outcomes.reserve().await else {
            return;
        };
        match self.before(&job).await {
            Before::Send(route) => {
                let (holding, received_at) = (Arc::clone(&job.holding), job.event.received_at);
                let (key, version, subscriber) = (job.key, route.subscription.version, route.subscriber());
                let in_order = place.taken.in_order();
                let (is_test, begets) = (is_test(&job), begets(&job));
                let event = key.event;
                let way = if place.taken.is_trusted() {
                    Way::Quick
                } else {
                    Way::Apart
                };
                let mut attempt = std::pin::pin!(attempt(&self.client, way, &route, job));
                let attempted = if let Ok(quick) = tokio::time::timeout(lane::SLOW, &mut attempt).await {
                    quick
                } else {
                    place.turned_slow();
                    attempt.await
                };
                let Attempted { outcome, ending } = match attempted {
                    Ok(attempted) => attempted,
                    Err(lack) => {
                        place.ending = lack.ending();
                        self.give_back_for(&lack, &holding, key).await;
                        return;
                    }
                };
                place.ending = ending;
                tracing::debug!(
                    event.id = %event, subscription.id = %subscription, attempt = outcome.number,
                    duration_ms = u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX),
                    result = ?outcome.result, "attempt"
                );
                permit.send(Ended {
                    outcome,
                    version,
                    subscriber,
                    holding,
                    in_order,
                    asked_to_wait: ending.asked_to_wait(),
                    is_test,
                    begets,
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

    /// Room for a test push, if there is any.
    pub fn room_to_test(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.tests).try_acquire_owned().ok()
    }

    /// Makes the attempt of a test push, which is in no lane: what comes of it says nothing to its lane either.
    pub fn test(self: &Arc<Self>, job: Job, room: OwnedSemaphorePermit) {
        let dispatch = Arc::clone(self);
        self.attempts.spawn(async move {
            dispatch.attempt_test(job).await;
            drop(room);
        });
    }

    async fn attempt_test(&self, job: Job) {
        let Ok(permit) = self.outcomes.reserve().await else {
            return;
        };
        match self.before(&job).await {
            Before::Send(route) => {
                let (holding, received_at) = (Arc::clone(&job.holding), job.event.received_at);
                let (key, version, subscriber) = (job.key, route.subscription.version, route.subscriber());
                match attempt(&self.client, Way::Apart, &route, job).await {
                    Ok(Attempted { outcome, ending }) => permit.send(Ended {
                        outcome,
                        version,
                        subscriber,
                        holding,
                        in_order: false,
                        asked_to_wait: ending.asked_to_wait(),
                        is_test: true,
                        begets: true,
                        received_at,
                    }),
                    Err(lack) => self.give_back_for(&lack, &holding, key).await,
                }
            }
            Before::NotOurs => {}
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
            self.release(&same[0].holding, &keys).await;
        }
    }

    /// Gives a delivery back for which this process lacks something. A key it lacks for good: the operator has to know.
    async fn give_back_for(&self, lack: &Lack, holding: &Holding, key: DeliveryKey) {
        if matches!(lack, Lack::Key(_)) {
            telemetry::sealed().increment(1);
        }
        tracing::warn!(event.id = %key.event, subscription.id = %key.subscription, %lack, "no attempt was made");
        self.release(holding, &[key]).await;
    }

    /// These lanes may have something due in the store.
    pub fn feed(&self, lanes: impl IntoIterator<Item = SubscriptionId>) {
        for lane in lanes {
            self.wake.feed(lane);
        }
    }

    async fn release(&self, holding: &Holding, keys: &[DeliveryKey]) {
        for some in keys.chunks(RELEASED_AT_ONCE) {
            if let Err(error) = self.store.deliveries.release(holding.worker(), some).await {
                tracing::warn!(%error, "deliveries could not be given back; the end of their lease frees them");
                // One that is on its way out ends without more doubt, which would go on for as long as the store fails.
                if self.lease.is_current(holding) {
                    self.lease.doubt();
                }
            }
        }
    }

    /// Outcomes of lanes in order are written down: each goes on with its next, or begins anew.
    pub fn settle(self: &Arc<Self>, settled: &[(SubscriptionId, bool)]) {
        if settled.is_empty() {
            return;
        }
        let (mut lanes, now) = (self.lanes(), Instant::now());
        let mut put_off = Vec::new();
        for (subscription, goes_on) in settled {
            let finished = lanes.settled(*subscription, *goes_on, now);
            put_off.extend(finished.put_off);
            if finished.feed {
                self.wake.feed(*subscription);
            }
        }
        self.start(lanes);
        self.give_back_soon(put_off);
    }

    /// Keeps to what subscribers asked of whatever worker, as of then.
    pub fn put_off(self: &Arc<Self>, pauses: &[Pause], as_of: Instant) {
        if pauses.is_empty() {
            return;
        }
        let (mut lanes, now) = (self.lanes(), Instant::now());
        let mut put_off = Vec::new();
        for pause in pauses {
            let until = as_of + pause.lasts.min(lane::LONGEST_PAUSE);
            put_off.extend(lanes.pause(pause.subscription, pause.subscriber, until, now));
        }
        self.start(lanes);
        self.give_back_soon(put_off);
    }

    fn give_back_soon(self: &Arc<Self>, jobs: Vec<Job>) {
        if !jobs.is_empty() {
            let dispatch = Arc::clone(self);
            self.attempts.spawn(async move { dispatch.give_back(jobs).await });
        }
    }

    /// Gives deliveries back, however many there are, while the worker goes on; their lanes are fed as soon as they are free. What
    /// they carried is let go of at once.
    pub fn give_back_and_feed(self: &Arc<Self>, mut jobs: Vec<Job>) {
        // Stable, and ids grow: what is first in its lane is free first.
        jobs.sort_by_key(|job| job.holding.worker());
        let of_one = |same: &[Job]| -> (Arc<Holding>, Vec<DeliveryKey>) {
            let keys = same.iter().map(|job| job.key).collect();
            (Arc::clone(&same[0].holding), keys)
        };
        let leases = jobs.chunk_by(|one, other| one.holding.worker() == other.holding.worker());
        let leases: Vec<_> = leases.map(of_one).collect();
        let dispatch = Arc::clone(self);
        self.attempts.spawn(async move {
            for (holding, keys) in leases {
                for some in keys.chunks(RELEASED_AT_ONCE) {
                    dispatch.release(&holding, some).await;
                    let lanes: HashSet<_> = some.iter().map(|key| key.subscription).collect();
                    dispatch.feed(lanes);
                }
            }
        });
    }

    /// Sends nothing more, gives back what waited, so that others need not wait for the slowest attempt, and waits for the
    /// attempts under way.
    pub async fn finish(self: &Arc<Self>) {
        let waiting = self.lanes().close();
        self.give_back_soon(waiting);
        self.attempts.close();
        self.attempts.wait().await;
    }
}

fn is_test(job: &Job) -> bool {
    &*job.event.event_type == announcement::TEST
}

fn begets(job: &Job) -> bool {
    !job.event.event_type.starts_with(announcement::SYSTEM) || is_test(job)
}

/// An attempt's place in its lane and in the pool.
struct Place {
    dispatch: Arc<Dispatch>,
    taken: lane::Place,
    ending: lane::Ending,
}

impl Place {
    /// Its attempt takes long: it leaves its place among the quick ones to another.
    fn turned_slow(&mut self) {
        let mut lanes = self.dispatch.lanes();
        let goes_back = lanes.turned_slow(&mut self.taken);
        self.dispatch.start(lanes);
        self.dispatch.give_back_soon(goes_back);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Its delivery is forgotten, and still held.
            self.dispatch.lease.doubt();
        }
        let dispatch = &self.dispatch;
        let subscription = self.taken.subscription();
        let mut lanes = dispatch.lanes();
        let finished = lanes.finished(&self.taken, self.ending, Instant::now(), rand::random());
        dispatch.start(lanes);
        if finished.feed {
            dispatch.wake.feed(subscription);
        }
        match finished.circuit {
            Some(CircuitState::Open { .. }) => {
                tracing::warn!(subscription.id = %subscription, "its circuit is open: only probes are sent");
            }
            Some(CircuitState::Closed) => {
                tracing::info!(subscription.id = %subscription, "its circuit is closed again");
            }
            None => {}
        }
        dispatch.give_back_soon(finished.put_off);
    }
}

#[cfg(test)]
mod tests;
