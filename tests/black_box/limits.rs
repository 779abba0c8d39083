//! The rate limit of an organization's tier.

use std::time::Duration;

use harness::{Client, Engine, Link, Node, Proxy, Spec, World, eventually, on_both_engines};
use http::Method;
use serde_json::json;

on_both_engines!(
    the_limit_of_a_tier_holds,
    every_answer_shows_how_the_limit_stands,
    an_unlimited_tier_has_no_headers,
    usage_is_what_was_answered,
    addresses_without_a_key_are_limited,
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

async fn usage_is_what_was_answered(engine: Engine) {
    let world = World::start(engine).await;
    let (client, other) = (world.organization_of("free").await, world.organization().await);
    let event = |key: &str| json!({"type": "order.placed", "payload": 1, "dedup_id": key});
    let mut accepted = 0;
    for path in ["/v1/events", "/api/events"] {
        client.post(path, &event(path)).await.expect(202);
        // A repeat counts as well; what is malformed does not.
        let again = client.post(path, &event(path)).await;
        assert!([202, 409].contains(&again.status), "{}", again.text);
        assert!(client.post(path, &json!({})).await.status >= 400);
        accepted += 2;
    }
    let batch: Vec<_> = (0..120).map(|number| event(&number.to_string())).collect();
    let batch = client.post("/v1/events/batch", &json!(batch)).await.expect(202);
    let results = batch["results"].as_array().expect("results");
    let taken = results
        .iter()
        .filter(|result| result["status"] == "accepted")
        .count();
    assert!((96..120).contains(&taken), "{taken}");
    let (accepted, limited) = (accepted + taken, results.len() - taken);
    other.event("order.placed").await;
    for (client, accepted, limited) in [(&client, accepted, limited), (&other, 1, 0)] {
        eventually("usage is written down", Duration::from_secs(20), async || {
            let usage = client.get("/v1/usage").await.expect(200);
            let hours = usage["hours"].as_array().expect("hours");
            let sum = |name: &str| {
                hours
                    .iter()
                    .map(|hour| hour[name].as_u64().expect("a number"))
                    .sum::<u64>()
            };
            assert_eq!(usage["accepted"], sum("accepted"));
            if usage["accepted"] == accepted && usage["rate_limited"] == limited {
                Ok(())
            } else {
                Err(format!("{accepted} and {limited} were answered: {usage}"))
            }
        })
        .await;
    }
}

/// An event whose confirmation comes too late for its producer is in the queue, and counts as what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_after_its_answer_is_counted() {
    let world = World::start(Engine::Servers).await;
    let mut url: reqwest::Url = world.queues().0.parse().expect("a URL");
    let host = (
        url.host_str().expect("a host").to_owned(),
        url.port().unwrap_or(5672),
    );
    let mut brokers = tokio::net::lookup_host(host).await.expect("the broker is known");
    let proxy = Proxy::start(brokers.next().expect("an address")).await;
    let way = proxy.address();
    url.set_ip_host(way.ip()).expect("the URL has a host");
    url.set_port(Some(way.port())).expect("the URL may have a port");
    let mut settings = world.settings().to_vec();
    settings.retain(|(name, _)| name != "TRIGGERS_AMQP_URL");
    settings.push(("TRIGGERS_AMQP_URL".to_owned(), url.to_string()));
    let node = Node::start(Spec {
        program: "ingest",
        arguments: Vec::new(),
        settings,
    })
    .await;
    node.ready().await;
    let client = world.organization_of("free").await.posting_to(&node);
    client.event("order.placed").await;
    // The broker gets what is sent, and nobody hears of it.
    proxy.set(Link::HalfOpen);
    let late = client
        .post("/v1/events", &json!({"type": "order.placed", "payload": 2}))
        .await;
    let problem = late.problem(503, "unavailable");
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains("it may be accepted all the same"), "{detail}");
    eventually("it is stored", Duration::from_secs(20), async || {
        let stored = client.get("/v1/events").await.expect(200);
        match stored["data"].as_array().map(Vec::len) {
            Some(2) => Ok(()),
            _ => Err(stored.to_string()),
        }
    })
    .await;
    proxy.set(Link::Open);
    eventually("both are counted", Duration::from_secs(20), async || {
        let usage = client.get("/v1/usage").await.expect(200);
        if usage["accepted"] == 2 {
            Ok(())
        } else {
            Err(usage.to_string())
        }
    })
    .await;
}

async fn addresses_without_a_key_are_limited(engine: Engine) {
    let world = World::with(engine)
        .set("TRIGGERS_KEYLESS_PER_MINUTE", 20)
        .set("TRIGGERS_TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .await;
    let client = world.organization().await;
    let stranger = client.with_key(&format!("trg_live_{}", "0".repeat(38)));
    let event = json!({"type": "order.placed", "payload": 1});
    let from = async |client: &Client, method: Method, path: &str, address: &str| {
        let request = client.request(method, path).header("x-forwarded-for", address);
        client.send(request.json(&event)).await
    };
    // At both roles that take keys, with a key and the admin token.
    for (number, (method, path)) in [
        (Method::POST, "/v1/events"),
        (Method::POST, "/v1/events/batch"),
        (Method::POST, "/api/events"),
        (Method::GET, "/v1/inbox"),
        (Method::GET, "/api/inbox"),
        (Method::GET, "/v1/set-aside"),
    ]
    .into_iter()
    .enumerate()
    {
        let (ours, other) = (format!("192.0.2.{number}"), format!("198.51.100.{number}"));
        let mut refused = None;
        // It refills meanwhile, one in three seconds.
        for tried in 0..200 {
            let answer = from(&stranger, method.clone(), path, &ours).await;
            if answer.status == 429 {
                assert!(tried >= 20, "{path} {tried}");
                refused = Some(answer);
                break;
            }
            answer.problem(401, "unauthorized");
        }
        let refused = refused.unwrap_or_else(|| panic!("{path} is not limited"));
        let problem = refused.problem(429, "rate_limited");
        assert!(
            problem["detail"].as_str().expect("a text").contains("address"),
            "{problem}"
        );
        for (name, value) in [("limit", "20"), ("remaining", "0")] {
            assert_eq!(refused.header(&format!("ratelimit-{name}")), value);
            assert_eq!(refused.header(&format!("x-ratelimit-{name}")), value);
        }
        let reset: u64 = refused.header("ratelimit-reset").parse().expect("seconds");
        assert!((50..=60).contains(&reset), "{reset}");
        // Another address has its own, and whoever has a key is not concerned.
        from(&stranger, method.clone(), path, &other)
            .await
            .problem(401, "unauthorized");
        if path != "/v1/set-aside" {
            let valid = from(&client, method, path, &ours).await;
            assert!(
                [200, 202, 400, 422].contains(&valid.status),
                "{path} {}",
                valid.text
            );
        }
    }
}
