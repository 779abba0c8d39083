//! A replay goes on where it was when its worker is killed.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use harness::{Engine, Receiver, Reply, Turn, World, eventually};
use serde_json::json;

/// How many requests are under way while the test is prepared.
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_goes_on_after_a_kill() {
    let _turn = Turn::wait().await;
    let world = World::start(Engine::Servers).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(400));
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [], "max_in_flight": 64}))
        .await;
    let disable = format!("/v1/subscriptions/{}/disable", subscription.id);
    let ids: Vec<String> = stream::iter(0..1_200)
        .map(|_| client.event("order.placed"))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    // As good as ended: called off one by one would take long, and the subscriber's circuit opens.
    client.post(&disable, &json!({})).await.expect(200);
    receiver.always("/hook", Reply::Status(200));
    stream::iter(&ids)
        .for_each_concurrent(AT_ONCE, async |id| {
            let path = format!("/v1/events/{id}/deliveries/{}/cancel", subscription.id);
            client.post(&path, &json!({})).await;
        })
        .await;
    client
        .post(
            &format!("/v1/subscriptions/{}/enable", subscription.id),
            &json!({}),
        )
        .await
        .expect(200);
    let replay = format!("/v1/subscriptions/{}/replay", subscription.id);
    let made = client
        .post(&replay, &json!({"statuses": ["cancelled", "dead_letter"]}))
        .await
        .expect(202);
    world.worker().kill().await;
    world.worker().start_again().await;
    let shown = format!("{replay}s/{}", made["id"].as_str().expect("an id"));
    let done = eventually("the replay is done", Duration::from_mins(1), async || {
        let replay = client.get(&shown).await.expect(200);
        if replay["status"] == "done" {
            Ok(replay)
        } else {
            Err(replay.to_string())
        }
    })
    .await;
    assert_eq!(done["looked_at"], 1_200, "{done}");
    eventually("every event arrives", Duration::from_mins(2), async || {
        let mut arrived: Vec<String> = receiver
            .received("/hook")
            .iter()
            .map(|webhook| webhook.webhook_id().to_owned())
            .collect();
        arrived.sort();
        arrived.dedup();
        if arrived.len() == ids.len() {
            Ok(())
        } else {
            Err(format!("{} of {}", arrived.len(), ids.len()))
        }
    })
    .await;
}
