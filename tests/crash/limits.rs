//! Limits that must hold over all workers together.

use std::time::{Duration, Instant};

use harness::{Engine, Node, Receiver, Reply, Turn, World, eventually};
use serde_json::json;

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

/// Whether a worker has made an attempt.
async fn has_sent(world: &World, worker: &Node) -> bool {
    let metrics = world.get(worker, "/metrics").await.text;
    let mut counts = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("triggers_attempt_seconds_count "));
    counts.any(|count| count != "0")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_worker_is_told_both_keep_to() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Servers).await;
    let other = world.start_another("worker").await;
    other.ready().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    // The one that joined leaves the sending to the first for some seconds.
    eventually("both send", Duration::from_secs(30), async || {
        let id = client.event("order.placed").await;
        client.event_becomes(&id, "delivered").await;
        let sent = [
            has_sent(&world, world.worker()).await,
            has_sent(&world, &other).await,
        ];
        if sent == [true, true] {
            Ok(())
        } else {
            Err(format!("{sent:?}"))
        }
    })
    .await;
    let slow_down = Reply::Full(503, vec![("retry-after", "5".into())], String::new());
    receiver.script("/hook", [slow_down]);
    let told = client.event("order.placed").await;
    client.delivery_becomes(&told, &subscription.id, "retrying").await;
    let webhooks = receiver.received("/hook");
    let asked = webhooks
        .iter()
        .find(|webhook| webhook.webhook_id() == told)
        .expect("it arrived")
        .at;
    let mut ids = Vec::new();
    while asked.elapsed() < Duration::from_secs(3) {
        ids.push(client.event("order.placed").await);
    }
    for id in &ids {
        client.delivery_becomes(id, &subscription.id, "delivered").await;
    }
    // What was under way comes, and what is sent until the other hears of it.
    let at = receiver.received("/hook").into_iter().map(|webhook| webhook.at);
    let waits: Vec<Duration> = at.filter(|at| *at > asked).map(|at| at - asked).collect();
    let early = waits.iter().filter(|wait| **wait < Duration::from_millis(4_900));
    let none_of_them = early.clone().filter(|wait| **wait > Duration::from_secs(1));
    assert_eq!(none_of_them.count(), 0, "{waits:?}");
    assert!(early.count() < ids.len() / 4, "{waits:?}");
}
