//! Pulls that wait for something to lease.
//!
//! Nobody waits by looking again and again. Each subscription that somebody waits for has a bell here: it is rung when the
//! store brings word that there is something new, when the next lease ends, and every [`POLL`] in case that word was
//! lost. A ring rouses one of those who wait; who finds something rouses the next. So a thousand of them cost as much as
//! one, and one event does not rouse them all.
//!
//! Workers give word only of subscriptions that are awaited, and are told of that through the store: where nobody pulls,
//! nobody tells. Nothing listens before the first wait.
//!
//! Waits are bounded in number, over all and for an organization: past that an answer comes at once. They end when the
//! process is told to stop, with nothing found.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    OrganizationId, SubscriptionId,
    lifecycle::Lifecycle,
    store::{Change, PullSource, Store},
    telemetry,
};
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// The most pulls that wait at once.
const MAX_WAITING: usize = 1_024;
/// The most of one organization.
const SHARE: usize = MAX_WAITING / 4;
/// How often a subscription that is awaited is looked at, whatever word has come.
const POLL: Duration = Duration::from_secs(2);
/// How soon after workers were told that it is awaited: what they stored before they heard of it they told nobody.
const AFTER_TELLING: Duration = Duration::from_millis(200);
/// How often workers are told that a subscription is awaited. They heed it three times as long.
const TELL: Duration = Duration::from_secs(20);
/// How often bells are looked at whose time may have come.
const TICK: Duration = Duration::from_millis(50);

/// Those who wait.
pub struct Pullers {
    waiting: Mutex<Waiting>,
    /// Rung when somebody sits down.
    begun: Notify,
    soft: CancellationToken,
}

#[derive(Default)]
struct Waiting {
    all: usize,
    of: HashMap<OrganizationId, usize>,
    bells: HashMap<SubscriptionId, Bell>,
}

/// There is one while somebody waits.
struct Bell {
    waiting: usize,
    /// Keeps one ring for whoever waits next.
    notify: Arc<Notify>,
    /// When it is rung if nothing else rings it.
    ring_at: Instant,
    /// When workers were last told.
    told_at: Option<Instant>,
}

impl Pullers {
    /// Makes room for those who wait, and listens once somebody does.
    pub fn start(store: &Store, lifecycle: &Lifecycle) -> Arc<Self> {
        let pullers = Arc::new(Self::new(lifecycle.soft.clone()));
        telemetry::pulls_waiting().set(0.0);
        lifecycle.critical("pullers", Arc::clone(&pullers).heed(store.clone()));
        pullers
    }

    fn new(soft: CancellationToken) -> Self {
        Self {
            waiting: Mutex::default(),
            begun: Notify::new(),
            soft,
        }
    }

    async fn heed(self: Arc<Self>, store: Store) -> anyhow::Result<()> {
        tokio::select! {
            () = self.soft.cancelled() => return Ok(()),
            () = self.begun.notified() => {}
        }
        let mut changes = store.keeper.changes();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.soft.cancelled() => return Ok(()),
                _ = tick.tick() => self.waiting().ring_due(Instant::now()),
                change = changes.recv() => match change {
                    Ok(Change::Lane(lane) | Change::Subscription(lane)) => self.waiting().ring(lane),
                    Ok(Change::Everything) | Err(RecvError::Lagged(_)) => self.waiting().ring_all(),
                    Ok(Change::Closed(_) | Change::Cancelled(_) | Change::Awaited(_) | Change::Pause(_) | Change::TestPush) => {}
                    // The store is being closed.
                    Err(RecvError::Closed) => return Ok(()),
                },
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place to wait at, to be taken before the first look, so that nothing that comes after it is missed. `None` if
    /// there is none left.
    pub(super) fn seat(&self, source: PullSource) -> Option<Seat<'_>> {
        let mut waiting = self.waiting();
        let share = waiting.of.get(&source.organization).copied().unwrap_or_default();
        if waiting.all >= MAX_WAITING || share >= SHARE {
            return None;
        }
        waiting.all += 1;
        telemetry::pulls_waiting().increment(1.0);
        *waiting.of.entry(source.organization).or_default() += 1;
        let bell = waiting.bells.entry(source.subscription).or_insert_with(|| Bell {
            waiting: 0,
            notify: Arc::default(),
            ring_at: Instant::now() + POLL,
            told_at: None,
        });
        bell.waiting += 1;
        let bell = Arc::clone(&bell.notify);
        drop(waiting);
        self.begun.notify_one();
        Some(Seat {
            pullers: self,
            source,
            bell,
        })
    }
}

impl Waiting {
    fn ring(&self, lane: SubscriptionId) {
        if let Some(bell) = self.bells.get(&lane) {
            bell.notify.notify_one();
        }
    }

    fn ring_all(&self) {
        for bell in self.bells.values() {
            bell.notify.notify_one();
        }
    }

    /// Rings those whose time has come.
    fn ring_due(&mut self, now: Instant) {
        for bell in self.bells.values_mut().filter(|bell| bell.ring_at <= now) {
            bell.ring_at = now + POLL;
            bell.notify.notify_one();
        }
    }

    /// Sees to it that the bell is rung by then.
    fn ring_by(&mut self, lane: SubscriptionId, at: Instant) {
        if let Some(bell) = self.bells.get_mut(&lane) {
            bell.ring_at = bell.ring_at.min(at);
        }
    }

    /// Whether workers are to be told now.
    fn is_to_tell(&mut self, lane: SubscriptionId, now: Instant) -> bool {
        let Some(bell) = self.bells.get_mut(&lane) else {
            return false;
        };
        if bell.told_at.is_some_and(|told| now - told < TELL) {
            return false;
        }
        bell.told_at = Some(now);
        bell.ring_at = bell.ring_at.min(now + AFTER_TELLING);
        true
    }
}

/// A place to wait at. It is given up when dropped, as when the client is gone.
pub(super) struct Seat<'a> {
    pullers: &'a Pullers,
    source: PullSource,
    bell: Arc<Notify>,
}

impl Seat<'_> {
    /// Whether it is time to tell workers that the subscription is awaited; whoever is told so is to tell them.
    pub(super) fn is_to_tell(&self) -> bool {
        let lane = self.source.subscription;
        self.pullers.waiting().is_to_tell(lane, Instant::now())
    }

    /// Waits for a reason to look again, such as that `due_in` is over; `false` if the time is up.
    pub(super) async fn wait(&self, deadline: Instant, due_in: Option<Duration>) -> bool {
        if let Some(due_in) = due_in {
            let lane = self.source.subscription;
            self.pullers.waiting().ring_by(lane, Instant::now() + due_in);
        }
        tokio::select! {
            biased;
            () = self.pullers.soft.cancelled() => false,
            () = tokio::time::sleep_until(deadline) => false,
            () = self.bell.notified() => true,
        }
    }

    /// Rouses the next: there may be more.
    pub(super) fn pass_on(&self) {
        self.bell.notify_one();
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut waiting = self.pullers.waiting();
        waiting.all -= 1;
        telemetry::pulls_waiting().decrement(1.0);
        if let Some(share) = waiting.of.get_mut(&self.source.organization) {
            *share -= 1;
            if *share == 0 {
                waiting.of.remove(&self.source.organization);
            }
        }
        if let Some(bell) = waiting.bells.get_mut(&self.source.subscription) {
            bell.waiting -= 1;
            if bell.waiting == 0 {
                waiting.bells.remove(&self.source.subscription);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn source() -> PullSource {
        PullSource {
            organization: OrganizationId::new(),
            subscription: SubscriptionId::new(),
        }
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_hours(1)
    }

    /// Whether one who waits here is roused.
    fn roused(seat: &Seat<'_>) -> bool {
        seat.wait(far(), None).now_or_never() == Some(true)
    }

    #[tokio::test]
    async fn a_ring_rouses_one_and_that_one_the_next() {
        let pullers = Pullers::new(CancellationToken::new());
        let source = source();
        let (one, two) = (pullers.seat(source).unwrap(), pullers.seat(source).unwrap());
        // What rings between a look and the wait is not missed.
        pullers.waiting().ring(source.subscription);
        assert!(roused(&one));
        assert!(!roused(&two), "it was for one");
        one.pass_on();
        assert!(roused(&two));
        pullers.waiting().ring(SubscriptionId::new());
        assert!(!roused(&two), "another's bell");
        pullers.waiting().ring_all();
        assert!(roused(&two));
    }

    #[tokio::test]
    async fn bells_ring_when_their_time_comes() {
        let pullers = Pullers::new(CancellationToken::new());
        let source = source();
        let seat = pullers.seat(source).unwrap();
        let now = Instant::now();
        let rung_at = |at: Instant| {
            pullers.waiting().ring_due(at);
            roused(&seat)
        };
        assert!(!rung_at(now + POLL / 2));
        assert!(rung_at(now + POLL + TICK), "in case that word was lost");
        let now = now + POLL + TICK;
        assert!(!rung_at(now), "it was rung");
        pullers.waiting().ring_by(source.subscription, now + POLL / 2);
        pullers.waiting().ring_by(source.subscription, now + 10 * POLL);
        assert!(!rung_at(now + POLL / 4));
        assert!(rung_at(now + POLL / 2));
        let now = now + POLL / 2;
        let tell = |at| pullers.waiting().is_to_tell(source.subscription, at);
        assert!(tell(now));
        assert!(!tell(now + TELL / 2), "they were told");
        assert!(!rung_at(now) && rung_at(now + AFTER_TELLING));
        assert!(tell(now + TELL));
    }

    #[tokio::test]
    async fn seats_are_bounded_and_given_up() {
        let pullers = Pullers::new(CancellationToken::new());
        let sources: Vec<_> = (0..5).map(|_| source()).collect();
        let mut seats = Vec::new();
        for source in &sources[..4] {
            seats.extend(std::iter::from_fn(|| pullers.seat(*source)));
        }
        assert_eq!(seats.len(), MAX_WAITING);
        assert!(pullers.seat(sources[4]).is_none());
        seats.clear();
        assert!(pullers.seat(sources[4]).is_some());
        let waiting = pullers.waiting();
        assert!(waiting.all == 0 && waiting.of.is_empty() && waiting.bells.is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_goes_when_the_process_stops() {
        let soft = CancellationToken::new();
        let pullers = Pullers::new(soft.clone());
        let seat = pullers.seat(source()).unwrap();
        soft.cancel();
        assert!(!seat.wait(far(), None).await);
    }
}
