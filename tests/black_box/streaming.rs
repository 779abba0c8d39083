//! Events are followed as they come, from any place on, without a gap and without a repeat.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use harness::{Client, Engine, EventStream, World, on_both_engines};
use http::Method;
use serde_json::json;
use tokio::task::JoinSet;

on_both_engines!(
    events_come_as_they_are_posted,
    a_stream_is_one_organizations_and_of_the_types_asked_for,
    a_stream_goes_on_after_the_last_event,
    a_stream_begins_with_what_was_accepted_since,
    a_stream_ends_after_its_time,
    a_stream_shows_events_by_what_became_of_them,
    who_follows_misses_and_repeats_nothing,
    a_stream_ends_with_its_key,
    streams_do_not_hold_up_the_end,
    streams_are_bounded_in_number,
);

const SOON: Duration = Duration::from_secs(20);

async fn open(client: &Client, query: &str) -> EventStream {
    EventStream::open(client.request(Method::GET, &format!("/v1/events/stream{query}"))).await
}

async fn after(client: &Client, query: &str, last: &str) -> EventStream {
    let request = client
        .request(Method::GET, &format!("/v1/events/stream{query}"))
        .header("last-event-id", last);
    EventStream::open(request).await
}

async fn events_come_as_they_are_posted(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let before = client.event("order.placed").await;
    client.look_up(&before).await;
    let mut stream = open(&client, "").await;
    let event = json!({
        "type": "user.created", "payload": {"n": 1}, "source": "a shop", "dedup_id": "k",
        "occurred_at": "2026-01-31T12:00:00.000Z",
    });
    let id = client.accepted(&event).await;
    let came = stream.next(SOON).await.expect("it comes");
    assert_eq!(
        (came.id.as_str(), came.event.as_str()),
        (id.as_str(), "user.created")
    );
    let shown = client.look_up(&id).await;
    for member in [
        "id",
        "type",
        "payload",
        "source",
        "dedup_id",
        "occurred_at",
        "received_at",
        "erased_at",
    ] {
        assert_eq!(came.data[member], shown[member], "{member}");
    }
    // A repeat is nothing new, and neither is what becomes of an event.
    client.accepted(&event).await;
    client
        .post(&format!("/v1/inbox/{id}/ack"), &json!({}))
        .await
        .expect(200);
    let next = client.event("user.deleted").await;
    assert_eq!(stream.next(SOON).await.expect("it comes").id, next);
}

async fn a_stream_is_one_organizations_and_of_the_types_asked_for(engine: Engine) {
    let world = World::start(engine).await;
    let (client, stranger) = (world.organization().await, world.organization().await);
    let mut users = open(&client, "?type=user.*").await;
    let mut all = open(&client, "").await;
    stranger.event("user.created").await;
    let (order, user) = (
        client.event("order.placed").await,
        client.event("user.created").await,
    );
    assert_eq!(users.next(SOON).await.expect("it comes").id, user);
    let seen: HashSet<_> = [
        all.next(SOON).await.expect("it comes").id,
        all.next(SOON).await.expect("it comes").id,
    ]
    .into();
    assert_eq!(seen, HashSet::from([order.clone(), user]));
    for (query, header, names) in [
        ("?type=a**&last_event_id=x", None, vec!["type", "last_event_id"]),
        (
            "?status=lost&since=today&until=2026-01-01",
            None,
            vec!["since", "until", "status"],
        ),
        ("", Some("x"), vec!["last-event-id"]),
    ] {
        let mut request = client.request(Method::GET, &format!("/v1/events/stream{query}"));
        if let Some(value) = header {
            request = request.header("last-event-id", value);
        }
        let problem = client.send(request).await.problem(422, "invalid_request");
        let errors = problem["errors"].as_array().expect("errors").iter();
        let named: Vec<_> = errors
            .map(|error| {
                error["parameter"]
                    .as_str()
                    .or(error["header"].as_str())
                    .unwrap_or_default()
            })
            .collect();
        assert_eq!(named, names, "{problem}");
    }
    // Nobody goes on after what is not there, or is another's.
    for last in ["evt_01h455vb4pex5vsknk084sn02q", order.as_str()] {
        let request = stranger
            .request(Method::GET, "/v1/events/stream")
            .header("last-event-id", last);
        stranger.send(request).await.problem(404, "not_found");
    }
}

async fn a_stream_goes_on_after_the_last_event(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let mut posted = Vec::new();
    for _ in 0..5 {
        let id = client.event("order.placed").await;
        client.look_up(&id).await;
        posted.push(id);
    }
    let mut stream = after(&client, "", &posted[1]).await;
    for id in &posted[2..] {
        assert_eq!(&stream.next(SOON).await.expect("it comes").id, id);
    }
    drop(stream);
    // The query says where to begin; who comes again has the newer one in the header.
    let mut stream = open(&client, &format!("?last_event_id={}", posted[2])).await;
    assert_eq!(stream.next(SOON).await.expect("it comes").id, posted[3]);
    let query = format!("?last_event_id={}", posted[2]);
    let mut stream = after(&client, &query, &posted[3]).await;
    assert_eq!(stream.next(SOON).await.expect("it comes").id, posted[4]);
    drop(stream);
    // However it ended: with the process that served it.
    world.api().kill().await;
    world.api().start_again().await;
    world.api().ready().await;
    let mut stream = after(&client, "", &posted[0]).await;
    let fresh = client.event("order.placed").await;
    for id in posted[1..].iter().chain([&fresh]) {
        assert_eq!(&stream.next(SOON).await.expect("it comes").id, id);
    }
    // After one that was answered just now, and may not be stored yet.
    let last = client.event("order.placed").await;
    let mut stream = after(&client, "", &last).await;
    let next = client.event("order.placed").await;
    assert_eq!(stream.next(SOON).await.expect("it comes").id, next);
}

/// The time at which an event was accepted.
async fn accepted_at(client: &Client, id: &str) -> String {
    let shown = client.look_up(id).await;
    shown["received_at"].as_str().expect("a time").to_owned()
}

/// Posts events one after another: each is stored before the next is accepted.
async fn posted(client: &Client, types: &[&str]) -> Vec<String> {
    let mut posted = Vec::new();
    for event_type in types {
        let id = client.event(event_type).await;
        client.look_up(&id).await;
        posted.push(id);
    }
    posted
}

async fn a_stream_begins_with_what_was_accepted_since(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let posted = posted(&client, &["order.a", "order.b", "user.c", "order.d"]).await;
    let since = accepted_at(&client, &posted[1]).await;
    let mut stream = open(&client, &format!("?since={since}")).await;
    let mut orders = open(&client, &format!("?since={since}&type=order.*")).await;
    // Who comes again goes on after what was seen.
    let mut resumed = after(&client, &format!("?since={since}"), &posted[2]).await;
    let fresh = client.event("order.fresh").await;
    for id in posted[1..].iter().chain([&fresh]) {
        assert_eq!(&stream.next(SOON).await.expect("it comes").id, id);
    }
    for id in [&posted[1], &posted[3], &fresh] {
        assert_eq!(&orders.next(SOON).await.expect("it comes").id, id);
    }
    for id in [&posted[3], &fresh] {
        assert_eq!(&resumed.next(SOON).await.expect("it comes").id, id);
    }
    // Not before its time, however far back it goes on from.
    let mut late = after(&client, &format!("?since={since}"), &posted[0]).await;
    assert_eq!(late.next(SOON).await.expect("it comes").id, posted[1]);
    let mut all = open(&client, "?since=0000-01-01T00:00:00Z").await;
    assert_eq!(all.next(SOON).await.expect("it comes").id, posted[0]);
}

async fn a_stream_ends_after_its_time(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let posted = posted(&client, &["order.a", "order.b", "order.c"]).await;
    let (since, until) = (
        accepted_at(&client, &posted[0]).await,
        accepted_at(&client, &posted[2]).await,
    );
    let mut stream = open(&client, &format!("?since={since}&until={until}")).await;
    client.event("order.d").await;
    for id in &posted[..2] {
        assert_eq!(&stream.next(SOON).await.expect("it comes").id, id);
    }
    assert!(stream.next(2 * SOON).await.is_none(), "it ends");
    // Once it is over there is what is left of it, and then an answer that says not to come again.
    let query = format!("?since={since}&until={until}");
    let mut stream = after(&client, &query, &posted[0]).await;
    assert_eq!(stream.next(SOON).await.expect("it comes").id, posted[1]);
    assert!(stream.next(SOON).await.is_none(), "it ends");
    for query in [query, format!("?until={until}")] {
        let request = client
            .request(Method::GET, &format!("/v1/events/stream{query}"))
            .header("last-event-id", &posted[1]);
        assert_eq!(client.send(request).await.status, 204);
    }
}

async fn a_stream_shows_events_by_what_became_of_them(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let posted = posted(&client, &["order.a", "order.b"]).await;
    client
        .post(&format!("/v1/inbox/{}/ack", posted[0]), &json!({}))
        .await
        .expect(200);
    let since = accepted_at(&client, &posted[0]).await;
    let mut acknowledged = open(&client, &format!("?since={since}&status=acknowledged")).await;
    assert_eq!(acknowledged.next(SOON).await.expect("it comes").id, posted[0]);
    let mut pending = open(&client, &format!("?since={since}&status=pending")).await;
    assert_eq!(pending.next(SOON).await.expect("it comes").id, posted[1]);
    let fresh = client.event("order.fresh").await;
    assert_eq!(pending.next(SOON).await.expect("it comes").id, fresh);
}

/// Many post at once; the stream is broken off now and then, and its api restarted.
async fn who_follows_misses_and_repeats_nothing(engine: Engine) {
    const POSTERS: usize = 6;
    const EVENTS: usize = 40;
    let world = World::start(engine).await;
    let client = world.organization().await;
    let first = client.event("order.first").await;
    client.look_up(&first).await;
    let restarts = engine == Engine::Servers;
    let mut posting = JoinSet::new();
    for _ in 0..POSTERS {
        let client = client.clone();
        posting.spawn(async move {
            let mut posted = Vec::new();
            for _ in 0..EVENTS {
                posted.push(client.event("order.placed").await);
            }
            posted
        });
    }
    let mut seen = Vec::new();
    let mut stream = after(&client, "", &first).await;
    let begun = Instant::now();
    while seen.len() < POSTERS * EVENTS {
        assert!(
            begun.elapsed() < 6 * SOON,
            "{} of {} came",
            seen.len(),
            POSTERS * EVENTS
        );
        let last = seen.last().unwrap_or(&first).clone();
        match stream.next(SOON).await {
            Some(event) => seen.push(event.id),
            None => stream = after(&client, "", &last).await,
        }
        if seen.len() % 50 == 25 {
            if restarts && seen.len() == 75 {
                assert!(world.api().terminate().await.success());
                world.api().start_again().await;
                world.api().ready().await;
            }
            let last = seen.last().unwrap_or(&first).clone();
            stream = after(&client, "", &last).await;
        }
    }
    let posted: HashSet<String> = posting.join_all().await.into_iter().flatten().collect();
    assert_eq!(seen.len(), posted.len());
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), posted);
}

async fn a_stream_ends_with_its_key(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let key = client
        .post("/v1/keys", &json!({"name": "follows", "scopes": ["events:read"]}))
        .await
        .expect(201);
    let text = key["key"].as_str().expect("a key");
    let mut stream = open(&client.with_key(text), "").await;
    let id = client.event("order.placed").await;
    assert_eq!(stream.next(SOON).await.expect("it comes").id, id);
    let path = format!("/v1/keys/{}", key["id"].as_str().expect("an id"));
    assert_eq!(client.delete(&path).await.status, 204);
    assert!(stream.next(SOON).await.is_none(), "it ends");
}

async fn streams_do_not_hold_up_the_end(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let mut stream = open(&client, "").await;
    let begun = Instant::now();
    let status = world.api().terminate().await;
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(stream.next(SOON).await.is_none(), "it ends in good order");
}

async fn streams_are_bounded_in_number(engine: Engine) {
    let world = World::start(engine).await;
    let (client, other) = (world.organization().await, world.organization().await);
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(open(&client, "").await);
    }
    client.get("/v1/events/stream").await.problem(503, "unavailable");
    let mut others = open(&other, "").await;
    let id = other.event("order.placed").await;
    assert_eq!(others.next(SOON).await.expect("it comes").id, id);
    // All of them are told.
    let id = client.event("order.placed").await;
    for stream in &mut streams {
        assert_eq!(stream.next(SOON).await.expect("it comes").id, id);
    }
    streams.pop();
    harness::eventually("there is room again", SOON, async || {
        let request = client.request(Method::GET, "/v1/events/stream");
        let answer = request.send().await.expect("an answer");
        match answer.status().as_u16() {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
}
