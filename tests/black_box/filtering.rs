//! Filters: which events a subscription gets, and what is said of those that it does not get.

use std::{process::Command, time::Duration};

use harness::{Client, Engine, Node, Receiver, World, eventually, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    only_what_matches_is_sent,
    what_does_not_match_says_why,
    a_filter_is_in_force_at_once,
    pulls_other_routes_and_cloud_events_are_filtered_too,
    tests_and_retries_ask_no_filter,
    an_erased_event_is_not_judged,
    a_hostile_filter_holds_up_nobody,
    an_organization_has_room_for_so_many_filters,
);

async fn posted(client: &Client, event_type: &str, payload: Value) -> String {
    client
        .accepted(&json!({"type": event_type, "payload": payload}))
        .await
}

/// Why a subscription has no delivery of an event, and the detail.
async fn why(client: &Client, event: &str, subscription: &str) -> (String, String) {
    let shown = client.look_up(event).await;
    let reasons = shown["not_matched"].as_array().cloned().unwrap_or_default();
    let reason = reasons.iter().find(|one| one["subscription"] == subscription);
    let reason = reason.unwrap_or_else(|| panic!("{subscription} has a delivery: {shown}"));
    let text = |name: &str| reason[name].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("detail"))
}

async fn only_what_matches_is_sent(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let filters = [
        ("/large", "payload.amount > 100"),
        ("/vip", "'vip' in payload.tags || payload.amount >= 1000"),
        (
            "/items",
            "payload.items.exists(item, item.sku.matches('^bk-[0-9]+$') && item.count > 1)",
        ),
        (
            "/shop",
            "type == 'order.placed' && source == 'shop' && occurred_at < timestamp('2026-02-01T00:00:00Z')",
        ),
    ];
    for (path, filter) in filters {
        let body = json!({"url": receiver.url(path), "event_types": ["order.*"], "filter": filter});
        client.subscribe(&body).await;
    }
    client
        .subscribe(&json!({"url": receiver.url("/all"), "event_types": ["order.*"]}))
        .await;
    let events = [
        json!({"type": "order.placed", "source": "shop", "occurred_at": "2026-01-31T23:59:59Z",
            "payload": {"amount": 120.5, "tags": [], "items": [{"sku": "bk-7", "count": 2}]}}),
        json!({"type": "order.placed", "source": "shop", "occurred_at": "2026-02-01T00:00:00Z",
            "payload": {"amount": 5, "tags": ["vip"], "items": [{"sku": "bk-7", "count": 1}]}}),
        json!({"type": "order.cancelled", "source": "shop", "payload": {"amount": 1000}}),
        json!({"type": "invoice.sent", "payload": {"amount": 1000}}),
    ];
    let mut ids = Vec::new();
    for event in &events {
        ids.push(client.accepted(event).await);
    }
    for id in &ids[..3] {
        client.event_becomes(id, "delivered").await;
    }
    // The last is of no type that anybody asked for.
    let shown = client.look_up(&ids[3]).await;
    assert_eq!(shown["status"], "pending", "it waits in the inbox: {shown}");
    let of = |indexes: &[usize]| {
        let mut chosen: Vec<String> = indexes.iter().map(|at| ids[*at].clone()).collect();
        chosen.sort();
        chosen
    };
    for (path, expected) in [
        ("/large", of(&[0, 2])),
        ("/vip", of(&[1, 2])),
        ("/items", of(&[0])),
        ("/shop", of(&[0])),
        ("/all", of(&[0, 1, 2])),
    ] {
        let mut got = receiver.ids(path);
        got.sort();
        assert_eq!(got, expected, "{path}");
    }
}

async fn what_does_not_match_says_why(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let subscribe = async |filter: &str| {
        let body = json!({"kind": "pull", "event_types": ["order.*"], "filter": filter});
        let made = client.post("/v1/subscriptions", &body).await.expect(201);
        assert_eq!(made["filter"], filter);
        made["id"].as_str().expect("an id").to_owned()
    };
    let small = subscribe("payload.amount > 100").await;
    let missing = subscribe("payload.customer.vip").await;
    let text = subscribe("payload.amount").await;
    let costly = subscribe("payload.list.all(a, payload.list.all(b, payload.list.all(c, a == b)))").await;
    let list: Vec<u32> = vec![7; 500];
    let event = posted(&client, "order.placed", json!({"amount": 7, "list": list})).await;
    assert_eq!(
        why(&client, &event, &small).await,
        ("filter".into(), String::new())
    );
    for (subscription, detail) in [
        (&missing, "there is no `customer`"),
        (&text, "it gives an int, not true or false"),
        (
            &costly,
            "it is too costly for this event: it takes more than 10000 steps",
        ),
    ] {
        let (reason, why) = why(&client, &event, subscription).await;
        assert_eq!((&*reason, &*why), ("filter_failed", detail));
    }
    // Nobody wants it: it waits in the inbox.
    let inbox = client.get("/v1/inbox").await.expect(200);
    assert_eq!(inbox["data"][0]["id"], event.as_str(), "{inbox}");
    // One of another type is not asked.
    let event = posted(&client, "invoice.sent", json!({})).await;
    assert_eq!(why(&client, &event, &missing).await.0, "event_type");
}

async fn a_filter_is_in_force_at_once(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let body = json!({"url": receiver.url("/hook"), "filter": "payload.round == -1"});
    let made = client.subscribe(&body).await;
    let path = format!("/v1/subscriptions/{}", made.id);
    for round in 0..6 {
        let event = async || posted(&client, "a.round", json!({"round": round})).await;
        // The worker has just read the organization's subscriptions, and judged by them.
        let before = event().await;
        assert_eq!(why(&client, &before, &made.id).await.0, "filter");
        let filter = format!("payload.round == {round}");
        let changed = client.patch(&path, &json!({"filter": filter})).await.expect(200);
        assert_eq!(changed["filter"], filter.as_str());
        let during = event().await;
        client.delivery_becomes(&during, &made.id, "delivered").await;
        // What was not sent says that the filter was another, now that it would match.
        assert_eq!(why(&client, &before, &made.id).await.0, "changed_later");
        client.patch(&path, &json!({"filter": "false"})).await.expect(200);
        let after = event().await;
        assert_eq!(why(&client, &after, &made.id).await.0, "filter");
        assert_eq!(receiver.count("/hook"), round + 1);
    }
    let changed = client.patch(&path, &json!({"filter": null})).await.expect(200);
    assert_eq!(changed["filter"], Value::Null);
    let id = client.event("anything").await;
    client.delivery_becomes(&id, &made.id, "delivered").await;
    assert_eq!(client.get(&path).await.expect(200)["filter"], Value::Null);
}

async fn pulls_other_routes_and_cloud_events_are_filtered_too(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let filter = "payload.n % 2 == 0 && (source == null || source == '/odd')";
    let body = json!({"kind": "pull", "event_types": ["n.*"], "filter": filter});
    let made = client.post("/v1/subscriptions", &body).await.expect(201);
    let id = made["id"].as_str().expect("an id");
    let mut expected = Vec::new();
    for n in 0..4 {
        let event = json!({"type": "n.posted", "payload": {"n": n}});
        let native = client.accepted(&event).await;
        let compatible = client.post("/api/events", &event).await.expect(202);
        let compatible = client.look_up(compatible["id"].as_str().expect("an id")).await;
        let cloud = json!({"specversion": "1.0", "id": n.to_string(), "source": "/odd", "type": "n.cloud", "data": {"n": n}});
        let request = client
            .request(http::Method::POST, "/v1/events")
            .header("content-type", "application/cloudevents+json")
            .body(cloud.to_string());
        let cloud = client.send(request).await.expect(202);
        let batch = client.post("/v1/events/batch", &json!([event])).await.expect(202);
        let ids = [
            native,
            compatible["id"].as_str().expect("an id").to_owned(),
            cloud["id"].as_str().expect("an id").to_owned(),
            batch["results"][0]["id"].as_str().expect("an id").to_owned(),
        ];
        for event in ids {
            client.look_up(&event).await;
            if n % 2 == 0 {
                expected.push(event);
            } else {
                assert_eq!(why(&client, &event, id).await.0, "filter");
            }
        }
    }
    let pulled = client
        .post(&format!("/v1/subscriptions/{id}/pull"), &json!({"max": 100}))
        .await
        .expect(200);
    let data = pulled["data"].as_array().expect("events");
    let mut got: Vec<&str> = data.iter().filter_map(|event| event["id"].as_str()).collect();
    got.sort_unstable();
    expected.sort();
    assert_eq!(got, expected);
}

async fn tests_and_retries_ask_no_filter(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let made = client
        .subscribe(&json!({"url": receiver.url("/hook"), "filter": "payload.n == 1"}))
        .await;
    let path = format!("/v1/subscriptions/{}", made.id);
    let id = posted(&client, "a", json!({"n": 1})).await;
    client.delivery_becomes(&id, &made.id, "delivered").await;
    client.patch(&path, &json!({"filter": "false"})).await.expect(200);
    let tested = client.post(&format!("{path}/test"), &json!({})).await.expect(200);
    assert_eq!(tested["status"], "delivered", "{tested}");
    let retry = format!("/v1/events/{id}/deliveries/{}/retry", made.id);
    client.post(&retry, &json!({})).await.expect(202);
    receiver.wait_for("/hook", 3).await;
    client.delivery_becomes(&id, &made.id, "delivered").await;
}

async fn an_erased_event_is_not_judged(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let body = json!({"kind": "pull", "filter": "payload == null"});
    let made = client.post("/v1/subscriptions", &body).await.expect(201);
    let id = posted(&client, "a", json!({"n": 1})).await;
    let subscription = made["id"].as_str().expect("an id");
    assert_eq!(why(&client, &id, subscription).await.0, "filter");
    assert_eq!(client.delete(&format!("/v1/events/{id}")).await.status, 204);
    let (reason, detail) = why(&client, &id, subscription).await;
    assert_eq!(reason, "filter_failed");
    assert!(detail.contains("erased"), "{detail}");
}

/// A filter of the most characters that a filter may have, another one for each number.
fn long(number: usize, within: &str) -> String {
    let before = format!("'{number}' == '' || {within}[");
    let part = "payload==payload";
    let room = 2_048 - before.len() - "] == []".len();
    let parts = vec![part; (room + 1) / (part.len() + 1)].join(",");
    let text = format!("{before}{parts}{}] == []", " ".repeat(room - parts.len()));
    assert_eq!(text.len(), 2_048);
    text
}

async fn make_pull(client: &Client, filter: &str) -> String {
    let body = json!({"kind": "pull", "filter": filter});
    let made = client.post("/v1/subscriptions", &body).await.expect(201);
    made["id"].as_str().expect("an id").to_owned()
}

/// How many filters intake has compiled.
async fn compiled(world: &World) -> usize {
    let metrics = world.get(world.worker(), "/metrics").await.text;
    let mut counts = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("triggers_filters_compiled_total "));
    let count = counts
        .next()
        .unwrap_or_else(|| panic!("it is not counted: {metrics}"));
    count.parse().expect("a count")
}

/// An organization whose filters and payloads cost as much as they may, and another one that posts meanwhile. The filters are
/// compiled once, not for each event: that costs far more than asking them.
async fn a_hostile_filter_holds_up_nobody(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let (hostile, other) = (world.organization().await, world.organization().await);
    // As many and as long as an organization may have, each with patterns.
    for number in 0..61 {
        let pattern = r"type.matches('^([a-z]{4})+$') && ";
        make_pull(&hostile, &long(number, pattern)).await;
    }
    let mut last = String::new();
    for filter in [
        "payload.all(a, payload.all(b, payload.all(c, payload.all(d, true))))",
        "payload.map(a, payload.map(b, payload)) == payload.map(a, payload.map(b, payload))",
        "payload.exists(a, string(payload[a]).matches('(a|aa)+$')) || payload == payload + payload",
    ] {
        last = make_pull(&hostile, filter).await;
    }
    other
        .subscribe(&json!({"url": receiver.url("/other"), "filter": "payload.of == 'order.placed'"}))
        .await;
    let flood = json!({"type": "x", "payload": vec![0; 60_000]});
    let flooding = async {
        let mut ids = Vec::new();
        for _ in 0..60 {
            ids.push(hostile.accepted(&flood).await);
        }
        ids
    };
    let posting = async {
        for _ in 0..60 {
            other.event("order.placed").await;
        }
        // Without limits one event of the others' would take longer than the universe has.
        receiver
            .wait_for_within("/other", 60, Duration::from_mins(1))
            .await;
    };
    let (flooded, ()) = tokio::join!(flooding, posting);
    // All of it was asked, again and again.
    for id in &flooded {
        hostile.look_up(id).await;
    }
    assert_eq!(compiled(&world).await, 65);
    for id in flooded.iter().take(2) {
        let (reason, detail) = why(&hostile, id, &last).await;
        assert_eq!(reason, "filter_failed");
        assert!(detail.contains("too costly"), "{detail}");
    }
}

async fn an_organization_has_room_for_so_many_filters(engine: Engine) {
    let world = World::start(engine).await;
    let (client, other) = (world.organization().await, world.organization().await);
    let create = async |filter: String| {
        let body = json!({"kind": "pull", "filter": filter});
        client.post("/v1/subscriptions", &body).await
    };
    let refused = |answer: &harness::Answer, rule: &str| {
        answer.problem(422, "invalid_request");
        assert_eq!(answer.pointers(), ["/filter"], "{}", answer.text);
        assert!(answer.text.contains(rule), "{}", answer.text);
    };
    let calls = |count: usize| vec!["type.matches('a')"; count].join(" || ");
    refused(&create(calls(9)).await, "must call `matches` at most 8 times");
    let mut last = String::new();
    for _ in 0..8 {
        last = make_pull(&client, &calls(8)).await;
    }
    refused(&create(calls(1)).await, "`matches` stands at most 64 times");
    let path = format!("/v1/subscriptions/{last}");
    client
        .patch(&path, &json!({"filter": calls(7)}))
        .await
        .expect(200);
    create(calls(1)).await.expect(201);
    let more = client.patch(&path, &json!({"filter": calls(8)})).await;
    refused(&more, "`matches` stands at most 64 times");
    assert_eq!(client.get(&path).await.expect(200)["filter"], calls(7));

    // What comes at once does not come to more than that either.
    let have: usize = 7 * calls(8).len() + calls(7).len() + calls(1).len();
    let room = (131_072 - have) / 2_048;
    for number in 0..room - 4 {
        create(long(number, "")).await.expect(201);
    }
    let together = (room..room + 16).map(|number| create(long(number, "")));
    let answers = futures_util::future::join_all(together).await;
    let (made, others): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), others.len()), (4, 12));
    for answer in &others {
        refused(answer, "at most 131072 characters together");
    }
    // Another organization's room is its own.
    make_pull(&other, &calls(8)).await;
}

/// Lets a process have so much more memory than it has, or as much as it likes.
fn limit_memory(node: &Node, more: Option<u64>) {
    let id = node.id().expect("the node runs");
    let limit = more.map_or("unlimited".to_owned(), |more| {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("the process is ours");
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let kilobytes: u64 = size
            .and_then(|size| size.trim().trim_end_matches(" kB").parse().ok())
            .expect("a process has a size");
        (kilobytes * 1024 + more).to_string()
    });
    let limited = Command::new("prlimit")
        .args(["--pid", &id.to_string(), &format!("--as={limit}:")])
        .status()
        .expect("prlimit is needed, to take memory from a process: install util-linux");
    assert!(limited.success(), "the limit of process {id} cannot be set");
}

/// There is no memory for the thread on which filters are read: saving one says so, and events wait for theirs, however long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_cannot_be_read_now_is_read_later() {
    const SCARCE: Option<u64> = Some(20 * 1024 * 1024);
    let world = World::start(Engine::Servers).await;
    let client = world.organization().await;
    let body = json!({"kind": "pull", "filter": "payload.n == 1"});
    limit_memory(world.api(), SCARCE);
    let refused = client.post("/v1/subscriptions", &body).await;
    refused.problem(503, "unavailable");
    assert_eq!(refused.header("retry-after"), "1");
    limit_memory(world.api(), None);
    let made = client.post("/v1/subscriptions", &body).await.expect(201);
    let subscription = made["id"].as_str().expect("an id");

    limit_memory(world.worker(), SCARCE);
    let event = posted(&client, "a", json!({"n": 1})).await;
    // More often than what fails by itself is tried before it is set aside.
    eventually("the event waits", Duration::from_mins(1), async || {
        let output = world.worker().output();
        match output.matches("events wait for their filters").count() {
            0..8 => Err(output),
            _ => Ok(()),
        }
    })
    .await;
    let aside = world.admin().get("/v1/set-aside").await.expect(200);
    assert_eq!(aside["data"], json!([]));
    limit_memory(world.worker(), None);
    client.delivery_becomes(&event, subscription, "pending").await;
    let event = posted(&client, "a", json!({"n": 2})).await;
    assert_eq!(why(&client, &event, subscription).await.0, "filter");
}
