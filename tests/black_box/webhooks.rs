//! What a webhook is made of: static headers, formats, the trace that it is part of.

use harness::{Engine, Receiver, Reply, World, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    static_headers_arrive_and_are_changed,
    a_cloud_event_arrives_signed,
    a_trace_goes_through,
    a_connection_is_used_again,
);

async fn static_headers_arrive_and_are_changed(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client
        .subscribe(&json!({
            "url": receiver.url("/hook"),
            "headers": {"Authorization": "Bearer geheim", "X-Team": "a  b"},
            "metadata": {"team": "shop"},
        }))
        .await;
    let path = format!("/v1/subscriptions/{}", subscription.id);
    let shown = client.get(&path).await;
    assert!(!shown.text.contains("geheim"), "{}", shown.text);
    assert_eq!(shown.expect(200)["metadata"], json!({"team": "shop"}));
    client.event("order.placed").await;
    let webhook = receiver.wait_for("/hook", 1).await.remove(0);
    webhook.verify(&subscription.secret).expect("signed as any is");
    assert_eq!(webhook.header("authorization"), "Bearer geheim");
    assert_eq!(webhook.header("x-team"), "a  b");
    assert_eq!(webhook.header("content-type"), "application/json");

    // A change of one leaves the other, whose value nobody has to know again.
    client
        .patch(&path, &json!({"headers": {"X-TEAM": null, "x-new": "c"}}))
        .await
        .expect(200);
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
    let webhook = receiver.wait_for("/hook", 2).await.remove(1);
    assert_eq!(webhook.webhook_id(), id);
    assert_eq!(webhook.header("authorization"), "Bearer geheim");
    assert_eq!((webhook.header("x-team"), webhook.header("x-new")), ("", "c"));
}

async fn a_cloud_event_arrives_signed(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    // The second attempt is made from what the store has, the first from what intake had.
    receiver.script("/hook", [Reply::Status(500)]);
    let subscription = client
        .subscribe(
            &json!({"url": receiver.url("/hook"), "format": "cloudevents", "retry_schedule_seconds": [1]}),
        )
        .await;
    let payload = r#"{"b":1.0,  "a":[1e400,"\u00e9"]}"#;
    let posted = client
        .post_text(
            "/v1/events",
            format!(
                r#"{{"type":"order.placed","source":"My shop","occurred_at":"2026-01-31T13:00:00+01:00","payload":{payload}}}"#
            ),
        )
        .await
        .expect(202);
    let id = posted["id"].as_str().expect("an id");
    for webhook in receiver.wait_for("/hook", 2).await {
        webhook.verify(&subscription.secret).expect("signed as any is");
        assert_eq!(webhook.header("content-type"), "application/cloudevents+json");
        assert_eq!(webhook.webhook_id(), id);
        let expected = format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"My%20shop","type":"order.placed","time":"2026-01-31T12:00:00.000Z","datacontenttype":"application/json","data":{payload}}}"#
        );
        assert_eq!(webhook.body, expected);
    }
    let without = client.event("order.placed").await;
    let webhook = receiver.wait_for("/hook", 3).await.remove(2);
    let body: Value = serde_json::from_slice(&webhook.body).expect("JSON");
    assert_eq!(body["id"], without.as_str());
    assert_eq!(
        body["source"],
        format!("urn:triggers:organization:{}", client.organization)
    );
    let path = format!("/v1/subscriptions/{}", subscription.id);
    client
        .patch(&path, &json!({"format": "standard"}))
        .await
        .expect(200);
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
    let webhook = receiver.wait_for("/hook", 4).await.remove(3);
    assert_eq!(webhook.envelope().id, id);
}

async fn a_trace_goes_through(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::Status(500)]);
    client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1]}))
        .await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = client
        .request(http::Method::POST, "/v1/events")
        .header("traceparent", trace)
        .json(&json!({"type": "order.placed", "payload": 1}));
    client.send(request).await.expect(202);
    let webhooks = receiver.wait_for("/hook", 2).await;
    for (at, webhook) in webhooks.iter().enumerate() {
        assert_eq!(webhook.header("traceparent"), trace);
        assert_eq!(webhook.header("webhook-attempt"), (at + 1).to_string());
    }
    client.event("order.placed").await;
    let webhook = receiver.wait_for("/hook", 3).await.remove(2);
    assert_eq!(webhook.header("traceparent"), "", "none is made up");
}

async fn a_connection_is_used_again(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    for count in 1..=10 {
        client.event("order.placed").await;
        receiver.wait_for("/hook", count).await;
    }
    let webhooks = receiver.received("/hook");
    let mut connections: Vec<_> = webhooks.iter().map(|webhook| webhook.connection).collect();
    connections.dedup();
    // A pause of four seconds, on a busy machine, ends one; ten webhooks in a row do not take ten.
    assert!(connections.len() <= 3, "{connections:?}");
    assert!(
        webhooks
            .iter()
            .all(|webhook| webhook.version == http::Version::HTTP_11)
    );
}
