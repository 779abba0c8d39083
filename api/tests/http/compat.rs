use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use shared::delivery::{AttemptResult, Next};

use crate::harness::{ADMIN_TOKEN, Desk, event};

fn is_plain_uuid(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| text.len() == 36 && uuid::Uuid::try_parse(text).is_ok())
}

#[tokio::test]
async fn keys_are_generated_shown_and_rotated() {
    let desk = Desk::with(api::Signup::FromThisMachine, Some(ADMIN_TOKEN)).await;
    let body = json!({"organization_name": "Acme", "tier": "business", "email": "ignored"});
    let generated = desk
        .send(Method::POST, "/api/keys/generate", &[], Some(&body))
        .await;
    insta::assert_snapshot!(generated.shown());
    let key = generated.body["api_key"].as_str().unwrap();

    let by_header = desk
        .send(Method::GET, "/api/keys", &[("x-api-key", key)], None)
        .await;
    insta::assert_snapshot!(by_header.shown());
    assert!(!by_header.text.contains(key));

    let rotated = desk.post("/api/keys/rotate", key, &json!({})).await;
    insta::assert_snapshot!(rotated.shown());
    assert_eq!(rotated.body["organization_id"], generated.body["organization_id"]);
    let new = rotated.body["api_key"].as_str().unwrap();
    assert_eq!(
        desk.get("/api/keys", key).await.status,
        401,
        "the old one ends at once"
    );
    assert_eq!(desk.get("/api/keys", new).await.status, 200);
    assert_eq!(
        desk.get("/v1/keys", new).await.status,
        200,
        "the new one may do the same"
    );

    let unlimited = json!({"organization_name": "Acme", "tier": "unlimited"});
    let generated = desk
        .send(Method::POST, "/api/keys/generate", &[], Some(&unlimited))
        .await;
    assert_eq!(generated.body["rate_limit_per_minute"], json!(null));
    let broken = json!({"organization_name": 1, "tier": "gold"});
    let refused = desk
        .send(Method::POST, "/api/keys/generate", &[], Some(&broken))
        .await;
    insta::assert_snapshot!(refused.problem());
    assert_eq!(refused.body["error"], "invalid_request");
    assert_eq!(refused.body["message"], refused.body["detail"]);
}

#[tokio::test]
async fn a_webhook_is_set_and_moved() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let set = async |url: &str| {
        let body = json!({"webhook_url": url, "unknown": true});
        desk.post("/api/webhook/config", &tenant.key, &body).await
    };
    let first = set("http://127.0.0.1:9/hook").await;
    insta::assert_snapshot!(first.shown());
    let webhook = desk
        .engine
        .store
        .subscriptions
        .webhook(tenant.id)
        .await
        .unwrap()
        .unwrap();
    desk.engine
        .store
        .subscriptions
        .disable(tenant.id, webhook.id, webhook.version, "gone", true)
        .await
        .unwrap();

    let moved = set("https://1.1.1.1/other").await;
    insta::assert_snapshot!(moved.shown());
    assert_eq!(
        desk.get("/api/keys", &tenant.key).await.body["webhook_url"],
        "https://1.1.1.1/other"
    );
    let shown = desk
        .get(&format!("/v1/subscriptions/{}", webhook.id), &tenant.key)
        .await;
    insta::assert_snapshot!(shown.shown());

    insta::assert_snapshot!(set("http://10.0.0.1/").await.problem());
    insta::assert_snapshot!(
        desk.post("/api/webhook/config", &tenant.key, &json!({}))
            .await
            .problem()
    );
}

#[tokio::test]
async fn webhooks_set_at_once_are_one() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let body = json!({"webhook_url": "https://1.1.1.1/hook"});
    let set = async || desk.post("/api/webhook/config", &tenant.key, &body).await;
    let answers: [_; 4] = tokio::join!(set(), set(), set(), set()).into();
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let secrets = answers
        .iter()
        .filter(|answer| answer.body["secret"].is_string())
        .count();
    assert_eq!(secrets, 1, "whoever made it was told the secret");
    let listed = desk.get("/v1/subscriptions", &tenant.key).await;
    assert_eq!(listed.ids().len(), 2, "the inbox and the webhook");
}

#[tokio::test]
async fn the_inbox_shows_everything_newest_first() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let (inbox, hook) = (desk.inbox(&tenant).await, desk.subscribe(&tenant).await);
    let waits = desk.event(&tenant, "waits", "{\"a\": 1.50}", inbox).await;
    let fails = desk.event(&tenant, "fails", "1", hook).await;
    desk.fail(
        fails,
        hook,
        &tenant,
        Next::Retry {
            after: Duration::from_mins(10),
        },
    )
    .await;
    let dead = desk.event(&tenant, "dead", "2", hook).await;
    desk.fail(dead, hook, &tenant, Next::DeadLetter).await;
    let delivered = desk.event(&tenant, "delivered", "3", hook).await;
    desk.attempt(
        delivered,
        hook,
        &tenant,
        AttemptResult::Delivered { status_code: 200 },
    )
    .await;
    let acknowledged = desk.event(&tenant, "acknowledged", "4", inbox).await;
    let acknowledge = desk
        .post(
            &format!("/api/ack/{}", acknowledged.uuid()),
            &tenant.key,
            &json!({}),
        )
        .await;
    insta::assert_snapshot!(acknowledge.shown());
    assert!(is_plain_uuid(&acknowledge.body["id"]));

    let all = desk.get("/api/inbox", &tenant.key).await;
    insta::assert_snapshot!(all.shown());
    assert!(
        all.text.contains("{\"a\": 1.50}"),
        "payloads are as they were sent"
    );
    let newest_first = [acknowledged, delivered, dead, fails, waits].map(|id| id.uuid().to_string());
    assert_eq!(all.ids(), newest_first);

    for (status, ids) in [
        ("pending", &newest_first[4..]),
        ("failed", &newest_first[3..4]),
        ("delivered", &newest_first[..2]),
        ("dead_letter", &newest_first[2..3]),
    ] {
        let listed = desk
            .get(&format!("/api/inbox?status={status}"), &tenant.key)
            .await;
        assert_eq!(listed.ids(), ids, "{status}");
        assert_eq!(listed.body["pagination"]["total"], ids.len(), "{status}");
    }

    let second = desk.get("/api/inbox?limit=2&offset=2", &tenant.key).await;
    assert_eq!(second.ids(), newest_first[2..4]);
    let pagination = json!({"total": 5, "limit": 2, "offset": 2, "has_more": true});
    assert_eq!(second.body["pagination"], pagination);
    let last = desk
        .get(&second.next("/api/inbox?limit=2").unwrap(), &tenant.key)
        .await;
    assert_eq!(last.ids(), newest_first[4..]);
    assert_eq!(last.body["pagination"]["has_more"], false);
    let both = format!("{}&offset=1", second.next("/api/inbox").unwrap());
    insta::assert_snapshot!(desk.get(&both, &tenant.key).await.problem());
    insta::assert_snapshot!(
        desk.get("/api/inbox?status=open&limit=0&offset=-1", &tenant.key)
            .await
            .problem()
    );
}

#[tokio::test]
async fn a_status_finds_what_it_is_shown_of() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let hook = desk.subscribe(&tenant).await;
    let pull = json!({"kind": "pull", "event_types": ["none"]});
    let pull = desk.post("/v1/subscriptions", &tenant.key, &pull).await;
    let source = pull.body["id"].as_str().unwrap().to_owned();
    let agree = async |expected: [&str; 3], after: &str| {
        let all = desk.get("/api/inbox", &tenant.key).await;
        let shown: Vec<_> = all.body["events"].as_array().unwrap().iter().collect();
        let statuses: Vec<_> = shown
            .iter()
            .map(|event| event["status"].as_str().unwrap())
            .collect();
        assert_eq!(statuses, expected, "after {after}");
        for status in ["pending", "failed", "delivered", "dead_letter"] {
            let path = format!("/api/inbox?status={status}");
            let found = desk.get(&path, &tenant.key).await.ids();
            let so: Vec<_> = shown.iter().filter(|event| event["status"] == status).collect();
            let so: Vec<_> = so.iter().map(|event| event["id"].as_str().unwrap()).collect();
            assert_eq!(found, so, "{status} after {after}");
        }
    };
    let pulled = desk.event(&tenant, "a", "1", source.parse().unwrap()).await;
    let fails = desk.event(&tenant, "b", "2", hook).await;
    let dead = desk.event(&tenant, "c", "3", hook).await;
    agree(["pending"; 3], "intake").await;
    let after = Duration::from_mins(10);
    desk.fail(fails, hook, &tenant, Next::Retry { after }).await;
    desk.fail(dead, hook, &tenant, Next::DeadLetter).await;
    agree(["dead_letter", "failed", "pending"], "failures").await;

    let of_source = |what: &str| format!("/v1/subscriptions/{source}/{what}");
    desk.post(&of_source("pull"), &tenant.key, &json!({})).await;
    agree(["dead_letter", "failed", "pending"], "a pull").await;
    let ids = json!({"event_ids": [pulled]});
    desk.post(&of_source("release"), &tenant.key, &ids).await;
    agree(["dead_letter", "failed", "pending"], "a release").await;

    let of_delivery = |event, what: &str| format!("/v1/events/{event}/deliveries/{hook}/{what}");
    for event in [fails, dead] {
        let retried = desk
            .post(&of_delivery(event, "retry"), &tenant.key, &json!({}))
            .await;
        assert_eq!(retried.status, 202, "{}", retried.text);
    }
    agree(["pending", "failed", "pending"], "a retry").await;
    desk.post(&of_delivery(dead, "cancel"), &tenant.key, &json!({}))
        .await;
    agree(["dead_letter", "failed", "pending"], "a cancellation").await;
    let acknowledge = format!("/api/ack/{}", fails.uuid());
    desk.post(&acknowledge, &tenant.key, &json!({})).await;
    agree(["dead_letter", "delivered", "pending"], "an acknowledgement").await;
}

#[tokio::test]
async fn a_status_that_is_rare_is_not_looked_for_everywhere_at_once() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let (inbox, hook) = (desk.inbox(&tenant).await, desk.subscribe(&tenant).await);
    let mut dead = Vec::new();
    for payload in ["1", "2", "3"] {
        let id = desk.event(&tenant, "rare", payload, hook).await;
        desk.fail(id, hook, &tenant, Next::DeadLetter).await;
        dead.push(id.uuid().to_string());
    }
    dead.reverse();
    // More than one request looks at.
    for _ in 0..66 {
        let batch: Vec<_> = (0..500).map(|_| event(&tenant, "usual", "2")).collect();
        desk.take_in_all(&batch, inbox).await;
    }
    let (mut found, mut answers) = (Vec::new(), Vec::new());
    let mut path = Some("/api/inbox?status=dead_letter&limit=2".to_owned());
    while let Some(page) = path {
        let answer = desk.get(&page, &tenant.key).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        found.extend(answer.ids());
        path = answer.next("/api/inbox?status=dead_letter&limit=2");
        answers.push(answer.body["pagination"].clone());
    }
    assert_eq!(found, dead);
    // The total is no more than was seen, and no less than is shown.
    let pagination =
        |total: u64, more: bool| json!({"total": total, "limit": 2, "offset": 0, "has_more": more});
    assert_eq!(
        answers,
        [pagination(0, true), pagination(2, true), pagination(1, false)]
    );
    let pending = desk.get("/api/inbox?status=pending&limit=1", &tenant.key).await;
    assert_eq!(pending.body["pagination"]["total"], 10_000);
    assert_eq!(pending.body["pagination"]["has_more"], true);
}

/// The looks that a request has may end with what is passed over: then it has one more, and says where to go on.
#[tokio::test]
async fn passing_over_may_use_up_the_looks() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let (inbox, hook) = (desk.inbox(&tenant).await, desk.subscribe(&tenant).await);
    for _ in 0..19 {
        let id = desk.event(&tenant, "rare", "1", hook).await;
        desk.fail(id, hook, &tenant, Next::DeadLetter).await;
        // With it, as many as are looked at for a page.
        for count in [500, 500, 500, 499] {
            let batch: Vec<_> = (0..count).map(|_| event(&tenant, "usual", "2")).collect();
            desk.take_in_all(&batch, inbox).await;
        }
    }
    for offset in 14..18 {
        let path = format!("/api/inbox?status=dead_letter&offset={offset}&limit=50");
        let answer = desk.get(&path, &tenant.key).await;
        assert!(
            matches!(answer.status.as_u16(), 200 | 400 | 422),
            "{offset}: {}",
            answer.text
        );
        if answer.status == 200 {
            assert!(answer.ids().len() <= 2, "{offset}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn pages_by_offset_are_those_by_cursor() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let (inbox, hook) = (desk.inbox(&tenant).await, desk.subscribe(&tenant).await);
    // Few of them are among those that a page looks at.
    let mut dead = Vec::new();
    for at in 0..50 {
        let id = desk.event(&tenant, "rare", "1", hook).await;
        desk.fail(id, hook, &tenant, Next::DeadLetter).await;
        dead.push(id.uuid().to_string());
        if at % 2 == 0 {
            let batch: Vec<_> = (0..300).map(|_| event(&tenant, "usual", "2")).collect();
            desk.take_in_all(&batch, inbox).await;
        }
    }
    dead.reverse();
    let mut found = Vec::new();
    loop {
        let path = format!("/api/inbox?status=dead_letter&limit=7&offset={}", found.len());
        let answer = desk.get(&path, &tenant.key).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        found.extend(answer.ids());
        if answer.body["pagination"]["has_more"] == false {
            break;
        }
    }
    assert_eq!(found, dead);
    let past = desk
        .get("/api/inbox?status=dead_letter&offset=50", &tenant.key)
        .await;
    assert_eq!(past.ids(), [""; 0]);
    assert_eq!(past.body["pagination"]["has_more"], false);
    // Where more would have to be looked at than a request looks at, it says what to do.
    for _ in 0..52 {
        let batch: Vec<_> = (0..500).map(|_| event(&tenant, "usual", "2")).collect();
        desk.take_in_all(&batch, inbox).await;
    }
    let far = desk
        .get("/api/inbox?status=dead_letter&offset=50", &tenant.key)
        .await;
    assert_eq!(far.status, 400, "{}", far.text);
    assert!(far.text.contains("use cursor"), "{}", far.text);
}

#[tokio::test]
async fn what_is_called_off_shows_as_dead() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let hook = desk.subscribe(&tenant).await;
    let id = desk.event(&tenant, "user.created", "1", hook).await;
    assert_eq!(
        desk.delete(&format!("/v1/subscriptions/{hook}"), &tenant.key)
            .await
            .status,
        204
    );
    let listed = desk.get("/api/inbox?status=dead_letter", &tenant.key).await;
    assert_eq!(listed.ids(), [id.uuid().to_string()]);
    assert_eq!(listed.body["events"][0]["status"], "dead_letter");
    assert_eq!(
        desk.get("/api/inbox?status=pending", &tenant.key)
            .await
            .ids()
            .len(),
        0
    );
}

#[tokio::test]
async fn nothing_crosses_organizations() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let inbox = desk.inbox(&other).await;
    let theirs = desk.event(&other, "user.created", "1", inbox).await;
    let listed = desk.get("/api/inbox", &tenant.key).await;
    assert_eq!(
        (listed.ids().len(), &listed.body["pagination"]["total"]),
        (0, &json!(0))
    );
    let path = format!("/api/ack/{}", theirs.uuid());
    assert_eq!(desk.post(&path, &tenant.key, &json!({})).await.status, 404);
    let never_posted = event(&tenant, "user.created", "1").id;
    let path = format!("/api/ack/{}", never_posted.uuid());
    assert_eq!(desk.post(&path, &tenant.key, &json!({})).await.status, 404);
    assert_eq!(
        desk.get("/api/inbox?status=pending", &other.key)
            .await
            .ids()
            .len(),
        1
    );
}
