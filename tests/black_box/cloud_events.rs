//! CloudEvents 1.0 in their three modes.

use harness::{Answer, Client, Engine, Receiver, World, on_both_engines};
use http::Method;
use serde_json::{Value, json};

on_both_engines!(
    every_mode_arrives,
    one_event_in_every_mode_is_one_event,
    events_that_break_a_rule,
    requests_that_are_none,
);

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn structured(client: &Client, event: &Value) -> Answer {
    post(
        client,
        &[("content-type", "application/cloudevents+json")],
        event.to_string(),
    )
    .await
}

async fn batched(client: &Client, events: &Value) -> Answer {
    let content_type = [(
        "content-type",
        "application/cloudevents-batch+json; charset=utf-8",
    )];
    post(client, &content_type, events.to_string()).await
}

async fn post(client: &Client, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
    let mut request = client.request(Method::POST, "/v1/events");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send(request.body(body)).await
}

fn attributes(id: &str) -> Vec<(&'static str, String)> {
    vec![
        ("ce-specversion", "1.0".to_owned()),
        ("ce-type", "order.placed".to_owned()),
        ("ce-source", "/shop/orders".to_owned()),
        ("ce-id", id.to_owned()),
    ]
}

async fn binary(client: &Client, id: &str, more: &[(&'static str, &str)], body: &'static [u8]) -> Answer {
    let attributes = attributes(id);
    let attributes = attributes.iter().map(|(name, value)| (*name, value.as_str()));
    let headers: Vec<_> = attributes.chain(more.iter().copied()).collect();
    post(client, &headers, body).await
}

async fn every_mode_arrives(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let event = |id: &str, data: &str| -> String {
        format!(
            r#"{{"specversion":"1.0","type":"order.placed","source":"/shop/orders","id":"{id}",
                "time":"2026-01-31T12:00:00Z","traceparent":"{TRACE}","subject":"x","comexampleother":7{data}}}"#
        )
    };
    let content_type = [("content-type", "application/cloudevents+json")];
    let answer = post(
        &client,
        &content_type,
        event("1", r#","data":{"a":1.0,  "b":[]}"#),
    )
    .await;
    let answer = answer.expect(202);
    assert_eq!(
        (&answer["type"], &answer["status"]),
        (&json!("order.placed"), &json!("accepted"))
    );
    let stored = client.look_up(answer["id"].as_str().expect("an id")).await;
    assert_eq!(stored["source"], "/shop/orders");
    assert_eq!(stored["occurred_at"], "2026-01-31T12:00:00.000Z");
    assert_eq!(stored["dedup_id"], "cloudevent:/shop/orders 1");

    let json = [
        ("content-type", "application/json; charset=utf-8"),
        ("ce-time", "2026-01-31T12:00:00Z"),
        ("ce-traceparent", TRACE),
        ("ce-comexampleother", "7"),
    ];
    let answer = binary(&client, "Caf%C3%A9%20%25", &json, br#" {"a":1.0,  "b":[]} "#)
        .await
        .expect(202);
    let stored = client.look_up(answer["id"].as_str().expect("an id")).await;
    assert_eq!(stored["dedup_id"], "cloudevent:/shop/orders Café %");
    assert_eq!(stored["occurred_at"], "2026-01-31T12:00:00.000Z");

    let batch = format!(
        "[{},{}]",
        event("3", r#","data":{"a":1.0,  "b":[]}"#),
        event("4", "")
    );
    let content_type = [("content-type", "application/cloudevents-batch+json")];
    let answer = post(&client, &content_type, batch).await.expect(202);
    assert_eq!((&answer["accepted"], &answer["refused"]), (&json!(2), &json!(0)));

    for webhook in receiver.wait_for("/hook", 4).await {
        let body = String::from_utf8_lossy(&webhook.body);
        let whole = body.ends_with(r#""timestamp":"2026-01-31T12:00:00.000Z","data":{"a":1.0,  "b":[]}}"#);
        assert!(whole || body.ends_with(r#""data":null}"#), "{body}");
        let trace = webhook.header("traceparent");
        assert_eq!(trace.split('-').nth(1), TRACE.split('-').nth(1), "{trace}");
    }
    // What is not JSON arrives as a string.
    for (id, content_type, body, payload) in [
        ("5", "text/plain", &b"a\n\"b\""[..], "a\n\"b\""),
        ("6", "application/octet-stream", &[0, 1, 255], "AAH/"),
    ] {
        let answer = binary(&client, id, &[("content-type", content_type)], body)
            .await
            .expect(202);
        let stored = client.look_up(answer["id"].as_str().expect("an id")).await;
        assert_eq!(stored["payload"], payload);
    }
}

async fn one_event_in_every_mode_is_one_event(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let event =
        json!({"specversion": "1.0", "type": "order.placed", "source": "/shop/orders", "id": "1", "data": 1});
    let first = structured(&client, &event).await.expect(202);
    let again = [
        structured(&client, &event).await.expect(202),
        binary(&client, "1", &[("content-type", "application/json")], b"1")
            .await
            .expect(202),
        batched(&client, &json!([event])).await.expect(202)["results"][0].clone(),
    ];
    for answer in again {
        assert_eq!(
            (&answer["id"], &answer["duplicate"]),
            (&first["id"], &json!(true)),
            "{answer}"
        );
    }
    // Neither half of the key alone, nor the same two parted elsewhere, is the same key; nor can a plain key be.
    for (source, id) in [("/shop/orders", "2"), ("/shop", "1"), ("/shop/order", "s1")] {
        let other = json!({"specversion": "1.0", "type": "order.placed", "source": source, "id": id});
        assert_eq!(structured(&client, &other).await.expect(202)["duplicate"], false);
    }
    let plain = json!({"type": "a", "payload": 1, "dedup_id": "cloudevent:/shop/orders 1"});
    let refused = client.post("/v1/events", &plain).await;
    refused.problem(422, "invalid_request");
    assert_eq!(refused.pointers(), ["/dedup_id"]);
    // As long as they may be, the two are one key of the length that keys have.
    let long = json!({"specversion": "1.0", "type": "a", "source": "s".repeat(256), "id": "i".repeat(256)});
    let first = structured(&client, &long).await.expect(202);
    let again = structured(&client, &long).await.expect(202);
    assert_eq!((&again["id"], &again["duplicate"]), (&first["id"], &json!(true)));
}

async fn events_that_break_a_rule(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let good = json!({"specversion": "1.0", "type": "a", "source": "/", "id": "1"});
    for (name, value) in [
        ("specversion", json!("0.3")),
        ("specversion", json!(1.0)),
        ("type", json!("")),
        ("type", json!("triggers.x")),
        ("type", json!("with spaces")),
        ("source", json!("")),
        ("source", json!("a b")),
        ("source", json!("s".repeat(257))),
        ("id", json!("")),
        ("id", json!(7)),
        ("id", json!("a\u{0}b")),
        ("id", json!("i".repeat(257))),
        ("time", json!("yesterday")),
        ("data_base64", json!("not base64")),
    ] {
        let mut event = good.clone();
        event[name] = value;
        let answer = structured(&client, &event).await;
        answer.problem(422, "invalid_request");
        assert_eq!(answer.pointers(), [format!("/{name}")]);
        let results = batched(&client, &json!([event])).await.expect(202);
        assert_eq!(
            results["results"][0]["problem"]["errors"][0]["pointer"],
            format!("/{name}")
        );
    }
    let empty = structured(&client, &json!({})).await;
    assert_eq!(empty.pointers(), ["/id", "/source", "/specversion", "/type"]);
    let large =
        json!({"specversion": "1.0", "type": "a", "source": "/", "id": "1", "data": "x".repeat(262_144)});
    structured(&client, &large)
        .await
        .problem(413, "payload_too_large");

    let missing = post(&client, &[("ce-id", "1")], "").await;
    let problem = missing.problem(422, "invalid_request");
    let headers: Vec<_> = (0..3).map(|place| &problem["errors"][place]["header"]).collect();
    assert_eq!(headers, ["ce-specversion", "ce-type", "ce-source"]);
    let json = ("content-type", "application/json");
    for (more, body, status, code) in [
        (vec![json], &b"{"[..], 400, "invalid_json"),
        (vec![json, ("ce-id", "2")], b"1", 422, "invalid_request"),
        (vec![json, ("ce-time", "now")], b"1", 422, "invalid_request"),
        (vec![json, ("ce-source", "%ff")], b"1", 422, "invalid_request"),
        (
            vec![("content-type", "text/plain; charset=utf-16")],
            b"1",
            415,
            "unsupported_media_type",
        ),
        (
            vec![("content-type", "text/plain")],
            b"\xff",
            422,
            "invalid_request",
        ),
    ] {
        binary(&client, "1", &more, body).await.problem(status, code);
    }
    nothing_came_of_it(&client).await;
}

async fn requests_that_are_none(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let event = json!({"specversion": "1.0", "type": "a", "source": "/", "id": "1"}).to_string();
    let structured = ("content-type", "application/cloudevents+json");
    for (headers, status, code) in [
        (
            vec![("content-type", "application/cloudevents+xml")],
            415,
            "unsupported_media_type",
        ),
        (
            vec![("content-type", "application/cloudevents")],
            415,
            "unsupported_media_type",
        ),
        (
            vec![("content-type", "application/cloudevents+json; charset=latin1")],
            415,
            "unsupported_media_type",
        ),
        (
            vec![structured, ("content-encoding", "gzip")],
            415,
            "unsupported_media_type",
        ),
        (vec![structured, ("idempotency-key", "1")], 422, "invalid_request"),
    ] {
        post(&client, &headers, event.clone()).await.problem(status, code);
    }
    for body in ["", "[]", "{", "1"] {
        post(&client, &[structured], body)
            .await
            .problem(400, "invalid_json");
    }
    let huge = post(&client, &[structured], vec![b' '; 400 * 1024]).await;
    huge.problem(413, "payload_too_large");
    for body in ["", "{}", "[1"] {
        let content_type = ("content-type", "application/cloudevents-batch+json");
        post(&client, &[content_type], body)
            .await
            .problem(400, "invalid_json");
    }
    assert_eq!(
        batched(&client, &json!([])).await.expect(202)["results"],
        json!([])
    );
    // Existing clients' route takes its own form alone.
    let request = client.request(Method::POST, "/api/events");
    let answer = client
        .send(request.header("content-type", structured.1).body(event))
        .await;
    answer.problem(415, "unsupported_media_type");
    nothing_came_of_it(&client).await;
}

/// The organization has no event but the one that is posted here.
async fn nothing_came_of_it(client: &Client) {
    let id = client.event("order.placed").await;
    client.look_up(&id).await;
    assert_eq!(
        client.get("/api/inbox").await.expect(200)["pagination"]["total"],
        1
    );
}
