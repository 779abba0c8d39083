//! The limits of organizations over all nodes, and counting what they use.
//!
//! Each organization has an account here: counters for everybody, and for those with a limit this node's part in their
//! [bucket]. A request looks its account up and adds to it, behind a lock of its own that is held for a few additions; it
//! never waits for the store. A task ([`sharing`]) tells the store once a second what was taken, for the organizations that
//! took something, and divides anew what it hears. How it fails: while the store is away a node goes on with the share that
//! it had.

mod bucket;
mod demand;
mod sharing;
#[cfg(test)]
mod simulation;
mod taken;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;
use shared::{Grant, OrganizationId, Tier, http::LimitState, lifecycle::Lifecycle, store::Store};
use tokio::sync::Notify;
use uuid::Uuid;

use self::bucket::Bucket;
pub(crate) use self::taken::Taken;

/// The most organizations that are remembered; one that is forgotten finds its bucket as the store has it.
const MAX_ORGANIZATIONS: usize = 100_000;

/// The accounts of a node.
pub struct Limits {
    node: Uuid,
    accounts: Cache<OrganizationId, Arc<Account>>,
    /// Those of which the store is to be told something.
    busy: Mutex<Vec<Arc<Account>>>,
    /// How many nodes live, as last heard.
    nodes: AtomicU32,
    /// To be told at once.
    hurry: Notify,
    started: Instant,
}

/// An organization, as this node knows it.
struct Account {
    organization: OrganizationId,
    tier: Tier,
    bucket: Option<Mutex<Bucket>>,
    /// Since they were last taken over by the task that writes them down.
    accepted: AtomicU64,
    refused: AtomicU64,
    /// Whether it is among those of which the store is to be told.
    busy: AtomicBool,
}

/// What became of asking for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is no limit.
    Unlimited,
    /// There was room; one event's worth is taken.
    Taken(LimitState),
    /// There is none; nothing is taken.
    Full {
        /// How long until there is room for one.
        retry_after: Duration,
        /// How it stands.
        state: LimitState,
    },
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            node: Uuid::new_v4(),
            accounts: Cache::new(MAX_ORGANIZATIONS),
            busy: Mutex::default(),
            nodes: AtomicU32::new(1),
            hurry: Notify::new(),
            started: Instant::now(),
        }
    }
}

impl Limits {
    /// With a task that agrees with other nodes through the store.
    pub fn start(store: &Store, lifecycle: &Lifecycle) -> Arc<Self> {
        let limits = Arc::new(Self::default());
        let sharing = sharing::share(
            Arc::clone(&limits),
            Arc::clone(&store.limits),
            lifecycle.soft.clone(),
        );
        lifecycle.critical("limits", sharing);
        limits
    }

    /// Takes one event's worth from the organization's bucket, if it is there.
    pub fn take(&self, grant: &Grant) -> Room {
        let account = self.account(grant);
        let Some(mut bucket) = account.bucket() else {
            return Room::Unlimited;
        };
        let taking = bucket.take(self.now());
        drop(bucket);
        self.is_busy(&account);
        if taking.hurry {
            self.hurry.notify_one();
        }
        taking.room
    }

    /// So many events' worth that were taken, as far as there is a limit: to be accepted, or given back.
    pub(crate) fn taken(self: &Arc<Self>, grant: &Grant, events: usize) -> Taken {
        Taken::of(self, grant, events)
    }

    /// How the organization's limit stands; `None` if it has none. Nothing is taken.
    pub fn state(&self, grant: &Grant) -> Option<LimitState> {
        let account = self.account(grant);
        let bucket = account.bucket()?;
        Some(bucket.state(self.now()))
    }

    /// Counts events that the limit refused.
    pub(crate) fn count_refused(&self, grant: &Grant, events: usize) {
        if events > 0 {
            self.count_for(&self.account(grant), 0, events);
        }
    }

    fn count_for(&self, account: &Arc<Account>, accepted: usize, refused: usize) {
        account.accepted.fetch_add(accepted as u64, Ordering::SeqCst);
        account.refused.fetch_add(refused as u64, Ordering::SeqCst);
        if refused > 0
            && let Some(mut bucket) = account.bucket()
        {
            bucket.refused(i64::try_from(refused).unwrap_or(i64::MAX));
        }
        self.is_busy(account);
    }

    /// Accepted events that are not taken over yet by the task that writes them down.
    #[cfg(test)]
    pub(crate) fn accepted(&self, grant: &Grant) -> u64 {
        self.account(grant).accepted.load(Ordering::SeqCst)
    }

    /// Nanoseconds of this process.
    fn now(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }

    fn account(&self, grant: &Grant) -> Arc<Account> {
        match self.accounts.get(&grant.organization) {
            Some(account) if account.tier == grant.tier => account,
            _ => {
                let nodes = self.nodes.load(Ordering::Relaxed);
                let limit = grant.tier.events_per_minute();
                let bucket = limit.map(|limit| Mutex::new(Bucket::new(limit, self.now(), nodes)));
                let account = Arc::new(Account {
                    organization: grant.organization,
                    tier: grant.tier,
                    bucket,
                    accepted: AtomicU64::new(0),
                    refused: AtomicU64::new(0),
                    busy: AtomicBool::new(false),
                });
                self.accounts.insert(grant.organization, Arc::clone(&account));
                account
            }
        }
    }

    /// The store is to be told of it, soon.
    fn is_busy(&self, account: &Arc<Account>) {
        // Looked at first: it is nearly always so, and what is only read is not fought over.
        if !account.busy.load(Ordering::SeqCst) && !account.busy.swap(true, Ordering::SeqCst) {
            self.busy().push(Arc::clone(account));
        }
    }

    fn busy(&self) -> MutexGuard<'_, Vec<Arc<Account>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn bucket(&self) -> Option<MutexGuard<'_, Bucket>> {
        let bucket = self.bucket.as_ref()?;
        Some(bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
