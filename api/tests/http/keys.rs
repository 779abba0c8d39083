use http::Method;
use serde_json::json;

use crate::harness::Desk;

#[tokio::test]
async fn a_key_is_made_listed_and_revoked() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let body = json!({"name": "fronts", "scopes": ["events:write", "events:read"], "expires_at": "2999-01-01T00:00:00Z"});
    let made = desk.post("/v1/keys", &tenant.key, &body).await;
    insta::assert_snapshot!(made.shown());
    let (id, key) = (
        made.body["id"].as_str().unwrap(),
        made.body["key"].as_str().unwrap(),
    );
    assert_eq!(desk.get("/v1/inbox", key).await.status, 200);

    let first_page = desk.get("/v1/keys?limit=1", &tenant.key).await;
    assert_eq!(first_page.ids(), [id], "newest first");
    assert!(!first_page.text.contains(key));
    let next = first_page.next("/v1/keys?limit=1").expect("another page");
    let last_page = desk.get(&next, &tenant.key).await;
    assert_eq!(last_page.ids().len(), 1);
    assert_eq!(last_page.next(""), None);

    let path = format!("/v1/keys/{id}");
    for _ in 0..2 {
        let revoked = desk.delete(&path, &tenant.key).await;
        assert_eq!(
            (revoked.status.as_u16(), &*revoked.text),
            (204, ""),
            "twice as well as once"
        );
        assert_eq!(desk.get("/v1/inbox", key).await.status, 401, "at once");
    }
    let listed = desk.get("/v1/keys", &tenant.key).await;
    assert!(
        listed.body["data"][0]["revoked_at"].is_string(),
        "{}",
        listed.text
    );
}

#[tokio::test]
async fn a_key_gives_no_more_than_it_has() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let admin = desk.key(&tenant, &["admin"]).await;
    let own = desk.post("/v1/keys", &admin, &json!({"name": "the same"})).await;
    assert_eq!(
        own.body["scopes"],
        json!(["admin"]),
        "its maker's, unless asked otherwise"
    );
    let more = json!({"name": "more", "scopes": ["admin", "events:read"]});
    insta::assert_snapshot!(desk.post("/v1/keys", &admin, &more).await.shown());
    let narrow = desk.key(&tenant, &["events:read"]).await;
    for (method, path) in [
        (Method::GET, "/v1/keys"),
        (Method::POST, "/v1/keys"),
        (Method::POST, "/api/keys/rotate"),
    ] {
        let headers = [("authorization", &*format!("Bearer {narrow}"))];
        let refused = desk.send(method, path, &headers, None).await;
        assert_eq!(refused.problem(), "403 the API key needs the scope admin");
    }
}

#[tokio::test]
async fn broken_rules_are_named() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let post = async |body| desk.post("/v1/keys", &tenant.key, &body).await.problem();
    insta::assert_snapshot!(
        post(json!({"name": "a\u{7}", "scopes": ["root"], "expires_at": "2001-01-01T00:00:00Z", "key": "x"}))
            .await
    );
    insta::assert_snapshot!(post(json!({"scopes": []})).await);
    insta::assert_snapshot!(
        desk.get("/v1/keys?limit=1001&cursor=abc", &tenant.key)
            .await
            .problem()
    );
}

#[tokio::test]
async fn keys_of_others_are_not_there() {
    let desk = Desk::open().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let listed = desk.get("/v1/keys", &other.key).await;
    let path = format!("/v1/keys/{}", listed.ids()[0]);
    assert_eq!(
        desk.delete(&path, &tenant.key).await.problem(),
        "404 there is no such key"
    );
    assert_eq!(
        desk.get("/v1/organization", &other.key).await.status,
        200,
        "it is as it was"
    );
    insta::assert_snapshot!(desk.delete("/v1/keys/mine", &tenant.key).await.problem());
}
