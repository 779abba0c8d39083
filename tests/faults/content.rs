//! Frames and events that are themselves at fault, and queues that are full or gone.

use std::time::Duration;

use harness::{Client, eventually};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
};
use serde_json::{Value, json};
use sqlx::query_scalar;

use crate::{
    database::change,
    deployment::{Deployment, RECOVERY},
    invariants::uuid_of,
};

async fn channel(deployment: &Deployment) -> (Channel, [String; 2]) {
    let (url, queues) = deployment.world.queues();
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

/// Puts a frame that is none into the queue.
pub async fn publish_nonsense(deployment: &Deployment) {
    let (channel, [queue, _]) = channel(deployment).await;
    channel
        .basic_publish(
            "".into(),
            queue.into(),
            BasicPublishOptions::default(),
            b"nonsense",
            BasicProperties::default().with_delivery_mode(2),
        )
        .await
        .expect("a frame is published");
}

/// Waits until something is set aside for this reason, and gives it.
async fn set_aside(deployment: &Deployment, reason: &str) -> Value {
    let admin = deployment.world.admin();
    eventually("it is set aside", RECOVERY, async || {
        let page = admin.get("/v1/set-aside").await;
        let items = page.json()["data"].as_array().cloned().unwrap_or_default();
        let found = items.into_iter().find(|item| item["reason"] == reason);
        found.ok_or(page.text)
    })
    .await
}

/// What cannot be read is set aside, counted, and forgotten when it is told to be.
pub async fn nonsense_is_set_aside(deployment: &Deployment) {
    let item = set_aside(deployment, "unreadable").await;
    let worker = &deployment.workers;
    let counted = eventually("it is counted", Duration::from_secs(30), async || {
        let mut seen = String::new();
        for node in worker {
            seen = deployment.world.get(node, "/metrics").await.text;
            if seen.lines().any(|line| line == "triggers_set_aside 1") {
                return Ok(());
            }
        }
        Err(seen)
    });
    counted.await;
    forget(deployment, &item).await;
}

async fn forget(deployment: &Deployment, item: &Value) {
    let path = format!("/v1/set-aside/{}", item["id"].as_str().expect("an id"));
    assert_eq!(deployment.world.admin().delete(&path).await.status, 204);
}

/// Lets the database refuse events of the type `poison` with this SQLSTATE, posts one, and waits until it is set aside.
pub async fn poison(deployment: &mut Deployment, sqlstate: &str, reason: &str) {
    let mut database = deployment.sql().await;
    let trap = format!(
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'it is poison' USING ERRCODE = '{sqlstate}'; END $$;
         CREATE TRIGGER poison BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.type = 'poison') EXECUTE FUNCTION poison()"
    );
    change(&mut database, &trap).await;
    let id = deployment.second().client().event("poison").await;
    let item = set_aside(deployment, reason).await;
    assert_eq!(item["event"], id, "{item}");
    deployment.set_aside = Some(item);
}

pub async fn no_poison(deployment: &Deployment) {
    let mut database = deployment.sql().await;
    change(
        &mut database,
        "DROP TRIGGER poison ON events; DROP FUNCTION poison()",
    )
    .await;
}

/// What was set aside is put back, and arrives.
pub async fn put_back(deployment: &mut Deployment) {
    let item = deployment.set_aside.take().expect("something was set aside");
    let path = format!("/v1/set-aside/{}/put-back", item["id"].as_str().expect("an id"));
    let answer = deployment.world.admin().post_text(&path, "").await.expect(202);
    arrives(deployment, answer["event"].as_str().expect("an id")).await;
}

async fn arrives(deployment: &Deployment, id: &str) {
    let path = deployment.second().path("content");
    eventually("it arrives", RECOVERY, async || {
        if deployment.receiver.has(&path, id) {
            Ok(())
        } else {
            Err(format!("{id} does not"))
        }
    })
    .await;
}

/// Takes frames and gives them back until the broker has given one up.
pub async fn return_too_often(deployment: &Deployment) {
    for worker in &deployment.workers {
        worker.kill().await;
    }
    let (channel, [queue, dead]) = channel(deployment).await;
    eventually("a frame is returned too often", RECOVERY, async || {
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
            0 => Err("none is in the dead queue".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

pub async fn start_workers(deployment: &Deployment) {
    for worker in &deployment.workers {
        worker.start_again().await;
    }
}

/// Frames that were given up are taken in all the same, and nothing is set aside for it.
pub async fn dead_are_taken_in(deployment: &Deployment) {
    let (channel, [_, dead]) = channel(deployment).await;
    eventually("the dead queue is empty", RECOVERY, async || {
        match waiting(&channel, &dead).await {
            0 => Ok(()),
            left => Err(format!("{left} frames are in it")),
        }
    })
    .await;
    let nothing = deployment.world.admin().get("/v1/set-aside").await.expect(200);
    assert_eq!(nothing["data"], json!([]));
}

/// Lets both workers hang, and posts large events until the queue takes no more.
pub async fn fill_queue(deployment: &mut Deployment) {
    for worker in &deployment.workers {
        worker.pause();
    }
    let client: &Client = deployment.second().client();
    let large = json!({"type": "big", "payload": "x".repeat(200 * 1024)});
    let mut accepted = Vec::new();
    eventually("the queue is full", Duration::from_secs(30), async || {
        let answer = client.post("/v1/events", &large).await;
        if answer.status == 202 {
            accepted.push(answer.json()["id"].clone());
            return Err(format!("{} are accepted", accepted.len()));
        }
        answer.problem(503, "unavailable");
        Ok(())
    })
    .await;
    deployment.set_aside = Some(Value::Array(accepted));
}

pub fn drain_queue(deployment: &Deployment) {
    for worker in &deployment.workers {
        worker.resume();
    }
}

/// What was accepted until the queue was full arrives.
pub async fn filling_arrives(deployment: &mut Deployment) {
    let accepted = deployment.set_aside.take().expect("some were accepted");
    for id in accepted.as_array().expect("a list of ids") {
        arrives(deployment, id.as_str().expect("an id")).await;
    }
}

/// Deletes both queues. What is in a queue that somebody deletes is gone, whoever they are; so that the ledger can be held
/// all the same, posting is held until what was accepted is stored.
pub async fn delete_queues(deployment: &Deployment) {
    let mut held = Vec::new();
    for load in &deployment.loads {
        held.push(load.holds().await);
    }
    let (channel, queues) = channel(deployment).await;
    all_stored(deployment).await;
    for queue in queues {
        channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .expect("the queue is deleted");
    }
}

/// Waits until all that was accepted is stored: each id is an event's, or leads to one.
pub async fn all_stored(deployment: &Deployment) {
    let ids: Vec<uuid::Uuid> = deployment
        .loads
        .iter()
        .flat_map(harness::Load::posts)
        .filter(|post| post.status == Some(202))
        .filter_map(|post| post.id.map(|id| uuid_of(&id)))
        .collect();
    let mut database = deployment.sql().await;
    eventually("what was accepted is stored", RECOVERY, async || {
        let missing: i64 = query_scalar(
            "SELECT count(*) FROM unnest($1::uuid[]) AS answered (id)
             WHERE NOT EXISTS (SELECT FROM events e WHERE e.id = answered.id)
               AND NOT EXISTS (SELECT FROM event_aliases a WHERE a.id = answered.id)",
        )
        .bind(&ids)
        .fetch_one(&mut database)
        .await
        .expect("the tables are there");
        match missing {
            0 => Ok(()),
            missing => Err(format!("{missing} of {} are not", ids.len())),
        }
    })
    .await;
}
