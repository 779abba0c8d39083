//! Events of the system's own: told to whoever subscribes to them, and to nobody else.

use std::time::Duration;

use harness::{Client, Engine, Received, Receiver, Reply, World, eventually, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    a_dead_letter_is_announced_and_begets_no_other,
    gone_is_announced,
    a_listener_that_is_gone_begets_no_other,
    nobody_who_has_not_asked_is_told,
    who_begins_to_listen_later_is_told_of_what_happens_then,
    what_a_filter_leaves_to_nobody_is_not_kept,
    days_of_failure_disable_and_recovery_is_announced,
    what_ends_five_days_of_failure,
);

fn data(webhook: &Received) -> Value {
    serde_json::from_str(webhook.envelope().data.get()).expect("a payload is JSON")
}

/// Subscribes a path to the system's own events.
async fn listen(client: &Client, receiver: &Receiver, path: &str) -> harness::Subscription {
    client
        .subscribe(
            &json!({"url": receiver.url(path), "event_types": ["triggers.**"], "retry_schedule_seconds": []}),
        )
        .await
}

async fn a_dead_letter_is_announced_and_begets_no_other(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(422));
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1]}))
        .await;
    let listener = listen(&client, &receiver, "/told").await;
    // One that fails itself: its own dead letters are announced to nobody.
    receiver.always("/deaf", Reply::Status(500));
    let deaf = listen(&client, &receiver, "/deaf").await;
    let id = client.event("order.placed").await;
    let told = receiver.wait_for("/told", 1).await.remove(0);
    told.verify(&listener.secret).expect("signed as any other");
    assert_eq!(told.envelope().r#type, "triggers.delivery.dead_lettered");
    let expected = json!({
        "event": id, "event_type": "order.placed", "subscription": subscription.id, "attempts": 2,
        "error": "status", "status_code": 422,
    });
    assert_eq!(data(&told), expected);
    let announced = told.webhook_id().to_owned();
    client.delivery_becomes(&announced, &deaf.id, "dead_letter").await;
    // Another goes through the same way, and is all that follows.
    let other = client.event("order.placed").await;
    let all = receiver.wait_for("/told", 2).await;
    assert_eq!(data(&all[1])["event"], other);
    client
        .delivery_becomes(all[1].webhook_id(), &deaf.id, "dead_letter")
        .await;
    assert_eq!((receiver.count("/told"), receiver.count("/deaf")), (2, 2));
    let inbox = client.get("/v1/inbox").await;
    assert!(!inbox.text.contains("triggers."), "{}", inbox.text);
}

async fn gone_is_announced(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let (client, stranger) = (world.organization().await, world.organization().await);
    receiver.always("/hook", Reply::Status(410));
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    listen(&client, &receiver, "/told").await;
    listen(&stranger, &receiver, "/stranger").await;
    client.event("order.placed").await;
    let told = receiver.wait_for("/told", 1).await.remove(0);
    assert_eq!(told.envelope().r#type, "triggers.subscription.disabled");
    assert_eq!(data(&told)["subscription"], subscription.id);
    assert_eq!(receiver.count("/stranger"), 0);
}

async fn a_listener_that_is_gone_begets_no_other(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(422));
    client
        .subscribe(
            &json!({"url": receiver.url("/hook"), "event_types": ["order.*"], "retry_schedule_seconds": []}),
        )
        .await;
    receiver.always("/gone", Reply::Status(410));
    let gone = listen(&client, &receiver, "/gone").await;
    listen(&client, &receiver, "/told").await;
    let first = client.event("order.placed").await;
    client.becomes_disabled(&gone.id).await;
    // What is announced is taken in in order: nothing was between these.
    let second = client.event("order.placed").await;
    let told = receiver.wait_for("/told", 2).await;
    let of: Vec<_> = told
        .iter()
        .map(|webhook| data(webhook)["event"].clone())
        .collect();
    assert_eq!(of, [first, second]);
}

async fn nobody_who_has_not_asked_is_told(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(422));
    let subscription = client
        .subscribe(
            &json!({"url": receiver.url("/hook"), "event_types": ["order.*"], "retry_schedule_seconds": []}),
        )
        .await;
    client.subscribe_url(&receiver.url("/all")).await;
    let id = client.event("order.placed").await;
    client
        .delivery_becomes(&id, &subscription.id, "dead_letter")
        .await;
    // Whoever asks from now on is told of what happens from now on.
    listen(&client, &receiver, "/told").await;
    let other = client.event("order.placed").await;
    let told = receiver.wait_for("/told", 1).await.remove(0);
    assert_eq!(data(&told)["event"], other);
    let all = receiver.wait_for("/all", 2).await;
    assert!(
        all.iter()
            .all(|webhook| webhook.envelope().r#type == "order.placed")
    );
    // What was just sent is open until that is written down; nothing stays.
    eventually("nothing is undelivered", Duration::from_secs(10), async || {
        let inbox = client.get("/v1/inbox").await.expect(200);
        match inbox["data"].as_array().map(Vec::len) {
            Some(0) => Ok(()),
            _ => Err(inbox.to_string()),
        }
    })
    .await;
}

async fn who_begins_to_listen_later_is_told_of_what_happens_then(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(422));
    let subscription = client
        .subscribe(
            &json!({"url": receiver.url("/hook"), "event_types": ["order.*"], "retry_schedule_seconds": [6]}),
        )
        .await;
    // What the worker knows of subscriptions, it knows from this event; none comes after it.
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "retrying").await;
    listen(&client, &receiver, "/told").await;
    client
        .delivery_becomes(&id, &subscription.id, "dead_letter")
        .await;
    let told = receiver.wait_for("/told", 1).await.remove(0);
    assert_eq!(told.envelope().r#type, "triggers.delivery.dead_lettered");
    assert_eq!(data(&told)["event"], id);
}

async fn what_a_filter_leaves_to_nobody_is_not_kept(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::Status(422), Reply::Status(404)]);
    let subscription = client
        .subscribe(
            &json!({"url": receiver.url("/hook"), "event_types": ["order.*"], "retry_schedule_seconds": []}),
        )
        .await;
    client
        .subscribe(&json!({
            "url": receiver.url("/told"), "event_types": ["triggers.**"], "filter": "payload.status_code == 404",
        }))
        .await;
    for _ in 0..2 {
        let id = client.event("order.placed").await;
        client
            .delivery_becomes(&id, &subscription.id, "dead_letter")
            .await;
    }
    // They are taken in in order: the first has been looked at.
    let told = receiver.wait_for("/told", 1).await.remove(0);
    assert_eq!(data(&told)["status_code"], 404);
    let kept = client.get("/v1/events?type=triggers.**").await.expect(200);
    let ids: Vec<_> = kept["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| &event["id"])
        .collect();
    assert_eq!(ids, [told.webhook_id()], "{kept}");
}

async fn days_of_failure_disable_and_recovery_is_announced(engine: Engine) {
    // Five days are six seconds here.
    let world = World::with(engine)
        .set("TRIGGERS_DISABLE_AFTER_SECONDS", 6)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    listen(&client, &receiver, "/told").await;
    receiver.always("/hook", Reply::Status(500));
    let subscription = client
        .subscribe(&json!({
            "url": receiver.url("/hook"), "event_types": ["order.*"], "retry_schedule_seconds": vec![1; 20],
        }))
        .await;
    let id = client.event("order.placed").await;
    let path = format!("/v1/subscriptions/{}", subscription.id);
    let shown = client.becomes_disabled(&subscription.id).await;
    let reason = shown["disabled_reason"].as_str().expect("a reason");
    assert!(reason.starts_with("every attempt has failed for"), "{reason}");
    client.delivery_becomes(&id, &subscription.id, "parked").await;
    let told = receiver.wait_for("/told", 1).await;
    assert_eq!(told[0].envelope().r#type, "triggers.subscription.disabled");

    // Enabled again, it has its time again; a success after a while is a recovery.
    client
        .post(&format!("{path}/enable"), &json!({}))
        .await
        .expect(200);
    let count = receiver.count("/hook");
    receiver
        .wait_for_within("/hook", count + 3, Duration::from_secs(30))
        .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    receiver.always("/hook", Reply::Status(200));
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
    let told = receiver.wait_for("/told", 2).await;
    let types: Vec<&str> = told.iter().map(|webhook| webhook.envelope().r#type).collect();
    assert_eq!(types[1], "triggers.subscription.recovered", "{types:?}");
}

async fn what_ends_five_days_of_failure(engine: Engine) {
    // Five days are six seconds here; the only retry comes after nine and a half at least.
    let world = World::with(engine)
        .set("TRIGGERS_DISABLE_AFTER_SECONDS", 6)
        .start()
        .await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let names = ["nothing", "moved", "tested", "paused"];
    let mut subscriptions = Vec::new();
    for name in names {
        receiver.always(&format!("/{name}"), Reply::Status(500));
        subscriptions.push(
            client
                .subscribe(&json!({
                    "url": receiver.url(&format!("/{name}")), "event_types": [format!("{name}.*")],
                    "retry_schedule_seconds": [12],
                }))
                .await,
        );
    }
    receiver.script("/tested", [Reply::Status(500), Reply::Status(200)]);
    receiver.always("/elsewhere", Reply::Status(500));
    client
        .subscribe(&json!({"url": receiver.url("/witness"), "event_types": ["witness.*"]}))
        .await;
    // What came after the last outcome of the others has arrived: all that follows from theirs is done.
    let witness = async || {
        let id = client.event("witness.posted").await;
        client.event_becomes(&id, "delivered").await;
    };

    let mut events = Vec::new();
    for (name, subscription) in names.iter().zip(&subscriptions) {
        let id = client.event(&format!("{name}.posted")).await;
        client.delivery_becomes(&id, &subscription.id, "retrying").await;
        events.push(id);
    }
    witness().await;
    let path = |at: usize| format!("/v1/subscriptions/{}", subscriptions[at].id);
    let moved = json!({"url": receiver.url("/elsewhere")});
    client.patch(&path(1), &moved).await.expect(200);
    let tested = client
        .post(&format!("{}/test", path(2)), &json!({}))
        .await
        .expect(200);
    for what in ["disable", "enable"] {
        client
            .post(&format!("{}/{what}", path(3)), &json!({}))
            .await
            .expect(200);
    }
    // Nothing ends it for the first.
    client.becomes_disabled(&subscriptions[0].id).await;
    for at in 1..4 {
        client
            .delivery_becomes(&events[at], &subscriptions[at].id, "dead_letter")
            .await;
    }
    witness().await;
    for (at, name) in names.iter().enumerate().skip(1) {
        let shown = client.get(&path(at)).await.expect(200);
        assert_eq!(shown["enabled"], true, "{name}: {shown}; {tested}");
    }
}
