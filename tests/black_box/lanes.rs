//! Lanes: what one subscriber does is felt by its own lane alone, and a lane heeds what its subscriber says.

use std::time::{Duration, Instant};

use harness::{Engine, Receiver, Reply, World, eventually, on_both_engines};
use serde_json::json;

on_both_engines!(
    retry_after_puts_the_lane_off_not_just_the_delivery,
    retry_after_outlives_the_worker,
    retry_after_may_be_a_date,
    retry_after_that_asks_for_no_time_is_a_failure_like_any,
    a_subscriber_that_keeps_failing_is_only_probed,
    however_many_hang_others_are_sent_to,
);

/// Waits until the worker has so many.
async fn open_circuits(world: &World, wanted: usize) {
    let line = format!("triggers_open_circuits {wanted}");
    eventually(&line, Duration::from_secs(30), async || {
        let metrics = world.get(world.worker(), "/metrics").await.text;
        let mut shown = metrics
            .lines()
            .filter(|shown| shown.starts_with("triggers_open_circuits "));
        match shown.next() {
            Some(shown) if shown == line => Ok(()),
            shown => Err(format!("{shown:?}")),
        }
    })
    .await;
}

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

async fn retry_after_outlives_the_worker(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let wait = Duration::from_secs(8);
    let slow_down = Reply::Full(
        503,
        vec![("retry-after", wait.as_secs().to_string())],
        String::new(),
    );
    receiver.script("/hook", [slow_down]);
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "retrying").await;
    assert!(world.worker().terminate().await.success());
    world.worker().start_again().await;
    world.worker().ready().await;
    let begun = Instant::now();
    let other = client.event("order.placed").await;
    client
        .delivery_becomes(&other, &subscription.id, "delivered")
        .await;
    let webhooks = receiver.received("/hook");
    assert!(
        begun < webhooks[0].at + wait,
        "the worker took too long to start for the test to say anything"
    );
    let waited = webhooks[1].at - webhooks[0].at;
    assert!(waited + Duration::from_millis(100) >= wait, "{waited:?}");
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

async fn retry_after_that_asks_for_no_time_is_a_failure_like_any(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let none = Reply::Full(429, vec![("retry-after", "0".into())], String::new());
    let past = vec![
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT".into()),
        ("retry-after", "Sun, 06 Nov 1994 08:49:36 GMT".into()),
    ];
    receiver.always("/none", none);
    receiver.always("/past", Reply::Full(503, past, String::new()));
    for path in ["/none", "/past"] {
        client
            .subscribe(
                &json!({"url": receiver.url(path), "max_in_flight": 4, "retry_schedule_seconds": [600]}),
            )
            .await;
    }
    for _ in 0..40 {
        client.event("order.placed").await;
    }
    open_circuits(&world, 2).await;
    for path in ["/none", "/past"] {
        let count = receiver.count(path);
        assert!(
            (10..20).contains(&count),
            "{count} attempts at {path} until it opened"
        );
    }
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
    open_circuits(&world, 1).await;
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
    open_circuits(&world, 0).await;
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
