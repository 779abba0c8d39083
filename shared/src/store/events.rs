//! Events: intake, look-up, lists, and what was set aside.

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;

use super::{EventQuery, Page, PageRequest, Result, SetAside, SetAsidePlace};
#[cfg(doc)]
use super::{MAX_AHEAD, PAGE_BYTES, StoreError, Subscriptions};
#[cfg(doc)]
use crate::subscription::Ordering;
use crate::{
    AcceptedEvent, EventId, EventStatus, FailureKind, OrganizationId, Repeat, SetAsideId, SubscriptionId,
    Timestamp, WorkerId, delivery::Status,
};

/// A delivery that intake is to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedDelivery {
    /// Index of its event in [`IntakeBatch::events`].
    pub event: usize,
    /// To which subscription.
    pub subscription: SubscriptionId,
    /// Whether the worker that takes the batch in holds it from the start, having room in its lane. One of a lane that is
    /// served in order is held by nobody.
    pub held: bool,
}

/// A batch for intake.
#[derive(Debug)]
pub struct IntakeBatch<'a> {
    /// Who takes it in, and owns the deliveries that are [`PlannedDelivery::held`].
    pub worker: WorkerId,
    /// The events, by id, each id once. Several may share a deduplication key: the first in order of id wins.
    pub events: &'a [AcceptedEvent],
    /// Their deliveries, planned by the subscriptions as of `versions`; at least one an event.
    pub deliveries: &'a [PlannedDelivery],
    /// The subscriptions versions that the plan was made by: one for each organization of the events.
    pub versions: &'a [(OrganizationId, i64)],
    /// Repeats that fronts answered themselves, to count.
    pub repeats: &'a [Repeat],
}

/// What came of an intake.
#[derive(Debug, PartialEq, Eq)]
pub enum IntakeOutcome {
    /// It is committed.
    Stored(Vec<StoredEvent>),
    /// Subscriptions changed since the plan was made: nothing was written. Read [`Subscriptions::in_force`] again.
    Stale,
}

/// An event that this very intake stored. Those of the batch that are not among them were stored before (a frame
/// delivered twice) or are duplicates, whose ids are now aliases of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// Its place in the order of intake.
    pub seq: i64,
    /// Whether it was stored erased: there is nothing to send.
    pub erased: bool,
}

/// How many attempts an event is looked up with.
pub const ATTEMPTS_SHOWN: usize = 1_000;

/// How many of each delivery, where there are so many.
pub(super) fn attempts_of_each(deliveries: usize) -> i32 {
    i32::try_from((ATTEMPTS_SHOWN / deliveries.max(1)).max(1)).unwrap_or(1)
}

/// An event as it is looked up.
#[derive(Debug, Clone)]
pub struct EventRecord {
    /// Its id: the first event's, if an alias was asked for.
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
    /// When it was erased: what its producer sent is gone, but for its type.
    pub erased_at: Option<Timestamp>,
    /// How often it was posted again.
    pub repeats: u64,
    /// How many of those differed in type or payload.
    pub differing_repeats: u64,
    /// Its deliveries, in order of subscription id.
    pub deliveries: Vec<DeliveryRecord>,
}

impl EventRecord {
    /// Its status, from its deliveries'.
    pub fn status(&self) -> EventStatus {
        EventStatus::of(self.deliveries.iter().map(|delivery| delivery.status))
    }

    /// How many bytes it takes, about.
    pub fn weight(&self) -> usize {
        const EVENT: usize = 1024;
        const ROW: usize = 256;
        let log = |delivery: &DeliveryRecord| {
            let details = delivery.log.iter().filter_map(|attempt| attempt.detail.as_ref());
            details.map(String::len).sum::<usize>() + delivery.log.len() * ROW
        };
        let deliveries: usize = self.deliveries.iter().map(|delivery| ROW + log(delivery)).sum();
        EVENT + self.payload.len() + deliveries
    }

    /// Whether an attempt at a delivery that is open has failed.
    pub fn has_failed(&self) -> bool {
        self.deliveries.iter().any(|delivery| delivery.has_failed)
    }
}

/// A delivery as it is looked up.
#[derive(Debug, Clone)]
pub struct DeliveryRecord {
    /// To which subscription.
    pub subscription: SubscriptionId,
    /// Where it is.
    pub status: Status,
    /// Whether it is open, and an attempt has failed since it was opened. A lease that ended is none, and what a retry or a
    /// replay opens begins anew.
    pub has_failed: bool,
    /// How many attempts were made; of what is pulled, how often it was leased.
    pub attempts: u32,
    /// When its lease ends, while it is leased to somebody who pulled it.
    pub lease_until: Option<Timestamp>,
    /// When the next attempt is due, while it is open and to be pushed: what is pulled is attempted by nobody.
    pub next_attempt_at: Option<Timestamp>,
    /// When it last changed state or had an attempt.
    pub updated_at: Timestamp,
    /// The attempts, in order: failures, and the one that succeeded.
    pub log: Vec<AttemptRecord>,
}

/// An attempt as it is looked up.
#[derive(Debug, Clone)]
pub struct AttemptRecord {
    /// From 1.
    pub number: u32,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// The answer's status code, where there was an answer.
    pub status_code: Option<u16>,
    /// What went wrong; `None` is success.
    pub failure: Option<FailureKind>,
    /// The answer's first 1 KiB, or what the error said.
    pub detail: Option<String>,
}

/// Which events a list shows.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only these statuses; empty is any.
    pub statuses: Vec<EventStatus>,
    /// Of those that are `pending`: only those that [have failed](EventRecord::has_failed), or (`false`) have not.
    pub failed: Option<bool>,
    /// Only this type.
    pub event_type: Option<String>,
}

/// How many events a page looks at, where a filter may leave many of them out.
const LOOKED_AT: u64 = 2_000;

impl EventFilter {
    /// How many events a page looks at, beside so many that are counted. `None` is as many as it shows: all events, or all that are
    /// pending, are found without looking at others.
    pub(super) fn window(&self, beside: u64) -> Option<u64> {
        self.is_looked_for().then(|| LOOKED_AT.saturating_add(beside))
    }

    /// Whether it shows this event. Engines find events by the same rule, in statements of their own.
    pub fn shows(&self, event: &EventRecord) -> bool {
        let status = event.status();
        let of_status = self.statuses.is_empty() || self.statuses.contains(&status);
        let of_failure =
            status != EventStatus::Pending || self.failed.is_none_or(|failed| event.has_failed() == failed);
        let of_type = self
            .event_type
            .as_ref()
            .is_none_or(|wanted| *wanted == event.event_type);
        of_status && of_failure && of_type
    }

    /// Whether what it shows is looked for among events that it does not show, so that a page of it may be short.
    pub fn is_looked_for(&self) -> bool {
        let pending = self.statuses.iter().all(|status| *status == EventStatus::Pending);
        let all_are_shown = pending && self.failed.is_none() && self.event_type.is_none();
        !all_are_shown
    }
}

/// How far a list was passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// How many events that the filter shows.
    pub count: u64,
    /// Where it goes on; `None` after the last.
    pub next: Option<i64>,
}

/// A list's order and place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By `seq`, ascending, after the cursor.
    OldestFirst,
    /// By `seq`, descending, before the cursor.
    NewestFirst,
}

/// Events: intake, look-up, lists, and what was set aside.
#[async_trait]
pub trait Events: Send + Sync {
    /// Deduplicates, persists and fans out, in one transaction. Nothing of an event is written twice, however often it
    /// is given. [`StoreError::Refused`] says that some event in the batch cannot be stored: bisect.
    async fn intake(&self, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome>;
    /// Takes an event in that nobody posted, and takes it back: whether the store takes events in now.
    async fn rehearse(&self) -> Result<()>;
    /// Sees to it that there is room for events of these ids, and returns those for which there will be none: they are
    /// older than `retention`, more than [`MAX_AHEAD`] ahead, or tell no time.
    async fn admit(&self, ids: &[EventId], retention: Duration) -> Result<HashSet<EventId>>;
    /// Looks one up by its id, an alias of it, or an id that it had formerly, with deliveries and the last of their attempts:
    /// [`ATTEMPTS_SHOWN`] of them, and as many of each delivery as of any other, at least one.
    async fn get(&self, organization: OrganizationId, id: EventId) -> Result<Option<EventRecord>>;
    /// As [`Events::get`], with its delivery to this subscription alone, if it has one.
    async fn get_delivery(
        &self,
        organization: OrganizationId,
        id: EventId,
        subscription: SubscriptionId,
    ) -> Result<Option<EventRecord>>;
    /// Lists events with their deliveries (without attempts but the last), by `seq`; in order, nothing that commits
    /// later can come before what was listed. `Order::OldestFirst` with the one status `pending` is the inbox. A page ends
    /// before its limit rather than have more than [`PAGE_BYTES`] of payloads, or of deliveries with their last attempts; its `next` says that there is more. With a filter that
    /// may leave much out, its work is bounded: it may show few, or none, and its `next` is then the last that was looked at. What
    /// [is looked for](EventFilter::is_looked_for) takes no `offset` but 0: see [`Events::pass_over`].
    async fn list(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        page: PageRequest<i64>,
        offset: u64,
    ) -> Result<Page<EventRecord, i64>>;
    /// Passes over so many events of a list, or fewer, since its work is bounded as that of a page is: then it goes on with the
    /// rest from where it came to.
    async fn pass_over(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        after: Option<i64>,
        count: u64,
    ) -> Result<Passed>;
    /// Looks at events, newest first, and shows those that fit. The work of a page is bounded whatever fits: it may show
    /// none though its `next` says that there is more to look at. It is bounded in bytes as that of [`Events::list`] is.
    async fn browse(
        &self,
        organization: OrganizationId,
        wanted: &EventQuery,
        page: PageRequest<i64>,
    ) -> Result<Page<EventRecord, i64>>;
    /// How many events the filter shows, counted no further than `most`. With a filter that may leave much out, of the newest `most`
    /// and some thousands more alone.
    async fn count(&self, organization: OrganizationId, filter: &EventFilter, most: u64) -> Result<u64>;
    /// Keeps what cannot be taken in. The same id again is counted, and has the last reason, detail and time.
    async fn set_aside(&self, items: &[SetAside]) -> Result<()>;
    /// Lists what was set aside, oldest first.
    async fn list_set_aside(&self, page: PageRequest<SetAsidePlace>)
    -> Result<Page<SetAside, SetAsidePlace>>;
    /// Looks one up.
    async fn get_set_aside(&self, id: SetAsideId) -> Result<Option<SetAside>>;
    /// Forgets one, once its frame is in the queue again or nobody wants it; `false` if it is gone, or, where `times` is
    /// given, if it came another number of times: it was set aside again meanwhile.
    async fn forget_set_aside(&self, id: SetAsideId, times: Option<u64>) -> Result<bool>;
    /// How many are set aside.
    async fn count_set_aside(&self) -> Result<u64>;
}
