//! Processes killed, stopped, stalled, and with another time than the rest.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{Node, eventually};
use rand::RngExt;

use crate::deployment::{Deployment, SHUTDOWN_SECONDS};

const HOUR: Duration = Duration::from_hours(1);

/// Kills one of these after the other, and starts each again, until `hold` is over; each lives for a different while.
pub async fn kill_again_and_again(deployment: &mut Deployment, nodes: &[Arc<Node>], hold: Duration) {
    let begun = Instant::now();
    for node in nodes.iter().cycle() {
        node.kill().await;
        node.start_again().await;
        if begun.elapsed() > hold {
            return;
        }
        let life = Duration::from_millis(deployment.rng.random_range(100..700));
        tokio::time::sleep(life).await;
    }
}

/// Stops every process in turn, within its deadline, and starts it again behind a balancer.
pub async fn restart_in_turn(deployment: &Deployment) {
    for (name, node) in deployment.nodes() {
        let begun = Instant::now();
        let status = node.terminate().await;
        assert!(status.success(), "{name} ended with {status}");
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(SHUTDOWN_SECONDS),
            "{name} took {took:?} to stop"
        );
        node.start_again_behind_balancer().await;
    }
}

/// Steps the clocks of an ingest, a worker and the api; the others keep the true time.
pub fn step_clocks(deployment: &mut Deployment, ahead: bool) {
    deployment.marks.stepped = deployment.either();
    deployment.marks.duplicates = duplicates(deployment);
    for node in stepped(deployment) {
        deployment.told.step_clock(node, ahead, HOUR);
    }
}

pub fn set_clocks_right(deployment: &Deployment) {
    for node in stepped(deployment) {
        deployment.told.step_clock(node, true, Duration::ZERO);
    }
}

/// No storm: what has a steady subscriber is sent once, whatever the clocks say.
pub fn no_storm(deployment: &Deployment) {
    let more = duplicates(deployment) - deployment.marks.duplicates;
    assert!(
        more == 0,
        "{more} deliveries were made again because clocks were stepped"
    );
}

fn stepped(deployment: &Deployment) -> [&Arc<Node>; 3] {
    let victim = deployment.marks.stepped;
    [
        &deployment.ingests[victim],
        &deployment.workers[victim],
        &deployment.api,
    ]
}

/// How many webhooks have arrived at steady subscribers more than once.
pub fn duplicates(deployment: &Deployment) -> u64 {
    let tenants = deployment.tenants.iter();
    let more = tenants.map(|tenant| {
        let received = deployment.receiver.ids(&tenant.path("steady"));
        let all = received.len();
        let once: std::collections::HashSet<_> = received.into_iter().collect();
        all - once.len()
    });
    more.sum::<usize>() as u64
}

/// Lets a worker hang.
pub fn stall(deployment: &mut Deployment) {
    deployment.marks.stalled = deployment.either();
    deployment.workers[deployment.marks.stalled].pause();
}

pub fn wake(deployment: &Deployment) {
    deployment.workers[deployment.marks.stalled].resume();
}

/// The worker that hung knows that it lost its lease.
pub async fn lease_was_lost(deployment: &Deployment) {
    let worker = &deployment.workers[deployment.marks.stalled];
    eventually(
        "the worker misses its lease",
        Duration::from_secs(20),
        async || {
            let metrics = deployment.world.get(worker, "/metrics").await.text;
            let lost = metrics
                .lines()
                .find_map(|line| line.strip_prefix("triggers_worker_leases_lost_total "));
            match lost {
                Some(count) if count != "0" => Ok(()),
                other => Err(format!("{other:?} leases lost")),
            }
        },
    )
    .await;
}
