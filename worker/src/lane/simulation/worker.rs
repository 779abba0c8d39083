//! What a worker does around its lanes, a step at a time: as the scheduler, the lease, the ownership of lanes, the attempts and
//! the writer of outcomes do it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use rand::RngExt;
use shared::{Timestamp, subscription::Subscriber};

use super::{
    ledger::Sent,
    model::{Outcome, Taken},
    world::{Call, World},
    *,
};
use crate::lease::Holding;

/// Of what has waited for longer, the store is asked whether it is still to be sent.
const RECHECK: Duration = Duration::from_secs(2);
/// What it owns and did not need for so long, it gives up.
const UNUSED: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Attempt {
    job: Job,
    place: Place,
    /// By which version of the subscription it is sent.
    version: i64,
    /// Whose lane it was when it began, and who it is sent to.
    begun_for: Subscriber,
    subscriber: Subscriber,
}

/// What it knows of a subscription.
#[derive(Debug, Clone, Copy)]
struct Known {
    terms: Terms,
    enabled: bool,
}

pub(super) struct Worker {
    /// By which it takes what it takes now; what is held by it has a clone.
    lease: Arc<Holding>,
    lanes: Lanes,
    known: BTreeMap<SubscriptionId, Known>,
    /// What it takes itself to own, by its current id, and when it was needed last.
    owned: BTreeMap<SubscriptionId, Instant>,
    /// Those of them that it has too many of.
    leaving: BTreeSet<SubscriptionId>,
    /// The store may think that it holds something that it does not know of.
    doubt: bool,
    /// Taken, and not in the lane yet.
    on_the_way: VecDeque<Job>,
    /// They have their places, and nothing was looked at yet.
    begun: Vec<Attempt>,
    /// It was looked whether they may be sent.
    checked: Vec<Attempt>,
    /// They are sent.
    under_way: Vec<Attempt>,
    outcomes: Vec<Outcome>,
    /// Leases that end once nothing is held by them.
    retiring: Vec<Arc<Holding>>,
    /// What was closed, as it is told.
    pub(super) word: VecDeque<DeliveryKey>,
    /// It takes nothing more, and ends once nothing is under way.
    stops: bool,
    /// It hangs until then.
    pub(super) stalled_until: Option<Instant>,
    /// Until when it believes its leases to live.
    believes_until: HashMap<WorkerId, Instant>,
    /// Who is to be left alone, and until when, as far as it was told.
    paused: HashMap<SubscriptionId, (Subscriber, Instant)>,
}

impl Worker {
    pub(super) fn new(world: &mut World) -> Self {
        let id = world.store.new_worker();
        world.store.enlist(id, world.now);
        let mut worker = Self {
            lease: Holding::new(id, world.now),
            lanes: Lanes::new(Bounds::default()),
            known: BTreeMap::new(),
            owned: BTreeMap::new(),
            leaving: BTreeSet::new(),
            doubt: false,
            on_the_way: VecDeque::new(),
            begun: Vec::new(),
            checked: Vec::new(),
            under_way: Vec::new(),
            outcomes: Vec::new(),
            retiring: Vec::new(),
            word: VecDeque::new(),
            stops: false,
            stalled_until: None,
            believes_until: HashMap::from([(id, world.now + LEASE)]),
            paused: HashMap::new(),
        };
        worker.know(world);
        worker
    }

    fn know(&mut self, world: &World) {
        let known = world.store.lanes.iter().map(|(id, lane)| {
            let known = Known {
                terms: lane.terms(),
                enabled: lane.enabled,
            };
            (*id, known)
        });
        self.known = known.collect();
    }

    fn job(&self, taken: &Taken, in_order: bool, now: Instant) -> Job {
        let body = EventBody {
            id: taken.event,
            event_type: "a".into(),
            received_at: Timestamp::from_millis(0),
            occurred_at: None,
            source: None,
            trace: None,
            payload: Bytes::from_static(b"{}"),
        };
        Job {
            key: DeliveryKey {
                event: taken.event,
                subscription: taken.lane,
            },
            organization: self.known[&taken.lane].terms.organization,
            in_order,
            attempts: taken.attempts,
            attempts_before: 0,
            event: Arc::new(body),
            holding: Arc::clone(&self.lease),
            since: now,
        }
    }

    fn id(&self) -> WorkerId {
        self.lease.worker()
    }

    /// Whether it was told to stop, and nothing is under way any more.
    pub(super) fn has_stopped(&self) -> bool {
        let mut attempts = self.begun.iter().chain(&self.checked).chain(&self.under_way);
        let is_done = attempts.next().is_none() && self.outcomes.is_empty();
        self.stops && is_done && self.on_the_way.is_empty()
    }

    /// Whether anything is known to be held by a lease.
    fn needs(&self, lease: &Arc<Holding>) -> bool {
        // One clone is here.
        let is_written_down = |outcome: &Outcome| outcome.worker != lease.worker();
        Arc::strong_count(lease) > 1 || !self.outcomes.iter().all(is_written_down)
    }

    /// Ends its leases: nothing is under way any more.
    pub(super) fn resign(&self, world: &mut World) {
        for lease in self.retiring.iter().chain([&self.lease]) {
            let lease = lease.worker();
            world.ask(Call::Resign, move |store, _| store.resign(lease));
        }
    }

    pub(super) fn stop(&mut self, world: &mut World) {
        self.stops = true;
        let waiting = self.lanes.close();
        self.give_back(world, waiting);
    }

    /// Gives back what it holds, and comes to be in doubt if that fails, but for a lease that is on its way out.
    fn give_back(&mut self, world: &mut World, jobs: impl IntoIterator<Item = Job>) {
        let mut by_lease: BTreeMap<WorkerId, Vec<EventId>> = BTreeMap::new();
        for job in jobs {
            by_lease
                .entry(job.holding.worker())
                .or_default()
                .push(job.key.event);
        }
        for (lease, events) in by_lease {
            let released = world.ask(Call::Release, move |store, _| store.release(lease, &events));
            self.doubt |= released.is_none() && lease == self.id();
        }
    }

    /// An event is taken in: what was planned by stale terms is refused by the store, and planned anew.
    pub(super) fn post(&mut self, world: &mut World, lane: SubscriptionId) {
        let (event, now) = (world.new_event(), world.now);
        if !self.learn(world) {
            return;
        }
        let Known { terms, enabled } = self.known[&lane];
        let is_taken = enabled
            && !terms.solo
            && world.store.lives(self.id(), now)
            && self.lanes.reserve(lane, terms, 1_024, now);
        let owner = is_taken.then_some(self.id());
        let inserted = world.ask(Call::Insert, move |store, now| {
            store.insert(lane, event, owner, now);
        });
        if !is_taken {
            return;
        }
        if inserted.is_some() {
            let attempts = 0;
            let job = self.job(
                &Taken {
                    lane,
                    event,
                    attempts,
                },
                false,
                now,
            );
            self.on_the_way.push_back(job);
        } else {
            self.doubt = true;
            self.lanes.unreserve(lane, 1);
            self.lanes.set_hungry(lane, true);
        }
    }

    /// Renews what is needed, as another worker from now on where the lease is lost or there is doubt, and takes its lanes along.
    pub(super) fn renew(&mut self, world: &mut World) {
        let asked = world.now;
        for lease in std::mem::take(&mut self.retiring) {
            let id = lease.worker();
            let stays = if self.needs(&lease) {
                let renewed = world.ask(Call::Renew, move |store, now| store.renew(id, now));
                if renewed == Some(true) {
                    self.believes_until.insert(id, asked + LEASE);
                }
                renewed != Some(false)
            } else {
                world
                    .ask(Call::Resign, move |store, _| store.resign(id))
                    .is_none()
            };
            if stays {
                self.retiring.push(lease);
            }
        }
        self.renew_current(world);
        let id = self.id();
        let retiring: Vec<WorkerId> = self.retiring.iter().map(|lease| lease.worker()).collect();
        for old in retiring {
            let Some(taken) = world.ask(Call::HandOver, move |store, now| store.hand_over(old, id, now))
            else {
                // The next renewal tries again.
                break;
            };
            self.owned.extend(taken.into_iter().map(|lane| (lane, world.now)));
        }
    }

    fn renew_current(&mut self, world: &mut World) {
        let (asked, id) = (world.now, self.id());
        let Some(lives) = world.ask(Call::Renew, move |store, now| store.renew(id, now)) else {
            return;
        };
        let until = if lives { asked + LEASE } else { asked };
        self.believes_until.insert(id, until);
        if lives && !self.doubt {
            return;
        }
        let new = world.store.new_worker();
        if world
            .ask(Call::Enlist, move |store, now| store.enlist(new, now))
            .is_none()
        {
            return;
        }
        self.doubt = false;
        let old = std::mem::replace(&mut self.lease, Holding::new(new, asked));
        self.owned.clear();
        self.leaving.clear();
        self.believes_until.insert(new, asked + LEASE);
        let dropped = self.lanes.keep_held_by(new);
        if lives {
            self.retiring.push(old);
            self.give_back(world, dropped);
        }
    }

    /// What subscriptions want comes to be known, if the store says so.
    pub(super) fn learn(&mut self, world: &mut World) -> bool {
        if world.ask(Call::Ask, |_, _| ()).is_none() {
            return false;
        }
        self.know(world);
        if self.stops {
            return true;
        }
        let mut leaves = Vec::new();
        for (lane, Known { terms, enabled }) in &self.known {
            if *enabled {
                self.lanes.set_terms(*lane, *terms, world.now);
            }
            if !enabled || (terms.solo && !self.owns(lane)) {
                leaves.extend(self.lanes.drain(*lane));
            }
        }
        leaves.extend(self.lanes.take_strays());
        self.give_back(world, leaves);
        true
    }

    fn owns(&self, lane: &SubscriptionId) -> bool {
        self.owned.contains_key(lane) && !self.leaving.contains(lane)
    }

    /// It is seen that one of the lanes that it owns is more than its share.
    pub(super) fn leave_one(&mut self, world: &mut World) {
        if !self.owned.is_empty() {
            let which = world.random.random_range(0..self.owned.len());
            let lane = self.owned.keys().nth(which).copied().expect("it is there");
            self.leaving.insert(lane);
            let waiting = self.lanes.drain(lane);
            self.give_back(world, waiting);
        }
    }

    /// Lanes that are quiet are given up: those that were not needed for long, and those that it leaves.
    pub(super) fn give_up(&mut self, world: &mut World) {
        let mut quiet = Vec::new();
        for (lane, used) in &self.owned {
            let is_unused = world.now.duration_since(*used) > UNUSED;
            let goes = self.stops || is_unused || self.leaving.contains(lane);
            if goes && self.lanes.is_quiet(*lane, world.now) != Some(false) {
                quiet.push(*lane);
            }
        }
        for lane in &quiet {
            self.lanes.set_hungry(*lane, false);
            self.owned.remove(lane);
            self.leaving.remove(lane);
        }
        if quiet.is_empty() {
            return;
        }
        // Should there be no answer, a new id takes along what the store says is its own.
        let id = self.id();
        let disowned = world.ask(Call::Disown, move |store, _| store.disown(id, &quiet));
        self.doubt |= disowned.is_none();
    }

    /// Claims for some lanes, those in order last.
    pub(super) fn feed(&mut self, world: &mut World) {
        if self.stops {
            return;
        }
        self.lanes.rouse(world.now);
        let mut served = Vec::new();
        for (lane, Known { terms, enabled }) in &self.known {
            if world.random.random_range(0..3) == 0 {
                continue;
            }
            if *enabled {
                served.push((*lane, *terms));
            } else {
                self.lanes.set_hungry(*lane, false);
            }
        }
        let Some(owned) = self.acquire(world, &served) else {
            return;
        };
        let (mut in_order, mut others) = (Vec::new(), Vec::new());
        for (lane, terms) in served {
            if terms.solo && !owned.contains(&lane) {
                self.lanes.set_hungry(lane, false);
                continue;
            }
            let room = self.lanes.reserve_many(lane, terms, 4, world.now);
            if room > 0 && terms.in_order {
                in_order.push((lane, room));
            } else if room > 0 {
                others.push((lane, room));
            }
        }
        let strays = self.lanes.take_strays();
        self.give_back(world, strays);
        let (id, wanted) = (self.id(), others.clone());
        if !others.is_empty() {
            let claimed = world.ask(Call::Claim, move |store, now| store.claim(id, &wanted, now));
            self.take_in(world, &others, claimed.as_deref(), false);
        }
        for (lane, room) in in_order {
            let claimed = world.ask(Call::ClaimInOrder, move |store, now| {
                store.claim_in_order(id, lane, room, now)
            });
            self.take_in(world, &[(lane, room)], claimed.as_deref(), true);
        }
    }

    /// Those that it owns, or comes to own, of those that must have one owner; if the store says so.
    fn acquire(
        &mut self,
        world: &mut World,
        served: &[(SubscriptionId, Terms)],
    ) -> Option<BTreeSet<SubscriptionId>> {
        let (mut owned, mut wanted) = (BTreeSet::new(), Vec::new());
        for (lane, _) in served.iter().filter(|(_, terms)| terms.solo) {
            if self.leaving.contains(lane) {
                continue;
            }
            if let Some(used) = self.owned.get_mut(lane) {
                *used = world.now;
                owned.insert(*lane);
            } else {
                wanted.push(*lane);
            }
        }
        if !wanted.is_empty() {
            let id = self.id();
            let got = world.ask(Call::Own, move |store, now| store.own(id, &wanted, now))?;
            self.owned.extend(got.iter().map(|lane| (*lane, world.now)));
            owned.extend(got);
        }
        Some(owned)
    }

    /// Sees to what was claimed for so much room, if there was an answer.
    fn take_in(
        &mut self,
        world: &World,
        wanted: &[(SubscriptionId, usize)],
        claimed: Option<&[Taken]>,
        in_order: bool,
    ) {
        self.doubt |= claimed.is_none();
        for (lane, room) in wanted {
            let of_lane = claimed.into_iter().flatten().filter(|taken| taken.lane == *lane);
            let count = of_lane.count();
            let is_hungry = claimed.is_none() || count == *room || (in_order && count > 0);
            self.lanes.set_hungry(*lane, is_hungry);
            self.lanes.unreserve(*lane, room - count);
        }
        for taken in claimed.into_iter().flatten() {
            let job = self.job(taken, in_order, world.now);
            self.on_the_way.push_back(job);
        }
    }

    /// All that was taken gets into its lane.
    pub(super) fn arrive(&mut self, world: &mut World) {
        for job in std::mem::take(&mut self.on_the_way) {
            self.lanes.push(job, world.now);
        }
        let strays = self.lanes.take_strays();
        self.give_back(world, strays);
    }

    /// An attempt gets its place.
    pub(super) fn begin(&mut self, world: &mut World) {
        let Some((job, place)) = self.lanes.next(world.now) else {
            return;
        };
        let lane = job.key.subscription;
        let Terms {
            version, subscriber, ..
        } = self.known[&lane].terms;
        if let Some((_, until)) = self.paused.get(&lane).filter(|(by, _)| *by == subscriber) {
            let is_over = world.now >= *until;
            world.store.check(is_over, || {
                format!("{lane} asked to be left alone, and is {subscriber:?} yet")
            });
        }
        self.begun.push(Attempt {
            job,
            place,
            version,
            begun_for: subscriber,
            subscriber,
        });
    }

    /// It is looked whether an attempt is to be made. Some time may pass before it is.
    pub(super) fn check(&mut self, world: &mut World) {
        if self.begun.is_empty() {
            return;
        }
        let which = world.random.random_range(0..self.begun.len());
        let Attempt {
            job,
            place,
            begun_for,
            ..
        } = self.begun.swap_remove(which);
        let (holder, event, now) = (job.holding.worker(), job.key.event, world.now);
        if self.believes_until.get(&holder).is_none_or(|until| now >= *until) {
            self.doubt = true;
            self.not_made(world, &place);
            return;
        }
        let is_old = now.duration_since(job.since) > RECHECK;
        if is_old {
            match world.ask(Call::Ask, move |store, now| store.holds(holder, event, now)) {
                Some(true) => {}
                Some(false) => return self.not_made(world, &place),
                None => return self.not_made_of(world, job, &place),
            }
        }
        let Known { terms, enabled } = self.known[&job.key.subscription];
        if !enabled {
            return self.not_made_of(world, job, &place);
        }
        let lives = world.store.lives(holder, now);
        world.store.check(lives, || {
            format!("{event} would be sent by a lease that is over already")
        });
        self.checked.push(Attempt {
            job,
            place,
            version: terms.version,
            begun_for,
            subscriber: terms.subscriber,
        });
    }

    fn not_made_of(&mut self, world: &mut World, job: Job, place: &Place) {
        self.give_back(world, [job]);
        self.not_made(world, place);
    }

    fn not_made(&mut self, world: &mut World, place: &Place) {
        let finished = self.lanes.finished(place, Ending::NotMade, world.now, 0.5);
        self.give_back(world, finished.put_off);
    }

    /// An attempt is made.
    pub(super) fn send(&mut self, world: &mut World) {
        if self.checked.is_empty() {
            return;
        }
        let which = world.random.random_range(0..self.checked.len());
        let attempt = self.checked.swap_remove(which);
        let sent = Sent {
            event: attempt.job.key.event,
            attempts: attempt.job.attempts,
            holder: attempt.job.holding.worker(),
            since: attempt.job.since,
            in_order: attempt.place.in_order(),
        };
        world.ledger.arrives(&mut world.store, sent, world.now);
        self.under_way.push(attempt);
    }

    /// The subscriber answers one.
    pub(super) fn end_attempt(&mut self, world: &mut World) {
        if self.under_way.is_empty() {
            return;
        }
        let which = world.random.random_range(0..self.under_way.len());
        let Attempt {
            job,
            place,
            version,
            begun_for,
            subscriber,
        } = self.under_way.swap_remove(which);
        world.ledger.is_answered(job.key.event, job.holding.worker());
        let fate = if world.faults {
            world.random.random_range(0..24)
        } else {
            23
        };
        let after = Duration::from_millis(world.random.random_range(100..5_000));
        let (ending, next) = match fate {
            0..6 => (Ending::Failed { timed_out: fate == 0 }, Some(after)),
            6..8 => (Ending::Failed { timed_out: false }, None),
            8..10 => (Ending::AskedToWait(after), Some(after)),
            10..12 => {
                let unavailable = Ending::Unavailable {
                    timed_out: false,
                    pause: after,
                };
                (unavailable, Some(after))
            }
            12 => (Ending::Failed { timed_out: false }, Some(after)),
            _ => (Ending::Delivered, None),
        };
        let lane = job.key.subscription;
        let is_spoken_of = begun_for == self.known[&lane].terms.subscriber;
        if let Some(pause) = ending.asked_to_wait().filter(|_| is_spoken_of) {
            self.is_told_to_wait(lane, begun_for, world.now + pause);
        }
        self.outcomes.push(Outcome {
            worker: job.holding.worker(),
            lane,
            event: job.key.event,
            attempts: job.attempts,
            next,
            in_order: place.in_order(),
            version,
            subscriber,
            gone: fate == 12,
            asked_to_wait: ending.asked_to_wait(),
        });
        let put_off = self.lanes.finished(&place, ending, world.now, 0.5).put_off;
        self.give_back(world, put_off);
    }

    fn is_told_to_wait(&mut self, lane: SubscriptionId, by: Subscriber, until: Instant) {
        let told = self.paused.entry(lane).or_insert((by, until));
        *told = (by, if told.0 == by { told.1.max(until) } else { until });
    }

    /// Outcomes are written down, lease by lease. What the store does not answer for waits; what it refuses is given up.
    pub(super) fn write_outcomes(&mut self, world: &mut World) {
        let mut by_lease: BTreeMap<WorkerId, Vec<Outcome>> = BTreeMap::new();
        for outcome in std::mem::take(&mut self.outcomes) {
            by_lease.entry(outcome.worker).or_default().push(outcome);
        }
        for outcomes in by_lease.into_values() {
            let of_lease = outcomes.clone();
            let recorded = if world.refuses() {
                self.doubt = true;
                Some(Vec::new())
            } else {
                world.ask(Call::Record, move |store, now| store.record(&of_lease, now))
            };
            match recorded {
                Some(applied) => self.settle(world, &outcomes, &applied),
                None => self.outcomes.extend(outcomes),
            }
        }
    }

    fn settle(&mut self, world: &mut World, outcomes: &[Outcome], applied: &[EventId]) {
        for outcome in outcomes {
            let (lane, version, subscriber) = (outcome.lane, outcome.version, outcome.subscriber);
            let applied = applied.contains(&outcome.event);
            if outcome.gone && applied {
                world.ask(Call::Tell, move |store, _| store.disable(lane, version));
            }
            if outcome.in_order {
                let goes_on = applied && outcome.next.is_none();
                let settled = self.lanes.settled(lane, goes_on, world.now);
                self.give_back(world, settled.put_off);
            }
            if let Some(pause) = outcome.asked_to_wait {
                let until = world.now + pause;
                world.ask(Call::Tell, move |store, _| {
                    store.note_pause(lane, subscriber, until);
                });
            }
        }
    }

    /// What the store knows of who is to be left alone comes to be known.
    pub(super) fn heed(&mut self, world: &mut World) {
        for (lane, subscriber, until) in world
            .ask(Call::Ask, |store, _| store.pauses())
            .unwrap_or_default()
        {
            let waiting = self.lanes.pause(lane, subscriber, until, world.now);
            self.is_told_to_wait(lane, subscriber, until);
            self.give_back(world, waiting);
        }
    }

    /// Word comes of what was closed, however long ago.
    pub(super) fn hear(&mut self, world: &mut World) {
        for delivery in std::mem::take(&mut self.word) {
            let called_off = self.lanes.call_off(delivery);
            self.give_back(world, called_off);
        }
    }
}
