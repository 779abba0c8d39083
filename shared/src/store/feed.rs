//! Events as they come: what a stream of them reads.
//!
//! It goes by `seq`, and never past what is settled: whatever lies below that has been committed, and nothing will come
//! before it later. So a place is all that a reader has to remember.

use async_trait::async_trait;

use super::{
    EventQuery, Page, Result,
    browse::{MAX_LOOKED_AT, Seen},
    page::{self, Shown},
};
use crate::{EventId, OrganizationId, Timestamp};

/// The most events of one page.
const PAGE_EVENTS: u32 = 100;
/// The most bytes of payloads of one page, unless its first event alone has more.
const FEED_BYTES: u64 = 256 * 1024;

/// An event as it comes, whatever becomes of it.
#[derive(Debug, Clone)]
pub struct FeedEvent {
    /// Its id.
    pub id: EventId,
    /// Its place in the order of intake.
    pub seq: i64,
    /// Its type.
    pub event_type: String,
    /// The producer's key for deduplication.
    pub dedup_id: Option<String>,
    /// Where the producer says that it is from.
    pub source: Option<String>,
    /// When the producer says that it happened.
    pub occurred_at: Option<Timestamp>,
    /// When the front took it.
    pub received_at: Timestamp,
    /// Its payload, byte for byte; `null` once it is erased.
    pub payload: String,
    /// When it was erased.
    pub erased_at: Option<Timestamp>,
}

/// The next events.
#[derive(Debug, Clone)]
pub struct FeedPage {
    /// Those wanted, in order of `seq`.
    pub events: Vec<FeedEvent>,
    /// Up to where all were looked at: read on after that.
    pub up_to: i64,
}

/// Events as they come.
#[async_trait]
pub trait Feed: Send + Sync {
    /// The last place that is settled: nothing will come at or before it any more.
    async fn settled(&self) -> Result<i64>;
    /// The newest event of each of these organizations that has one, of those up to a settled place.
    async fn newest(
        &self,
        organizations: &[OrganizationId],
        settled: i64,
    ) -> Result<Vec<(OrganizationId, i64)>>;
    /// The next events after `after` and up to `up_to`, which must be settled, by their status as it is now. Its work and its
    /// size are bounded: a page may hold nothing, and yet not have come to `up_to`.
    async fn follow(
        &self,
        organization: OrganizationId,
        wanted: &EventQuery,
        after: i64,
        up_to: i64,
    ) -> Result<FeedPage>;
    /// The place of an event, by its id, an alias of it, or an id that it had formerly.
    async fn place(&self, organization: OrganizationId, id: EventId) -> Result<Option<i64>>;
    /// A settled place before every event that was accepted at that time or later. There may be others between.
    async fn place_before(&self, organization: OrganizationId, since: Timestamp) -> Result<i64>;
}

/// The page that comes of what was seen up to `up_to`, and up to where all were looked at, as its `next`.
pub(super) fn page<I>(wanted: &EventQuery, seen: Vec<Seen<I>>, up_to: i64) -> Page<Shown<I>, i64> {
    let last = seen.last().filter(|_| seen.len() >= MAX_LOOKED_AT);
    let looked_up_to = last.map_or(up_to, |last| last.seq);
    let mut page = page::page_within(wanted.shown(seen), PAGE_EVENTS, FEED_BYTES);
    page.next = page.next.or(Some(looked_up_to));
    page
}
