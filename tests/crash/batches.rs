//! Batches posted again and again until they are accepted, while whoever takes them in is killed: each event is stored once,
//! in the order of the batches.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use harness::{Client, Engine, Turn, World, eventually, on_both_engines};
use http::Method;
use serde_json::{Value, json};

on_both_engines!(batches_keep_their_order_whoever_dies);

/// How long the killing goes on.
const KILLING: Duration = Duration::from_secs(10);
/// How long a process lives between two kills, once it is up.
const LIFE: Duration = Duration::from_millis(300);
/// How long a producer keeps trying.
const PATIENCE: Duration = Duration::from_mins(1);
/// Events of a batch: several frames' worth.
const EVENTS: u64 = 50;
const BYTES: usize = 16_000;

/// Posts a batch until none of it is refused; gives how often something of it was not accepted, or not known to be.
async fn post(client: &Client, first: u64) -> usize {
    let pad = "x".repeat(BYTES);
    let events: Vec<Value> = (first..first + EVENTS)
        .map(|number| json!({"type": "a", "payload": [number, pad], "dedup_id": number.to_string()}))
        .collect();
    let (begun, mut failures) = (Instant::now(), 0);
    loop {
        let request = client
            .request(Method::POST, "/v1/events/batch")
            .timeout(Duration::from_secs(5))
            .json(&events);
        // The node may be gone, or go before it has answered.
        if let Ok(answer) = request.send().await {
            let status = answer.status().as_u16();
            assert!(matches!(status, 202 | 503), "a producer sees a 202 or a 503");
            if status == 202
                && let Ok(answer) = answer.json::<Value>().await
                && answer["refused"] == 0
            {
                return failures;
            }
        }
        failures += 1;
        assert!(begun.elapsed() < PATIENCE, "the batch of {first} is not accepted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The numbers of the events that wait in the inbox, in order of `seq`.
async fn stored(client: &Client) -> Vec<u64> {
    let (mut numbers, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client
            .get(&format!("/v1/inbox?limit=1000{cursor}"))
            .await
            .expect(200);
        let events = page["data"].as_array().expect("a list").iter();
        numbers.extend(events.map(|event| {
            let number = event["dedup_id"].as_str().expect("a key").parse::<u64>();
            number.expect("a number")
        }));
        let Some(next) = page["next_cursor"].as_str() else {
            return numbers;
        };
        cursor = format!("&cursor={next}");
    }
}

async fn batches_keep_their_order_whoever_dies(engine: Engine) {
    let _turn = Turn::wait().await;
    let world = World::start(engine).await;
    let client = world.organization().await;
    let stop = Arc::new(AtomicBool::new(false));
    let producing = tokio::spawn({
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        async move {
            let (mut next, mut failures) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                failures += post(&client, next).await;
                next += EVENTS;
            }
            (next, failures)
        }
    });
    // Embedded, the two are one process.
    let victims = [world.ingest(), world.worker()];
    let (begun, mut kills) = (Instant::now(), 0);
    while begun.elapsed() < KILLING {
        let victim = victims[kills % victims.len()];
        victim.kill().await;
        victim.start_again().await;
        kills += 1;
        // What lives is killed at another moment of its work each time.
        tokio::time::sleep(LIFE + Duration::from_millis(u64::from(rand::random::<u8>()))).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (posted, failures) = producing.await.expect("the producer does not panic");
    println!("{kills} kills, {posted} events, {failures} posts that were not accepted whole");
    assert!(kills >= 4 && failures >= 1, "{kills} kills, {failures} failures");
    let all: Vec<u64> = (0..posted).collect();
    eventually("all are stored", PATIENCE, async || {
        match stored(&client).await.len() {
            here if here >= all.len() => Ok(()),
            here => Err(format!("{here} of {} are", all.len())),
        }
    })
    .await;
    assert_eq!(
        stored(&client).await,
        all,
        "each once, in the order of the batches"
    );
}
