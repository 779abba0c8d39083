//! Events are found again by what they are, and erased for good.

use std::time::Duration;

use harness::{Engine, Receiver, Reply, World, eventually, on_both_engines};
use http::Method;
use serde_json::{Value, json};

on_both_engines!(
    events_are_found_by_type_time_and_status,
    what_is_erased_is_gone_and_is_not_sent,
    what_waits_in_the_queue_is_erased_too,
    an_erased_event_is_not_replayed,
);

/// How often an event came to `/hook`.
fn times(receiver: &Receiver, event: &str) -> usize {
    let webhooks = receiver.received("/hook");
    webhooks
        .iter()
        .filter(|webhook| webhook.webhook_id() == event)
        .count()
}

const SOON: Duration = Duration::from_secs(20);

fn ids(page: &Value) -> Vec<String> {
    let events = page["data"].as_array().expect("a page");
    let ids = events.iter().map(|event| event["id"].as_str().expect("an id"));
    ids.map(str::to_owned).collect()
}

async fn events_are_found_by_type_time_and_status(engine: Engine) {
    let world = World::start(engine).await;
    let (client, stranger) = (world.organization().await, world.organization().await);
    let receiver = Receiver::start().await;
    client
        .subscribe(&json!({"url": receiver.url("/hook"), "event_types": ["user.*"]}))
        .await;
    let created = client.event("user.created").await;
    client.event_becomes(&created, "delivered").await;
    let placed = client.event("order.placed").await;
    let placed = client.event_becomes(&placed, "pending").await;
    let at = placed["received_at"].as_str().expect("a time").to_owned();
    let placed = placed["id"].as_str().expect("an id").to_owned();
    for (query, shown) in [
        (String::new(), vec![&placed, &created]),
        ("?type=user.*".to_owned(), vec![&created]),
        ("?status=pending".to_owned(), vec![&placed]),
        ("?status=delivered".to_owned(), vec![&created]),
        ("?status=cancelled".to_owned(), vec![]),
        (format!("?since={at}"), vec![&placed]),
        (format!("?until={at}"), vec![&created]),
    ] {
        let page = client.get(&format!("/v1/events{query}")).await.expect(200);
        assert_eq!(ids(&page).iter().collect::<Vec<_>>(), shown, "{query}");
    }
    let page = client.get("/v1/events?limit=1").await.expect(200);
    let next = page["next_cursor"].as_str().expect("there is more");
    let rest = client
        .get(&format!("/v1/events?limit=1&cursor={next}"))
        .await
        .expect(200);
    assert_eq!(ids(&rest), [created]);
    assert_eq!(ids(&stranger.get("/v1/events").await.expect(200)), [""; 0]);
    let bad = client.get("/v1/events?type=a**&since=x&status=y").await;
    let problem = bad.problem(422, "invalid_request");
    let parameters = problem["errors"].as_array().expect("errors").iter();
    let parameters: Vec<_> = parameters.map(|error| error["parameter"].clone()).collect();
    assert_eq!(parameters, ["type", "since", "status"]);
}

async fn what_is_erased_is_gone_and_is_not_sent(engine: Engine) {
    let world = World::start(engine).await;
    let (client, stranger) = (world.organization().await, world.organization().await);
    let receiver = Receiver::start().await;
    receiver.always("/hook", Reply::Status(503));
    let hook = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [1, 1, 1]}))
        .await;
    let body = json!({
        "type": "user.created", "payload": {"name": "A Person"}, "source": "a person's device", "dedup_id": "person-1",
    });
    let event = client.accepted(&body).await;
    let other = client.event("user.created").await;
    client.delivery_becomes(&event, &hook.id, "retrying").await;
    let path = format!("/v1/events/{event}");
    // To a stranger it is an id like any other, of which nothing is known.
    stranger.delete(&path).await;
    assert_eq!(client.look_up(&event).await["payload"]["name"], "A Person");
    let erased = client.delete(&path).await;
    assert_eq!((erased.status, erased.text.as_str()), (204, ""));
    let shown = client.look_up(&event).await;
    assert_eq!(shown["status"], "cancelled");
    assert!(shown["erased_at"].is_string(), "{shown}");
    assert_eq!(
        (&shown["payload"], &shown["source"], &shown["dedup_id"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let text = client.get(&path).await.text.to_lowercase();
    assert!(!text.contains("person"), "{text}");
    // The other goes on to its end, and that one is not sent in between.
    let so_far = times(&receiver, &event);
    client.delivery_becomes(&other, &hook.id, "dead_letter").await;
    assert!(
        times(&receiver, &event) <= so_far + 1,
        "but for what was under way"
    );
    assert_eq!(client.look_up(&event).await["status"], "cancelled");
    // The key still stands for it.
    let again = client.accepted(&body).await;
    let again = client.look_up(&again).await;
    assert_eq!((&again["id"], &again["payload"]), (&json!(event), &Value::Null));
    assert_eq!(client.delete(&path).await.status, 204, "again changes nothing");
}

async fn what_waits_in_the_queue_is_erased_too(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let receiver = Receiver::start().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let secret = json!({"type": "user.created", "payload": {"name": "A Person"}});
    // With servers the worker is away meanwhile, and the queue holds the event.
    let waits = engine == Engine::Servers;
    if waits {
        world.worker().kill().await;
    }
    let event = client.accepted(&secret).await;
    let path = format!("/v1/events/{event}");
    assert_eq!(client.delete(&path).await.status, 204);
    let after = client.event("user.created").await;
    if waits {
        world.worker().start_again().await;
        world.worker().ready().await;
    }
    client.event_becomes(&after, "delivered").await;
    let shown = client.look_up(&event).await;
    assert!(shown["erased_at"].is_string(), "{shown}");
    assert_eq!(shown["payload"], Value::Null);
    if waits {
        assert_eq!(shown["status"], "cancelled");
        assert_eq!(times(&receiver, &event), 0, "it was never sent");
    }
}

async fn an_erased_event_is_not_replayed(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let receiver = Receiver::start().await;
    let hook = client.subscribe_url(&receiver.url("/hook")).await;
    let (gone, stays) = (
        client.event("user.created").await,
        client.event("user.created").await,
    );
    for event in [&gone, &stays] {
        client.event_becomes(event, "delivered").await;
    }
    assert_eq!(client.delete(&format!("/v1/events/{gone}")).await.status, 204);
    let retry = format!("/v1/events/{gone}/deliveries/{}/retry", hook.id);
    client.post(&retry, &json!({})).await.problem(409, "conflict");
    let replay = client
        .post(
            &format!("/v1/subscriptions/{}/replay", hook.id),
            &json!({"statuses": ["delivered"]}),
        )
        .await
        .expect(202);
    let path = format!(
        "/v1/subscriptions/{}/replays/{}",
        hook.id,
        replay["id"].as_str().expect("an id")
    );
    let done = eventually("the replay is done", SOON, async || {
        let replay = client.get(&path).await.expect(200);
        if replay["status"] == "done" {
            Ok(replay)
        } else {
            Err(replay.to_string())
        }
    })
    .await;
    assert_eq!((&done["looked_at"], &done["opened"]), (&json!(2), &json!(1)));
    eventually("the other is sent again", SOON, async || {
        match times(&receiver, &stays) {
            2 => Ok(()),
            times => Err(times.to_string()),
        }
    })
    .await;
    assert_eq!(times(&receiver, &gone), 1);
    client.event_becomes(&stays, "delivered").await;
    // Nor is it listed as something to fetch.
    let listed = client.send(client.request(Method::GET, "/v1/inbox")).await;
    assert_eq!(ids(&listed.expect(200)), [""; 0]);
}
