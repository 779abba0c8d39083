//! The order, lengths and overlaps of faults, decided by a seed.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::catalogue::Fault;

/// Faults that are injected at once, for so long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    pub faults: Vec<Fault>,
    pub hold: Duration,
}

/// How long faults last, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Lengths {
    pub least: u64,
    pub most: u64,
}

/// Every one of these faults once, in an order of the seed's, two or three at once where they touch different parts.
pub fn rounds(seed: u64, faults: &[Fault], lengths: Lengths) -> Vec<Round> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut waiting = faults.to_vec();
    waiting.shuffle(&mut rng);
    let mut rounds = Vec::new();
    while !waiting.is_empty() {
        let mut round = vec![waiting.remove(0)];
        for _ in 1..rng.random_range(1..=3) {
            let fits = |fault: &Fault| round.iter().all(|other| fault.may_overlap(*other));
            if let Some(at) = waiting.iter().position(fits) {
                round.push(waiting.remove(at));
            }
        }
        let least = round.iter().map(|fault| fault.about().least_seconds).max();
        let hold = Duration::from_millis(rng.random_range(lengths.least..=lengths.most));
        rounds.push(Round {
            faults: round,
            hold: hold.max(Duration::from_secs(least.unwrap_or_default())),
        });
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Lengths = Lengths { least: 1, most: 9 };

    #[test]
    fn a_seed_is_one_plan() {
        let plan = |seed| rounds(seed, &Fault::all().collect::<Vec<_>>(), SHORT);
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn every_fault_is_in_it_once_and_overlaps_only_what_it_may() {
        for seed in 0..50 {
            let plan = rounds(seed, &Fault::all().collect::<Vec<_>>(), SHORT);
            let all: Vec<Fault> = plan.iter().flat_map(|round| round.faults.clone()).collect();
            assert_eq!(all.len(), Fault::all().count());
            assert!(Fault::all().all(|fault| all.contains(&fault)));
            for round in &plan {
                for (at, fault) in round.faults.iter().enumerate() {
                    for other in &round.faults[at + 1..] {
                        assert!(fault.may_overlap(*other), "{round:?}");
                    }
                }
            }
        }
    }
}
