//! The outbound guard: whoever can set a URL must not reach inside.

use harness::{Engine, Receiver, World, on_both_engines};
use serde_json::json;

on_both_engines!(
    targets_inside_are_refused_when_saved,
    targets_inside_are_blocked_at_the_attempt,
);

async fn targets_inside_are_refused_when_saved(engine: Engine) {
    let world = World::with(engine)
        .set("TRIGGERS_ALLOW_PRIVATE_TARGETS", "127.0.0.1/32")
        .start()
        .await;
    let client = world.organization().await;
    for url in [
        "http://127.0.0.2/hook",
        "https://localhost.localdomain.invalid:8443/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://0x7f000002/",
        "https://2130706434/",
        "https://127.2/",
        "https://0/",
        "https://100.64.0.1/",
        "https://198.18.0.1/",
        "https://224.0.0.1/",
        "https://8.8.8.8:22/",
        "http://8.8.8.8/",
    ] {
        let created = client.post("/v1/subscriptions", &json!({"url": url})).await;
        created.problem(422, "invalid_request");
        assert_eq!(created.pointers(), ["/url"], "{url}");
        let config = client
            .post("/api/webhook/config", &json!({"webhook_url": url}))
            .await;
        config.problem(400, "invalid_request");
    }
    let made = client.subscribe_url("http://127.0.0.1:9/hook").await;
    let path = format!("/v1/subscriptions/{}", made.id);
    let patched = client.patch(&path, &json!({"url": "https://10.0.0.1/"})).await;
    patched.problem(422, "invalid_request");
    assert_eq!(
        client.get(&path).await.expect(200)["url"],
        "http://127.0.0.1:9/hook"
    );
}

async fn targets_inside_are_blocked_at_the_attempt(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    // A name, and an address: each is checked at the attempt, and not only when it was saved.
    let by_name = receiver.url("/name").replace("127.0.0.1", "localhost");
    // `localhost` may be ::1 as well, which this world does not open.
    world
        .restart_with("TRIGGERS_ALLOW_PRIVATE_TARGETS", "127.0.0.0/8,::1/128")
        .await;
    let mut subscriptions = Vec::new();
    for url in [by_name, receiver.url("/address")] {
        let body = json!({"url": url, "retry_schedule_seconds": [600]});
        subscriptions.push(client.subscribe(&body).await);
    }
    world
        .restart_with("TRIGGERS_ALLOW_PRIVATE_TARGETS", "10.0.0.0/8")
        .await;
    let id = client.event("order.placed").await;
    for subscription in &subscriptions {
        let delivery = client.delivery_becomes(&id, &subscription.id, "retrying").await;
        let attempt = &delivery["log"][0];
        assert_eq!(attempt["error"], "blocked_address", "{delivery}");
        assert!(attempt["status_code"].is_null());
    }
    assert_eq!(receiver.count("/name") + receiver.count("/address"), 0);
}
