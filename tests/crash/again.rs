//! A replay goes on where it was when its worker is killed in the middle of it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use harness::{Client, Engine, Receiver, Turn, World, eventually, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(a_replay_goes_on_after_a_kill);

/// Many times as many as a replay looks at in one step.
const EVENTS: usize = 6_000;
const BATCH: usize = 500;

/// How often each webhook has come.
fn arrivals(receiver: &Receiver) -> HashMap<String, usize> {
    let mut arrivals = HashMap::new();
    for id in receiver.ids("/hook") {
        *arrivals.entry(id).or_default() += 1;
    }
    arrivals
}

async fn everything_came(receiver: &Receiver, ids: &[String], times: usize) {
    eventually("every event arrives", Duration::from_mins(3), async || {
        let arrivals = arrivals(receiver);
        let missing = ids
            .iter()
            .filter(|id| arrivals.get(*id).is_none_or(|count| *count < times));
        match missing.count() {
            0 => Ok(()),
            missing => Err(format!("{missing} of {} did not come {times} times", ids.len())),
        }
    })
    .await;
}

/// Waits until no delivery is so. A page may be empty and name the next: there may be more than one looks at.
async fn none_is(client: &Client, status: &str) {
    let what = format!("no delivery is {status}");
    eventually(&what, Duration::from_mins(1), async || {
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/deliveries?status={status}&limit=1{cursor}");
            let page = client.get(&path).await.expect(200);
            if page["data"] != json!([]) {
                return Err(page["data"].to_string());
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(()),
            }
        }
    })
    .await;
}

async fn a_replay_goes_on_after_a_kill(engine: Engine) {
    let _turn = Turn::wait().await;
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "max_in_flight": 64}))
        .await;
    let mut ids: Vec<String> = Vec::with_capacity(EVENTS);
    for _ in 0..EVENTS / BATCH {
        let events: Vec<Value> = (0..BATCH)
            .map(|_| json!({"type": "order.placed", "payload": {}}))
            .collect();
        let answer = client.post("/v1/events/batch", &json!(events)).await.expect(202);
        let results = answer["results"].as_array().expect("results");
        ids.extend(
            results
                .iter()
                .map(|result| result["id"].as_str().expect("an id").to_owned()),
        );
    }
    everything_came(&receiver, &ids, 1).await;
    for open in ["in_flight", "pending"] {
        none_is(&client, open).await;
    }

    let replay = format!("/v1/subscriptions/{}/replay", subscription.id);
    let made = client
        .post(&replay, &json!({"statuses": ["delivered"]}))
        .await
        .expect(202);
    let shown = format!("{replay}s/{}", made["id"].as_str().expect("an id"));
    let begun = Instant::now();
    loop {
        let replay = client.get(&shown).await.expect(200);
        if replay["looked_at"].as_u64() > Some(0) {
            assert_eq!(
                replay["status"], "running",
                "too few events to kill a worker in between: {replay}"
            );
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "it does not begin: {replay}"
        );
    }
    world.worker().kill().await;
    if engine == Engine::Servers {
        // Nothing gets on without a worker, and what it had begun is whole or not at all.
        let replay = client.get(&shown).await.expect(200);
        assert_eq!(replay["status"], "running", "{replay}");
        assert_eq!(replay["looked_at"], replay["opened"], "{replay}");
    }
    world.worker().start_again().await;
    world.worker().ready().await;
    let done = eventually("the replay is done", Duration::from_mins(2), async || {
        let replay = client.get(&shown).await.expect(200);
        if replay["status"] == "done" {
            Ok(replay)
        } else {
            Err(replay.to_string())
        }
    })
    .await;
    // Each was opened, and none twice: one that had been delivered again meanwhile would have been so open again.
    assert_eq!(
        (&done["looked_at"], &done["opened"]),
        (&json!(EVENTS), &json!(EVENTS)),
        "{done}"
    );
    everything_came(&receiver, &ids, 2).await;
    for open in ["in_flight", "pending"] {
        none_is(&client, open).await;
    }
}
