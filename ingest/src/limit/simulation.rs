//! Nodes that share one bucket through a store, on a clock of the test's own: thousands of runs in which demand is skewed,
//! moves and bursts, and the store answers late.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use shared::{
    OrganizationId,
    store::{LIMIT_WORD_COUNTS, LimitReport, LimitStanding},
};
use uuid::Uuid;

use super::{
    Room,
    bucket::{Bucket, WINDOW},
};

const MILLI: i64 = 1_000_000;
const SECOND: i64 = 1_000 * MILLI;

/// The store's part, as its statements have it; the checks of the stores themselves see to that.
#[derive(Default)]
struct Store {
    full_at: i64,
    shares: HashMap<Uuid, (LimitReport, i64)>,
}

impl Store {
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "as the stores do it")]
    fn share(&mut self, report: LimitReport, now: i64) -> LimitStanding {
        let former = self.shares.insert(report.counter, (report, now));
        let debit = report.spent - former.map_or(0, |(former, _)| former.spent);
        self.full_at = (self.full_at.max(now) + debit).min(now + 2 * WINDOW);
        let counts = i64::try_from(LIMIT_WORD_COUNTS.as_nanos()).unwrap();
        let others = self
            .shares
            .values()
            .filter(|(other, at)| other.counter != report.counter && now - at < counts);
        let (mut wanted, mut unreported) = (0.0, 0.0);
        for (other, at) in others {
            wanted += other.wanted;
            unreported += other.took * (now - at) as f64;
        }
        LimitStanding {
            organization: report.organization,
            used: self.full_at - now,
            others_wanted: wanted,
            others_unreported: unreported as i64,
        }
    }
}

struct Node {
    bucket: Bucket,
    /// When it next asks the store, of its own accord.
    next: i64,
    /// Not sooner.
    soonest: i64,
    hurry: bool,
    /// What the store has answered, and when that arrives.
    answer: Option<(i64, Option<LimitStanding>)>,
    alive: bool,
}

/// What happens when.
struct World {
    store: Store,
    nodes: Vec<Node>,
    rng: StdRng,
    organization: OrganizationId,
    /// Whether the store answers.
    reachable: bool,
    /// When events were accepted and refused, by millisecond.
    accepted: Vec<i64>,
    refused: Vec<i64>,
}

impl World {
    fn new(seed: u64, limit: u32, nodes: u32) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let made = (0..nodes).map(|_| Node {
            bucket: Bucket::new(limit, 0, nodes),
            next: rng.random_range(0..1_000) * MILLI,
            soonest: 0,
            hurry: false,
            answer: None,
            alive: true,
        });
        Self {
            store: Store::default(),
            nodes: made.collect(),
            rng,
            organization: OrganizationId::new(),
            reachable: true,
            accepted: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// So many events at a node, at this millisecond.
    fn ask(&mut self, node: usize, ms: i64, events: u32) {
        for _ in 0..events {
            let node = &mut self.nodes[node];
            let taking = node.bucket.take(ms * MILLI);
            node.hurry |= taking.hurry;
            match taking.room {
                Room::Taken(_) => self.accepted.push(ms),
                _ => self.refused.push(ms),
            }
        }
    }

    /// Lets each node do what its time has come for.
    fn tick(&mut self, ms: i64) {
        let now = ms * MILLI;
        let alive = u32::try_from(self.nodes.iter().filter(|node| node.alive).count()).unwrap();
        for node in self.nodes.iter_mut().filter(|node| node.alive) {
            if let Some((at, standing)) = node.answer
                && at <= now
            {
                node.answer = None;
                if let Some(standing) = standing {
                    node.bucket.heard(&standing, alive, now);
                    node.soonest = now + 100 * MILLI;
                } else {
                    node.soonest = now + SECOND;
                }
                node.next = now + self.rng.random_range(900..1_100) * MILLI;
            }
            let due = node.next <= now || (node.hurry && node.soonest <= now);
            if node.answer.is_some() || !due {
                continue;
            }
            node.hurry = false;
            if !node.bucket.is_in_use(now) {
                node.next = now + SECOND;
                continue;
            }
            let report = node.bucket.report(self.organization, now);
            let standing = self.reachable.then(|| self.store.share(report, now));
            node.answer = Some((now + self.rng.random_range(1..30) * MILLI, standing));
        }
    }

    fn accepted_between(&self, from: i64, to: i64) -> usize {
        let until = |ms| self.accepted.partition_point(|at| *at < ms);
        until(to) - until(from)
    }
}

/// Where demand comes, second by second: for each node, in events a second.
fn demand(rng: &mut StdRng, nodes: usize, seconds: usize, total: f64) -> Vec<Vec<f64>> {
    let mut skew = |concentrated: bool| {
        let mut parts: Vec<f64> = (0..nodes)
            .map(|_| rng.random_range(0.01..1.0_f64).powi(if concentrated { 6 } else { 1 }))
            .collect();
        let sum: f64 = parts.iter().sum();
        parts.iter_mut().for_each(|part| *part *= total / sum);
        parts
    };
    let kind = seconds % 3;
    let mut made = Vec::with_capacity(seconds);
    let mut now = skew(kind != 0);
    for second in 0..seconds {
        if second > 0 && second % 20 == 0 {
            now = skew(second % 40 == 0);
        }
        made.push(now.clone());
    }
    made
}

/// As many as there are in this millisecond, of a rate a second.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
fn events(rng: &mut StdRng, rate: f64) -> u32 {
    let expected = rate / 1_000.0;
    expected as u32 + u32::from(rng.random_bool(expected.fract()))
}

fn run(world: &mut World, rates: &[Vec<f64>]) {
    let mut arrivals = StdRng::from_rng(&mut world.rng);
    for (second, rates) in rates.iter().enumerate() {
        for ms in 0..1_000 {
            let ms = i64::try_from(second).unwrap() * 1_000 + ms;
            world.tick(ms);
            for (node, rate) in rates.iter().enumerate() {
                if world.nodes[node].alive {
                    let events = events(&mut arrivals, *rate);
                    world.ask(node, ms, events);
                }
            }
        }
    }
}

const LIMIT: u32 = 1_200;

/// The least and the most of any minute from the second on, and what the first had.
fn minutes(world: &World, seconds: i64) -> (usize, usize, usize) {
    let later = (61..=seconds - 60).map(|from| world.accepted_between(from * 1_000, (from + 60) * 1_000));
    let later: Vec<usize> = later.collect();
    (
        *later.iter().min().unwrap(),
        *later.iter().max().unwrap(),
        world.accepted_between(0, 60_000),
    )
}

#[test]
fn accepted_over_any_minute_is_the_limit() {
    let (mut least, mut most, mut first) = (usize::MAX, 0, 0);
    for seed in 0..300 {
        let nodes = 2 + u32::try_from(seed % 4).unwrap();
        let mut world = World::new(seed, LIMIT, nodes);
        let factor = [1.3, 2.0, 5.0][usize::try_from(seed % 3).unwrap()];
        let rates = demand(&mut world.rng, nodes as usize, 180, f64::from(LIMIT) / 60.0 * factor);
        run(&mut world, &rates);
        let (a, b, c) = minutes(&world, 180);
        eprintln!("{seed} nodes {nodes} factor {factor}: {a} {b} first {c}");
        (least, most, first) = (least.min(a), most.max(b), first.max(c));
    }
    eprintln!("{least} {most} {first}");
    let _ = BTreeMap::<u8, u8>::new();
}
