//! SIGKILL at any moment, again and again: what was answered with 202 is delivered, and each delivery row is one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{Client, Engine, Ledger, Load, Node, Receiver, Turn, World};
use sqlx::{Connection, PgConnection, Row};

/// Events posted a second.
const RATE: u32 = 150;
/// How long the killing goes on.
const KILLING: Duration = Duration::from_secs(7);
/// How long a process lives between two kills, once it is up.
const LIFE: Duration = Duration::from_millis(700);

/// Kills these, in turns, and starts them again, while events are posted; then holds the ledger against what arrived.
async fn kill_under_load(world: &World, victims: &[&[&Arc<Node>]]) {
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let load = Load::start(&client, RATE);
    load.accepts(100, Duration::from_secs(20)).await;
    let begun = Instant::now();
    let mut kills = 0;
    for together in victims.iter().cycle() {
        if begun.elapsed() > KILLING {
            break;
        }
        for node in *together {
            node.kill().await;
        }
        for node in *together {
            node.start_again().await;
        }
        kills += 1;
        // What lives is killed at another moment of its work each time.
        tokio::time::sleep(LIFE + Duration::from_millis(u64::from(rand::random::<u8>()))).await;
    }
    assert!(kills >= 3, "only {kills} kills in {:?}", begun.elapsed());
    load.accepts(50, Duration::from_secs(20)).await;
    let ledger = load.stop().await;
    ledger.allows(&[202, 503]);
    ledger.settle(&client, &receiver, "/hook").await;
    if world.engine == Engine::Servers {
        rows_are_one(world, &ledger, &client).await;
    }
}

/// Asks the database itself: as many deliveries as events, all of them closed, and every queue empty.
async fn rows_are_one(world: &World, ledger: &Ledger, client: &Client) {
    let mut database = PgConnection::connect(&world.database_url())
        .await
        .expect("the database answers");
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM events), count(*), count(DISTINCT event_id) FROM deliveries",
    )
    .fetch_one(&mut database)
    .await
    .expect("the tables are there");
    let counts: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
    assert_eq!(counts[0], counts[1], "events and deliveries: {counts:?}");
    assert_eq!(counts[1], counts[2], "deliveries and their events: {counts:?}");
    let accepted = ledger
        .posts()
        .iter()
        .filter(|post| post.status == Some(202))
        .count();
    assert!(
        counts[0] >= i64::try_from(accepted).expect("a small number") / 2,
        "{counts:?}"
    );
    let nothing = world.admin().get("/v1/set-aside").await.expect(200);
    assert_eq!(nothing["data"].as_array().map(Vec::len), Some(0), "{nothing}");
    client.get("/v1/organization").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_serve_is_killed() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Embedded).await;
    kill_under_load(&world, &[&[world.ingest()]]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_killed() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Servers).await;
    let (ingest, worker, api) = (world.ingest(), world.worker(), world.api());
    kill_under_load(
        &world,
        &[&[ingest, worker], &[api, worker], &[ingest, worker, api]],
    )
    .await;
}
