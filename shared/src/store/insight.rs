//! What is seen of deliveries beside each event's own.

use async_trait::async_trait;

use super::{Fleet, Minute, OpenCircuit, Page, PageRequest, Result, SubscriptionStats};
use crate::{EventId, OrganizationId, SubscriptionId, Timestamp, WorkerId, delivery::Status};

/// Which deliveries a list shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Only those to this subscription.
    pub subscription: Option<SubscriptionId>,
    /// Only those that are so.
    pub status: Option<Status>,
    /// Only those of events accepted from then on.
    pub since: Option<Timestamp>,
}

/// A place in a list of deliveries: by `seq` of the event, newest first, then by subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryPlace {
    /// The event's place in the order of intake.
    pub seq: i64,
    /// The last of its deliveries that was seen.
    pub subscription: SubscriptionId,
}

/// A delivery as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDelivery {
    /// Of which event.
    pub event: EventId,
    /// The event's place in the order of intake.
    pub seq: i64,
    /// The event's type.
    pub event_type: String,
    /// When the front took the event.
    pub received_at: Timestamp,
    /// To which subscription.
    pub subscription: SubscriptionId,
    /// Where it is.
    pub status: Status,
    /// How many attempts were made; of what is pulled, how often it was leased.
    pub attempts: u32,
    /// When its lease ends, while it is leased to somebody who pulled it.
    pub lease_until: Option<Timestamp>,
    /// When the next attempt is due, while it is open and to be pushed.
    pub next_attempt_at: Option<Timestamp>,
    /// When it last changed state or had an attempt.
    pub updated_at: Timestamp,
}

/// What is seen of deliveries, beside each event's own.
#[async_trait]
pub trait Insight: Send + Sync {
    /// Lists an organization's deliveries, newest first. A page takes no more than a bounded look at what is there: it may
    /// hold fewer than asked for, or none, and still say that there is more.
    async fn list_deliveries(
        &self,
        organization: OrganizationId,
        filter: &DeliveryFilter,
        page: PageRequest<DeliveryPlace>,
    ) -> Result<Page<ListedDelivery, DeliveryPlace>>;
    /// Writes down what a worker has counted: whole counts, in place of those that it wrote before of the same minutes.
    async fn write_minutes(&self, counter: WorkerId, minutes: &[Minute]) -> Result<()>;
    /// Writes down which circuits a worker has opened, and which of those are closed again. They count for as long as its
    /// lease lives.
    async fn write_circuits(
        &self,
        worker: WorkerId,
        open: &[OpenCircuit],
        closed: &[SubscriptionId],
    ) -> Result<()>;
    /// How a subscription fares.
    async fn subscription_stats(&self, subscription: SubscriptionId) -> Result<SubscriptionStats>;
    /// How all enabled subscriptions of kind `push` fare together: for metrics, so bounded in cost.
    async fn fleet(&self) -> Result<Fleet>;
}
