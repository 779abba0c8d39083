//! Deliveries over all events.

use std::time::Duration;

use serde_json::Value;
use shared::delivery::{AttemptResult, Next};

use crate::{
    answer::Answer,
    harness::{Desk, Tenant},
};

fn events(answer: &Answer) -> Vec<&str> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let data = answer.body["data"].as_array().expect("a list");
    data.iter().map(|one| one["event"].as_str().unwrap()).collect()
}

async fn all(desk: &Desk, tenant: &Tenant, path: &str) -> Vec<Value> {
    let (mut all, mut next) = (Vec::new(), Some(path.to_owned()));
    while let Some(path_of_page) = next {
        let page = desk.get(&path_of_page, &tenant.key).await;
        all.extend(page.body["data"].as_array().expect("a list").iter().cloned());
        next = page.next(path);
    }
    all
}

#[tokio::test]
async fn deliveries_are_listed_newest_first_and_filtered() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let (hook, inbox) = (desk.subscribe(&tenant).await, desk.inbox(&tenant).await);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(desk.event(&tenant, "user.created", "1", hook).await);
    }
    let waiting = desk.event(&tenant, "user.left", "1", inbox).await;
    let later = Next::Retry {
        after: Duration::from_mins(1),
    };
    desk.fail(ids[0], hook, &tenant, later).await;
    desk.attempt(
        ids[1],
        hook,
        &tenant,
        AttemptResult::Delivered { status_code: 200 },
    )
    .await;
    let listed = desk.get("/v1/deliveries", &tenant.key).await;
    insta::assert_snapshot!(listed.shown());
    let newest_first: Vec<String> = [waiting, ids[2], ids[1], ids[0]]
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(events(&listed), newest_first);
    let paged = all(&desk, &tenant, "/v1/deliveries?limit=1").await;
    assert_eq!(paged, *listed.body["data"].as_array().unwrap());

    for (query, expected) in [
        (format!("subscription={inbox}"), vec![waiting]),
        (
            format!("subscription={}&status=pending", hook.uuid()),
            vec![ids[2]],
        ),
        ("status=retrying".to_owned(), vec![ids[0]]),
        ("status=delivered".to_owned(), vec![ids[1]]),
        ("status=parked".to_owned(), vec![]),
        ("since=2999-01-01T00:00:00Z".to_owned(), vec![]),
    ] {
        let found = desk.get(&format!("/v1/deliveries?{query}"), &tenant.key).await;
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(events(&found), expected, "{query}");
    }
    let foreign = desk
        .get(&format!("/v1/deliveries?subscription={hook}"), &other.key)
        .await;
    assert!(events(&foreign).is_empty());
    let disabled = desk
        .post(
            &format!("/v1/subscriptions/{hook}/disable"),
            &tenant.key,
            &serde_json::json!({}),
        )
        .await;
    assert_eq!(disabled.status, 200);
    let parked = desk.get("/v1/deliveries?status=parked", &tenant.key).await;
    assert_eq!(events(&parked).len(), 2);
}

#[tokio::test]
async fn broken_rules_are_named() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    for query in [
        "status=open",
        "since=yesterday&subscription=sub_1",
        "cursor=aaaa&limit=1001",
        "status=pending&status=parked",
    ] {
        insta::assert_snapshot!(
            desk.get(&format!("/v1/deliveries?{query}"), &tenant.key)
                .await
                .problem()
        );
    }
    let narrow = desk.key(&tenant, &["events:write"]).await;
    insta::assert_snapshot!(desk.get("/v1/deliveries", &narrow).await.problem());
}
