//! What can be seen of deliveries: where they are, why there are none, and how a subscription fares.

use std::time::Duration;

use harness::{Client, Engine, Receiver, Reply, World, eventually, on_both_engines};
use serde_json::{Value, json};

/// Within which what workers counted shows, on a busy machine.
const LONG: Duration = Duration::from_secs(30);
/// How many dead letters are to beget nothing more than their announcements.
const EVENTS: usize = 12;

on_both_engines!(
    deliveries_are_listed_by_what_became_of_them,
    an_event_says_whom_it_was_not_for,
    no_event_of_the_systems_own_begets_another,
    a_failing_subscriber_shows_in_its_statistics,
    metrics_tell_of_subscriptions_without_naming_any,
);

/// The events of all deliveries that a query shows, newest first.
async fn listed(client: &Client, query: &str) -> Vec<(String, String)> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client
            .get(&format!("/v1/deliveries?limit=2&{query}{cursor}"))
            .await
            .expect(200);
        let text = |delivery: &Value, name: &str| delivery[name].as_str().expect("a text").to_owned();
        let data = page["data"].as_array().expect("a list");
        all.extend(
            data.iter()
                .map(|delivery| (text(delivery, "event"), text(delivery, "subscription"))),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

async fn deliveries_are_listed_by_what_became_of_them(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let (client, stranger) = (world.organization().await, world.organization().await);
    receiver.always("/bad", Reply::Status(500));
    let good = client.subscribe_url(&receiver.url("/good")).await.id;
    let bad = client
        .subscribe(&json!({"url": receiver.url("/bad"), "retry_schedule_seconds": [600]}))
        .await
        .id;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = client.event("order.placed").await;
        client.delivery_becomes(&id, &bad, "retrying").await;
        client.delivery_becomes(&id, &good, "delivered").await;
        ids.insert(0, id);
    }
    let of = |subscription: &str| -> Vec<_> {
        ids.iter()
            .map(|id| (id.clone(), subscription.to_owned()))
            .collect()
    };
    assert_eq!(listed(&client, "status=delivered").await, of(&good));
    assert_eq!(listed(&client, "status=retrying").await, of(&bad));
    assert_eq!(listed(&client, &format!("subscription={bad}")).await, of(&bad));
    assert_eq!(listed(&client, "").await.len(), 6);
    let of_good = format!("subscription={good}&status=retrying");
    assert!(listed(&client, &of_good).await.is_empty());
    let since = client.look_up(&ids[0]).await["received_at"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        listed(&client, &format!("since={since}&status=retrying")).await,
        of(&bad)[..1]
    );
    client
        .post(&format!("/v1/subscriptions/{bad}/disable"), &json!({}))
        .await
        .expect(200);
    assert_eq!(listed(&client, "status=parked").await, of(&bad));
    client
        .post(
            &format!("/v1/events/{}/deliveries/{bad}/cancel", ids[1]),
            &json!({}),
        )
        .await
        .expect(200);
    assert_eq!(listed(&client, "status=cancelled").await, of(&bad)[1..2]);
    assert!(listed(&stranger, &format!("subscription={bad}")).await.is_empty());
}

async fn an_event_says_whom_it_was_not_for(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    let subscribe = async |event_types: &[&str]| {
        let body = json!({"url": receiver.url("/hook"), "event_types": event_types});
        client.subscribe(&body).await.id
    };
    let orders = subscribe(&["order.*"]).await;
    let users = subscribe(&["user.*"]).await;
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &orders, "delivered").await;
    let late = subscribe(&["order.**"]).await;
    let shown = client.look_up(&id).await;
    let mut reasons: Vec<(&str, &str)> = shown["not_matched"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| {
            (
                one["subscription"].as_str().unwrap(),
                one["reason"].as_str().unwrap(),
            )
        })
        .collect();
    // The inbox is older than what was subscribed.
    assert_eq!(reasons.remove(0).1, "others_match", "{shown}");
    assert_eq!(reasons, [(&*users, "event_type"), (&late, "created_later")]);
}

async fn no_event_of_the_systems_own_begets_another(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(422));
    receiver.always("/told", Reply::Status(500));
    let told = client
        .subscribe(&json!({
            "url": receiver.url("/told"), "event_types": ["triggers.**"], "retry_schedule_seconds": [],
        }))
        .await
        .id;
    let hook = client
        .subscribe(&json!({
            "url": receiver.url("/hook"), "event_types": ["order.*"], "retry_schedule_seconds": [],
        }))
        .await
        .id;
    for _ in 0..EVENTS {
        let id = client.event("order.placed").await;
        client.delivery_becomes(&id, &hook, "dead_letter").await;
    }
    // Each dead letter is told of, in vain; and that is all that ever comes of it.
    harness::eventually(
        "all are told of",
        std::time::Duration::from_mins(1),
        async || match listed(&client, &format!("subscription={told}&status=dead_letter"))
            .await
            .len()
        {
            EVENTS => Ok(()),
            count => Err(format!("{count} are")),
        },
    )
    .await;
    let last = client.event("order.placed").await;
    client.delivery_becomes(&last, &hook, "dead_letter").await;
    harness::eventually(
        "the last is told of",
        std::time::Duration::from_mins(1),
        async || match listed(&client, &format!("subscription={told}")).await.len() {
            count if count == EVENTS + 1 => Ok(()),
            count => Err(format!("{count} are")),
        },
    )
    .await;
    assert_eq!(listed(&client, "").await.len(), 2 * (EVENTS + 1));
}

/// Waits until the statistics of a subscription are as expected.
async fn stats(client: &Client, subscription: &str, what: &str, expected: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/v1/subscriptions/{subscription}/stats");
    eventually(what, LONG, async || {
        let stats = client.get(&path).await.expect(200);
        if expected(&stats) {
            Ok(stats)
        } else {
            Err(stats.to_string())
        }
    })
    .await
}

async fn a_failing_subscriber_shows_in_its_statistics(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(500));
    let hook = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": vec![1; 20]}))
        .await
        .id;
    let healthy = client.subscribe_url(&receiver.url("/good")).await.id;
    let events = 5_u64;
    for _ in 0..events {
        client.event("order.placed").await;
    }
    let failing = stats(&client, &hook, "its circuit is seen to be open", |stats| {
        stats["circuit"]["state"] != "closed"
    })
    .await;
    assert!(
        matches!(failing["circuit"]["state"].as_str(), Some("open" | "half_open")),
        "{failing}"
    );
    assert!(
        failing["circuit"]["since"].is_string() && failing["circuit"]["next_probe_at"].is_string(),
        "{failing}"
    );
    assert_eq!(failing["circuit"]["workers"], 1);
    assert_eq!(
        (&failing["backlog"], &failing["backlog_capped"]),
        (&events.into(), &false.into())
    );
    assert!(failing["oldest_undelivered_age_seconds"].is_u64(), "{failing}");
    let failing = stats(&client, &hook, "ten failures are counted", |stats| {
        stats["last_hour"]["failed"].as_u64() >= Some(10)
    })
    .await;
    let hour = &failing["last_hour"];
    assert_eq!(
        (&hour["succeeded"], &hour["success_rate"]),
        (&0.into(), &0.0.into())
    );
    assert_eq!(
        (&hour["attempts"], &hour["failures"]["status"]),
        (&hour["failed"], &hour["failed"])
    );
    assert!(
        hour["p50_ms"].as_u64() <= hour["p95_ms"].as_u64() && hour["p95_ms"].is_u64(),
        "{hour}"
    );
    assert!(
        failing["last_failure_at"].is_string() && failing["last_success_at"].is_null(),
        "{failing}"
    );

    let well = stats(&client, &healthy, "the healthy one's are counted", |stats| {
        stats["last_hour"]["succeeded"] == events
    })
    .await;
    assert_eq!(
        (&well["last_hour"]["success_rate"], &well["backlog"]),
        (&1.0.into(), &0.into())
    );
    assert_eq!(well["circuit"]["state"], "closed");
    assert!(well["oldest_undelivered_age_seconds"].is_null(), "{well}");

    receiver.always("/hook", Reply::Status(200));
    let mended = stats(&client, &hook, "all is delivered and told of", |stats| {
        stats["last_hour"]["succeeded"] == events && stats["circuit"]["state"] == "closed"
    })
    .await;
    assert_eq!(mended["backlog"], 0);
    assert!(
        mended["last_success_at"].as_str() > mended["last_failure_at"].as_str(),
        "{mended}"
    );
    // What was counted outlives the process that counted it.
    let worker = world.worker();
    assert!(worker.terminate().await.success());
    worker.start_again().await;
    worker.ready().await;
    let path = format!("/v1/subscriptions/{hook}/stats");
    let after = client.get(&path).await.expect(200);
    assert_eq!(after["last_hour"]["attempts"], mended["last_hour"]["attempts"]);
}

async fn metrics_tell_of_subscriptions_without_naming_any(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/bad", Reply::Status(500));
    let bad = client
        .subscribe(&json!({"url": receiver.url("/bad"), "retry_schedule_seconds": [600]}))
        .await
        .id;
    let parked = client.subscribe_url(&receiver.url("/parked")).await.id;
    client.subscribe_url(&receiver.url("/good")).await;
    client
        .post(&format!("/v1/subscriptions/{parked}/disable"), &json!({}))
        .await
        .expect(200);
    client.event("order.placed").await;
    let expected = [
        "triggers_subscriptions{circuit=\"closed\"} 2",
        "triggers_subscriptions{circuit=\"open\"} 0",
        "triggers_subscriptions{circuit=\"half_open\"} 0",
        "triggers_subscriptions_by_success{succeeded=\"all\"} 1",
        "triggers_subscriptions_by_success{succeeded=\"none\"} 1",
        "triggers_subscriptions_backlogged{older_than=\"1h\"} 0",
        "triggers_backlog_deliveries{state=\"parked\"} 1",
        "triggers_attempts_uncounted_total 0",
    ];
    let metrics = eventually("the gauges tell of them", LONG, async || {
        let metrics = world.get(world.worker(), "/metrics").await.text;
        match expected
            .iter()
            .find(|line| !metrics.lines().any(|other| other == **line))
        {
            None => Ok(metrics),
            Some(missing) => Err(format!("{missing} is missing")),
        }
    })
    .await;
    assert!(
        metrics.contains("triggers_backlog_oldest_undelivered_seconds "),
        "{metrics}"
    );
    for id in [&client.organization, &bad, &parked] {
        assert!(!metrics.contains(&**id), "no label tells of anybody");
    }
}
