//! An event posted is an event delivered: once, signed, and byte for byte.

use std::path::Path;

use harness::{Client, Engine, Receiver, World, on_both_engines};
use serde_json::json;

on_both_engines!(
    an_event_arrives_signed,
    bodies_arrive_byte_for_byte,
    an_event_can_be_looked_up_at_once,
    a_plain_uuid_is_an_id,
);

async fn an_event_arrives_signed(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;

    let event = json!({
        "type": "user.created",
        "payload": {"user": 42},
        "dedup_id": "signup-42",
        "occurred_at": "2026-01-31T13:00:00+01:00",
        "source": "shop",
    });
    let answer = client.post("/v1/events", &event).await;
    let accepted = answer.expect(202);
    let id = accepted["id"].as_str().expect("an id");
    assert!(id.starts_with("evt_") && id.len() == 30, "{accepted}");
    assert_eq!(accepted["type"], "user.created");
    assert_eq!(accepted["status"], "accepted");
    assert_eq!(accepted["duplicate"], false);
    let received_at = accepted["received_at"].as_str().expect("a time");
    assert!(
        received_at.ends_with('Z') && received_at.len() == 24,
        "{accepted}"
    );
    assert!(!answer.header("x-request-id").is_empty());

    let webhooks = receiver.wait_for("/hook", 1).await;
    let webhook = &webhooks[0];
    assert_eq!(webhook.method, http::Method::POST);
    assert_eq!(webhook.webhook_id(), id);
    assert_eq!(webhook.header("webhook-attempt"), "1");
    assert!(webhook.header("user-agent").starts_with("Triggers/"));
    assert!(webhook.header("content-type").starts_with("application/json"));
    webhook
        .verify(&subscription.secret)
        .expect("the signature is good");
    let other = client.subscribe_url(&receiver.url("/other")).await;
    assert!(
        webhook.verify(&other.secret).is_err(),
        "another secret fits as well"
    );
    let mut forged = webhook.clone();
    forged.body = [&forged.body[..], b" "].concat().into();
    assert!(
        forged.verify(&subscription.secret).is_err(),
        "the body is not signed"
    );

    let envelope = webhook.envelope();
    assert_eq!((envelope.id, envelope.r#type), (id, "user.created"));
    // When it happened, as its producer says; else when it was accepted.
    assert_eq!(envelope.timestamp, "2026-01-31T12:00:00.000Z");
    assert_eq!(envelope.data.get(), r#"{"user":42}"#);
    assert!(webhook.body.starts_with(br#"{"id":"#));

    let event = client.event_becomes(id, "delivered").await;
    assert_eq!(event["payload"], json!({"user": 42}));
    assert_eq!(event["dedup_id"], "signup-42");
    assert_eq!(event["occurred_at"], "2026-01-31T12:00:00.000Z");
    assert_eq!(event["source"], "shop");
    assert_eq!(event["received_at"], received_at);
    let delivery = &event["deliveries"][0];
    assert_eq!(event["deliveries"].as_array().map(Vec::len), Some(1), "{event}");
    assert_eq!(delivery["subscription"], subscription.id);
    assert_eq!(delivery["attempts"], 1);
    let attempt = &delivery["log"][0];
    assert_eq!(
        (&attempt["number"], &attempt["status_code"]),
        (&json!(1), &json!(200))
    );
    assert!(
        attempt["error"].is_null() && attempt["duration_ms"].is_u64(),
        "{delivery}"
    );
    assert_eq!(receiver.count("/hook"), 1, "it was sent again");
    assert_eq!(receiver.count("/other"), 0, "it went to who subscribed later");

    let plain = client
        .post("/v1/events", &json!({"type": "plain", "payload": null}))
        .await
        .expect(202);
    let webhooks = receiver.wait_for("/other", 1).await;
    assert_eq!(
        webhooks[0].envelope().timestamp,
        plain["received_at"].as_str().expect("a time")
    );
}

/// Posts a payload as it is, and gives the event's id.
async fn post_payload(client: &Client, event_type: &str, payload: &str) -> String {
    let body = format!(r#"{{"type":"{event_type}","payload":{payload}}}"#);
    let accepted = client.post_text("/v1/events", body).await.expect(202);
    accepted["id"].as_str().expect("an id").to_owned()
}

async fn bodies_arrive_byte_for_byte(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;

    let mut bodies = github_bodies();
    bodies.extend(awkward_bodies());
    let mut posted = std::collections::HashMap::new();
    for (name, body) in &bodies {
        let id = post_payload(&client, &format!("github.{name}"), body).await;
        posted.insert(id, (name, body));
    }
    let webhooks = receiver.wait_for("/hook", bodies.len()).await;
    for webhook in &webhooks {
        webhook
            .verify(&subscription.secret)
            .expect("the signature is good");
        let envelope = webhook.envelope();
        let (name, body) = posted.remove(envelope.id).expect("it arrives once");
        assert_eq!(envelope.r#type, format!("github.{name}"));
        assert!(envelope.data.get() == *body, "{name} arrives as it was sent");
        // It is looked up as it was sent, too.
        let answer = client.get(&format!("/v1/events/{}", envelope.id)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(
            answer.text.contains(body.as_str()),
            "{name} is shown as it was sent"
        );
    }
    assert!(posted.is_empty(), "missing: {:?}", posted.keys());
}

/// The bodies of GitHub's webhooks, by name.
fn github_bodies() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/github");
    let entries = std::fs::read_dir(&directory).expect("the fixtures are there");
    let bodies: Vec<_> = entries
        .map(|entry| entry.expect("a directory can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().expect("a file has a name").to_string_lossy();
            let body = std::fs::read_to_string(&path).expect("a fixture is text");
            (name.into_owned(), body)
        })
        .collect();
    assert!(bodies.len() >= 36, "only {} bodies are there", bodies.len());
    bodies
}

/// Payloads that a parser in between would change.
fn awkward_bodies() -> Vec<(String, String)> {
    let large = format!("{:?}", "x".repeat(256 * 1024 - 2));
    let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
    let bodies = [
        ("white_space", "{ \"a\" :\r\n\t[ 1 , 2 ]\n}"),
        ("key_order", r#"{"z":1,"a":2,"m":{"y":1,"b":2}}"#),
        ("repeated_keys", r#"{"a":1,"a":2}"#),
        ("large_number", "123456789012345678901234567890"),
        (
            "number_formats",
            "[1.0,1.10,1e5,1E+5,-0,0.1e-7,1.7976931348623157e999]",
        ),
        ("escapes", r#""\u00e9\/\ud83d\ude00\b\f""#),
        ("unicode", "\"żółć 日本語 😀 \u{2028}\u{202e}\u{feff}\""),
        ("escaped_nul", r#"{"nul":"a\u0000b","\u0000":1}"#),
        ("lone_surrogate", r#""\ud800""#),
        ("nothing", "null"),
        ("truth", "true"),
        ("empty", "{}"),
        ("empty_text", "\"\""),
        ("deep", &deep),
        ("large", &large),
    ];
    bodies
        .map(|(name, body)| (name.to_owned(), body.to_owned()))
        .to_vec()
}

async fn an_event_can_be_looked_up_at_once(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    for number in 0..20 {
        let id = client
            .accepted(&json!({"type": "order.placed", "payload": number}))
            .await;
        let event = client.look_up(&id).await;
        assert_eq!(event["id"], id);
        assert_eq!(event["payload"], number);
    }
}

async fn a_plain_uuid_is_an_id(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let posted = client
        .post("/api/events", &json!({"type": "order.placed", "payload": {}}))
        .await
        .expect(202);
    let uuid = posted["id"].as_str().expect("an id");
    let event = client.look_up(uuid).await;
    assert!(
        event["id"].as_str().is_some_and(|id| id.starts_with("evt_")),
        "{event}"
    );
}
