//! The broker and the database hang at once: the look-up of a key and the confirmation share one deadline.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use harness::{Engine, PrivatePostgres, PrivateRabbit, Receiver, Turn, World, eventually};
use serde_json::json;

use crate::IN_TIME;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_and_rabbitmq_hang_at_once() {
    let _turn = Turn::wait().await;
    let (database, broker) = tokio::join!(PrivatePostgres::start(), PrivateRabbit::start());
    let world = World::with(Engine::Servers)
        .database_server(&database.url())
        .amqp_server(&broker.url())
        .start()
        .await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let before = client.event("order.placed").await;
    client.event_becomes(&before, "delivered").await;
    // Long enough that the key is not used any more without asking, and nobody has noticed that the database is away.
    tokio::time::sleep(Duration::from_secs(8)).await;

    database.pause();
    broker.pause();
    let posts = (0..20).map(async |number| {
        let mut event = json!({"type": "order.placed", "payload": number});
        if number % 2 == 0 {
            event["dedup_id"] = json!(format!("key-{}", number % 4));
        }
        let begun = Instant::now();
        (client.post("/v1/events", &event).await, begun.elapsed())
    });
    for (answer, took) in join_all(posts).await {
        answer.problem(503, "unavailable");
        assert!(took <= IN_TIME, "an answer took {took:?}: {answer:?}");
    }
    database.resume();
    broker.resume();

    let after = eventually("events are accepted again", Duration::from_secs(40), async || {
        let event = json!({"type": "order.closed", "payload": {}});
        let answer = client.post("/v1/events", &event).await;
        if answer.status == 202 {
            Ok(answer.json()["id"].as_str().expect("an id").to_owned())
        } else {
            Err(answer.text)
        }
    })
    .await;
    client.event_becomes(&after, "delivered").await;
    for node in world.nodes() {
        node.ready().await;
    }
}
