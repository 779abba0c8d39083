//! Nothing crosses organizations: what belongs to another is 404, as if it were not there.

use harness::{Engine, World, on_both_engines};
use serde_json::json;

on_both_engines!(another_organizations_ids_are_not_there);

async fn another_organizations_ids_are_not_there(engine: Engine) {
    let world = World::start(engine).await;
    let (owner, stranger) = (world.organization().await, world.organization().await);
    let event = owner.event("order.placed").await;
    owner.look_up(&event).await;
    let subscription = owner
        .subscribe(&json!({"url": "http://127.0.0.1:9/hook", "enabled": false}))
        .await;
    let key = owner
        .post("/v1/keys", &json!({"name": "a key"}))
        .await
        .expect(201);
    let key_path = format!("/v1/keys/{}", key["id"].as_str().expect("an id"));

    let subscription_path = format!("/v1/subscriptions/{}", subscription.id);
    let uuid = owner
        .post("/api/events", &json!({"type": "order.placed", "payload": {}}))
        .await
        .expect(202);
    let uuid = uuid["id"].as_str().expect("an id").to_owned();
    let answers = [
        stranger.get(&format!("/v1/events/{event}?wait_ms=100")).await,
        stranger.get(&format!("/v1/events/{uuid}?wait_ms=100")).await,
        stranger.post(&format!("/v1/inbox/{event}/ack"), &json!({})).await,
        stranger.post(&format!("/api/ack/{uuid}"), &json!({})).await,
        stranger.get(&subscription_path).await,
        stranger
            .patch(&subscription_path, &json!({"enabled": true}))
            .await,
        stranger.delete(&subscription_path).await,
        stranger.delete(&key_path).await,
    ];
    for answer in &answers {
        answer.problem(404, "not_found");
    }
    let many = stranger
        .post("/v1/inbox/ack", &json!({"event_ids": [event]}))
        .await
        .expect(200);
    assert_eq!(many["results"][0]["status"], "not_found");
    // Lists and counts are each one's own.
    for path in ["/v1/inbox", "/api/inbox"] {
        let page = stranger.get(path).await;
        assert!(!page.text.contains("order.placed"), "{path}: {}", page.text);
    }
    let page = stranger.get("/api/inbox").await.expect(200);
    assert_eq!(page["pagination"]["total"], 0);
    let listed = stranger.get("/v1/subscriptions").await;
    assert!(!listed.text.contains(&subscription.id));
    let listed = stranger.get("/v1/keys").await.expect(200);
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(1), "{listed}");

    // And all of it is as it was.
    assert_eq!(owner.look_up(&event).await["status"], "pending");
    assert_eq!(owner.get(&subscription_path).await.expect(200)["enabled"], false);
    owner
        .with_key(key["key"].as_str().expect("a key"))
        .event("order.placed")
        .await;
}
