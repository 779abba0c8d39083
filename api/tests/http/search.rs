use serde_json::json;
use shared::{EventId, Timestamp, delivery::Next};

use crate::harness::{Desk, event};

#[tokio::test]
async fn events_are_searched_newest_first() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let inbox = desk.inbox(&tenant).await;
    let mut ids = Vec::new();
    for (number, event_type) in ["user.created", "user.deleted", "order.placed", "user.created"]
        .into_iter()
        .enumerate()
    {
        let event = event(&tenant, event_type, &number.to_string());
        desk.take_in(&event, inbox).await;
        ids.push(event.id.to_string());
    }
    let shown = async |query: &str| desk.get(&format!("/v1/events{query}"), &tenant.key).await.ids();
    let expected = |at: &[usize]| at.iter().map(|at| ids[*at].clone()).collect::<Vec<_>>();
    assert_eq!(shown("").await, expected(&[3, 2, 1, 0]));
    assert_eq!(shown("?type=user.created").await, expected(&[3, 0]));
    assert_eq!(shown("?type=user.*").await, expected(&[3, 1, 0]));
    assert_eq!(shown("?type=user.*&limit=1").await, expected(&[3]));
    assert_eq!(shown("?status=pending&type=order.**").await, expected(&[2]));
    assert_eq!(shown("?status=delivered").await, expected(&[]));
    let now = Timestamp::now();
    let (before, after) = (now.minus(crate::harness::LONG), now.plus(crate::harness::LONG));
    assert_eq!(shown(&format!("?since={before}&until={after}")).await.len(), 4);
    assert_eq!(shown(&format!("?since={after}")).await, expected(&[]));
    assert_eq!(shown(&format!("?until={before}")).await, expected(&[]));

    let (mut seen, mut path) = (Vec::new(), Some("/v1/events?limit=3".to_owned()));
    while let Some(page) = path {
        let answer = desk.get(&page, &tenant.key).await;
        if seen.is_empty() {
            insta::assert_snapshot!(answer.shown());
        }
        seen.extend(answer.ids());
        path = answer.next("/v1/events?limit=3");
    }
    assert_eq!(seen, expected(&[3, 2, 1, 0]));
    let theirs = desk.get("/v1/events", &other.key).await;
    assert_eq!(theirs.ids(), [""; 0], "nobody sees another's");
}

#[tokio::test]
async fn a_search_that_finds_little_says_where_to_look_on() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let inbox = desk.inbox(&tenant).await;
    let rare = desk.event(&tenant, "rare", "1", inbox).await.to_string();
    let many: Vec<_> = (0..500).map(|_| event(&tenant, "usual", "2")).collect();
    // More than one request looks at.
    for _ in 0..66 {
        let batch: Vec<_> = many
            .iter()
            .map(|event| shared::AcceptedEvent {
                id: EventId::new(),
                ..event.clone()
            })
            .collect();
        desk.take_in_all(&batch, inbox).await;
    }
    let (mut found, mut path, mut pages) = (Vec::new(), Some("/v1/events?type=rare".to_owned()), 0);
    while let Some(page) = path {
        let answer = desk.get(&page, &tenant.key).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        found.extend(answer.ids());
        path = answer.next("/v1/events?type=rare");
        pages += 1;
    }
    assert_eq!((found, pages), (vec![rare], 2));
}

#[tokio::test]
async fn broken_rules_of_a_search_are_named() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let query = "?type=a**&since=yesterday&until=1&status=done&limit=0&cursor=x";
    insta::assert_snapshot!(
        desk.get(&format!("/v1/events{query}"), &tenant.key)
            .await
            .problem()
    );
    let writer = desk.key(&tenant, &["events:write"]).await;
    let refused = desk.get("/v1/events", &writer).await;
    assert_eq!(refused.problem(), "403 the API key needs the scope events:read");
}

#[tokio::test]
async fn an_event_is_erased() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let push = desk.subscribe(&tenant).await;
    let id = desk
        .event(&tenant, "user.created", "{\"name\":\"a person\"}", push)
        .await;
    desk.fail(id, push, &tenant, Next::DeadLetter).await;
    let path = format!("/v1/events/{id}");
    let narrow = desk
        .key(&tenant, &["events:write", "events:read", "subscriptions:write"])
        .await;
    let refused = desk.delete(&path, &narrow).await;
    assert_eq!(refused.problem(), "403 the API key needs the scope admin");
    desk.delete(&path, &other.key).await;
    let shown = desk.get(&path, &tenant.key).await;
    assert!(shown.text.contains("a person"), "nobody erases another's");
    for _ in 0..2 {
        assert_eq!(desk.delete(&path, &tenant.key).await.status, 204);
    }
    let shown = desk.get(&path, &tenant.key).await;
    assert!(shown.body["erased_at"].is_string());
    insta::assert_snapshot!(shown.shown());
    let retry = format!("{path}/deliveries/{push}/retry");
    insta::assert_snapshot!(desk.post(&retry, &tenant.key, &json!({})).await.problem());
    let old = desk
        .delete("/v1/events/evt_01h455vb4pex5vsknk084sn02q", &tenant.key)
        .await;
    assert_eq!(old.problem(), "404 there is no such event");
    assert_eq!(desk.delete("/v1/events/evt_x", &tenant.key).await.status, 404);
}

#[tokio::test]
async fn an_event_on_its_way_is_erased_before_it_comes() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let push = desk.subscribe(&tenant).await;
    let event = event(&tenant, "user.created", "{\"name\":\"a person\"}");
    let path = format!("/v1/events/{}", event.id);
    assert_eq!(desk.delete(&path, &tenant.key).await.status, 204);
    desk.take_in(&event, push).await;
    let shown = desk.get(&path, &tenant.key).await;
    assert!(!shown.text.contains("a person"));
    assert_eq!(shown.body["status"], "cancelled");
}
