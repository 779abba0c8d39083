use api::Signup;
use http::Method;
use serde_json::json;
use shared::store::Removed;

use crate::harness::{ADMIN_TOKEN, Desk};

#[tokio::test]
async fn an_organization_is_created_shown_and_renamed() {
    let desk = Desk::open().await;
    let created = desk
        .post(
            "/v1/organizations",
            ADMIN_TOKEN,
            &json!({"name": "Acme", "tier": "pro"}),
        )
        .await;
    insta::assert_snapshot!(created.shown());
    let key = created.body["key"]["key"].as_str().unwrap();
    insta::assert_snapshot!(desk.get("/v1/organization", key).await.shown());
    let renamed = desk
        .patch("/v1/organization", key, &json!({"name": "Acme & Co"}))
        .await;
    assert_eq!(
        (renamed.status.as_u16(), &renamed.body["name"]),
        (200, &json!("Acme & Co"))
    );
    let narrow = desk
        .post(
            "/v1/keys",
            key,
            &json!({"name": "reads", "scopes": ["events:read"]}),
        )
        .await;
    let narrow = narrow.body["key"].as_str().unwrap();
    assert_eq!(desk.get("/v1/organization", narrow).await.status, 200);
    let refused = desk
        .patch("/v1/organization", narrow, &json!({"name": "x"}))
        .await;
    assert_eq!(refused.problem(), "403 the API key needs the scope admin");
    let again = desk
        .post("/v1/organizations", ADMIN_TOKEN, &json!({"name": "Acme"}))
        .await;
    assert_eq!(again.body["tier"], "free", "unless asked otherwise");
    assert_ne!(again.body["id"], created.body["id"], "names are not unique");
}

#[tokio::test]
async fn broken_rules_are_named() {
    let desk = Desk::open().await;
    let post = async |body| desk.post("/v1/organizations", ADMIN_TOKEN, &body).await.problem();
    insta::assert_snapshot!(post(json!({"name": " ", "tier": "gold", "plan": 1})).await);
    insta::assert_snapshot!(post(json!({})).await);
    insta::assert_snapshot!(post(json!([])).await);
}

#[tokio::test]
async fn without_a_token_or_open_signup_nobody_creates_any() {
    let (body, post) = (json!({"name": "Acme", "organization_name": "Acme"}), Method::POST);
    let closed = Desk::with(Signup::AdminOnly, None).await;
    for path in ["/v1/organizations", "/api/keys/generate"] {
        let refused = closed.send(post.clone(), path, &[], Some(&body)).await;
        assert_eq!(refused.status, 403);
        assert!(
            refused.problem().contains("TRIGGERS_ADMIN_TOKEN"),
            "{}",
            refused.text
        );
        let guessed = closed.post(path, "", &body).await;
        assert_eq!(guessed.status, 403, "an empty token is nobody's");
    }
    let guarded = Desk::open().await;
    for (path, without) in [("/v1/organizations", 401), ("/api/keys/generate", 403)] {
        let refused = guarded.send(post.clone(), path, &[], Some(&body)).await;
        assert_eq!(refused.status, without);
        assert!(
            refused.problem().contains("TRIGGERS_ADMIN_TOKEN"),
            "{}",
            refused.text
        );
        assert_eq!(
            guarded.post(path, "not-the-operators-token", &body).await.status,
            401
        );
        assert_eq!(guarded.post(path, &ADMIN_TOKEN[1..], &body).await.status, 401);
    }
}

#[tokio::test]
async fn open_signup_is_for_the_free_tier() {
    let desk = Desk::with(Signup::Open, Some(ADMIN_TOKEN)).await;
    let anybody = async |body| {
        desk.send(Method::POST, "/v1/organizations", &[], Some(&body))
            .await
    };
    assert_eq!(anybody(json!({"name": "Acme"})).await.status, 201);
    let refused = anybody(json!({"name": "Acme", "tier": "unlimited"})).await;
    insta::assert_snapshot!(refused.problem());
    let body = json!({"name": "Acme", "tier": "unlimited"});
    assert_eq!(
        desk.post("/v1/organizations", ADMIN_TOKEN, &body).await.status,
        201
    );
}

#[tokio::test]
async fn signup_from_this_machine_is_for_nobody_else() {
    let desk = Desk::with(Signup::FromThisMachine, None).await;
    let body = json!({"name": "Acme", "tier": "unlimited"});
    let post = async |headers: &[(&str, &str)]| {
        let answer = desk
            .send(Method::POST, "/v1/organizations", headers, Some(&body))
            .await;
        answer.status.as_u16()
    };
    assert_eq!(post(&[]).await, 201);
    assert_eq!(post(&[("x-forwarded-for", "127.0.0.1")]).await, 403);
    assert_eq!(post(&[("host", "rebound.example.com")]).await, 403);
    assert_eq!(post(&[("origin", "https://example.com")]).await, 403);
    assert_eq!(post(&[("sec-fetch-site", "cross-site")]).await, 403);
}

#[tokio::test]
async fn an_organization_is_removed_by_the_operator() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let inbox = desk.inbox(&tenant).await;
    for _ in 0..3 {
        desk.event(&tenant, "user.created", "1", inbox).await;
    }
    let path = format!("/v1/organizations/{}", tenant.id);
    for refused in [
        desk.delete(&path, &tenant.key).await,
        desk.get(&path, &tenant.key).await,
        desk.get("/v1/organizations", &tenant.key).await,
    ] {
        assert_eq!(refused.status, 401, "it is the operator's");
    }
    let first = desk.get("/v1/organizations?limit=1", ADMIN_TOKEN).await;
    assert_eq!(first.ids(), [other.id.to_string()]);
    let next = first.next("/v1/organizations?limit=1").unwrap();
    let rest = desk.get(&next, ADMIN_TOKEN).await;
    insta::assert_snapshot!(rest.shown());
    assert_eq!(rest.ids(), [tenant.id.to_string()]);

    let removal = desk.delete(&path, ADMIN_TOKEN).await;
    insta::assert_snapshot!(removal.shown());
    assert_eq!(
        desk.get("/v1/organization", &tenant.key).await.status,
        401,
        "at once"
    );
    assert_eq!(
        desk.delete(&path, ADMIN_TOKEN).await.status,
        202,
        "again changes nothing"
    );
    // As a worker does.
    let removals = &desk.engine.store.removals;
    assert_eq!(removals.remove_some(tenant.id).await.unwrap(), Removed::Some);
    let shown = desk.get(&path, ADMIN_TOKEN).await;
    assert_eq!(shown.body["removal"]["events_removed"], 3);
    while removals.remove_some(tenant.id).await.unwrap() != Removed::All {}
    let gone = desk.get(&path, ADMIN_TOKEN).await;
    insta::assert_snapshot!(gone.shown());
    let again = desk.delete(&path, ADMIN_TOKEN).await;
    assert_eq!(
        (again.status.as_u16(), &again.body),
        (202_u16, &gone.body),
        "it is remembered"
    );
    let listed = desk.get("/v1/organizations", ADMIN_TOKEN).await;
    assert_eq!(listed.ids(), [other.id.to_string()]);
    assert_eq!(desk.get("/v1/organization", &other.key).await.status, 200);
}

#[tokio::test]
async fn an_organization_says_how_long_it_keeps_events() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let set = async |body| desk.patch("/v1/organization", &tenant.key, &body).await;
    insta::assert_snapshot!(set(json!({"retention_days": 7})).await.shown());
    insta::assert_snapshot!(set(json!({"retention_days": 31, "name": ""})).await.problem());
    assert_eq!(
        set(json!({"retention_days": null})).await.body["retention_days"],
        json!(null)
    );
    assert_eq!(set(json!({})).await.status, 200, "nothing changes nothing");
}
