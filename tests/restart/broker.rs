//! The broker is killed, hangs, and raises an alarm: posts are refused in time, and go on by themselves.

use std::time::Duration;

use harness::{Engine, Load, PrivateRabbit, Receiver, Turn, World, eventually};

use crate::IN_TIME;

/// Events posted a second.
const RATE: u32 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_is_killed_hangs_and_raises_an_alarm() {
    let _turn = Turn::wait().await;
    let mut broker = PrivateRabbit::start().await;
    let world = World::with(Engine::Servers)
        .amqp_server(&broker.url())
        .start()
        .await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let load = Load::start(&client, RATE);
    load.accepts(100, Duration::from_secs(20)).await;

    broker.kill();
    refuses(&world).await;
    broker.start_again().await;
    load.accepts(100, Duration::from_secs(40)).await;

    broker.pause();
    refuses(&world).await;
    // Long enough for heartbeats to be missed.
    tokio::time::sleep(Duration::from_secs(5)).await;
    broker.resume();
    load.accepts(100, Duration::from_secs(40)).await;

    broker.alarm(true).await;
    refuses(&world).await;
    // What is in the queue is delivered meanwhile: acknowledgements pass.
    load.has_arrived(&receiver, "/hook").await;
    broker.alarm(false).await;
    load.accepts(100, Duration::from_secs(40)).await;

    let ledger = load.stop().await;
    ledger.allows(&[202, 503]);
    ledger.answers_within(IN_TIME);
    ledger.settle(&client, &receiver, "/hook").await;
    for node in world.nodes() {
        node.ready().await;
    }
}

/// Waits until ingest says that it is not ready: the fault has come through.
async fn refuses(world: &World) {
    eventually("ingest is not ready", Duration::from_secs(20), async || {
        let ready = world.get(world.ingest(), "/health/ready").await;
        if ready.status == 503 {
            assert!(!ready.header("retry-after").is_empty());
            // It lives, and says so: it must not be killed for this.
            world.get(world.ingest(), "/health/live").await.expect(200);
            Ok(())
        } else {
            Err(ready.text)
        }
    })
    .await;
}
