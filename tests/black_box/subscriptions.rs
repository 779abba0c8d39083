//! Subscriptions: made, matched, changed and deleted; each is in force for every event accepted after it was made.

use futures_util::{StreamExt as _, stream};
use harness::{Engine, Receiver, World, on_both_engines};
use serde_json::json;

on_both_engines!(
    a_subscription_is_in_force_at_once,
    patterns_choose_events,
    each_subscriber_gets_its_own_delivery,
    a_subscription_is_listed_changed_and_deleted,
    defaults_are_the_documented_ones,
    a_thousand_subscriptions_and_no_more,
);

async fn a_subscription_is_in_force_at_once(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    for round in 0..8 {
        let path = format!("/round-{round}");
        // The worker has just read the organization's subscriptions.
        let before = client.event("round.before").await;
        client.look_up(&before).await;
        client
            .subscribe(&json!({"url": receiver.url(&path), "event_types": ["round.after"]}))
            .await;
        let id = client.event("round.after").await;
        let webhooks = receiver.wait_for(&path, 1).await;
        assert_eq!(webhooks[0].webhook_id(), id);
    }
}

async fn patterns_choose_events(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let cases: [(&str, &[&str], &[&str]); 5] = [
        ("/exact", &["user.created"], &["user.created"]),
        ("/one", &["user.*"], &["user.created", "user.deleted"]),
        (
            "/more",
            &["user.**"],
            &["user.created", "user.deleted", "user.email.changed"],
        ),
        (
            "/all",
            &["*"],
            &[
                "user.created",
                "user.deleted",
                "user.email.changed",
                "user",
                "order.user.created",
            ],
        ),
        ("/either", &["user", "*.user.*"], &["user", "order.user.created"]),
    ];
    for (path, patterns, _) in cases {
        client
            .subscribe(&json!({"url": receiver.url(path), "event_types": patterns}))
            .await;
    }
    for event_type in [
        "user.created",
        "user.deleted",
        "user.email.changed",
        "user",
        "order.user.created",
    ] {
        let id = client.event(event_type).await;
        client.event_becomes(&id, "delivered").await;
    }
    for (path, _, wanted) in cases {
        let webhooks = receiver.wait_for(path, wanted.len()).await;
        let mut arrived: Vec<_> = webhooks.iter().map(|webhook| webhook.envelope().r#type).collect();
        arrived.sort_unstable();
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        assert_eq!(arrived, wanted, "{path}");
    }
}

async fn each_subscriber_gets_its_own_delivery(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let mut subscriptions = Vec::new();
    for number in 0..5 {
        let url = receiver.url(&format!("/{number}"));
        subscriptions.push(client.subscribe_url(&url).await);
    }
    let id = client.event("order.placed").await;
    let event = client.event_becomes(&id, "delivered").await;
    assert_eq!(event["deliveries"].as_array().map(Vec::len), Some(5), "{event}");
    for (number, subscription) in subscriptions.iter().enumerate() {
        let webhooks = receiver.wait_for(&format!("/{number}"), 1).await;
        webhooks[0]
            .verify(&subscription.secret)
            .expect("each has a secret of its own");
    }
}

async fn a_subscription_is_listed_changed_and_deleted(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let made = client
        .subscribe(&json!({"url": receiver.url("/before"), "description": "the first"}))
        .await;
    let path = format!("/v1/subscriptions/{}", made.id);
    let shown = client.get(&path).await.expect(200);
    assert_eq!(shown["description"], "the first");
    assert!(shown["secret"].is_null(), "a secret is shown once: {shown}");
    let listed = client.get("/v1/subscriptions").await.expect(200);
    let listed = listed["data"].as_array().expect("a page").clone();
    let found = listed
        .iter()
        .find(|subscription| subscription["id"] == made.id.as_str());
    assert_eq!(found, Some(&shown));
    assert!(
        listed
            .iter()
            .any(|subscription| subscription["builtin"] == "inbox"),
        "the built-in inbox is listed too: {listed:?}"
    );

    let change = json!({
        "url": receiver.url("/after"),
        "event_types": ["order.*"],
        "description": null,
        "retry_schedule_seconds": [7],
        "timeout_ms": 2000,
        "max_in_flight": 3,
    });
    let changed = client.patch(&path, &change).await.expect(200);
    assert_eq!(changed["url"], receiver.url("/after"));
    assert_eq!(changed["event_types"], json!(["order.*"]));
    assert!(changed["description"].is_null());
    assert_eq!(changed["retry_schedule_seconds"], json!([7]));
    assert_eq!(
        (&changed["timeout_ms"], &changed["max_in_flight"]),
        (&json!(2000), &json!(3))
    );
    assert_eq!(client.get(&path).await.expect(200), changed);
    client.event("order.placed").await;
    let webhooks = receiver.wait_for("/after", 1).await;
    webhooks[0].verify(&made.secret).expect("the secret stays");
    assert_eq!(receiver.count("/before"), 0);

    let deleted = client.delete(&path).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (204, ""));
    client.get(&path).await.problem(404, "not_found");
    client.delete(&path).await.problem(404, "not_found");
    let id = client.event("order.placed").await;
    let event = client.look_up(&id).await;
    assert_ne!(event["deliveries"][0]["subscription"], made.id.as_str());
    assert_eq!(receiver.count("/after"), 1);
}

async fn defaults_are_the_documented_ones(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let created = client
        .post("/v1/subscriptions", &json!({"url": "http://127.0.0.1:9/hook"}))
        .await;
    let shown = created.expect(201);
    assert!(shown["id"].as_str().is_some_and(|id| id.starts_with("sub_")));
    assert!(
        shown["secret"]
            .as_str()
            .is_some_and(|secret| secret.starts_with("whsec_"))
    );
    assert_eq!(shown["kind"], "push");
    assert_eq!(shown["event_types"], json!(["*"]));
    assert_eq!(shown["enabled"], true);
    assert_eq!(
        shown["retry_schedule_seconds"],
        json!([5, 300, 1800, 7200, 18000, 36000, 36000])
    );
    assert_eq!(
        (&shown["timeout_ms"], &shown["max_in_flight"]),
        (&json!(15000), &json!(16))
    );
    let pull = client
        .post(
            "/v1/subscriptions",
            &json!({"kind": "pull", "event_types": ["order.*"]}),
        )
        .await
        .expect(201);
    assert_eq!(pull["kind"], "pull");
    let id = client.event("order.placed").await;
    let event = client.look_up(&id).await;
    assert_eq!(event["deliveries"].as_array().map(Vec::len), Some(2), "{event}");
}

/// An event goes to all of them, and what comes to more than one transaction stores is in several.
async fn a_thousand_subscriptions_and_no_more(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let pull = json!({"kind": "pull"});
    let create = || client.post("/v1/subscriptions", &pull);
    let made = stream::iter(0..1_000).map(|_| create()).buffer_unordered(16);
    let made = made.map(|answer| answer.expect(201)["id"].as_str().expect("an id").to_owned());
    let made: Vec<String> = made.collect().await;
    let problem = create().await.problem(409, "conflict");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("at most 1000 subscriptions"), "{detail}");

    let events: Vec<_> = (0..25)
        .map(|at| json!({"type": "order.placed", "payload": at}))
        .collect();
    client.post("/v1/events/batch", &json!(events)).await.expect(202);
    for id in [&made[0], &made[500], &made[999]] {
        let path = format!("/v1/subscriptions/{id}/pull");
        let mut payloads = Vec::new();
        while payloads.len() < events.len() {
            let pulled = client
                .post(&path, &json!({"max": 100, "wait_ms": 10_000}))
                .await
                .expect(200);
            let events = pulled["data"].as_array().expect("events");
            assert!(!events.is_empty(), "{} came", payloads.len());
            payloads.extend(events.iter().map(|event| event["payload"].clone()));
        }
        let expected: Vec<_> = events.iter().map(|event| event["payload"].clone()).collect();
        assert_eq!(payloads, expected);
    }
    let deleted = client.delete(&format!("/v1/subscriptions/{}", made[0])).await;
    assert_eq!(deleted.status, 204, "{deleted:?}");
    create().await.expect(201);
    create().await.problem(409, "conflict");
}
