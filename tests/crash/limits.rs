//! Limits that must hold over all workers together.

use std::time::{Duration, Instant};

use harness::{Engine, Receiver, Reply, Turn, World};
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
