//! SIGTERM under load, as in a rolling restart: nothing is lost, nothing refused but by closing, and all is done in time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{Engine, Load, Node, Receiver, Reply, Turn, World, eventually, on_both_engines};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

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

/// What is under way when a process is asked to stop is finished: a request whose body is still coming, and an attempt
/// whose answer is.
async fn finish_what_is_under_way(engine: Engine) {
    let world = world(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    receiver.script("/hook", [Reply::Late(Duration::from_secs(2))]);
    let attempted = client.event("order.placed").await;
    receiver.wait_for("/hook", 1).await;

    let body = r#"{"type":"order.placed","payload":{"in":"two parts"}}"#;
    let (first, second) = body.split_at(20);
    let address = world.ingest().url().replace("http://", "");
    let mut idle = TcpStream::connect(&address).await.expect("the node listens");
    let mut stream = TcpStream::connect(&address).await.expect("the node listens");
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{first}",
        client.key,
        body.len()
    );
    stream
        .write_all(head.as_bytes())
        .await
        .expect("the head is taken");
    // The node has read the head once it answers somebody who came later.
    world.ingest().ready().await;
    for node in world.nodes() {
        node.signal(Signal::SIGTERM);
    }
    eventually(
        "nobody is let in any more",
        Duration::from_secs(5),
        async || match TcpStream::connect(&address).await {
            Err(_) => Ok(()),
            Ok(_) => Err("a connection is taken".into()),
        },
    )
    .await;
    stream
        .write_all(second.as_bytes())
        .await
        .expect("the rest is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer comes");
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let mut nothing = Vec::new();
    idle.read_to_end(&mut nothing)
        .await
        .expect("an idle connection is closed in order");
    assert!(nothing.is_empty());
    for node in world.nodes() {
        let status = node.ended().await;
        assert!(status.success(), "{} ended with {status}", node.program());
    }

    for node in world.nodes() {
        node.start_again().await;
    }
    world.api().ready().await;
    let delivery = client
        .delivery_becomes(&attempted, &subscription.id, "delivered")
        .await;
    assert_eq!(
        delivery["attempts"], 1,
        "the attempt under way was finished: {delivery}"
    );
    let webhooks = receiver.wait_for("/hook", 2).await;
    assert_eq!(webhooks[1].envelope().data.get(), r#"{"in":"two parts"}"#);
    assert_eq!(receiver.count("/hook"), 2);
}

on_both_engines!(finish_what_is_under_way);

/// What waits in a worker that is told to stop, and its lanes that have one owner, are another's long before its slowest attempt ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_goes_on_while_the_last_attempts_end() {
    let _turn = Turn::wait().await;
    let world = World::with(Engine::Servers)
        .set("TRIGGERS_SHUTDOWN_SECONDS", 60)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let in_order = client
        .subscribe(&json!({
            "url": receiver.url("/in-order"),
            "event_types": ["order.*"],
            "ordering": "fifo",
        }))
        .await;
    let first = client.event("order.placed").await;
    client.delivery_becomes(&first, &in_order.id, "delivered").await;
    receiver.script("/hook", [Reply::Hang, Reply::Hang]);
    let subscription = client
        .subscribe(&json!({
            "url": receiver.url("/hook"),
            "event_types": ["user.*"],
            "max_in_flight": 2,
            "timeout_ms": 30_000,
        }))
        .await;
    let mut waiting = Vec::new();
    for _ in 0..8 {
        waiting.push(client.event("user.created").await);
    }
    receiver.wait_for("/hook", 2).await;
    for id in &waiting {
        client.delivery_becomes(id, &subscription.id, "in_flight").await;
    }
    let other = world.start_another("worker").await;
    other.ready().await;
    world.worker().signal(Signal::SIGTERM);
    let next = client.event("order.placed").await;
    for (path, count) in [("/hook", 8), ("/in-order", 2)] {
        receiver
            .wait_for_within(path, count, Duration::from_secs(28))
            .await;
    }
    assert!(
        world.worker().is_running(),
        "those that hang are not over: nothing of this had to wait for them"
    );
    assert_eq!(receiver.ids("/in-order"), [first, next]);
}
