//! Lanes that must act as one over all workers, and which of them this worker owns.
//!
//! A lane is served in order, or at a rate, or with fewer attempts under way than there are workers: such a lane is solo, and
//! has one owner at a time. Every other lane is served by all workers, each with its share of the limit. The owner's name
//! is a worker's id, which is never used again: an owner that stalled past its lease finds that nothing it does applies. A worker
//! that takes a new id for doubt takes its lanes along.
//!
//! Workers own what they come by, give up what they have not needed for a while, and give up some of what they have if it
//! is more than their share, so that the lanes of a few do not stay with the first for ever.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use shared::{
    SubscriptionId, WorkerId,
    store::{self, Store},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::Dispatch,
    lease::{self, Lease},
};

/// How often ownership is looked over.
const LOOK_OVER: Duration = Duration::from_secs(3);
/// How long a worker that joins others leaves the sending to them: until all of them know that their shares are smaller.
const JOINING: Duration = Duration::from_secs(2 * lease::RENEWAL.as_secs());
/// A lane that had nothing to send for so long is given up.
const UNUSED: Duration = Duration::from_secs(30);
/// How long a lane that another owns, or that was given up, is not asked for.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// How often a worker that stops looks for lanes that it can give up.
const LEAVING: Duration = Duration::from_millis(100);
/// The most lanes that are given up at once for being more than this worker's share.
const GIVEN_UP_AT_ONCE: u32 = 16;

#[derive(Debug)]
struct State {
    /// As whom the lanes are owned.
    worker: WorkerId,
    /// When each was last needed.
    owned: HashMap<SubscriptionId, Instant>,
    leaving: HashSet<SubscriptionId>,
    left_alone: HashMap<SubscriptionId, Instant>,
}

/// What this worker owns, and how many others there are.
pub struct Ownership {
    store: Store,
    lease: Arc<Lease>,
    state: Mutex<State>,
    workers: AtomicU32,
    sends_from: Instant,
}

impl Ownership {
    /// Owns nothing yet.
    pub async fn begin(store: Store, lease: Arc<Lease>) -> store::Result<Self> {
        let worker = lease.current().worker();
        let workers = store.deliveries.standing(worker).await?.workers.max(1);
        let joins = workers > 1;
        if joins {
            tracing::info!(workers, "joining other workers: nothing is sent for a moment");
        }
        Ok(Self {
            store,
            lease,
            state: Mutex::new(State::of(worker)),
            workers: AtomicU32::new(workers),
            sends_from: Instant::now() + if joins { JOINING } else { Duration::ZERO },
        })
    }

    /// How many workers share the lanes that are not solo.
    pub fn workers(&self) -> u32 {
        self.workers.load(Ordering::Relaxed)
    }

    /// Whether the others do not know yet that their shares are smaller: nothing is to be sent.
    pub fn is_joining(&self) -> bool {
        Instant::now() < self.sends_from
    }

    /// Whether this worker owns the lane, and goes on with it.
    pub fn owns(&self, lane: SubscriptionId) -> bool {
        let state = self.state();
        state.owned.contains_key(&lane) && !state.leaving.contains(&lane)
    }

    /// Whether another is known to own the lane.
    pub fn is_anothers(&self, lane: SubscriptionId) -> bool {
        let left_alone = self.state().left_alone.get(&lane).copied();
        left_alone.is_some_and(|until| Instant::now() < until)
    }

    /// Those of these lanes that this worker owns, or comes to own.
    pub async fn acquire(&self, lanes: &[SubscriptionId]) -> store::Result<HashSet<SubscriptionId>> {
        let (mut owned, mut wanted, now) = (HashSet::new(), Vec::new(), Instant::now());
        let worker = {
            let state = &mut *self.state();
            for lane in lanes {
                if state.leaving.contains(lane) {
                    continue;
                }
                match state.owned.get_mut(lane) {
                    Some(used) => {
                        *used = now;
                        owned.insert(*lane);
                    }
                    None if state.left_alone.get(lane).is_some_and(|until| now < *until) => {}
                    None => wanted.push(*lane),
                }
            }
            state.worker
        };
        if !wanted.is_empty() {
            // Should the answer be lost, they are asked for again: it is this worker's either way.
            let got = self.store.deliveries.own(worker, &wanted).await?;
            let mut state = self.state();
            if state.worker == worker {
                for lane in &got {
                    state.owned.insert(*lane, now);
                    owned.insert(*lane);
                }
                for lane in wanted.iter().filter(|lane| !got.contains(lane)) {
                    state.left_alone.insert(*lane, now + LEFT_ALONE);
                }
            }
        }
        Ok(owned)
    }

    /// Takes along what this worker owns by leases that are on their way out, and says what that is. The lanes in memory are the
    /// same: what is under way in them is waited for as ever.
    pub async fn take_along(&self) -> store::Result<Vec<SubscriptionId>> {
        let worker = self.lease.current().worker();
        let mut taken = Vec::new();
        for old in self.lease.retiring() {
            taken.extend(self.store.deliveries.hand_over(old, worker).await?);
        }
        let (mut state, now) = (self.state(), Instant::now());
        if state.worker == worker {
            for lane in &taken {
                state.owned.insert(*lane, now);
                // It may have been asked for meanwhile.
                state.left_alone.remove(lane);
            }
        }
        Ok(taken)
    }

    /// Looks it all over now and then, until the soft signal.
    pub async fn look_over(
        self: Arc<Self>,
        dispatch: Arc<Dispatch>,
        soft: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut every = tokio::time::interval(LOOK_OVER);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                _ = every.tick() => {}
            }
            if let Err(error) = self.once(&dispatch).await {
                tracing::debug!(%error, "the lanes that have one owner could not be looked over");
            }
        }
    }

    async fn once(&self, dispatch: &Dispatch) -> store::Result<()> {
        let worker = self.state().worker;
        let standing = self.store.deliveries.standing(worker).await?;
        self.workers.store(standing.workers.max(1), Ordering::Relaxed);
        let share = standing.all.div_ceil(standing.workers.max(1));
        let too_many = standing.mine.saturating_sub(share + 1).min(GIVEN_UP_AT_ONCE);
        let now = Instant::now();
        let waiting = {
            let (mut state, mut lanes) = (self.state(), dispatch.lanes());
            state.left_alone.retain(|_, until| now < *until);
            let leaving: Vec<SubscriptionId> = {
                let staying = state.owned.keys().filter(|lane| !state.leaving.contains(lane));
                let mut staying: Vec<_> = staying.copied().collect();
                // Those first that nobody would notice.
                staying.sort_by_key(|lane| lanes.is_quiet(*lane, now) == Some(false));
                staying.truncate(too_many as usize);
                staying
            };
            let mut waiting = Vec::new();
            for lane in leaving {
                state.leaving.insert(lane);
                waiting.extend(lanes.drain(lane));
            }
            waiting
        };
        dispatch.give_back(waiting).await;
        self.give_up(dispatch, |state, lane, used| {
            state.leaving.contains(lane) || now.duration_since(used) > UNUSED
        })
        .await
    }

    /// The worker stops, and its lanes are closed: gives up each that it owns once that is quiet, so that others go on with it
    /// while the last attempts end.
    pub async fn leave(&self, dispatch: &Dispatch) -> Infallible {
        let mut every = tokio::time::interval(LEAVING);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            if let Err(error) = self.give_up(dispatch, |_, _, _| true).await {
                tracing::debug!(%error, "lanes that have one owner could not be given up");
            }
        }
    }

    /// Gives up those of the lanes it owns that are quiet.
    async fn give_up(
        &self,
        dispatch: &Dispatch,
        which: impl Fn(&State, &SubscriptionId, Instant) -> bool,
    ) -> store::Result<()> {
        let now = Instant::now();
        let (worker, quiet) = {
            let (mut state, mut lanes) = (self.state(), dispatch.lanes());
            let quiet: Vec<SubscriptionId> = state
                .owned
                .iter()
                .filter(|(lane, used)| {
                    which(&state, lane, **used) && lanes.is_quiet(**lane, now) != Some(false)
                })
                .map(|(lane, _)| *lane)
                .collect();
            for lane in &quiet {
                lanes.set_hungry(*lane, false);
                state.owned.remove(lane);
                state.leaving.remove(lane);
                state.left_alone.insert(*lane, now + LEFT_ALONE);
            }
            (state.worker, quiet)
        };
        if quiet.is_empty() {
            return Ok(());
        }
        let given_up = self.store.deliveries.disown(worker, &quiet).await;
        if given_up.is_err() {
            // They may be its own yet, or come to be nobody's at any time. A new id takes along what is, and nobody takes that from it.
            self.lease.doubt();
        }
        given_up
    }

    /// The state as of the current lease: what was owned by another is not any more.
    fn state(&self) -> MutexGuard<'_, State> {
        let worker = self.lease.current().worker();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.worker != worker {
            *state = State::of(worker);
        }
        state
    }
}

impl State {
    fn of(worker: WorkerId) -> Self {
        Self {
            worker,
            owned: HashMap::new(),
            leaving: HashSet::new(),
            left_alone: HashMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::guard::TargetPolicy;

    use super::*;
    use crate::{
        lane::{Bounds, Lanes},
        lease::Renewed,
        outbound::Outbound,
        outcome,
        real_store::RealStore,
        scheduler,
    };

    /// Nothing is in its lanes.
    fn dispatch(real: &RealStore, lease: &Arc<Lease>) -> Arc<Dispatch> {
        let ((ended, _), (wake, _words)) = (outcome::channel(), scheduler::wake());
        Dispatch::new(
            Lanes::new(Bounds::default()),
            Arc::clone(lease),
            real.registry(),
            Outbound::new(TargetPolicy::default(), None).unwrap(),
            real.store.clone(),
            ended,
            wake,
        )
    }

    #[tokio::test]
    async fn a_lane_that_was_given_up_unheard_is_owned_anew() {
        let real = RealStore::open().await;
        let (lane, deliveries) = (real.subscription_in_order().await.id, &*real.store.deliveries);
        let lease = Arc::new(Lease::enlist(deliveries).await.unwrap());
        let ownership = Ownership::begin(real.store.clone(), Arc::clone(&lease))
            .await
            .unwrap();
        assert_eq!(ownership.acquire(&[lane]).await.unwrap(), HashSet::from([lane]));
        real.releases.lose();
        let given_up = ownership.give_up(&dispatch(&real, &lease), |_, _, _| true).await;
        assert!(given_up.is_err(), "it is written down, and nobody hears of it");
        assert!(!ownership.owns(lane), "it may be anybody's");
        assert_eq!(lease.renew(deliveries).await.unwrap(), Renewed::Anew);
        assert!(ownership.take_along().await.unwrap().is_empty());
        assert_eq!(ownership.acquire(&[lane]).await.unwrap(), HashSet::from([lane]));
        real.take_in(1, lane, None).await;
        let claimed = deliveries.claim_in_order(lease.current().worker(), lane, 8).await;
        assert_eq!(claimed.unwrap().len(), 1, "the store knows of it");
    }

    #[tokio::test]
    async fn a_worker_in_doubt_keeps_its_share() {
        let real = RealStore::open().await;
        let mut lanes = Vec::new();
        for _ in 0..20 {
            lanes.push(real.subscription().await.id);
        }
        let deliveries = &*real.store.deliveries;
        let lease = Arc::new(Lease::enlist(deliveries).await.unwrap());
        let ownership = Ownership::begin(real.store.clone(), Arc::clone(&lease))
            .await
            .unwrap();
        let dispatch = dispatch(&real, &lease);
        assert_eq!(ownership.acquire(&lanes).await.unwrap().len(), 20);
        // The old lease lives for as long as this takes.
        let under_way = lease.current();
        lease.doubt();
        assert_eq!(lease.renew(deliveries).await.unwrap(), Renewed::Anew);
        assert_eq!(ownership.take_along().await.unwrap().len(), 20);
        let standing = deliveries.standing(lease.current().worker()).await.unwrap();
        assert_eq!((standing.workers, standing.mine, standing.all), (1, 20, 20));
        ownership.once(&dispatch).await.unwrap();
        assert_eq!(ownership.workers(), 1, "the limits are not shared with itself");
        assert!(lanes.iter().all(|lane| ownership.owns(*lane)));
        assert_eq!(lease.retiring(), [under_way.worker()]);
    }

    #[tokio::test]
    async fn a_worker_in_doubt_takes_its_lanes_along() {
        let real = RealStore::open().await;
        let (lane, deliveries) = (real.subscription().await.id, &*real.store.deliveries);
        let lease = Arc::new(Lease::enlist(deliveries).await.unwrap());
        let ownership = Ownership::begin(real.store.clone(), Arc::clone(&lease))
            .await
            .unwrap();
        assert_eq!(ownership.acquire(&[lane]).await.unwrap(), HashSet::from([lane]));
        assert!(ownership.take_along().await.unwrap().is_empty());
        // An attempt, of whatever lane, that takes its time.
        let under_way = lease.current();
        lease.doubt();
        assert_eq!(lease.renew(deliveries).await.unwrap(), Renewed::Anew);
        assert!(!ownership.owns(lane), "not before the store says so");
        assert!(
            ownership.acquire(&[lane]).await.unwrap().is_empty(),
            "the old lease lives"
        );
        assert_eq!(ownership.take_along().await.unwrap(), [lane]);
        assert!(ownership.owns(lane));
        assert_eq!(ownership.acquire(&[lane]).await.unwrap(), HashSet::from([lane]));
        drop(under_way);
        assert_eq!(lease.renew(deliveries).await.unwrap(), Renewed::Same);
        assert!(lease.retiring().is_empty(), "it is over");
        let standing = deliveries.standing(lease.current().worker()).await.unwrap();
        assert_eq!((standing.workers, standing.mine), (1, 1));
    }
}
