//! PostgreSQL is killed, stopped and hangs: ingest goes on without it, the worker waits, and nothing is lost.

use std::time::Duration;

use harness::{Client, Engine, Load, PrivatePostgres, Receiver, Turn, World, eventually};
use serde_json::json;

use crate::IN_TIME;

/// Events posted a second.
const RATE: u32 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_is_killed_stopped_and_hangs() {
    let _turn = Turn::wait().await;
    let mut database = PrivatePostgres::start().await;
    let world = World::with(Engine::Servers)
        .database_server(&database.url())
        .start()
        .await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    for (path, event_type) in [("/hook", "load.posted"), ("/after", "after.fault")] {
        client
            .subscribe(&json!({"url": receiver.url(path), "event_types": [event_type]}))
            .await;
    }
    let load = Load::start(&client, RATE);
    load.accepts(100, Duration::from_secs(20)).await;

    database.kill();
    away(&client).await;
    // Ingest outlives the database: the key is known.
    load.accepts(100, Duration::from_secs(20)).await;
    database.start_again().await;
    arrives(&client, &receiver).await;

    database.stop_fast();
    away(&client).await;
    load.accepts(100, Duration::from_secs(20)).await;
    database.start_again().await;
    arrives(&client, &receiver).await;

    database.pause();
    away(&client).await;
    load.accepts(400, Duration::from_secs(20)).await;
    database.resume();
    arrives(&client, &receiver).await;

    let ledger = load.stop().await;
    ledger.allows(&[202, 503]);
    ledger.answers_within(IN_TIME);
    let refused = ledger
        .posts()
        .iter()
        .filter(|post| post.status == Some(503))
        .count();
    assert_eq!(refused, 0, "posts were refused for the database's sake");
    ledger.settle(&client, &receiver, "/hook").await;
    for node in world.nodes() {
        node.ready().await;
    }
}

/// What needs the database answers 503 in time.
async fn away(client: &Client) {
    eventually("the database is missed", Duration::from_secs(20), async || {
        let answer = tokio::time::timeout(Duration::from_secs(10), client.get("/v1/subscriptions")).await;
        let answer = answer.map_err(|_| "no answer within 10 s".to_owned())?;
        match answer.status {
            503 => {
                answer.problem(503, "unavailable");
                Ok(())
            }
            200 => Err("it answers".into()),
            _ => panic!("{answer:?}"),
        }
    })
    .await;
}

/// An event posted now arrives: everything goes on.
async fn arrives(client: &Client, receiver: &Receiver) {
    let id = client.event("after.fault").await;
    eventually("events arrive again", Duration::from_mins(1), async || {
        let webhooks = receiver.received("/after");
        if webhooks.iter().any(|webhook| webhook.webhook_id() == id) {
            Ok(())
        } else {
            Err(format!("{} have arrived", webhooks.len()))
        }
    })
    .await;
}
