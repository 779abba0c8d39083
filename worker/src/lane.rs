//! Lanes: what this worker holds and has yet to send, one lane a subscription.
//!
//! A pure state machine: the time is given to it, nothing is awaited. A slow subscriber fills its own lane and delays only
//! itself. Memory is bounded: [room] is reserved before a delivery is taken, and what finds none stays in the store, from
//! where the scheduler feeds it back. Lanes that have something to send take turns, by organization and then by lane.
//!
//! Attempts are made in two pools. In the trusted one are those of subscribers that answer; one that takes longer than a
//! moment moves to the suspect pool, and so do all later ones of its lane, until it answers quickly again. However many
//! subscribers hang, they fill the suspect pool alone. What a lane's subscriber may be sent, its [`health`] says.

mod health;
mod job;
mod pace;
mod pool;
mod remembered;
mod room;
mod single;
mod terms;
mod turns;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, hash_map::Entry},
    time::Duration,
};

use shared::{DeliveryKey, EventId, SubscriptionId, WorkerId, subscription::Subscriber};
use tokio::time::Instant;

pub use self::{
    health::{CircuitState, Ending, LONGEST_PAUSE},
    job::{EventBody, Job, weight_of},
    pool::Place,
    terms::{Bounds, Terms},
};
use self::{
    pool::{In, Pool},
    remembered::Remembered,
    single::{Lane, Pause},
    turns::Turns,
};

/// An attempt that takes longer than this goes on in the suspect pool.
pub const SLOW: Duration = Duration::from_secs(1);
/// How many times as many attempts as begin in it the suspect pool may have with those that turn slow.
const OVERFLOW: usize = 4;
/// The most pauses that are known of. Those of lanes that are there count beyond that.
const MAX_PAUSES: usize = 50_000;
/// What a delivery is taken to weigh before there was any.
const FIRST_WEIGHS: usize = 16 * 1024;

/// What follows from the end of an attempt.
#[derive(Debug, Default)]
pub struct Finished {
    /// The lane should be fed: the store holds more, and there is room.
    pub feed: bool,
    /// The lane is put off: these go back to the store.
    pub put_off: Vec<Job>,
    /// The circuit opened or closed just now.
    pub circuit: Option<CircuitState>,
}

/// How much there is of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Lanes with something to send or under way.
    pub busy: usize,
    /// Deliveries that wait, and room that is promised.
    pub held: usize,
    /// Attempts under way in the trusted pool.
    pub trusted: usize,
    /// Attempts under way in the suspect pool.
    pub suspect: usize,
    /// Lanes whose circuit is open.
    pub open_circuits: usize,
}

/// A circuit that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedCircuit {
    /// Of which subscription.
    pub subscription: SubscriptionId,
    /// When it opened.
    pub since: Instant,
    /// When the next probe may be sent; past, while one is under way.
    pub next_probe: Instant,
}

/// All lanes of a worker.
#[derive(Debug)]
pub struct Lanes {
    bounds: Bounds,
    by_subscription: HashMap<SubscriptionId, Lane>,
    /// Of subscribers that have no lane just now.
    remembered: Remembered,
    /// For lanes that are not there yet.
    pauses: HashMap<SubscriptionId, Pause>,
    /// Those for which the store may hold more than was taken.
    hungry: HashSet<SubscriptionId>,
    trusted_turns: Turns,
    suspect_turns: Turns,
    alarms: BinaryHeap<Reverse<(Instant, SubscriptionId)>>,
    held: usize,
    /// Of what waits, and of room that is promised.
    bytes: usize,
    /// What a delivery weighs, on the average of the last ones.
    weighs: usize,
    trusted: Pool,
    suspect: Pool,
    /// Of lanes that are there.
    open_circuits: usize,
    /// What was taken out of order for lanes that are in order by now, and what came after all was closed. It goes back to the
    /// store.
    strays: Vec<Job>,
    closed: bool,
}

impl Lanes {
    /// With nothing in them.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            by_subscription: HashMap::new(),
            remembered: Remembered::default(),
            pauses: HashMap::new(),
            hungry: HashSet::new(),
            trusted_turns: Turns::default(),
            suspect_turns: Turns::default(),
            alarms: BinaryHeap::new(),
            held: 0,
            bytes: 0,
            weighs: FIRST_WEIGHS,
            trusted: Pool::default(),
            suspect: Pool::default(),
            open_circuits: 0,
            strays: Vec::new(),
            closed: false,
        }
    }

    /// Promises room for one delivery that weighs so much. Where there is none, the lane is hungry from now on: the store
    /// holds more for it.
    pub fn reserve(
        &mut self,
        subscription: SubscriptionId,
        terms: Terms,
        weight: usize,
        now: Instant,
    ) -> bool {
        self.prepare(subscription, terms, now);
        let worth_it = |lane: &Lane| !terms.in_order && !lane.is_put_off_for_long(now);
        let has_room = !self.closed
            // What waits in the store is older: nothing may pass it by.
            && !self.hungry.contains(&subscription)
            && self
                .by_subscription
                .get(&subscription)
                .is_some_and(|lane| worth_it(lane) && self.room(lane, now) > 0);
        if has_room {
            self.promise(subscription, 1, weight);
        } else {
            self.set_hungry(subscription, true);
        }
        has_room
    }

    /// Promises room for as many deliveries as there may be, `most` at most, to be claimed from the store.
    pub fn reserve_many(
        &mut self,
        subscription: SubscriptionId,
        terms: Terms,
        most: usize,
        now: Instant,
    ) -> usize {
        if self.closed {
            return 0;
        }
        self.prepare(subscription, terms, now);
        // What is in order comes in order: the next are claimed when none is left.
        let has_to_wait = |lane: &Lane| lane.is_put_off_for_long(now) || (terms.in_order && lane.is_busy());
        let (room, weight) = match self.by_subscription.get(&subscription) {
            Some(lane) if !has_to_wait(lane) => (self.room(lane, now).min(most), self.weight_of_one(lane)),
            _ => (0, 0),
        };
        if room > 0 {
            self.promise(subscription, room, weight);
        } else {
            // It is fed once there is room, or its time has come.
            self.set_hungry(subscription, true);
            self.see_to(subscription, now);
        }
        room
    }

    /// Sees to it that the lane is there, and keeps to what it has to.
    fn prepare(&mut self, subscription: SubscriptionId, terms: Terms, now: Instant) {
        self.agree(subscription, terms);
        let lane = match self.by_subscription.entry(subscription) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(none) => {
                let (terms, health) = self.remembered.recall(subscription, terms, now);
                self.open_circuits += usize::from(health.is_open());
                none.insert(Lane::new(terms, health))
            }
        };
        lane.heed(self.pauses.get(&subscription), now);
    }

    fn promise(&mut self, subscription: SubscriptionId, count: usize, weight: usize) {
        if let Some(lane) = self.by_subscription.get_mut(&subscription) {
            self.bytes += lane.promise(count, weight);
            self.held += count;
        }
    }

    /// Gives back room that was promised and is not needed.
    pub fn unreserve(&mut self, subscription: SubscriptionId, count: usize) {
        if let Some(lane) = self.by_subscription.get_mut(&subscription) {
            self.bytes -= lane.redeem(count);
            self.held -= count;
            self.put_away_if_idle(subscription);
        }
    }

    /// Says whether the store holds more for a lane than was claimed.
    pub fn set_hungry(&mut self, subscription: SubscriptionId, hungry: bool) {
        if !hungry {
            self.hungry.remove(&subscription);
            self.put_away_if_idle(subscription);
        } else if self.by_subscription.contains_key(&subscription) {
            self.hungry.insert(subscription);
        }
    }

    /// Takes a delivery for which room was reserved.
    pub fn push(&mut self, mut job: Job, now: Instant) {
        let subscription = job.key.subscription;
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            self.strays.push(job);
            return;
        };
        self.bytes -= lane.redeem(1);
        if self.closed {
            self.held -= 1;
            self.strays.push(job);
            return;
        }
        if lane.terms.in_order && !job.in_order {
            // The lane came to be in order while this was on its way.
            self.held -= 1;
            self.hungry.insert(subscription);
            self.strays.push(job);
            return;
        }
        // In a lane that is not in order any more it is one among others.
        job.in_order &= lane.terms.in_order;
        let weight = job.weight();
        self.bytes += weight;
        self.weighs = (63 * self.weighs + weight) / 64;
        lane.put(job, weight);
        self.see_to(subscription, now);
    }

    /// The next delivery to send, if there is one and a pool has room for it.
    pub fn next(&mut self, now: Instant) -> Option<(Job, Place)> {
        self.next_in(In::Trusted, now)
            .or_else(|| self.next_in(In::Suspect, now))
    }

    fn next_in(&mut self, pool: In, now: Instant) -> Option<(Job, Place)> {
        while self.pool(pool).has_room(&self.bounds) {
            let subscription = match pool {
                In::Trusted => self.trusted_turns.pop()?,
                In::Suspect => self.suspect_turns.pop()?,
            };
            let Some(lane) = self.by_subscription.get_mut(&subscription) else {
                continue;
            };
            lane.queued = None;
            if lane.pool() != pool || !lane.can_send(now) {
                self.see_to(subscription, now);
                self.put_away_if_idle(subscription);
                continue;
            }
            let Some((job, weight)) = lane.take() else {
                continue;
            };
            lane.in_flight += 1;
            let in_order = lane.terms.in_order;
            lane.unsettled = in_order;
            if let Some(rate) = lane.terms.rate_per_second {
                lane.pace.take(now, rate);
            }
            let place = Place {
                subscription,
                of: lane.subscribers,
                pool,
                weight,
                in_order,
                is_probe: lane.health.begins(),
                is_slow: false,
            };
            self.pool_mut(pool).add(weight);
            self.held -= 1;
            self.bytes -= weight;
            self.see_to(subscription, now);
            return Some((job, place));
        }
        None
    }

    /// An attempt takes long: it goes on in the suspect pool, and its lane with it. Gives what goes back to the store.
    pub fn turned_slow(&mut self, place: &mut Place) -> Vec<Job> {
        place.is_slow = true;
        let mut was_trusted = false;
        if let Some(lane) = self.by_subscription.get_mut(&place.subscription)
            && lane.is_spoken_of_by(place)
        {
            was_trusted = lane.health.is_trusted();
            lane.health.turned_slow();
        }
        // Beyond that it stays where it is: memory is bounded before anything else is.
        if place.pool == In::Trusted
            && self.suspect.in_flight < OVERFLOW * self.bounds.in_flight
            && self.suspect.bytes < self.bounds.in_flight_bytes.saturating_mul(2)
        {
            place.pool = In::Suspect;
            self.trusted.remove(place.weight);
            self.suspect.add(place.weight);
        }
        self.make_room(place.subscription, was_trusted)
    }

    /// While room is short, a lane that is not trusted any more lets go of what may be in the room of those that are.
    fn make_room(&mut self, subscription: SubscriptionId, was_trusted: bool) -> Vec<Job> {
        let turned = |lane: &Lane| was_trusted && !lane.health.is_trusted() && Self::is_nearly_empty(lane);
        if !self.is_short() || !self.by_subscription.get(&subscription).is_some_and(turned) {
            return Vec::new();
        }
        self.send_back(subscription)
    }

    /// An attempt ended; `random`, in [0, 1), spreads probes.
    pub fn finished(&mut self, place: &Place, ending: Ending, now: Instant, random: f64) -> Finished {
        self.pool_mut(place.pool).remove(place.weight);
        let subscription = place.subscription;
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            return Finished::default();
        };
        lane.in_flight -= 1;
        let was_trusted = lane.health.is_trusted();
        let (said, was_probe) = if lane.is_spoken_of_by(place) {
            (ending, place.is_probe)
        } else {
            // Nor is it the probe that may be under way by now.
            (ending.of_another(), false)
        };
        let changed = lane.health.ended(said, was_probe, place.is_slow, now, random);
        let circuit = changed.then(|| lane.health.circuit());
        match circuit {
            Some(CircuitState::Open { .. }) => self.open_circuits += 1,
            Some(CircuitState::Closed) => self.open_circuits -= 1,
            None => {}
        }
        // What was not sent goes back, and nothing may pass it by.
        let starts_anew = ending.is_of_none() && place.in_order && std::mem::take(&mut lane.unsettled);
        if starts_anew {
            self.hungry.insert(subscription);
        }
        let put_off = if starts_anew || lane.is_put_off_for_long(now) {
            self.send_back(subscription)
        } else {
            self.make_room(subscription, was_trusted)
        };
        let feed = self.wants_food(subscription, now);
        self.see_to(subscription, now);
        self.put_away_if_idle(subscription);
        Finished {
            feed,
            put_off,
            circuit,
        }
    }

    /// The outcome of an attempt that began in order is written down. If the lane does not go on with the next (another
    /// attempt follows, or the outcome did not apply), what waits goes back, to be claimed again when its time comes.
    pub fn settled(&mut self, subscription: SubscriptionId, goes_on: bool, now: Instant) -> Finished {
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            return Finished::default();
        };
        if !std::mem::take(&mut lane.unsettled) {
            return Finished::default();
        }
        let put_off = if goes_on {
            Vec::new()
        } else {
            self.hungry.insert(subscription);
            self.send_back(subscription)
        };
        let feed = self.wants_food(subscription, now);
        self.see_to(subscription, now);
        self.put_away_if_idle(subscription);
        Finished {
            feed,
            put_off,
            circuit: None,
        }
    }

    /// Whether a lane has nothing to send or under way, and could send at once by its rate: another worker may go on with it.
    /// `None` if there is no such lane.
    pub fn is_quiet(&self, subscription: SubscriptionId, now: Instant) -> Option<bool> {
        self.by_subscription
            .get(&subscription)
            .map(|lane| !lane.is_busy() && lane.paced(now).is_none())
    }

    /// Takes out all that waits in a lane: its subscription is disabled or gone.
    pub fn drain(&mut self, subscription: SubscriptionId) -> Vec<Job> {
        self.take_out(subscription, |_| true)
    }

    /// Takes out what waits of an event: it was acknowledged or called off. Word of that may be late, and it may have been
    /// opened again and taken since: give it back.
    pub fn call_off_event(&mut self, event: EventId) -> Vec<Job> {
        let lanes: Vec<_> = self.by_subscription.keys().copied().collect();
        let called_off = lanes
            .into_iter()
            .flat_map(|lane| self.call_off_in(lane, |job| job.key.event == event));
        called_off.collect()
    }

    /// Takes out one delivery, if it waits: it was cancelled. Give it back, as above.
    pub fn call_off(&mut self, delivery: DeliveryKey) -> Vec<Job> {
        self.call_off_in(delivery.subscription, |job| job.key == delivery)
    }

    fn call_off_in(&mut self, subscription: SubscriptionId, goes: impl Fn(&Job) -> bool) -> Vec<Job> {
        match self.by_subscription.get(&subscription) {
            // Should it be open all the same, nothing in order may pass it by.
            Some(lane) if lane.terms.in_order && lane.waiting.iter().any(&goes) => {
                self.send_back(subscription)
            }
            _ => self.take_out(subscription, goes),
        }
    }

    /// Takes out all that waits and is not held as `worker`: the lease by which it was held is lost, or on its way out.
    pub fn keep_held_by(&mut self, worker: WorkerId) -> Vec<Job> {
        let lanes: Vec<_> = self.by_subscription.keys().copied().collect();
        let gone = lanes
            .into_iter()
            .flat_map(|lane| self.take_out(lane, |job| job.holding.worker() != worker));
        gone.collect()
    }

    /// Sends nothing more and takes nothing more. What waited goes back to the store, and so does what comes yet, as strays.
    pub fn close(&mut self) -> Vec<Job> {
        self.closed = true;
        let lanes: Vec<_> = self.by_subscription.keys().copied().collect();
        let waiting = lanes.into_iter().flat_map(|lane| self.drain(lane));
        waiting.collect()
    }

    /// A subscription has changed; its subscriber may be another.
    pub fn set_terms(&mut self, subscription: SubscriptionId, terms: Terms, now: Instant) {
        self.agree(subscription, terms);
        if let Some(lane) = self.by_subscription.get_mut(&subscription) {
            // It may have been told before the change was heard of.
            lane.heed(self.pauses.get(&subscription), now);
        }
        self.see_to(subscription, now);
    }

    /// What was taken for lanes before they came to be in order, or came after all was closed, and is to go back to the store.
    pub fn take_strays(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.strays)
    }

    /// A subscriber asked, of whatever worker, to be left alone until then. What waits goes back to the store, if that is long.
    pub fn pause(
        &mut self,
        subscription: SubscriptionId,
        subscriber: Subscriber,
        until: Instant,
        now: Instant,
    ) -> Vec<Job> {
        let pause = Pause { subscriber, until };
        if until > now && (self.pauses.len() < MAX_PAUSES || self.pauses.contains_key(&subscription)) {
            let known = self.pauses.entry(subscription).or_insert(pause);
            *known = known.and(pause);
        }
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            return Vec::new();
        };
        lane.heed(Some(&pause), now);
        let waiting = if lane.is_put_off_for_long(now) {
            self.send_back(subscription)
        } else {
            Vec::new()
        };
        self.see_to(subscription, now);
        waiting
    }

    /// The subscriptions for which there is something to send, under way, or in the store.
    pub fn subscriptions(&self) -> Vec<SubscriptionId> {
        let is_awake = |id, lane: &Lane| lane.is_busy() || self.hungry.contains(id);
        let awake = self
            .by_subscription
            .iter()
            .filter(|(id, lane)| is_awake(*id, lane));
        awake.map(|(id, _)| *id).collect()
    }

    /// When the next lane's time comes that is put off now.
    pub fn next_alarm(&self) -> Option<Instant> {
        self.alarms.peek().map(|Reverse((at, _))| *at)
    }

    /// Lets those go on whose time has come, and says which lanes should be fed.
    pub fn rouse(&mut self, now: Instant) -> Vec<SubscriptionId> {
        while let Some(Reverse((at, subscription))) = self.alarms.peek().copied() {
            if at > now {
                break;
            }
            self.alarms.pop();
            if let Some(lane) = self.by_subscription.get_mut(&subscription)
                && lane.alarm == Some(at)
            {
                lane.alarm = None;
                self.see_to(subscription, now);
                self.put_away_if_idle(subscription);
            }
        }
        let hungry = self.hungry.iter().copied();
        hungry
            .filter(|subscription| self.wants_food(*subscription, now))
            .collect()
    }

    /// Puts lanes away that have nothing to send, and forgets of subscribers what means nothing any more.
    pub fn forget_old(&mut self, now: Instant) {
        self.pauses.retain(|_, pause| pause.until > now);
        let old = self.by_subscription.iter().filter(|(id, lane)| {
            !lane.is_busy() && !self.hungry.contains(id) && lane.queued.is_none() && lane.paced(now).is_none()
        });
        let old: Vec<_> = old.map(|(id, _)| *id).collect();
        for subscription in old {
            self.put_away(subscription);
        }
        self.remembered.forget_old(now);
    }

    /// The lane is not there any more; what is known of its subscriber is.
    fn put_away(&mut self, subscription: SubscriptionId) {
        if let Some(lane) = self.by_subscription.remove(&subscription) {
            self.open_circuits -= usize::from(lane.health.is_open());
            self.remembered.keep(subscription, lane.terms, lane.health);
        }
    }

    /// How much there is of everything.
    pub fn load(&self) -> Load {
        Load {
            busy: self.by_subscription.len(),
            held: self.held,
            trusted: self.trusted.in_flight,
            suspect: self.suspect.in_flight,
            open_circuits: self.open_circuits + self.remembered.open_circuits(),
        }
    }

    /// The circuits that are open. Where there is none it costs nothing, else a look at every lane and all that is remembered.
    pub fn opened_circuits(&self) -> Vec<OpenedCircuit> {
        if self.load().open_circuits == 0 {
            return Vec::new();
        }
        let lanes = self.by_subscription.iter();
        lanes
            .filter_map(|(subscription, lane)| lane.health.opened(*subscription))
            .chain(self.remembered.opened_circuits())
            .collect()
    }

    fn pool(&self, pool: In) -> Pool {
        match pool {
            In::Trusted => self.trusted,
            In::Suspect => self.suspect,
        }
    }

    fn pool_mut(&mut self, pool: In) -> &mut Pool {
        match pool {
            In::Trusted => &mut self.trusted,
            In::Suspect => &mut self.suspect,
        }
    }

    /// A lane that there is keeps to these terms from now on. What is known of a subscriber is forgotten with a change that makes it
    /// another: whoever made it expects that one to be tried. What was taken before the lane came to be in order goes back,
    /// to be taken again in order.
    fn agree(&mut self, subscription: SubscriptionId, terms: Terms) {
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            self.remembered.forget_others(subscription, terms);
            return;
        };
        if terms.version < lane.terms.version {
            return;
        }
        let order_begins = terms.in_order && !lane.terms.in_order;
        if lane.terms.in_order && !terms.in_order {
            // Should the order begin again, others may be ahead of these.
            lane.waiting.iter_mut().for_each(|job| job.in_order = false);
        }
        let forgotten = lane.agree(terms);
        self.open_circuits -= usize::from(forgotten.is_some_and(|health| health.is_open()));
        if order_begins && !lane.waiting.is_empty() {
            self.hungry.insert(subscription);
            let loose = self.take_out(subscription, |job| !job.in_order);
            self.strays.extend(loose);
        }
    }

    /// Whether a lane for which the store holds more has room for at least as much again as it holds, and may be sent to.
    fn wants_food(&self, subscription: SubscriptionId, now: Instant) -> bool {
        !self.closed
            && self.hungry.contains(&subscription)
            && self.by_subscription.get(&subscription).is_some_and(|lane| {
                let room = self.room(lane, now);
                room > 0
                    && room >= lane.held()
                    && !(lane.terms.in_order && lane.is_busy())
                    && !lane.is_put_off_for_long(now)
            })
    }

    /// Takes out all that waits, for the store, from where the lane is fed again.
    fn send_back(&mut self, subscription: SubscriptionId) -> Vec<Job> {
        if self
            .by_subscription
            .get(&subscription)
            .is_some_and(|lane| !lane.waiting.is_empty())
        {
            self.hungry.insert(subscription);
        }
        self.take_out(subscription, |_| true)
    }

    fn take_out(&mut self, subscription: SubscriptionId, goes: impl Fn(&Job) -> bool) -> Vec<Job> {
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            return Vec::new();
        };
        let (gone, weight) = lane.take_out(goes);
        self.held -= gone.len();
        self.bytes -= weight;
        self.put_away_if_idle(subscription);
        gone
    }

    /// Puts a lane into the queue for its turn, if it can send; or sees to it that it is looked at when it can.
    fn see_to(&mut self, subscription: SubscriptionId, now: Instant) {
        let Some(lane) = self.by_subscription.get_mut(&subscription) else {
            return;
        };
        if let Some(at) = lane.put_off(now) {
            if !lane.waiting.is_empty() && lane.alarm.is_none_or(|alarm| at < alarm) {
                lane.alarm = Some(at);
                self.alarms.push(Reverse((at, subscription)));
            }
        } else if lane.queued.is_none() && lane.can_send(now) {
            let pool = lane.pool();
            lane.queued = Some(pool);
            match pool {
                In::Trusted => self.trusted_turns.push(lane.terms.organization, subscription),
                In::Suspect => self.suspect_turns.push(lane.terms.organization, subscription),
            }
        }
    }

    fn put_away_if_idle(&mut self, subscription: SubscriptionId) {
        if !self.hungry.contains(&subscription)
            && self.by_subscription.get(&subscription).is_some_and(|lane| {
                !lane.is_busy()
                    && lane.queued.is_none()
                    && lane.alarm.is_none()
                    // Else its pace would begin anew.
                    && lane.terms.rate_per_second.is_none()
            })
        {
            self.put_away(subscription);
        }
    }
}

#[cfg(test)]
mod changing;
#[cfg(test)]
mod crowding;
#[cfg(test)]
mod ordering;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
