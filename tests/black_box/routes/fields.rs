//! Fields that nobody should send, in every body that the document describes: the answer is a problem that names the field, never
//! a fault of ours, and nothing comes of it.

use std::collections::BTreeSet;

use harness::{Answer, Engine, Field, Operation, World, on_both_engines};
use serde_json::{Value, json};

use super::{call::Call, client_of, fresh_body_of, operations, party::Party};

on_both_engines!(fields_that_are_not_what_they_should_be);

/// Values of a field, as JSON, by their type.
fn values() -> Vec<(&'static str, String)> {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let deep_object = format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100));
    let long = |length| format!("\"{}\"", "x".repeat(length));
    [
        ("null", "null"),
        ("boolean", "true"),
        ("integer", "0"),
        ("integer", "-1"),
        ("integer", "99999999999999999999"),
        ("integer", "9223372036854775808"),
        ("number", "1.5"),
        ("number", "1e400"),
        ("number", "1e-3"),
        ("string", r#""""#),
        ("string", r#"" ""#),
        ("string", r#""\u0000""#),
        ("string", r#""a\nb""#),
        ("string", r#""\u007f""#),
        ("string", r#""\ud800""#),
        ("string", r#""\udc00\ud800""#),
        ("string", r#""../../etc/passwd""#),
        ("string", r#""' OR 1=1 --""#),
        ("array", "[]"),
        ("array", "[null]"),
        ("array", r#"["\u0000"]"#),
        ("object", "{}"),
        ("object", r#"{"":null}"#),
        ("object", r#"{"a":1,"a":2}"#),
    ]
    .into_iter()
    .map(|(kind, value)| (kind, value.to_owned()))
    .chain([
        ("string", long(300)),
        ("string", long(100_000)),
        ("array", format!("[{}1]", "1,".repeat(20_000))),
        ("array", deep),
        ("object", deep_object),
    ])
    .collect()
}

/// What must not be taken as any text: it is half a character.
fn is_no_text(value: &str) -> bool {
    value.contains(r"\ud800")
}

fn takes(field: &Field, kind: &str) -> bool {
    let Some(types) = &field.types else { return true };
    // A whole number may be written with a fraction of nothing; none of these is.
    types.contains(kind) || (kind == "integer" && types.contains("number"))
}

/// A body with this in place of a field.
fn body_with(body: &Value, name: &str, value: &str) -> String {
    let mut rest = body.clone();
    let members = rest.as_object_mut().expect("an object");
    members.remove(name);
    let mut text: Vec<String> = members
        .iter()
        .map(|(name, value)| format!("{}:{value}", json!(name)))
        .collect();
    text.push(format!("{}:{value}", json!(name)));
    format!("{{{}}}", text.join(","))
}

/// A body that is to be refused, and the field that it is about.
struct Attempt<'a> {
    operation: &'a Operation,
    field: String,
    what: String,
    body: String,
    /// Whether the document says that this is refused.
    must_fail: bool,
}

impl Attempt<'_> {
    async fn send(&self, world: &World, party: &Party) -> Answer {
        let client = client_of(self.operation, world, party);
        let request = Call::own(self.operation, party)
            .request(&client)
            .header("content-type", "application/json")
            .body(self.body.clone());
        client.send(request).await
    }

    /// Whether it was refused; if so, by a problem that names the field.
    fn is_refused(&self, answer: &Answer) -> bool {
        let what = format!("{} {} = {}", self.operation.id, self.field, self.what);
        assert!(answer.status < 500, "{what}: {answer:?}");
        if answer.status < 400 {
            assert!(!self.must_fail, "{what} is taken: {answer:?}");
            return false;
        }
        let problem = answer.json();
        answer.problem(answer.status, problem["code"].as_str().unwrap_or_default());
        // How things are decides, not what was sent.
        if matches!(problem["code"].as_str(), Some("not_found" | "conflict")) {
            assert!(!self.must_fail, "{what}: {answer:?}");
            return false;
        }
        let place = format!("/{}", self.field);
        let named = answer.pointers();
        assert!(
            named
                .iter()
                .any(|pointer| *pointer == place || pointer.starts_with(&format!("{place}/"))),
            "{what}: the field is not named: {answer:?}"
        );
        true
    }
}

fn attempts<'a>(operations: &'a [Operation], party: &Party) -> Vec<Attempt<'a>> {
    let mut attempts = Vec::new();
    for operation in operations.iter().filter(|operation| !operation.fields.is_empty()) {
        let body = fresh_body_of(operation, party).expect("a body");
        let mut attempt = |field: &str, what: String, body: String, must_fail| {
            attempts.push(Attempt {
                operation,
                field: field.to_owned(),
                what,
                body,
                must_fail,
            });
        };
        for field in &operation.fields {
            for (kind, value) in values() {
                let must_fail = !takes(field, kind) || (field.types.is_some() && is_no_text(&value));
                let shown = value.chars().take(60).collect();
                attempt(
                    &field.name,
                    shown,
                    body_with(&body, &field.name, &value),
                    must_fail,
                );
            }
            let twice = body_with(&body, &field.name, &format!("1,{}:1", json!(field.name)));
            attempt(&field.name, "given twice".into(), twice, true);
            if field.required {
                let mut without = body.clone();
                without.as_object_mut().expect("an object").remove(&field.name);
                attempt(&field.name, "missing".into(), without.to_string(), true);
            }
        }
        let is_strict = !operation.path.starts_with("/api/");
        attempt(
            "unheard-of",
            "not a field".into(),
            body_with(&body, "unheard-of", "1"),
            is_strict,
        );
    }
    attempts
}

async fn fields_that_are_not_what_they_should_be(engine: Engine) {
    let world = World::start(engine).await;
    let operations = operations(&world).await;
    let tried = Party::stranger(&world).await;
    let mut refused = BTreeSet::new();
    for (at, attempt) in attempts(&operations, &tried).iter().enumerate() {
        let answer = attempt.send(&world, &tried).await;
        if attempt.is_refused(&answer) {
            refused.insert(at);
        }
    }
    assert!(refused.len() > 500, "{}", refused.len());
    // Another, who sends nothing but what is refused, has what it had.
    let party = Party::stranger(&world).await;
    party.usage_is_counted().await;
    let before = party.everything(&operations).await;
    for (at, attempt) in attempts(&operations, &party).iter().enumerate() {
        if refused.contains(&at) {
            let answer = attempt.send(&world, &party).await;
            assert!(
                answer.status >= 400,
                "{} {}: {answer:?}",
                attempt.operation.id,
                attempt.body
            );
        }
    }
    let after = party.everything(&operations).await;
    for (path, was) in &before {
        assert_eq!(&after[path], was, "{path} is not what it was");
    }
}
