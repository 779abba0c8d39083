//! Nodes that share one bucket through a store, on a clock of the test's own: many runs in which demand is skewed and moves,
//! nodes come and go, and the store answers late or not at all.

use std::collections::HashMap;

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
/// Milliseconds between two looks at the clock.
const STEP: i64 = 5;
const LIMIT: u32 = 1_200;
/// As a minute may differ from the limit.
const LEAST: usize = LIMIT as usize * 9 / 10;
const MOST: usize = LIMIT as usize * 11 / 10;

/// The store's part, as its statements have it; the checks of the stores themselves see to that.
#[derive(Default)]
struct Store {
    full_at: i64,
    shares: HashMap<Uuid, (LimitReport, i64)>,
}

impl Store {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "as the stores do it"
    )]
    fn share(&mut self, report: LimitReport, now: i64) -> LimitStanding {
        let former = self.shares.insert(report.counter, (report, now));
        let debit = report.spent - former.map_or(0, |(former, _)| former.spent);
        self.full_at = (self.full_at.max(now - report.within) + debit).min(now + 2 * WINDOW);
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

struct World {
    store: Store,
    nodes: Vec<Node>,
    rng: StdRng,
    organization: OrganizationId,
    /// Milliseconds.
    now: i64,
    /// Whether the store answers.
    reachable: bool,
    /// When events were accepted and refused, in milliseconds.
    accepted: Vec<i64>,
    refused: Vec<i64>,
}

impl World {
    fn new(seed: u64, nodes: usize) -> Self {
        let mut world = Self {
            store: Store::default(),
            nodes: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            organization: OrganizationId::new(),
            now: 0,
            reachable: true,
            accepted: Vec::new(),
            refused: Vec::new(),
        };
        for _ in 0..nodes {
            world.join(u32::try_from(nodes).unwrap());
        }
        world
    }

    fn join(&mut self, nodes: u32) {
        let now = self.now * MILLI;
        self.nodes.push(Node {
            bucket: Bucket::new(LIMIT, now, nodes),
            next: now + self.rng.random_range(0..1_000) * MILLI,
            soonest: now,
            hurry: false,
            answer: None,
            alive: true,
        });
    }

    /// So many events at a node.
    fn ask(&mut self, node: usize, events: u32) {
        let node = &mut self.nodes[node];
        for _ in 0..events {
            let taking = node.bucket.take(self.now * MILLI);
            node.hurry |= taking.hurry;
            if let Room::Taken(_) = taking.room {
                self.accepted.push(self.now);
            } else {
                node.bucket.refused(1);
                self.refused.push(self.now);
            }
        }
    }

    /// Lets each node do what its time has come for.
    fn tick(&mut self) {
        let now = self.now * MILLI;
        let alive = u32::try_from(self.nodes.iter().filter(|node| node.alive).count()).unwrap();
        for node in self.nodes.iter_mut().filter(|node| node.alive) {
            if let Some((at, standing)) = node.answer
                && at <= now
            {
                node.answer = None;
                node.soonest = now + 100 * MILLI;
                match standing {
                    Some(standing) => node.bucket.heard(&standing, alive, now),
                    None => node.soonest = now + SECOND,
                }
            }
            let due = node.next <= now;
            if node.answer.is_some() || !(due || node.hurry && node.soonest <= now) {
                continue;
            }
            node.hurry = false;
            if due {
                node.next = now + self.rng.random_range(900..1_100) * MILLI;
            }
            if node.bucket.is_in_use() {
                let report = node.bucket.report(self.organization, now);
                let standing = self.reachable.then(|| self.store.share(report, now));
                node.answer = Some((now + self.rng.random_range(1..30) * MILLI, standing));
            }
        }
    }

    /// So many seconds with so many events a second at each node.
    fn run(&mut self, seconds: i64, rates: &[f64]) {
        let end = self.now + seconds * 1_000;
        while self.now < end {
            self.tick();
            for (node, rate) in rates.iter().enumerate() {
                let events = events(&mut self.rng, *rate);
                self.ask(node, events);
            }
            self.now += STEP;
        }
    }

    /// Demand of so many times the limit, which moves from node to node, for so many times 20 seconds.
    fn run_skewed(&mut self, phases: u32, factor: f64) {
        for _ in 0..phases {
            let rates = self.skewed(factor);
            self.run(20, &rates);
        }
    }

    /// One node has most of it, or none has.
    fn skewed(&mut self, factor: f64) -> Vec<f64> {
        let steep = [1, 6, 20][self.rng.random_range(0..3)];
        let parts: Vec<f64> = self
            .nodes
            .iter()
            .map(|_| self.rng.random_range(0.01..1.0_f64).powi(steep))
            .collect();
        let sum: f64 = parts.iter().sum();
        parts
            .iter()
            .map(|part| part / sum * factor * f64::from(LIMIT) / 60.0)
            .collect()
    }

    /// Accepted in this minute, from so many milliseconds on.
    fn minute(&self, from: i64) -> usize {
        let until = |ms| self.accepted.partition_point(|at| *at < ms);
        until(from + 60_000) - until(from)
    }

    /// The least and the most of any minute from then until now.
    fn minutes(&self, from: i64) -> (usize, usize) {
        let minutes = (from..=self.now - 60_000).step_by(500);
        let minutes: Vec<usize> = minutes.map(|from| self.minute(from)).collect();
        (*minutes.iter().min().unwrap(), *minutes.iter().max().unwrap())
    }
}

/// As many as there are in a step, of a rate a second.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers"
)]
fn events(rng: &mut StdRng, rate: f64) -> u32 {
    let expected = rate * 0.001 * f64::from(i32::try_from(STEP).unwrap());
    expected as u32 + u32::from(rng.random_bool(expected.fract()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_minute_has_the_limit_wherever_demand_comes(
        seed: u64,
        nodes in 1_usize..=5,
        factor in prop::sample::select(vec![1.2, 2.0, 5.0, 20.0]),
    ) {
        let mut world = World::new(seed, nodes);
        world.run_skewed(3, 5.0);
        let emptied = world.now;
        world.run_skewed(9, factor);
        let (least, most) = world.minutes(emptied);
        prop_assert!(least >= LEAST && most <= MOST, "{least} to {most}");
        // What was in the bucket, and what it refilled.
        let first = world.minute(0);
        prop_assert!((2 * LEAST..=2 * MOST).contains(&first), "{first} in the first minute");
    }

    #[test]
    fn who_stays_below_the_limit_is_never_refused(seed: u64, nodes in 1_usize..=5) {
        let mut world = World::new(seed, nodes);
        world.run_skewed(9, 0.85);
        prop_assert_eq!(world.refused.len(), 0);
    }

    #[test]
    fn a_minutes_worth_at_once_at_whichever_node(seed: u64, nodes in 1_usize..=5) {
        let mut world = World::new(seed, nodes);
        let elsewhere: Vec<f64> = (0..nodes).map(|node| if node == 0 { 15.0 } else { 0.0 }).collect();
        world.run(30, &elsewhere);
        world.run(70, &[]);
        let (before, burst) = (world.accepted.len(), LIMIT / 50);
        for _ in 0..50 {
            world.tick();
            world.ask(nodes - 1, burst);
            world.now += 4 * STEP;
        }
        let accepted = world.accepted.len() - before;
        prop_assert!((LEAST..=MOST).contains(&accepted), "{accepted}");
    }

    #[test]
    fn what_all_nodes_overdraw_at_once_is_owed(seed: u64, nodes in 2_usize..=5) {
        let mut world = World::new(seed, nodes);
        for node in 0..nodes {
            world.ask(node, LIMIT);
        }
        prop_assert!(world.accepted.len() <= 2 * MOST, "{}", world.accepted.len());
        world.run_skewed(12, 4.0);
        prop_assert!(world.minute(0) <= 2 * MOST, "a bucket and a minute's refill: {}", world.minute(0));
        let (least, most) = world.minutes(90_000);
        prop_assert!(least >= LEAST && most <= MOST, "{least} to {most}");
        let all = world.accepted.len();
        prop_assert!((5 * LEAST..=5 * MOST).contains(&all), "a bucket and four minutes: {all}");
    }

    #[test]
    fn the_share_of_a_node_that_dies_goes_back_within_seconds(seed: u64, others in 1_usize..=4) {
        let mut world = World::new(seed, 1 + others);
        let mut rates = vec![100.0; 1 + others];
        rates[0] = 400.0;
        world.run(60, &rates);
        world.nodes[0].alive = false;
        rates[0] = 0.0;
        let died = world.now;
        world.run(120, &rates);
        let (least, most) = world.minutes(died + 6_000);
        prop_assert!(least >= LEAST && most <= MOST, "{least} to {most}");
        // Another comes, and has most of the demand at once.
        world.join(2 + u32::try_from(others).unwrap());
        rates.push(400.0);
        world.run(120, &rates);
        let (least, most) = world.minutes(died + 6_000);
        prop_assert!(least >= LEAST && most <= MOST + LIMIT as usize, "{least} to {most}");
        let (_, most) = world.minutes(died + 130_000);
        prop_assert!(most <= MOST, "{most}");
    }

    #[test]
    fn while_the_store_is_away_every_node_has_its_last_share(
        seed: u64,
        nodes in 1_usize..=5,
        minutes in 1_i64..=8,
    ) {
        let mut world = World::new(seed, nodes);
        world.run_skewed(3, 5.0);
        let rates = world.skewed(5.0);
        world.run(20, &rates);
        let away = world.now;
        world.reachable = false;
        world.run(60 * minutes, &rates);
        let (least, most) = world.minutes(away);
        prop_assert!(least >= LEAST && most <= MOST, "as before: {least} to {most}");
        // Where demand moves meanwhile, what a node does not use it may use later; no more than the limit in all.
        world.run_skewed(6, 5.0);
        world.reachable = true;
        let back = world.now;
        world.run_skewed(9, 5.0);
        let accepted = world.accepted.iter().filter(|at| **at >= away).count();
        let minutes = usize::try_from((world.now - away) / 60_000).unwrap();
        prop_assert!(accepted <= MOST * minutes, "{accepted} in {minutes} minutes");
        // What one node told late of the outage may be owed at first, a minute's worth at most.
        let (least, most) = world.minutes(back + 65_000);
        prop_assert!(least >= LEAST && most <= MOST, "afterwards: {least} to {most}");
    }
}
