//! API keys: who may do what, and when a key ends.

use std::time::{Duration, Instant};

use harness::{Client, Engine, World, eventually, on_both_engines};
use http::Method;
use serde_json::{Value, json};

on_both_engines!(
    a_key_is_shown_once_and_listed,
    scopes_limit_a_key,
    a_revoked_key_ends_within_seconds,
    a_key_is_rotated_with_an_overlap,
    the_last_use_of_a_key_is_shown,
    a_key_expires,
    bad_keys_are_refused,
    organizations_are_created_with_the_admin_token,
);

async fn make(client: &Client, body: &Value) -> Value {
    client.post("/v1/keys", body).await.expect(201)
}

fn text<'a>(key: &'a Value, member: &str) -> &'a str {
    key[member]
        .as_str()
        .unwrap_or_else(|| panic!("{member} is missing: {key}"))
}

async fn a_key_is_shown_once_and_listed(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let made = make(&client, &json!({"name": "ci", "scopes": ["events:write"]})).await;
    assert!(text(&made, "id").starts_with("key_"));
    assert!(text(&made, "key").starts_with("trg_live_"));
    assert!(text(&made, "key").starts_with(text(&made, "hint")));
    assert_eq!(made["scopes"], json!(["events:write"]));
    let listed = client.get("/v1/keys").await;
    assert!(
        !listed.text.contains(text(&made, "key")),
        "a key is listed with its text"
    );
    let listed = listed.expect(200);
    let keys = listed["data"].as_array().expect("a page");
    assert_eq!(keys.len(), 2, "{listed}");
    assert_eq!(keys[0]["id"], made["id"], "newest first");
    let organization = client.get("/v1/organization").await.expect(200);
    assert_eq!(organization["id"], client.organization.as_str());
    assert_eq!(organization["tier"], "unlimited");
    let header = client
        .anonymous(Method::GET, "/v1/organization")
        .header("x-api-key", &client.key);
    client.send(header).await.expect(200);
}

async fn scopes_limit_a_key(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let scoped = async |scope: &str| {
        let made = make(&client, &json!({"name": scope, "scopes": [scope]})).await;
        client.with_key(text(&made, "key"))
    };
    let (writes, reads) = (scoped("events:write").await, scoped("events:read").await);
    let (subscribes, administers) = (scoped("subscriptions:write").await, scoped("admin").await);

    let id = writes.event("order.placed").await;
    assert_eq!(reads.look_up(&id).await["id"], id.as_str());
    let event = json!({"type": "order.placed", "payload": 1});
    for other in [&reads, &subscribes, &administers] {
        other.post("/v1/events", &event).await.problem(403, "forbidden");
        other.post("/api/events", &event).await.problem(403, "forbidden");
    }
    for other in [&writes, &subscribes, &administers] {
        other
            .get(&format!("/v1/events/{id}"))
            .await
            .problem(403, "forbidden");
        other.get("/v1/inbox").await.problem(403, "forbidden");
        other.get("/api/inbox").await.problem(403, "forbidden");
        let ack = format!("/v1/inbox/{id}/ack");
        other.post(&ack, &json!({})).await.problem(403, "forbidden");
    }
    let subscription = json!({"url": "http://127.0.0.1:9/hook", "enabled": false});
    let made = subscribes.subscribe(&subscription).await;
    let path = format!("/v1/subscriptions/{}", made.id);
    for other in [&writes, &reads, &administers] {
        let created = other.post("/v1/subscriptions", &subscription).await;
        created.problem(403, "forbidden");
        other
            .patch(&path, &json!({"enabled": true}))
            .await
            .problem(403, "forbidden");
        other.delete(&path).await.problem(403, "forbidden");
        let config = json!({"webhook_url": "http://127.0.0.1:9/hook"});
        other
            .post("/api/webhook/config", &config)
            .await
            .problem(403, "forbidden");
    }
    administers.get("/v1/keys").await.expect(200);
    for other in [&writes, &reads, &subscribes] {
        other.get("/v1/keys").await.problem(403, "forbidden");
        let key = json!({"name": "another", "scopes": ["events:read"]});
        other.post("/v1/keys", &key).await.problem(403, "forbidden");
    }
    // A key cannot give what it does not have.
    let more = administers
        .post("/v1/keys", &json!({"name": "more", "scopes": ["events:write"]}))
        .await;
    more.problem(422, "invalid_request");
    // Nor by rotating one that has it: the answer holds the new key's text.
    let first = client.get("/v1/keys").await.expect(200);
    let first = text(
        first["data"]
            .as_array()
            .and_then(|keys| keys.last())
            .expect("a key"),
        "id",
    )
    .to_owned();
    let rotate = format!("/v1/keys/{first}/rotate");
    let body = json!({"overlap_seconds": 0});
    administers.post(&rotate, &body).await.problem(403, "forbidden");
    client.get("/v1/organization").await.expect(200);
    // One that has no more may be rotated by it, as by itself; and whoever has all of its scopes may rotate any.
    let mut administers = administers;
    for rotated_by in ["another", "itself"] {
        let own = administers.get("/v1/keys").await.expect(200);
        let keys = own["data"].as_array().expect("a page");
        let admin = keys
            .iter()
            .find(|key| key["scopes"] == json!(["admin"]) && key["revoked_at"].is_null())
            .expect("a key with one scope");
        let rotate = format!("/v1/keys/{}/rotate", text(admin, "id"));
        let by = if rotated_by == "itself" {
            &administers
        } else {
            &client
        };
        let rotated = by.post(&rotate, &body).await.expect(201);
        assert_eq!(rotated["scopes"], json!(["admin"]), "{rotated_by}");
        administers = client.with_key(text(&rotated, "key"));
    }
    // What is sent again or called off is for those who say what is sent.
    for act in ["retry", "cancel"] {
        let path = format!("/v1/events/{id}/deliveries/{}/{act}", made.id);
        for other in [&writes, &reads, &administers] {
            other.post(&path, &json!({})).await.problem(403, "forbidden");
        }
        subscribes.post(&path, &json!({})).await.problem(404, "not_found");
    }
}

async fn a_revoked_key_ends_within_seconds(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let made = make(&client, &json!({"name": "leaked"})).await;
    let leaked = client.with_key(text(&made, "key"));
    leaked.event("order.placed").await;
    leaked.get("/v1/organization").await.expect(200);
    let revoked = client.delete(&format!("/v1/keys/{}", text(&made, "id"))).await;
    assert_eq!(revoked.status, 204, "{}", revoked.text);
    let begun = Instant::now();
    // Where it was revoked, at once.
    leaked.get("/v1/organization").await.problem(401, "unauthorized");
    eventually(
        "the key ends where events are posted",
        Duration::from_secs(6),
        async || {
            let answer = leaked
                .post("/v1/events", &json!({"type": "order.placed", "payload": 1}))
                .await;
            if answer.status == 202 {
                return Err("it is still good".into());
            }
            answer.problem(401, "unauthorized");
            Ok(())
        },
    )
    .await;
    assert!(begun.elapsed() < Duration::from_secs(6));
    // Revoking again changes nothing; the organization's other key is as good as before.
    assert_eq!(
        client
            .delete(&format!("/v1/keys/{}", text(&made, "id")))
            .await
            .status,
        204
    );
    client.event("order.placed").await;
    let listed = client.get("/v1/keys").await.expect(200);
    assert!(listed["data"][0]["revoked_at"].is_string(), "{listed}");
}

async fn a_key_is_rotated_with_an_overlap(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let made = make(
        &client,
        &json!({"name": "deploys", "scopes": ["events:write", "events:read"]}),
    )
    .await;
    let old = client.with_key(text(&made, "key"));
    old.event("order.placed").await;
    let rotate = format!("/v1/keys/{}/rotate", text(&made, "id"));
    let begun = Instant::now();
    let rotated = client
        .post(&rotate, &json!({"overlap_seconds": 3}))
        .await
        .expect(201);
    assert_eq!(
        (&rotated["name"], &rotated["scopes"]),
        (&made["name"], &made["scopes"])
    );
    assert_eq!(rotated["replaces"], made["id"]);
    let new = client.with_key(text(&rotated, "key"));
    for key in [&old, &new] {
        key.event("order.placed").await;
        key.get("/v1/inbox").await.expect(200);
    }
    // At the node that posts and at the one that rotated, it ends when it was said to.
    for path in ["/v1/events", "/v1/inbox/ack"] {
        eventually("the old key ends", Duration::from_secs(10), async || {
            let body = json!({"type": "order.placed", "payload": 1});
            match old.post(path, &body).await {
                answer if answer.status == 401 => Ok(()),
                answer => Err(answer.text),
            }
        })
        .await;
    }
    assert!(
        begun.elapsed() >= Duration::from_millis(2_900),
        "it ended too soon"
    );
    new.event("order.placed").await;
    client.post(&rotate, &json!({})).await.problem(409, "conflict");
}

async fn the_last_use_of_a_key_is_shown(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let made = make(&client, &json!({"name": "ci"})).await;
    assert!(made["last_used_at"].is_null());
    client.with_key(text(&made, "key")).event("order.placed").await;
    eventually("the use is written down", Duration::from_secs(20), async || {
        let listed = client.get("/v1/keys").await.expect(200);
        let key = &listed["data"][0];
        assert_eq!(key["id"], made["id"]);
        match key["last_used_at"].as_str() {
            Some(at) if at >= text(&made, "created_at") => Ok(()),
            Some(at) => panic!("{at} is before {made}"),
            None => Err(listed.to_string()),
        }
    })
    .await;
    make(&client, &json!({"name": "unused"})).await;
    let listed = client.get("/v1/keys").await.expect(200);
    assert!(listed["data"][0]["last_used_at"].is_null());
}

async fn a_key_expires(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let past = client
        .post(
            "/v1/keys",
            &json!({"name": "late", "expires_at": "2020-01-01T00:00:00Z"}),
        )
        .await;
    past.problem(422, "invalid_request");
    assert_eq!(past.pointers(), ["/expires_at"]);
    let end = std::time::SystemTime::now() + Duration::from_secs(2);
    let end = end
        .duration_since(std::time::UNIX_EPOCH)
        .expect("the clock is right");
    let made = make(
        &client,
        &json!({"name": "short", "expires_at": rfc3339(end.as_secs())}),
    )
    .await;
    let short = client.with_key(text(&made, "key"));
    eventually("the key ends", Duration::from_secs(8), async || {
        match short.get("/v1/organization").await {
            answer if answer.status == 200 => Err("it is still good".into()),
            answer => {
                answer.problem(401, "unauthorized");
                Ok(())
            }
        }
    })
    .await;
}

/// A Unix time as RFC 3339 in UTC (the civil calendar's days, counted from March).
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

async fn bad_keys_are_refused(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let (rest, last) = client.key.split_at(client.key.len() - 1);
    let mistyped = format!("{rest}{}", if last == "x" { "y" } else { "x" });
    let unknown = "trg_live_00000000000000000000000000000000AAAAAA";
    let event = json!({"type": "order.placed", "payload": 1});
    for key in [
        "",
        "nonsense",
        &mistyped,
        unknown,
        harness::ADMIN_TOKEN,
        &client.key[4..],
    ] {
        let with = client.with_key(key);
        for answer in [with.post("/v1/events", &event).await, with.get("/v1/inbox").await] {
            answer.problem(401, "unauthorized");
            assert!(
                answer.header("www-authenticate").starts_with("Bearer"),
                "{answer:?}"
            );
        }
    }
    let none = client.anonymous(Method::POST, "/v1/events").json(&event);
    client.send(none).await.problem(401, "unauthorized");
    let basic = client
        .anonymous(Method::GET, "/v1/inbox")
        .basic_auth("user", Some(&client.key));
    client.send(basic).await.problem(401, "unauthorized");
    // What a proxy adds for itself does not hide the key; of two keys the bearer's is the one.
    for (request, status) in [
        (
            client
                .anonymous(Method::GET, "/v1/inbox")
                .basic_auth("a", Some("proxy")),
            200,
        ),
        (client.with_key(unknown).request(Method::GET, "/v1/inbox"), 401),
    ] {
        let answer = client.send(request.header("x-api-key", &client.key)).await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    // Nobody's body is read before it is known that they may send it.
    let huge = client
        .anonymous(Method::POST, "/v1/events")
        .header("content-type", "application/json")
        .body(vec![b' '; 1024]);
    client.send(huge).await.problem(401, "unauthorized");
}

async fn organizations_are_created_with_the_admin_token(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let body = json!({"name": "another", "tier": "pro"});
    client
        .post("/v1/organizations", &body)
        .await
        .problem(401, "unauthorized");
    let nobody = client.anonymous(Method::POST, "/v1/organizations").json(&body);
    client.send(nobody).await.problem(401, "unauthorized");
    client.get("/v1/set-aside").await.problem(401, "unauthorized");
    let admin = world.admin();
    let created = admin.post("/v1/organizations", &body).await.expect(201);
    assert_eq!(
        (&created["tier"], &created["events_per_minute"]),
        (&json!("pro"), &json!(1000))
    );
    for (body, pointer) in [
        (json!({}), "/name"),
        (json!({"name": ""}), "/name"),
        (json!({"name": "x".repeat(257)}), "/name"),
        (json!({"name": "a\u{0}b"}), "/name"),
        (json!({"name": 1}), "/name"),
        (json!({"name": "x", "tier": "gold"}), "/tier"),
        (json!({"name": "x", "more": 1}), "/more"),
    ] {
        let answer = admin.post("/v1/organizations", &body).await;
        answer.problem(422, "invalid_request");
        assert_eq!(answer.pointers(), [pointer], "{body}");
    }
}
