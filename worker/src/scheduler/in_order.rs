//! Claims for lanes in order.
//!
//! Each takes a claim of its own, which waits for whoever has a row at the beginning of the lane locked: an acknowledgement, an
//! erasure, a step of a replay. So they go on beside all else that the scheduler does, some at a time, and nobody else waits for
//! them, however many they are.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use shared::{
    SubscriptionId,
    store::{self, Store},
};
use tokio::{task::JoinSet, time::Instant};

use super::job;
use crate::{dispatch::Dispatch, lane::Terms, lease::Lease};

/// The most deliveries that one claim takes.
const MOST: usize = 32;
/// How many lanes are claimed for at once.
const AT_ONCE: usize = 4;

/// Claims for a lane.
pub(super) struct Claimer {
    pub(super) dispatch: Arc<Dispatch>,
    pub(super) lease: Arc<Lease>,
    pub(super) store: Store,
}

/// Lanes that are claimed for, or wait for that.
pub(super) struct InOrder {
    claimer: Arc<Claimer>,
    /// The first has waited the longest; none twice.
    waiting: VecDeque<(SubscriptionId, Terms)>,
    is_waiting: HashSet<SubscriptionId>,
    claims: JoinSet<(SubscriptionId, store::Result<()>)>,
    claimed_for: HashSet<SubscriptionId>,
    failed: bool,
}

impl InOrder {
    pub(super) fn new(claimer: Claimer) -> Self {
        Self {
            claimer: Arc::new(claimer),
            waiting: VecDeque::new(),
            is_waiting: HashSet::new(),
            claims: JoinSet::new(),
            claimed_for: HashSet::new(),
            failed: false,
        }
    }

    /// The lane, which this worker owns, is to be claimed for. If it is just now, then once more after that: what this is told for may
    /// have come too late for it.
    pub(super) fn add(&mut self, lane: SubscriptionId, terms: Terms) {
        if self.is_waiting.insert(lane) {
            self.waiting.push_back((lane, terms));
        }
        self.begin();
    }

    fn begin(&mut self) {
        while self.claims.len() < AT_ONCE
            && let Some(at) = self
                .waiting
                .iter()
                .position(|(lane, _)| !self.claimed_for.contains(lane))
            && let Some((lane, terms)) = self.waiting.remove(at)
        {
            self.is_waiting.remove(&lane);
            self.claimed_for.insert(lane);
            let claimer = Arc::clone(&self.claimer);
            self.claims
                .spawn(async move { (lane, claimer.claim(lane, terms).await) });
        }
    }

    /// A claim has ended, and the next has begun; for ever, if there is none.
    pub(super) async fn ended(&mut self) {
        match self.claims.join_next().await {
            Some(Ok((lane, claimed))) => {
                self.claimed_for.remove(&lane);
                if let Err(error) = claimed {
                    tracing::debug!(%error, subscription.id = %lane, "a lane in order could not be fed");
                    // Those may not be either: the next sweep finds them.
                    self.failed = true;
                    self.waiting.clear();
                    self.is_waiting.clear();
                }
                self.begin();
            }
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => std::future::pending().await,
        }
    }

    /// Whether a claim has failed since this was last asked.
    pub(super) fn has_failed(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }

    /// Begins no more, and waits for those under way: room that is reserved must be claimed for or given back.
    pub(super) async fn finish(&mut self) {
        self.waiting.clear();
        self.is_waiting.clear();
        self.drained().await;
    }

    /// Waits until all have been claimed for.
    pub(super) async fn drained(&mut self) {
        while !self.claims.is_empty() {
            self.ended().await;
        }
    }
}

impl Claimer {
    async fn claim(&self, lane: SubscriptionId, terms: Terms) -> store::Result<()> {
        let room = self
            .dispatch
            .lanes()
            .reserve_many(lane, terms, MOST, Instant::now());
        let Ok(most @ 1..) = u32::try_from(room) else {
            return Ok(());
        };
        let holding = self.lease.current();
        let claimed = self
            .store
            .deliveries
            .claim_in_order(holding.worker(), lane, most)
            .await;
        if claimed.is_err() {
            // They may have been claimed all the same.
            self.lease.doubt();
        }
        let count = claimed.as_ref().map_or(0, Vec::len);
        {
            let mut lanes = self.dispatch.lanes();
            // Claimed may be fewer than there are: for their bytes, or for an intake that is not over.
            let is_current = self.lease.is_current(&holding);
            lanes.set_hungry(lane, claimed.is_err() || count > 0 || !is_current);
            lanes.unreserve(lane, room - count);
        }
        self.dispatch
            .push(claimed?.into_iter().map(|claimed| job(claimed, &holding, true)));
        Ok(())
    }
}
