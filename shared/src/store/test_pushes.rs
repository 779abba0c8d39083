//! Test pushes that no worker has taken yet.

use std::time::Duration;

use async_trait::async_trait;

#[cfg(doc)]
use super::Change;
use super::Result;
use crate::{EventId, OrganizationId, SubscriptionId, Timestamp};

/// How long a test push waits for a worker to take it. Nobody waits for it any more after that, and it is forgotten.
pub const TEST_PUSH_KEPT: Duration = Duration::from_mins(1);

/// A test push that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestPush {
    /// The id that its event will have.
    pub event: EventId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// To which subscription it goes, whatever that asks for.
    pub subscription: SubscriptionId,
    /// When it was asked for.
    pub at: Timestamp,
}

/// Test pushes that no worker has taken yet: asked for by the api, which waits, and taken by one worker each.
#[async_trait]
pub trait TestPushes: Send + Sync {
    /// Asks for one, as [`Change::TestPush`]; `false`, and nothing is asked for, if `most` of the organization's wait already.
    async fn ask_test(
        &self,
        organization: OrganizationId,
        subscription: SubscriptionId,
        event: EventId,
        most: u32,
    ) -> Result<bool>;
    /// Takes those that wait, oldest first: nobody else gets them.
    async fn take_tests(&self, limit: u32) -> Result<Vec<TestPush>>;
    /// Calls one off; `false` if it does not wait (any more).
    async fn withdraw_test(&self, event: EventId) -> Result<bool>;
}
