use std::time::Duration;

use shared::{
    EventId,
    delivery::{AttemptResult, Next},
};

use crate::harness::{Desk, event, keyed};

const PAYLOAD: &str = r#"{"b": 1.0,  "a":[1e30, "\u00e9"] ,"z":{}}"#;

#[tokio::test]
async fn an_event_is_shown_with_its_deliveries_and_every_attempt() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let hook = desk.subscribe(&tenant).await;
    let id = desk.event(&tenant, "user.created", PAYLOAD, hook).await;
    let path = format!("/v1/events/{id}");
    let waiting = desk.get(&path, &tenant.key).await;
    assert!(waiting.text.contains(PAYLOAD), "byte for byte: {}", waiting.text);

    desk.fail(
        id,
        hook,
        &tenant,
        Next::Retry {
            after: Duration::ZERO,
        },
    )
    .await;
    let retrying = desk.get(&path, &tenant.key).await;
    assert_eq!(retrying.body["deliveries"][0]["status"], "retrying");
    assert!(retrying.body["deliveries"][0]["next_attempt_at"].is_string());
    desk.attempt(id, hook, &tenant, AttemptResult::Delivered { status_code: 204 })
        .await;
    let delivered = desk.get(&path, &tenant.key).await;
    insta::assert_snapshot!(delivered.shown());
    assert_eq!(
        desk.get(&format!("/v1/events/{}", id.uuid()), &tenant.key)
            .await
            .body,
        delivered.body
    );

    let alone = desk.get(&format!("{path}/deliveries/{hook}"), &tenant.key).await;
    assert_eq!(alone.body, delivered.body["deliveries"][0]);
    let inbox = desk.inbox(&tenant).await;
    let none = desk.get(&format!("{path}/deliveries/{inbox}"), &tenant.key).await;
    assert_eq!(none.problem(), "404 there is no such delivery");
}

#[tokio::test]
async fn a_payload_is_shown_as_it_was_sent() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let inbox = desk.inbox(&tenant).await;
    let payload = r#"{"b": 1.0,  "a":[1e400, "\u00e9\ud800"] ,"b":{}}"#;
    let id = desk.event(&tenant, "user.created", payload, inbox).await;
    for path in [&*format!("/v1/events/{id}"), "/v1/inbox", "/api/inbox"] {
        let answer = desk.get(path, &tenant.key).await;
        assert!(
            answer.text.contains(&format!("\"payload\":{payload},")),
            "{}",
            answer.text
        );
    }
}

#[tokio::test]
async fn a_repeat_resolves_to_the_first() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let (first, repeat) = (keyed(&tenant, "signup-42"), keyed(&tenant, "signup-42"));
    let inbox = desk.inbox(&tenant).await;
    desk.take_in(&first, inbox).await;
    desk.take_in(&repeat, inbox).await;
    let answer = desk.get(&format!("/v1/events/{}", repeat.id), &tenant.key).await;
    assert_eq!(answer.body["id"], first.id.to_string());
    insta::assert_snapshot!(answer.shown());
}

#[tokio::test]
async fn an_event_on_its_way_is_waited_for() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let inbox = desk.inbox(&tenant).await;
    let event = event(&tenant, "user.created", "1");
    let path = format!("/v1/events/{}", event.id);
    insta::assert_snapshot!(desk.get(&format!("{path}?wait_ms=0"), &tenant.key).await.shown());
    let long = format!("{path}?wait_ms=15000");
    let (answer, ()) = tokio::join!(desk.get(&long, &tenant.key), desk.take_in(&event, inbox));
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn events_that_are_not_there() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let old = desk
        .get("/v1/events/evt_01h455vb4pex5vsknk084sn02q", &tenant.key)
        .await;
    assert_eq!(old.problem(), "404 there is no such event");
    assert!(!old.headers.contains_key("retry-after"), "it will not come");
    insta::assert_snapshot!(desk.get("/v1/events/42", &tenant.key).await.problem());
    let path = format!("/v1/events/{}?wait_ms=30001", EventId::new());
    insta::assert_snapshot!(desk.get(&path, &tenant.key).await.problem());

    let inbox = desk.inbox(&other).await;
    let id = desk.event(&other, "user.created", "1", inbox).await;
    let foreign = desk
        .get(&format!("/v1/events/{id}?wait_ms=20"), &tenant.key)
        .await;
    let unknown = desk
        .get(&format!("/v1/events/{}?wait_ms=20", EventId::new()), &tenant.key)
        .await;
    assert_eq!(foreign.problem(), unknown.problem());
    assert_eq!(
        foreign.headers.get("retry-after"),
        unknown.headers.get("retry-after")
    );
    assert_eq!(desk.get(&format!("/v1/events/{id}"), "").await.status, 401);
}

#[tokio::test]
async fn subscriptions_that_do_not_match_are_named_with_the_reason() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let hook = desk.subscribe(&tenant).await;
    let make = async |event_types: &[&str]| {
        let body = serde_json::json!({"kind": "pull", "event_types": event_types});
        let made = desk.post("/v1/subscriptions", &tenant.key, &body).await;
        made.body["id"].as_str().expect("an id").to_owned()
    };
    let (orders, changed) = (make(&["order.*"]).await, make(&["order.*"]).await);
    let id = desk.event(&tenant, "user.created", "1", hook).await;
    let late = make(&["user.**"]).await;
    let wider = serde_json::json!({"event_types": ["*"]});
    desk.patch(&format!("/v1/subscriptions/{changed}"), &tenant.key, &wider)
        .await;
    // Disabled or not makes no difference.
    desk.post(
        &format!("/v1/subscriptions/{orders}/disable"),
        &tenant.key,
        &serde_json::json!({}),
    )
    .await;
    let shown = desk.get(&format!("/v1/events/{id}"), &tenant.key).await;
    let inbox = desk.inbox(&tenant).await.to_string();
    let expected = [
        (inbox, "others_match"),
        (orders, "event_type"),
        (changed, "changed_later"),
        (late, "created_later"),
    ]
    .map(|(subscription, reason)| serde_json::json!({"subscription": subscription, "reason": reason}));
    assert_eq!(shown.body["not_matched"], serde_json::json!(expected));
    assert_eq!(shown.body["not_matched_incomplete"], false);
    assert_eq!(shown.body["deliveries"][0]["subscription"], hook.to_string());

    // All that an organization may have, which are four already.
    for _ in 0..996 {
        make(&["order.*"]).await;
    }
    let shown = desk.get(&format!("/v1/events/{id}"), &tenant.key).await;
    assert_eq!(shown.body["not_matched_incomplete"], false);
    assert_eq!(shown.body["not_matched"].as_array().map(Vec::len), Some(1_000));
}
