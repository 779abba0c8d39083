use std::time::Duration;

use http::Method;
use serde_json::json;
use shared::{
    FailureKind, SubscriptionId, WorkerId,
    signature::SigningSecret,
    statistics::Tally,
    store::{Minute, OpenCircuit},
};

use crate::harness::{Desk, LONG};

#[tokio::test]
async fn a_push_subscription_lives_and_ends() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let body = json!({"url": "https://1.1.1.1/hook?a=b", "event_types": ["user.*", "*"], "description": "users",
                      "retry_schedule_seconds": [1, 60], "timeout_ms": 1000, "max_in_flight": 256, "enabled": false});
    let made = desk.post("/v1/subscriptions", &tenant.key, &body).await;
    insta::assert_snapshot!(made.shown());
    let path = made.headers["location"].to_str().unwrap();

    // The secret that was answered is the one that is sealed, and shown no more.
    let id: SubscriptionId = made.body["id"].as_str().unwrap().parse().unwrap();
    let stored = desk
        .engine
        .store
        .subscriptions
        .get(tenant.id, id)
        .await
        .unwrap()
        .unwrap();
    let sealed = &stored.push().unwrap().secret;
    let opened = desk.engine.sealer.open(tenant.id, id.uuid(), sealed).unwrap();
    let secret = SigningSecret::from_bytes(opened).unwrap().to_text();
    assert_eq!(made.body["secret"], secret);
    let shown = desk.get(path, &tenant.key).await;
    assert_eq!(shown.body["secret"], json!(null));

    let wishes =
        json!({"enabled": true, "description": null, "url": "https://1.1.1.1/other", "kind": "push"});
    let changed = desk.patch(path, &tenant.key, &wishes).await;
    insta::assert_snapshot!(changed.shown());
    assert_eq!(desk.get(path, &tenant.key).await.body, changed.body);
    let untouched = desk.patch(path, &tenant.key, &json!({})).await;
    assert_eq!(untouched.body, changed.body);
    let stored = desk
        .engine
        .store
        .subscriptions
        .get(tenant.id, id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        &stored.push().unwrap().secret,
        sealed,
        "a change keeps the secret"
    );

    assert_eq!(desk.delete(path, &tenant.key).await.status, 204);
    for answer in [
        desk.get(path, &tenant.key).await,
        desk.delete(path, &tenant.key).await,
        desk.patch(path, &tenant.key, &json!({"enabled": true})).await,
    ] {
        assert_eq!(answer.problem(), "404 there is no such subscription");
    }
}

#[tokio::test]
async fn defaults_are_as_documented() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let push = desk
        .post(
            "/v1/subscriptions",
            &tenant.key,
            &json!({"url": "https://1.1.1.1"}),
        )
        .await;
    insta::assert_snapshot!(push.shown());
    let pull = desk
        .post("/v1/subscriptions", &tenant.key, &json!({"kind": "pull"}))
        .await;
    insta::assert_snapshot!(pull.shown());
    let path = format!("/v1/subscriptions/{}", pull.body["id"].as_str().unwrap());
    let refused = desk
        .patch(
            &path,
            &tenant.key,
            &json!({"kind": "push", "url": "https://1.1.1.1"}),
        )
        .await;
    insta::assert_snapshot!(refused.problem());

    let first_page = desk.get("/v1/subscriptions?limit=2", &tenant.key).await;
    let next = first_page
        .next("/v1/subscriptions?limit=2")
        .expect("another page");
    let last_page = desk.get(&next, &tenant.key).await;
    let ids = [first_page.ids(), last_page.ids()].concat();
    assert_eq!(
        ids[1..],
        [
            push.body["id"].as_str().unwrap(),
            pull.body["id"].as_str().unwrap()
        ]
    );
    assert_eq!(first_page.body["data"][0]["builtin"], "inbox");
    assert_eq!(last_page.next(""), None);
}

#[tokio::test]
async fn urls_that_lead_inside_are_refused() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let bearer = format!("Bearer {}", tenant.key);
    let post = async |url: &str, more: &[(&str, &str)]| {
        let headers = [&[("authorization", &*bearer)], more].concat();
        desk.send(
            Method::POST,
            "/v1/subscriptions",
            &headers,
            Some(&json!({"url": url})),
        )
        .await
    };
    let loopback = "http://127.0.0.1:9000/hook";
    assert_eq!(post(loopback, &[]).await.status, 201, "asked from this machine");
    let forwarded = [("x-forwarded-for", "127.0.0.1")];
    insta::assert_snapshot!(post(loopback, &forwarded).await.shown());
    for inside in [
        "http://10.0.0.1/",
        "https://169.254.169.254/latest",
        "https://[fd00::1]/",
        "http://1.1.1.1/",
    ] {
        assert_eq!(post(inside, &[]).await.status, 422, "{inside}");
    }
    let made = post("https://1.1.1.1/", &[]).await;
    let path = made.headers["location"].to_str().unwrap();
    let moved = desk
        .patch(path, &tenant.key, &json!({"url": "https://192.168.0.1/"}))
        .await;
    assert_eq!(moved.body["errors"][0]["pointer"], "/url");
    assert_eq!(desk.get(path, &tenant.key).await.body["url"], "https://1.1.1.1/");
}

#[tokio::test]
async fn broken_rules_are_named() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let post = async |body| desk.post("/v1/subscriptions", &tenant.key, &body).await.problem();
    insta::assert_snapshot!(post(json!({})).await);
    insta::assert_snapshot!(
        post(json!({"url": "https://u:p@1.1.1.1/", "filters": "true", "ordering": "fifo"})).await
    );
    insta::assert_snapshot!(post(json!({"kind": "pull", "url": "https://1.1.1.1"})).await);
}

#[tokio::test]
async fn the_inbox_can_be_seen_and_not_touched() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let path = format!("/v1/subscriptions/{}", desk.inbox(&tenant).await);
    insta::assert_snapshot!(desk.get(&path, &tenant.key).await.shown());
    insta::assert_snapshot!(
        desk.patch(&path, &tenant.key, &json!({"enabled": false}))
            .await
            .problem()
    );
    assert_eq!(desk.delete(&path, &tenant.key).await.status, 409);
}

#[tokio::test]
async fn changes_that_meet_are_all_made() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let path = format!("/v1/subscriptions/{}", desk.subscribe(&tenant).await);
    let change = async |body| desk.patch(&path, &tenant.key, &body).await.status.as_u16();
    let statuses = tokio::join!(
        change(json!({"description": "met"})),
        change(json!({"timeout_ms": 2000})),
        change(json!({"max_in_flight": 3})),
        change(json!({"event_types": ["a.b"]})),
    );
    assert_eq!(statuses, (200, 200, 200, 200));
    let now = desk.get(&path, &tenant.key).await.body;
    let settings = (
        &now["description"],
        &now["timeout_ms"],
        &now["max_in_flight"],
        &now["event_types"][0],
    );
    assert_eq!(settings, (&json!("met"), &json!(2000), &json!(3), &json!("a.b")));
}

#[tokio::test]
async fn scopes_and_organizations_are_kept_apart() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let path = format!("/v1/subscriptions/{}", desk.subscribe(&tenant).await);
    let reader = desk.key(&tenant, &["events:read"]).await;
    assert_eq!(desk.get(&path, &reader).await.status, 200);
    assert_eq!(desk.get("/v1/subscriptions", &reader).await.status, 200);
    let refused = desk.delete(&path, &reader).await;
    assert_eq!(
        refused.problem(),
        "403 the API key needs the scope subscriptions:write"
    );
    let writer = desk.key(&tenant, &["events:write"]).await;
    let refused = desk.get(&path, &writer).await;
    assert_eq!(
        refused.problem(),
        "403 the API key needs the scope subscriptions:write or events:read"
    );
    for answer in [
        desk.get(&path, &other.key).await,
        desk.delete(&path, &other.key).await,
        desk.patch(&path, &other.key, &json!({"enabled": false})).await,
    ] {
        assert_eq!(answer.problem(), "404 there is no such subscription");
    }
    assert_eq!(desk.get(&path, &tenant.key).await.body["enabled"], true);
}

#[tokio::test]
async fn headers_are_sealed_masked_and_merged() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let body = json!({"url": "https://1.1.1.1/hook", "format": "cloudevents",
                      "headers": {"Authorization": "Bearer geheim", "X-Team": "a"}});
    let made = desk.post("/v1/subscriptions", &tenant.key, &body).await;
    assert_eq!(made.status, 201);
    assert_eq!(
        made.body["headers"],
        json!({"authorization": "********", "x-team": "********"})
    );
    assert_eq!(made.body["format"], "cloudevents");
    let id: SubscriptionId = made.body["id"].as_str().unwrap().parse().unwrap();
    let opened = async || {
        let stored = desk
            .engine
            .store
            .subscriptions
            .get(tenant.id, id)
            .await
            .unwrap()
            .unwrap();
        let sealed = stored.push().unwrap().headers.clone();
        let headers = sealed.map(|sealed| sealed.open(&desk.engine.sealer, tenant.id, id).unwrap());
        let headers = headers.unwrap_or_default();
        headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(opened().await, ["authorization: Bearer geheim", "x-team: a"]);

    let path = format!("/v1/subscriptions/{id}");
    let wishes = json!({"headers": {"X-TEAM": "b", "x-new": "c", "x-none": null}});
    let changed = desk.patch(&path, &tenant.key, &wishes).await;
    assert_eq!(changed.status, 200);
    assert_eq!(
        opened().await,
        ["authorization: Bearer geheim", "x-new: c", "x-team: b"]
    );
    let removed = desk
        .patch(&path, &tenant.key, &json!({"headers": {"Authorization": null}}))
        .await;
    assert_eq!(
        removed.body["headers"],
        json!({"x-new": "********", "x-team": "********"})
    );
    // What is shown cannot be sent back as a value.
    let shown = desk
        .patch(&path, &tenant.key, &json!({"headers": removed.body["headers"]}))
        .await;
    insta::assert_snapshot!(shown.problem());
    let none = desk.patch(&path, &tenant.key, &json!({"headers": null})).await;
    assert_eq!(
        (&none.body["headers"], opened().await),
        (&json!({}), Vec::<String>::new())
    );

    let many: serde_json::Map<_, _> = (0..20).map(|at| (format!("x-{at}"), json!("v"))).collect();
    assert_eq!(
        desk.patch(&path, &tenant.key, &json!({"headers": many}))
            .await
            .status,
        200
    );
    for headers in [
        json!({"x-more": "v"}),
        json!({"x-0": "v".repeat(1024), "x-1": "v".repeat(1024), "x-2": "v".repeat(1024), "x-3": "v".repeat(1024)}),
        json!({"Host": "example.com"}),
        json!({"x-a": "a\r\nb"}),
    ] {
        let refused = desk.patch(&path, &tenant.key, &json!({"headers": headers})).await;
        insta::assert_snapshot!(refused.problem());
    }
}

#[tokio::test]
async fn metadata_is_shown_and_merged() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    for kind in [json!({"kind": "pull"}), json!({"url": "https://1.1.1.1/hook"})] {
        let mut body = kind.clone();
        body["metadata"] = json!({"team": "ü", "tier": ""});
        let made = desk.post("/v1/subscriptions", &tenant.key, &body).await;
        assert_eq!(made.body["metadata"], json!({"team": "ü", "tier": ""}));
        let path = format!("/v1/subscriptions/{}", made.body["id"].as_str().unwrap());
        let wishes = json!({"metadata": {"team": "b", "tier": null, "new": "c"}});
        let changed = desk.patch(&path, &tenant.key, &wishes).await;
        assert_eq!(changed.body["metadata"], json!({"team": "b", "new": "c"}));
        let many: serde_json::Map<_, _> = (0..50).map(|at| (at.to_string(), json!("v"))).collect();
        let refused = desk.patch(&path, &tenant.key, &json!({"metadata": many})).await;
        assert_eq!(refused.status, 422);
        assert_eq!(desk.get(&path, &tenant.key).await.body, changed.body);
        let none = desk.patch(&path, &tenant.key, &json!({"metadata": null})).await;
        assert_eq!(none.body["metadata"], json!({}));
    }
}

#[tokio::test]
async fn how_a_subscription_fares_is_shown() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let hook = desk.subscribe(&tenant).await;
    let path = format!("/v1/subscriptions/{hook}/stats");
    insta::assert_snapshot!(desk.get(&path, &tenant.key).await.shown());

    let (worker, insight) = (WorkerId::new(), &desk.engine.store.insight);
    desk.engine.store.deliveries.enlist(worker, LONG).await.unwrap();
    let mut tally = Tally::default();
    for ms in 1..=3 {
        tally.add(None, Duration::from_millis(ms));
    }
    tally.add(Some(FailureKind::Status), Duration::from_secs(1));
    let minute = Minute {
        subscription: hook,
        number: 0,
        tally,
        success_ago: Some(Duration::ZERO),
        failure_ago: Some(Duration::ZERO),
    };
    insight.write_minutes(worker, &[minute]).await.unwrap();
    let open = |next_probe_in| OpenCircuit {
        subscription: hook,
        open_for: Duration::from_secs(9),
        next_probe_in,
    };
    insight.write_circuits(worker, &[open(LONG)], &[]).await.unwrap();
    insta::assert_snapshot!(desk.get(&path, &tenant.key).await.shown());
    insight
        .write_circuits(worker, &[open(Duration::ZERO)], &[])
        .await
        .unwrap();
    desk.event(&tenant, "user.created", "1", hook).await;
    let probing = desk.get(&path, &tenant.key).await;
    assert_eq!(probing.body["circuit"]["state"], "half_open");
    assert_eq!(
        (&probing.body["backlog"], &probing.body["backlog_capped"]),
        (&1.into(), &false.into())
    );
    assert_eq!(probing.body["oldest_undelivered_age_seconds"], 0);

    let inbox = desk.inbox(&tenant).await;
    let pulled = desk
        .get(&format!("/v1/subscriptions/{inbox}/stats"), &tenant.key)
        .await;
    assert!(pulled.body["circuit"].is_null(), "{}", pulled.text);
    assert_eq!(
        desk.get(&path, &other.key).await.problem(),
        "404 there is no such subscription"
    );
    let narrow = desk.key(&tenant, &["events:write"]).await;
    assert_eq!(desk.get(&path, &narrow).await.status, 403);
}

#[tokio::test]
async fn the_filters_of_an_organization_have_a_bound() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let filter = format!("type == '{}'", "x".repeat(2_038));
    let body = json!({"kind": "pull", "filter": filter});
    let mut paths = Vec::new();
    for _ in 0..64 {
        let made = desk.post("/v1/subscriptions", &tenant.key, &body).await;
        assert_eq!(made.status, 201, "{}", made.body);
        paths.push(made.headers["location"].to_str().unwrap().to_owned());
    }
    let small = json!({"kind": "pull", "filter": "true"});
    let refused = desk.post("/v1/subscriptions", &tenant.key, &small).await;
    insta::assert_snapshot!(refused.shown());
    // One in the place of another is no more.
    let changed = desk.patch(&paths[0], &tenant.key, &small).await;
    assert_eq!(changed.body["filter"], "true");
    let taken = desk.post("/v1/subscriptions", &tenant.key, &small).await;
    assert_eq!(taken.status, 201, "{}", taken.body);
    // It is each organization's own.
    let other = desk.tenant().await;
    assert_eq!(
        desk.post("/v1/subscriptions", &other.key, &body).await.status,
        201
    );
}
