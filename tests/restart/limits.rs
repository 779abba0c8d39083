//! The limit of an organization over several nodes: while traffic moves from one to another, and while the database hangs,
//! when every node goes on with the share that it had.

use std::time::{Duration, Instant};

use harness::{Engine, Pressure, Turn, World};

/// The limit of the tier `pro`, a second.
const A_SECOND: f64 = 1_000.0 / 60.0;

/// Nearly all comes to one node, and from the middle of the minute on to the other: the whole minute has what the limit says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_has_the_limit_though_traffic_moves() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Servers).await;
    let (one, other) = (world.ingest(), world.start_another("ingest").await);
    other.ready().await;
    let client = world.organization_of("pro").await;
    let half = Duration::from_secs(30);
    let skewed = Pressure::start(&client, &[(one, 90), (&other, 10)]);
    // A minute's worth, and until it is used up and nodes have agreed.
    while skewed.accepted().iter().sum::<u64>() < 1_000 {
        skewed.go_on(Duration::from_secs(1)).await;
    }
    skewed.go_on(Duration::from_secs(15)).await;

    let (begun, before) = (Instant::now(), skewed.accepted());
    skewed.go_on(half).await;
    let seen: Vec<u64> = before
        .iter()
        .zip(skewed.accepted())
        .map(|(before, after)| after - before)
        .collect();
    // Whatever is under way counts for the first half.
    let (accepted, limited) = skewed.stop().await;
    let first = accepted - before.iter().sum::<u64>();
    assert!(limited > 500, "more comes than may: {limited}");
    assert!(
        seen[0] > 4 * seen[1],
        "nearly all of it is the first one's: {seen:?}"
    );

    let turned = Pressure::start(&client, &[(one, 10), (&other, 90)]);
    turned.go_on(half).await;
    let took = begun.elapsed();
    let seen = turned.accepted();
    assert!(seen[1] > 2 * seen[0], "it has moved: {seen:?}");
    let second: u64 = seen.iter().sum();
    turned.stop().await;

    let minute = took.as_secs_f64() * A_SECOND;
    let part = f64::from(u32::try_from(first + second).expect("few")) / minute;
    assert!(
        (0.9..=1.1).contains(&part),
        "{first} and {second} in {took:?}: {part:.3} of the limit"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_holds_while_the_database_hangs() {
    let _turn = Turn::wait().await;
    let (database, world) = World::on_its_own_postgres().await;
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
