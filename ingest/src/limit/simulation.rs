//! Nodes that share one bucket through a store, on a clock of the test's own: many runs in which demand is skewed and moves,
//! nodes come and go, and the store answers late or not at all.

use std::collections::HashMap;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
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
    fn share(&mut self, told: Told, now: i64) -> LimitStanding {
        let (report, at) = (told.report, told.at.min(now));
        let counts = told.away_since.map_or(now, |since| since.min(now))
            - i64::try_from(LIMIT_WORD_COUNTS.as_nanos()).unwrap();
        let others = self
            .shares
            .values()
            .filter(|(other, at)| other.counter != report.counter && *at > counts);
        let (mut wanted, mut unreported, mut oldest) = (0.0, 0.0, None);
        for (other, at) in others {
            wanted += other.wanted;
            unreported += other.took * (now - at) as f64;
            if other.took > 0.0 {
                oldest = Some(oldest.map_or(*at, |oldest: i64| oldest.min(*at)));
            }
        }
        let former = self.shares.get(&report.counter).copied();
        let mut debit = 0;
        if former.is_none_or(|(_, told_at)| told_at <= at) {
            debit = report.spent - former.map_or(0, |(former, _)| former.spent);
            self.shares.insert(report.counter, (report, at));
        }
        let since = oldest.map_or(at - report.within, |oldest| oldest.min(at - report.within));
        self.full_at = (self.full_at.max(since) + debit).min(now + 2 * WINDOW);
        LimitStanding {
            organization: report.organization,
            used: oldest.map_or(self.full_at, |oldest| oldest.max(self.full_at)) - now,
            others_wanted: wanted,
            others_unreported: unreported as i64,
            others_silent: oldest.is_some_and(|oldest| now - oldest >= LIMIT_WORD_COUNTS.as_nanos() as i64),
        }
    }
}

/// What a node tells the store.
#[derive(Clone, Copy)]
struct Told {
    report: LimitReport,
    at: i64,
    away_since: Option<i64>,
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
    /// When the store last answered; since when it was away, and when it came back.
    answered: i64,
    away_since: Option<i64>,
    back: Option<i64>,
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
    /// What it was told while it hung, and does when it goes on.
    given_up: Vec<Told>,
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
            given_up: Vec::new(),
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
            answered: now,
            away_since: None,
            back: None,
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
                if let Some(standing) = standing {
                    node.bucket.heard(&standing, alive, now);
                    node.answered = now;
                    if node.away_since.is_some() && now - *node.back.get_or_insert(now) > 5 * SECOND {
                        (node.away_since, node.back) = (None, None);
                    }
                } else {
                    node.soonest = now + SECOND;
                    node.away_since.get_or_insert(node.answered);
                    node.back = None;
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
                let told = Told {
                    report: node.bucket.report(self.organization, now),
                    at: now,
                    away_since: node.away_since,
                };
                if !self.reachable {
                    self.given_up.push(told);
                }
                let standing = self.reachable.then(|| self.store.share(told, now));
                node.answer = Some((now + self.rng.random_range(1..30) * MILLI, standing));
            }
        }
    }

    /// The store answers again; whether it does first what it was told before.
    fn come_back(&mut self, hung: bool) {
        self.reachable = true;
        let mut given_up = std::mem::take(&mut self.given_up);
        if hung {
            given_up.shuffle(&mut self.rng);
            for told in given_up {
                self.store.share(told, self.now * MILLI);
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

    /// The least and the most of any so many seconds from then until now, in hundredths of the limit.
    fn windows(&self, from: i64, seconds: i64) -> (usize, usize) {
        let length = seconds * 1_000;
        let until = |ms| self.accepted.partition_point(|at| *at < ms);
        let full = usize::try_from(seconds).unwrap() * LIMIT as usize / 60;
        let windows: Vec<usize> = (from..=self.now - length)
            .step_by(500)
            .map(|from| (until(from + length) - until(from)) * 100 / full)
            .collect();
        (*windows.iter().min().unwrap(), *windows.iter().max().unwrap())
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
        hung: bool,
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
        // It comes back. What was taken too much is owed then, and what was not used is there.
        world.come_back(hung);
        world.run(60, &rates);
        let accepted = world.accepted.iter().filter(|at| **at >= away).count();
        let minutes = usize::try_from(minutes + 1).unwrap();
        prop_assert!(
            (LEAST * minutes..=MOST * minutes).contains(&accepted),
            "{accepted} in {minutes} minutes, the one afterwards included"
        );
        world.reachable = false;
        let away = world.now;
        // Where demand moves meanwhile, what a node does not use it may use later; no more than the limit in all.
        world.run_skewed(6, 5.0);
        world.come_back(hung);
        let back = world.now;
        world.run_skewed(9, 5.0);
        let accepted = world.accepted.iter().filter(|at| **at >= away).count();
        let minutes = usize::try_from((world.now - away) / 60_000).unwrap();
        prop_assert!(accepted <= MOST * minutes, "{accepted} in {minutes} minutes");
        // What one node told late of the outage may be owed at first, a minute's worth at most.
        let (least, most) = world.minutes(back + 65_000);
        prop_assert!(least >= LEAST && most <= MOST, "afterwards: {least} to {most}");
    }

    #[test]
    fn half_a_minute_without_the_store_is_not_seen_afterwards(seed: u64, hung: bool) {
        let mut world = World::new(seed, 2);
        let rates = [144.0, 36.0];
        world.run(30, &rates);
        world.reachable = false;
        let away = world.now;
        world.run(30, &rates);
        world.come_back(hung);
        world.run(40, &rates);
        let (least, most) = world.windows(away, 10);
        prop_assert!(least >= 80 && most <= 120, "ten seconds: {least} to {most} of a hundred");
    }
}
