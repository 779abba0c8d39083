//! The Zapier Triggers API as its clients know it: every row of its table.

use std::time::Duration;

use harness::{ADMIN_TOKEN, Client, Engine, Receiver, Reply, World, eventually, on_both_engines};
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

on_both_engines!(
    keys_are_generated_shown_and_rotated,
    a_webhook_is_configured_and_called,
    events_are_accepted_and_refused,
    the_inbox_shows_every_event,
    an_event_is_acknowledged,
);

fn uuid(value: &Value) -> Uuid {
    let text = value.as_str().unwrap_or_default();
    Uuid::parse_str(text).unwrap_or_else(|_| panic!("not a plain UUID: {value}"))
}

async fn keys_are_generated_shown_and_rotated(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let body = json!({"organization_name": "a shop", "tier": "pro", "plan": "ignored"});
    let generate = |token: &str| {
        let request = client.anonymous(Method::POST, "/api/keys/generate");
        client.send(request.bearer_auth(token).json(&body))
    };
    generate("wrong").await.problem(401, "unauthorized");
    let generated = generate(ADMIN_TOKEN).await.expect(201);
    let organization = uuid(&generated["organization_id"]);
    assert_eq!(generated["organization_name"], "a shop");
    assert_eq!(generated["tier"], "pro");
    assert_eq!(generated["rate_limit_per_minute"], 1000);
    assert!(generated["created_at"].is_string() && generated["warning"].is_string());
    let key = generated["api_key"].as_str().expect("a key").to_owned();

    let by_header = client
        .anonymous(Method::GET, "/api/keys")
        .header("x-api-key", &key);
    let shown = client.send(by_header).await;
    assert!(!shown.text.contains(&key), "the key is shown again");
    let shown = shown.expect(200);
    assert_eq!(uuid(&shown["organization_id"]), organization);
    assert_eq!(
        (&shown["tier"], &shown["rate_limit_per_minute"]),
        (&json!("pro"), &json!(1000))
    );
    assert!(
        shown["webhook_url"].is_null() && shown.get("webhook_url").is_some(),
        "{shown}"
    );

    let old = client.with_key(&key);
    let rotated = old.post_text("/api/keys/rotate", "").await.expect(200);
    let new = client.with_key(rotated["api_key"].as_str().expect("a key"));
    assert_eq!(
        uuid(&new.get("/api/keys").await.expect(200)["organization_id"]),
        organization
    );
    old.get("/api/keys").await.problem(401, "unauthorized");
    eventually(
        "the old key ends where events are posted",
        Duration::from_secs(6),
        async || match old
            .post("/api/events", &json!({"type": "a", "payload": 1}))
            .await
            .status
        {
            401 => Ok(()),
            status => Err(status.to_string()),
        },
    )
    .await;
}

async fn a_webhook_is_configured_and_called(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    // What is sent before a webhook is configured waits in the inbox.
    let early = client.event("early").await;
    client.look_up(&early).await;

    let configure = async |path: &str| {
        let body = json!({"webhook_url": receiver.url(path)});
        client.post("/api/webhook/config", &body).await.expect(200)
    };
    let first = configure("/first").await;
    assert_eq!(first["success"], true);
    assert_eq!(first["webhook_url"], receiver.url("/first"));
    assert!(first["updated_at"].is_string());
    let secret = first["secret"]
        .as_str()
        .expect("the secret is shown when it is first set")
        .to_owned();
    let posted = client
        .post(
            "/api/events",
            &json!({"type": "order.placed", "payload": {"n": 1}}),
        )
        .await
        .expect(202);
    let webhooks = receiver.wait_for("/first", 1).await;
    webhooks[0].verify(&secret).expect("the signature is good");
    let id = uuid(&posted["id"]);
    let sent = webhooks[0].header("x-event-id");
    assert!(
        sent == id.to_string(),
        "x-event-id is {sent:?}, the event's id {id}"
    );
    assert_eq!(webhooks[0].header("x-event-type"), "order.placed");
    assert_eq!(webhooks[0].envelope().data.get(), r#"{"n":1}"#);

    let second = configure("/second").await;
    assert!(second.get("secret").is_none_or(Value::is_null), "{second}");
    client.event("order.placed").await;
    let webhooks = receiver.wait_for("/second", 1).await;
    webhooks[0].verify(&secret).expect("the secret stays");
    assert_eq!(receiver.count("/first"), 1);
    assert_eq!(
        client.get("/api/keys").await.expect(200)["webhook_url"],
        receiver.url("/second")
    );
    assert_eq!(client.look_up(&early).await["status"], "pending");
    let bad = client
        .post("/api/webhook/config", &json!({"webhook_url": "ftp://x/"}))
        .await;
    bad.problem(400, "invalid_request");
}

async fn events_are_accepted_and_refused(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let event = json!({"type": "order.placed", "payload": {"n": 1}, "dedup_id": "one", "extra": 1});
    let accepted = client.post("/api/events", &event).await.expect(202);
    let id = uuid(&accepted["id"]);
    assert_eq!(accepted["event_id"], accepted["id"]);
    assert_eq!(
        (&accepted["type"], &accepted["status"]),
        (&json!("order.placed"), &json!("accepted"))
    );
    assert!(accepted["created_at"].is_string());

    let duplicate = client.post("/api/events", &event).await;
    let problem = duplicate.problem(409, "duplicate");
    assert_eq!((uuid(&problem["id"]), uuid(&problem["event_id"])), (id, id));

    let large = json!({"type": "a", "payload": "x".repeat(256 * 1024)});
    let refused = [
        (client.post("/api/events", &large).await, 413, "payload_too_large"),
        (
            client.post("/api/events", &json!({"payload": 1})).await,
            400,
            "invalid_request",
        ),
        (
            client.post("/api/events", &json!({"type": "a"})).await,
            400,
            "invalid_request",
        ),
        (
            client
                .post("/api/events", &json!({"type": 1, "payload": 1}))
                .await,
            400,
            "invalid_request",
        ),
        (client.post_text("/api/events", "{").await, 400, "invalid_json"),
        (
            client.with_key("x").post("/api/events", &event).await,
            401,
            "unauthorized",
        ),
    ];
    for (answer, status, code) in &refused {
        let problem = answer.problem(*status, code);
        assert!(
            problem["error"].is_string() && problem["message"].is_string(),
            "{problem}"
        );
    }
}

async fn page(client: &Client, query: &str) -> Value {
    client.get(&format!("/api/inbox{query}")).await.expect(200)
}

fn types(page: &Value) -> Vec<&str> {
    let events = page["events"].as_array().expect("events");
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap_or_default())
        .collect()
}

async fn the_inbox_shows_every_event(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/bad", Reply::Status(500));
    let hooks = [
        ("/good", "good", json!([600])),
        ("/bad", "failing", json!([600])),
        ("/bad", "dead", json!([])),
    ];
    for (path, event_type, schedule) in hooks {
        client
            .subscribe(&json!({
                "url": receiver.url(path),
                "event_types": [event_type],
                "retry_schedule_seconds": schedule,
            }))
            .await;
    }
    // In this order; each is where it belongs before the next is posted.
    for (event_type, status) in [
        ("waiting", "pending"),
        ("good", "delivered"),
        ("failing", "failed"),
        ("dead", "dead_letter"),
    ] {
        let event = json!({"type": event_type, "payload": {"of": event_type}, "dedup_id": event_type});
        let id = client.post("/api/events", &event).await.expect(202)["id"].clone();
        eventually(
            &format!("{event_type} is {status}"),
            Duration::from_secs(15),
            async || {
                let page = page(&client, "?limit=1").await;
                let newest = page["events"][0].clone();
                if newest["id"] == id && newest["status"] == status {
                    return Ok(());
                }
                Err(page.to_string())
            },
        )
        .await;
    }
    let all = page(&client, "").await;
    assert_eq!(
        types(&all),
        ["dead", "failing", "good", "waiting"],
        "newest first"
    );
    assert_eq!(
        all["pagination"],
        json!({"total": 4, "limit": 50, "offset": 0, "has_more": false})
    );
    assert!(all["next_cursor"].is_null());
    let failing = &all["events"][1];
    uuid(&failing["id"]);
    assert_eq!(failing["event_type"], "failing");
    assert_eq!(failing["dedup_id"], "failing");
    assert_eq!(failing["payload"], json!({"of": "failing"}));
    assert_eq!(
        (&failing["status"], &failing["delivery_status"]),
        (&json!("failed"), &json!("failed"))
    );
    assert_eq!(failing["attempts"], 1);
    assert!(
        failing["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("500")),
        "{failing}"
    );
    assert!(failing["created_at"].is_string() && failing["updated_at"].is_string());
    assert!(all["events"][3]["last_error"].is_null());
    pages_and_filters(&client).await;
}

/// The same four events, by status and in parts.
async fn pages_and_filters(client: &Client) {
    let all = page(client, "").await;
    for (status, wanted) in [
        ("pending", "waiting"),
        ("failed", "failing"),
        ("delivered", "good"),
        ("dead_letter", "dead"),
    ] {
        let found = page(client, &format!("?status={status}")).await;
        assert_eq!(types(&found), [wanted], "{status}");
        assert_eq!(found["pagination"]["total"], 1);
    }
    let second = page(client, "?limit=3&offset=2").await;
    assert_eq!(types(&second), ["good", "waiting"]);
    assert_eq!(
        second["pagination"],
        json!({"total": 4, "limit": 3, "offset": 2, "has_more": false})
    );
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let part = page(client, &format!("?limit=1{cursor}")).await;
        seen.extend(types(&part).iter().map(|kind| (*kind).to_owned()));
        match part["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, types(&all));
    for query in ["?status=open", "?limit=0", "?offset=-1", "?cursor=nonsense"] {
        client
            .get(&format!("/api/inbox{query}"))
            .await
            .problem(400, "invalid_request");
    }
}

async fn an_event_is_acknowledged(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let event = json!({"type": "order.placed", "payload": {}});
    let posted = client.post("/api/events", &event).await.expect(202);
    let id = posted["id"].as_str().expect("an id");
    let acknowledged = client.post_text(&format!("/api/ack/{id}"), "").await.expect(200);
    assert_eq!(
        (&acknowledged["id"], &acknowledged["status"]),
        (&json!(id), &json!("delivered"))
    );
    assert!(acknowledged["acknowledged_at"].is_string());
    assert_eq!(acknowledged["success"], true);
    assert_eq!(types(&page(&client, "?status=delivered").await), ["order.placed"]);
    assert_eq!(types(&page(&client, "?status=pending").await), [""; 0]);
    for missing in [Uuid::new_v4().to_string(), "nonsense".into()] {
        let answer = client.post_text(&format!("/api/ack/{missing}"), "").await;
        let problem = answer.problem(404, "not_found");
        assert!(
            problem["error"].is_string() && problem["message"].is_string(),
            "{problem}"
        );
    }
}
