//! Schema, partitions, retention, health, and word of changes.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use super::Result;
use crate::{EventId, SubscriptionId};

/// Word that something changed. It may be lost (the connection that brings it may break): whoever acts on it has a
/// poll behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A subscription was created, changed, deleted, enabled or disabled.
    Subscription(SubscriptionId),
    /// Deliveries of an event that a worker held were closed.
    Closed(EventId),
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
}

/// Schema, partitions, retention, health, and word of changes.
#[async_trait]
pub trait Keeper: Send + Sync {
    /// Brings the schema up to date; safe when many start at once.
    async fn migrate(&self) -> Result<()>;
    /// Checks that the store answers, and has its schema.
    async fn ping(&self) -> Result<()>;
    /// Makes partitions ahead, expires and drops what is older than `retention`, forgets expired deduplication keys. In
    /// small steps; only one node does it at a time, others return at once.
    async fn keep(&self, retention: Duration) -> Result<Retention>;
    /// Writes `cancelled` to a batch of open deliveries of deleted subscriptions; `true` if there may be more.
    async fn cancel_deleted(&self) -> Result<bool>;
    /// Word of changes from now on.
    fn changes(&self) -> broadcast::Receiver<Change>;
    /// Closes connections after what is under way.
    async fn close(&self);
}
