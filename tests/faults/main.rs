//! The fault suite: every fault of the table in `docs/testing.md`, injected into the real binaries with RabbitMQ and
//! PostgreSQL of the suite's own, while events flow; a ledger knows what was acknowledged and what arrived.
//!
//! One test, which is told what to do by the environment: `scripts/faults.sh` does that. Told nothing, it injects every
//! fault once, briefly, by a fixed seed. A seed decides the order, lengths and overlaps of the faults, and what each of them
//! picks; what the machine does in between is not repeated by it.

mod catalogue;
mod content;
mod cpu;
mod crowd;
mod database;
mod deployment;
mod disabled;
mod inject;
mod invariants;
mod memory;
mod network;
mod plan;
mod processes;
mod pulling;
mod report;
mod resources;
mod run;
mod showing;
mod subscriber;

use std::{str::FromStr, time::Duration};

use harness::Turn;

use crate::{catalogue::Fault, run::Wanted};

/// What continuous integration runs: a plan that is short, and in which no subscriber is away for so long that its probes are far
/// apart, and has to be waited for.
const SEED: u64 = 21_486;

/// A value that is told by the environment.
fn told<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let value = text.parse();
    Some(value.unwrap_or_else(|_| panic!("{name} is not what it must be: {text:?}")))
}

fn wanted() -> Wanted {
    let only: Option<String> = told("FAULTS_ONLY");
    let faults = match only {
        None => Fault::all().collect(),
        Some(names) => names
            .split(',')
            .map(|name| {
                Fault::of_name(name).unwrap_or_else(|| {
                    let all: Vec<_> = Fault::all().map(Fault::name).collect();
                    panic!("there is no fault {name:?}, but {}", all.join(", "))
                })
            })
            .collect(),
    };
    Wanted {
        seed: told("FAULTS_SEED").unwrap_or(SEED),
        at_least: told("FAULTS_SECONDS").map(Duration::from_secs),
        faults,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_what_was_acknowledged_is_delivered() {
    let _turn = Turn::wait().await;
    Box::pin(run::run(wanted())).await;
}
