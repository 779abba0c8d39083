use http::Method;
use serde_json::{Value, json};
use shared::{EventId, KeyId};

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
    // Nor by rotating one that has more: the new key's text would be in the answer.
    let first = desk.get("/v1/keys", &tenant.key).await.ids().pop().unwrap();
    let rotate = format!("/v1/keys/{first}/rotate");
    insta::assert_snapshot!(desk.post(&rotate, &admin, &json!({})).await.problem());
    assert_eq!(
        desk.get("/v1/keys", &tenant.key).await.status,
        200,
        "it is as it was"
    );
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
async fn a_key_is_rotated_with_an_overlap_or_without() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let body = json!({"name": "fronts", "scopes": ["events:read"], "expires_at": "2999-01-01T00:00:00Z"});
    let old = desk.post("/v1/keys", &tenant.key, &body).await.body;
    let path = |key: &Value| format!("/v1/keys/{}/rotate", key["id"].as_str().unwrap());
    let text = |key: &Value| key["key"].as_str().unwrap().to_owned();
    let rotated = desk
        .post(&path(&old), &tenant.key, &json!({"overlap_seconds": 604_800}))
        .await;
    insta::assert_snapshot!(rotated.shown());
    let new = rotated.body;
    for key in [&old, &new] {
        assert_eq!(
            desk.get("/v1/inbox", &text(key)).await.status,
            200,
            "both are good"
        );
    }
    let listed = desk.get("/v1/keys", &tenant.key).await;
    let shown = &listed.body["data"][1];
    assert_eq!((&shown["id"], &shown["replaced_by"]), (&old["id"], &new["id"]));
    assert_eq!(
        (&shown["expires_at"], &shown["revoked_at"]),
        (&new["replaced_until"], &json!(null))
    );
    assert!(!listed.text.contains(&text(&new)));

    let again = desk.post(&path(&old), &tenant.key, &json!({})).await.problem();
    let successor = new["id"].as_str().unwrap();
    assert_eq!(
        again,
        format!("409 the key was rotated before: rotate {successor}, which took its place")
    );
    let last = desk
        .post(&path(&new), &tenant.key, &json!({"overlap_seconds": 0}))
        .await;
    assert_eq!(
        (last.status.as_u16(), &last.body["replaced_until"]),
        (201, &json!(null))
    );
    assert_eq!(desk.get("/v1/inbox", &text(&new)).await.status, 401, "at once");
    assert_eq!(desk.get("/v1/inbox", &text(&last.body)).await.status, 200);
    insta::assert_snapshot!(desk.post(&path(&new), &tenant.key, &json!({})).await.problem());
    insta::assert_snapshot!(
        desk.post(
            &path(&last.body),
            &tenant.key,
            &json!({"overlap_seconds": 604_801, "name": "x"})
        )
        .await
        .problem()
    );
    let other = desk.tenant().await;
    let theirs = desk.post(&path(&last.body), &other.key, &json!({})).await;
    assert_eq!(theirs.problem(), "404 there is no such key");
}

#[tokio::test]
async fn an_organizations_only_key_rotates_itself() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let id = desk.get("/v1/keys", &tenant.key).await.ids().remove(0);
    let path = format!("/v1/keys/{id}/rotate");
    let rotated = desk
        .post(&path, &tenant.key, &json!({"overlap_seconds": 0}))
        .await;
    assert_eq!(rotated.status, 201, "{}", rotated.text);
    assert_eq!(desk.get("/v1/keys", &tenant.key).await.status, 401);
    let new = rotated.body["key"].as_str().unwrap();
    assert_eq!(
        desk.get("/v1/keys", new).await.ids().len(),
        2,
        "it may do the same"
    );
}

/// Every scope against a route of each group: what a key may not do is 403, and says what it lacks.
#[tokio::test]
async fn a_scope_opens_its_routes_and_no_others() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let (event, subscription) = (EventId::new(), desk.subscribe(&tenant).await);
    let read = "events:read";
    let (write, admin) = ("subscriptions:write", "admin");
    let all: &[&str] = &["events:write", read, write, admin];
    let routes = [
        (Method::GET, format!("/v1/events/{event}?wait_ms=0"), &[read][..]),
        (
            Method::GET,
            format!("/v1/events/{event}/deliveries/{subscription}"),
            &[read],
        ),
        (Method::GET, "/v1/inbox".into(), &[read]),
        (Method::POST, format!("/v1/inbox/{event}/ack"), &[read]),
        (Method::POST, "/v1/inbox/ack".into(), &[read]),
        (Method::GET, "/api/inbox".into(), &[read]),
        (Method::POST, format!("/api/ack/{event}"), &[read]),
        (
            Method::POST,
            format!("/v1/events/{event}/deliveries/{subscription}/retry"),
            &[write],
        ),
        (
            Method::POST,
            format!("/v1/events/{event}/deliveries/{subscription}/cancel"),
            &[write],
        ),
        (Method::GET, "/v1/subscriptions".into(), &[read, write]),
        (
            Method::GET,
            format!("/v1/subscriptions/{subscription}"),
            &[read, write],
        ),
        (Method::POST, "/v1/subscriptions".into(), &[write]),
        (
            Method::PATCH,
            format!("/v1/subscriptions/{subscription}"),
            &[write],
        ),
        (
            Method::POST,
            format!("/v1/subscriptions/{subscription}/rotate-secret"),
            &[write],
        ),
        (
            Method::POST,
            format!("/v1/subscriptions/{subscription}/replay"),
            &[write],
        ),
        (Method::POST, "/api/webhook/config".into(), &[write]),
        (Method::GET, "/v1/organization".into(), all),
        (Method::GET, "/api/keys".into(), all),
        (Method::PATCH, "/v1/organization".into(), &[admin]),
        (Method::GET, "/v1/keys".into(), &[admin]),
        (Method::POST, "/v1/keys".into(), &[admin]),
        (
            Method::POST,
            format!("/v1/keys/{}/rotate", KeyId::new()),
            &[admin],
        ),
        (Method::DELETE, format!("/v1/keys/{}", KeyId::new()), &[admin]),
    ];
    for scope in all {
        let key = desk.key(&tenant, &[scope]).await;
        let headers = [("authorization", &*format!("Bearer {key}"))];
        for (method, path, opened_by) in &routes {
            let answer = desk.send(method.clone(), path, &headers, Some(&json!({}))).await;
            let refused = answer.status == 403;
            assert_eq!(
                refused,
                !opened_by.contains(scope),
                "{scope}: {method} {path}: {}",
                answer.text
            );
            assert_ne!(answer.status, 401, "{scope}: {method} {path}");
            if refused {
                let lacking = format!("403 the API key needs the scope {}", opened_by.join(" or "));
                let mut either = opened_by.to_vec();
                either.reverse();
                let reversed = format!("403 the API key needs the scope {}", either.join(" or "));
                assert!([lacking, reversed].contains(&answer.problem()), "{}", answer.text);
            }
        }
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
