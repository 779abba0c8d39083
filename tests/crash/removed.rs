//! Removing an organization goes on where it was when the process that does it is killed.

use std::time::Duration;

use harness::{Engine, Turn, World, eventually, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(a_removal_goes_on_after_kills);

const EVENTS: usize = 10_000;
const BATCH: usize = 500;

async fn a_removal_goes_on_after_kills(engine: Engine) {
    let _turn = Turn::wait().await;
    let world = World::start(engine).await;
    let (client, other, admin) = (
        world.organization().await,
        world.organization().await,
        world.admin(),
    );
    let kept = other.event("order.placed").await;
    let batch: Vec<Value> = (0..BATCH)
        .map(|number| json!({"type": "order.placed", "payload": number}))
        .collect();
    let mut last = String::new();
    for _ in 0..EVENTS / BATCH {
        let posted = client.post("/v1/events/batch", &json!(batch)).await.expect(202);
        let results = posted["results"].as_array().expect("a result an event");
        results[BATCH - 1]["id"]
            .as_str()
            .expect("an id")
            .clone_into(&mut last);
    }
    client.look_up(&last).await;
    let path = format!("/v1/organizations/{}", client.organization);
    let removal = async || {
        let shown = admin.get(&path).await.expect(200);
        shown["removal"].clone()
    };
    admin.delete(&path).await.expect(202);
    let mut before = 0;
    for _ in 0..2 {
        let seen = eventually("it has come further", Duration::from_secs(30), async || {
            let removal = removal().await;
            match removal["events_removed"].as_u64() {
                Some(events) if events > before => Ok(removal),
                _ => Err(removal.to_string()),
            }
        })
        .await;
        world.worker().kill().await;
        assert_eq!(
            seen["status"], "removing",
            "there is something left to go on with: {seen}"
        );
        before = seen["events_removed"].as_u64().expect("a number");
        world.worker().start_again().await;
        world.worker().ready().await;
        // Here it is no more known than before.
        client.get("/v1/organization").await.problem(401, "unauthorized");
    }
    let done = eventually("it is removed", Duration::from_mins(1), async || {
        let removal = removal().await;
        if removal["status"] == "removed" {
            Ok(removal)
        } else {
            Err(removal.to_string())
        }
    })
    .await;
    assert_eq!(
        (&done["events_removed"], &done["events_remaining"]),
        (&json!(EVENTS), &json!(0)),
        "each was counted once"
    );
    other.look_up(&kept).await;
}
