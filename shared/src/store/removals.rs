//! Removing an organization with everything of it.
//!
//! From the moment that it is asked for, its keys are good for nothing and nothing of it is sent or taken in. Then workers
//! remove what it has, a bounded number of rows at a time, each step a transaction of its own with the count of what it
//! removed: a crash loses and repeats nothing. The organization itself goes last, once no intake is under way that might not
//! have known. Its id is remembered for [`REMOVAL_REMEMBERED`]: frames of it that still come are dropped. What a request or
//! an attempt that was under way has written meanwhile is looked for once more, [`SWEPT_AFTER`] the end.

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;

use super::{Page, PageRequest, Result};
use crate::{KeyId, Organization, OrganizationId, Timestamp};

/// For how long it is known that an organization was removed.
pub const REMOVAL_REMEMBERED: Duration = Duration::from_hours(90 * 24);
/// How long after an organization is gone it is looked whether anything of it has come since: whatever was under way is over.
pub const SWEPT_AFTER: Duration = Duration::from_mins(1);
/// How far the events are counted that are still to be removed.
pub const REMAINING_COUNTED: u32 = 10_000;

/// How far removing an organization is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// When nothing was left; `None` while something is.
    pub finished_at: Option<Timestamp>,
    /// Events removed so far.
    pub events: u64,
    /// Rows of whatever kind, events included, removed so far.
    pub rows: u64,
    /// Events that are left, counted no further than [`REMAINING_COUNTED`].
    pub remaining: u32,
}

/// An organization as the deployment's operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganizationStanding {
    /// Which it is.
    pub id: OrganizationId,
    /// What it is; `None` once it is removed.
    pub organization: Option<Organization>,
    /// If it is being removed, or was.
    pub removal: Option<Removal>,
}

/// What a step of removing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// Something was removed, and there may be more.
    Some,
    /// Another is at it, or an intake is under way that has to end first.
    NotNow,
    /// There is nothing of it (any more).
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
    /// Looks one up; one that was removed, too, while that is remembered.
    async fn standing(&self, id: OrganizationId) -> Result<Option<OrganizationStanding>>;
    /// Begins to remove one: which of its keys end by that, or `None` if there is no such organization. Again changes nothing,
    /// and answers the same keys while they are there, so that whoever was not told of them can be.
    async fn begin_removal(&self, id: OrganizationId) -> Result<Option<Vec<KeyId>>>;
    /// Those whose removal is under way, the oldest first, and those that are to be looked at once more.
    async fn under_removal(&self, limit: u32) -> Result<Vec<OrganizationId>>;
    /// Removes some of what an organization has whose removal is under way; in the end itself.
    async fn remove_some(&self, id: OrganizationId) -> Result<Removed>;
    /// Which of these are being removed, or were.
    async fn removed(&self, ids: &[OrganizationId]) -> Result<HashSet<OrganizationId>>;
}
