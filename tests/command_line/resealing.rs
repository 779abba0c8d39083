//! The secret key of a deployment is changed: what was sealed under the old one is sealed anew, and nothing is lost.

use std::time::Duration;

use harness::{Client, Ended, Engine, Receiver, Spec, Subscription, World, eventually};
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection, query_scalar};

const NEW: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

fn with(world: &World, keys: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut settings = world.settings().to_vec();
    settings.retain(|(name, _)| !keys.iter().any(|(given, _)| name == given));
    settings.extend(
        keys.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    settings
}

async fn run(arguments: &[&str], settings: Vec<(String, String)>) -> Ended {
    let spec = Spec {
        program: "triggers",
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        settings,
    };
    spec.run().await
}

/// It was run twice and sealed everything once: so once each secret is in its organization's log, the former one of a rotation
/// beside its successor, and in the deployment's that the key is another.
async fn in_the_log(world: &World, client: &Client, subscriptions: &[Subscription]) {
    let path = "/v1/audit-log?action=subscription.resealed";
    let listed = client.get(path).await.expect(200);
    let entries = listed["data"].as_array().expect("a page");
    let mut targets: Vec<&str> = entries
        .iter()
        .map(|entry| entry["target"].as_str().expect("a target"))
        .collect();
    let mut expected: Vec<&str> = subscriptions.iter().map(|one| one.id.as_str()).collect();
    expected.push(&subscriptions[0].id);
    targets.sort_unstable();
    expected.sort_unstable();
    assert_eq!(targets, expected, "{listed}");
    for entry in entries {
        assert_eq!(entry["actor"]["kind"], "command", "{entry}");
        assert_eq!(entry["organization"], client.organization.as_str(), "{entry}");
    }
    let path = "/v1/audit-log?action=deployment.secret_key_changed";
    let listed = world.admin().get(path).await.expect(200);
    let entries = listed["data"].as_array().expect("a page");
    assert_eq!(entries.len(), 1, "{listed}");
    assert_eq!(
        (&entries[0]["actor"]["kind"], &entries[0]["organization"]),
        (&json!("command"), &json!(null))
    );
    let listed = client.get(path).await.expect(200);
    assert_eq!(listed["data"], json!([]), "that is the deployment's affair");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_key_is_changed_and_pushes_still_verify() {
    let world = World::start(Engine::Servers).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let mut subscriptions = Vec::new();
    for at in 0..3 {
        subscriptions.push(client.subscribe_url(&receiver.url(&format!("/{at}"))).await);
    }
    let rotate = format!("/v1/subscriptions/{}/rotate-secret", subscriptions[0].id);
    client.post(&rotate, &json!({})).await.expect(200);
    let old = world
        .settings()
        .iter()
        .find(|(name, _)| name == "TRIGGERS_SECRET_KEY")
        .map(|(_, value)| value.clone())
        .expect("a key");
    crate::starting::key_is_known(&world.database_url()).await;
    for node in world.nodes() {
        assert!(node.terminate().await.success());
    }
    let both = [
        ("TRIGGERS_SECRET_KEY", NEW),
        ("TRIGGERS_FORMER_SECRET_KEYS", &old),
    ];
    let versions = "SELECT sum(subscriptions_version)::bigint FROM organizations";
    let mut database = PgConnection::connect(&world.database_url())
        .await
        .expect("it answers");
    let before: i64 = query_scalar(versions)
        .fetch_one(&mut database)
        .await
        .expect("a sum");
    let refused = run(&["reseal"], with(&world, &both[..1])).await;
    assert_eq!(refused.code, Some(2), "the old key is needed: {refused:?}");
    for expected in ["4 were not", "0 were not"] {
        let ended = run(&["reseal"], with(&world, &both)).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.out.contains(expected), "{ended:?}");
    }
    let after: i64 = query_scalar(versions)
        .fetch_one(&mut database)
        .await
        .expect("a sum");
    assert_eq!(
        after,
        before + 1,
        "plans are made anew once, however many secrets"
    );
    let stale = run(&["reseal"], world.settings().to_vec()).await;
    assert_eq!(
        stale.code,
        Some(2),
        "the old key alone is another deployment's now: {stale:?}"
    );

    for node in world.nodes() {
        node.set("TRIGGERS_SECRET_KEY", NEW);
        node.start_again().await;
    }
    for node in world.nodes() {
        node.ready().await;
    }
    in_the_log(&world, &client, &subscriptions).await;
    let id = client.event("order.placed").await;
    client.event_becomes(&id, "delivered").await;
    for (at, subscription) in subscriptions.iter().enumerate() {
        let webhook = receiver.wait_for(&format!("/{at}"), 1).await.remove(0);
        webhook
            .verify(&subscription.secret)
            .expect("by the secret that was answered");
    }
}

/// The key of a deployment, as its processes have it.
fn key_of(world: &World) -> String {
    let mut settings = world.settings().iter();
    let key = settings.find(|(name, _)| name == "TRIGGERS_SECRET_KEY");
    key.map(|(_, value)| value.clone()).expect("a key")
}

/// Nothing is held against subscribers to whom a worker cannot send for want of the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_on_with_the_old_key_is_not_ready_and_loses_nothing() {
    let world = World::start(Engine::Servers).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": []}))
        .await;
    crate::starting::key_is_known(&world.database_url()).await;
    let old = key_of(&world);
    let both = [
        ("TRIGGERS_SECRET_KEY", NEW),
        ("TRIGGERS_FORMER_SECRET_KEYS", &old),
    ];
    let ended = run(&["reseal"], with(&world, &both)).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");

    let id = client.event("order.placed").await;
    let sealed = |metrics: &str| {
        let mut series = metrics.lines().filter_map(|line| line.rsplit_once(' '));
        series.any(|(name, value)| name == "triggers_attempts_sealed_total" && value != "0")
    };
    eventually("it is counted", Duration::from_secs(30), async || {
        for node in world.nodes() {
            if node.program() == "worker" && sealed(&world.get(node, "/metrics").await.text) {
                return Ok(());
            }
        }
        Err("no attempt was to be made".to_owned())
    })
    .await;
    for node in world.nodes() {
        let answer = world.get(node, "/health/ready").await;
        if node.program() == "ingest" {
            answer.expect(200);
        } else {
            let why = &answer.expect(503)["checks"]["secret_key"];
            assert_eq!(why, "the secret key is not this deployment's any more");
        }
    }
    let path = format!("/v1/events/{id}/deliveries/{}", subscription.id);
    let delivery = client.get(&path).await.expect(200);
    let (attempts, status) = (&delivery["attempts"], &delivery["status"]);
    assert_ne!(status, "dead_letter", "{delivery}");
    assert_eq!(attempts, &json!(0), "{delivery}");
    for node in world.nodes() {
        assert!(node.terminate().await.success());
        node.set("TRIGGERS_SECRET_KEY", NEW);
        node.start_again().await;
    }
    client.event_becomes(&id, "delivered").await;
    let webhook = receiver.wait_for("/hook", 1).await.remove(0);
    webhook
        .verify(&subscription.secret)
        .expect("it is signed as ever");
}

/// As if a change by what was read before came meanwhile: once the last secret is sealed anew, the first is as it was.
const PUT_BACK: &str = "
    CREATE TABLE old AS SELECT id, secret FROM subscriptions WHERE secret IS NOT NULL ORDER BY id LIMIT 1;
    CREATE FUNCTION put_back() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        WITH taken AS (DELETE FROM old RETURNING *)
        UPDATE subscriptions s SET secret = taken.secret FROM taken WHERE s.id = taken.id;
        RETURN NULL;
    END $$;
    CREATE TRIGGER put_back AFTER UPDATE ON subscriptions FOR EACH ROW
        WHEN (NEW.description = 'the last') EXECUTE FUNCTION put_back();";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_to_be_under_the_old_key_meanwhile_is_sealed_anew_too() {
    let world = World::start(Engine::Servers).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    for description in ["the first", "another", "the last"] {
        client
            .subscribe(&json!({"url": receiver.url("/hook"), "description": description}))
            .await;
    }
    crate::starting::key_is_known(&world.database_url()).await;
    let old = world
        .settings()
        .iter()
        .find(|(name, _)| name == "TRIGGERS_SECRET_KEY");
    let old = old.map(|(_, value)| value.clone()).expect("a key");
    for node in world.nodes() {
        assert!(node.terminate().await.success());
    }
    let mut database = PgConnection::connect(&world.database_url())
        .await
        .expect("it answers");
    database.execute(PUT_BACK).await.expect("it is put back");
    let both = [
        ("TRIGGERS_SECRET_KEY", NEW),
        ("TRIGGERS_FORMER_SECRET_KEYS", &old),
    ];
    let ended = run(&["reseal"], with(&world, &both)).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("4 were not"), "{ended:?}");
    let keys: i64 = query_scalar("SELECT count(DISTINCT substring(secret FROM 1 FOR 4)) FROM subscriptions")
        .fetch_one(&mut database)
        .await
        .expect("there are subscriptions");
    assert_eq!(keys, 1, "all are sealed under one key");
    // Under the new one: the old one is not needed any more.
    let alone = run(&["reseal"], with(&world, &both[..1])).await;
    assert_eq!(alone.code, Some(0), "{alone:?}");
    assert!(alone.out.contains("0 were not"), "{alone:?}");
}
