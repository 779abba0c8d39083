//! `triggers keys`.

use harness::{Engine, World, on_both_engines};
use serde_json::json;

use super::{CommandLine, text};

on_both_engines!(
    keys_are_made_rotated_and_revoked,
    people_see_tables_and_a_key_once
);

async fn keys_are_made_rotated_and_revoked(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let line = CommandLine::of(&world, &client);
    let expires_at = "2099-01-02T03:04:05.000Z";
    let made = line
        .object(&[
            "keys",
            "create",
            "ci",
            "--scopes",
            "events:write,events:read",
            "--expires-at",
            expires_at,
        ])
        .await;
    assert_eq!(made["scopes"], json!(["events:write", "events:read"]));
    assert_eq!(made["expires_at"], expires_at);
    client
        .with_key(&text(&made, "key"))
        .get("/v1/events")
        .await
        .expect(200);

    let rotated = line
        .object(&["keys", "rotate", &text(&made, "id"), "--overlap-seconds", "0"])
        .await;
    assert_eq!(rotated["replaces"], made["id"]);
    assert_eq!(rotated["replaced_until"], json!(null));
    let new = client.with_key(&text(&rotated, "key"));
    new.get("/v1/events").await.expect(200);

    // A list is an item a line, and limited as it is said.
    let listed = line.json(&["keys", "list"]).await;
    assert_eq!(listed.len(), 3, "{listed:?}");
    assert_eq!(listed[0]["id"], rotated["id"]);
    assert_eq!(listed[1]["replaced_by"], rotated["id"]);
    assert_eq!(line.json(&["keys", "list", "--limit", "2"]).await.len(), 2);
    assert_eq!(line.json(&["keys", "list", "--all"]).await.len(), 3);

    // Nobody can be asked, so that it must be said.
    let id = text(&rotated, "id");
    let unsaid = line.run(&["keys", "revoke", &id]).await;
    assert_eq!(unsaid.code, Some(2), "{unsaid:?}");
    assert!(unsaid.err.contains("--yes"), "{unsaid:?}");
    new.get("/v1/events").await.expect(200);
    assert!(line.json(&["keys", "revoke", &id, "--yes"]).await.is_empty());
    let listed = line.json(&["keys", "list"]).await;
    assert!(listed[0]["revoked_at"].is_string(), "{listed:?}");
}

async fn people_see_tables_and_a_key_once(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let line = CommandLine::of(&world, &client);
    // A name that would turn a terminal's text around.
    let made = line.run(&["keys", "create", "ci \u{202e} é"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(made.err.contains("this once"), "{made:?}");
    let member = |name: &str| {
        let found = made.out.lines().find_map(|line| line.strip_prefix(name));
        found.map(|value| value.trim().to_owned()).unwrap_or_default()
    };
    assert!(member("id").starts_with("key_"), "{made:?}");
    assert_eq!(member("name"), "ci \\u{202e} é");
    let key = member("key");
    client.with_key(&key).get("/v1/organization").await.expect(200);

    let table = line.ok(&["keys", "list", "--limit", "1"]).await;
    let rows: Vec<_> = table.lines().collect();
    assert_eq!(rows.len(), 2, "{table}");
    assert!(
        rows[0].starts_with("ID ") && rows[0].contains(" SCOPES"),
        "{table}"
    );
    assert!(rows[1].starts_with(&member("id")), "{table}");
    assert!(!table.contains(&key), "{table}");
    let column = rows[0].find("NAME").expect("a column");
    assert!(rows[1][column..].starts_with("ci \\u{202e} é"), "{table}");

    let revoked = line.ok(&["keys", "revoke", &member("id"), "-y"]).await;
    assert_eq!(revoked, format!("revoked {}", member("id")));
}
