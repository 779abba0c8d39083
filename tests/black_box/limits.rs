//! The rate limit of an organization's tier.

use harness::{Engine, World, on_both_engines};
use serde_json::json;

on_both_engines!(
    the_limit_of_a_tier_holds,
    every_answer_shows_how_the_limit_stands,
    an_unlimited_tier_has_no_headers,
);

async fn the_limit_of_a_tier_holds(engine: Engine) {
    let world = World::start(engine).await;
    let (client, other) = (
        world.organization_of("free").await,
        world.organization_of("free").await,
    );
    let event = json!({"type": "order.placed", "payload": 1});
    let (mut accepted, mut refused) = (0, None);
    // A hundred a minute, and the bucket refills evenly meanwhile.
    for _ in 0..200 {
        let answer = client.post("/v1/events", &event).await;
        let number = |name: &str| answer.header(name).parse::<u64>().expect("a number");
        assert_eq!(number("ratelimit-limit"), 100);
        assert!(number("ratelimit-remaining") < 100);
        assert!(number("ratelimit-reset") <= 60);
        for name in ["limit", "remaining", "reset"] {
            let (plain, prefixed) = (format!("ratelimit-{name}"), format!("x-ratelimit-{name}"));
            assert!(
                !answer.header(&prefixed).is_empty(),
                "{prefixed} is missing beside {plain}"
            );
        }
        if answer.status == 202 {
            accepted += 1;
            continue;
        }
        answer.problem(429, "rate_limited");
        assert_eq!(number("ratelimit-remaining"), 0);
        refused = Some(answer);
        break;
    }
    assert!((100..130).contains(&accepted), "{accepted} were accepted");
    let refused = refused.expect("the limit is reached");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=2).contains(&wait), "{wait} s, where 0.6 s refill one");
    let compatible = client.post("/api/events", &event).await;
    let problem = compatible.problem(429, "rate_limited");
    assert!(
        problem["error"].is_string() && problem["message"].is_string(),
        "{problem}"
    );
    // What is refused for another reason costs nothing, and another organization has its own bucket.
    assert_eq!(client.post("/v1/events", &json!({})).await.status, 422);
    other.event("order.placed").await;
    client.get("/v1/inbox").await.expect(200);
}

async fn every_answer_shows_how_the_limit_stands(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization_of("free").await;
    let reads = client
        .post("/v1/keys", &json!({"name": "reads", "scopes": ["events:read"]}))
        .await
        .expect(201);
    let reads = client.with_key(reads["key"].as_str().expect("a key"));
    let event = json!({"type": "order.placed", "payload": 1, "dedup_id": "once"});
    let large = json!({"type": "order.placed", "payload": "x".repeat(400_000)});
    client.post("/api/events", &event).await.expect(202);
    let mut remaining = Vec::new();
    for (client, path, body, status) in [
        (&client, "/v1/events", &json!({}), 422),
        (&client, "/v1/events", &large, 413),
        (&client, "/api/events", &json!({}), 400),
        (&reads, "/v1/events", &event, 403),
        (&client, "/api/events", &event, 409),
    ] {
        let answer = client.post(path, body).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        assert_eq!(answer.header("ratelimit-limit"), "100", "{status}");
        assert_eq!(answer.header("x-ratelimit-limit"), "100", "{status}");
        assert!(!answer.header("ratelimit-reset").is_empty(), "{status}");
        remaining.push(
            answer
                .header("ratelimit-remaining")
                .parse::<u64>()
                .expect("a number"),
        );
    }
    // One was accepted, and the repeat of it takes one as well: what is refused takes nothing.
    assert!(remaining.iter().all(|left| *left >= 98), "{remaining:?}");
    let unknown = client
        .with_key("trg_live_nobody")
        .post("/v1/events", &event)
        .await;
    unknown.problem(401, "unauthorized");
    assert!(!unknown.headers.contains_key("ratelimit-limit"));
}

async fn an_unlimited_tier_has_no_headers(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let event = json!({"type": "order.placed", "payload": 1});
    let answer = client.post("/v1/events", &event).await;
    answer.expect(202);
    assert!(!answer.headers.contains_key("ratelimit-limit"));
}
