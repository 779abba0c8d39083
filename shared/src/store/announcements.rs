//! Events of the system's own on their way, and which subscriptions have failed for how long.

use std::time::Duration;

use async_trait::async_trait;

use super::Result;
#[cfg(doc)]
use super::Subscriptions;
use crate::{EventId, OrganizationId, SubscriptionId, Timestamp, announcement::Announcement};

/// An announcement that waits to be taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The event's id.
    pub id: EventId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// Its type.
    pub event_type: String,
    /// Its payload.
    pub payload: String,
    /// When it was written.
    pub at: Timestamp,
}

/// An attempt at a subscription that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedAttempt {
    /// At which.
    pub subscription: SubscriptionId,
    /// Of which version.
    pub version: i64,
    /// Whether what follows from it may be announced: it was no event of the system's own.
    pub begets: bool,
}

/// A subscription that had failed until an attempt succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Which.
    pub subscription: SubscriptionId,
    /// For how long it had.
    pub failed_for: Duration,
    /// Whether one of the attempts that failed begets.
    pub begets: bool,
}

/// Events of the system's own on their way, and which subscriptions have failed for how long. An announcement is kept only
/// where a subscription of the organization names types that begin with `triggers.`.
#[async_trait]
pub trait Announcements: Send + Sync {
    /// Keeps one until it is taken in.
    async fn announce(&self, organization: OrganizationId, announcement: &Announcement) -> Result<()>;
    /// Those that wait, oldest first.
    async fn announcements(&self, limit: u32) -> Result<Vec<Announced>>;
    /// These are taken in, or wanted by nobody.
    async fn announced(&self, ids: &[EventId]) -> Result<()>;
    /// An attempt at each of these, of this version, failed: for how long each has failed by now, without one success. Its time
    /// does not begin with a failure of a version that is not in force, nor while it is disabled: that says nothing of the
    /// subscriber that it has now. It ends with the subscription's being enabled, disabled, deleted, or given another URL.
    async fn failed(&self, attempts: &[FailedAttempt]) -> Result<Vec<(SubscriptionId, Duration)>>;
    /// An attempt at each of these succeeded: for how long each had failed that had.
    async fn succeeded(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<Recovered>>;
    /// Disables one that has failed for so long, as [`Subscriptions::disable`] does. Whether it has is looked at anew, so that a
    /// success that comes meanwhile is not passed over; and it is announced if one of the attempts that failed begets, whoever told of it.
    async fn disable_failing(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        failed_for: Duration,
        reason: &str,
    ) -> Result<bool>;
}
