//! SIGTERM under load, as in a rolling restart: nothing is lost, nothing refused but by closing, and all is done in time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{Engine, Load, Node, Receiver, Turn, World};

/// Events posted a second.
const RATE: u32 = 150;
/// The deadline that the processes are given, in seconds.
const DEADLINE: u64 = 10;

async fn stop_under_load(world: &World, nodes: &[&Arc<Node>], rounds: usize) {
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let load = Load::start(&client, RATE);
    load.accepts(100, Duration::from_secs(20)).await;
    for _ in 0..rounds {
        for node in nodes {
            let begun = Instant::now();
            let status = node.terminate().await;
            let took = begun.elapsed();
            assert!(status.success(), "{} ended with {status}", node.program());
            assert!(
                took < Duration::from_secs(DEADLINE),
                "{} took {took:?} to stop",
                node.program()
            );
            node.start_again_behind_balancer().await;
            load.accepts(30, Duration::from_secs(20)).await;
        }
    }
    let ledger = load.stop().await;
    ledger.allows(&[202]);
    ledger.settle(&client, &receiver, "/hook").await;
}

async fn world(engine: Engine) -> World {
    World::with(engine)
        .set("TRIGGERS_SHUTDOWN_SECONDS", DEADLINE)
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_serve_is_stopped() {
    let _turn = Turn::wait().await;
    let world = world(Engine::Embedded).await;
    stop_under_load(&world, &[world.ingest()], 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_is_stopped_in_turn() {
    let _turn = Turn::wait().await;
    let world = world(Engine::Servers).await;
    stop_under_load(&world, &[world.ingest(), world.worker(), world.api()], 2).await;
}
