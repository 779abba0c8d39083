use serde_json::{Value, json};
use shared::{EventId, SubscriptionId};

use crate::{
    answer::Answer,
    harness::{Desk, LONG, Tenant, event},
};

async fn subscribe(desk: &Desk, tenant: &Tenant) -> SubscriptionId {
    let made = desk
        .post("/v1/subscriptions", &tenant.key, &json!({"kind": "pull"}))
        .await;
    assert_eq!(made.status, 201, "{}", made.text);
    made.body["id"].as_str().unwrap().parse().unwrap()
}

async fn act(desk: &Desk, tenant: &Tenant, lane: SubscriptionId, act: &str, body: &Value) -> Answer {
    desk.post(&format!("/v1/subscriptions/{lane}/{act}"), &tenant.key, body)
        .await
}

fn statuses(answer: &Answer) -> Vec<&str> {
    let results = answer.body["results"].as_array().expect("results");
    results
        .iter()
        .map(|result| result["status"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn events_are_leased_and_acknowledged() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let lane = subscribe(&desk, &tenant).await;
    let mut ids = Vec::new();
    for payload in ["{\"n\": 1.0}", "[2]", "3"] {
        ids.push(
            desk.event(&tenant, "user.created", payload, lane)
                .await
                .to_string(),
        );
    }
    let first = act(&desk, &tenant, lane, "pull", &json!({"max": 2})).await;
    assert_eq!(first.ids(), ids[..2]);
    assert!(
        first.text.contains("\"payload\":{\"n\": 1.0}"),
        "byte for byte: {}",
        first.text
    );
    insta::assert_snapshot!(first.shown());
    let shown = desk.get(&format!("/v1/events/{}", ids[0]), &tenant.key).await;
    let delivery = &shown.body["deliveries"][0];
    assert_eq!(delivery["status"], "in_flight");
    assert_eq!(delivery["lease_until"], first.body["data"][0]["lease_until"]);

    // Without a body it takes what it takes unless told otherwise.
    let path = format!("/v1/subscriptions/{lane}/pull");
    let key = format!("Bearer {}", tenant.key);
    let rest = desk
        .send(http::Method::POST, &path, &[("authorization", &key)], None)
        .await;
    assert_eq!(rest.ids(), ids[2..]);
    let nothing = act(&desk, &tenant, lane, "pull", &json!({})).await;
    assert_eq!(nothing.text, "{\"data\":[]}");

    let unknown = EventId::new();
    let asked = json!({"event_ids": [ids[0], unknown, ids[0]]});
    insta::assert_snapshot!(act(&desk, &tenant, lane, "ack", &asked).await.shown());
    let again = act(&desk, &tenant, lane, "ack", &asked).await;
    assert_eq!(statuses(&again), ["acknowledged", "not_found", "acknowledged"]);
    insta::assert_snapshot!(
        act(
            &desk,
            &tenant,
            lane,
            "extend",
            &json!({"event_ids": [ids[1], ids[0]], "lease_seconds": 600})
        )
        .await
        .shown()
    );
    insta::assert_snapshot!(
        act(
            &desk,
            &tenant,
            lane,
            "release",
            &json!({"event_ids": [ids[1], unknown]})
        )
        .await
        .shown()
    );
    let later = json!({"event_ids": [ids[2]], "delay_seconds": 3600});
    assert_eq!(
        statuses(&act(&desk, &tenant, lane, "release", &later).await),
        ["pending"]
    );
    let released = act(&desk, &tenant, lane, "pull", &json!({})).await;
    assert_eq!(released.ids(), ids[1..2]);
    assert_eq!(released.body["data"][0]["pulls"], 2);
}

#[tokio::test]
async fn what_a_pull_may_not_ask_for() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let lane = subscribe(&desk, &tenant).await;
    let wrong = json!({"max": 0, "lease_seconds": 3601, "wait_ms": 30_001, "min": 1});
    insta::assert_snapshot!(act(&desk, &tenant, lane, "pull", &wrong).await.shown());
    let wrong = json!({"max": 1001, "lease_seconds": 0, "wait_ms": -1});
    insta::assert_snapshot!(act(&desk, &tenant, lane, "pull", &wrong).await.shown());
    insta::assert_snapshot!(
        act(&desk, &tenant, lane, "ack", &json!({"event_ids": []}))
            .await
            .shown()
    );
    let wrong = json!({"event_ids": ["x"], "delay_seconds": 3601});
    insta::assert_snapshot!(act(&desk, &tenant, lane, "release", &wrong).await.shown());
    insta::assert_snapshot!(act(&desk, &tenant, lane, "extend", &json!({})).await.shown());
}

#[tokio::test]
async fn what_cannot_be_pulled_from() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let (lane, push) = (subscribe(&desk, &tenant).await, desk.subscribe(&tenant).await);
    let id = desk.event(&tenant, "user.created", "1", lane).await;
    let bodies = [
        ("pull", json!({"wait_ms": 1})),
        ("ack", json!({"event_ids": [id]})),
        ("release", json!({"event_ids": [id]})),
        ("extend", json!({"event_ids": [id], "lease_seconds": 9})),
    ];
    for (what, body) in &bodies {
        let pushed = act(&desk, &tenant, push, what, body).await;
        assert_eq!(
            pushed.problem(),
            "409 the subscription is of kind push: its events are sent to its URL, and cannot be pulled"
        );
        for (whose, lane) in [(&other, lane), (&tenant, SubscriptionId::new())] {
            let theirs = act(&desk, whose, lane, what, body).await;
            assert_eq!(theirs.problem(), "404 there is no such subscription");
        }
        let path = format!("/v1/subscriptions/{lane}/{what}");
        let narrow = desk.key(&tenant, &["events:write", "subscriptions:write"]).await;
        assert_eq!(
            desk.post(&path, &narrow, body).await.problem(),
            "403 the API key needs the scope events:read"
        );
    }
    assert_eq!(
        act(&desk, &tenant, lane, "pull", &json!({})).await.ids(),
        [id.to_string()]
    );
    act(&desk, &tenant, lane, "disable", &json!({})).await;
    let disabled = act(&desk, &tenant, lane, "pull", &json!({})).await;
    insta::assert_snapshot!(disabled.shown());
    let done = act(&desk, &tenant, lane, "ack", &json!({"event_ids": [id]})).await;
    assert_eq!(
        statuses(&done),
        ["acknowledged"],
        "what is leased can be finished"
    );
}

/// Waits until a pull sits and waits: it tells so.
async fn is_awaited(
    changes: &mut tokio::sync::broadcast::Receiver<shared::store::Change>,
    lane: SubscriptionId,
) {
    let awaited = async {
        while !matches!(changes.recv().await.unwrap(), shared::store::Change::Awaited(told) if told == lane) {
        }
    };
    tokio::time::timeout(LONG, awaited).await.expect("somebody waits");
}

#[tokio::test]
async fn a_pull_that_waits_is_woken() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let lane = subscribe(&desk, &tenant).await;
    let deliveries = &desk.engine.store.deliveries;
    let mut changes = desk.engine.store.keeper.changes();
    let wait = json!({"wait_ms": 30_000});
    let one = event(&tenant, "user.created", "1");
    let (pulled, ()) = tokio::join!(act(&desk, &tenant, lane, "pull", &wait), async {
        is_awaited(&mut changes, lane).await;
        desk.take_in(&one, lane).await;
        deliveries.tell_owners(&[lane]).await.unwrap();
    });
    assert_eq!(pulled.ids(), [one.id.to_string()]);
    // By what another gives back; and by the end of its lease, of which nobody brings word.
    let (again, released) = tokio::join!(act(&desk, &tenant, lane, "pull", &wait), async {
        act(&desk, &tenant, lane, "release", &json!({"event_ids": [one.id]})).await
    });
    assert_eq!(statuses(&released), ["pending"]);
    assert_eq!(again.ids(), [one.id.to_string()]);
    let short = json!({"event_ids": [one.id], "lease_seconds": 1});
    act(&desk, &tenant, lane, "extend", &short).await;
    let again = act(&desk, &tenant, lane, "pull", &wait).await;
    assert_eq!(again.body["data"][0]["pulls"], 3, "{}", again.text);
}

#[tokio::test]
async fn a_pull_that_waits_learns_that_there_is_nothing_to_wait_for() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    for (end, status) in [("disable", 409), ("delete", 404)] {
        let lane = subscribe(&desk, &tenant).await;
        let mut changes = desk.engine.store.keeper.changes();
        let wait = json!({"wait_ms": 30_000});
        let pull = || act(&desk, &tenant, lane, "pull", &wait);
        // Both, though word rouses only one of them.
        let (one, other, ()) = tokio::join!(pull(), pull(), async {
            is_awaited(&mut changes, lane).await;
            if end == "delete" {
                desk.delete(&format!("/v1/subscriptions/{lane}"), &tenant.key)
                    .await;
            } else {
                act(&desk, &tenant, lane, end, &json!({})).await;
            }
        });
        assert_eq!((one.status.as_u16(), other.status.as_u16()), (status, status));
    }
    let lane = subscribe(&desk, &tenant).await;
    let in_vain = act(&desk, &tenant, lane, "pull", &json!({"wait_ms": 60})).await;
    assert_eq!(in_vain.text, "{\"data\":[]}");
}

/// A client that goes while it waits has leased nothing; one that goes a moment before that is noticed may have, until its
/// lease ends.
#[tokio::test]
async fn whoever_goes_while_it_waits_keeps_nothing_from_others() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let lane = subscribe(&desk, &tenant).await;
    let mut changes = desk.engine.store.keeper.changes();
    let wait = json!({"wait_ms": 30_000, "lease_seconds": 1});
    tokio::select! {
        answer = act(&desk, &tenant, lane, "pull", &wait) => panic!("{}", answer.text),
        () = is_awaited(&mut changes, lane) => {}
    }
    let id = desk.event(&tenant, "user.created", "1", lane).await;
    desk.engine.store.deliveries.tell_owners(&[lane]).await.unwrap();
    let pulled = act(&desk, &tenant, lane, "pull", &json!({"wait_ms": 30_000})).await;
    assert_eq!(pulled.ids(), [id.to_string()]);
}
