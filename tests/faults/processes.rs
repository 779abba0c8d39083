//! Processes killed, stopped, stalled, and with another time than the rest.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{Node, Reply, eventually};
use rand::RngExt;
use sqlx::query_scalar;
use uuid::Uuid;

use crate::{
    deployment::{Deployment, SHUTDOWN_SECONDS},
    invariants::uuid_of,
};

const DELIVERED: &str = "triggers_deliveries_total{outcome=\"delivered\"}";
const SUPERSEDED: &str = "triggers_deliveries_total{outcome=\"superseded\"}";
const LEASES_LOST: &str = "triggers_worker_leases_lost_total";
const UNDER_WAY: &str = "triggers_attempts_in_flight";
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

/// Steps the clocks of an ingest, a worker and the api; the others keep the true time. What is open by then may have been sent
/// before, with an outcome that an earlier fault kept from being written, and is sent again once that lease has ended.
pub async fn step_clocks(deployment: &mut Deployment, ahead: bool) {
    const OPEN: &str = "SELECT d.event_id FROM deliveries d
        JOIN subscriptions s ON s.id = d.subscription_id AND s.url LIKE '%/steady' WHERE d.due_at IS NOT NULL";
    let open: Vec<Uuid> = query_scalar(OPEN)
        .fetch_all(&mut deployment.sql().await)
        .await
        .expect("the tables are there");
    deployment.marks.stepped = deployment.either();
    deployment.marks.open = open.into_iter().collect();
    deployment.marks.again = sent_again(deployment);
    for node in stepped(deployment) {
        deployment.told.step_clock(node, ahead, HOUR);
    }
}

pub fn set_clocks_right(deployment: &Deployment) {
    for node in stepped(deployment) {
        deployment.told.step_clock(node, true, Duration::ZERO);
    }
}

/// No stall: events flow at once while clocks are wrong, and the worker whose clock is wrong sends its part of them.
pub async fn no_stall(deployment: &Deployment) {
    let worker = &deployment.workers[deployment.marks.stepped];
    let before = deployment.counted(worker, DELIVERED).await;
    deployment.flows_at_once().await;
    eventually("it sends", Duration::from_secs(10), async || {
        match deployment.counted(worker, DELIVERED).await {
            now if now > before => Ok(()),
            now => Err(format!("{now} deliveries, as before")),
        }
    })
    .await;
}

/// No storm: what has a steady subscriber is sent once, whatever the clocks say.
pub fn no_storm(deployment: &Deployment) {
    let more = sent_again(deployment) - deployment.marks.again;
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

/// How many webhooks have arrived at steady subscribers more than once, but for events that were open.
fn sent_again(deployment: &Deployment) -> u64 {
    let tenants = deployment.tenants.iter();
    let more = tenants.map(|tenant| {
        let received = deployment.receiver.ids(&tenant.path("steady"));
        let counted = received.iter().map(|id| uuid_of(id));
        let counted: Vec<Uuid> = counted.filter(|id| !deployment.marks.open.contains(id)).collect();
        let once: HashSet<&Uuid> = counted.iter().collect();
        counted.len() - once.len()
    });
    more.sum::<usize>() as u64
}

/// Lets a worker hang in the middle of attempts: steady subscribers take their time, so that there are some.
pub async fn stall(deployment: &mut Deployment) {
    deployment.marks.stalled = deployment.either();
    let worker = Arc::clone(&deployment.workers[deployment.marks.stalled]);
    deployment.marks.leases_lost = deployment.counted(&worker, LEASES_LOST).await;
    deployment.marks.superseded = deployment.counted(&worker, SUPERSEDED).await;
    answer_steadily(deployment, &Reply::Late(Duration::from_secs(1)));
    eventually(
        "it has attempts under way",
        Duration::from_secs(20),
        async || match deployment.counted(&worker, UNDER_WAY).await {
            3.. => Ok(()),
            few => Err(format!("{few} are")),
        },
    )
    .await;
    worker.pause();
    answer_steadily(deployment, &Reply::Status(200));
}

fn answer_steadily(deployment: &Deployment, reply: &Reply) {
    for tenant in &deployment.tenants {
        deployment.receiver.always(&tenant.path("steady"), reply.clone());
    }
}

/// The other worker has taken over what the one that hangs had under way, and is done with it. Lanes of subscribers that are not
/// steady may be put off.
pub async fn others_take_over(deployment: &Deployment) {
    const HELD: &str = "SELECT count(*) FROM deliveries d JOIN workers w ON w.id = d.lease_owner
        JOIN subscriptions s ON s.id = d.subscription_id AND s.url LIKE '%/steady'
        WHERE d.due_at IS NOT NULL AND w.lease_until < now() + interval '3 s'";
    let mut database = deployment.sql().await;
    let patience = Duration::from_secs(15);
    eventually("what it held is taken over", patience, async || {
        let held: i64 = query_scalar(HELD)
            .fetch_one(&mut database)
            .await
            .expect("the tables are there");
        match held {
            0 => Ok(()),
            held => Err(format!("{held} are still its own")),
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
}

pub fn wake(deployment: &Deployment) {
    deployment.workers[deployment.marks.stalled].resume();
}

/// The worker that hung knows that it lost its lease, and that of what it had under way nothing applied.
pub async fn lease_was_lost(deployment: &Deployment) {
    let marks = &deployment.marks;
    let worker = &deployment.workers[marks.stalled];
    eventually("the lease is missed", Duration::from_secs(20), async || {
        let lost = deployment.counted(worker, LEASES_LOST).await;
        let superseded = deployment.counted(worker, SUPERSEDED).await;
        if lost > marks.leases_lost && superseded > marks.superseded {
            Ok(())
        } else {
            Err(format!(
                "{lost} leases lost, {superseded} outcomes that did not apply; {} and {} before",
                marks.leases_lost, marks.superseded
            ))
        }
    })
    .await;
}
