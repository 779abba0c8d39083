//! Lanes: what this worker holds and has yet to send, one lane a subscription.
//!
//! A pure state machine: no clock, no I/O, nothing awaited. A slow subscriber fills its own lane and delays only itself.
//! Memory is bounded: room is reserved before a delivery is taken, and what finds none stays in the store, from where the
//! scheduler feeds it back. Lanes that have something to send take turns.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use shared::{DeliveryKey, EventId, OrganizationId, SubscriptionId, Timestamp, WorkerId};
use tokio::time::Instant;

use crate::lease::Holding;

/// The event that deliveries are of, shared by all of them.
#[derive(Debug)]
pub struct EventBody {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: Arc<str>,
    /// When the front took it.
    pub received_at: Timestamp,
    /// When it happened, as the producer says.
    pub occurred_at: Option<Timestamp>,
    /// The trace that it is part of.
    pub trace: Option<String>,
    /// Its payload.
    pub payload: Bytes,
}

/// A delivery that this worker holds.
#[derive(Debug)]
pub struct Job {
    /// Its address.
    pub key: DeliveryKey,
    /// Whose it is.
    pub organization: OrganizationId,
    /// Attempts made so far.
    pub attempts: u32,
    /// What to send.
    pub event: Arc<EventBody>,
    /// By which lease this worker holds it.
    pub holding: Arc<Holding>,
    /// Since when.
    pub since: Instant,
}

impl Job {
    /// What it counts for against bounds of bytes: its payload, and about what is around it.
    pub fn weight(&self) -> usize {
        self.event.payload.len() + 512
    }
}

/// How much lanes may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Attempts under way at once, over all lanes.
    pub in_flight: usize,
    /// Bytes that are under way at once, over all lanes. The last one may go over it.
    pub in_flight_bytes: usize,
    /// Deliveries that wait in one lane.
    pub lane: usize,
    /// Deliveries that wait in all lanes. A nearly empty lane may go over it, up to twice as many.
    pub total: usize,
    /// Bytes that wait in all lanes.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            in_flight: 512,
            // Reached only where payloads are larger than 128 KiB on the average.
            in_flight_bytes: 64 * 1024 * 1024,
            lane: 1_000,
            total: 10_000,
            bytes: 48 * 1024 * 1024,
        }
    }
}

/// A lane with fewer waiting than this counts as nearly empty.
const NEARLY_EMPTY: usize = 16;

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Job>,
    /// Room that is promised to deliveries on their way here.
    reserved: usize,
    in_flight: usize,
    max_in_flight: usize,
    /// Whether it is in the queue of lanes that take turns.
    queued: bool,
    /// Whether the store may hold more for it than was taken.
    hungry: bool,
}

impl Lane {
    fn held(&self) -> usize {
        self.waiting.len() + self.reserved
    }

    fn can_send(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight < self.max_in_flight
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.reserved == 0 && self.in_flight == 0 && !self.hungry
    }
}

/// All lanes of a worker.
#[derive(Debug)]
pub struct Lanes {
    bounds: Bounds,
    by_subscription: HashMap<SubscriptionId, Lane>,
    turns: VecDeque<SubscriptionId>,
    held: usize,
    bytes: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    closed: bool,
}

impl Lanes {
    /// With nothing in them.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            by_subscription: HashMap::new(),
            turns: VecDeque::new(),
            held: 0,
            bytes: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            closed: false,
        }
    }

    /// Promises room for one delivery. Where there is none, the lane is hungry from now on: the store holds more for it.
    pub fn reserve(&mut self, subscription: SubscriptionId, max_in_flight: usize) -> bool {
        let bounds = self.bounds;
        let total = if self
            .by_subscription
            .get(&subscription)
            .is_none_or(|lane| lane.held() < NEARLY_EMPTY)
        {
            bounds.total * 2
        } else {
            bounds.total
        };
        let room = !self.closed && self.held < total && self.bytes < bounds.bytes;
        let lane = self.by_subscription.entry(subscription).or_default();
        lane.max_in_flight = max_in_flight;
        // What waits in the store is older: nothing may pass it by.
        if !room || lane.hungry || lane.held() >= bounds.lane {
            lane.hungry = true;
            return false;
        }
        lane.reserved += 1;
        self.held += 1;
        true
    }

    /// Promises room for as many deliveries as there may be, `most` at most, to be claimed from the store.
    pub fn reserve_many(&mut self, subscription: SubscriptionId, max_in_flight: usize, most: usize) -> usize {
        if self.closed {
            return 0;
        }
        let lane = self.by_subscription.entry(subscription).or_default();
        lane.max_in_flight = max_in_flight;
        let of_lane = self.bounds.lane.saturating_sub(lane.held());
        let of_all = self.bounds.total.saturating_sub(self.held);
        // A nearly empty lane may go over the total, up to twice as much.
        let of_nearly_empty = NEARLY_EMPTY
            .saturating_sub(lane.held())
            .min((2 * self.bounds.total).saturating_sub(self.held));
        let room = if self.bytes < self.bounds.bytes {
            of_all.max(of_nearly_empty).min(of_lane).min(most)
        } else {
            0
        };
        if room == 0 {
            // It is fed once there is room.
            lane.hungry = true;
        }
        lane.reserved += room;
        self.held += room;
        room
    }

    /// Gives back room that was promised and is not needed.
    pub fn unreserve(&mut self, subscription: SubscriptionId, count: usize) {
        if let Some(lane) = self.by_subscription.get_mut(&subscription) {
            lane.reserved -= count;
            self.held -= count;
            self.forget_if_idle(subscription);
        }
    }

    /// Says whether the store holds more for a lane than was claimed.
    pub fn set_hungry(&mut self, subscription: SubscriptionId, hungry: bool) {
        if let Some(lane) = self.by_subscription.get_mut(&subscription) {
            lane.hungry = hungry;
            self.forget_if_idle(subscription);
        }
    }

    /// Takes a delivery for which room was reserved. Once closed, it is dropped: the lease ends with the worker.
    pub fn push(&mut self, job: Job) {
        let subscription = job.key.subscription;
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            return;
        };
        lane.reserved = lane.reserved.saturating_sub(1);
        if self.closed {
            self.held -= 1;
            return;
        }
        self.bytes += job.weight();
        lane.waiting.push_back(job);
        self.queue(subscription);
    }

    /// The next delivery to send, if there is one and there may be another attempt: lanes take turns.
    pub fn next(&mut self) -> Option<Job> {
        while self.in_flight < self.bounds.in_flight && self.in_flight_bytes < self.bounds.in_flight_bytes {
            let subscription = self.turns.pop_front()?;
            let Some(lane) = self.by_subscription.get_mut(&subscription) else {
                continue;
            };
            lane.queued = false;
            if !lane.can_send() {
                self.forget_if_idle(subscription);
                continue;
            }
            let Some(job) = lane.waiting.pop_front() else {
                continue;
            };
            lane.in_flight += 1;
            self.in_flight += 1;
            self.in_flight_bytes += job.weight();
            self.held -= 1;
            self.bytes -= job.weight();
            self.queue(subscription);
            return Some(job);
        }
        None
    }

    /// An attempt at a delivery of this weight ended. Says whether the lane should be fed: the store holds more, and half of
    /// its room is free.
    pub fn finished(&mut self, subscription: SubscriptionId, weight: usize) -> bool {
        self.in_flight -= 1;
        self.in_flight_bytes -= weight;
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            return false;
        };
        lane.in_flight -= 1;
        let feed = lane.hungry && lane.held() <= self.bounds.lane / 2;
        self.queue(subscription);
        self.forget_if_idle(subscription);
        feed
    }

    /// Takes out all that waits in a lane: its subscription is disabled or gone.
    pub fn drain(&mut self, subscription: SubscriptionId) -> Vec<Job> {
        self.take_out(subscription, |_| true)
    }

    /// Takes out what waits of an event: it was acknowledged or called off.
    pub fn drain_event(&mut self, event: EventId) {
        let lanes: Vec<_> = self.by_subscription.keys().copied().collect();
        for subscription in lanes {
            self.take_out(subscription, |job| job.key.event == event);
        }
    }

    /// Takes out all that waits and is not held as `worker`: the lease by which it was held is lost, or on its way out.
    pub fn keep_held_by(&mut self, worker: WorkerId) -> Vec<Job> {
        let lanes = self.subscriptions();
        let gone = lanes
            .into_iter()
            .flat_map(|lane| self.take_out(lane, |job| job.holding.worker() != worker));
        gone.collect()
    }

    /// Sends nothing more and takes nothing more.
    pub fn close(&mut self) {
        self.closed = true;
        let lanes: Vec<_> = self.by_subscription.keys().copied().collect();
        for subscription in lanes {
            self.drain(subscription);
        }
    }

    /// Changes how many attempts of a lane may be under way.
    pub fn set_max_in_flight(&mut self, subscription: SubscriptionId, max_in_flight: usize) {
        if let Some(lane) = self.by_subscription.get_mut(&subscription) {
            lane.max_in_flight = max_in_flight;
            self.queue(subscription);
        }
    }

    /// The subscriptions that have a lane at the moment.
    pub fn subscriptions(&self) -> Vec<SubscriptionId> {
        self.by_subscription.keys().copied().collect()
    }

    /// The lanes that are hungry and have room.
    pub fn hungry(&self) -> Vec<SubscriptionId> {
        let has_room = |lane: &Lane| lane.hungry && lane.held() <= self.bounds.lane / 2;
        self.by_subscription
            .iter()
            .filter(|(_, lane)| has_room(lane))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Lanes, deliveries that wait, and attempts under way.
    pub fn load(&self) -> (usize, usize, usize) {
        (self.by_subscription.len(), self.held, self.in_flight)
    }

    fn take_out(&mut self, subscription: SubscriptionId, goes: impl Fn(&Job) -> bool) -> Vec<Job> {
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            return Vec::new();
        };
        let (gone, kept): (Vec<Job>, Vec<Job>) = lane.waiting.drain(..).partition(goes);
        lane.waiting = kept.into();
        self.held -= gone.len();
        self.bytes -= gone.iter().map(Job::weight).sum::<usize>();
        self.forget_if_idle(subscription);
        gone
    }

    fn queue(&mut self, subscription: SubscriptionId) {
        if let Some(lane) = self.by_subscription.get_mut(&subscription)
            && !lane.queued
            && lane.can_send()
        {
            lane.queued = true;
            self.turns.push_back(subscription);
        }
    }

    fn forget_if_idle(&mut self, subscription: SubscriptionId) {
        if self
            .by_subscription
            .get(&subscription)
            .is_some_and(|lane| lane.is_idle() && !lane.queued)
        {
            self.by_subscription.remove(&subscription);
        }
    }
}

#[cfg(test)]
mod tests;
