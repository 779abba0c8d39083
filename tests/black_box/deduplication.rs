//! One event a key and organization, however often and wherever it is posted; every id answered resolves to it.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::join_all;
use harness::{Answer, Client, Engine, Receiver, World, eventually, on_both_engines};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

on_both_engines!(
    a_repeat_creates_nothing,
    a_concurrent_repeat_creates_nothing,
    repeats_at_other_nodes_collapse,
    a_key_is_its_organizations_own,
    header_and_field_are_one_key,
);

fn event(dedup_id: &str, payload: &Value) -> Value {
    json!({"type": "order.placed", "payload": payload, "dedup_id": dedup_id})
}

async fn post_with_header(client: &Client, key: &str, event: &Value) -> Answer {
    let request = client
        .request(Method::POST, "/v1/events")
        .header("idempotency-key", key);
    client.send(request.json(event)).await
}

/// Waits until so many repeats are counted, and gives the event.
async fn counted(client: &Client, id: &str, repeats: u64, differing: u64) -> Value {
    eventually("the repeats are counted", Duration::from_secs(10), async || {
        let event = client.look_up(id).await;
        if event["repeats"] == repeats && event["differing_repeats"] == differing {
            Ok(event)
        } else {
            Err(event.to_string())
        }
    })
    .await
}

async fn a_repeat_creates_nothing(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;

    let first = client
        .post("/v1/events", &event("one", &json!(1)))
        .await
        .expect(202);
    let again = client
        .post("/v1/events", &event("one", &json!(1)))
        .await
        .expect(202);
    let differs = client
        .post("/v1/events", &event("one", &json!(2)))
        .await
        .expect(202);
    assert_eq!(first["duplicate"], false);
    assert_eq!(again["duplicate"], true);
    assert!(again["differs"].is_null(), "{again}");
    assert_eq!(differs["duplicate"], true);
    assert_eq!(differs["differs"], true);
    let id = first["id"].as_str().expect("an id");
    assert_eq!((&again["id"], &differs["id"]), (&first["id"], &first["id"]));

    let event = counted(&client, id, 2, 1).await;
    assert_eq!(event["payload"], 1, "the first wins");
    client.event_becomes(id, "delivered").await;
    // What comes after has arrived: so would have what came before.
    let last = client.event("order.closed").await;
    let webhooks = receiver.wait_for("/hook", 2).await;
    let ids: Vec<_> = webhooks.iter().map(harness::Received::webhook_id).collect();
    assert_eq!(ids, [id, &last]);
}

async fn a_concurrent_repeat_creates_nothing(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let same = event("same", &json!("same"));
    let answers = join_all((0..40).map(|_| client.post("/v1/events", &same))).await;
    let answers: Vec<Value> = answers.iter().map(|answer| answer.expect(202)).collect();
    let ids: BTreeSet<_> = answers.iter().map(|answer| answer["id"].as_str()).collect();
    assert_eq!(ids.len(), 1, "one node answers with one id: {ids:?}");
    let firsts = answers.iter().filter(|answer| answer["duplicate"] == false);
    assert_eq!(firsts.count(), 1);
    let id = answers[0]["id"].as_str().expect("an id");
    counted(&client, id, 39, 0).await;
    client.event_becomes(id, "delivered").await;
    assert_eq!(receiver.count("/hook"), 1);
}

async fn repeats_at_other_nodes_collapse(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    // Embedded, one process is all there is: starting it again makes it forget what it answered.
    let other = match engine {
        Engine::Servers => world.start_another("ingest").await,
        Engine::Embedded => Arc::clone(world.ingest()),
    };
    other.ready().await;
    let elsewhere = client.posting_to(&other);

    // One after the other.
    let first = client.accepted(&event("slow", &json!(1))).await;
    if engine == Engine::Embedded {
        world.restart_with("TRIGGERS_LOG", "info").await;
    }
    let second = elsewhere.accepted(&event("slow", &json!(2))).await;
    let resolved = counted(&client, &second, 1, 1).await;
    assert_eq!(resolved["id"], first, "the second id resolves to the first event");
    assert_eq!(resolved["payload"], 1);

    // At the same time, at both.
    let keys: Vec<String> = (0..10).map(|number| format!("quick-{number}")).collect();
    let posts = keys.iter().flat_map(|key| {
        let body = event(key, &json!(key));
        [&client, &elsewhere, &client, &elsewhere].map(|node| {
            let body = body.clone();
            async move { (key, node.accepted(&body).await) }
        })
    });
    for (key, id) in join_all(posts).await {
        let event = client.event_becomes(&id, "delivered").await;
        assert_eq!(event["dedup_id"].as_str(), Some(key.as_str()));
    }
    let arrived: BTreeSet<_> = receiver
        .received("/hook")
        .iter()
        .map(|webhook| webhook.webhook_id().to_owned())
        .collect();
    assert_eq!(arrived.len(), 1 + keys.len(), "a key became several events");
    assert_eq!(receiver.count("/hook"), 1 + keys.len(), "an event was sent twice");
}

async fn a_key_is_its_organizations_own(engine: Engine) {
    let world = World::start(engine).await;
    let (one, other) = (world.organization().await, world.organization().await);
    let first = one
        .post("/v1/events", &event("shared", &json!(1)))
        .await
        .expect(202);
    let second = other
        .post("/v1/events", &event("shared", &json!(2)))
        .await
        .expect(202);
    assert_ne!(first["id"], second["id"]);
    assert_eq!(second["duplicate"], false);
    let seen = other.look_up(second["id"].as_str().expect("an id")).await;
    assert_eq!(seen["payload"], 2);
    assert_eq!(seen["repeats"], 0);
}

async fn header_and_field_are_one_key(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let plain = json!({"type": "order.placed", "payload": {}});
    let first = post_with_header(&client, "one key", &plain).await.expect(202);
    let by_field = client
        .post("/v1/events", &event("one key", &json!({})))
        .await
        .expect(202);
    assert_eq!(by_field["id"], first["id"]);
    let both = post_with_header(&client, "one key", &event("one key", &json!({})))
        .await
        .expect(202);
    assert_eq!(both["id"], first["id"]);
    let differ = post_with_header(&client, "one key", &event("another", &json!({}))).await;
    differ.problem(422, "invalid_request");
    assert_eq!(differ.pointers(), ["/dedup_id"]);
    let long = post_with_header(&client, &"k".repeat(257), &plain).await;
    let problem = long.problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["header"], "Idempotency-Key");
}
