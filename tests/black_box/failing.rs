//! Subscribers that fail: retries by the schedule, dead letters, parked deliveries.

use std::time::{Duration, Instant};

use harness::{Client, Engine, Received, Receiver, Reply, World, eventually, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    retries_follow_the_schedule_to_the_dead_letter,
    a_retry_that_succeeds_ends_it,
    a_slow_subscriber_times_out,
    a_subscriber_that_is_away_is_tried_again,
    a_redirect_is_a_failure,
    a_huge_answer_is_cut_off,
    gone_disables_the_subscription,
    gone_says_nothing_of_the_url_that_came_after,
    a_disabled_subscription_parks_and_drains,
    what_was_parked_drains_in_order,
    acknowledging_ends_retries,
    one_dead_subscriber_delays_nobody_else,
);

fn attempts(delivery: &Value) -> Vec<Value> {
    delivery["log"].as_array().expect("a log").clone()
}

async fn retries_follow_the_schedule_to_the_dead_letter(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let body = format!("no {}", "x".repeat(2_000));
    let replies = [
        Reply::Status(500),
        Reply::Full(422, vec![("content-type", "text/plain".into())], body),
        Reply::Status(404),
    ];
    receiver.script("/hook", replies);
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1, 1]}))
        .await;
    let event = json!({
        "type": "order.placed",
        "payload": {"kept": "as it was"},
        "occurred_at": "2026-01-31T12:00:00Z",
    });
    let id = client.accepted(&event).await;

    let first = client.delivery_becomes(&id, &subscription.id, "retrying").await;
    assert!(first["next_attempt_at"].is_string(), "{first}");
    assert_eq!(client.look_up(&id).await["status"], "pending");
    let delivery = client
        .delivery_becomes(&id, &subscription.id, "dead_letter")
        .await;
    assert_eq!(client.look_up(&id).await["status"], "dead_letter");
    assert_eq!(delivery["attempts"], 3);
    assert!(delivery["next_attempt_at"].is_null());
    let log = attempts(&delivery);
    let codes: Vec<_> = log.iter().map(|attempt| &attempt["status_code"]).collect();
    assert_eq!(codes, [500, 422, 404]);
    for (at, attempt) in log.iter().enumerate() {
        assert_eq!(attempt["number"], at + 1);
        assert_eq!(attempt["error"], "status");
        assert!(attempt["started_at"].is_string());
    }
    let kept = log[1]["detail"].as_str().expect("the answer's beginning");
    assert!(
        kept.starts_with("no x") && kept.len() <= 1024,
        "{} bytes are kept",
        kept.len()
    );

    let webhooks = receiver.received("/hook");
    assert_eq!(webhooks.len(), 3);
    for (at, webhook) in webhooks.iter().enumerate() {
        assert_eq!(webhook.webhook_id(), id, "each attempt has the same id");
        assert_eq!(webhook.header("webhook-attempt"), (at + 1).to_string());
        assert_eq!(webhook.body, webhooks[0].body);
        webhook
            .verify(&subscription.secret)
            .expect("each attempt is signed");
    }
    for pair in webhooks.windows(2) {
        let waited = pair[1].at - pair[0].at;
        // One second, 20 % either way; a busy machine may be late, never early.
        assert!(
            (Duration::from_millis(780)..Duration::from_secs(5)).contains(&waited),
            "{waited:?}"
        );
    }
}

async fn a_retry_that_succeeds_ends_it(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::Status(503)]);
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1]}))
        .await;
    let id = client.event("order.placed").await;
    let delivery = client.delivery_becomes(&id, &subscription.id, "delivered").await;
    assert_eq!(delivery["attempts"], 2);
    let codes: Vec<_> = attempts(&delivery)
        .iter()
        .map(|attempt| attempt["status_code"].clone())
        .collect();
    assert_eq!(codes, [503, 200]);
    assert_eq!(client.look_up(&id).await["status"], "delivered");
}

async fn a_slow_subscriber_times_out(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::Hang]);
    let subscription = client
        .subscribe(&json!({
            "url": receiver.url("/hook"),
            "retry_schedule_seconds": [1],
            "timeout_ms": 1000,
        }))
        .await;
    let id = client.event("order.placed").await;
    let delivery = client.delivery_becomes(&id, &subscription.id, "delivered").await;
    let log = attempts(&delivery);
    assert_eq!(log[0]["error"], "timeout");
    assert!(log[0]["status_code"].is_null());
    let took = log[0]["duration_ms"].as_u64().expect("a duration");
    assert!((1000..4000).contains(&took), "{took} ms");
}

async fn a_subscriber_that_is_away_is_tried_again(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    // A port on which nobody listens any more.
    let away = Receiver::start().await.url("/hook");
    let subscription = client
        .subscribe(&json!({"url": away, "retry_schedule_seconds": [1]}))
        .await;
    let id = client.event("order.placed").await;
    let delivery = client
        .delivery_becomes(&id, &subscription.id, "dead_letter")
        .await;
    let log = attempts(&delivery);
    assert_eq!(log.len(), 2);
    assert!(log.iter().all(|attempt| attempt["error"] == "connect"), "{log:?}");
}

async fn a_redirect_is_a_failure(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let location = receiver.url("/elsewhere");
    receiver.script(
        "/hook",
        [Reply::Full(307, vec![("location", location)], String::new())],
    );
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": []}))
        .await;
    let id = client.event("order.placed").await;
    let delivery = client
        .delivery_becomes(&id, &subscription.id, "dead_letter")
        .await;
    let log = attempts(&delivery);
    assert_eq!(
        (&log[0]["error"], &log[0]["status_code"]),
        (&json!("status"), &json!(307))
    );
    assert_eq!(receiver.count("/elsewhere"), 0, "the redirect was followed");
}

async fn a_huge_answer_is_cut_off(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::Huge(512 * 1024 * 1024)]);
    let begun = Instant::now();
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    let id = client.event("order.placed").await;
    let delivery = client.delivery_becomes(&id, &subscription.id, "delivered").await;
    assert_eq!(attempts(&delivery)[0]["status_code"], 200);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "the whole body was read"
    );
}

async fn gone_disables_the_subscription(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    // Its body may never end: the status has been said.
    for (hook, gone) in [("/hook", Reply::Status(410)), ("/drips", Reply::Drips(410))] {
        receiver.script(hook, [gone]);
        gone_disables(&client, &receiver.url(hook)).await;
    }
}

async fn gone_disables(client: &Client, url: &str) {
    let subscription = client
        .subscribe(&json!({"url": url, "retry_schedule_seconds": [1], "timeout_ms": 1_000}))
        .await;
    let path = format!("/v1/subscriptions/{}", subscription.id);
    let id = client.event("order.placed").await;
    let shown = client.becomes_disabled(&subscription.id).await;
    assert!(shown["disabled_reason"].is_string(), "{shown}");
    client.delivery_becomes(&id, &subscription.id, "parked").await;
    let patched = client.patch(&path, &json!({"enabled": true})).await.expect(200);
    assert!(patched["disabled_reason"].is_null(), "{patched}");
    let delivery = client.delivery_becomes(&id, &subscription.id, "delivered").await;
    let attempt = &attempts(&delivery)[0];
    assert_eq!(
        (&attempt["error"], &attempt["status_code"]),
        (&json!("status"), &json!(410))
    );
}

async fn gone_says_nothing_of_the_url_that_came_after(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/old", [Reply::LateStatus(Duration::from_secs(2), 410)]);
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/old"), "retry_schedule_seconds": [1]}))
        .await;
    let path = format!("/v1/subscriptions/{}", subscription.id);
    let id = client.event("order.placed").await;
    receiver.wait_for("/old", 1).await;
    // It is pointed elsewhere while the old URL has yet to answer.
    let new = json!({"url": receiver.url("/new")});
    client.patch(&path, &new).await.expect(200);
    let delivery = client.delivery_becomes(&id, &subscription.id, "delivered").await;
    assert_eq!(attempts(&delivery)[0]["status_code"], 410, "{delivery}");
    assert_eq!(receiver.count("/new"), 1);
    let shown = client.get(&path).await.expect(200);
    assert_eq!(shown["enabled"], true, "{shown}");
    assert!(shown["disabled_reason"].is_null(), "{shown}");
}

async fn a_disabled_subscription_parks_and_drains(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "enabled": false}))
        .await;
    client.subscribe_url(&receiver.url("/witness")).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(client.event("order.placed").await);
    }
    receiver.wait_for("/witness", 10).await;
    for id in &ids {
        client.delivery_becomes(id, &subscription.id, "parked").await;
        assert_eq!(client.look_up(id).await["status"], "pending");
    }
    assert_eq!(receiver.count("/hook"), 0);
    let path = format!("/v1/subscriptions/{}", subscription.id);
    client.patch(&path, &json!({"enabled": true})).await.expect(200);
    receiver.wait_for("/hook", 10).await;
    for id in &ids {
        client.event_becomes(id, "delivered").await;
    }
    assert_eq!(receiver.count("/hook"), 10);

    // Disabled again, from the next event on nothing is sent.
    client.patch(&path, &json!({"enabled": false})).await.expect(200);
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "parked").await;
    assert_eq!(receiver.count("/hook"), 10);
}

/// Posts events in batches, each once the one before it is stored.
async fn post_batches(client: &Client, batches: usize) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for _ in 0..batches {
        let batch = vec![json!({"type": "order.placed", "payload": {}}); 100];
        let answer = client
            .post("/v1/events/batch", &Value::from(batch))
            .await
            .expect(202);
        let results = answer["results"].as_array().expect("results");
        ids.extend(
            results
                .iter()
                .map(|one| one["id"].as_str().expect("an id").to_owned()),
        );
        client.look_up(&ids[ids.len() - 1]).await;
    }
    ids
}

async fn what_was_parked_drains_in_order(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    // Every other attempt fails, to be made again when all that is posted here has long been due.
    let replies = (0..200).map(|at| Reply::Status(if at % 2 == 0 { 500 } else { 200 }));
    receiver.script("/hook", replies);
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [3, 3]}))
        .await;
    let path = format!("/v1/subscriptions/{}", subscription.id);
    let mut ids = post_batches(&client, 2).await;
    receiver.wait_for("/hook", 200).await;
    client.patch(&path, &json!({"enabled": false})).await.expect(200);
    for id in &ids {
        // Some parked, the others delivered: what was sent is written down.
        eventually("nothing is under way", Duration::from_secs(10), async || {
            let event = client.look_up(id).await;
            match event["deliveries"][0]["status"].as_str() {
                Some("parked" | "delivered") => Ok(()),
                _ => Err(event.to_string()),
            }
        })
        .await;
    }
    let tried = receiver.received("/hook");
    ids.extend(post_batches(&client, 2).await);
    let last = tried.iter().map(|webhook| webhook.at).max().expect("an attempt");
    // Three seconds and a fifth, and the retries are due.
    tokio::time::sleep_until((last + Duration::from_secs(4)).into()).await;
    let mut parked = Vec::new();
    for id in &ids {
        let event = client.look_up(id).await;
        if event["deliveries"][0]["status"] == "parked" {
            parked.push(id.clone());
        }
    }
    assert_eq!(parked.len(), 300, "{} of 400 are parked", parked.len());

    client
        .patch(&path, &json!({"enabled": true, "max_in_flight": 1}))
        .await
        .expect(200);
    let all = receiver
        .wait_for_within("/hook", tried.len() + parked.len(), Duration::from_mins(1))
        .await;
    let arrived: Vec<&str> = all[tried.len()..].iter().map(Received::webhook_id).collect();
    assert_eq!(arrived, parked, "in the order in which they came in");
}

async fn acknowledging_ends_retries(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(500));
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1, 1, 1, 1, 1]}))
        .await;
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "retrying").await;
    let acknowledged = client
        .post(&format!("/v1/inbox/{id}/ack"), &json!({}))
        .await
        .expect(200);
    assert_eq!(acknowledged["status"], "acknowledged", "{acknowledged}");
    let sent = receiver.count("/hook");
    // Another event is sent and tried twice: time enough for the first to be tried again, if it were.
    let other = client.event("order.placed").await;
    eventually("another event is retried", Duration::from_secs(20), async || {
        let tries = receiver.received("/hook");
        let tries = tries
            .iter()
            .filter(|webhook| webhook.webhook_id() == other)
            .count();
        if tries >= 3 {
            Ok(())
        } else {
            Err(format!("{tries} tries"))
        }
    })
    .await;
    let webhooks = receiver.received("/hook");
    let tries = webhooks
        .iter()
        .filter(|webhook| webhook.webhook_id() == id)
        .count();
    // One may have been on its way while the acknowledgement was answered.
    assert!(
        tries <= sent + 1,
        "{tries} tries, {sent} before the acknowledgement"
    );
    let event = client.look_up(&id).await;
    assert_eq!(event["status"], "acknowledged");
    assert_eq!(event["deliveries"][0]["status"], "acknowledged");
}

async fn one_dead_subscriber_delays_nobody_else(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/dead", Reply::Hang);
    client
        .subscribe(&json!({"url": receiver.url("/dead"), "timeout_ms": 30_000, "max_in_flight": 1}))
        .await;
    client.subscribe_url(&receiver.url("/alive")).await;
    let begun = Instant::now();
    for _ in 0..50 {
        client.event("order.placed").await;
    }
    receiver.wait_for("/alive", 50).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(receiver.count("/dead"), 1, "one at a time, as asked");
}
