//! The limit of an organization while the database hangs: every node goes on with the share that it had.

use std::time::Duration;

use harness::{Engine, Pressure, PrivatePostgres, Turn, World};

/// The limit of the tier `pro`, a second.
const A_SECOND: f64 = 1_000.0 / 60.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_holds_while_the_database_hangs() {
    let _turn = Turn::wait().await;
    let database = PrivatePostgres::start().await;
    let world = World::with(Engine::Servers)
        .database_server(&database.url())
        .start()
        .await;
    let (one, other) = (world.ingest(), world.start_another("ingest").await);
    other.ready().await;
    let client = world.organization_of("pro").await;
    let pressure = Pressure::start(&client, &[(one, 120), (&other, 30)]);
    // A minute's worth, and until it is used up.
    while pressure.accepted().iter().sum::<u64>() < 1_000 {
        pressure.go_on(Duration::from_secs(1)).await;
    }
    pressure.go_on(Duration::from_secs(8)).await;

    database.pause();
    let before = pressure.accepted();
    let (accepted, took) = pressure.go_on(Duration::from_secs(30)).await;
    let after = pressure.accepted();
    let part = f64::from(u32::try_from(accepted).expect("few")) / (took.as_secs_f64() * A_SECOND);
    assert!((0.85..=1.15).contains(&part), "{accepted} in {took:?}");
    for (node, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(
            after - before > 20,
            "node {node} has a share: {before} to {after}"
        );
    }

    database.resume();
    pressure.go_on(Duration::from_secs(5)).await;
    let (accepted, took) = pressure.go_on(Duration::from_secs(20)).await;
    let part = f64::from(u32::try_from(accepted).expect("few")) / (took.as_secs_f64() * A_SECOND);
    assert!(
        (0.85..=1.15).contains(&part),
        "{accepted} in {took:?}, afterwards"
    );
    // Whatever was answered but 202 and 429 fails here.
    pressure.stop().await;
}
