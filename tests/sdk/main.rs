//! CloudEvents as the official SDK for Python makes them, in three modes, are accepted and arrive.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use harness::{Client, Engine, Receiver, World, on_both_engines};
use http::Method;
use serde_json::{Value, json};

on_both_engines!(events_of_the_sdk_arrive);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What the SDK makes.
fn requests() -> Vec<Value> {
    let libraries = root().join("target/python");
    assert!(
        libraries.join("cloudevents").is_dir(),
        "the CloudEvents SDK for Python is missing in target/python; scripts/test.sh installs it, as does: python3 -m pip \
         install --require-hashes --no-deps --target target/python --requirement tests/sdk/requirements.txt"
    );
    let output = Command::new("python3")
        .arg(root().join("tests/sdk/requests.py"))
        .env("PYTHONPATH", libraries)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3 is needed (on Debian: apt-get install python3)");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("the requests are JSON")
}

/// Posts a request as the SDK made it, and gives the results of its events.
async fn post(client: &Client, request: &Value) -> Vec<Value> {
    let body = STANDARD
        .decode(request["body"].as_str().expect("a body"))
        .expect("base64");
    let mut post = client.request(Method::POST, "/v1/events").body(body);
    for (name, value) in request["headers"].as_object().expect("headers") {
        post = post.header(name, value.as_str().expect("a header's value"));
    }
    let answer = client.send(post).await;
    assert_eq!(answer.status, 202, "{request}: {}", answer.text);
    let answer = answer.json();
    match answer["results"].as_array() {
        Some(results) => results.clone(),
        None => vec![answer],
    }
}

async fn events_of_the_sdk_arrive(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let mut ids: HashMap<String, String> = HashMap::new();
    for request in requests() {
        let events = request["events"].as_array().expect("events");
        let results = post(&client, &request).await;
        assert_eq!(results.len(), events.len(), "{request}");
        for (event, result) in events.iter().zip(results) {
            assert_eq!(result["status"], "accepted", "{request}: {result}");
            let id = result["id"].as_str().expect("an id");
            let stored = client.look_up(id).await;
            for (member, expected) in event.as_object().expect("an event") {
                if expected.is_null() {
                    assert!(stored[member].is_string(), "{request}: {stored}");
                } else {
                    assert_eq!(stored[member], *expected, "{member} of {request}");
                }
            }
            // The same event in another mode is a repeat of it.
            let key = event["dedup_id"].as_str().expect("a key").to_owned();
            let first = ids.entry(key).or_insert_with(|| id.to_owned());
            assert_eq!(first, id, "{request}");
        }
    }
    assert_eq!(ids.len(), 13, "seven of version 2, and six of version 1");
    for webhook in receiver.wait_for("/hook", ids.len()).await {
        let body: Value = serde_json::from_slice(&webhook.body).expect("JSON");
        let stored = client.look_up(webhook.webhook_id()).await;
        assert_eq!(body["type"], "com.example.placed");
        assert_eq!(body["timestamp"], stored["occurred_at"]);
        assert_eq!(body["data"], stored["payload"]);
    }
    assert_eq!(
        client.get("/api/inbox").await.expect(200)["pagination"]["total"],
        json!(13)
    );
}
