//! Deliveries that are opened again, called off, parked and drained.

use std::time::Duration;

use harness::{Client, Engine, Received, Receiver, Reply, World, eventually, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    a_dead_letter_is_retried_with_its_schedule_anew,
    one_is_called_off_while_it_is_under_way,
    one_is_called_off_while_it_waits_in_its_lane,
    a_subscription_disabled_meanwhile_ends_well,
    enabling_drains_in_order,
    a_replay_opens_what_ended_as_asked,
    what_cannot_be_opened_or_called_off,
);

fn path(event: &str, subscription: &str, act: &str) -> String {
    format!("/v1/events/{event}/deliveries/{subscription}/{act}")
}

async fn a_dead_letter_is_retried_with_its_schedule_anew(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(500));
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1]}))
        .await;
    let id = client.event("order.placed").await;
    client
        .delivery_becomes(&id, &subscription.id, "dead_letter")
        .await;
    assert_eq!(receiver.count("/hook"), 2);
    let opened = client
        .post(&path(&id, &subscription.id, "retry"), &json!({}))
        .await
        .expect(202);
    assert_eq!(opened["attempts"], 2, "{opened}");
    receiver.wait_for("/hook", 4).await;
    let delivery = client
        .delivery_becomes(&id, &subscription.id, "dead_letter")
        .await;
    assert_eq!(delivery["attempts"], 4, "two more: its schedule began anew");
    let numbers: Vec<String> = receiver
        .received("/hook")
        .iter()
        .map(|webhook| webhook.header("webhook-attempt").to_owned())
        .collect();
    assert_eq!(numbers, ["1", "2", "3", "4"]);
    receiver.always("/hook", Reply::Status(200));
    client
        .post(&path(&id, &subscription.id, "retry"), &json!({}))
        .await
        .expect(202);
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
}

async fn one_is_called_off_while_it_is_under_way(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::LateStatus(Duration::from_millis(1_500), 500)]);
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1, 1]}))
        .await;
    let id = client.event("order.placed").await;
    receiver.wait_for("/hook", 1).await;
    for _ in 0..2 {
        let cancelled = client
            .post(&path(&id, &subscription.id, "cancel"), &json!({}))
            .await;
        assert_eq!(
            cancelled.expect(200)["status"],
            "cancelled",
            "as often as one likes"
        );
    }
    let other = client.event("order.placed").await;
    client
        .delivery_becomes(&other, &subscription.id, "delivered")
        .await;
    let delivery = client.delivery_becomes(&id, &subscription.id, "cancelled").await;
    assert_eq!(
        delivery["attempts"], 0,
        "what was under way counts for nothing: {delivery}"
    );
    assert_eq!(client.look_up(&id).await["status"], "cancelled");
}

async fn one_is_called_off_while_it_waits_in_its_lane(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    // Shorter than a delivery waits before the store is asked whether it is still to be sent.
    let late = Reply::Late(Duration::from_millis(1_800));
    receiver.script("/hook", [late.clone()]);
    receiver.script("/other", [late]);
    let one_at_a_time = |path| json!({"url": receiver.url(path), "max_in_flight": 1});
    let subscription = client.subscribe(&one_at_a_time("/hook")).await;
    let other = client.subscribe(&one_at_a_time("/other")).await;
    client.event("order.placed").await;
    receiver.wait_for("/hook", 1).await;
    receiver.wait_for("/other", 1).await;
    let called_off = client.event("order.placed").await;
    let last = client.event("order.placed").await;
    // It waits in both lanes by now.
    eventually("it is held", Duration::from_secs(10), async || {
        let event = client.look_up(&called_off).await;
        let held = event["deliveries"]
            .as_array()
            .map(|all| all.len() == 2 && all.iter().all(|one| one["status"] == "in_flight"));
        if held == Some(true) {
            Ok(())
        } else {
            Err(event.to_string())
        }
    })
    .await;
    client
        .post(&path(&called_off, &subscription.id, "cancel"), &json!({}))
        .await
        .expect(200);
    client
        .delivery_becomes(&last, &subscription.id, "delivered")
        .await;
    assert!(
        !receiver.has("/hook", &called_off),
        "it was not under way when it was called off"
    );
    // To the other it goes.
    client.delivery_becomes(&called_off, &other.id, "delivered").await;
    assert_eq!((receiver.count("/hook"), receiver.count("/other")), (2, 3));
}

async fn a_subscription_disabled_meanwhile_ends_well(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::LateStatus(Duration::from_millis(1_500), 500)]);
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1, 1]}))
        .await;
    let id = client.event("order.placed").await;
    receiver.wait_for("/hook", 1).await;
    let act = |act: &'static str| format!("/v1/subscriptions/{}/{act}", subscription.id);
    for _ in 0..2 {
        assert_eq!(
            client.post(&act("disable"), &json!({})).await.expect(200)["enabled"],
            false
        );
    }
    let parked = client.delivery_becomes(&id, &subscription.id, "parked").await;
    eventually(
        "the attempt is written down",
        Duration::from_secs(10),
        async || {
            let delivery = client
                .get(&format!("/v1/events/{id}/deliveries/{}", subscription.id))
                .await
                .expect(200);
            if delivery["attempts"] == 1 {
                Ok(())
            } else {
                Err(delivery.to_string())
            }
        },
    )
    .await;
    assert!(receiver.count("/hook") == 1, "{parked}");
    assert_eq!(
        client.post(&act("enable"), &json!({})).await.expect(200)["enabled"],
        true
    );
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
}

async fn enabling_drains_in_order(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "enabled": false, "max_in_flight": 1}))
        .await;
    let mut ids = Vec::new();
    for _ in 0..30 {
        let id = client.event("order.placed").await;
        client.look_up(&id).await;
        ids.push(id);
    }
    let enable = format!("/v1/subscriptions/{}/enable", subscription.id);
    client.post(&enable, &json!({})).await.expect(200);
    let webhooks = receiver.wait_for("/hook", 30).await;
    let order: Vec<&str> = webhooks.iter().map(Received::webhook_id).collect();
    assert_eq!(order, ids);
}

async fn done(client: &Client, path: &str) -> Value {
    eventually("the replay is done", Duration::from_secs(30), async || {
        let replay = client.get(path).await.expect(200);
        if replay["status"] == "done" {
            Ok(replay)
        } else {
            Err(replay.to_string())
        }
    })
    .await
}

async fn a_replay_opens_what_ended_as_asked(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(400));
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": []}))
        .await;
    let (mut users, mut orders) = (Vec::new(), Vec::new());
    // Fewer than open its circuit.
    for _ in 0..4 {
        users.push(client.event("user.created").await);
        orders.push(client.event("order.placed").await);
    }
    for id in users.iter().chain(&orders) {
        client.delivery_becomes(id, &subscription.id, "dead_letter").await;
    }
    receiver.always("/hook", Reply::Status(200));
    let replay = format!("/v1/subscriptions/{}/replay", subscription.id);
    let made = client
        .post(&replay, &json!({"event_types": ["user.*"]}))
        .await
        .expect(202);
    assert_eq!(made["statuses"], json!(["dead_letter"]), "{made}");
    let shown = format!("{replay}s/{}", made["id"].as_str().expect("an id"));
    let replayed = done(&client, &shown).await;
    assert_eq!(replayed["opened"], 4, "{replayed}");
    for id in &users {
        client.delivery_becomes(id, &subscription.id, "delivered").await;
    }
    for id in &orders {
        client.delivery_becomes(id, &subscription.id, "dead_letter").await;
    }
    // What was delivered is sent again only if that is asked for.
    let made = client
        .post(&replay, &json!({"until": "2020-01-01T00:00:00Z"}))
        .await
        .expect(202);
    let none = done(
        &client,
        &format!("{replay}s/{}", made["id"].as_str().expect("an id")),
    )
    .await;
    assert_eq!(none["opened"], 0, "{none}");
    let made = client
        .post(&replay, &json!({"statuses": ["delivered"]}))
        .await
        .expect(202);
    let again = done(
        &client,
        &format!("{replay}s/{}", made["id"].as_str().expect("an id")),
    )
    .await;
    assert_eq!(again["opened"], 4, "{again}");
    let listed = client.get(&format!("{replay}s")).await.expect(200);
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(3), "{listed}");
    receiver.wait_for("/hook", 8 + 4 + 4).await;
}

async fn what_cannot_be_opened_or_called_off(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let (client, stranger) = (world.organization().await, world.organization().await);
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
    let replay = format!("/v1/subscriptions/{}/replay", subscription.id);
    for path in [
        path(&id, &subscription.id, "retry"),
        path(&id, &subscription.id, "cancel"),
        replay.clone(),
    ] {
        stranger.post(&path, &json!({})).await.problem(404, "not_found");
    }
    client
        .post(&path(&id, &subscription.id, "cancel"), &json!({}))
        .await
        .problem(409, "conflict");
    for (body, pointer) in [
        (json!({"statuses": ["pending"]}), "/statuses/0"),
        (json!({"statuses": []}), "/statuses"),
        (json!({"since": "yesterday"}), "/since"),
        (
            json!({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}),
            "/until",
        ),
        (json!({"event_types": ["a*"]}), "/event_types/0"),
        (json!({"all": true}), "/all"),
    ] {
        let answer = client.post(&replay, &body).await;
        assert_eq!(
            (answer.status, answer.pointers()),
            (422, vec![pointer.to_owned()]),
            "{body}"
        );
    }
    let made = client.post(&replay, &json!({})).await.expect(202);
    let shown = format!("{replay}s/{}", made["id"].as_str().expect("an id"));
    stranger.get(&shown).await.problem(404, "not_found");
    stranger.delete(&shown).await.problem(404, "not_found");
    assert_eq!(client.delete(&shown).await.status, 204);
    client
        .delete(&format!("/v1/subscriptions/{}", subscription.id))
        .await;
    client
        .post(&path(&id, &subscription.id, "retry"), &json!({}))
        .await
        .problem(409, "conflict");
}
