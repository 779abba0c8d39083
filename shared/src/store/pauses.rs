//! Subscribers that asked to be left alone for a while.

use std::time::Duration;

use async_trait::async_trait;

#[cfg(doc)]
use super::Change;
use super::Result;
use crate::{SubscriptionId, subscription::Subscriber};

/// A subscriber asked to be left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// The subscription that was sent to.
    pub subscription: SubscriptionId,
    /// Who asked: of another subscriber it says nothing.
    pub subscriber: Subscriber,
    /// For how long yet.
    pub lasts: Duration,
}

/// What one worker was told by a subscriber, for all of them to keep to. A pause ends by its time alone.
#[async_trait]
pub trait Pauses: Send + Sync {
    /// Notes pauses, at most one a subscription. One of another subscriber than the one that is known, or that lasts longer, takes its
    /// place and is announced as [`Change::Pause`].
    async fn note_pauses(&self, pauses: &[Pause]) -> Result<()>;
    /// Those that last, the longest first.
    async fn pauses(&self, most: u32) -> Result<Vec<Pause>>;
}
