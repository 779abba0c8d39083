//! Schema, partitions, retention, health, and word of changes.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

#[cfg(doc)]
use super::PING_TIMEOUT;
use super::{Pause, Result};
use crate::{DeliveryKey, EventId, SubscriptionId, seal::Sealed};

/// Word that something changed. It may be lost (the connection that brings it may break): whoever acts on it has a
/// poll behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A subscription was created, changed, deleted, enabled or disabled.
    Subscription(SubscriptionId),
    /// There is something new in a lane that has an owner, or that somebody pulls from and waits.
    Lane(SubscriptionId),
    /// Somebody waits to pull from this subscription: a worker that stores something for it is to say so.
    Awaited(SubscriptionId),
    /// Deliveries of an event that a worker held were closed.
    Closed(EventId),
    /// One delivery that a worker held was cancelled; others of its event go on.
    Cancelled(DeliveryKey),
    /// A subscriber asked one worker to be left alone: all keep to it.
    Pause(Pause),
    /// A test push waits for a worker.
    TestPush,
    /// Word may have been lost: look at everything.
    Everything,
}

/// What one round of retention did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Deliveries that were still open and are `expired` now.
    pub expired: u64,
    /// Events removed, where they are counted (the embedded engine); partitions dropped elsewhere.
    pub removed: u64,
    /// Events removed before that, of organizations that keep theirs for shorter.
    pub removed_early: u64,
    /// What had been set aside for longer than retention, and was removed.
    pub set_aside_removed: u64,
}

/// Schema, partitions, retention, health, and word of changes.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// Brings the schema up to date; safe when many start at once.
    async fn migrate(&self) -> Result<()>;
    /// Checks that the store answers, and has its schema, within [`PING_TIMEOUT`].
    async fn ping(&self) -> Result<()>;
    /// Keeps `sealed` as the deployment's [check value](crate::seal::Sealer::check_value) if it has none yet, and gives
    /// the one that it has.
    async fn secret_check(&self, sealed: Sealed) -> Result<Sealed>;
    /// The deployment's check value, if it has one.
    async fn kept_secret_check(&self) -> Result<Option<Sealed>>;
    /// Puts another check value in place of this one; `false` if it is not that (any more).
    async fn replace_secret_check(&self, before: &Sealed, after: Sealed) -> Result<bool>;
    /// Makes partitions ahead, forgets secrets that sign no more, expires and drops what is older than `retention`, or than its
    /// organization's own, forgets expired deduplication keys. In small steps; only one node does it at a time, others return
    /// at once.
    async fn keep(&self, retention: Duration) -> Result<Retention>;
    /// Writes `cancelled` to a batch of open deliveries of deleted subscriptions; `true` if there may be more.
    async fn cancel_deleted(&self) -> Result<bool>;
    /// Word of changes from now on.
    fn changes(&self) -> broadcast::Receiver<Change>;
    /// Closes connections after what is under way.
    async fn close(&self);
}
