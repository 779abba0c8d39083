//! The audit log: who has changed what.

use std::{collections::BTreeSet, time::Duration};

use harness::{Answer, Client, Engine, Receiver, Reply, World, eventually, on_both_engines};
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::set_aside::{enqueue, frame, set_aside};

on_both_engines!(
    every_route_that_changes_something_is_in_the_log,
    the_log_tells_who_and_from_where,
    what_the_system_does_is_in_the_log,
    the_log_is_paged_and_filtered,
    the_log_is_read_by_those_who_administer,
    a_removed_organization_leaves_one_entry,
);

/// Routes that leave nothing in the log, and why.
const LEAVES_NOTHING: &[(&str, &str)] = &[
    ("postEvent", "events are what flows, not what is set"),
    ("postEvents", "events are what flows, not what is set"),
    ("compatPostEvent", "events are what flows, not what is set"),
    ("acknowledgeEvent", "taking events is the use of what is set"),
    ("acknowledgeEvents", "taking events is the use of what is set"),
    ("compatAcknowledge", "taking events is the use of what is set"),
    ("pullEvents", "taking events is the use of what is set"),
    ("acknowledgePulled", "taking events is the use of what is set"),
    ("releasePulled", "taking events is the use of what is set"),
    ("extendPulled", "taking events is the use of what is set"),
];

async fn log(reader: &Client) -> Vec<Value> {
    let listed = reader.get("/v1/audit-log?limit=1000").await.expect(200);
    listed["data"].as_array().expect("a page").clone()
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member]
        .as_str()
        .unwrap_or_else(|| panic!("{member} is missing: {value}"))
}

/// What the routes need that there is.
struct Stage {
    world: World,
    client: Client,
    admin: Client,
    push: String,
    delivered: String,
    parked: (String, String),
}

impl Stage {
    async fn set(engine: Engine) -> Self {
        let world = World::start(engine).await;
        let receiver = Receiver::start().await;
        let (client, admin) = (world.organization().await, world.admin());
        receiver.always("/hook", Reply::Status(200));
        let push = client.subscribe_url(&receiver.url("/hook")).await.id;
        let waits = client
            .subscribe(&json!({"url": receiver.url("/hook"), "enabled": false}))
            .await
            .id;
        let delivered = client.event("order.placed").await;
        client.delivery_becomes(&delivered, &push, "delivered").await;
        client.delivery_becomes(&delivered, &waits, "parked").await;
        let nobody = [
            frame(Uuid::now_v7(), Uuid::now_v7(), "1"),
            frame(Uuid::now_v7(), Uuid::now_v7(), "2"),
        ];
        enqueue(&world, &nobody).await;
        set_aside(&world, 2).await;
        Self {
            parked: (delivered.clone(), waits),
            world,
            client,
            admin,
            push,
            delivered,
        }
    }

    async fn a_key(&self) -> String {
        let made = self.client.post("/v1/keys", &json!({"name": "another"})).await;
        text(&made.expect(201), "id").to_owned()
    }

    async fn an_organization(&self) -> Client {
        self.world.organization().await
    }

    /// Does what an operation is for: who did it, whose log it is in, and which actions it leaves there.
    #[expect(clippy::too_many_lines, reason = "a list: a line an operation")]
    async fn perform(&self, operation: &str) -> Option<Performed> {
        let none = json!({});
        let subscription = |act: &str| format!("/v1/subscriptions/{}{act}", self.push);
        let delivery = |act: &str| {
            let (event, subscription) = &self.parked;
            format!("/v1/events/{event}/deliveries/{subscription}/{act}")
        };
        let by_key = |answer: Answer, status: u16, actions: &[&'static str]| {
            assert_eq!(answer.status, status, "{}", answer.text);
            Some(Performed::by("key", &self.client, actions))
        };
        let client = &self.client;
        match operation {
            "createOrganization" => {
                let made = self.an_organization().await;
                Some(Performed {
                    reader: made,
                    actor: "admin_token",
                    actions: ["organization.created", "key.created"].into(),
                })
            }
            "compatGenerateKey" => {
                let body = json!({"organization_name": "one more", "tier": "free"});
                let made = self.admin.post("/api/keys/generate", &body).await.expect(201);
                let reader = self.client.with_key(text(&made, "api_key"));
                Some(Performed {
                    reader,
                    actor: "admin_token",
                    actions: ["organization.created", "key.created"].into(),
                })
            }
            "updateOrganization" => {
                let answer = client
                    .patch("/v1/organization", &json!({"name": "Renamed"}))
                    .await;
                by_key(answer, 200, &["organization.updated"])
            }
            "removeOrganization" => {
                let gone = self.an_organization().await;
                let path = format!("/v1/organizations/{}", gone.organization);
                self.admin.delete(&path).await.expect(202);
                Some(Performed::by(
                    "admin_token",
                    &self.admin,
                    &["organization.removed"],
                ))
            }
            "createKey" => {
                self.a_key().await;
                Some(Performed::by("key", client, &["key.created"]))
            }
            "revokeKey" => {
                let path = format!("/v1/keys/{}", self.a_key().await);
                by_key(client.delete(&path).await, 204, &["key.revoked"])
            }
            "rotateKey" => {
                let path = format!("/v1/keys/{}/rotate", self.a_key().await);
                by_key(
                    client.post(&path, &none).await,
                    201,
                    &["key.rotated", "key.created"],
                )
            }
            "compatRotateKey" => {
                let other = self.an_organization().await;
                let rotated = other.post("/api/keys/rotate", &none).await.expect(200);
                let reader = other.with_key(text(&rotated, "api_key"));
                Some(Performed::by("key", &reader, &["key.rotated", "key.created"]))
            }
            "compatConfigureWebhook" => {
                let body = json!({"webhook_url": "http://127.0.0.1:9/hook"});
                let answer = client.post("/api/webhook/config", &body).await;
                by_key(answer, 200, &["subscription.created"])
            }
            "createSubscription" => {
                client.subscribe_url("http://127.0.0.1:9/other").await;
                Some(Performed::by("key", client, &["subscription.created"]))
            }
            "updateSubscription" => {
                let answer = client
                    .patch(&subscription(""), &json!({"description": "A text"}))
                    .await;
                by_key(answer, 200, &["subscription.updated"])
            }
            "deleteSubscription" => {
                let made = client.subscribe_url("http://127.0.0.1:9/other").await;
                let answer = client.delete(&format!("/v1/subscriptions/{}", made.id)).await;
                by_key(answer, 204, &["subscription.deleted"])
            }
            "disableSubscription" => {
                client.post(&subscription("/enable"), &none).await.expect(200);
                let answer = client.post(&subscription("/disable"), &none).await;
                by_key(answer, 200, &["subscription.disabled"])
            }
            "enableSubscription" => {
                client.post(&subscription("/disable"), &none).await.expect(200);
                let answer = client.post(&subscription("/enable"), &none).await;
                by_key(answer, 200, &["subscription.enabled"])
            }
            "rotateSecret" => {
                let answer = client.post(&subscription("/rotate-secret"), &none).await;
                by_key(answer, 200, &["subscription.secret_rotated"])
            }
            "testSubscription" => {
                client.post(&subscription("/enable"), &none).await.expect(200);
                let answer = client.post(&subscription("/test"), &none).await;
                assert!(matches!(answer.status, 200 | 202), "{}", answer.text);
                Some(Performed::by("key", client, &["subscription.tested"]))
            }
            "createReplay" => {
                let answer = client.post(&subscription("/replay"), &none).await;
                by_key(answer, 202, &["replay.created"])
            }
            "cancelReplay" => {
                // One that is over cannot be called off: it is tried until one is caught.
                eventually("a replay is called off", Duration::from_secs(20), async || {
                    let made = client.post(&subscription("/replay"), &none).await.expect(202);
                    let path = subscription(&format!("/replays/{}", text(&made, "id")));
                    assert_eq!(client.delete(&path).await.status, 204);
                    let replay = client.get(&path).await.expect(200);
                    if replay["status"] == "cancelled" {
                        Ok(())
                    } else {
                        Err(replay.to_string())
                    }
                })
                .await;
                Some(Performed::by("key", client, &["replay.cancelled"]))
            }
            "cancelDelivery" => by_key(
                client.post(&delivery("cancel"), &none).await,
                200,
                &["delivery.cancelled"],
            ),
            "retryDelivery" => by_key(
                client.post(&delivery("retry"), &none).await,
                202,
                &["delivery.retried"],
            ),
            "eraseEvent" => {
                let answer = client.delete(&format!("/v1/events/{}", self.delivered)).await;
                by_key(answer, 204, &["event.erased"])
            }
            "forgetSetAside" => {
                let path = self.something_set_aside().await;
                assert_eq!(self.admin.delete(&path).await.status, 204);
                Some(Performed::by(
                    "admin_token",
                    &self.admin,
                    &["set_aside.discarded"],
                ))
            }
            "putBackSetAside" => {
                let path = self.something_set_aside().await;
                self.admin
                    .post_text(&format!("{path}/put-back"), "")
                    .await
                    .expect(202);
                Some(Performed::by("admin_token", &self.admin, &["set_aside.put_back"]))
            }
            _ => None,
        }
    }

    async fn something_set_aside(&self) -> String {
        let listed = self.admin.get("/v1/set-aside").await.expect(200);
        format!("/v1/set-aside/{}", text(&listed["data"][0], "id"))
    }
}

struct Performed {
    reader: Client,
    actor: &'static str,
    actions: BTreeSet<&'static str>,
}

impl Performed {
    fn by(actor: &'static str, reader: &Client, actions: &[&'static str]) -> Self {
        Self {
            reader: reader.clone(),
            actor,
            actions: actions.iter().copied().collect(),
        }
    }
}

/// Generated from the description: a route that changes something is in the log, or in the list with a reason.
async fn every_route_that_changes_something_is_in_the_log(engine: Engine) {
    let stage = Stage::set(engine).await;
    let document = stage.client.get("/openapi.json").await.expect(200);
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            if method != "get" {
                operations.push((
                    text(operation, "operationId").to_owned(),
                    format!("{method} {path}"),
                ));
            }
        }
    }
    // Erasing comes last: what is erased is not opened again.
    operations.sort_by_key(|(operation, _)| (operation == "eraseEvent", operation.clone()));
    assert!(operations.len() > 25, "{operations:?}");
    for (operation, route) in operations {
        if let Some((_, reason)) = LEAVES_NOTHING.iter().find(|(named, _)| *named == operation) {
            assert!(!reason.is_empty());
            continue;
        }
        let before = log(&stage.admin).await;
        let performed = stage.perform(&operation).await.unwrap_or_else(|| {
            panic!("{route} ({operation}): say here what it leaves in the audit log, or why nothing")
        });
        // An organization that is being removed takes its own entries with it meanwhile.
        let mut left = log(&stage.admin).await;
        left.retain(|entry| !before.contains(entry));
        let read = log(&performed.reader).await;
        for action in &performed.actions {
            let entry = left.iter().find(|entry| entry["action"] == *action);
            let entry = entry.unwrap_or_else(|| panic!("{route} leaves no {action}: {left:?}"));
            assert_eq!(entry["actor"]["kind"], performed.actor, "{route}: {entry}");
            assert!(entry["request_id"].is_string(), "{route}: {entry}");
            assert_eq!(entry["address"], "127.0.0.1", "{route}: {entry}");
            assert!(read.contains(entry), "{route}: whose it is can read {entry}");
        }
        for entry in &left {
            assert_ne!(entry["actor"]["kind"], "system", "{route}: {entry}");
        }
    }
}

#[expect(clippy::too_many_lines, reason = "one story")]
async fn the_log_tells_who_and_from_where(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let first = client.get("/v1/keys").await.expect(200)["data"][0]["id"].clone();
    let made = client
        .subscribe(&json!({"url": "http://127.0.0.1:9/hook", "headers": {"x-token": "hunter2"}}))
        .await;
    let path = format!("/v1/subscriptions/{}", made.id);
    let change = json!({"url": "http://127.0.0.1:9/s3cret", "headers": {"x-token": "hunter3"}, "timeout_ms": 5_000,
        "enabled": true, "description": null});
    let request = client
        .request(Method::PATCH, &path)
        .header("x-request-id", "a-request-of-mine")
        .json(&change);
    client.send(request).await.expect(200);
    let listed = client.get("/v1/audit-log").await;
    for secret in [
        "hunter2",
        "hunter3",
        "s3cret",
        "x-token",
        &made.secret,
        &client.key,
    ] {
        assert!(!listed.text.contains(secret), "{secret} is in {}", listed.text);
    }
    let listed = listed.expect(200);
    let entry = &listed["data"][0];
    assert_eq!(
        (&entry["action"], &entry["target"], &entry["organization"]),
        (
            &json!("subscription.updated"),
            &json!(made.id),
            &json!(client.organization)
        )
    );
    assert_eq!(entry["actor"], json!({"kind": "key", "key": first}));
    assert_eq!(
        entry["changed"],
        json!(["url", "headers", "timeout_ms"]),
        "what is as it was is not named"
    );
    assert_eq!(
        (&entry["request_id"], &entry["address"], &entry["reason"]),
        (&json!("a-request-of-mine"), &json!("127.0.0.1"), &json!(null))
    );
    let actions: Vec<_> = listed["data"]
        .as_array()
        .expect("a page")
        .iter()
        .map(|entry| &entry["action"])
        .collect();
    assert_eq!(
        actions
            .iter()
            .skip(1)
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>()
            .len(),
        3,
        "created, with its key, and subscribed: {actions:?}"
    );

    // What changes nothing, or is refused, leaves nothing.
    let before = log(&client).await;
    client
        .patch(&path, &json!({"timeout_ms": 5_000}))
        .await
        .expect(200);
    client
        .patch(&path, &json!({"timeout_ms": 5}))
        .await
        .problem(422, "invalid_request");
    client
        .post(&format!("{path}/enable"), &json!({}))
        .await
        .expect(200);
    client
        .patch("/v1/organization", &json!({"name": "an organization"}))
        .await
        .expect(200);
    let key = client
        .post("/v1/keys", &json!({"name": "short"}))
        .await
        .expect(201);
    let revoke = format!("/v1/keys/{}", text(&key, "id"));
    for _ in 0..2 {
        assert_eq!(client.delete(&revoke).await.status, 204);
    }
    client
        .delete("/v1/subscriptions/sub_01h455vb4pex5vsknk084sn02q")
        .await
        .problem(404, "not_found");
    let event = client.event("order.placed").await;
    client.look_up(&event).await;
    for _ in 0..2 {
        assert_eq!(client.delete(&format!("/v1/events/{event}")).await.status, 204);
    }
    let after = log(&client).await;
    let left: Vec<_> = after[..after.len() - before.len()]
        .iter()
        .map(|entry| text(entry, "action"))
        .collect();
    assert_eq!(left, ["event.erased", "key.revoked", "key.created"]);
}

async fn what_the_system_does_is_in_the_log(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(410));
    let gone = client.subscribe_url(&receiver.url("/hook")).await.id;
    client.event("order.placed").await;
    let entry = eventually("it is in the log", Duration::from_secs(20), async || {
        let log = log(&client).await;
        let found = log
            .iter()
            .find(|entry| entry["action"] == "subscription.disabled");
        found.cloned().ok_or_else(|| format!("{log:?}"))
    })
    .await;
    assert_eq!(entry["actor"], json!({"kind": "system", "key": null}));
    assert_eq!(
        (&entry["target"], &entry["changed"]),
        (&json!(gone), &json!(["enabled"]))
    );
    let shown = client.get(&format!("/v1/subscriptions/{gone}")).await.expect(200);
    assert_eq!(entry["reason"], shown["disabled_reason"]);
    assert!(entry["reason"].is_string() && entry["request_id"].is_null() && entry["address"].is_null());
}

async fn the_log_is_paged_and_filtered(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    for number in 0..5 {
        client
            .patch("/v1/organization", &json!({"name": number.to_string()}))
            .await
            .expect(200);
    }
    let whole = log(&client).await;
    assert_eq!(whole.len(), 7);
    let mut paged = Vec::new();
    let mut path = "/v1/audit-log?limit=2".to_owned();
    loop {
        let page = client.get(&path).await.expect(200);
        paged.extend(page["data"].as_array().expect("a page").clone());
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/audit-log?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(paged, whole);
    let times: Vec<&str> = whole.iter().map(|entry| text(entry, "at")).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    let some = async |query: &str| {
        let page = client.get(&format!("/v1/audit-log?{query}")).await.expect(200);
        page["data"].as_array().expect("a page").clone()
    };
    assert_eq!(some("action=organization.updated").await, whole[..5]);
    assert_eq!(some("action=key.revoked").await, Vec::<Value>::new());
    let middle = times[2];
    let (since, until) = (
        some(&format!("since={middle}")).await,
        some(&format!("until={middle}")).await,
    );
    assert!(since.iter().all(|entry| text(entry, "at") >= middle) && since.len() >= 3);
    assert!(until.iter().all(|entry| text(entry, "at") < middle));
    assert_eq!(since.len() + until.len(), whole.len());
    for bad in ["action=painted", "since=yesterday", "cursor=x", "limit=0"] {
        client
            .get(&format!("/v1/audit-log?{bad}"))
            .await
            .problem(422, "invalid_request");
    }
}

async fn the_log_is_read_by_those_who_administer(engine: Engine) {
    let world = World::start(engine).await;
    let (client, other) = (world.organization().await, world.organization().await);
    let admin = world.admin();
    for scope in ["events:read", "events:write", "subscriptions:write"] {
        let made = client
            .post("/v1/keys", &json!({"name": "less", "scopes": [scope]}))
            .await
            .expect(201);
        let less = client.with_key(text(&made, "key"));
        less.get("/v1/audit-log").await.problem(403, "forbidden");
    }
    client
        .with_key("nonsense")
        .get("/v1/audit-log")
        .await
        .problem(401, "unauthorized");
    let others = log(&other).await;
    assert!(
        others
            .iter()
            .all(|entry| entry["organization"] == other.organization.as_str())
    );
    let of = |organization: &str| format!("/v1/audit-log?organization={organization}");
    client
        .get(&of(&other.organization))
        .await
        .problem(404, "not_found");
    assert_eq!(
        client.get(&of(&client.organization)).await.expect(200)["data"]
            .as_array()
            .map(Vec::len),
        Some(log(&client).await.len())
    );
    assert_eq!(
        admin.get(&of(&other.organization)).await.expect(200)["data"],
        json!(others)
    );
    assert_eq!(log(&admin).await.len(), others.len() + log(&client).await.len());
}

async fn a_removed_organization_leaves_one_entry(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let admin = world.admin();
    let path = format!("/v1/organizations/{}", client.organization);
    admin.delete(&path).await.expect(202);
    admin.delete(&path).await.expect(202);
    eventually("it is removed", Duration::from_secs(30), async || {
        let shown = admin.get(&path).await.expect(200);
        if shown["removal"]["status"] == "removed" {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    })
    .await;
    let log = log(&admin).await;
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(
        (&log[0]["action"], &log[0]["target"], &log[0]["organization"]),
        (
            &json!("organization.removed"),
            &json!(client.organization),
            &json!(null)
        )
    );
}
