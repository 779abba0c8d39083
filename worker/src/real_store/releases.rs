//! Deliveries of a real store, which are given back, and claimed in order, when the test lets them; and whose lanes are given up
//! without an answer, if it says so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use shared::{
    DeliveryKey, EventId, OrganizationId, SubscriptionId, WorkerId,
    delivery::AttemptOutcome,
    store::{Acknowledged, Backlog, Claimed, Deliveries, Lease, Result, Standing, StoreError},
};
use tokio::sync::{Mutex, MutexGuard};

/// Delegates to a real store, but for what it is told.
pub struct Releases {
    real: Arc<dyn Deliveries>,
    fail: AtomicBool,
    lose: AtomicBool,
    /// Whoever has this keeps them waiting.
    gate: Mutex<()>,
    /// And whoever has this, claims in order.
    in_order: Mutex<()>,
    claims_in_order: AtomicUsize,
}

impl Releases {
    pub(super) fn of(real: Arc<dyn Deliveries>) -> Self {
        Self {
            real,
            fail: AtomicBool::new(false),
            lose: AtomicBool::new(false),
            gate: Mutex::new(()),
            in_order: Mutex::new(()),
            claims_in_order: AtomicUsize::new(0),
        }
    }

    /// How often a lane in order was claimed for.
    pub fn claims_in_order(&self) -> usize {
        self.claims_in_order.load(Ordering::Relaxed)
    }

    /// From now on they fail.
    pub fn fail(&self) {
        self.fail.store(true, Ordering::Relaxed);
    }

    /// From now on nobody hears that lanes are given up.
    pub fn lose(&self) {
        self.lose.store(true, Ordering::Relaxed);
    }

    /// They take for as long as this is kept.
    pub async fn stall(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().await
    }

    /// Claims in order take for as long as this is kept.
    pub async fn stall_in_order(&self) -> MutexGuard<'_, ()> {
        self.in_order.lock().await
    }
}

#[async_trait]
impl Deliveries for Releases {
    async fn release(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<()> {
        drop(self.gate.lock().await);
        if self.fail.load(Ordering::Relaxed) {
            return Err(StoreError::Corrupt("a fault of the test's".to_owned()));
        }
        self.real.release(worker, keys).await
    }

    async fn enlist(&self, worker: WorkerId, ttl: Duration) -> Result<()> {
        self.real.enlist(worker, ttl).await
    }

    async fn renew(&self, worker: WorkerId, ttl: Duration) -> Result<Lease> {
        self.real.renew(worker, ttl).await
    }

    async fn resign(&self, worker: WorkerId) -> Result<()> {
        self.real.resign(worker).await
    }

    async fn lanes_due(
        &self,
        worker: WorkerId,
        after: Option<SubscriptionId>,
        limit: u32,
    ) -> Result<Vec<SubscriptionId>> {
        self.real.lanes_due(worker, after, limit).await
    }

    async fn standing(&self, worker: WorkerId) -> Result<Standing> {
        self.real.standing(worker).await
    }

    async fn own(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<Vec<SubscriptionId>> {
        self.real.own(worker, lanes).await
    }

    async fn hand_over(&self, from: WorkerId, to: WorkerId) -> Result<Vec<SubscriptionId>> {
        self.real.hand_over(from, to).await
    }

    async fn disown(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<()> {
        self.real.disown(worker, lanes).await?;
        if self.lose.load(Ordering::Relaxed) {
            return Err(StoreError::Corrupt("a fault of the test's".to_owned()));
        }
        Ok(())
    }

    async fn tell_owners(&self, lanes: &[SubscriptionId]) -> Result<()> {
        self.real.tell_owners(lanes).await
    }

    async fn claim_in_order(
        &self,
        worker: WorkerId,
        lane: SubscriptionId,
        most: u32,
    ) -> Result<Vec<Claimed>> {
        drop(self.in_order.lock().await);
        self.claims_in_order.fetch_add(1, Ordering::Relaxed);
        self.real.claim_in_order(worker, lane, most).await
    }

    async fn claim(&self, worker: WorkerId, wanted: &[(SubscriptionId, u32)]) -> Result<Vec<Claimed>> {
        self.real.claim(worker, wanted).await
    }

    async fn still_held(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<Vec<DeliveryKey>> {
        self.real.still_held(worker, keys).await
    }

    async fn record(&self, worker: WorkerId, outcomes: &[AttemptOutcome]) -> Result<Vec<DeliveryKey>> {
        self.real.record(worker, outcomes).await
    }

    async fn acknowledge(
        &self,
        organization: OrganizationId,
        events: &[EventId],
    ) -> Result<Vec<Acknowledged>> {
        self.real.acknowledge(organization, events).await
    }

    async fn backlog(&self) -> Result<Backlog> {
        self.real.backlog().await
    }
}
