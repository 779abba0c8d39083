//! Events that nobody is subscribed to wait in the inbox until they are acknowledged.

use harness::{Client, Engine, Receiver, Reply, World, on_both_engines};
use serde_json::{Value, json};

on_both_engines!(
    what_nobody_wants_waits_in_the_inbox,
    many_are_acknowledged_at_once,
    the_inbox_comes_in_pages_and_by_type,
    the_inbox_holds_what_is_still_open,
);

async fn inbox(client: &Client, query: &str) -> Value {
    client.get(&format!("/v1/inbox{query}")).await.expect(200)
}

fn ids(page: &Value) -> Vec<String> {
    let events = page["data"].as_array().expect("a page");
    let ids = events
        .iter()
        .map(|event| event["id"].as_str().expect("an id").to_owned());
    ids.collect()
}

/// Posts so many events, and waits until all are stored.
async fn stored(client: &Client, event_type: &str, count: usize) -> Vec<String> {
    let mut posted = Vec::new();
    for _ in 0..count {
        let id = client.event(event_type).await;
        client.look_up(&id).await;
        posted.push(id);
    }
    posted
}

async fn what_nobody_wants_waits_in_the_inbox(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    assert_eq!(ids(&inbox(&client, "").await), [""; 0]);
    let posted = stored(&client, "order.placed", 3).await;
    let page = inbox(&client, "").await;
    assert_eq!(ids(&page), posted, "oldest first");
    assert!(page["next_cursor"].is_null());
    assert_eq!(page["data"][0]["payload"], json!({"of": "order.placed"}));
    assert_eq!(page["data"][0]["status"], "pending");

    let path = format!("/v1/inbox/{}/ack", posted[1]);
    let acknowledged = client.post(&path, &json!({})).await.expect(200);
    assert_eq!(acknowledged["id"], posted[1].as_str());
    assert_eq!(acknowledged["status"], "acknowledged");
    assert!(acknowledged["acknowledged_at"].is_string());
    assert_eq!(ids(&inbox(&client, "").await), [&posted[0][..], &posted[2]]);
    assert_eq!(client.look_up(&posted[1]).await["status"], "acknowledged");
    // Again changes nothing, with an empty body too.
    client.post_text(&path, "").await.expect(200);

    // What is subscribed to does not come here.
    let receiver = Receiver::start().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let id = client.event("order.placed").await;
    client.event_becomes(&id, "delivered").await;
    assert_eq!(ids(&inbox(&client, "").await).len(), 2);
}

async fn many_are_acknowledged_at_once(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let posted = stored(&client, "order.placed", 5).await;
    // An event posted just now, which may not be stored yet, and one that never was.
    let fresh = client.event("order.placed").await;
    let unknown = "evt_01h455vb4pex5vsknk084sn02q";
    let body = json!({"event_ids": [posted[0], posted[2], fresh, unknown, posted[2]]});
    let answer = client.post("/v1/inbox/ack", &body).await.expect(200);
    let results = answer["results"].as_array().expect("a result for each");
    let statuses: Vec<_> = results
        .iter()
        .map(|result| result["status"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(
        statuses,
        [
            "acknowledged",
            "acknowledged",
            "acknowledged",
            "not_found",
            "acknowledged"
        ],
        "{answer}"
    );
    assert_eq!(
        ids(&inbox(&client, "").await),
        [&posted[1][..], &posted[3], &posted[4]]
    );
    let bad = client
        .post("/v1/inbox/ack", &json!({"event_ids": ["evt_x"]}))
        .await;
    bad.problem(422, "invalid_request");
    assert_eq!(bad.pointers(), ["/event_ids/0"]);
}

async fn the_inbox_comes_in_pages_and_by_type(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let posted = stored(&client, "order.placed", 7).await;
    let other = stored(&client, "order.closed", 1).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = inbox(&client, &format!("?limit=3&type=order.placed{cursor}")).await;
        assert!(ids(&page).len() <= 3);
        seen.extend(ids(&page));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, posted);
    assert_eq!(ids(&inbox(&client, "?type=order.closed").await), other);
    for (query, parameter) in [
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?limit=x", "limit"),
        ("?cursor=%00", "cursor"),
        ("?cursor=AAAA", "cursor"),
        ("?status=nonsense", "status"),
        ("?type=a%20b", "type"),
    ] {
        let answer = client.get(&format!("/v1/inbox{query}")).await;
        let problem = answer.problem(422, "invalid_request");
        assert_eq!(problem["errors"][0]["parameter"], parameter, "{query}: {problem}");
    }
}

async fn the_inbox_holds_what_is_still_open(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.always("/hook", Reply::Status(500));
    let subscription = client
        .subscribe(&json!({"url": receiver.url("/hook"), "retry_schedule_seconds": [600]}))
        .await;
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "retrying").await;
    assert_eq!(ids(&inbox(&client, "").await), [&id[..]]);
    client
        .post(&format!("/v1/inbox/{id}/ack"), &json!({}))
        .await
        .expect(200);
    assert_eq!(ids(&inbox(&client, "").await), [""; 0]);
}
