//! The rate limit of an organization's tier.

use harness::{Engine, World, on_both_engines};
use serde_json::json;

on_both_engines!(the_limit_of_a_tier_holds, an_unlimited_tier_has_no_headers);

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

async fn an_unlimited_tier_has_no_headers(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let event = json!({"type": "order.placed", "payload": 1});
    let answer = client.post("/v1/events", &event).await;
    answer.expect(202);
    assert!(!answer.headers.contains_key("ratelimit-limit"));
}
