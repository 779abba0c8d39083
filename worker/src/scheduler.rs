//! Feeding lanes from the store: retries that fall due, what found no room, and what dead workers left behind.
//!
//! The store knows all of that; this is only about looking in the right place at the right time. A lane is looked at
//! when a retry that this worker wrote down falls due, when a hungry lane has room, and when its subscription changes;
//! and every few seconds the store is asked for all lanes that have something due which nobody holds. Only lanes are
//! ever looked at, never all that is due. A lane [in order](in_order) is claimed for beside all else.

mod in_order;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use rand::seq::SliceRandom;
use shared::{
    SubscriptionId,
    store::{self, Claimed, Store},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use self::in_order::{Claimer, InOrder};
use crate::{
    dispatch::Dispatch,
    lane::{EventBody, Job},
    lease::{Holding, Lease},
    ownership::Ownership,
    registry::{Found, Registry},
};

/// How often the store is asked which lanes have something due that nobody holds.
const SWEEP: Duration = Duration::from_secs(3);
/// How often hungry lanes are looked at, and how long nothing is claimed after a call that failed: a store that refuses at once
/// would be asked as fast as it can refuse.
const TICK: Duration = Duration::from_millis(100);
/// The most deliveries that one claim takes, and of one lane.
const CLAIM: usize = 256;
/// How often those who wait to pull are told, at most: a notice takes a commit.
const RING: Duration = Duration::from_millis(20);
/// A claim of so many bytes of payload may have been cut short by the store.
const MANY_BYTES: usize = 4 * 1024 * 1024;
/// The most lanes that one claim asks for.
const CLAIM_LANES: usize = 64;
/// The most lanes that one sweep takes in; the next goes on from there.
const SWEEP_LANES: u32 = 256;
/// The most retries whose time is remembered; others are found by a sweep.
const MAX_TIMERS: usize = 100_000;

/// Word for the scheduler.
#[derive(Debug, Clone, Copy)]
enum Word {
    Feed(SubscriptionId),
    Due(SubscriptionId, Instant),
    Tell(SubscriptionId),
    Ring(SubscriptionId),
}

/// Gives the scheduler word. What does not get through is found by a sweep.
#[derive(Debug, Clone)]
pub struct Wake(mpsc::Sender<Word>);

impl Wake {
    /// The lane may have something due in the store.
    pub fn feed(&self, subscription: SubscriptionId) {
        let _ = self.0.try_send(Word::Feed(subscription));
    }

    /// Another worker owns the lane, and is to be told that there is something new in it.
    pub fn tell(&self, subscription: SubscriptionId) {
        let _ = self.0.try_send(Word::Tell(subscription));
    }

    /// Somebody waits to pull from the subscription, and is to be told that there is something new in it.
    pub fn ring(&self, subscription: SubscriptionId) {
        let _ = self.0.try_send(Word::Ring(subscription));
    }

    /// A retry of the lane falls due after this long.
    pub fn due_after(&self, subscription: SubscriptionId, after: Duration) {
        // A little later than the store, whose clock decides: to look too early is to look twice.
        let _ = self.0.try_send(Word::Due(
            subscription,
            Instant::now() + after + Duration::from_millis(20),
        ));
    }
}

/// The scheduler's ear.
pub struct Words(mpsc::Receiver<Word>);

/// A way to give it word.
pub fn wake() -> (Wake, Words) {
    let (sender, receiver) = mpsc::channel(16_384);
    (Wake(sender), Words(receiver))
}

/// Feeds lanes.
pub struct Scheduler {
    /// The lanes.
    pub dispatch: Arc<Dispatch>,
    /// As whom deliveries are taken.
    pub lease: Arc<Lease>,
    /// Which subscriptions are served.
    pub registry: Arc<Registry>,
    /// Which lanes are this worker's alone.
    pub ownership: Arc<Ownership>,
    /// Where deliveries are taken from.
    pub store: Store,
    /// What it is told.
    pub words: Words,
}

impl Scheduler {
    /// Runs until the soft signal.
    pub async fn run(mut self, soft: CancellationToken) -> anyhow::Result<()> {
        let mut timers: BinaryHeap<Reverse<(Instant, SubscriptionId)>> = BinaryHeap::new();
        let mut hungry: HashSet<SubscriptionId> = HashSet::new();
        let mut told: HashSet<SubscriptionId> = HashSet::new();
        let mut rung: HashSet<SubscriptionId> = HashSet::new();
        let mut ring_at = Instant::now();
        let mut in_order = self.in_order();
        let mut feed_from = Instant::now();
        let mut sweep_after: Option<SubscriptionId> = None;
        let mut sweep = tokio::time::interval(SWEEP);
        let mut tick = tokio::time::interval(TICK);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next_due = timers.peek().map(|Reverse((at, _))| *at);
            tokio::select! {
                () = soft.cancelled() => break,
                word = self.words.0.recv() => match word {
                    Some(word) => hear(word, &mut hungry, &mut timers, &mut told, &mut rung),
                    None => break,
                },
                () = async { tokio::time::sleep_until(next_due.unwrap_or_else(Instant::now)).await }, if next_due.is_some() => {}
                () = tokio::time::sleep_until(ring_at), if !rung.is_empty() => {}
                () = self.dispatch.alarmed() => {}
                () = in_order.ended() => {}
                _ = tick.tick() => {}
                _ = sweep.tick() => match self.store.deliveries.lanes_due(self.lease.current().worker(), sweep_after, SWEEP_LANES).await {
                    Ok(lanes) => {
                        sweep_after = lanes.last().copied().filter(|_| lanes.len() == SWEEP_LANES as usize);
                        hungry.extend(lanes);
                        self.dispatch.lanes().forget_old(Instant::now());
                    }
                    Err(error) => tracing::debug!(%error, "the store cannot say which lanes are due"),
                },
            }
            while let Ok(word) = self.words.0.try_recv() {
                hear(word, &mut hungry, &mut timers, &mut told, &mut rung);
            }
            if !rung.is_empty() && ring_at <= Instant::now() {
                told.extend(rung.drain());
                ring_at = Instant::now() + RING;
            }
            if !told.is_empty() {
                let lanes: Vec<SubscriptionId> = told.drain().collect();
                if let Err(error) = self.store.deliveries.tell_owners(&lanes).await {
                    // Their sweeps find it, or the looks of those who wait.
                    tracing::debug!(%error, "owners of lanes, or who waits for them, could not be told");
                }
            }
            let now = Instant::now();
            let roused = self.dispatch.lanes().rouse(now);
            self.dispatch.pump();
            hungry.extend(roused);
            while let Some(Reverse((at, subscription))) = timers.peek().copied() {
                if at > now {
                    break;
                }
                timers.pop();
                hungry.insert(subscription);
            }
            if in_order.has_failed() {
                feed_from = Instant::now() + TICK;
            }
            if Instant::now() < feed_from {
                // A tick comes after it.
                continue;
            }
            let mut lanes: Vec<SubscriptionId> = hungry.drain().collect();
            // Where room is short the first get it: each is first now and then.
            lanes.shuffle(&mut rand::rng());
            if let Err(error) = self.feed(lanes, &mut in_order).await {
                // The next sweep finds them.
                tracing::debug!(%error, "lanes could not be fed");
                feed_from = Instant::now() + TICK;
            }
        }
        in_order.finish().await;
        Ok(())
    }

    /// Claims what is due for these lanes, as far as there is room. Those in order come to be claimed for beside all else.
    async fn feed(&self, mut lanes: Vec<SubscriptionId>, in_order: &mut InOrder) -> store::Result<()> {
        let mut fed = Ok(());
        while !lanes.is_empty() && fed.is_ok() {
            let some = lanes.split_off(lanes.len().saturating_sub(CLAIM_LANES));
            fed = self.feed_some(&some, in_order).await;
        }
        fed
    }

    /// Where lanes in order come to be claimed for.
    fn in_order(&self) -> InOrder {
        InOrder::new(Claimer {
            dispatch: Arc::clone(&self.dispatch),
            lease: Arc::clone(&self.lease),
            store: self.store.clone(),
        })
    }

    /// Claims what is due for so many lanes as one claim asks for, and adds those that are in order to `in_order`.
    async fn feed_some(&self, subscriptions: &[SubscriptionId], in_order: &mut InOrder) -> store::Result<()> {
        if self.ownership.is_joining() {
            // The others serve these meanwhile; sweeps find what they leave.
            return Ok(());
        }
        let share = (CLAIM / subscriptions.len().max(1)).max(4);
        // All routes first: room that is reserved must be claimed for or given back, on every way out of here.
        let mut served = Vec::with_capacity(subscriptions.len());
        for subscription in subscriptions {
            match self.registry.route(*subscription).await? {
                Found::Enabled(route) => {
                    served.push((*subscription, route.terms(self.ownership.workers())));
                }
                Found::Disabled | Found::Gone => self.dispatch.lanes().set_hungry(*subscription, false),
            }
        }
        let solo = served.iter().filter(|(_, terms)| terms.solo);
        let solo: Vec<SubscriptionId> = solo.map(|(subscription, _)| *subscription).collect();
        let owned = self.ownership.acquire(&solo).await?;
        let mut wanted: Vec<(SubscriptionId, u32)> = Vec::new();
        for (subscription, terms) in served {
            if terms.solo && !owned.contains(&subscription) {
                self.dispatch.lanes().set_hungry(subscription, false);
                continue;
            }
            if terms.in_order {
                in_order.add(subscription, terms);
                continue;
            }
            let room = self
                .dispatch
                .lanes()
                .reserve_many(subscription, terms, share, Instant::now());
            if let Ok(room @ 1..) = u32::try_from(room) {
                wanted.push((subscription, room));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let holding = self.lease.current();
        let claimed = self.store.deliveries.claim(holding.worker(), &wanted).await;
        if claimed.is_err() {
            // They may have been claimed all the same.
            self.lease.doubt();
        }
        // Lanes with one owner may have gone to its new id meanwhile.
        let is_current = self.lease.is_current(&holding);
        // A claim that comes to many bytes may have been cut short.
        let cut = claimed
            .iter()
            .flatten()
            .map(|claimed| claimed.payload.len())
            .sum::<usize>()
            >= MANY_BYTES;
        let mut counts: HashMap<SubscriptionId, u32> = HashMap::new();
        for claimed in claimed.iter().flatten() {
            *counts.entry(claimed.key.subscription).or_default() += 1;
        }
        {
            let mut lanes = self.dispatch.lanes();
            for (subscription, room) in &wanted {
                let count = counts.get(subscription).copied().unwrap_or_default();
                // Fewer than asked for: the store holds no more that is due.
                lanes.set_hungry(
                    *subscription,
                    claimed.is_err() || cut || count == *room || !is_current,
                );
                lanes.unreserve(*subscription, (room - count) as usize);
            }
        }
        self.dispatch
            .push(claimed?.into_iter().map(|claimed| job(claimed, &holding, false)));
        Ok(())
    }
}

fn hear(
    word: Word,
    hungry: &mut HashSet<SubscriptionId>,
    timers: &mut BinaryHeap<Reverse<(Instant, SubscriptionId)>>,
    told: &mut HashSet<SubscriptionId>,
    rung: &mut HashSet<SubscriptionId>,
) {
    match word {
        Word::Ring(subscription) => drop(rung.insert(subscription)),
        Word::Tell(subscription) => drop(told.insert(subscription)),
        Word::Feed(subscription) => drop(hungry.insert(subscription)),
        Word::Due(subscription, at) if timers.len() < MAX_TIMERS => {
            timers.push(Reverse((at, subscription)));
        }
        Word::Due(..) => {}
    }
}

fn job(claimed: Claimed, holding: &Arc<Holding>, in_order: bool) -> Job {
    let Claimed {
        key,
        organization,
        attempts,
        attempts_before,
        event_type,
        received_at,
        occurred_at,
        source,
        trace,
        payload,
        ..
    } = claimed;
    let event = EventBody {
        id: key.event,
        event_type,
        received_at,
        occurred_at,
        source,
        trace,
        payload,
    };
    Job {
        key,
        organization,
        in_order,
        attempts,
        attempts_before,
        event: Arc::new(event),
        holding: Arc::clone(holding),
        since: Instant::now(),
    }
}

#[cfg(test)]
mod tests;
