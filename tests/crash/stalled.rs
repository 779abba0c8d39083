//! A worker that hangs past its lease, and wakes: others took what it held, and what they did stands.

use std::time::Duration;

use harness::{Engine, Load, Receiver, Reply, Turn, World, eventually};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_hangs_past_its_lease_and_wakes() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Servers).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    for (path, event_type) in [("/hook", "load.posted"), ("/slow", "slow")] {
        client
            .subscribe(&json!({"url": receiver.url(path), "event_types": [event_type]}))
            .await;
    }
    // An attempt is under way in the only worker when it hangs.
    receiver.script("/slow", [Reply::Late(Duration::from_secs(3))]);
    let slow = client.event("slow").await;
    receiver.wait_for("/slow", 1).await;
    let load = Load::start(&client, 50);
    load.accepts(100, Duration::from_secs(20)).await;
    world.worker().pause();

    let other = world.start_another("worker").await;
    other.ready().await;
    // Its lease runs out, and the other takes over all that it held: the attempt is made once more.
    let webhooks = receiver
        .wait_for_within("/slow", 2, Duration::from_secs(90))
        .await;
    assert!(webhooks.iter().all(|webhook| webhook.webhook_id() == slow));
    client.event_becomes(&slow, "delivered").await;
    load.has_arrived(&receiver, "/hook").await;

    world.worker().resume();
    load.accepts(100, Duration::from_secs(20)).await;
    let ledger = load.stop().await;
    ledger.allows(&[202]);
    ledger.settle(&client, &receiver, "/hook").await;
    let event = client.look_up(&slow).await;
    assert_eq!(event["deliveries"].as_array().map(Vec::len), Some(1), "{event}");
    assert_eq!(event["deliveries"][0]["status"], "delivered", "{event}");
    // It knows that it lost its lease, and goes on under another.
    eventually("the worker is ready", Duration::from_secs(20), async || {
        let ready = world.get(world.worker(), "/health/ready").await;
        if ready.status == 200 {
            Ok(())
        } else {
            Err(ready.text)
        }
    })
    .await;
    let metrics = world.get(world.worker(), "/metrics").await.text;
    assert!(
        metrics
            .lines()
            .any(|line| line == "triggers_worker_leases_lost_total 1"),
        "{metrics}"
    );
}
