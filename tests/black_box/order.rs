//! Subscriptions that want their events in order, at a rate, or few at a time.

use std::time::Duration;

use harness::{Client, Engine, Received, Receiver, Reply, World, on_both_engines};
use serde_json::json;

on_both_engines!(
    fifo_is_one_at_a_time_in_order,
    a_failing_event_holds_the_rest_and_a_dead_letter_lets_them_go,
    a_fifo_that_fails_delays_nobody_else,
    a_subscription_can_become_fifo,
    an_order_can_end_and_begin_while_it_is_busy,
    a_rate_is_kept,
);

/// Posts events, each once the one before it is stored: that is their order.
async fn post_in_order(client: &Client, count: usize) -> Vec<String> {
    let mut ids = Vec::with_capacity(count);
    for _ in 0..count {
        let id = client.event("order.placed").await;
        client.look_up(&id).await;
        ids.push(id);
    }
    ids
}

fn first_arrivals(webhooks: &[Received]) -> Vec<String> {
    let mut first: Vec<String> = Vec::new();
    for webhook in webhooks {
        if !first.iter().any(|id| id == webhook.webhook_id()) {
            first.push(webhook.webhook_id().to_owned());
        }
    }
    first
}

async fn fifo_is_one_at_a_time_in_order(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Late(Duration::from_millis(30)));
    client
        .subscribe(&json!({"url": receiver.url("/hook"), "ordering": "fifo", "max_in_flight": 16}))
        .await;
    let ids = post_in_order(&client, 40).await;
    let webhooks = receiver
        .wait_for_within("/hook", 40, Duration::from_secs(30))
        .await;
    assert_eq!(first_arrivals(&webhooks), ids);
    assert_eq!(receiver.most_at_once("/hook"), 1);
}

async fn a_failing_event_holds_the_rest_and_a_dead_letter_lets_them_go(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script(
        "/hook",
        [Reply::Status(500), Reply::Status(500), Reply::Status(500)],
    );
    let subscription = client
        .subscribe(
            &json!({"url": receiver.url("/hook"), "ordering": "fifo", "retry_schedule_seconds": [1, 1]}),
        )
        .await;
    let ids = post_in_order(&client, 6).await;
    let webhooks = receiver
        .wait_for_within("/hook", 8, Duration::from_secs(30))
        .await;
    let order: Vec<&str> = webhooks.iter().map(Received::webhook_id).collect();
    let expected: Vec<&str> = [&ids[0], &ids[0]]
        .into_iter()
        .chain(&ids)
        .map(String::as_str)
        .collect();
    assert_eq!(order, expected, "three attempts at the first, then the others");
    client
        .delivery_becomes(&ids[0], &subscription.id, "dead_letter")
        .await;
    client
        .delivery_becomes(&ids[5], &subscription.id, "delivered")
        .await;
}

async fn a_fifo_that_fails_delays_nobody_else(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/stuck", Reply::Status(500));
    client
        .subscribe(&json!({"url": receiver.url("/stuck"), "ordering": "fifo"}))
        .await;
    client.subscribe_url(&receiver.url("/hook")).await;
    for _ in 0..30 {
        client.event("order.placed").await;
    }
    receiver.wait_for("/hook", 30).await;
    let stuck = receiver.wait_for("/stuck", 1).await;
    assert_eq!(
        first_arrivals(&stuck).len(),
        1,
        "and nothing has passed the first"
    );
}

async fn a_subscription_can_become_fifo(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "enabled": false}))
        .await;
    let mut ids = post_in_order(&client, 10).await;
    let path = format!("/v1/subscriptions/{}", subscription.id);
    let changed = client
        .patch(&path, &json!({"ordering": "fifo", "enabled": true}))
        .await;
    assert_eq!(changed.expect(200)["ordering"], "fifo");
    ids.extend(post_in_order(&client, 10).await);
    let webhooks = receiver
        .wait_for_within("/hook", 20, Duration::from_secs(30))
        .await;
    assert_eq!(first_arrivals(&webhooks), ids, "what was parked comes first");
}

async fn an_order_can_end_and_begin_while_it_is_busy(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Late(Duration::from_millis(700)));
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "ordering": "fifo", "max_in_flight": 2}))
        .await;
    let path = format!("/v1/subscriptions/{}", subscription.id);
    let ids = post_in_order(&client, 6).await;
    let mut seen = 0;
    for ordering in ["none", "fifo", "none"] {
        // In the middle of an attempt.
        receiver
            .wait_for_within("/hook", seen + 1, Duration::from_secs(30))
            .await;
        client
            .patch(&path, &json!({"ordering": ordering}))
            .await
            .expect(200);
        seen = receiver.received("/hook").len();
    }
    let last = client.event("order.placed").await;
    let webhooks = receiver
        .wait_for_within("/hook", 7, Duration::from_secs(30))
        .await;
    for id in ids.iter().chain([&last]) {
        assert_eq!(
            webhooks
                .iter()
                .filter(|webhook| webhook.webhook_id() == id)
                .count(),
            1,
            "each arrives, and once: {id}"
        );
        client.delivery_becomes(id, &subscription.id, "delivered").await;
    }
}

async fn a_rate_is_kept(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client
        .subscribe(&json!({"url": receiver.url("/hook"), "rate_limit_per_second": 5}))
        .await;
    client.subscribe_url(&receiver.url("/free")).await;
    for _ in 0..15 {
        client.event("order.placed").await;
    }
    receiver.wait_for("/free", 15).await;
    let webhooks = receiver
        .wait_for_within("/hook", 15, Duration::from_secs(30))
        .await;
    // Fourteen intervals of 200 ms; a busy machine may be late, and then two come closer together, but never faster in all.
    let took = webhooks[14].at - webhooks[0].at;
    assert!(took >= Duration::from_millis(2_600), "{took:?}");
}
