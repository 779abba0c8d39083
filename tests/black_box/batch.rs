//! Many events in one post: a result for each, in their order, and stored in it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use harness::{Answer, Client, Engine, Received, Receiver, World, eventually, on_both_engines};
use http::Method;
use serde_json::{Value, json};

on_both_engines!(
    each_event_has_a_result,
    a_batch_is_stored_in_its_order,
    a_large_batch_arrives_in_its_order,
    a_key_is_one_event_wherever_it_is_posted,
    the_limit_takes_the_beginning,
    batches_that_are_none,
);

const PATH: &str = "/v1/events/batch";

async fn post_as(client: &Client, content_type: &str, body: impl Into<reqwest::Body>) -> Answer {
    let request = client
        .request(Method::POST, PATH)
        .header("content-type", content_type);
    client.send(request.body(body)).await
}

/// The ids of a batch that must be accepted whole.
async fn accepted(client: &Client, events: &[Value]) -> Vec<String> {
    let answer = client.post(PATH, &json!(events)).await.expect(202);
    assert_eq!(answer["accepted"], events.len(), "{answer}");
    ids(&answer)
}

fn ids(answer: &Value) -> Vec<String> {
    let results = answer["results"].as_array().expect("results").iter();
    results
        .map(|result| result["id"].as_str().expect("an id").to_owned())
        .collect()
}

fn first_arrivals(webhooks: &[Received]) -> Vec<String> {
    let mut first: Vec<String> = Vec::new();
    for webhook in webhooks {
        if !first.iter().any(|id| id == webhook.webhook_id()) {
            first.push(webhook.webhook_id().to_owned());
        }
    }
    first
}

async fn each_event_has_a_result(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let array = r#"[{"type":"a","payload": {"n":1.0,  "m":[1.00E+2]} }, {"type":"a b","payload":1}, 7,
                    {"type":"b","payload":2,"source":"x","occurred_at":"2026-01-31T12:00:00Z","dedup_id":"k"}]"#;
    let answer = client.post_text(PATH, array).await.expect(202);
    assert_eq!((&answer["accepted"], &answer["refused"]), (&json!(2), &json!(2)));
    let results = answer["results"].as_array().expect("results");
    let statuses: Vec<_> = results.iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, ["accepted", "refused", "refused", "accepted"]);
    assert_eq!(results[1]["problem"]["status"], 422);
    assert_eq!(results[1]["problem"]["errors"][0]["pointer"], "/type");
    assert_eq!(results[2]["problem"]["code"], "invalid_json");
    let event = client.look_up(results[3]["id"].as_str().expect("an id")).await;
    assert_eq!((&event["source"], &event["dedup_id"]), (&json!("x"), &json!("k")));
    assert_eq!(event["occurred_at"], "2026-01-31T12:00:00.000Z");
    assert_eq!(event["received_at"], results[3]["received_at"]);

    let lines = "{\"type\":\"c\",\"payload\":3}\r\n\n{\"type\":\n{\"type\":\"d\",\"payload\":4}";
    let answer = post_as(&client, "application/x-ndjson", lines).await.expect(202);
    let statuses: Vec<_> = (0..3).map(|place| &answer["results"][place]["status"]).collect();
    assert_eq!(statuses, ["accepted", "refused", "accepted"]);
    let webhooks = receiver.wait_for("/hook", 4).await;
    let bodies: Vec<_> = webhooks
        .iter()
        .map(|webhook| String::from_utf8_lossy(&webhook.body))
        .collect();
    let as_sent = r#""data":{"n":1.0,  "m":[1.00E+2]}}"#;
    assert!(bodies.iter().any(|body| body.ends_with(as_sent)), "{bodies:?}");
    assert_eq!(
        client.get("/api/inbox").await.expect(200)["pagination"]["total"],
        4
    );
}

async fn a_batch_is_stored_in_its_order(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let other = world.organization().await;
    // More than a batch of intake, and less than a frame: the order holds however many workers there are.
    if engine == Engine::Servers {
        world.start_another("worker").await.ready().await;
    }
    let mut expected = Vec::new();
    for round in 0..3 {
        let events: Vec<Value> = (0..600)
            .map(|number| json!({"type": "a", "payload": [round, number]}))
            .collect();
        let posting = accepted(&client, &events);
        let meanwhile = join_all((0..20).map(|_| other.event("b")));
        let (ids, _) = tokio::join!(posting, meanwhile);
        // The next one is posted once this one is stored: between posts there is no other order.
        for id in [&ids[0], &ids[599]] {
            client.look_up(id).await;
        }
        expected.extend(ids);
    }
    let mut stored = Vec::new();
    let mut path = "/v1/inbox?limit=1000".to_owned();
    loop {
        let page = client.get(&path).await.expect(200);
        let events = page["data"].as_array().expect("a list").iter();
        stored.extend(events.map(|event| event["id"].as_str().expect("an id").to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        path = format!("/v1/inbox?limit=1000&cursor={cursor}");
    }
    assert_eq!(stored, expected);
}

async fn a_large_batch_arrives_in_its_order(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client
        .subscribe(&json!({"url": receiver.url("/hook"), "ordering": "fifo"}))
        .await;
    // Some frames' worth.
    let events: Vec<Value> = (0..60)
        .map(|number| json!({"type": "a", "payload": [number, "x".repeat(20_000)]}))
        .collect();
    let ids = accepted(&client, &events).await;
    let webhooks = receiver
        .wait_for_within("/hook", 60, Duration::from_secs(30))
        .await;
    assert_eq!(first_arrivals(&webhooks), ids);
}

async fn a_key_is_one_event_wherever_it_is_posted(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    // Embedded, one process is all there is.
    let other = match engine {
        Engine::Servers => world.start_another("ingest").await,
        Engine::Embedded => Arc::clone(world.ingest()),
    };
    other.ready().await;
    let elsewhere = client.posting_to(&other);
    let event = |key: usize| json!({"type": "a", "payload": key, "dedup_id": format!("key-{key}")});
    let forwards: Vec<Value> = (0..50).chain(0..5).map(event).collect();
    let backwards: Vec<Value> = (0..50).rev().map(event).collect();
    let (one, two, three) = tokio::join!(
        accepted(&client, &forwards),
        accepted(&elsewhere, &backwards),
        accepted(&client, &backwards),
    );
    assert_eq!(
        one[50..],
        one[..5],
        "a repeat in the same batch has the first one's id"
    );
    let mut firsts = BTreeSet::new();
    for id in one.iter().chain(&two).chain(&three) {
        let stored = client.look_up(id).await;
        firsts.insert(stored["id"].as_str().expect("an id").to_owned());
    }
    assert_eq!(firsts.len(), 50, "a key became several events");
    let webhooks = receiver.wait_for("/hook", 50).await;
    let arrived: BTreeSet<_> = webhooks
        .iter()
        .map(|webhook| webhook.webhook_id().to_owned())
        .collect();
    assert_eq!(arrived, firsts);
    // Each was posted three times, and the first five four times.
    for (id, repeats) in [(&one[0], 3), (&one[49], 2)] {
        eventually("the repeats are counted", Duration::from_secs(10), async || {
            let event = client.look_up(id).await;
            let counted = event["repeats"] == repeats && event["differing_repeats"] == 0;
            counted.then_some(()).ok_or_else(|| event.to_string())
        })
        .await;
    }
}

async fn the_limit_takes_the_beginning(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization_of("free").await;
    let events = vec![json!({"type": "a", "payload": 1}); 150];
    let answer = client.post(PATH, &json!(events)).await;
    let body = answer.expect(202);
    // A hundred a minute, and the bucket refills while the batch is read.
    let accepted = body["accepted"].as_u64().expect("a number");
    assert!((100..110).contains(&accepted), "{accepted} were accepted");
    assert_eq!(answer.header("ratelimit-limit"), "100");
    let left: u64 = answer.header("ratelimit-remaining").parse().expect("a number");
    assert!(left <= 2, "{left}");
    let results = body["results"].as_array().expect("results");
    let (got_in, refused) = results.split_at(usize::try_from(accepted).expect("it fits"));
    assert!(got_in.iter().all(|result| result["status"] == "accepted"));
    assert!(refused.iter().all(|result| result["problem"]["status"] == 429));
    // Until there is room for one again, nothing of a batch gets in, and the answer says so.
    let again = client.post(PATH, &json!(events)).await;
    if again.status == 429 {
        again.problem(429, "rate_limited");
    } else {
        assert_eq!(again.expect(202)["accepted"], 1);
    }
}

async fn batches_that_are_none(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let good = r#"{"type":"a","payload":1}"#;
    for body in ["", "{}", "[", "[1,]", good, "[] []"] {
        let answer = client.post_text(PATH, body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        answer.problem(400, "invalid_json");
    }
    let many = format!("[{}]", vec![good; 1_001].join(","));
    client.post_text(PATH, many).await.problem(422, "invalid_request");
    client.post_text(PATH, "[]").await.problem(422, "invalid_request");
    for blank in ["", "\n\r\n \n"] {
        let answer = post_as(&client, "application/x-ndjson", blank).await;
        answer.problem(422, "invalid_request");
    }
    let huge = client.post_text(PATH, vec![b' '; 4 * 1024 * 1024 + 1]).await;
    huge.problem(413, "payload_too_large");
    for content_type in [
        "text/plain",
        "application/json; charset=utf-16",
        "application/cloudevents-batch+json",
        "application/xml",
    ] {
        let answer = post_as(&client, content_type, format!("[{good}]")).await;
        answer.problem(415, "unsupported_media_type");
    }
    for (name, value, status, code) in [
        ("content-encoding", "gzip", 415, "unsupported_media_type"),
        ("idempotency-key", "a", 422, "invalid_request"),
    ] {
        let request = client.request(Method::POST, PATH).header(name, value);
        let answer = client.send(request.json(&json!([]))).await;
        answer.problem(status, code);
    }
    let reads = json!({"name": "reads", "scopes": ["events:read"]});
    let reads = client.post("/v1/keys", &reads).await.expect(201);
    let reads = client.with_key(reads["key"].as_str().expect("a key"));
    reads
        .post_text(PATH, format!("[{good}]"))
        .await
        .problem(403, "forbidden");
    let nobody = client.with_key("trg_live_nobody");
    nobody
        .post_text(PATH, format!("[{good}]"))
        .await
        .problem(401, "unauthorized");
    // Nothing came of any of it.
    let id = client.event("order.placed").await;
    client.look_up(&id).await;
    assert_eq!(
        client.get("/api/inbox").await.expect(200)["pagination"]["total"],
        1
    );
}
