//! The store: what is accepted becomes durable work here, and everything that can be looked up is looked up here.
//!
//! A few traits, one an aggregate, with two engines behind them: PostgreSQL in production, SQLite embedded. Which one
//! is chosen by URL. Both pass the same black-box tests. All times that decide something (what is due, whose lease
//! ran out, which key has expired) are the store's own clock, never a caller's.

mod announcements;
mod audit_log;
mod browse;
mod deliveries;
mod erasures;
mod events;
mod feed;
mod insight;
mod keeper;
mod limits;
mod looked;
mod organizations;
mod page;
mod pauses;
pub mod postgres;
mod pulls;
mod range;
mod rehearsal;
mod removals;
mod replay_way;
mod replays;
mod set_aside;
pub mod sqlite;
mod statistics;
mod subscriptions;
mod test_pushes;

use std::{sync::Arc, time::Duration};

pub use self::{
    announcements::{Announced, Announcements, FailedAttempt, Recovered},
    audit_log::{AuditFilter, AuditLog, AuditPlace},
    browse::EventQuery,
    deliveries::{
        Acknowledged, Backlog, CLAIM_BYTES, CLAIM_IN_ORDER_BYTES, Claimed, Deliveries, EventTypeText, Lease,
        Standing,
    },
    erasures::{ERASURE_KEPT, Erased, Erasures, MAX_MARKS},
    events::{
        ATTEMPTS_SHOWN, AttemptRecord, DeliveryRecord, EventFilter, EventRecord, Events, IntakeBatch,
        IntakeOutcome, Order, Passed, PlannedDelivery, StoredEvent,
    },
    feed::{Feed, FeedEvent, FeedPage},
    insight::{DeliveryFilter, DeliveryPlace, Insight, ListedDelivery},
    keeper::{Change, Keeper, Retention},
    limits::{
        LIMIT_NODE_LIVES, LIMIT_WORD_COUNTS, LIMITS_KEPT, LimitNode, LimitReport, LimitStanding, Limits,
        LimitsHeard, USAGE_KEPT, Usage, UsageCounts, UsageReport,
    },
    organizations::{NewKey, OrganizationPatch, Organizations, Rotated, Rotation, USE_GRAIN},
    page::PAGE_BYTES,
    pauses::{Pause, Pauses},
    pulls::{LeaseChange, PullSource, Pulled, PulledEvent, Pulls, Settled},
    range::{MAX_AHEAD, is_in_range},
    removals::{
        OrganizationStanding, REMAINING_COUNTED, REMOVAL_REMEMBERED, Removal, Removals, Removed, SWEPT_AFTER,
    },
    replay_way::{Walk, Way},
    replays::{
        ActedOn, Candidate, Candidates, NewReplay, REPLAY_KEPT, Replay, ReplayStatus, ReplayStep, Replays,
    },
    set_aside::{ID_OUT_OF_RANGE, SetAside, SetAsidePlace},
    statistics::{
        BACKLOG_COUNTED, BacklogAge, COUNTED_FOR, CircuitReport, FLEET_COUNTED_FOR, Fleet, Minute,
        OpenCircuit, SubscriptionStats, SuccessBand,
    },
    subscriptions::{InForce, NewSecret, PatchOutcome, SealedSecrets, SubscriptionPatch, Subscriptions},
    test_pushes::{TEST_PUSH_KEPT, TestPush, TestPushes},
};
use crate::DeliveryState;

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
    /// Leasing what is pulled.
    pub pulls: Arc<dyn Pulls>,
    /// Opening deliveries again.
    pub replays: Arc<dyn Replays>,
    /// Erasing what a producer sent.
    pub erasures: Arc<dyn Erasures>,
    /// Removing an organization with everything of it.
    pub removals: Arc<dyn Removals>,
    /// Events as they come, for those who follow.
    pub feed: Arc<dyn Feed>,
    /// Events of the system's own, and which subscriptions fail.
    pub announcements: Arc<dyn Announcements>,
    /// What is seen of deliveries, beside each event's own.
    pub insight: Arc<dyn Insight>,
    /// Limits over all nodes, and usage.
    pub limits: Arc<dyn Limits>,
    /// Test pushes on their way to a worker.
    pub tests: Arc<dyn TestPushes>,
    /// Subscribers that asked to be left alone.
    pub pauses: Arc<dyn Pauses>,
    /// Who has changed what.
    pub audit_log: Arc<dyn AuditLog>,
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

/// The last of a delivery's states that the store's rows hold, for engines to read a row by.
pub(crate) fn parse_state(text: &str) -> Result<DeliveryState> {
    text.parse()
        .map_err(|_| StoreError::Corrupt(format!("unknown delivery state {text:?}")))
}
