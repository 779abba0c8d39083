//! What the roles of Triggers share: domain types, the queue and the store behind their traits, signing and sealing,
//! the outbound guard, HTTP conventions, configuration, telemetry and lifecycle.
//!
//! Domain types ([`event`], [`subscription`], [`delivery`], [`organization`]) know no axum, sqlx or lapin.

pub mod announcement;
pub mod audit;
pub mod auth;
pub mod config;
pub mod delivery;
pub mod engine;
pub mod event;
pub mod filter;
pub mod guard;
pub mod http;
pub mod id;
pub mod invalid;
pub mod lifecycle;
pub mod lookup;
pub mod organization;
pub mod process;
pub mod queue;
pub mod seal;
pub mod shares;
pub mod signature;
mod sqlite;
pub mod statistics;
pub mod store;
pub mod subscription;
pub mod telemetry;
pub mod timestamp;
pub mod tls;
pub mod trace;
pub mod weighed_cache;

pub use delivery::{DeliveryKey, EventStatus, FailureKind, State as DeliveryState, Status as DeliveryStatus};
pub use event::{AcceptedEvent, DedupId, Entry, EventType, Payload, Repeat, Source, TraceParent};
pub use filter::Filter;
pub use id::{
    AuditEntryId, EventId, Id, KeyId, OrganizationId, ReplayId, SetAsideId, SubscriptionId, WorkerId,
};
pub use invalid::Invalid;
pub use organization::{Grant, Key, KeyHash, KeyText, Organization, Scope, Scopes, Tier};
pub use subscription::{Builtin, EventPattern, RetrySchedule, Subscription, SubscriptionUrl};
pub use timestamp::Timestamp;

/// The version of this build, as `user-agent` and `/health` show it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
