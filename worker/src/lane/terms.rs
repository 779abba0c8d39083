//! What lanes have to keep to: bounds of all, terms of each.

use shared::{
    OrganizationId, Subscription,
    subscription::{Ordering, Push, RateLimit, Subscriber},
};

/// How much lanes may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Attempts under way at once in each of the two pools, over all lanes. Attempts that turn slow may bring the suspect
    /// pool to [`OVERFLOW`] times as many.
    pub in_flight: usize,
    /// Bytes that are under way at once in each of the two pools. The last one may go over it, and attempts that turn slow may
    /// bring the suspect pool to twice as many.
    pub in_flight_bytes: usize,
    /// Deliveries that wait in one lane.
    pub lane: usize,
    /// Deliveries that wait in all lanes. What can be sent at once may go over it, up to twice as many.
    pub total: usize,
    /// Bytes that wait in all lanes, and are promised to what is on its way. A third is kept for what can be sent at once. The last
    /// one may go over it, and what a claim takes that was thought to weigh less.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            in_flight: 512,
            // Reached only where payloads are larger than 64 KiB on the average.
            in_flight_bytes: 32 * 1024 * 1024,
            lane: 1_000,
            total: 10_000,
            bytes: 48 * 1024 * 1024,
        }
    }
}

/// What a lane has to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Whose it is.
    pub organization: OrganizationId,
    /// The most attempts under way at once.
    pub max_in_flight: usize,
    /// The most attempts that begin within a second.
    pub rate_per_second: Option<u32>,
    /// One at a time, in the order in which they are claimed: the next once the outcome of the last is written down.
    pub in_order: bool,
    /// One worker alone serves the lane: the limits hold over all of them.
    pub solo: bool,
    /// Counts the changes to the subscription: of two terms those are in force that count more.
    pub version: i64,
    /// Who is sent to: of another nothing is known.
    pub subscriber: Subscriber,
}

impl Terms {
    /// Of a subscription, where there are so many workers.
    pub fn of(subscription: &Subscription, push: &Push, workers: u32) -> Self {
        let (most, workers) = (usize::from(push.max_in_flight.get()), workers.max(1) as usize);
        let in_order = push.ordering == Ordering::Fifo;
        let solo = in_order || push.rate_limit.is_some() || most < workers;
        Self {
            organization: subscription.organization,
            max_in_flight: match (in_order, solo) {
                (true, _) => 1,
                (false, true) => most,
                (false, false) => most / workers,
            },
            rate_per_second: push.rate_limit.map(RateLimit::get),
            in_order,
            solo,
            version: subscription.version,
            subscriber: Subscriber::of(subscription, push),
        }
    }
}
