//! What cannot be taken in is set aside with its reason, and the rest flows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::{Client, Engine, Receiver, World, eventually, on_both_engines};
use lapin::{BasicProperties, Connection, ConnectionProperties, options::BasicPublishOptions};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};
use uuid::{NoContext, Timestamp, Uuid};

on_both_engines!(
    a_frame_that_cannot_be_read_is_set_aside,
    an_event_of_nobody_is_put_back_once_its_organization_is_there,
    an_id_far_from_today_is_set_aside_and_put_back_under_another,
    an_id_of_days_ago_is_taken_in,
    the_same_frame_again_is_counted,
);

/// Puts these frames into the queue, past the front.
pub(crate) async fn enqueue(world: &World, frames: &[Vec<u8>]) {
    match world.engine {
        Engine::Servers => {
            let (url, [queue, _]) = world.queues();
            let connection = Connection::connect(&url, ConnectionProperties::default())
                .await
                .expect("the broker answers");
            let channel = connection.create_channel().await.expect("a channel opens");
            // What is not confirmed may be lost with the channel.
            let confirms = lapin::options::ConfirmSelectOptions::default();
            channel
                .confirm_select(confirms)
                .await
                .expect("the channel confirms");
            for frame in frames {
                let properties = BasicProperties::default().with_delivery_mode(2);
                channel
                    .basic_publish(
                        "".into(),
                        queue.clone().into(),
                        BasicPublishOptions::default(),
                        frame,
                        properties,
                    )
                    .await
                    .expect("a frame is published")
                    .await
                    .expect("a frame is confirmed");
            }
            let _ = connection.close(200, "done".into()).await;
        }
        // The queue is this process's own: frames are found there when it starts.
        Engine::Embedded => {
            world.ingest().terminate().await;
            let mut queue = sqlite(world, "queue.db").await;
            for frame in frames {
                sqlx::query("INSERT INTO frames (body) VALUES ($1)")
                    .bind(frame)
                    .execute(&mut queue)
                    .await
                    .expect("a frame is written");
            }
            queue.close().await.expect("the file is closed");
            world.ingest().start_again().await;
            world.ingest().ready().await;
        }
    }
}

async fn sqlite(world: &World, file: &str) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(world.data_directory().join(file))
        .foreign_keys(false);
    SqliteConnection::connect_with(&options)
        .await
        .expect("the file is a database")
}

/// Waits until so many are set aside, and gives them.
pub(crate) async fn set_aside(world: &World, count: usize) -> Vec<Value> {
    let admin = world.admin();
    eventually("frames are set aside", Duration::from_secs(15), async || {
        let page = admin.get("/v1/set-aside").await.expect(200);
        let items = page["data"].as_array().expect("a page").clone();
        if items.len() == count {
            Ok(items)
        } else {
            Err(page.to_string())
        }
    })
    .await
}

/// A frame with one event.
pub(crate) fn frame(id: Uuid, organization: Uuid, payload: &str) -> Vec<u8> {
    let line = json!({
        "id": id,
        "org": organization,
        "type": "order.placed",
        "received_at": "2026-01-31T12:00:00.000Z",
        "len": payload.len(),
    });
    format!("{line}\n{payload}\n").into_bytes()
}

async fn a_frame_that_cannot_be_read_is_set_aside(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let mut cut = frame(Uuid::now_v7(), Uuid::now_v7(), "{\"a\":1}");
    cut.truncate(cut.len() - 3);
    let unreadable = [b"nonsense".to_vec(), cut, b"\xff\xfe\n".to_vec()];
    enqueue(&world, &unreadable).await;
    // The rest flows, behind them.
    let id = client.event("order.placed").await;
    client.event_becomes(&id, "delivered").await;

    let admin = world.admin();
    for item in set_aside(&world, 3).await {
        assert_eq!(item["reason"], "unreadable");
        assert!(item["detail"].is_string() && item["at"].is_string(), "{item}");
        let path = format!("/v1/set-aside/{}", item["id"].as_str().expect("an id"));
        let shown = admin.get(&path).await.expect(200);
        let size = shown["size_bytes"].as_u64().expect("a size");
        assert!(
            unreadable.iter().any(|frame| frame.len() as u64 == size),
            "{shown}"
        );
        client.get(&path).await.problem(401, "unauthorized");
        // It would only be set aside again.
        admin
            .post_text(&format!("{path}/put-back"), "")
            .await
            .problem(409, "conflict");
        assert_eq!(admin.delete(&path).await.status, 204);
        admin.get(&path).await.problem(404, "not_found");
    }
    set_aside(&world, 0).await;
    assert_eq!(receiver.count("/hook"), 1);
}

async fn an_event_of_nobody_is_put_back_once_its_organization_is_there(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let (event, missing) = (Uuid::now_v7(), Uuid::now_v7());
    enqueue(&world, &[frame(event, missing, r#"{"kept":true}"#)]).await;
    let item = set_aside(&world, 1).await.remove(0);
    assert_eq!(item["reason"], "unknown_organization");
    assert!(
        item["event"].as_str().is_some_and(|id| id.starts_with("evt_")),
        "{item}"
    );
    let admin = world.admin();
    let put_back = async |item: &Value| {
        let id = item["id"].as_str().expect("an id");
        let answer = admin.post_text(&format!("/v1/set-aside/{id}/put-back"), "").await;
        answer.expect(202);
    };
    // While it is still missing, the event is set aside again, and is there once.
    put_back(&item).await;
    let again = eventually("it is set aside again", Duration::from_secs(10), async || {
        let items = set_aside(&world, 1).await;
        let item = items[0].clone();
        if item["reason"] == "unknown_organization" {
            Ok(item)
        } else {
            Err(item.to_string())
        }
    })
    .await;

    // The organization is there again, as after a database was restored.
    move_organization(&world, missing).await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    // The first return may still be on its way back to being set aside.
    set_aside(&world, 1).await;
    put_back(&again).await;
    let webhooks = receiver.wait_for("/hook", 1).await;
    webhooks[0]
        .verify(&subscription.secret)
        .expect("the signature is good");
    assert_eq!(webhooks[0].envelope().data.get(), r#"{"kept":true}"#);
    client.event_becomes(&event.to_string(), "delivered").await;
    set_aside(&world, 0).await;
}

/// Gives the world's one organization another id, in the database itself.
async fn move_organization(world: &World, id: Uuid) {
    match world.engine {
        Engine::Servers => {
            let mut database = PgConnection::connect(&world.database_url())
                .await
                .expect("the database answers");
            let statements = format!(
                "SET session_replication_role = replica;
                 UPDATE organizations SET id = '{id}';
                 UPDATE api_keys SET organization_id = '{id}';
                 UPDATE subscriptions SET organization_id = '{id}';"
            );
            sqlx::raw_sql(AssertSqlSafe(statements))
                .execute(&mut database)
                .await
                .expect("the organization is changed");
            for node in world.nodes() {
                node.terminate().await;
                node.start_again().await;
            }
        }
        Engine::Embedded => {
            world.api().terminate().await;
            let mut database = sqlite(world, "store.db").await;
            let blob = format!("x'{}'", id.simple());
            let statements = format!(
                "UPDATE organizations SET id = {blob};
                 UPDATE keys SET organization_id = {blob};
                 UPDATE subscriptions SET organization_id = {blob};"
            );
            sqlx::raw_sql(AssertSqlSafe(statements))
                .execute(&mut database)
                .await
                .expect("the organization is changed");
            database.close().await.expect("the file is closed");
            world.api().start_again().await;
        }
    }
    for node in world.nodes() {
        node.ready().await;
    }
}

/// A client's organization.
async fn organization_of(client: &Client) -> Uuid {
    let shown = client.get("/api/keys").await.expect(200);
    let id = shown["organization_id"].as_str().expect("an id");
    Uuid::parse_str(id).expect("a plain UUID")
}

async fn an_id_far_from_today_is_set_aside_and_put_back_under_another(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let organization = organization_of(&client).await;
    // Ids of 1970 and of the far future, and one that is no version 7 at all.
    let wrong = [
        Uuid::from_u128(7 << 76),
        Uuid::from_u128(u128::MAX),
        Uuid::new_v4(),
    ];
    let frames: Vec<_> = wrong.iter().map(|id| frame(*id, organization, "{}")).collect();
    enqueue(&world, &frames).await;
    let items = set_aside(&world, 3).await;
    let id = client.event("order.placed").await;
    client.event_becomes(&id, "delivered").await;

    let admin = world.admin();
    let mut ids = vec![id];
    for item in items {
        assert_eq!(
            (&item["reason"], &item["times"]),
            (&json!("id_out_of_range"), &json!(1))
        );
        let (id, old) = (&item["id"], item["event"].as_str().expect("an id"));
        let path = format!("/v1/set-aside/{}/put-back", id.as_str().expect("an id"));
        let answer = admin.post_text(&path, "").await.expect(202);
        let new = answer["event"].as_str().expect("an id").to_owned();
        assert_ne!(new, old);
        client.event_becomes(&new, "delivered").await;
        // The id that the producer was answered leads to it.
        assert_eq!(client.look_up(old).await, client.look_up(&new).await);
        ids.push(new);
    }
    set_aside(&world, 0).await;
    let webhooks = receiver.wait_for("/hook", 4).await;
    let mut delivered: Vec<_> = webhooks
        .iter()
        .map(|webhook| webhook.webhook_id().to_owned())
        .collect();
    delivered.sort_unstable();
    ids.sort_unstable();
    assert_eq!(delivered, ids);
}

/// As after workers were away for days: no partition takes it, until one is made.
async fn an_id_of_days_ago_is_taken_in(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let organization = organization_of(&client).await;
    let of_days_ago = |days: u64| {
        let ago = SystemTime::now() - Duration::from_hours(24 * days);
        let since = ago.duration_since(UNIX_EPOCH).expect("a time after 1970");
        Uuid::new_v7(Timestamp::from_unix(NoContext, since.as_secs(), 0))
    };
    let (kept, past) = ([5, 12, 29].map(of_days_ago), of_days_ago(31));
    let frames: Vec<_> = kept
        .iter()
        .chain([&past])
        .map(|id| frame(*id, organization, "{}"))
        .collect();
    enqueue(&world, &frames).await;
    for id in kept {
        eventually("it is delivered", Duration::from_secs(20), async || {
            let answer = client.get(&format!("/v1/events/{id}")).await;
            if answer.status == 200 && answer.json()["status"] == "delivered" {
                Ok(())
            } else {
                Err(answer.text)
            }
        })
        .await;
    }
    let item = set_aside(&world, 1).await.remove(0);
    assert_eq!(item["reason"], "id_out_of_range");
    assert_eq!(receiver.count("/hook"), kept.len());
}

async fn the_same_frame_again_is_counted(engine: Engine) {
    let world = World::start(engine).await;
    let (nonsense, nobodys) = (b"nonsense".to_vec(), frame(Uuid::now_v7(), Uuid::now_v7(), "{}"));
    enqueue(&world, &[nonsense.clone(), nobodys.clone(), nonsense]).await;
    // Not in the same batch, where it would be seen once.
    set_aside(&world, 2).await;
    enqueue(&world, &[nobodys]).await;
    eventually("both are counted twice", Duration::from_secs(20), async || {
        let items = set_aside(&world, 2).await;
        if items.iter().all(|item| item["times"] == 2) {
            Ok(())
        } else {
            Err(format!("{items:?}"))
        }
    })
    .await;
}
