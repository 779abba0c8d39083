//! Lanes in order, under any interleaving: a simulation of workers with their lanes and leases, of a store that rules them,
//! and of a subscriber, with a clock that moves only when it is told to. Every run is decided by its seed alone.
//!
//! The lanes are the real ones. The store is a model of what the store's traits promise for `own`, `claim_in_order`,
//! `still_held` and `record`; that the engines keep those promises is what their own checks show.

use std::collections::{BTreeMap, HashMap};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const LEASE: Duration = Duration::from_secs(12);
const SEEDS: u64 = 3_000;
const STEPS: usize = 500;

#[derive(Debug)]
struct Row {
    event: EventId,
    open: bool,
    due_at: Instant,
    attempts: u32,
    owner: Option<WorkerId>,
    acknowledged: bool,
}

/// What the store promises.
#[derive(Default)]
struct Model {
    /// By `seq`.
    rows: BTreeMap<i64, Row>,
    seqs: HashMap<EventId, i64>,
    leases: HashMap<WorkerId, Instant>,
    lane_owner: Option<WorkerId>,
}

impl Model {
    fn lives(&self, worker: WorkerId, now: Instant) -> bool {
        self.leases.get(&worker).is_some_and(|until| *until > now)
    }

    fn own(&mut self, worker: WorkerId, now: Instant) -> bool {
        if !self.lives(worker, now) {
            return false;
        }
        if self.lane_owner.is_none_or(|owner| !self.lives(owner, now)) {
            self.lane_owner = Some(worker);
        }
        self.lane_owner == Some(worker)
    }

    fn claim_in_order(&mut self, worker: WorkerId, most: usize, now: Instant) -> Vec<(i64, EventId, u32)> {
        if self.lane_owner != Some(worker) || !self.lives(worker, now) {
            return Vec::new();
        }
        let mut claimed = Vec::new();
        let leases = self.leases.clone();
        for (seq, row) in self.rows.iter_mut().filter(|(_, row)| row.open).take(most) {
            let held = row
                .owner
                .is_some_and(|owner| leases.get(&owner).is_some_and(|until| *until > now));
            if held || row.due_at > now {
                break;
            }
            row.owner = Some(worker);
            claimed.push((*seq, row.event, row.attempts));
        }
        claimed
    }

    fn holds(&self, worker: WorkerId, event: EventId, now: Instant) -> bool {
        let row = &self.rows[&self.seqs[&event]];
        row.open && row.owner == Some(worker) && self.lives(worker, now)
    }

    fn release(&mut self, worker: WorkerId, event: EventId) {
        let seq = self.seqs[&event];
        if let Some(row) = self.rows.get_mut(&seq)
            && row.open
            && row.owner == Some(worker)
        {
            row.owner = None;
        }
    }

    /// Whether the outcome applies; `next` is when the next attempt is due, if there is to be one.
    fn record(&mut self, outcome: &Outcome, now: Instant) -> bool {
        if !self.holds(outcome.worker, outcome.event, now) {
            return false;
        }
        let seq = self.seqs[&outcome.event];
        let Some(row) = self.rows.get_mut(&seq) else {
            return false;
        };
        if row.attempts != outcome.attempts {
            return false;
        }
        row.attempts += 1;
        row.owner = None;
        match outcome.next {
            Some(after) => row.due_at = now + after,
            None => row.open = false,
        }
        true
    }
}

#[derive(Debug)]
struct Outcome {
    worker: WorkerId,
    event: EventId,
    attempts: u32,
    /// When the next attempt is due, if the subscriber refused and there is to be another.
    next: Option<Duration>,
}

struct Attempt {
    job: Job,
    place: Place,
}

struct Worker {
    id: WorkerId,
    lanes: Lanes,
    under_way: Vec<Attempt>,
    outcomes: Vec<Outcome>,
    /// It hangs until then.
    stalled_until: Option<Instant>,
    /// Until when it believes its lease to live.
    believes_until: Instant,
}

struct Simulation {
    random: StdRng,
    now: Instant,
    model: Model,
    workers: Vec<Worker>,
    lane: SubscriptionId,
    next_seq: i64,
    /// How many arrivals there were of each event, by `seq`, and in which order first ones were.
    arrivals: BTreeMap<i64, u32>,
    first_arrivals: Vec<i64>,
}

fn in_order() -> Terms {
    Terms {
        organization: OrganizationId::from_uuid(uuid::Uuid::nil()),
        max_in_flight: 1,
        rate_per_second: None,
        in_order: true,
        solo: true,
        version: 1,
    }
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut simulation = Self {
            random: StdRng::seed_from_u64(seed),
            now: Instant::now(),
            model: Model::default(),
            workers: Vec::new(),
            lane: SubscriptionId::new(),
            next_seq: 1,
            arrivals: BTreeMap::new(),
            first_arrivals: Vec::new(),
        };
        for _ in 0..simulation.random.random_range(1..=3) {
            let worker = simulation.new_worker();
            simulation.workers.push(worker);
        }
        simulation
    }

    fn new_worker(&mut self) -> Worker {
        let id = WorkerId::new();
        self.model.leases.insert(id, self.now + LEASE);
        Worker {
            id,
            lanes: Lanes::new(Bounds::default()),
            under_way: Vec::new(),
            outcomes: Vec::new(),
            stalled_until: None,
            believes_until: self.now + LEASE,
        }
    }

    fn step(&mut self, faults: bool) {
        let at = self.random.random_range(0..self.workers.len());
        let stalled = self.workers[at]
            .stalled_until
            .is_some_and(|until| until > self.now);
        match self.random.random_range(0..if faults { 100 } else { 80 }) {
            0..10 => self.now += Duration::from_millis(self.random.random_range(1..400)),
            10..14 if faults => self.post(),
            _ if stalled => {}
            14..24 => self.renew(at),
            24..40 => self.feed(at),
            40..52 => self.send(at),
            52..66 => self.end_attempt(at, faults),
            66..80 => self.write_outcomes(at),
            80..82 => {
                // Killed, and started again.
                self.workers[at] = self.new_worker();
            }
            82..85 => {
                let pause = Duration::from_millis(self.random.random_range(1_000..20_000));
                self.workers[at].stalled_until = Some(self.now + pause);
            }
            85..87 => {
                // A clean stop gives everything back at once.
                let old = std::mem::replace(&mut self.workers[at].id, WorkerId::new());
                self.model.leases.remove(&old);
                self.workers[at] = self.new_worker();
            }
            87..90 => self.acknowledge_one(),
            90..93 => self.now += Duration::from_secs(self.random.random_range(1..6)),
            _ => {}
        }
    }

    fn post(&mut self) {
        let event = EventId::new();
        let row = Row {
            event,
            open: true,
            due_at: self.now,
            attempts: 0,
            owner: None,
            acknowledged: false,
        };
        self.model.rows.insert(self.next_seq, row);
        self.model.seqs.insert(event, self.next_seq);
        self.next_seq += 1;
        let terms = in_order();
        for worker in &mut self.workers {
            assert!(
                !worker.lanes.reserve(self.lane, terms, self.now),
                "nothing is held from intake"
            );
        }
    }

    fn renew(&mut self, at: usize) {
        let (now, worker) = (self.now, &mut self.workers[at]);
        if self.model.lives(worker.id, now) {
            self.model.leases.insert(worker.id, now + LEASE);
            worker.believes_until = now + LEASE;
        } else {
            // It is another worker from now on; what waits is dropped.
            worker.id = WorkerId::new();
            self.model.leases.insert(worker.id, now + LEASE);
            worker.believes_until = now + LEASE;
            worker.lanes.keep_held_by(worker.id);
        }
    }

    fn feed(&mut self, at: usize) {
        let (now, lane) = (self.now, self.lane);
        let worker = &mut self.workers[at];
        worker.lanes.rouse(now);
        if !self.model.own(worker.id, now) {
            worker.lanes.set_hungry(lane, false);
            return;
        }
        let room = worker.lanes.reserve_many(lane, in_order(), 4, now);
        if room == 0 {
            return;
        }
        let claimed = self.model.claim_in_order(worker.id, room, now);
        worker.lanes.set_hungry(lane, !claimed.is_empty());
        worker.lanes.unreserve(lane, room - claimed.len());
        for (_, event, attempts) in claimed {
            let body = EventBody {
                id: event,
                event_type: "a".into(),
                received_at: Timestamp::from_millis(0),
                occurred_at: None,
                source: None,
                trace: None,
                payload: Bytes::from_static(b"{}"),
            };
            let job = Job {
                key: DeliveryKey {
                    event,
                    subscription: lane,
                },
                organization: in_order().organization,
                attempts,
                attempts_before: 0,
                event: Arc::new(body),
                holding: Holding::new(worker.id, now),
                since: now,
            };
            worker.lanes.push(job, now);
        }
    }

    fn send(&mut self, at: usize) {
        let now = self.now;
        let worker = &mut self.workers[at];
        let Some((job, place)) = worker.lanes.next(now) else {
            return;
        };
        let holder = job.holding.worker();
        let may_send = holder == worker.id
            && now < worker.believes_until
            && self.model.holds(holder, job.key.event, now);
        if !may_send {
            let put_off = worker.lanes.finished(&place, Ending::NotMade, now, 0.5).put_off;
            for job in std::iter::once(job).chain(put_off) {
                self.model.release(job.holding.worker(), job.key.event);
            }
            return;
        }
        let seq = self.model.seqs[&job.key.event];
        let earlier = self.model.rows.range(..seq).find(|(_, row)| row.open);
        assert!(earlier.is_none(), "{seq} is sent while {earlier:?} is open");
        let arrivals = self.arrivals.entry(seq).or_default();
        *arrivals += 1;
        if *arrivals == 1 {
            self.first_arrivals.push(seq);
        }
        worker.under_way.push(Attempt { job, place });
        let model = &self.model;
        let living = self.workers.iter().flat_map(|worker| &worker.under_way);
        let living = living.filter(|attempt| model.lives(attempt.job.holding.worker(), now));
        assert!(
            living.count() <= 1,
            "one at a time over all workers whose lease lives"
        );
    }

    fn end_attempt(&mut self, at: usize, faults: bool) {
        let now = self.now;
        let fate = if faults {
            self.random.random_range(0..10)
        } else {
            9
        };
        let after = Duration::from_millis(self.random.random_range(100..5_000));
        let worker = &mut self.workers[at];
        if worker.under_way.is_empty() {
            return;
        }
        let Attempt { job, place } = worker.under_way.swap_remove(0);
        let (ending, next) = match fate {
            0..3 => (Ending::Failed { timed_out: fate == 0 }, Some(after)),
            3 => (Ending::Failed { timed_out: false }, None),
            4 => (Ending::AskedToWait(after), Some(after)),
            _ => (Ending::Delivered, None),
        };
        worker.outcomes.push(Outcome {
            worker: job.holding.worker(),
            event: job.key.event,
            attempts: job.attempts,
            next,
        });
        let put_off = worker.lanes.finished(&place, ending, now, 0.5).put_off;
        for job in put_off {
            self.model.release(job.holding.worker(), job.key.event);
        }
    }

    fn write_outcomes(&mut self, at: usize) {
        let (now, lane) = (self.now, self.lane);
        let worker = &mut self.workers[at];
        for outcome in std::mem::take(&mut worker.outcomes) {
            let applied = self.model.record(&outcome, now);
            let settled = worker.lanes.settled(lane, applied && outcome.next.is_none(), now);
            for job in settled.put_off {
                self.model.release(job.holding.worker(), job.key.event);
            }
        }
    }

    fn acknowledge_one(&mut self) {
        let open: Vec<i64> = self
            .model
            .rows
            .iter()
            .filter(|(_, row)| row.open)
            .map(|(seq, _)| *seq)
            .collect();
        if open.is_empty() {
            return;
        }
        let seq = open[self.random.random_range(0..open.len())];
        if let Some(row) = self.model.rows.get_mut(&seq) {
            row.open = false;
            row.acknowledged = true;
        }
    }

    /// No more faults: everything is sent.
    fn settle(&mut self) {
        for worker in &mut self.workers {
            worker.stalled_until = None;
        }
        for _ in 0..40_000 {
            if self.model.rows.values().all(|row| !row.open) {
                return;
            }
            self.step(false);
        }
        let open: Vec<_> = self.model.rows.iter().filter(|(_, row)| row.open).collect();
        panic!("these are stranded: {open:?}");
    }
}

#[test]
fn order_holds_whatever_happens() {
    let only = std::env::var("TRIGGERS_SIMULATION_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    let (mut sent, mut again) = (0, 0);
    for seed in seeds {
        let ran = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            for _ in 0..STEPS {
                simulation.step(true);
            }
            simulation.settle();
            simulation
        });
        let Ok(simulation) = ran else {
            panic!("seed {seed} fails: set TRIGGERS_SIMULATION_SEED={seed} to run it alone");
        };
        assert!(
            simulation.first_arrivals.is_sorted(),
            "seed {seed}: {:?}",
            simulation.first_arrivals
        );
        for (seq, row) in &simulation.model.rows {
            let arrived = simulation.arrivals.contains_key(seq);
            assert!(arrived || row.acknowledged, "seed {seed}: {seq} never arrived");
        }
        sent += simulation.first_arrivals.len();
        again += simulation.arrivals.values().filter(|times| **times > 1).count();
    }
    if only.is_none() {
        assert!(
            sent > 10_000 && again > 500,
            "{sent} sent, {again} of them again: too little happened"
        );
    }
}
