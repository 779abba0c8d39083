//! An organization is removed with everything of it, and keeps its events for as long as it says.

use std::{fs, path::Path, time::Duration};

use harness::{Client, Engine, Receiver, Reply, Scratch, World, eventually, on_both_engines};
use serde_json::json;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

on_both_engines!(
    an_organization_is_removed_with_everything,
    what_waits_in_the_queue_of_a_removed_one_is_dropped,
    an_organization_keeps_events_for_as_long_as_it_says,
);

const SOON: Duration = Duration::from_secs(30);

async fn removed(admin: &Client, path: &str) {
    eventually("it is gone", SOON, async || {
        let shown = admin.get(path).await;
        if shown.expect(200)["removal"]["status"] == "removed" {
            Ok(())
        } else {
            Err(shown.text)
        }
    })
    .await;
}

async fn an_organization_is_removed_with_everything(engine: Engine) {
    let world = World::start(engine).await;
    let (client, other) = (world.organization().await, world.organization().await);
    let admin = world.admin();
    let receiver = Receiver::start().await;
    receiver.always("/hook", Reply::Status(503));
    for client in [&client, &other] {
        client
            .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1, 600]}))
            .await;
    }
    let kept = other.event("order.placed").await;
    for number in 0..700 {
        let event = json!({"type": "order.placed", "payload": number, "dedup_id": number.to_string()});
        client.accepted(&event).await;
    }
    let last = client.event("order.placed").await;
    client.look_up(&last).await;

    let path = format!("/v1/organizations/{}", client.organization);
    let shown = admin.get(&path).await.expect(200);
    assert_eq!(shown["removal"], json!(null));
    // Nobody but the operator may.
    client.delete(&path).await.problem(401, "unauthorized");
    let asked = admin.delete(&path).await.expect(202);
    assert_eq!(asked["removal"]["status"], "removing");
    assert!(asked["removal"]["started_at"].is_string(), "{asked}");
    client.get("/v1/organization").await.problem(401, "unauthorized");
    removed(&admin, &path).await;
    let gone = admin.delete(&path).await.expect(202);
    assert_eq!(gone["name"], json!(null));
    let removal = &gone["removal"];
    assert_eq!(
        (&removal["events_removed"], &removal["events_remaining"]),
        (&json!(701), &json!(0))
    );
    eventually("no node takes its events any more", SOON, async || {
        let posted = client
            .post("/v1/events", &json!({"type": "order.placed", "payload": 1}))
            .await;
        match posted.status {
            401 => Ok(()),
            _ => Err(posted.text),
        }
    })
    .await;
    let listed = admin.get("/v1/organizations").await.expect(200);
    let listed = listed["data"].as_array().expect("a list");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["id"], other.organization.as_str());
    assert_eq!(
        other.look_up(&kept).await["payload"],
        json!({"of": "order.placed"})
    );
}

async fn what_waits_in_the_queue_of_a_removed_one_is_dropped(engine: Engine) {
    let world = World::start(engine).await;
    let (client, other) = (world.organization().await, world.organization().await);
    let admin = world.admin();
    let path = format!("/v1/organizations/{}", client.organization);
    let kept = match engine {
        Engine::Servers => {
            world.worker().kill().await;
            let kept = post_some(&client, &other).await;
            admin.delete(&path).await.expect(202);
            world.worker().start_again().await;
            kept
        }
        Engine::Embedded => {
            // Its one process takes frames in as they come, unless the store does not write; so the queue's file is kept as it
            // is while they wait, and put back once the organization is gone.
            client
                .event_becomes(&client.event("order.placed").await, "pending")
                .await;
            other
                .event_becomes(&other.event("order.placed").await, "pending")
                .await;
            let saved = Scratch::new();
            let held = hold_writes(&world).await;
            let kept = post_some(&client, &other).await;
            world.worker().kill().await;
            copy_queue(&world.data_directory(), saved.path());
            held.close().await.expect("the store is let go of");
            world.worker().start_again().await;
            world.worker().ready().await;
            other.event_becomes(&kept, "pending").await;
            admin.delete(&path).await.expect(202);
            removed(&admin, &path).await;
            world.worker().kill().await;
            copy_queue(saved.path(), &world.data_directory());
            world.worker().start_again().await;
            kept
        }
    };
    world.worker().ready().await;
    other.event_becomes(&kept, "pending").await;
    removed(&admin, &path).await;
    eventually("they are counted", SOON, async || {
        let metrics = world.get(world.worker(), "/metrics").await.text;
        let counts = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("triggers_events_dropped_total "));
        // More, if the queue was cut off before it knew that an earlier one was taken in.
        if counts.flat_map(str::parse).any(|count: u32| count >= 3) {
            Ok(())
        } else {
            Err(metrics)
        }
    })
    .await;
    let aside = admin.get("/v1/set-aside").await.expect(200);
    assert_eq!(aside["data"], json!([]));
}

/// Three events of the one that is to be removed, and one of another.
async fn post_some(client: &Client, other: &Client) -> String {
    for _ in 0..3 {
        client.event("order.placed").await;
    }
    other.event("order.placed").await
}

/// Lets nobody write to the embedded store.
async fn hold_writes(world: &World) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(world.data_directory().join("store.db"));
    let mut store = options
        .busy_timeout(SOON)
        .connect()
        .await
        .expect("the store is a file");
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut store)
        .await
        .expect("nobody writes for long");
    store
}

/// The embedded queue's files, of a process that does not run.
fn copy_queue(from: &Path, to: &Path) {
    for name in ["queue.db", "queue.db-wal", "queue.db-shm"] {
        let (from, to) = (from.join(name), to.join(name));
        if from.exists() {
            fs::copy(from, to).expect("the file is copied");
        } else {
            let _ = fs::remove_file(to);
        }
    }
}

async fn an_organization_keeps_events_for_as_long_as_it_says(engine: Engine) {
    let world = World::with(engine)
        .set("TRIGGERS_RETENTION_DAYS", 20)
        .start()
        .await;
    let client = world.organization().await;
    let set = async |days| {
        client
            .patch("/v1/organization", &json!({"retention_days": days}))
            .await
    };
    assert_eq!(
        client.get("/v1/organization").await.expect(200)["retention_days"],
        json!(null)
    );
    assert_eq!(set(json!(7)).await.expect(200)["retention_days"], 7);
    assert_eq!(
        client.get("/v1/organization").await.expect(200)["retention_days"],
        7
    );
    for bad in [json!(0), json!(21), json!(-1), json!("7"), json!(1.5)] {
        let refused = set(bad).await;
        refused.problem(422, "invalid_request");
        assert_eq!(refused.pointers(), ["/retention_days"]);
    }
    let renamed = client
        .patch("/v1/organization", &json!({"name": "Other"}))
        .await
        .expect(200);
    assert_eq!(
        (&renamed["name"], &renamed["retention_days"]),
        (&json!("Other"), &json!(7))
    );
    assert_eq!(set(json!(null)).await.expect(200)["retention_days"], json!(null));
}
