//! Name servers that do not answer: whoever's names hang, nobody else waits.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use harness::{
    Client, Engine, HANGING_HOSTS, Receiver, Subscription, Told, World, eventually, on_both_engines,
};
use serde_json::json;

on_both_engines!(names_that_hang_hold_up_nobody_else);

/// More than a process has threads for what blocks.
const HANGING: usize = 600;
/// How long the attempts at those go on.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Subscribes by a name, which has to be looked up, with one attempt an event.
async fn by_name(client: &Client, receiver: &Receiver, event_type: &str) -> Subscription {
    let url = receiver.url("/hook").replace("127.0.0.1", "localhost");
    let body = json!({
        "url": url, "event_types": [event_type], "retry_schedule_seconds": [],
        "filter": format!("payload.of == '{event_type}'"),
    });
    client.subscribe(&body).await
}

async fn attempts_in_flight(world: &World) -> usize {
    let metrics = world.get(world.worker(), "/metrics").await.text;
    let mut lines = metrics.lines();
    let shown = lines.find_map(|line| line.strip_prefix("triggers_attempts_in_flight "));
    shown.and_then(|shown| shown.parse().ok()).unwrap_or_default()
}

async fn names_that_hang_hold_up_nobody_else(engine: Engine) {
    let told = Told::compile();
    // `localhost` may be ::1 as well.
    let mut world = World::with(engine).set("TRIGGERS_ALLOW_PRIVATE_TARGETS", "127.0.0.0/8,::1/128");
    for (name, value) in told.settings() {
        world = world.set(name, value);
    }
    let world = world.start().await;
    let (before, meanwhile) = (Receiver::start().await, Receiver::start().await);
    let (ours, theirs) = (world.organization().await, world.organization().await);
    let mut healthy = Vec::new();
    for client in [&ours, &theirs] {
        by_name(client, &before, "before").await;
        let id = client.event("before").await;
        client.event_becomes(&id, "delivered").await;
        // Where nothing was sent to yet, a connection is made, for which the name is looked up.
        healthy.push(by_name(client, &meanwhile, "meanwhile").await);
    }
    let hanging: Vec<Subscription> = stream::iter(0..HANGING)
        .map(|number| {
            let body = json!({
                "url": format!("https://{number}.{HANGING_HOSTS}/hook"), "event_types": ["hang"],
                "retry_schedule_seconds": [600], "timeout_ms": u64::try_from(TIMEOUT.as_millis()).expect("it fits"),
            });
            let client = ours.clone();
            async move { client.subscribe(&body).await }
        })
        .buffer_unordered(100)
        .collect()
        .await;

    let hung = ours.event("hang").await;
    eventually(
        "all of them are sent to",
        Duration::from_secs(20),
        async || match attempts_in_flight(&world).await {
            HANGING.. => Ok(()),
            fewer => Err(format!("{fewer} are")),
        },
    )
    .await;
    for (client, subscription) in [&ours, &theirs].into_iter().zip(&healthy) {
        let id = client.event("meanwhile").await;
        client.delivery_becomes(&id, &subscription.id, "delivered").await;
    }
    // What is read on a thread is read, and what is made is sent to.
    let new = by_name(&theirs, &meanwhile, "new").await;
    let id = theirs.event("new").await;
    theirs.delivery_becomes(&id, &new.id, "delivered").await;

    for subscription in [&hanging[0], &hanging[HANGING - 1]] {
        let path = format!("/v1/events/{hung}/deliveries/{}", subscription.id);
        let delivery = eventually("its time is over", TIMEOUT * 3, async || {
            let delivery = ours.get(&path).await.expect(200);
            if delivery["status"] == "retrying" {
                Ok(delivery)
            } else {
                Err(delivery.to_string())
            }
        })
        .await;
        let attempt = &delivery["log"][0];
        assert_eq!(attempt["error"], "timeout", "{delivery}");
        let detail = attempt["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("name did not resolve"), "{delivery}");
    }
    // Nor does a process that stops wait for them.
    for node in world.nodes() {
        let status = node.terminate().await;
        assert!(status.success(), "{} ended with {status}", node.program());
    }
}
