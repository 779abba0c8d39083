//! PostgreSQL answers and does not write: all of it, or one event. What cannot be stored is held, and what never can be is
//! set aside.

use std::time::{Duration, Instant};

use harness::{Client, Engine, Load, Node, PrivatePostgres, Receiver, Turn, World, eventually};
use lapin::{BasicProperties, Connection, ConnectionProperties, options::BasicPublishOptions};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row};
use uuid::Uuid;

/// Runs statements in a world's database, one by one, whether it writes or not.
async fn sql(world: &World, statements: &[&str]) {
    let mut connection = PgConnection::connect(&world.database_url())
        .await
        .expect("the database answers");
    for statement in ["SET default_transaction_read_only = off"]
        .iter()
        .chain(statements)
    {
        sqlx::raw_sql(AssertSqlSafe(*statement))
            .execute(&mut connection)
            .await
            .expect("the statement is run");
    }
}

/// Lets the database refuse to write, or write again. A server tells its sessions some time after it was asked to.
async fn read_only(world: &World, read_only: bool) {
    let (set, expected) = if read_only {
        ("ALTER SYSTEM SET default_transaction_read_only = on", "on")
    } else {
        ("ALTER SYSTEM RESET default_transaction_read_only", "off")
    };
    sql(world, &[set, "SELECT pg_reload_conf()"]).await;
    eventually("the setting is in force", Duration::from_secs(10), async || {
        let mut connection = PgConnection::connect(&world.database_url())
            .await
            .map_err(|error| error.to_string())?;
        let row = sqlx::query("SHOW default_transaction_read_only")
            .fetch_one(&mut connection)
            .await
            .map_err(|error| error.to_string())?;
        let shown: String = row.get(0);
        if shown == expected { Ok(()) } else { Err(shown) }
    })
    .await;
}

/// Waits until a process has logged this.
async fn logs(node: &Node, text: &str) {
    let what = format!("{} logs: {text}", node.program());
    eventually(&what, Duration::from_secs(30), async || {
        if node.output().contains(text) {
            Ok(())
        } else {
            Err(node.last_output())
        }
    })
    .await;
}

/// What is set aside, once it is so many.
async fn set_aside(world: &World, count: usize) -> Vec<Value> {
    eventually("events are set aside", Duration::from_mins(1), async || {
        let page = world.admin().get("/v1/set-aside").await;
        let items = page.json()["data"].as_array().cloned().unwrap_or_default();
        if items.len() == count {
            Ok(items)
        } else {
            Err(page.text)
        }
    })
    .await
}

/// A database that refuses to write for a while, as a standby or one whose disk is full: frames are held, not given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_reads_and_does_not_write() {
    let _turn = Turn::wait().await;
    let database = PrivatePostgres::start().await;
    let world = World::with(Engine::Servers)
        .database_server(&database.url())
        .set("TRIGGERS_QUEUE_DELIVERY_LIMIT", 1)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let load = Load::start(&client, 50);
    load.accepts(50, Duration::from_secs(20)).await;

    read_only(&world, true).await;
    logs(world.worker(), "the store takes nothing in; frames are held").await;
    load.accepts(400, Duration::from_secs(40)).await;
    read_only(&world, false).await;
    logs(world.worker(), "the store takes events in again").await;
    load.accepts(50, Duration::from_secs(20)).await;

    let ledger = load.stop().await;
    ledger.allows(&[202]);
    ledger.settle(&client, &receiver, "/hook").await;
    // A worker that lets go of the queue says so.
    let output = world.worker().output();
    assert!(
        !output.contains("intake is interrupted"),
        "frames were given back"
    );
    set_aside(&world, 0).await;
}

/// Lets the database refuse events of the type `poison`, for a reason that might pass.
const POISON: &[&str] = &[
    "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN RAISE EXCEPTION 'it is poison'; END $$",
    "CREATE TRIGGER poison BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.type = 'poison') EXECUTE FUNCTION poison()",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_fails_for_ever_is_set_aside_and_the_rest_flows() {
    let _turn = Turn::wait().await;
    let (_database, world) = World::on_its_own_postgres().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client
        .subscribe(&json!({"url": receiver.url("/hook"), "event_types": ["load.posted"]}))
        .await;
    client
        .subscribe(&json!({"url": receiver.url("/rest"), "event_types": ["poison", "order.placed"]}))
        .await;
    sql(&world, POISON).await;
    let load = Load::start(&client, 50);
    load.accepts(50, Duration::from_secs(20)).await;
    let poison = client.event("poison").await;
    load.accepts(50, Duration::from_secs(20)).await;
    let item = set_aside(&world, 1).await.remove(0);
    assert_eq!(
        (&item["reason"], &item["event"]),
        (&json!("repeatedly_failing"), &json!(poison))
    );
    let detail = item["detail"].as_str().expect("a text");
    assert!(detail.contains("it is poison"), "{detail}");
    let ledger = load.stop().await;
    ledger.allows(&[202]);
    ledger.settle(&client, &receiver, "/hook").await;

    // While the store writes nothing at all, nothing counts as a try.
    read_only(&world, true).await;
    let good = client.event("order.placed").await;
    logs(world.worker(), "the store takes nothing in; frames are held").await;
    // It holds on for nobody who wants it to stop.
    let begun = Instant::now();
    assert!(world.worker().terminate().await.success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    read_only(&world, false).await;
    world.worker().start_again().await;
    client_gets(&client, &good, "delivered").await;
    assert_eq!(set_aside(&world, 1).await[0]["times"], 1);

    // Behind one that fails, in the queue of what was returned too often.
    let organization = client.get("/api/keys").await.expect(200);
    let organization = organization["organization_id"].as_str().expect("an id");
    let [bad, behind] = ["poison", "order.placed"].map(|event_type| (Uuid::now_v7(), event_type));
    let frames = [bad, behind].map(|(id, event_type)| frame(id, organization, event_type));
    return_too_often(&world, &frames).await;
    client_gets(&client, &behind.0.to_string(), "delivered").await;
    let items = set_aside(&world, 2).await;
    assert!(
        items.iter().all(|item| item["reason"] == "repeatedly_failing"),
        "{items:?}"
    );

    // Once the cause is gone they can be put back, as they are.
    sql(&world, &["DROP TRIGGER poison ON events"]).await;
    for item in items {
        let path = format!("/v1/set-aside/{}/put-back", item["id"].as_str().expect("an id"));
        let answer = world.admin().post_text(&path, "").await.expect(202);
        assert_eq!(answer["event"], item["event"]);
        client_gets(&client, item["event"].as_str().expect("an id"), "delivered").await;
    }
    assert_eq!(receiver.count("/rest"), 4);
    set_aside(&world, 0).await;
}

/// Waits until an event that is on its way to the store has this status.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_push_that_cannot_be_stored_at_once_is_sent_all_the_same() {
    let world = World::start(Engine::Servers).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    let id = client.event("order.placed").await;
    client.event_becomes(&id, "delivered").await;
    let mut rival = PgConnection::connect(&world.database_url())
        .await
        .expect("the database answers");
    let lock = "BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock)
        .execute(&mut rival)
        .await
        .expect("the lock is free");
    let test = tokio::spawn(async move {
        let path = format!("/v1/subscriptions/{}/test", subscription.id);
        client.send(client.request(http::Method::POST, &path)).await
    });
    logs(world.worker(), "a test push is tried again").await;
    assert_eq!(receiver.count("/hook"), 1);
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut rival)
        .await
        .expect("the lock is let go");
    let webhook = receiver.wait_for("/hook", 2).await.remove(1);
    assert_eq!(webhook.envelope().r#type, "triggers.test");
    // The api could not look for the attempt meanwhile, or did in time.
    let answer = test.await.expect("it is answered");
    assert!(matches!(answer.status, 200 | 503), "{answer:?}");
}

async fn client_gets(client: &Client, event: &str, status: &str) {
    let what = format!("{event} becomes {status}");
    eventually(&what, Duration::from_mins(1), async || {
        let answer = client.get(&format!("/v1/events/{event}")).await;
        if answer.status == 200 && answer.json()["status"] == status {
            Ok(())
        } else {
            Err(answer.text)
        }
    })
    .await;
}

/// A frame with one event.
fn frame(id: Uuid, organization: &str, event_type: &str) -> Vec<u8> {
    let line = json!({
        "id": id,
        "org": organization,
        "type": event_type,
        "received_at": "2026-01-31T12:00:00.000Z",
        "len": 2,
    });
    format!("{line}\n{{}}\n").into_bytes()
}

/// Puts frames into the queue of what was returned too often.
async fn return_too_often(world: &World, frames: &[Vec<u8>]) {
    let (url, [_, dead]) = world.queues();
    let connection = Connection::connect(&url, ConnectionProperties::default())
        .await
        .expect("the broker answers");
    let channel = connection.create_channel().await.expect("a channel opens");
    for frame in frames {
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default().with_delivery_mode(2);
        channel
            .basic_publish("".into(), dead.clone().into(), options, frame, properties)
            .await
            .expect("a frame is published");
    }
    let _ = connection.close(200, "done".into()).await;
}
