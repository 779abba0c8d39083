//! Reading the [audit log](crate::audit), and forgetting what is old. What is in it the store writes with each change.

use std::time::Duration;

use async_trait::async_trait;

use super::{Page, PageRequest, Result};
use crate::{
    AuditEntryId, OrganizationId, Timestamp,
    audit::{Action, AuditEntry},
};

/// Which entries are wanted.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Those in this organization's log; `None` is those of all, and the deployment's own.
    pub organization: Option<OrganizationId>,
    /// Those of this kind.
    pub action: Option<Action>,
    /// Those from then on.
    pub since: Option<Timestamp>,
    /// Those before then.
    pub until: Option<Timestamp>,
}

/// A place in the log's order: time, then id, both falling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditPlace {
    /// When it was.
    pub at: Timestamp,
    /// Which it is, of those of the same time.
    pub id: AuditEntryId,
}

/// Reading the audit log.
#[async_trait]
pub trait AuditLog: Send + Sync {
    /// Lists entries, newest first.
    async fn audit_entries(
        &self,
        filter: &AuditFilter,
        page: PageRequest<AuditPlace>,
    ) -> Result<Page<AuditEntry, AuditPlace>>;
    /// Forgets some of those older than this; `true` if there may be more.
    async fn forget_audit_entries(&self, older_than: Duration) -> Result<bool>;
}
