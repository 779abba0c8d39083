//! The queue is deleted, fills up, and gives up frames: a returned or nacked frame is never a 202, and none is lost.

use std::time::Duration;

use harness::{Engine, Load, Receiver, Turn, World, eventually};
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use serde_json::json;

async fn channel(world: &World) -> (Channel, [String; 2]) {
    let (url, queues) = world.queues();
    let connection = Connection::connect(&url, ConnectionProperties::default())
        .await
        .expect("the broker answers");
    let channel = connection.create_channel().await.expect("a channel opens");
    (channel, queues)
}

/// How many frames wait in a queue.
async fn waiting(channel: &Channel, queue: &str) -> u32 {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let state = channel
        .queue_declare(queue.into(), passive, FieldTable::default())
        .await
        .expect("the queue is there");
    state.message_count()
}

/// What is in a queue when it is deleted is gone, whoever deletes it. So that the ledger can be held all the same, it is
/// deleted when it is empty, while ingest hangs with requests under way: those are returned to it, and must be refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_is_deleted_under_load() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Servers).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let (channel, [queue, _]) = channel(&world).await;
    let load = Load::start(&client, 100);
    // The worker works, and waits for nobody: an ingest that hangs while it looks after the schema would hold it up.
    load.accepts(50, Duration::from_secs(30)).await;
    load.has_arrived(&receiver, "/hook").await;
    for _ in 0..4 {
        load.accepts(50, Duration::from_secs(30)).await;
        world.ingest().pause();
        eventually(
            "the queue is empty",
            Duration::from_secs(20),
            async || match waiting(&channel, &queue).await {
                0 => Ok(()),
                waiting => Err(format!("{waiting} frames wait")),
            },
        )
        .await;
        load.has_arrived(&receiver, "/hook").await;
        channel
            .queue_delete(queue.clone().into(), QueueDeleteOptions::default())
            .await
            .expect("the queue is deleted");
        world.ingest().resume();
    }
    load.accepts(50, Duration::from_secs(30)).await;
    let ledger = load.stop().await;
    ledger.allows(&[202, 503]);
    ledger.settle(&client, &receiver, "/hook").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_drains() {
    let _turn = Turn::wait().await;
    let world = World::with(Engine::Servers)
        .set("TRIGGERS_QUEUE_MAX_BYTES", 1 << 20)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    assert!(world.worker().terminate().await.success());

    let event =
        |number: usize| json!({"type": "big", "payload": {"number": number, "fill": "x".repeat(64 * 1024)}});
    let mut accepted = Vec::new();
    let refused = eventually("the queue is full", Duration::from_secs(30), async || {
        let answer = client.post("/v1/events", &event(accepted.len())).await;
        if answer.status == 202 {
            accepted.push(answer.json()["id"].as_str().expect("an id").to_owned());
            return Err(format!("{} are accepted", accepted.len()));
        }
        Ok(answer)
    })
    .await;
    refused.problem(503, "unavailable");
    // 16 of them are a mebibyte; the broker lets some more pass before it counts them.
    assert!(
        (10..200).contains(&accepted.len()),
        "{} were accepted",
        accepted.len()
    );

    world.worker().start_again().await;
    let webhooks = receiver
        .wait_for_within("/hook", accepted.len(), Duration::from_secs(30))
        .await;
    for id in &accepted {
        assert!(
            webhooks.iter().any(|webhook| webhook.webhook_id() == id),
            "{id} is lost"
        );
    }
    eventually("events are accepted again", Duration::from_secs(20), async || {
        let answer = client.post("/v1/events", &event(0)).await;
        match answer.status {
            202 => Ok(()),
            _ => Err(answer.text),
        }
    })
    .await;
    let set_aside = world.admin().get("/v1/set-aside").await.expect(200);
    assert_eq!(set_aside["data"], json!([]));
}

/// Whoever takes frames and gives them back uses up the delivery limit. Past it they go to the dead queue, and are taken
/// in from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_returned_too_often_are_taken_in_all_the_same() {
    let _turn = Turn::wait().await;
    let world = World::with(Engine::Servers)
        .set("TRIGGERS_QUEUE_DELIVERY_LIMIT", 1)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    assert!(world.worker().terminate().await.success());
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(client.event("order.placed").await);
    }

    let (channel, [queue, dead]) = channel(&world).await;
    eventually(
        "the dead queue has all of them",
        Duration::from_secs(30),
        async || {
            let taken = channel
                .basic_get(queue.clone().into(), BasicGetOptions::default())
                .await
                .expect("the queue is there");
            if let Some(taken) = taken {
                let back = BasicNackOptions {
                    requeue: true,
                    ..BasicNackOptions::default()
                };
                taken.nack(back).await.expect("a frame can be given back");
            }
            match waiting(&channel, &dead).await {
                5 => Ok(()),
                waiting => Err(format!("{waiting} frames are in it")),
            }
        },
    )
    .await;

    world.worker().start_again().await;
    receiver
        .wait_for_within("/hook", 5, Duration::from_secs(30))
        .await;
    for id in &ids {
        client.event_becomes(id, "delivered").await;
    }
    eventually(
        "the dead queue is empty",
        Duration::from_secs(10),
        async || match waiting(&channel, &dead).await {
            0 => Ok(()),
            waiting => Err(format!("{waiting} frames are in it")),
        },
    )
    .await;
    assert_eq!(receiver.count("/hook"), 5);
    let set_aside = world.admin().get("/v1/set-aside").await.expect(200);
    assert_eq!(set_aside["data"], json!([]));
}
