//! Events that are pulled: leased, acknowledged, given back, waited for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{Answer, Client, Engine, Receiver, World, eventually, on_both_engines};
use serde_json::{Value, json};
use tokio::task::JoinSet;

on_both_engines!(
    what_is_pulled_is_leased_and_acknowledged,
    pullers_that_meet_share_without_overlap,
    a_lease_ends_and_the_event_is_pulled_again,
    a_pull_that_waits_gets_what_is_posted,
    many_wait_and_each_event_rouses_one,
    the_inbox_is_pulled_from,
    what_is_disabled_or_closed_meanwhile_ends_well,
    leases_outlive_the_process_that_gave_them,
    another_organizations_are_not_there,
);

const SOON: Duration = Duration::from_secs(20);

async fn subscribe(client: &Client, event_types: &[&str]) -> String {
    let body = json!({"kind": "pull", "event_types": event_types});
    let made = client.post("/v1/subscriptions", &body).await.expect(201);
    made["id"].as_str().expect("an id").to_owned()
}

async fn act(client: &Client, lane: &str, act: &str, body: &Value) -> Answer {
    client
        .post(&format!("/v1/subscriptions/{lane}/{act}"), body)
        .await
}

async fn pull(client: &Client, lane: &str, body: &Value) -> Vec<Value> {
    let answer = act(client, lane, "pull", body).await.expect(200);
    answer["data"].as_array().expect("events").clone()
}

fn ids(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .map(|event| event["id"].as_str().expect("an id").to_owned())
        .collect()
}

async fn acknowledge(client: &Client, lane: &str, ids: &[String]) {
    let done = act(client, lane, "ack", &json!({"event_ids": ids}))
        .await
        .expect(200);
    for result in done["results"].as_array().expect("results") {
        assert_eq!(result["status"], "acknowledged", "{done}");
    }
}

/// Posts so many events, one after the other.
async fn posted(client: &Client, count: usize) -> Vec<String> {
    let mut posted = Vec::with_capacity(count);
    for _ in 0..count {
        posted.push(client.event("order.placed").await);
    }
    posted
}

/// Waits until the last of them is stored.
async fn stored(client: &Client, ids: &[String]) {
    for id in ids {
        client.look_up(id).await;
    }
}

async fn what_is_pulled_is_leased_and_acknowledged(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let receiver = Receiver::start().await;
    let lane = subscribe(&client, &["order.*"]).await;
    let push = client.subscribe_url(&receiver.url("/hook")).await;
    let body = r#"{"type":"order.placed","payload":{"n": 1.50,  "of": "é"}}"#;
    let id = client.post_text("/v1/events", body).await.expect(202)["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    client.delivery_becomes(&id, &push.id, "delivered").await;
    let answer = act(&client, &lane, "pull", &json!({"lease_seconds": 600})).await;
    assert!(
        answer.text.contains(r#""payload":{"n": 1.50,  "of": "é"}"#),
        "{}",
        answer.text
    );
    let pulled = answer.expect(200)["data"][0].clone();
    assert_eq!(
        (&pulled["id"], &pulled["type"], &pulled["pulls"]),
        (&json!(id), &json!("order.placed"), &json!(1))
    );
    let delivery = client.delivery_becomes(&id, &lane, "in_flight").await;
    assert_eq!(delivery["lease_until"], pulled["lease_until"]);
    assert_eq!(client.look_up(&id).await["status"], "pending");
    assert_eq!(pull(&client, &lane, &json!({})).await, [Value::Null; 0]);
    acknowledge(&client, &lane, std::slice::from_ref(&id)).await;
    acknowledge(&client, &lane, std::slice::from_ref(&id)).await;
    assert_eq!(
        client.look_up(&id).await["status"],
        "delivered",
        "one was pushed, the other acknowledged"
    );
    let other = act(&client, &push.id, "ack", &json!({"event_ids": [id]})).await;
    other.problem(409, "conflict");
    act(&client, &push.id, "pull", &json!({}))
        .await
        .problem(409, "conflict");
}

async fn pullers_that_meet_share_without_overlap(engine: Engine) {
    const EVENTS: usize = 400;
    let world = World::start(engine).await;
    let client = world.organization().await;
    let lane = Arc::new(subscribe(&client, &["*"]).await);
    let mut pullers = JoinSet::new();
    for _ in 0..4 {
        let (client, lane) = (client.clone(), Arc::clone(&lane));
        pullers.spawn(async move {
            let mut mine: Vec<String> = Vec::new();
            let mut empty = 0;
            while empty < 2 {
                let body = json!({"max": 7, "lease_seconds": 600, "wait_ms": 1_500});
                let some = ids(&pull(&client, &lane, &body).await);
                empty = if some.is_empty() { empty + 1 } else { 0 };
                if !some.is_empty() {
                    acknowledge(&client, &lane, &some).await;
                }
                mine.extend(some);
            }
            mine
        });
    }
    let accepted: BTreeSet<String> = posted(&client, EVENTS).await.into_iter().collect();
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for id in pullers.join_all().await.concat() {
        *times.entry(id).or_default() += 1;
    }
    let rest = pull(&client, &lane, &json!({"max": 1_000, "wait_ms": 2_000})).await;
    for id in ids(&rest) {
        *times.entry(id).or_default() += 1;
    }
    assert_eq!(
        times.keys().cloned().collect::<BTreeSet<_>>(),
        accepted,
        "nothing is lost"
    );
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "while their leases lived: {twice:?}");
}

async fn a_lease_ends_and_the_event_is_pulled_again(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let lane = subscribe(&client, &["*"]).await;
    let id = client.event("order.placed").await;
    let first = pull(&client, &lane, &json!({"lease_seconds": 1, "wait_ms": 20_000})).await;
    assert_eq!(ids(&first), std::slice::from_ref(&id));
    client.delivery_becomes(&id, &lane, "pending").await;
    // Nobody says that a lease ends; who waits learns it all the same.
    let wait = json!({"lease_seconds": 1, "wait_ms": 20_000});
    for pulls in 2..4 {
        let again = pull(&client, &lane, &wait).await;
        assert_eq!(
            (ids(&again), &again[0]["pulls"]),
            (vec![id.clone()], &json!(pulls))
        );
    }
    client.delivery_becomes(&id, &lane, "pending").await;
    // The last was late, and may say all the same that it is done.
    acknowledge(&client, &lane, std::slice::from_ref(&id)).await;
    client.event_becomes(&id, "acknowledged").await;
    assert_eq!(pull(&client, &lane, &json!({})).await, [Value::Null; 0]);
}

async fn a_pull_that_waits_gets_what_is_posted(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let lane = subscribe(&client, &["*"]).await;
    let wait = json!({"wait_ms": 30_000, "max": 1});
    for _ in 0..5 {
        let (pulled, id) = tokio::join!(pull(&client, &lane, &wait), client.event("order.placed"));
        assert_eq!(ids(&pulled), [id]);
    }
    let begun = Instant::now();
    assert_eq!(
        pull(&client, &lane, &json!({"wait_ms": 300})).await,
        [Value::Null; 0]
    );
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

async fn many_wait_and_each_event_rouses_one(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let lane = Arc::new(subscribe(&client, &["*"]).await);
    let mut waiting = JoinSet::new();
    for _ in 0..12 {
        let (client, lane) = (client.clone(), Arc::clone(&lane));
        waiting.spawn(async move {
            let body = json!({"wait_ms": 30_000, "max": 1, "lease_seconds": 600});
            ids(&pull(&client, &lane, &body).await)
        });
    }
    metric_becomes(&world, "triggers_pulls_waiting 12").await;
    let mut accepted = posted(&client, 12).await;
    let mut pulled = waiting.join_all().await.concat();
    accepted.sort();
    pulled.sort();
    assert_eq!(pulled, accepted);
    metric_becomes(&world, "triggers_pulls_waiting 0").await;
    metric_becomes(&world, "triggers_events_pulled_total 12").await;
}

async fn metric_becomes(world: &World, line: &str) {
    eventually(line, SOON, async || {
        let metrics = world.get(world.api(), "/metrics").await.text;
        if metrics.lines().any(|other| other == line) {
            Ok(())
        } else {
            Err(metrics)
        }
    })
    .await;
}

async fn the_inbox_is_pulled_from(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let lists = client.get("/v1/subscriptions").await.expect(200);
    let inbox = lists["data"][0]["id"].as_str().expect("the inbox").to_owned();
    let posted = posted(&client, 3).await;
    stored(&client, &posted).await;
    let pulled = pull(&client, &inbox, &json!({"max": 2})).await;
    assert_eq!(ids(&pulled), posted[..2], "oldest first");
    acknowledge(&client, &inbox, &posted[..1]).await;
    let listed = client.get("/v1/inbox").await.expect(200);
    assert_eq!(
        ids(listed["data"].as_array().expect("a list")),
        posted[1..],
        "what is leased is undelivered still"
    );
    // Those who look at the inbox and those who pull from it do not have to know of each other.
    let path = format!("/v1/inbox/{}/ack", posted[1]);
    client.post(&path, &json!({})).await.expect(200);
    let late = act(&client, &inbox, "release", &json!({"event_ids": [posted[1]]}))
        .await
        .expect(200);
    assert_eq!(late["results"][0]["status"], "acknowledged");
    assert_eq!(ids(&pull(&client, &inbox, &json!({})).await), posted[2..]);
}

async fn what_is_disabled_or_closed_meanwhile_ends_well(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let lane = subscribe(&client, &["*"]).await;
    let posted = posted(&client, 4).await;
    stored(&client, &posted).await;
    assert_eq!(
        pull(&client, &lane, &json!({"lease_seconds": 600})).await.len(),
        4
    );
    act(&client, &lane, "disable", &json!({})).await.expect(200);
    act(&client, &lane, "pull", &json!({"wait_ms": 20_000}))
        .await
        .problem(409, "conflict");
    act(&client, &lane, "release", &json!({"event_ids": [posted[0]]}))
        .await
        .expect(200);
    client.delivery_becomes(&posted[0], &lane, "parked").await;
    acknowledge(&client, &lane, &posted[1..2]).await;
    // A pull that waits for what enabling brings cannot be: one after it finds it.
    act(&client, &lane, "enable", &json!({})).await.expect(200);
    assert_eq!(
        ids(&pull(&client, &lane, &json!({"lease_seconds": 600})).await),
        posted[..1]
    );
    let path = |act: &str| format!("/v1/events/{}/deliveries/{lane}/{act}", posted[2]);
    client.post(&path("cancel"), &json!({})).await.expect(200);
    let done = act(&client, &lane, "ack", &json!({"event_ids": [posted[2]]}))
        .await
        .expect(200);
    assert_eq!(done["results"][0]["status"], "cancelled");
    let wait = json!({"wait_ms": 30_000});
    let (pulled, opened) = tokio::join!(pull(&client, &lane, &wait), async {
        client.post(&path("retry"), &json!({})).await.expect(202)
    });
    // The pull that waits may have it before the answer is read from the store.
    assert!(
        opened["status"] == "pending" || opened["status"] == "in_flight",
        "{opened}"
    );
    assert_eq!(ids(&pulled), posted[2..3], "opened again");
    // A replay opens what is acknowledged.
    let replay = json!({"statuses": ["acknowledged"]});
    act(&client, &lane, "replay", &replay).await.expect(202);
    let again = pull(&client, &lane, &json!({"wait_ms": 30_000})).await;
    assert_eq!(
        (ids(&again), &again[0]["pulls"]),
        (posted[1..2].to_vec(), &json!(2))
    );
    client.delete(&format!("/v1/subscriptions/{lane}")).await;
    client.event_becomes(&posted[3], "cancelled").await;
    for what in ["pull", "ack"] {
        let body = if what == "ack" {
            json!({"event_ids": posted})
        } else {
            json!({})
        };
        act(&client, &lane, what, &body).await.problem(404, "not_found");
    }
}

async fn leases_outlive_the_process_that_gave_them(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let lane = subscribe(&client, &["*"]).await;
    let posted = posted(&client, 20).await;
    stored(&client, &posted).await;
    let long = ids(&pull(&client, &lane, &json!({"max": 5, "lease_seconds": 600})).await);
    let short = ids(&pull(&client, &lane, &json!({"max": 5, "lease_seconds": 2})).await);
    world.api().kill().await;
    world.api().start_again().await;
    world.api().ready().await;
    if engine == Engine::Servers {
        world.worker().kill().await;
    }
    let mut seen = BTreeSet::new();
    eventually("all but what is leased for long is pulled", SOON, async || {
        let some = ids(&pull(&client, &lane, &json!({"lease_seconds": 600, "wait_ms": 500})).await);
        for id in some {
            assert!(!long.contains(&id), "{id} is leased");
            assert!(seen.insert(id.clone()), "{id} came twice within its lease");
        }
        if seen.len() == 15 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    assert!(short.iter().all(|id| seen.contains(id)), "their lease has ended");
    acknowledge(&client, &lane, &long).await;
    acknowledge(&client, &lane, &seen.into_iter().collect::<Vec<_>>()).await;
}

async fn another_organizations_are_not_there(engine: Engine) {
    let world = World::start(engine).await;
    let (client, other) = (world.organization().await, world.organization().await);
    let (lane, own) = (subscribe(&client, &["*"]).await, subscribe(&other, &["*"]).await);
    let id = client.event("order.placed").await;
    assert_eq!(
        ids(&pull(&client, &lane, &json!({"wait_ms": 20_000})).await),
        std::slice::from_ref(&id)
    );
    let events = json!({"event_ids": [id]});
    for what in ["pull", "ack", "release"] {
        let body = if what == "pull" { json!({}) } else { events.clone() };
        act(&other, &lane, what, &body).await.problem(404, "not_found");
    }
    for what in ["ack", "release"] {
        let results = act(&other, &own, what, &events).await.expect(200);
        assert_eq!(results["results"][0], json!({"id": id, "status": "not_found"}));
    }
    let delivery = client.delivery_becomes(&id, &lane, "in_flight").await;
    assert_eq!(delivery["attempts"], 1, "{delivery}");
}
