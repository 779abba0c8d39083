//! What must hold over all workers together: order, and limits; also while workers come and go.

use std::time::{Duration, Instant};

use harness::{Client, Engine, Receiver, Reply, Turn, World};
use serde_json::json;

/// Events are posted in order, workers are killed in turns, and some attempts fail: each event's first arrival comes after
/// that of all before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifo_holds_while_workers_are_killed() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Servers).await;
    let other = world.start_another("worker").await;
    other.ready().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client
        .subscribe(&json!({"url": receiver.url("/hook"), "ordering": "fifo", "retry_schedule_seconds": [1, 1, 1, 1]}))
        .await;
    receiver.script(
        "/hook",
        (0..200).map(|at| {
            if at % 9 == 4 {
                Reply::Status(500)
            } else {
                Reply::Status(200)
            }
        }),
    );
    let (mut ids, begun, mut kills) = (Vec::new(), Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(25) {
        for _ in 0..5 {
            let id = client.event("order.placed").await;
            ids.push(id);
        }
        if begun.elapsed().as_secs() / 4 > kills {
            let victim = if kills % 2 == 0 { world.worker() } else { &other };
            victim.kill().await;
            victim.start_again().await;
            kills += 1;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(kills >= 4, "only {kills} kills");
    for id in &ids {
        client.event_becomes(id, "delivered").await;
    }
    let mut first: Vec<String> = Vec::new();
    for webhook in receiver.received("/hook") {
        if !first.iter().any(|id| id == webhook.webhook_id()) {
            first.push(webhook.webhook_id().to_owned());
        }
    }
    // One client posted them one after the other to one ingest node, so their ids are in order, and the queue keeps it
    // but for frames that a killed worker gave back.
    assert_eq!(first.len(), ids.len());
    let order = stored_order(&world, &client).await;
    assert_eq!(first, order, "first arrivals are in order of seq");
}

/// The events' ids in order of `seq`, as the database has them.
async fn stored_order(world: &World, client: &Client) -> Vec<String> {
    use sqlx::{Connection, Row};
    let mut database = sqlx::PgConnection::connect(&world.database_url())
        .await
        .expect("the database answers");
    let rows = sqlx::query("SELECT id FROM events ORDER BY seq")
        .fetch_all(&mut database)
        .await;
    let mut ids = Vec::new();
    for row in rows.expect("the table is there") {
        let path = format!("/v1/events/{}", row.get::<uuid::Uuid, _>("id"));
        let event = client.get(&path).await.expect(200);
        ids.push(event["id"].as_str().expect("an id").to_owned());
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_over_two_workers() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Servers).await;
    let other = world.start_another("worker").await;
    other.ready().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    for path in ["/four", "/one"] {
        receiver.always(path, Reply::Late(Duration::from_millis(40)));
    }
    client
        .subscribe(&json!({"url": receiver.url("/four"), "max_in_flight": 4}))
        .await;
    client
        .subscribe(&json!({"url": receiver.url("/one"), "max_in_flight": 1}))
        .await;
    client
        .subscribe(&json!({"url": receiver.url("/rate"), "rate_limit_per_second": 20}))
        .await;
    for _ in 0..120 {
        client.event("order.placed").await;
    }
    for path in ["/four", "/one", "/rate"] {
        receiver.wait_for_within(path, 120, Duration::from_mins(1)).await;
    }
    assert!(
        receiver.most_at_once("/four") <= 4,
        "{}",
        receiver.most_at_once("/four")
    );
    assert_eq!(receiver.most_at_once("/one"), 1);
    let at: Vec<Instant> = receiver
        .received("/rate")
        .iter()
        .map(|webhook| webhook.at)
        .collect();
    let took = at[119] - at[0];
    assert!(
        took >= Duration::from_millis(5_700),
        "119 intervals of 50 ms in {took:?}"
    );
}
