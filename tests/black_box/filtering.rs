//! Filters: which events a subscription gets, and what is said of those that it does not get.

use std::time::Duration;

use harness::{Client, Engine, Receiver, World, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    only_what_matches_is_sent,
    what_does_not_match_says_why,
    a_filter_is_in_force_at_once,
    pulls_other_routes_and_cloud_events_are_filtered_too,
    tests_and_retries_ask_no_filter,
    an_erased_event_is_not_judged,
    a_hostile_filter_holds_up_nobody,
);

async fn posted(client: &Client, event_type: &str, payload: Value) -> String {
    client
        .accepted(&json!({"type": event_type, "payload": payload}))
        .await
}

/// Why a subscription has no delivery of an event, and the detail.
async fn why(client: &Client, event: &str, subscription: &str) -> (String, String) {
    let shown = client.look_up(event).await;
    let reasons = shown["not_matched"].as_array().cloned().unwrap_or_default();
    let reason = reasons.iter().find(|one| one["subscription"] == subscription);
    let reason = reason.unwrap_or_else(|| panic!("{subscription} has a delivery: {shown}"));
    let text = |name: &str| reason[name].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("detail"))
}

async fn only_what_matches_is_sent(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let filters = [
        ("/large", "payload.amount > 100"),
        ("/vip", "'vip' in payload.tags || payload.amount >= 1000"),
        (
            "/items",
            "payload.items.exists(item, item.sku.matches('^bk-[0-9]+$') && item.count > 1)",
        ),
        (
            "/shop",
            "type == 'order.placed' && source == 'shop' && occurred_at < timestamp('2026-02-01T00:00:00Z')",
        ),
    ];
    for (path, filter) in filters {
        let body = json!({"url": receiver.url(path), "event_types": ["order.*"], "filter": filter});
        client.subscribe(&body).await;
    }
    client
        .subscribe(&json!({"url": receiver.url("/all"), "event_types": ["order.*"]}))
        .await;
    let events = [
        json!({"type": "order.placed", "source": "shop", "occurred_at": "2026-01-31T23:59:59Z",
            "payload": {"amount": 120.5, "tags": [], "items": [{"sku": "bk-7", "count": 2}]}}),
        json!({"type": "order.placed", "source": "shop", "occurred_at": "2026-02-01T00:00:00Z",
            "payload": {"amount": 5, "tags": ["vip"], "items": [{"sku": "bk-7", "count": 1}]}}),
        json!({"type": "order.cancelled", "source": "shop", "payload": {"amount": 1000}}),
        json!({"type": "invoice.sent", "payload": {"amount": 1000}}),
    ];
    let mut ids = Vec::new();
    for event in &events {
        ids.push(client.accepted(event).await);
    }
    for id in &ids[..3] {
        client.event_becomes(id, "delivered").await;
    }
    // The last is of no type that anybody asked for.
    let shown = client.look_up(&ids[3]).await;
    assert_eq!(shown["status"], "pending", "it waits in the inbox: {shown}");
    let of = |indexes: &[usize]| {
        let mut chosen: Vec<String> = indexes.iter().map(|at| ids[*at].clone()).collect();
        chosen.sort();
        chosen
    };
    for (path, expected) in [
        ("/large", of(&[0, 2])),
        ("/vip", of(&[1, 2])),
        ("/items", of(&[0])),
        ("/shop", of(&[0])),
        ("/all", of(&[0, 1, 2])),
    ] {
        let mut got = receiver.ids(path);
        got.sort();
        assert_eq!(got, expected, "{path}");
    }
}

async fn what_does_not_match_says_why(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let subscribe = async |filter: &str| {
        let body = json!({"kind": "pull", "event_types": ["order.*"], "filter": filter});
        let made = client.post("/v1/subscriptions", &body).await.expect(201);
        assert_eq!(made["filter"], filter);
        made["id"].as_str().expect("an id").to_owned()
    };
    let small = subscribe("payload.amount > 100").await;
    let missing = subscribe("payload.customer.vip").await;
    let text = subscribe("payload.amount").await;
    let costly = subscribe("payload.list.all(a, payload.list.all(b, payload.list.all(c, a == b)))").await;
    let list: Vec<u32> = vec![7; 500];
    let event = posted(&client, "order.placed", json!({"amount": 7, "list": list})).await;
    assert_eq!(
        why(&client, &event, &small).await,
        ("filter".into(), String::new())
    );
    for (subscription, detail) in [
        (&missing, "there is no `customer`"),
        (&text, "it gives an int, not true or false"),
        (
            &costly,
            "it is too costly for this event: it takes more than 10000 steps",
        ),
    ] {
        let (reason, why) = why(&client, &event, subscription).await;
        assert_eq!((&*reason, &*why), ("filter_failed", detail));
    }
    // Nobody wants it: it waits in the inbox.
    let inbox = client.get("/v1/inbox").await.expect(200);
    assert_eq!(inbox["data"][0]["id"], event.as_str(), "{inbox}");
    // One of another type is not asked.
    let event = posted(&client, "invoice.sent", json!({})).await;
    assert_eq!(why(&client, &event, &missing).await.0, "event_type");
}

async fn a_filter_is_in_force_at_once(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let body = json!({"url": receiver.url("/hook"), "filter": "payload.round == -1"});
    let made = client.subscribe(&body).await;
    let path = format!("/v1/subscriptions/{}", made.id);
    for round in 0..6 {
        let event = async || posted(&client, "a.round", json!({"round": round})).await;
        // The worker has just read the organization's subscriptions, and judged by them.
        let before = event().await;
        assert_eq!(why(&client, &before, &made.id).await.0, "filter");
        let filter = format!("payload.round == {round}");
        let changed = client.patch(&path, &json!({"filter": filter})).await.expect(200);
        assert_eq!(changed["filter"], filter.as_str());
        let during = event().await;
        client.delivery_becomes(&during, &made.id, "delivered").await;
        // What was not sent says that the filter was another, now that it would match.
        assert_eq!(why(&client, &before, &made.id).await.0, "changed_later");
        client.patch(&path, &json!({"filter": "false"})).await.expect(200);
        let after = event().await;
        assert_eq!(why(&client, &after, &made.id).await.0, "filter");
        assert_eq!(receiver.count("/hook"), round + 1);
    }
    let changed = client.patch(&path, &json!({"filter": null})).await.expect(200);
    assert_eq!(changed["filter"], Value::Null);
    let id = client.event("anything").await;
    client.delivery_becomes(&id, &made.id, "delivered").await;
    assert_eq!(client.get(&path).await.expect(200)["filter"], Value::Null);
}

async fn pulls_other_routes_and_cloud_events_are_filtered_too(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let filter = "payload.n % 2 == 0 && (source == null || source == '/odd')";
    let body = json!({"kind": "pull", "event_types": ["n.*"], "filter": filter});
    let made = client.post("/v1/subscriptions", &body).await.expect(201);
    let id = made["id"].as_str().expect("an id");
    let mut expected = Vec::new();
    for n in 0..4 {
        let event = json!({"type": "n.posted", "payload": {"n": n}});
        let native = client.accepted(&event).await;
        let compatible = client.post("/api/events", &event).await.expect(202);
        let compatible = client.look_up(compatible["id"].as_str().expect("an id")).await;
        let cloud = json!({"specversion": "1.0", "id": n.to_string(), "source": "/odd", "type": "n.cloud", "data": {"n": n}});
        let request = client
            .request(http::Method::POST, "/v1/events")
            .header("content-type", "application/cloudevents+json")
            .body(cloud.to_string());
        let cloud = client.send(request).await.expect(202);
        let batch = client.post("/v1/events/batch", &json!([event])).await.expect(202);
        let ids = [
            native,
            compatible["id"].as_str().expect("an id").to_owned(),
            cloud["id"].as_str().expect("an id").to_owned(),
            batch["results"][0]["id"].as_str().expect("an id").to_owned(),
        ];
        for event in ids {
            client.look_up(&event).await;
            if n % 2 == 0 {
                expected.push(event);
            } else {
                assert_eq!(why(&client, &event, id).await.0, "filter");
            }
        }
    }
    let pulled = client
        .post(&format!("/v1/subscriptions/{id}/pull"), &json!({"max": 100}))
        .await
        .expect(200);
    let data = pulled["data"].as_array().expect("events");
    let mut got: Vec<&str> = data.iter().filter_map(|event| event["id"].as_str()).collect();
    got.sort_unstable();
    expected.sort();
    assert_eq!(got, expected);
}

async fn tests_and_retries_ask_no_filter(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let made = client
        .subscribe(&json!({"url": receiver.url("/hook"), "filter": "payload.n == 1"}))
        .await;
    let path = format!("/v1/subscriptions/{}", made.id);
    let id = posted(&client, "a", json!({"n": 1})).await;
    client.delivery_becomes(&id, &made.id, "delivered").await;
    client.patch(&path, &json!({"filter": "false"})).await.expect(200);
    let tested = client.post(&format!("{path}/test"), &json!({})).await.expect(200);
    assert_eq!(tested["status"], "delivered", "{tested}");
    let retry = format!("/v1/events/{id}/deliveries/{}/retry", made.id);
    client.post(&retry, &json!({})).await.expect(202);
    receiver.wait_for("/hook", 3).await;
    client.delivery_becomes(&id, &made.id, "delivered").await;
}

async fn an_erased_event_is_not_judged(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let body = json!({"kind": "pull", "filter": "payload == null"});
    let made = client.post("/v1/subscriptions", &body).await.expect(201);
    let id = posted(&client, "a", json!({"n": 1})).await;
    let subscription = made["id"].as_str().expect("an id");
    assert_eq!(why(&client, &id, subscription).await.0, "filter");
    assert_eq!(client.delete(&format!("/v1/events/{id}")).await.status, 204);
    let (reason, detail) = why(&client, &id, subscription).await;
    assert_eq!(reason, "filter_failed");
    assert!(detail.contains("erased"), "{detail}");
}

/// An organization whose filters and payloads cost as much as they may, and another one that posts meanwhile.
async fn a_hostile_filter_holds_up_nobody(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let (hostile, other) = (world.organization().await, world.organization().await);
    let mut last = String::new();
    for filter in [
        "payload.all(a, payload.all(b, payload.all(c, payload.all(d, true))))",
        "payload.map(a, payload.map(b, payload)) == payload.map(a, payload.map(b, payload))",
        "payload.exists(a, string(payload[a]).matches('(a|aa)+$')) || payload == payload + payload",
    ] {
        let body = json!({"kind": "pull", "filter": filter});
        let made = hostile.post("/v1/subscriptions", &body).await.expect(201);
        made["id"].as_str().expect("an id").clone_into(&mut last);
    }
    other
        .subscribe(&json!({"url": receiver.url("/other"), "filter": "payload.of == 'order.placed'"}))
        .await;
    let flood = json!({"type": "x", "payload": vec![0; 60_000]});
    let flooding = async {
        let mut ids = Vec::new();
        for _ in 0..60 {
            ids.push(hostile.accepted(&flood).await);
        }
        ids
    };
    let posting = async {
        for _ in 0..60 {
            other.event("order.placed").await;
        }
        // Without limits one event of the others' would take longer than the universe has.
        receiver
            .wait_for_within("/other", 60, Duration::from_mins(1))
            .await;
    };
    let (flooded, ()) = tokio::join!(flooding, posting);
    for id in flooded.iter().take(2) {
        let (reason, detail) = why(&hostile, id, &last).await;
        assert_eq!(reason, "filter_failed");
        assert!(detail.contains("too costly"), "{detail}");
    }
}
