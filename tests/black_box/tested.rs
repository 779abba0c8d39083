//! Test pushes: one event to one subscription, sent at once, answered with what came back, and of no consequence.

use std::time::{Duration, Instant};

use harness::{Client, Engine, Receiver, Reply, World, on_both_engines};
use serde_json::json;

on_both_engines!(
    a_test_is_answered_with_what_came_back,
    a_test_of_what_was_made_or_changed_a_moment_ago,
    a_failing_test_is_over,
    a_test_passes_a_backlog,
    a_test_in_order_takes_its_turn,
    tests_are_bounded,
    what_cannot_be_tested,
);

fn test_path(subscription: &str) -> String {
    format!("/v1/subscriptions/{subscription}/test")
}

async fn test(client: &Client, subscription: &str) -> harness::Answer {
    let request = client.request(http::Method::POST, &test_path(subscription));
    client.send(request).await
}

async fn a_test_is_answered_with_what_came_back(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    // Whatever it asks for, and whoever else asks for what.
    let subscription = client
        .subscribe(
            &json!({"url": receiver.url("/hook"), "event_types": ["order.*"], "headers": {"x-team": "a"}}),
        )
        .await;
    client
        .subscribe(&json!({"url": receiver.url("/other"), "event_types": ["*", "triggers.**"]}))
        .await;
    receiver.script("/hook", [Reply::Status(204)]);
    let tested = test(&client, &subscription.id).await.expect(200);
    assert_eq!(
        (&tested["status"], &tested["subscription"]),
        (&json!("delivered"), &json!(subscription.id))
    );
    let attempt = &tested["attempt"];
    assert_eq!(
        (&attempt["status_code"], &attempt["number"]),
        (&json!(204), &json!(1))
    );
    assert!(
        attempt["error"].is_null() && attempt["duration_ms"].is_u64(),
        "{tested}"
    );
    let webhook = receiver.wait_for("/hook", 1).await.remove(0);
    webhook.verify(&subscription.secret).expect("signed as any is");
    assert_eq!(webhook.webhook_id(), tested["event"].as_str().expect("an id"));
    assert_eq!(webhook.header("x-team"), "a");
    let envelope = webhook.envelope();
    assert_eq!(envelope.r#type, "triggers.test");
    assert!(envelope.data.get().contains(&subscription.id));
    let event = client.look_up(webhook.webhook_id()).await;
    assert_eq!(
        (&event["type"], &event["status"]),
        (&json!("triggers.test"), &json!("delivered"))
    );
    assert_eq!(event["deliveries"].as_array().map(Vec::len), Some(1), "{event}");
    let real = client.event("order.placed").await;
    client.event_becomes(&real, "delivered").await;
    assert_eq!(receiver.count("/other"), 1, "the test went to one alone");
}

async fn a_test_of_what_was_made_or_changed_a_moment_ago(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    // From here on the worker remembers the organization's subscriptions.
    client.subscribe_url(&receiver.url("/known")).await;
    client.event("order.placed").await;
    receiver.wait_for("/known", 1).await;
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/new"), "event_types": ["invoice.*"], "enabled": false}))
        .await;
    let path = format!("/v1/subscriptions/{}", subscription.id);
    for (path, patch, arrives) in [
        (format!("{path}/enable"), json!({}), "/new"),
        (path.clone(), json!({"url": receiver.url("/moved")}), "/moved"),
        (format!("{path}/disable"), json!({}), ""),
        (format!("{path}/enable"), json!({}), "/moved"),
    ] {
        let changed = match patch.get("url") {
            Some(_) => client.patch(&path, &patch).await,
            None => client.post(&path, &patch).await,
        };
        changed.expect(200);
        if arrives.is_empty() {
            test(&client, &subscription.id).await.problem(409, "conflict");
            continue;
        }
        let tested = test(&client, &subscription.id).await.expect(200);
        assert_eq!(tested["status"], "delivered", "{tested}");
        assert!(
            receiver.has(arrives, tested["event"].as_str().expect("an id")),
            "{tested}"
        );
    }
    assert_eq!((receiver.count("/new"), receiver.count("/moved")), (1, 2));
}

async fn a_failing_test_is_over(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client
        .subscribe(&json!({"url": receiver.url("/told"), "event_types": ["triggers.**"]}))
        .await;
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1], "timeout_ms": 1000}))
        .await;
    receiver.script(
        "/hook",
        [
            Reply::Full(500, Vec::new(), "out of order".into()),
            // Else it would disable the subscription.
            Reply::Status(410),
            Reply::Hang,
        ],
    );
    let mut events = Vec::new();
    for (error, status_code, detail) in [
        ("status", json!(500), "out of order"),
        ("status", json!(410), ""),
        ("timeout", json!(null), "no answer's head within 1000 ms"),
    ] {
        let tested = test(&client, &subscription.id).await.expect(200);
        assert_eq!(tested["status"], "dead_letter", "{tested}");
        let attempt = &tested["attempt"];
        assert_eq!(
            (&attempt["error"], &attempt["status_code"], &attempt["detail"]),
            (&json!(error), &status_code, &json!(detail)),
        );
        events.push(tested["event"].as_str().expect("an id").to_owned());
    }
    // The subscription is as it was: an event gets there, at its second attempt and after the retries of tests, if there were any.
    receiver.script("/hook", [Reply::Status(500)]);
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
    let arrived: Vec<_> = receiver
        .received("/hook")
        .iter()
        .map(|webhook| webhook.webhook_id().to_owned())
        .collect();
    events.extend([id.clone(), id]);
    assert_eq!(arrived, events, "each test is one attempt");
    // What is announced of a dead letter that is none of a test's comes first.
    let path = format!("/v1/subscriptions/{}", subscription.id);
    client
        .patch(&path, &json!({"retry_schedule_seconds": []}))
        .await
        .expect(200);
    receiver.script("/hook", [Reply::Status(500)]);
    let dead = client.event("order.placed").await;
    let told = receiver.wait_for("/told", 1).await.remove(0);
    assert_eq!(told.envelope().r#type, "triggers.delivery.dead_lettered");
    assert!(
        told.envelope().data.get().contains(&dead),
        "{}",
        told.envelope().data
    );
}

async fn a_test_passes_a_backlog(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::Hang]);
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "max_in_flight": 1, "timeout_ms": 30_000}))
        .await;
    for _ in 0..5 {
        client.event("order.placed").await;
    }
    receiver.wait_for("/hook", 1).await;
    let begun = Instant::now();
    let tested = test(&client, &subscription.id).await.expect(200);
    assert_eq!(tested["status"], "delivered", "{tested}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(receiver.count("/hook"), 2);
}

async fn a_test_in_order_takes_its_turn(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::Status(500)]);
    let subscription = client
        .subscribe(
            &json!({"url": receiver.url("/hook"), "ordering": "fifo", "timeout_ms": 1000,
                           "retry_schedule_seconds": [600]}),
        )
        .await;
    let first = client.event("order.placed").await;
    client
        .delivery_becomes(&first, &subscription.id, "retrying")
        .await;
    let tested = test(&client, &subscription.id).await.expect(202);
    assert!(tested["attempt"].is_null(), "{tested}");
    assert_eq!(receiver.count("/hook"), 1, "nothing overtakes");
    client
        .post(&format!("/v1/inbox/{first}/ack"), &json!({}))
        .await
        .expect(200);
    let event = tested["event"].as_str().expect("an id");
    client.event_becomes(event, "delivered").await;
}

async fn tests_are_bounded(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Hang);
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "timeout_ms": 5000}))
        .await;
    let (mut running, id) = (Vec::new(), subscription.id.clone());
    for _ in 0..4 {
        let (client, id) = (client.clone(), id.clone());
        running.push(tokio::spawn(async move { test(&client, &id).await }));
    }
    receiver.wait_for("/hook", 4).await;
    test(&client, &id).await.problem(429, "rate_limited");
    let other = world.organization().await;
    let others = other.subscribe_url(&receiver.url("/other")).await;
    test(&other, &others.id).await.expect(200);
    for test in running {
        let tested = test.await.expect("it is answered").expect(200);
        assert_eq!(tested["attempt"]["error"], "timeout", "{tested}");
    }
    assert_eq!(receiver.count("/hook"), 4);
}

async fn what_cannot_be_tested(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let stranger = world.organization().await;
    let push = client
        .subscribe(&json!({"url": receiver.url("/hook"), "enabled": false, "timeout_ms": 1000}))
        .await;
    test(&stranger, &push.id).await.problem(404, "not_found");
    test(&client, &push.id).await.problem(409, "conflict");
    let pull = client
        .post("/v1/subscriptions", &json!({"kind": "pull"}))
        .await
        .expect(201);
    let pull = pull["id"].as_str().expect("an id");
    test(&client, pull).await.problem(409, "conflict");
    assert_eq!(receiver.count("/hook"), 0);
    if engine == Engine::Servers {
        // Where no worker is there nothing is sent, then or later.
        client
            .post(&format!("/v1/subscriptions/{}/enable", push.id), &json!({}))
            .await
            .expect(200);
        assert!(world.worker().terminate().await.success());
        test(&client, &push.id).await.problem(503, "unavailable");
        world.worker().start_again().await;
        world.worker().ready().await;
        let tested = test(&client, &push.id).await.expect(200);
        let webhooks = receiver.wait_for("/hook", 1).await;
        assert_eq!(webhooks[0].webhook_id(), tested["event"].as_str().expect("an id"));
        assert_eq!(receiver.count("/hook"), 1);
    }
}
