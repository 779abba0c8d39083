//! This worker's lease: what it holds it may send for as long as the lease lives.
//!
//! The lease is one row in the store, whatever the worker holds, and the store's clock rules it. Here it is reckoned to
//! live for its time from just before a renewal that succeeded was asked for, so never longer than the store thinks. A
//! worker that stalled past it takes a new id and forgets what it held: others may hold it by now.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use shared::{WorkerId, store};
use tokio::time::Instant;

/// How long a lease lives after a renewal: how long what a dead worker held has to wait.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(12);
/// How often it is renewed.
pub const RENEWAL: Duration = Duration::from_secs(3);

/// The lease.
#[derive(Debug)]
pub struct Lease(Mutex<Held>);

#[derive(Debug, Clone, Copy)]
struct Held {
    worker: WorkerId,
    until: Instant,
}

impl Lease {
    /// Not held yet: the first [`Lease::enlist`] makes it so.
    pub fn new() -> Self {
        Self(Mutex::new(Held {
            worker: WorkerId::new(),
            until: Instant::now(),
        }))
    }

    /// As whom this worker holds what it takes now.
    pub fn worker(&self) -> WorkerId {
        self.held().worker
    }

    /// Whether what was taken as `holder` may still be sent.
    pub fn is_held_by(&self, holder: WorkerId) -> bool {
        let held = self.held();
        held.worker == holder && Instant::now() < held.until
    }

    /// Makes this worker known to the store, under a new id.
    pub async fn enlist(&self, deliveries: &dyn store::Deliveries) -> store::Result<WorkerId> {
        let (worker, asked) = (WorkerId::new(), Instant::now());
        deliveries.enlist(worker, TIME_TO_LIVE).await?;
        self.hold(Held {
            worker,
            until: asked + TIME_TO_LIVE,
        });
        Ok(worker)
    }

    /// Renews it.
    pub async fn renew(&self, deliveries: &dyn store::Deliveries) -> store::Result<store::Lease> {
        let (worker, asked) = (self.worker(), Instant::now());
        let lease = deliveries.renew(worker, TIME_TO_LIVE).await?;
        if lease == store::Lease::Held {
            self.hold(Held {
                worker,
                until: asked + TIME_TO_LIVE,
            });
        }
        Ok(lease)
    }

    fn held(&self) -> Held {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, held: Held) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}
