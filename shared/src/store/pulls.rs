//! Pulling: what waits in a subscription of kind `pull` is leased, then acknowledged or given back.
//!
//! A lease is a time in the delivery's row: until then it is not due. So it ends by itself, by the store's clock, whoever
//! dies; there is nothing to sweep, and nobody to renew it.

use std::time::Duration;

use async_trait::async_trait;

use super::Result;
#[cfg(doc)]
use super::{Change, PAGE_BYTES};
use crate::{DeliveryStatus, EventId, OrganizationId, SubscriptionId, Timestamp};

/// Where somebody pulls from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullSource {
    /// Whose it is.
    pub organization: OrganizationId,
    /// Which subscription.
    pub subscription: SubscriptionId,
}

/// What came of a pull.
#[derive(Debug)]
pub enum Pulled {
    /// These are leased now; at least one.
    Events(Vec<PulledEvent>),
    /// There is nothing that is due and not leased.
    Nothing {
        /// How long until something is, if only because a lease ends.
        due_in: Option<Duration>,
    },
    /// The subscription is disabled: what it has is parked.
    Disabled,
    /// The subscription is of another kind: its events are pushed.
    Pushed,
    /// The organization has no such subscription.
    NotFound,
}

/// An event that was leased.
#[derive(Debug, Clone)]
pub struct PulledEvent {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: String,
    /// The producer's key for deduplication.
    pub dedup_id: Option<String>,
    /// Where the producer says that it is from.
    pub source: Option<String>,
    /// When the producer says that it happened.
    pub occurred_at: Option<Timestamp>,
    /// When the front took it.
    pub received_at: Timestamp,
    /// Its payload, byte for byte.
    pub payload: String,
    /// How often it was leased, this time included.
    pub pulls: u32,
    /// When the lease ends.
    pub lease_until: Timestamp,
}

/// What becomes of leases before their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// They end, and what they held is due after this long.
    Release {
        /// How long from now.
        due_in: Duration,
    },
    /// They end this long from now.
    Extend {
        /// How long from now.
        lease: Duration,
    },
}

/// How a delivery is, once what was asked of it is done or came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// So.
    Delivery {
        /// The first event's id, if an alias was given.
        event: EventId,
        /// Where it is now.
        status: DeliveryStatus,
        /// When it last changed.
        updated_at: Timestamp,
        /// When its lease ends, if it is leased.
        lease_until: Option<Timestamp>,
    },
    /// The subscription has no delivery of such an event.
    NotFound,
}

/// Pulling. Concerns the one delivery that the subscription has of an event, and no other of the event's.
#[async_trait]
pub trait Pulls: Send + Sync {
    /// Leases what is due and not leased: at most `most`, and at most [`PAGE_BYTES`] of payloads unless the first alone has
    /// more. What became due first comes first, and of that what has the least `seq`. No two pulls get the same delivery
    /// while its lease lives.
    async fn pull(&self, source: PullSource, most: u32, lease: Duration) -> Result<Pulled>;
    /// Closes the deliveries that are open, leased or not. In the order of `events`, how each delivery is then.
    async fn acknowledge_pulled(&self, source: PullSource, events: &[EventId]) -> Result<Vec<Settled>>;
    /// Changes the leases of deliveries that are leased, whoever leased them. In the order of `events`, how each delivery is
    /// then. What is released is announced as [`Change::Lane`].
    async fn change_leases(
        &self,
        source: PullSource,
        events: &[EventId],
        change: LeaseChange,
    ) -> Result<Vec<Settled>>;
    /// Tells workers, as [`Change::Awaited`], that somebody waits for what comes next to the subscription.
    async fn tell_awaited(&self, subscription: SubscriptionId) -> Result<()>;
}
