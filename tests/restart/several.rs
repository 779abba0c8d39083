//! Several queues: events are spread over them by organization, workers take from all of them, and nothing is stranded
//! when a worker dies or their number changes.

use std::{collections::HashMap, time::Duration};

use harness::{Client, Engine, Load, Receiver, Turn, World, eventually};
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::Value;

/// Of the organizations that a test makes, on average a third goes to each of three queues: that one gets none happens
/// once in ten million runs.
const ORGANIZATIONS: usize = 40;

async fn channel(world: &World) -> Channel {
    let (url, _) = world.queues();
    let connection = Connection::connect(&url, ConnectionProperties::default())
        .await
        .expect("the broker answers");
    connection.create_channel().await.expect("a channel opens")
}

/// The name of one of several queues, numbered from 1.
fn name(world: &World, number: usize) -> String {
    let (_, [first, _]) = world.queues();
    match number {
        1 => first,
        _ => format!("{first}.{number}"),
    }
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

async fn organizations(world: &World, receiver: &Receiver, count: usize) -> Vec<Client> {
    let mut clients = Vec::with_capacity(count);
    for number in 0..count {
        let client = world.organization().await;
        client.subscribe_url(&receiver.url(&format!("/{number}"))).await;
        clients.push(client);
    }
    clients
}

/// The lines that head the events of a frame.
fn heads(frame: &[u8]) -> Vec<Value> {
    let mut heads = Vec::new();
    let mut rest = frame;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let head: Value = serde_json::from_slice(&rest[..end]).expect("a line of JSON");
        let length = head["len"].as_u64().expect("a length");
        rest = &rest[end + 2 + usize::try_from(length).expect("a length that fits")..];
        heads.push(head);
    }
    heads
}

/// Takes everything out of a queue and gives it back; tells whose events were in it, in their order.
async fn look(channel: &Channel, queue: &str) -> HashMap<String, Vec<String>> {
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    let mut last = None;
    while let Some(got) = channel
        .basic_get(queue.into(), BasicGetOptions::default())
        .await
        .expect("the queue is there")
    {
        for head in heads(&got.delivery.data) {
            let text = |field: &str| head[field].as_str().expect("a text").to_owned();
            found.entry(text("org")).or_default().push(text("id"));
        }
        last = Some(got.delivery.acker.clone());
    }
    if let Some(last) = last {
        let all = BasicNackOptions {
            multiple: true,
            requeue: true,
        };
        last.nack(all).await.expect("frames can be given back");
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_spread_by_organization_and_all_are_delivered() {
    let _turn = Turn::wait().await;
    let world = World::with(Engine::Servers)
        .set("TRIGGERS_QUEUES", 3)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let clients = organizations(&world, &receiver, ORGANIZATIONS).await;
    assert!(world.worker().terminate().await.success());
    // By two nodes, which know nothing of each other.
    let other = world.start_another("ingest").await;
    other.ready().await;
    let mut posted: Vec<Vec<String>> = vec![Vec::new(); clients.len()];
    for round in 0..4 {
        let ids = futures_util::future::join_all(clients.iter().map(async |client| match round % 2 {
            0 => client.event("order.placed").await,
            _ => client.posting_to(&other).event("order.placed").await,
        }))
        .await;
        for (posted, id) in posted.iter_mut().zip(ids) {
            posted.push(id);
        }
    }

    let channel = channel(&world).await;
    let mut homes: HashMap<String, usize> = HashMap::new();
    for number in 1..=3 {
        let inside = look(&channel, &name(&world, number)).await;
        assert!(!inside.is_empty(), "nothing is in queue {number}");
        for (organization, ids) in inside {
            let before = homes.insert(organization.clone(), number);
            assert_eq!(before, None, "{organization} is in two queues");
            assert!(posted.contains(&ids), "{organization}: {ids:?}");
        }
    }
    assert_eq!(homes.len(), clients.len());

    world.worker().start_again().await;
    for (number, (client, ids)) in clients.iter().zip(&posted).enumerate() {
        receiver
            .wait_for_within(&format!("/{number}"), 4, Duration::from_secs(30))
            .await;
        for id in ids {
            client.event_becomes(id, "delivered").await;
        }
    }
    for number in 1..=3 {
        let queue = name(&world, number);
        eventually(
            "the queue is empty",
            Duration::from_secs(20),
            async || match waiting(&channel, &queue).await {
                0 => Ok(()),
                left => Err(format!("{left} frames wait")),
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_die_and_nothing_is_stranded_in_any_queue() {
    let _turn = Turn::wait().await;
    let world = World::with(Engine::Servers)
        .set("TRIGGERS_QUEUES", 3)
        .start()
        .await;
    let other = world.start_another("worker").await;
    let receiver = Receiver::start().await;
    let clients = organizations(&world, &receiver, 8).await;
    let loads: Vec<_> = clients.iter().map(|client| Load::start(client, 15)).collect();
    for round in 0..2 {
        for load in &loads {
            load.accepts(5, Duration::from_secs(30)).await;
        }
        let victim = if round % 2 == 0 { &other } else { world.worker() };
        victim.kill().await;
        victim.start_again().await;
    }
    for (number, (load, client)) in loads.into_iter().zip(&clients).enumerate() {
        let ledger = load.stop().await;
        ledger.allows(&[202, 503]);
        ledger.settle(client, &receiver, &format!("/{number}")).await;
    }
}

/// Frames that come back too often are taken in one by one, of whichever queue they are; what cannot be read is set aside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_frames_of_every_queue_are_taken_in() {
    let _turn = Turn::wait().await;
    let world = World::with(Engine::Servers)
        .set("TRIGGERS_QUEUES", 3)
        .set("TRIGGERS_QUEUE_DELIVERY_LIMIT", 1)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let clients = organizations(&world, &receiver, ORGANIZATIONS).await;
    assert!(world.worker().terminate().await.success());
    for client in &clients {
        client.event("order.placed").await;
    }
    let channel = channel(&world).await;
    let (_, [_, dead]) = world.queues();
    for number in 1..=3 {
        let queue = name(&world, number);
        let nonsense = format!("nonsense {number}");
        channel
            .basic_publish(
                "".into(),
                queue.clone().into(),
                lapin::options::BasicPublishOptions::default(),
                nonsense.as_bytes(),
                lapin::BasicProperties::default().with_delivery_mode(2),
            )
            .await
            .expect("a frame is published");
        // Whoever takes and gives back uses up the limit.
        eventually("the queue is empty", Duration::from_secs(30), async || {
            let got = channel
                .basic_get(queue.clone().into(), BasicGetOptions::default())
                .await
                .expect("the queue is there");
            match got {
                Some(got) => {
                    let back = BasicNackOptions {
                        requeue: true,
                        ..BasicNackOptions::default()
                    };
                    got.nack(back).await.expect("a frame can be given back");
                    Err("a frame was in it".to_owned())
                }
                None => Ok(()),
            }
        })
        .await;
    }
    eventually("all of them are dead", Duration::from_secs(30), async || {
        match waiting(&channel, &dead).await {
            // One a post (each waits for the one before), and what cannot be read.
            count if count as usize == clients.len() + 3 => Ok(()),
            count => Err(format!("{count} frames are in it")),
        }
    })
    .await;
    world.worker().start_again().await;
    for number in 0..clients.len() {
        receiver
            .wait_for_within(&format!("/{number}"), 1, Duration::from_secs(30))
            .await;
    }
    eventually(
        "what cannot be read is set aside",
        Duration::from_secs(20),
        async || {
            let aside = world.admin().get("/v1/set-aside").await.expect(200);
            let items = aside["data"].as_array().expect("a page");
            let unreadable = items.iter().filter(|item| item["reason"] == "unreadable").count();
            if (items.len(), unreadable) == (3, 3) {
                Ok(())
            } else {
                Err(aside.to_string())
            }
        },
    )
    .await;
}

/// From three queues to one: what lies in the others is taken in by workers that are set to one as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fewer_queues_strand_nothing() {
    let _turn = Turn::wait().await;
    let world = World::with(Engine::Servers)
        .set("TRIGGERS_QUEUES", 3)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let clients = organizations(&world, &receiver, ORGANIZATIONS).await;
    assert!(world.worker().terminate().await.success());
    for client in &clients {
        client.event("order.placed").await;
    }
    let channel = channel(&world).await;
    for number in 1..=3 {
        let inside = waiting(&channel, &name(&world, number)).await;
        assert!(inside > 0, "nothing is in queue {number}");
    }
    world.ingest().set("TRIGGERS_QUEUES", "1");
    assert!(world.ingest().terminate().await.success());
    world.ingest().start_again().await;
    world.ingest().ready().await;
    for client in &clients {
        client.event("order.placed").await;
    }
    let frames = waiting(&channel, &name(&world, 1)).await as usize;
    assert!(frames > clients.len(), "all go to the first queue now: {frames}");

    world.worker().set("TRIGGERS_QUEUES", "1");
    world.worker().start_again().await;
    for number in 0..clients.len() {
        receiver
            .wait_for_within(&format!("/{number}"), 2, Duration::from_secs(30))
            .await;
    }
    // The gauge counts what lies in all of them.
    eventually("no frame is left", Duration::from_secs(30), async || {
        let text = world.get(world.worker(), "/metrics").await.text;
        if text.lines().any(|line| line == "triggers_queue_frames 0") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}
