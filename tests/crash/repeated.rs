//! One key posted many times at once, to two ingest nodes, while they and the workers are killed again and again: one event
//! a key, and every id that was answered is its.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use harness::{Client, Engine, Node, Receiver, Turn, World, eventually};
use http::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use tokio::task::JoinSet;

/// How long the killing goes on.
const KILLING: Duration = Duration::from_secs(12);
/// How long a process lives between two kills, once it is up.
const LIFE: Duration = Duration::from_millis(500);
/// New keys a second.
const RATE: u64 = 15;
/// Producers that post the same key to each node at once.
const PRODUCERS: usize = 3;
/// How often each of them has to see it accepted.
const TIMES: usize = 2;
/// How long a producer keeps trying.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long all may take to arrive once the killing is over: leases of the killed must run out first.
const SETTLING: Duration = Duration::from_secs(75);

/// Posts one key to one node until it has been accepted so many times; gives the ids that were answered.
async fn post(client: Client, key: u64) -> Vec<(u64, String)> {
    let begun = Instant::now();
    let mut ids = Vec::new();
    while ids.len() < TIMES {
        let request = client
            .request(Method::POST, "/v1/events")
            .timeout(Duration::from_secs(5))
            .header("idempotency-key", format!("key-{key}"))
            .json(&json!({"type": "order.placed", "payload": {"key": key}}));
        // The node may be gone, or go before it has answered: then nothing was promised.
        let answer = match request.send().await {
            Ok(answer) if answer.status() == 202 => answer.json::<Value>().await.ok(),
            Ok(answer) => {
                assert_eq!(answer.status(), 503, "a producer sees a 202 or a 503");
                None
            }
            Err(_) => None,
        };
        match answer {
            Some(answer) => ids.push((key, answer["id"].as_str().expect("an id").to_owned())),
            None => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        assert!(begun.elapsed() < PATIENCE, "key {key} is not accepted");
    }
    ids
}

/// Posts ever new keys, each by several producers to each node at once, until it is told to stop and all are accepted.
async fn produce(nodes: [Client; 2], stop: Arc<AtomicBool>) -> BTreeMap<u64, BTreeSet<String>> {
    let mut posting = JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(1_000 / RATE));
    let mut key = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        for node in &nodes {
            for _ in 0..PRODUCERS {
                posting.spawn(post(node.clone(), key));
            }
        }
        key += 1;
    }
    let mut answered = BTreeMap::<u64, BTreeSet<String>>::new();
    while let Some(ids) = posting.join_next().await {
        for (key, id) in ids.expect("posting does not panic") {
            answered.entry(key).or_default().insert(id);
        }
    }
    answered
}

async fn kill(together: &[&Arc<Node>]) {
    for node in together {
        node.kill().await;
    }
    for node in together {
        node.start_again().await;
    }
    // What lives is killed at another moment of its work each time.
    tokio::time::sleep(LIFE + Duration::from_millis(u64::from(rand::random::<u8>()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_one_event_whoever_dies() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Servers).await;
    let (ingest, worker) = (world.ingest(), world.worker());
    let (other_ingest, other_worker) =
        tokio::join!(world.start_another("ingest"), world.start_another("worker"));
    tokio::join!(other_ingest.ready(), other_worker.ready());
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;

    let stop = Arc::new(AtomicBool::new(false));
    let nodes = [client.clone(), client.posting_to(&other_ingest)];
    let producing = tokio::spawn(produce(nodes, Arc::clone(&stop)));
    let begun = Instant::now();
    let mut kills = 0;
    let victims: [&[&Arc<Node>]; 4] = [
        &[ingest, worker],
        &[&other_ingest],
        &[worker, &other_worker],
        &[&other_ingest, ingest, &other_worker],
    ];
    for together in victims.iter().cycle() {
        if begun.elapsed() > KILLING {
            break;
        }
        kill(together).await;
        kills += 1;
    }
    assert!(kills >= victims.len(), "only {kills} kills in {KILLING:?}");
    stop.store(true, Ordering::Relaxed);
    let answered = producing.await.expect("the producer does not panic");
    let ids: usize = answered.values().map(BTreeSet::len).sum();
    println!(
        "{} keys were answered with {ids} ids, over {kills} kills",
        answered.len()
    );
    assert!(
        ids > answered.len(),
        "no key became a duplicate: nothing was tried"
    );

    let arrived = all_arrive(&receiver, &answered).await;
    let (client, arrived) = (&client, &arrived);
    let each = answered
        .iter()
        .flat_map(|(key, ids)| ids.iter().map(move |id| (key, id)));
    stream::iter(each)
        .for_each_concurrent(16, async |(key, id)| {
            let event = client.event_becomes(id, "delivered").await;
            assert_eq!(
                arrived[key],
                BTreeSet::from([event["id"].as_str().unwrap_or_default().to_owned()]),
                "key {key} was answered with {id}: {event}"
            );
            assert_eq!(event["payload"]["key"], *key, "{event}");
            assert_eq!(event["deliveries"].as_array().map(Vec::len), Some(1), "{event}");
        })
        .await;
    rows_are_one(&world, answered.len()).await;
}

/// Waits until every key has arrived; gives the webhook ids of each.
async fn all_arrive(
    receiver: &Receiver,
    answered: &BTreeMap<u64, BTreeSet<String>>,
) -> BTreeMap<u64, BTreeSet<String>> {
    eventually("every key arrives", SETTLING, async || {
        let mut arrived = BTreeMap::<u64, BTreeSet<String>>::new();
        for webhook in receiver.received("/hook") {
            let data: Value =
                serde_json::from_str(webhook.envelope().data.get()).expect("the payload is JSON");
            let key = data["key"].as_u64().expect("a payload of this test");
            arrived
                .entry(key)
                .or_default()
                .insert(webhook.webhook_id().to_owned());
        }
        let missing = answered.keys().filter(|key| !arrived.contains_key(key)).count();
        if missing == 0 {
            return Ok(arrived);
        }
        // Looking is costly while thousands are here.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Err(format!("{missing} of {} are missing", answered.len()))
    })
    .await
}

/// Asks the database itself: an event and a delivery for each key, and no more.
async fn rows_are_one(world: &World, keys: usize) {
    let mut database = PgConnection::connect(&world.database_url())
        .await
        .expect("the database answers");
    let counts = sqlx::query("SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM deliveries)")
        .fetch_one(&mut database)
        .await
        .expect("the tables are there");
    let keys = i64::try_from(keys).expect("a small number");
    assert_eq!([counts.get::<i64, _>(0), counts.get::<i64, _>(1)], [keys, keys]);
}
