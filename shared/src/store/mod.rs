//! The store: what is accepted becomes durable work here, and everything that can be looked up is looked up here.
//!
//! A few traits, one an aggregate, with two engines behind them: PostgreSQL in production, SQLite embedded. Which one
//! is chosen by URL. Both pass the same black-box tests. All times that decide something (what is due, whose lease
//! ran out, which key has expired) are the store's own clock, never a caller's.

mod page;
pub mod postgres;
pub mod sqlite;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::{
    AcceptedEvent, DeliveryKey, DeliveryState, EventId, EventPattern, EventStatus, FailureKind, Grant, Key,
    KeyHash, KeyId, Organization, OrganizationId, Repeat, Scopes, SetAsideId, Subscription, SubscriptionId,
    Tier, Timestamp, WorkerId,
    delivery::{AttemptOutcome, Status},
    seal::Sealed,
    subscription::Target,
};

pub use page::PAGE_BYTES;

/// How long [`Keeper::ping`] waits for an answer: less than a readiness check may take.
pub const PING_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long a deduplication key is remembered.
pub const DEDUPLICATION_WINDOW: Duration = Duration::from_hours(24);

/// Why a store could not do what was asked. What it would not do is in each operation's own outcome.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is away, out of connections, or gave up a transaction: the same call may succeed later.
    #[error("the store is unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// It refuses this content, now and later.
    #[error("the store refuses the data: {0}")]
    Refused(#[source] sqlx::Error),
    /// What it holds does not read as what it should be: a row of another version, or a damaged one.
    #[error("the store holds what it should not: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Whether a refusal says that no partition takes a row (PostgreSQL's SQLSTATE 23514; events have no other check).
pub fn is_missing_partition(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.code().as_deref() == Some("23514"))
}

/// What a store call answers.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The store of a deployment. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// Organizations and keys.
    pub organizations: Arc<dyn Organizations>,
    /// Subscriptions.
    pub subscriptions: Arc<dyn Subscriptions>,
    /// Events: intake, look-up, lists, and what was set aside.
    pub events: Arc<dyn Events>,
    /// Deliveries: leases, outcomes, acknowledgements.
    pub deliveries: Arc<dyn Deliveries>,
    /// Schema, partitions, retention, health, and word of changes.
    pub keeper: Arc<dyn Keeper>,
}

/// A list's page: `limit` items after `cursor`, which is opaque to clients and each list's own.
#[derive(Debug, Clone)]
pub struct PageRequest<C> {
    /// Where the page before ended.
    pub after: Option<C>,
    /// 1 to 1,000.
    pub limit: u32,
}

/// One page, and where the next begins if there is one.
#[derive(Debug, Clone)]
pub struct Page<T, C> {
    /// The items.
    pub items: Vec<T>,
    /// To be given as [`PageRequest::after`].
    pub next: Option<C>,
}

/// A key to create.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// What is listed of it; `created_at` and `revoked_at` are the store's to set.
    pub id: KeyId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// A name for people.
    pub name: String,
    /// The first characters of its text.
    pub hint: String,
    /// What it is looked up by.
    pub hash: KeyHash,
    /// What it may do.
    pub scopes: Scopes,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// Organizations and their keys.
#[async_trait]
pub trait Organizations: Send + Sync {
    /// Creates an organization with its built-in inbox subscription and a first key, all or nothing.
    async fn create(&self, id: OrganizationId, name: &str, tier: Tier, key: NewKey) -> Result<Organization>;
    /// Looks one up.
    async fn get(&self, id: OrganizationId) -> Result<Option<Organization>>;
    /// Changes the name; `None` if there is no such organization.
    async fn rename(&self, id: OrganizationId, name: &str) -> Result<Option<Organization>>;
    /// Adds a key.
    async fn create_key(&self, key: NewKey) -> Result<Key>;
    /// Lists the keys of an organization, newest first, revoked ones included.
    async fn keys(&self, organization: OrganizationId, page: PageRequest<KeyId>) -> Result<Page<Key, KeyId>>;
    /// Ends a key now; `false` if the organization has no such key. Revoking again changes nothing.
    async fn revoke_key(&self, organization: OrganizationId, key: KeyId) -> Result<bool>;
    /// Adds `new` and ends `old` now, in one transaction; `None` if `old` is not a valid key of the organization.
    async fn rotate_key(&self, old: KeyId, new: NewKey) -> Result<Option<Key>>;
    /// What these keys grant; unknown, revoked and expired ones are left out.
    async fn grants(&self, hashes: &[KeyHash]) -> Result<Vec<(KeyHash, Grant)>>;
}

/// A change to a subscription; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct SubscriptionPatch {
    /// The target as a whole: the caller has read the current one and changed it.
    pub target: Option<Target>,
    /// Which events it wants.
    pub event_types: Option<Vec<EventPattern>>,
    /// Whether it is served.
    pub enabled: Option<bool>,
    /// A text for people; `Some(None)` removes it.
    pub description: Option<Option<String>>,
}

/// What came of a change to a subscription.
#[derive(Debug, Clone)]
pub enum PatchOutcome {
    /// It was made; this is how the subscription is now.
    Changed(Box<Subscription>),
    /// Somebody else changed it since the caller read it; read it again.
    Conflict,
    /// The organization has no such subscription.
    NotFound,
}

/// An organization's subscriptions as intake sees them.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The organization.
    pub organization: OrganizationId,
    /// Counts the changes to the organization's subscriptions.
    pub version: i64,
    /// All that are not deleted, disabled ones and the built-in inbox included, in order of id.
    pub subscriptions: Vec<Arc<Subscription>>,
}

/// Subscriptions. Every change raises the organization's subscriptions version in the same transaction, and is
/// announced as [`Change::Subscription`].
#[async_trait]
pub trait Subscriptions: Send + Sync {
    /// Adds one (its id, organization, target and so on as given; `version` 1, times the store's).
    async fn create(&self, subscription: Subscription) -> Result<Subscription>;
    /// Looks one up; deleted ones are gone.
    async fn get(&self, organization: OrganizationId, id: SubscriptionId) -> Result<Option<Subscription>>;
    /// Lists those of an organization in order of id, oldest first, the built-in ones included.
    async fn list(
        &self,
        organization: OrganizationId,
        page: PageRequest<SubscriptionId>,
    ) -> Result<Page<Subscription, SubscriptionId>>;
    /// Changes one, if its version is still `version`. Setting `enabled` clears the reason for being disabled.
    async fn patch(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        patch: SubscriptionPatch,
    ) -> Result<PatchOutcome>;
    /// Deletes one; `false` if there is none, or it is the built-in inbox. Its open deliveries count as cancelled from
    /// now on, and [`Keeper::cancel_deleted`] writes that down.
    async fn delete(&self, organization: OrganizationId, id: SubscriptionId) -> Result<bool>;
    /// Disables one for a reason of the system's; changes nothing if it is disabled or gone.
    async fn disable(&self, organization: OrganizationId, id: SubscriptionId, reason: &str) -> Result<()>;
    /// The organization's built-in push subscription that `POST /api/webhook/config` sets, if it has one.
    async fn webhook(&self, organization: OrganizationId) -> Result<Option<Subscription>>;
    /// What is in force for these organizations, each read in one snapshot with its version. An organization that does
    /// not exist is left out.
    async fn in_force(&self, organizations: &[OrganizationId]) -> Result<Vec<InForce>>;
    /// These subscriptions as they are now; deleted ones are left out.
    async fn by_ids(&self, ids: &[SubscriptionId]) -> Result<Vec<Arc<Subscription>>>;
}

/// A delivery that intake is to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedDelivery {
    /// Index of its event in [`IntakeBatch::events`].
    pub event: usize,
    /// To which subscription.
    pub subscription: SubscriptionId,
    /// Whether the worker that takes the batch in holds it from the start, having room in its lane.
    pub held: bool,
}

/// A batch for intake.
#[derive(Debug)]
pub struct IntakeBatch<'a> {
    /// Who takes it in, and owns the deliveries that are [`PlannedDelivery::held`].
    pub worker: WorkerId,
    /// The events, by id, each id once. Several may share a deduplication key: the first in order of id wins.
    pub events: &'a [AcceptedEvent],
    /// Their deliveries, planned by the subscriptions as of `versions`; at least one an event.
    pub deliveries: &'a [PlannedDelivery],
    /// The subscriptions versions that the plan was made by: one for each organization of the events.
    pub versions: &'a [(OrganizationId, i64)],
    /// Repeats that fronts answered themselves, to count.
    pub repeats: &'a [Repeat],
}

/// What came of an intake.
#[derive(Debug, PartialEq, Eq)]
pub enum IntakeOutcome {
    /// It is committed.
    Stored(Vec<StoredEvent>),
    /// Subscriptions changed since the plan was made: nothing was written. Read [`Subscriptions::in_force`] again.
    Stale,
}

/// An event that this very intake stored. Those of the batch that are not among them were stored before (a frame
/// delivered twice) or are duplicates, whose ids are now aliases of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// Its place in the order of intake.
    pub seq: i64,
}

/// An event as it is looked up.
#[derive(Debug, Clone)]
pub struct EventRecord {
    /// Its id: the first event's, if an alias was asked for.
    pub id: EventId,
    /// Its place in the order of intake.
    pub seq: i64,
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
    /// How often it was posted again.
    pub repeats: u64,
    /// How many of those differed in type or payload.
    pub differing_repeats: u64,
    /// Its deliveries, in order of subscription id.
    pub deliveries: Vec<DeliveryRecord>,
}

impl EventRecord {
    /// Its status, from its deliveries'.
    pub fn status(&self) -> EventStatus {
        EventStatus::of(self.deliveries.iter().map(|delivery| delivery.status))
    }
}

/// A delivery as it is looked up.
#[derive(Debug, Clone)]
pub struct DeliveryRecord {
    /// To which subscription.
    pub subscription: SubscriptionId,
    /// Where it is.
    pub status: Status,
    /// How many attempts were made.
    pub attempts: u32,
    /// When the next attempt is due, while it is open and to be pushed: what is pulled is attempted by nobody.
    pub next_attempt_at: Option<Timestamp>,
    /// When it last changed state or had an attempt.
    pub updated_at: Timestamp,
    /// The attempts, in order: failures, and the one that succeeded.
    pub log: Vec<AttemptRecord>,
}

/// An attempt as it is looked up.
#[derive(Debug, Clone)]
pub struct AttemptRecord {
    /// From 1.
    pub number: u32,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// The answer's status code, where there was an answer.
    pub status_code: Option<u16>,
    /// What went wrong; `None` is success.
    pub failure: Option<FailureKind>,
    /// The answer's first 1 KiB, or what the error said.
    pub detail: Option<String>,
}

/// Which events a list shows.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only these statuses; empty is any.
    pub statuses: Vec<EventStatus>,
    /// Of those that are `pending`: only with (`true`) or without (`false`) a failed attempt on an open delivery.
    pub failed: Option<bool>,
    /// Only this type.
    pub event_type: Option<String>,
}

/// A list's order and place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By `seq`, ascending, after the cursor.
    OldestFirst,
    /// By `seq`, descending, before the cursor.
    NewestFirst,
}

/// What was set aside: a frame, or one event of it, that could not be taken in.
#[derive(Debug, Clone)]
pub struct SetAside {
    /// Its id.
    pub id: SetAsideId,
    /// Why, as a stable word: `unreadable`, `refused`, `unknown_organization`, `id_out_of_range`, `too_large`.
    pub reason: String,
    /// Why, for people.
    pub detail: String,
    /// Whose it is, where that can be told.
    pub organization: Option<OrganizationId>,
    /// Which event it is, where that can be told.
    pub event: Option<EventId>,
    /// The frame: as it came, or with this one event alone.
    pub frame: Vec<u8>,
    /// When.
    pub at: Timestamp,
}

/// Events: intake, look-up, lists, and what was set aside.
#[async_trait]
pub trait Events: Send + Sync {
    /// Deduplicates, persists and fans out, in one transaction. Nothing of an event is written twice, however often it
    /// is given. [`StoreError::Refused`] says that some event in the batch cannot be stored: bisect.
    async fn intake(&self, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome>;
    /// Looks one up by its id, or by an alias of it, with deliveries and attempts.
    async fn get(&self, organization: OrganizationId, id: EventId) -> Result<Option<EventRecord>>;
    /// Lists events with their deliveries (without attempts but the last), by `seq`; in order, nothing that commits
    /// later can come before what was listed. `Order::OldestFirst` with the one status `pending` is the inbox. A page ends
    /// before its limit rather than have more than [`PAGE_BYTES`] of payloads; its `next` says that there is more.
    async fn list(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        page: PageRequest<i64>,
        offset: u64,
    ) -> Result<Page<EventRecord, i64>>;
    /// How many events the filter shows, counted no further than `most`.
    async fn count(&self, organization: OrganizationId, filter: &EventFilter, most: u64) -> Result<u64>;
    /// Keeps what cannot be taken in. Setting the same id aside again changes nothing.
    async fn set_aside(&self, items: &[SetAside]) -> Result<()>;
    /// Lists what was set aside, oldest first.
    async fn list_set_aside(&self, page: PageRequest<SetAsideId>) -> Result<Page<SetAside, SetAsideId>>;
    /// Looks one up.
    async fn get_set_aside(&self, id: SetAsideId) -> Result<Option<SetAside>>;
    /// Forgets one, once its frame is in the queue again or nobody wants it; `false` if it is gone.
    async fn forget_set_aside(&self, id: SetAsideId) -> Result<bool>;
    /// How many are set aside.
    async fn count_set_aside(&self) -> Result<u64>;
}

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
    /// The event's type.
    pub event_type: EventTypeText,
    /// When the front took the event.
    pub received_at: Timestamp,
    /// When the producer says that it happened.
    pub occurred_at: Option<Timestamp>,
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
    /// The enabled push subscriptions that have due deliveries nobody holds; at most `limit`, those after `after` first
    /// (so that a caller can go round).
    async fn lanes_due(&self, after: Option<SubscriptionId>, limit: u32) -> Result<Vec<SubscriptionId>>;
    /// Takes due deliveries that nobody holds, up to so many a subscription, oldest due first.
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
    /// Open push deliveries without a failed attempt, up to 100,000.
    pub pending: u64,
    /// Open push deliveries with a failed attempt, up to 100,000.
    pub retrying: u64,
    /// How long the oldest due one has been due.
    pub oldest_due: Duration,
}

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
    /// Checks that the store answers, and has its schema, within [`PING_TIMEOUT`].
    async fn ping(&self) -> Result<()>;
    /// Keeps `sealed` as the deployment's [check value](crate::seal::Sealer::check_value) if it has none yet, and gives
    /// the one that it has.
    async fn secret_check(&self, sealed: Sealed) -> Result<Sealed>;
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

/// The last of a delivery's states that the store's rows hold, for engines to read a row by.
pub(crate) fn parse_state(text: &str) -> Result<DeliveryState> {
    text.parse()
        .map_err(|_| StoreError::Corrupt(format!("unknown delivery state {text:?}")))
}
