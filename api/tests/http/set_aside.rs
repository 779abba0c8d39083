use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use shared::{
    AcceptedEvent, Entry, EventId, SetAsideId, Timestamp,
    queue::{SourceLane, frame},
    store::SetAside,
};
use uuid::Uuid;

use crate::harness::{ADMIN_TOKEN, Desk, LONG, event};

fn aside(reason: &str, frame: &[u8]) -> SetAside {
    SetAside {
        id: SetAside::id_of(None, frame),
        reason: reason.into(),
        detail: "why it was".into(),
        organization: None,
        event: None,
        frame: frame.to_vec(),
        at: Timestamp::now(),
        times: 1,
    }
}

#[tokio::test]
async fn what_was_set_aside_is_put_back_or_forgotten() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let events = &desk.engine.store.events;
    let posted = event(&tenant, "user.created", "{\"n\":1}");
    let good: Bytes = frame::encode(&Entry::Event(posted.clone())).bytes;
    let refused = SetAside {
        organization: Some(tenant.id),
        event: Some(posted.id),
        // Of those of one millisecond either may come first.
        at: Timestamp::now().minus(Duration::from_secs(1)),
        ..aside("refused", &good)
    };
    let unreadable = aside("unreadable", b"\xff{]\n");
    events
        .set_aside(&[refused.clone(), unreadable.clone()])
        .await
        .unwrap();

    let listed = desk.get("/v1/set-aside", ADMIN_TOKEN).await;
    insta::assert_snapshot!(listed.shown().replace(&good.len().to_string(), "[bytes]"));
    let page = desk.get("/v1/set-aside?limit=1", ADMIN_TOKEN).await;
    let next = page.next("/v1/set-aside?limit=1").unwrap();
    assert_eq!(
        desk.get(&next, ADMIN_TOKEN).await.ids(),
        [unreadable.id.to_string()]
    );

    let path = |id: SetAsideId| format!("/v1/set-aside/{id}");
    insta::assert_snapshot!(desk.get(&path(unreadable.id), ADMIN_TOKEN).await.shown());
    let shown = desk.get(&path(refused.id), ADMIN_TOKEN).await;
    assert_eq!(shown.body["frame"]["text"], std::str::from_utf8(&good).unwrap());

    let put_back = async |id| {
        desk.post(&format!("{}/put-back", path(id)), ADMIN_TOKEN, &json!({}))
            .await
    };
    insta::assert_snapshot!(put_back(refused.id).await.shown());
    let mut source = desk.engine.queue.source(SourceLane::Main).await.unwrap();
    let received = tokio::time::timeout(LONG, source.receive(1))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(received[0].body, good);
    assert_eq!(put_back(refused.id).await.status, 404, "it is in the queue now");
    insta::assert_snapshot!(put_back(unreadable.id).await.problem());

    assert_eq!(desk.delete(&path(unreadable.id), ADMIN_TOKEN).await.status, 204);
    assert_eq!(desk.delete(&path(unreadable.id), ADMIN_TOKEN).await.status, 404);
    assert_eq!(events.count_set_aside().await.unwrap(), 0);
}

#[tokio::test]
async fn an_id_out_of_range_is_replaced_when_it_is_put_back() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let far = AcceptedEvent {
        id: EventId::from_uuid(Uuid::from_u128(7 << 76)),
        ..event(&tenant, "user.created", "{\"n\":1}")
    };
    let frame = frame::encode(&Entry::Event(far.clone()));
    let item = SetAside {
        organization: Some(tenant.id),
        event: Some(far.id),
        ..aside("id_out_of_range", &frame)
    };
    let events = &desk.engine.store.events;
    events.set_aside(&[item.clone(), item.clone()]).await.unwrap();
    let path = format!("/v1/set-aside/{}/put-back", item.id);
    let answer = desk.post(&path, ADMIN_TOKEN, &json!({})).await;
    insta::assert_snapshot!(answer.shown());
    let new_id: EventId = answer.body["event"].as_str().unwrap().parse().unwrap();
    let age = Timestamp::now().since(new_id.created_at().unwrap());
    assert!(age < LONG, "{age:?}");
    let mut source = desk.engine.queue.source(SourceLane::Main).await.unwrap();
    let received = tokio::time::timeout(LONG, source.receive(1))
        .await
        .unwrap()
        .unwrap();
    let replaced = AcceptedEvent {
        id: new_id,
        former_ids: vec![far.id],
        ..far
    };
    assert_eq!(
        frame::decode(&received[0].body).unwrap(),
        [Entry::Event(replaced)]
    );
    assert_eq!(events.count_set_aside().await.unwrap(), 0);
}

#[tokio::test]
async fn it_is_the_operators_alone() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    insta::assert_snapshot!(desk.get("/v1/set-aside", &tenant.key).await.problem());
    let without = Desk::with(api::Signup::Open, None).await;
    insta::assert_snapshot!(without.get("/v1/set-aside", &tenant.key).await.problem());
    for path in ["/v1/set-aside/x", "/v1/set-aside"] {
        assert_eq!(desk.get(path, "").await.status, 401);
    }
}
