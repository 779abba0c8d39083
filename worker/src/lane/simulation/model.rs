//! What the store's traits promise of lanes, deliveries and leases, with nothing behind it.

use std::collections::{BTreeMap, HashMap, HashSet};

use shared::{EventId, OrganizationId, SubscriptionId, WorkerId, store::Standing, subscription::Subscriber};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Duration, LEASE, Terms};

#[derive(Debug)]
pub(super) struct Row {
    pub(super) event: EventId,
    pub(super) open: bool,
    due_at: Instant,
    attempts: u32,
    owner: Option<WorkerId>,
    pub(super) acknowledged: bool,
    /// When it was opened again, if it was.
    pub(super) opened_again: Option<Instant>,
    /// How often it was opened, and closed.
    pub(super) opened: u32,
    pub(super) closed: u32,
}

/// An attempt's outcome, to be written down.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) worker: WorkerId,
    pub(super) lane: SubscriptionId,
    pub(super) event: EventId,
    pub(super) attempts: u32,
    /// When the next attempt is due, if the subscriber refused and there is to be another.
    pub(super) next: Option<Duration>,
    /// Its lane waits for it.
    pub(super) in_order: bool,
    /// By which version of the subscription it was sent, and to which of its subscribers.
    pub(super) version: i64,
    pub(super) subscriber: Subscriber,
    /// The subscriber said that it is gone for good.
    pub(super) gone: bool,
    /// For how long the subscriber asked to be left alone, if it did.
    pub(super) asked_to_wait: Option<Duration>,
}

/// What was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) lane: SubscriptionId,
    pub(super) event: EventId,
    pub(super) attempts: u32,
}

/// A subscription with what is to be sent to it.
#[derive(Debug)]
pub(super) struct Subscription {
    organization: OrganizationId,
    pub(super) in_order: bool,
    rate: Option<u32>,
    pub(super) version: i64,
    pub(super) enabled: bool,
    /// How often it was enabled: each time it is another subscriber.
    pub(super) enabled_times: i64,
    /// By `seq`.
    pub(super) rows: BTreeMap<i64, Row>,
    owner: Option<WorkerId>,
    /// Which of its subscribers asked to be left alone, and until when.
    paused: Option<(Subscriber, Instant)>,
}

impl Subscription {
    pub(super) fn new(organization: OrganizationId, in_order: bool, rate: Option<u32>) -> Self {
        Self {
            organization,
            in_order,
            rate,
            version: 1,
            enabled: true,
            enabled_times: 1,
            rows: BTreeMap::new(),
            owner: None,
            paused: None,
        }
    }

    pub(super) fn terms(&self) -> Terms {
        Terms {
            organization: self.organization,
            max_in_flight: if self.in_order { 1 } else { 3 },
            rate_per_second: self.rate,
            in_order: self.in_order,
            solo: self.in_order || self.rate.is_some(),
            version: self.version,
            subscriber: Subscriber::numbered(self.enabled_times),
        }
    }

    /// It is disabled, or enabled again.
    pub(super) fn turn(&mut self) {
        self.enabled = !self.enabled;
        self.enabled_times += i64::from(self.enabled);
        self.version += 1;
    }
}

/// The store.
#[derive(Default)]
pub(super) struct Model {
    pub(super) lanes: BTreeMap<SubscriptionId, Subscription>,
    places: HashMap<EventId, (SubscriptionId, i64)>,
    leases: HashMap<WorkerId, Instant>,
    next_seq: i64,
    next_worker: u128,
    pub(super) handed_over: u32,
    /// Outcomes that were to be written down.
    brought: HashSet<(WorkerId, EventId, u32)>,
    /// What must not be, and is: the first of it.
    pub(super) broken: Option<String>,
}

impl Model {
    /// A worker's id that there was none of before.
    pub(super) fn new_worker(&mut self) -> WorkerId {
        self.next_worker += 1;
        WorkerId::from_uuid(Uuid::from_u128(self.next_worker))
    }

    pub(super) fn lives(&self, worker: WorkerId, now: Instant) -> bool {
        self.leases.get(&worker).is_some_and(|until| *until > now)
    }

    /// Whether the lease lives, and by this for longer.
    pub(super) fn renew(&mut self, worker: WorkerId, now: Instant) -> bool {
        let lives = self.lives(worker, now);
        if lives {
            self.leases.insert(worker, now + LEASE);
        }
        lives
    }

    pub(super) fn enlist(&mut self, worker: WorkerId, now: Instant) {
        self.leases.insert(worker, now + LEASE);
    }

    pub(super) fn resign(&mut self, worker: WorkerId) {
        self.leases.remove(&worker);
        for lane in self.lanes.values_mut() {
            lane.owner = lane.owner.filter(|owner| *owner != worker);
        }
    }

    pub(super) fn insert(
        &mut self,
        lane: SubscriptionId,
        event: EventId,
        owner: Option<WorkerId>,
        now: Instant,
    ) {
        let row = Row {
            event,
            open: true,
            due_at: now,
            attempts: 0,
            owner,
            acknowledged: false,
            opened_again: None,
            opened: 1,
            closed: 0,
        };
        self.next_seq += 1;
        let seq = self.next_seq;
        self.lane_mut(lane).rows.insert(seq, row);
        self.places.insert(event, (lane, seq));
    }

    pub(super) fn own(
        &mut self,
        worker: WorkerId,
        lanes: &[SubscriptionId],
        now: Instant,
    ) -> Vec<SubscriptionId> {
        let leases = &self.leases;
        let lives = |worker: WorkerId| leases.get(&worker).is_some_and(|until| *until > now);
        let mut owned = lanes.to_vec();
        owned.retain(|lane| {
            let lane = self.lanes.get_mut(lane).expect("it is there");
            if lives(worker) && lane.owner.is_none_or(|owner| !lives(owner)) {
                lane.owner = Some(worker);
            }
            lives(worker) && lane.owner == Some(worker)
        });
        owned
    }

    pub(super) fn hand_over(&mut self, from: WorkerId, to: WorkerId, now: Instant) -> Vec<SubscriptionId> {
        if !self.lives(to, now) {
            return Vec::new();
        }
        let mut handed_over = Vec::new();
        for (id, lane) in &mut self.lanes {
            if lane.owner == Some(from) {
                lane.owner = Some(to);
                handed_over.push(*id);
                self.handed_over += 1;
            }
        }
        handed_over
    }

    pub(super) fn disown(&mut self, worker: WorkerId, lanes: &[SubscriptionId]) {
        for lane in lanes {
            let lane = self.lane_mut(*lane);
            lane.owner = lane.owner.filter(|owner| *owner != worker);
        }
    }

    /// The beginning of the lane, as far as nothing in it keeps the rest waiting.
    pub(super) fn claim_in_order(
        &mut self,
        worker: WorkerId,
        id: SubscriptionId,
        most: usize,
        now: Instant,
    ) -> Vec<Taken> {
        let lives = self.lives(worker, now);
        let (leases, lane) = (&self.leases, self.lanes.get_mut(&id).expect("it is there"));
        if lane.owner != Some(worker) || !lives || !lane.enabled {
            return Vec::new();
        }
        let open = lane.rows.values_mut().filter(|row| row.open).take(most);
        open.take_while(|row| row.due_at <= now && !is_held(row, leases, now))
            .map(|row| take(id, row, worker))
            .collect()
    }

    /// Lanes with something due that nobody holds, and that no other living worker owns.
    pub(super) fn lanes_due(&self, worker: WorkerId, now: Instant) -> Vec<SubscriptionId> {
        let anothers = |owner: WorkerId| owner != worker && self.lives(owner, now);
        let is_due = |row: &Row| row.open && row.due_at <= now && !is_held(row, &self.leases, now);
        let lanes = self.lanes.iter().filter(|(_, lane)| {
            lane.enabled && !lane.owner.is_some_and(anothers) && lane.rows.values().any(is_due)
        });
        lanes.map(|(id, _)| *id).collect()
    }

    pub(super) fn standing(&self, worker: WorkerId, now: Instant) -> Standing {
        let living = self.leases.iter().filter(|(_, until)| **until > now);
        // The ids of one worker end in the same 64 bits.
        let workers: HashSet<u64> = living.map(|(id, _)| id.uuid().as_u64_pair().1).collect();
        let owners: Vec<WorkerId> = self.lanes.values().filter_map(|lane| lane.owner).collect();
        let count = |owners: usize| u32::try_from(owners).unwrap_or(u32::MAX);
        Standing {
            workers: count(workers.len()),
            mine: count(owners.iter().filter(|owner| **owner == worker).count()),
            all: count(owners.iter().filter(|owner| self.lives(**owner, now)).count()),
        }
    }

    /// Of each lane what has been due for longest, unless it is another's.
    pub(super) fn claim(
        &mut self,
        worker: WorkerId,
        wanted: &[(SubscriptionId, usize)],
        now: Instant,
    ) -> Vec<Taken> {
        let mut claimed = Vec::new();
        for (id, most) in wanted {
            let anothers = |owner: WorkerId| owner != worker && self.lives(owner, now);
            let lane = self.lane(*id);
            if !self.lives(worker, now) || !lane.enabled || lane.owner.is_some_and(anothers) {
                continue;
            }
            let (leases, lane) = (&self.leases, self.lanes.get_mut(id).expect("it is there"));
            let due = |row: &&mut Row| row.open && row.due_at <= now && !is_held(row, leases, now);
            let mut due: Vec<_> = lane.rows.values_mut().filter(due).collect();
            due.sort_by_key(|row| row.due_at);
            claimed.extend(due.into_iter().take(*most).map(|row| take(*id, row, worker)));
        }
        claimed
    }

    pub(super) fn holds(&self, worker: WorkerId, event: EventId, now: Instant) -> bool {
        let row = self.row(event);
        row.open && row.owner == Some(worker) && self.lives(worker, now)
    }

    pub(super) fn release(&mut self, worker: WorkerId, events: &[EventId]) {
        for event in events {
            let row = self.row_mut(*event);
            if row.open && row.owner == Some(worker) {
                row.owner = None;
            }
        }
    }

    /// Notes what must not be.
    pub(super) fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.get_or_insert_with(what);
        }
    }

    /// The outcomes that apply. That of who has a lease that lives does, unless somebody else than workers closed the delivery or
    /// opened it again: no other worker may have come between.
    pub(super) fn record(&mut self, outcomes: &[Outcome], now: Instant) -> Vec<EventId> {
        let mut applied = Vec::new();
        for outcome in outcomes {
            let held = self.holds(outcome.worker, outcome.event, now);
            let lives = self.lives(outcome.worker, now);
            let brought = (outcome.worker, outcome.event, outcome.attempts);
            let is_first = self.brought.insert(brought);
            let row = self.row_mut(outcome.event);
            let must_apply = lives && is_first && !row.acknowledged && row.opened_again.is_none();
            let is_right = held && row.attempts == outcome.attempts;
            self.check(is_right || !must_apply, || format!("{outcome:?} does not apply"));
            if !is_right {
                continue;
            }
            let row = self.row_mut(outcome.event);
            row.attempts += 1;
            row.owner = None;
            match outcome.next {
                Some(after) => row.due_at = now + after,
                None => close(row),
            }
            applied.push(outcome.event);
        }
        applied
    }

    /// Closes what is open, and opens what is closed.
    pub(super) fn turn(&mut self, event: EventId, now: Instant) {
        let row = self.row_mut(event);
        if row.open {
            close(row);
            row.acknowledged = true;
        } else {
            row.open = true;
            row.opened += 1;
            row.acknowledged = false;
            row.due_at = now;
            row.owner = None;
            row.opened_again = Some(now);
        }
    }

    /// Disables a subscription that is of this version yet.
    pub(super) fn disable(&mut self, lane: SubscriptionId, version: i64) -> bool {
        let lane = self.lane_mut(lane);
        let is_meant = lane.enabled && lane.version == version;
        if is_meant {
            lane.enabled = false;
            lane.version += 1;
        }
        is_meant
    }

    /// One of another subscriber than the one that is known, or that lasts longer, takes its place.
    pub(super) fn note_pause(&mut self, lane: SubscriptionId, by: Subscriber, until: Instant) {
        let lane = self.lane_mut(lane);
        let known = lane.paused.filter(|(subscriber, _)| *subscriber == by);
        lane.paused = Some((by, known.map_or(until, |(_, known)| known.max(until))));
    }

    /// Who is to be left alone, and until when.
    pub(super) fn pauses(&self) -> Vec<(SubscriptionId, Subscriber, Instant)> {
        let of = |(id, lane): (&SubscriptionId, &Subscription)| {
            lane.paused.map(|(subscriber, until)| (*id, subscriber, until))
        };
        self.lanes.iter().filter_map(of).collect()
    }

    /// What is open, or closed.
    pub(super) fn events(&self, open: bool) -> Vec<EventId> {
        let rows = self.lanes.values().flat_map(|lane| lane.rows.values());
        rows.filter(|row| row.open == open).map(|row| row.event).collect()
    }

    pub(super) fn has_open(&self) -> bool {
        let mut rows = self.lanes.values().flat_map(|lane| lane.rows.values());
        rows.any(|row| row.open)
    }

    /// What is open, to be said of what should not be.
    pub(super) fn stranded(&self) -> String {
        let rows = self.lanes.values().flat_map(|lane| &lane.rows);
        let open: Vec<_> = rows.filter(|(_, row)| row.open).collect();
        format!("these are stranded: {open:?}")
    }

    pub(super) fn place(&self, event: EventId) -> (SubscriptionId, i64) {
        self.places[&event]
    }

    pub(super) fn lane(&self, lane: SubscriptionId) -> &Subscription {
        &self.lanes[&lane]
    }

    pub(super) fn lane_mut(&mut self, lane: SubscriptionId) -> &mut Subscription {
        self.lanes.get_mut(&lane).expect("it is there")
    }

    pub(super) fn row(&self, event: EventId) -> &Row {
        let (lane, seq) = self.place(event);
        &self.lane(lane).rows[&seq]
    }

    fn row_mut(&mut self, event: EventId) -> &mut Row {
        let (lane, seq) = self.place(event);
        self.lane_mut(lane).rows.get_mut(&seq).expect("it is there")
    }
}

fn take(lane: SubscriptionId, row: &mut Row, worker: WorkerId) -> Taken {
    row.owner = Some(worker);
    Taken {
        lane,
        event: row.event,
        attempts: row.attempts,
    }
}

fn close(row: &mut Row) {
    row.open = false;
    row.closed += 1;
}

fn is_held(row: &Row, leases: &HashMap<WorkerId, Instant>, now: Instant) -> bool {
    row.owner
        .is_some_and(|owner| leases.get(&owner).is_some_and(|until| *until > now))
}
