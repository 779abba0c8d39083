//! Removing an organization with everything of it.
//!
//! From the moment that it is asked for, its keys are good for nothing and nothing of it is sent or taken in. Then workers
//! remove what it has, a bounded number of rows at a time, each step a transaction of its own with the count of what it
//! removed: a crash loses and repeats nothing. The organization itself goes last, once no intake is under way that might not
//! have known. Its id is kept: frames of it that still come are dropped.

use std::collections::HashSet;

use async_trait::async_trait;

use super::{Page, PageRequest, Result};
use crate::{KeyId, Organization, OrganizationId, Timestamp};

/// How far removing an organization is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// Since when it is under way.
    pub requested_at: Timestamp,
    /// Events removed so far.
    pub events: u64,
    /// Deliveries removed so far.
    pub deliveries: u64,
}

/// An organization as the deployment's operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganizationStanding {
    /// What it is.
    pub organization: Organization,
    /// If it is being removed.
    pub removal: Option<Removal>,
}

/// What a step of removing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// Something was removed, and there may be more.
    Some,
    /// Another is at it, or an intake is under way that has to end first.
    NotNow,
    /// It is gone.
    All,
}

/// Removing an organization with everything of it.
#[async_trait]
pub trait Removals: Send + Sync {
    /// Lists organizations, newest first, those included that are being removed.
    async fn organizations(
        &self,
        page: PageRequest<OrganizationId>,
    ) -> Result<Page<OrganizationStanding, OrganizationId>>;
    /// Looks one up.
    async fn standing(&self, id: OrganizationId) -> Result<Option<OrganizationStanding>>;
    /// Begins to remove one: which of its keys ended by that, or `None` if there is no such organization. Again changes
    /// nothing.
    async fn begin_removal(&self, id: OrganizationId) -> Result<Option<Vec<KeyId>>>;
    /// Those whose removal is under way, the oldest first.
    async fn under_removal(&self, limit: u32) -> Result<Vec<OrganizationId>>;
    /// Removes some of what an organization has whose removal is under way; in the end itself.
    async fn remove_some(&self, id: OrganizationId) -> Result<Removed>;
    /// Which of these are being removed, or were.
    async fn removed(&self, ids: &[OrganizationId]) -> Result<HashSet<OrganizationId>>;
}
