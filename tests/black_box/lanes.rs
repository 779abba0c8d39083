//! Lanes: what one subscriber does is felt by its own lane alone, and a lane heeds what its subscriber says.

use std::time::{Duration, Instant};

use harness::{Engine, Receiver, Reply, World, eventually, on_both_engines};
use serde_json::json;

on_both_engines!(
    retry_after_puts_the_lane_off_not_just_the_delivery,
    retry_after_may_be_a_date,
    a_subscriber_that_keeps_failing_is_only_probed,
    however_many_hang_others_are_sent_to,
);

async fn retry_after_puts_the_lane_off_not_just_the_delivery(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let slow_down = Reply::Full(429, vec![("retry-after", "3".into())], String::new());
    receiver.script("/hook", [slow_down]);
    client
        .subscribe(&json!({
            "url": receiver.url("/hook"),
            "retry_schedule_seconds": [1],
            "max_in_flight": 1,
        }))
        .await;
    for _ in 0..6 {
        client.event("order.placed").await;
    }
    let webhooks = receiver
        .wait_for_within("/hook", 7, Duration::from_secs(30))
        .await;
    for webhook in &webhooks[1..] {
        let waited = webhook.at - webhooks[0].at;
        assert!(waited >= Duration::from_millis(2_900), "{waited:?}");
    }
    let again = webhooks
        .iter()
        .filter(|webhook| webhook.webhook_id() == webhooks[0].webhook_id());
    assert_eq!(again.count(), 2, "the first is tried again, and was not dropped");
}

async fn retry_after_may_be_a_date(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    // By the subscriber's own clock, which is years behind.
    let headers = vec![
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT".into()),
        ("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT".into()),
    ];
    receiver.script("/hook", [Reply::Full(503, headers, String::new())]);
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1]}))
        .await;
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
    let webhooks = receiver.received("/hook");
    let waited = webhooks[1].at - webhooks[0].at;
    assert!(waited >= Duration::from_millis(2_900), "{waited:?}");
}

async fn a_subscriber_that_keeps_failing_is_only_probed(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(500));
    client
        .subscribe(&json!({"url": receiver.url("/hook"), "max_in_flight": 4, "retry_schedule_seconds": [1, 1, 1, 1, 1, 1]}))
        .await;
    let mut events = Vec::new();
    for _ in 0..60 {
        events.push(client.event("order.placed").await);
    }
    let open = |wanted: &'static str| {
        let world = &world;
        eventually(
            "the circuit is as expected",
            Duration::from_secs(30),
            async move || {
                let metrics = world.get(world.worker(), "/metrics").await.text;
                let line = format!("triggers_open_circuits {wanted}");
                if metrics.lines().any(|shown| shown == line) {
                    Ok(())
                } else {
                    Err(format!("no {line:?}"))
                }
            },
        )
    };
    open("1").await;
    let (count, begun) = (receiver.count("/hook"), Instant::now());
    assert!(count < 20, "{count} attempts before it opened");
    receiver
        .wait_for_within("/hook", count + 2, Duration::from_secs(30))
        .await;
    // Probes come after 1, 2, 4 seconds: how many fit depends on how busy the machine is, but never more.
    let most = count + 3 + usize::try_from(begun.elapsed().as_secs()).unwrap_or(usize::MAX);
    assert!(
        receiver.count("/hook") <= most,
        "more than probes: {}",
        receiver.count("/hook")
    );
    receiver.always("/hook", Reply::Status(200));
    for event in &events {
        client.event_becomes(event, "delivered").await;
    }
    open("0").await;
}

async fn however_many_hang_others_are_sent_to(engine: Engine) {
    let world = World::with(engine).set("TRIGGERS_MAX_ATTEMPTS", 8).start().await;
    let receiver = Receiver::start().await;
    let (crowd, client) = (world.organization().await, world.organization().await);
    receiver.always("/hangs", Reply::Hang);
    for _ in 0..20 {
        crowd
            .subscribe(&json!({"url": receiver.url("/hangs"), "timeout_ms": 30_000}))
            .await;
    }
    client.subscribe_url(&receiver.url("/hook")).await;
    crowd.event("order.placed").await;
    // Those that hang take the places of the quick for a second each, and the places of the slow for good.
    receiver.wait_for("/hangs", 8).await;
    let begun = Instant::now();
    for _ in 0..40 {
        client.event("order.placed").await;
    }
    receiver.wait_for("/hook", 40).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}
