//! Deliveries: workers' leases, what they take and give back, how deliveries end.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

#[cfg(doc)]
use super::Change;
use super::Result;
use crate::{
    DeliveryKey, EventId, OrganizationId, SubscriptionId, Timestamp, WorkerId, delivery::AttemptOutcome,
};

/// How many bytes of payload one claim returns, about.
pub const CLAIM_BYTES: usize = 8 * 1024 * 1024;
/// How many bytes of payload one claim of a lane in order returns, about: several are made at once.
pub const CLAIM_IN_ORDER_BYTES: usize = CLAIM_BYTES / 4;

/// A delivery that a worker has taken from the store, with all it needs to send it.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Its address.
    pub key: DeliveryKey,
    /// Whose it is.
    pub organization: OrganizationId,
    /// The event's place in the order of intake.
    pub seq: i64,
    /// Attempts made so far.
    pub attempts: u32,
    /// How many attempts there were when it was last opened again: its schedule begins there.
    pub attempts_before: u32,
    /// The event's type.
    pub event_type: EventTypeText,
    /// When the front took the event.
    pub received_at: Timestamp,
    /// When the producer says that it happened.
    pub occurred_at: Option<Timestamp>,
    /// Where it comes from, as the producer says.
    pub source: Option<String>,
    /// The trace that the event is part of.
    pub trace: Option<String>,
    /// The event's payload.
    pub payload: bytes::Bytes,
}

/// A stored event type.
pub type EventTypeText = Arc<str>;

/// What became of a worker's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It holds, for another time to live from when the call was made.
    Held,
    /// It ran out: all that the worker held may be held by others by now. Take a new worker id.
    Lost,
}

/// How many workers there are, and how the lanes that have an owner are spread over them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Workers whose lease lives; one that has several, under ids that [succeeded](WorkerId::successor) one another, counts
    /// once.
    pub workers: u32,
    /// Lanes that the worker owns that asked.
    pub mine: u32,
    /// Lanes that any living worker owns.
    pub all: u32,
}

/// What acknowledging came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    /// Open deliveries were closed just now, or there were none left to close.
    Done {
        /// The first event's id, if an alias was given.
        event: EventId,
        /// When.
        at: Timestamp,
    },
    /// The organization has no such event (yet).
    NotFound,
}

/// Deliveries. A delivery belongs to the worker whose id is its owner for as long as that worker's lease lives; one
/// whose owner has none (any more) is anybody's.
#[async_trait]
pub trait Deliveries: Send + Sync {
    /// Makes a worker known, with a lease that lives for `ttl`.
    async fn enlist(&self, worker: WorkerId, ttl: Duration) -> Result<()>;
    /// Renews a worker's lease, and forgets workers whose lease ran out long ago.
    async fn renew(&self, worker: WorkerId, ttl: Duration) -> Result<Lease>;
    /// Ends a worker's lease: what it held is anybody's.
    async fn resign(&self, worker: WorkerId) -> Result<()>;
    /// The enabled push subscriptions that have due deliveries nobody holds, and that no other living worker owns; at most
    /// `limit`, those after `after` first (so that a caller can go round).
    async fn lanes_due(
        &self,
        worker: WorkerId,
        after: Option<SubscriptionId>,
        limit: u32,
    ) -> Result<Vec<SubscriptionId>>;
    /// How many workers there are, and how the lanes that have an owner are spread over them.
    async fn standing(&self, worker: WorkerId) -> Result<Standing>;
    /// Makes the worker the owner of these lanes, but for those that another living worker owns; returns those that it owns
    /// now. A lane belongs to its owner until that gives it up, or has no living lease any more.
    async fn own(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<Vec<SubscriptionId>>;
    /// Makes a worker, if its lease lives, the owner of all lanes that another owns, and returns them: the two are one process,
    /// which has taken a [new id](WorkerId::successor). What the other holds stays held by it.
    async fn hand_over(&self, from: WorkerId, to: WorkerId) -> Result<Vec<SubscriptionId>>;
    /// Gives lanes up that the worker owns.
    async fn disown(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<()>;
    /// Tells the owners of these lanes, or whoever waits to pull from them, as [`Change::Lane`], that there is something new in
    /// them.
    async fn tell_owners(&self, lanes: &[SubscriptionId]) -> Result<()>;
    /// Takes the first deliveries of a lane that is served in order, which the worker must own: in order of `seq`, up to the
    /// first that is not due, or is held by anybody, or that another might still come before; at most `most`, and about
    /// [`CLAIM_IN_ORDER_BYTES`].
    async fn claim_in_order(&self, worker: WorkerId, lane: SubscriptionId, most: u32)
    -> Result<Vec<Claimed>>;
    /// Takes due deliveries that nobody holds, of lanes that no other living worker owns, up to so many a subscription: first
    /// what was due already when the subscription was last enabled, in order of `seq`, then the others, oldest due first; and
    /// no more than come to [`CLAIM_BYTES`] of payload, but for the last of them.
    async fn claim(&self, worker: WorkerId, wanted: &[(SubscriptionId, u32)]) -> Result<Vec<Claimed>>;
    /// Gives back what the worker holds of these, as they were.
    async fn release(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<()>;
    /// Which of these are still open and held by the worker.
    async fn still_held(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<Vec<DeliveryKey>>;
    /// Writes outcomes down in one transaction, each only if it still applies (see [`AttemptOutcome`]), and returns those
    /// that did. An outcome that applies ends the worker's hold.
    async fn record(&self, worker: WorkerId, outcomes: &[AttemptOutcome]) -> Result<Vec<DeliveryKey>>;
    /// Closes every open delivery of each event (by id or alias): nothing more is sent. In the order of `events`. Closing
    /// what a worker holds is announced as [`Change::Closed`]. What a deleted subscription leaves open stays cancelled.
    async fn acknowledge(
        &self,
        organization: OrganizationId,
        events: &[EventId],
    ) -> Result<Vec<Acknowledged>>;
    /// Open deliveries by state, and the age of the oldest that is due, over all organizations: for metrics, so an
    /// estimate bounded in cost: counts stop at 100,000.
    async fn backlog(&self) -> Result<Backlog>;
}

/// How much is still to be delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Open push deliveries without a failed attempt, of enabled subscriptions, up to 100,000.
    pub pending: u64,
    /// Open push deliveries with a failed attempt, of enabled subscriptions, up to 100,000.
    pub retrying: u64,
    /// Open push deliveries whose subscription is disabled, up to 100,000.
    pub parked: u64,
    /// How long the oldest due one has been due.
    pub oldest_due: Duration,
}
