//! This worker's leases: what it holds it may send for as long as the lease lives.
//!
//! A lease is one row in the store, whatever is held by it, and the store's clock rules it. Here it is reckoned to live for
//! its time from just before a renewal that succeeded was asked for, so never longer than the store thinks. A worker
//! that stalled past it takes a new id and forgets what it held: others may hold it by now.
//!
//! What the store says is held and what this worker knows of can part: a call that took deliveries may have been
//! committed though its answer was lost. Nobody would send those, and the lease would keep everybody else away. So after
//! any such [doubt](Lease::doubt) the worker takes a new id for what comes, and the old lease is kept only until what is
//! known to be held by it is done with; then it ends, and what nobody knew of is anybody's.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shared::{WorkerId, store};
use tokio::time::Instant;

/// How long a lease lives after a renewal: how long what a dead worker held has to wait.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(12);
/// How often it is renewed.
pub const RENEWAL: Duration = Duration::from_secs(3);

/// One lease, and by being shared, whether anything is held by it: whatever is held has a clone.
#[derive(Debug)]
pub struct Holding {
    worker: WorkerId,
    until: Mutex<Instant>,
}

impl Holding {
    /// Known to the store from `asked` on.
    pub fn new(worker: WorkerId, asked: Instant) -> Arc<Self> {
        Arc::new(Self {
            worker,
            until: Mutex::new(asked + TIME_TO_LIVE),
        })
    }

    /// As whom the store knows its holder.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// Whether what is held by it may be sent.
    pub fn is_live(&self) -> bool {
        Instant::now() < *lock(&self.until)
    }

    async fn renew(&self, deliveries: &dyn store::Deliveries) -> store::Result<store::Lease> {
        let asked = Instant::now();
        let lease = deliveries.renew(self.worker, TIME_TO_LIVE).await?;
        *lock(&self.until) = match lease {
            store::Lease::Held => asked + TIME_TO_LIVE,
            store::Lease::Lost => asked,
        };
        Ok(lease)
    }
}

/// The lease by which this worker takes what it takes now, and those that are on their way out.
#[derive(Debug)]
pub struct Lease {
    current: Mutex<Arc<Holding>>,
    retiring: Mutex<Vec<Arc<Holding>>>,
    doubt: AtomicBool,
}

/// What renewing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// As before.
    Same,
    /// There was doubt: this worker has a new id. What was held by the old one and is not under way is to be dropped.
    Anew,
    /// The lease ran out; this worker has a new id.
    AfterLoss,
}

impl Lease {
    /// Takes a first lease.
    pub async fn enlist(deliveries: &dyn store::Deliveries) -> store::Result<Self> {
        let holding = enlist(deliveries, WorkerId::new()).await?;
        Ok(Self {
            current: Mutex::new(holding),
            retiring: Mutex::default(),
            doubt: AtomicBool::new(false),
        })
    }

    /// To take something by: keep it for as long as that is under way.
    pub fn current(&self) -> Arc<Holding> {
        Arc::clone(&lock(&self.current))
    }

    /// Whether what is taken now is taken by this.
    pub fn is_current(&self, holding: &Holding) -> bool {
        lock(&self.current).worker == holding.worker
    }

    /// As whom this worker holds what it took before, and is not done with.
    pub fn retiring(&self) -> Vec<WorkerId> {
        lock(&self.retiring)
            .iter()
            .map(|holding| holding.worker)
            .collect()
    }

    /// The store may think that this worker holds something that it does not know of.
    pub fn doubt(&self) {
        self.doubt.store(true, Ordering::Relaxed);
    }

    /// Renews what is needed, takes a new lease where there is doubt, and ends those by which nothing is held any more.
    pub async fn renew(&self, deliveries: &dyn store::Deliveries) -> store::Result<Renewed> {
        let retiring: Vec<_> = std::mem::take(&mut *lock(&self.retiring));
        for holding in retiring {
            // One clone is here: nothing else is held by it, and nothing can be any more.
            let done = if Arc::strong_count(&holding) == 1 {
                deliveries.resign(holding.worker).await.is_ok()
            } else {
                matches!(holding.renew(deliveries).await, Ok(store::Lease::Lost))
            };
            if !done {
                lock(&self.retiring).push(holding);
            }
        }
        let current = self.current();
        let lost = current.renew(deliveries).await? == store::Lease::Lost;
        if !lost && !self.doubt.load(Ordering::Relaxed) {
            return Ok(Renewed::Same);
        }
        // Known for the same worker, also should the answer be lost and another be taken.
        let holding = enlist(deliveries, current.worker.successor()).await?;
        self.doubt.store(false, Ordering::Relaxed);
        let old = std::mem::replace(&mut *lock(&self.current), holding);
        drop(current);
        if !lost {
            lock(&self.retiring).push(old);
        }
        Ok(if lost { Renewed::AfterLoss } else { Renewed::Anew })
    }

    /// Ends every lease: nothing is under way any more.
    pub async fn resign(&self, deliveries: &dyn store::Deliveries) -> store::Result<()> {
        let mut holdings = std::mem::take(&mut *lock(&self.retiring));
        holdings.push(self.current());
        for holding in holdings {
            deliveries.resign(holding.worker).await?;
        }
        Ok(())
    }
}

async fn enlist(deliveries: &dyn store::Deliveries, worker: WorkerId) -> store::Result<Arc<Holding>> {
    let asked = Instant::now();
    deliveries.enlist(worker, TIME_TO_LIVE).await?;
    tracing::info!(worker.id = %worker, "the worker is enlisted");
    Ok(Holding::new(worker, asked))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
