use serde_json::json;
use shared::EventId;

use crate::harness::{Desk, event};

#[tokio::test]
async fn open_events_are_listed_oldest_first_and_acknowledged() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let inbox = desk.inbox(&tenant).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let event_type = if number % 2 == 0 { "even" } else { "odd" };
        ids.push(
            desk.event(&tenant, event_type, &number.to_string(), inbox)
                .await
                .to_string(),
        );
    }
    let mut seen = Vec::new();
    let mut path = Some("/v1/inbox?limit=2&status=pending".to_owned());
    while let Some(page) = path {
        let answer = desk.get(&page, &tenant.key).await;
        if seen.is_empty() {
            insta::assert_snapshot!(answer.shown());
        }
        seen.extend(answer.ids());
        path = answer.next("/v1/inbox?limit=2&status=pending");
    }
    assert_eq!(seen, ids);
    let odd = desk.get("/v1/inbox?type=odd", &tenant.key).await;
    assert_eq!(odd.ids(), [ids[1].clone(), ids[3].clone()]);

    let path = format!("/v1/inbox/{}/ack", ids[0]);
    let done = desk.post(&path, &tenant.key, &json!({})).await;
    insta::assert_snapshot!(done.shown());
    assert_eq!(
        desk.post(&path, &tenant.key, &json!({})).await.status,
        200,
        "again changes nothing"
    );
    let shown = desk.get(&format!("/v1/events/{}", ids[0]), &tenant.key).await;
    assert_eq!(shown.body["status"], "acknowledged");

    let old = "evt_01h455vb4pex5vsknk084sn02q";
    let many = json!({"event_ids": [ids[2], old, ids[1], ids[2]]});
    insta::assert_snapshot!(desk.post("/v1/inbox/ack", &tenant.key, &many).await.shown());
    assert_eq!(desk.get("/v1/inbox", &tenant.key).await.ids(), ids[3..]);
}

#[tokio::test]
async fn an_event_on_its_way_is_acknowledged_once_it_is_there() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let inbox = desk.inbox(&tenant).await;
    let event = event(&tenant, "user.created", "1");
    let path = format!("/v1/inbox/{}/ack", event.id);
    let body = json!({});
    let (answer, ()) = tokio::join!(desk.post(&path, &tenant.key, &body), desk.take_in(&event, inbox));
    assert_eq!(answer.status, 200, "{}", answer.text);
    let nowhere = desk
        .post(&format!("/v1/inbox/{}/ack", EventId::new()), &tenant.key, &body)
        .await;
    assert_eq!(nowhere.problem(), "404 there is no such event");
    assert_eq!(nowhere.headers["retry-after"], "1");
}

#[tokio::test]
async fn others_cannot_acknowledge() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let inbox = desk.inbox(&tenant).await;
    let id = desk.event(&tenant, "user.created", "1", inbox).await;
    assert_eq!(
        desk.post(&format!("/v1/inbox/{id}/ack"), &other.key, &json!({}))
            .await
            .status,
        404
    );
    let many = desk
        .post("/v1/inbox/ack", &other.key, &json!({"event_ids": [id]}))
        .await;
    assert_eq!(many.body["results"][0]["status"], "not_found");
    assert_eq!(desk.get("/v1/inbox", &other.key).await.ids().len(), 0);
    assert_eq!(desk.get("/v1/inbox", &tenant.key).await.ids().len(), 1);
}

#[tokio::test]
async fn broken_rules_are_named() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let inbox = desk.inbox(&tenant).await;
    desk.event(&tenant, "a", "1", inbox).await;
    desk.event(&tenant, "a", "2", inbox).await;
    insta::assert_snapshot!(
        desk.get("/v1/inbox?status=delivered&type=a*&limit=x", &tenant.key)
            .await
            .problem()
    );
    let other_list = desk.get("/api/inbox?limit=1", &tenant.key).await;
    let refused = desk
        .get(&other_list.next("/v1/inbox").unwrap(), &tenant.key)
        .await;
    insta::assert_snapshot!(refused.problem());
    let post = async |body| desk.post("/v1/inbox/ack", &tenant.key, &body).await.problem();
    insta::assert_snapshot!(post(json!({"event_ids": []})).await);
    insta::assert_snapshot!(post(json!({"event_ids": ["evt_1", 2]})).await);
    let many: Vec<String> = (0..1_001).map(|_| EventId::new().to_string()).collect();
    insta::assert_snapshot!(post(json!({"event_ids": many})).await);
    insta::assert_snapshot!(post(json!({"ids": []})).await);
}
