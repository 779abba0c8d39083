//! Events that break a rule.

use harness::{Client, Engine, World, on_both_engines};

use super::long;

on_both_engines!(
    bodies_that_do_not_parse,
    fields_that_break_a_rule,
    fields_that_are_too_much,
);

/// Bodies that are not JSON, or not an object.
const MALFORMED: &[&str] = &[
    "{",
    "[]",
    "null",
    "\"text\"",
    r#"{"type":"a","payload":1}{}"#,
    r#"{"type":"a","payload":1,}"#,
    r#"{"type":"a","payload":nul}"#,
    r#"{"type":"a","payload":NaN}"#,
    r#"{"type":"a","payload":01}"#,
    "{\"type\":\"a\",\"payload\":\"a\nb\"}",
    r#"{"type":"a","payload":"\x"}"#,
    r#"{"type":"a","payload":{"a":1]}"#,
    r"{'type':'a','payload':1}",
];

/// Fields that are missing, wrong, unknown or repeated, and where.
const WRONG: &[(&str, &[&str])] = &[
    ("", &["/payload", "/type"]),
    ("{}", &["/payload", "/type"]),
    (r#"{"type":"a"}"#, &["/payload"]),
    (r#"{"payload":1}"#, &["/type"]),
    (r#"{"type":null,"payload":1}"#, &["/type"]),
    (r#"{"type":1,"payload":1}"#, &["/type"]),
    (r#"{"type":["a"],"payload":1}"#, &["/type"]),
    (r#"{"type":"","payload":1}"#, &["/type"]),
    (r#"{"type":"a b","payload":1}"#, &["/type"]),
    (r#"{"type":"a*","payload":1}"#, &["/type"]),
    (r#"{"type":"a\"b","payload":1}"#, &["/type"]),
    (r#"{"type":"a'b","payload":1}"#, &["/type"]),
    (r#"{"type":"a\u0000b","payload":1}"#, &["/type"]),
    (r#"{"type":"a\u007fb","payload":1}"#, &["/type"]),
    (r#"{"type":"é","payload":1}"#, &["/type"]),
    (r#"{"type":"\ud800","payload":1}"#, &["/type"]),
    (r#"{"type":"triggers.delivery.failed","payload":1}"#, &["/type"]),
    (r#"{"type":"a","payload":1,"dedup_id":""}"#, &["/dedup_id"]),
    (
        r#"{"type":"a","payload":1,"dedup_id":"a\u0000b"}"#,
        &["/dedup_id"],
    ),
    (
        r#"{"type":"a","payload":1,"dedup_id":"a\u0085b"}"#,
        &["/dedup_id"],
    ),
    (r#"{"type":"a","payload":1,"dedup_id":7}"#, &["/dedup_id"]),
    (r#"{"type":"a","payload":1,"source":"a\nb"}"#, &["/source"]),
    (r#"{"type":"a","payload":1,"source":{}}"#, &["/source"]),
    (
        r#"{"type":"a","payload":1,"occurred_at":"yesterday"}"#,
        &["/occurred_at"],
    ),
    (
        r#"{"type":"a","payload":1,"occurred_at":1700000000}"#,
        &["/occurred_at"],
    ),
    (
        r#"{"type":"a","payload":1,"occurred_at":"2026-02-30T00:00:00Z"}"#,
        &["/occurred_at"],
    ),
    (
        r#"{"type":"a","payload":1,"occurred_at":"2026-01-01T00:00:00"}"#,
        &["/occurred_at"],
    ),
    (r#"{"type":"a","payload":1,"a/b~c":1}"#, &["/a~1b~0c"]),
    (r#"{"type":"a","payload":1,"Type":"b"}"#, &["/Type"]),
    (r#"{"type":"a","type":"b","payload":1}"#, &["/type"]),
    (r#"{"type":"a","payload":1,"payload":2}"#, &["/payload"]),
    (r#"{"type":"a","payload":1,"\u0074ype":"b"}"#, &["/type"]),
    // Every broken rule is named, not just the first.
    (
        r#"{"type":"a b","dedup_id":"","source":1,"occurred_at":"","more":1}"#,
        &[
            "/dedup_id",
            "/more",
            "/occurred_at",
            "/payload",
            "/source",
            "/type",
        ],
    ),
];

/// The organization has no event but the one that is posted here.
async fn nothing_came_of_it(client: &Client) {
    let id = client.event("order.placed").await;
    client.look_up(&id).await;
    let all = client.get("/api/inbox").await.expect(200);
    assert_eq!(all["pagination"]["total"], 1, "something was half done: {all}");
}

async fn bodies_that_do_not_parse(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    for body in MALFORMED {
        let answer = client.post_text("/v1/events", *body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        answer.problem(400, "invalid_json");
    }
    let many = format!("{{{}\"type\":\"a\",\"payload\":1}}", "\"f\":1,".repeat(70));
    client
        .post_text("/v1/events", many)
        .await
        .problem(400, "invalid_json");
    nothing_came_of_it(&client).await;
}

async fn fields_that_break_a_rule(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    for (body, pointers) in WRONG {
        let answer = client.post_text("/v1/events", *body).await;
        assert_eq!(answer.status, 422, "{body}: {}", answer.text);
        answer.problem(422, "invalid_request");
        let mut named = answer.pointers();
        named.dedup();
        assert_eq!(named, *pointers, "{body}: {}", answer.text);
    }
    nothing_came_of_it(&client).await;
}

async fn fields_that_are_too_much(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
    let cases = [
        ("type", long('a', 257), 422),
        ("dedup_id", long('k', 257), 422),
        ("source", long('s', 257), 422),
        ("payload", deep, 422),
        ("payload", long('x', 256 * 1024), 413),
    ];
    for (name, value, status) in cases {
        let mut members = vec![("type", "\"a\""), ("payload", "1")];
        members.retain(|(given, _)| *given != name);
        members.push((name, &value));
        let members: Vec<_> = members
            .iter()
            .map(|(name, value)| format!("\"{name}\":{value}"))
            .collect();
        let answer = client
            .post_text("/v1/events", format!("{{{}}}", members.join(",")))
            .await;
        let code = match status {
            413 => "payload_too_large",
            _ => "invalid_request",
        };
        assert_eq!(answer.status, status, "{name}: {}", answer.text);
        answer.problem(status, code);
        assert_eq!(answer.pointers(), [format!("/{name}")]);
    }
    nothing_came_of_it(&client).await;
}
