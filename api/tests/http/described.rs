//! The API's description, as its routes give it.

use serde_json::Value;
use shared::http::reference::DOCUMENT;

#[test]
fn the_document_that_is_served_is_what_the_routes_say() {
    let made = format!("{:#}\n", api::document());
    assert!(
        made == DOCUMENT,
        "routes and shared/openapi.json differ; look at what changes, and keep it:\n    \
         cargo run -- openapi > openapi.new && mv openapi.new shared/openapi.json"
    );
}

#[test]
fn routes_have_these_names() {
    let document = api::document();
    let paths = document["paths"].as_object().unwrap();
    let mut lines = Vec::new();
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            let statuses = operation["responses"].as_object().unwrap().keys().cloned();
            let statuses: Vec<String> = statuses.collect();
            lines.push(format!(
                "{:<6} {path}  {}  {}",
                method.to_uppercase(),
                operation["operationId"].as_str().unwrap(),
                statuses.join(" ")
            ));
        }
    }
    insta::assert_snapshot!(lines.join("\n"));
}

/// What a reference in the document points to.
fn referred<'a>(document: &'a Value, reference: &str) -> Option<&'a Value> {
    document.pointer(reference.strip_prefix('#')?)
}

fn check_references(document: &Value, value: &Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                assert!(
                    referred(document, reference).is_some(),
                    "{reference} is not there"
                );
            }
            members
                .values()
                .for_each(|member| check_references(document, member));
        }
        Value::Array(items) => items.iter().for_each(|item| check_references(document, item)),
        _ => {}
    }
}

#[test]
fn everything_that_is_referred_to_is_there() {
    let document = api::document();
    check_references(&document, &document);
}
