//! Events of the system's own on their way, and which subscriptions have failed for how long.

use std::time::Duration;

use async_trait::async_trait;

use super::Result;
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
    /// An attempt at each of these failed: for how long each has failed by now, without one success.
    async fn failed(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<(SubscriptionId, Duration)>>;
    /// An attempt at each of these succeeded: for how long each had failed that had.
    async fn succeeded(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<(SubscriptionId, Duration)>>;
}
