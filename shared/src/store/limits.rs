//! What nodes tell each other of the limits of organizations, and what organizations used.
//!
//! The store keeps an organization's bucket: when it is full again. A node tells all that it has taken from it, ever, in rows of
//! its own, so that what is told twice is taken once; it hears how full the bucket is, and what the others want.
//!
//! Amounts of a bucket are nanoseconds of its refill: a minute's worth is a minute.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::Result;
use crate::{OrganizationId, Timestamp};

/// For how long a node's word counts: what it wants, and that it lives.
pub const LIMIT_WORD_COUNTS: Duration = Duration::from_secs(5);
/// How long a node lives without a word.
pub const LIMIT_NODE_LIVES: Duration = Duration::from_secs(15);
/// How much more than it holds a bucket can owe.
pub(super) const MOST_OWED: Duration = Duration::from_mins(1);
/// How much a bucket holds.
pub(super) const HOLDS: Duration = Duration::from_mins(1);
/// How long the store remembers what a node told it, and full buckets: longer than it may be away while nodes go on.
pub const LIMITS_KEPT: Duration = Duration::from_hours(24);
/// How long usage is kept.
pub const USAGE_KEPT: Duration = Duration::from_hours(31 * 24);

/// What a node tells of an organization's bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitReport {
    /// Whose bucket.
    pub organization: OrganizationId,
    /// Whose counting: it begins at zero.
    pub counter: Uuid,
    /// All that was taken in this counting.
    pub spent: i64,
    /// How long ago the first was taken of what the store has not confirmed: the bucket has refilled since.
    pub within: i64,
    /// How fast events are asked for here, refused ones included: 1 is as fast as the bucket refills.
    pub wanted: f64,
    /// How fast they are taken here.
    pub took: f64,
}

/// How a bucket stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitStanding {
    /// Whose bucket.
    pub organization: OrganizationId,
    /// In how long it is full again; below zero if it has been. What others have not told comes on top of it.
    pub used: i64,
    /// How fast events are asked for elsewhere.
    pub others_wanted: f64,
    /// How much others have taken, to judge by how fast they do, and have not told yet.
    pub others_unreported: i64,
    /// Whether one of the others has not told anything since the store was away: what is in the bucket is known once it has.
    pub others_silent: bool,
}

/// A node that tells of limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitNode {
    /// Which it is.
    pub id: Uuid,
    /// The store's time, as this node has it, when it knew what it tells: what arrives after something newer is passed over.
    /// `None` before it has heard of the store.
    pub at: Option<Timestamp>,
    /// The store's time at which it last answered before it was away, if it has only just come back: words that counted then
    /// count still, since nobody could renew them.
    pub away_since: Option<Timestamp>,
}

impl LimitNode {
    /// One that has not heard of the store yet.
    pub const fn new(id: Uuid) -> Self {
        Self {
            id,
            at: None,
            away_since: None,
        }
    }
}

/// What a node is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitsHeard {
    /// How many nodes live, this one included.
    pub nodes: u32,
    /// The store's time.
    pub now: Timestamp,
    /// How the buckets stand that it told of.
    pub standings: Vec<LimitStanding>,
}

/// What an organization used in an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsageCounts {
    /// Events that were accepted, repeats included.
    pub accepted: u64,
    /// Events that were refused because the limit was used up.
    pub refused: u64,
}

/// All that a node has counted of an organization in an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageReport {
    /// Of which organization.
    pub organization: OrganizationId,
    /// Which hour, since 1970.
    pub hour: i64,
    /// What was counted.
    pub counts: UsageCounts,
}

/// What an organization used, and how its limit stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The hours in which it used something, in order.
    pub hours: Vec<(i64, UsageCounts)>,
    /// In how long its bucket is full again.
    pub used: Duration,
}

/// The limits of organizations over all nodes, and what they used.
#[async_trait]
pub trait Limits: Send + Sync {
    /// Tells what a node has taken, which is a sign of its life besides, and answers how the buckets stand.
    /// Reports are sorted by organization, one of each.
    async fn share_limits(&self, node: LimitNode, reports: &[LimitReport]) -> Result<LimitsHeard>;
    /// A node ends: it is not counted any more.
    async fn leave_limits(&self, node: Uuid) -> Result<()>;
    /// Writes down what a node has counted: whole counts, in place of those that it wrote before of the same hours.
    async fn write_usage(&self, node: Uuid, reports: &[UsageReport]) -> Result<()>;
    /// What an organization used in the hours from `first` to `last`.
    async fn usage(&self, organization: OrganizationId, first: i64, last: i64) -> Result<Usage>;
}
