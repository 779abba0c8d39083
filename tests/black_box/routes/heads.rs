//! Heads that nobody should send, to every route: parameters, headers, methods and ids that are not what they should be.

use std::collections::BTreeSet;

use harness::{Access, Answer, Engine, Place, World, on_both_engines};
use http::{HeaderValue, Method};

use super::{call::Call, client_of, fresh_body_of, operations, party::Party};

on_both_engines!(
    parameters_that_are_not_what_they_should_be,
    headers_that_are_not_what_they_should_be,
    methods_that_a_path_does_not_take,
    ids_that_are_none,
);

/// Values in a query, as they are encoded.
fn parameters() -> Vec<String> {
    let mut values: Vec<String> = [
        "",
        "%00",
        "%0a",
        "%ff",
        "%ed%a0%80",
        "%",
        "-1",
        "0",
        "1.5",
        "1e9",
        "99999999999999999999",
        "x",
        "null",
        "[]",
        "2026-02-30T00:00:00Z",
        "999999-01-01T00:00:00Z",
        "%27%20OR%201=1",
    ]
    .map(str::to_owned)
    .to_vec();
    values.push("x".repeat(5_000));
    values
}

/// Looks at an answer to one call: no fault of ours, and a broken rule is one of what was given.
fn is_sane(what: &str, answer: &Answer, kind: &str, name: &str) {
    assert!(answer.status < 500, "{what}: {answer:?}");
    if answer.status >= 400 {
        let problem = answer.json();
        let code = problem["code"].as_str().unwrap_or_default();
        answer.problem(answer.status, code);
        if code == "invalid_request" {
            let errors = problem["errors"].as_array().cloned().unwrap_or_default();
            let is_named = errors.iter().any(|error| {
                error[kind]
                    .as_str()
                    .is_some_and(|named| named.eq_ignore_ascii_case(name))
            });
            assert!(is_named, "{what}: the {kind} is not named: {answer:?}");
        }
    }
}

/// The answer, but of a stream that has begun only its head.
async fn begun(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("the request is answered");
    if response.status() == 200 && response.headers()["content-type"] == "text/event-stream" {
        return Answer {
            status: 200,
            headers: response.headers().clone(),
            text: String::new(),
        };
    }
    Answer::of(response).await
}

async fn parameters_that_are_not_what_they_should_be(engine: Engine) {
    let world = World::start(engine).await;
    let operations = operations(&world).await;
    let party = Party::stranger(&world).await;
    let mut asked = 0;
    for operation in &operations {
        let client = client_of(operation, &world, &party);
        let own = Call::own(operation, &party).path;
        let path = own.split('?').next().unwrap_or_default();
        for parameter in operation
            .parameters
            .iter()
            .filter(|one| one.place == Place::Query)
        {
            let name = &parameter.name;
            let twice = format!("1&{name}=1");
            for value in parameters().into_iter().chain([twice.clone()]) {
                let request = client.request(operation.method.clone(), &format!("{path}?{name}={value}"));
                let answer = begun(request).await;
                let shown: String = value.chars().take(40).collect();
                let what = format!("{} ?{name}={shown}", operation.id);
                is_sane(&what, &answer, "parameter", name);
                if value == twice {
                    assert!([400, 422].contains(&answer.status), "{what}: {answer:?}");
                }
                asked += 1;
            }
        }
    }
    assert!(asked > 200, "{asked}");
}

async fn headers_that_are_not_what_they_should_be(engine: Engine) {
    let world = World::start(engine).await;
    let operations = operations(&world).await;
    let long = "x".repeat(5_000);
    let values: [&[u8]; 5] = [b"", b" ", b"\xff\xfe", b"%ff", long.as_bytes()];
    let party = Party::stranger(&world).await;
    let mut asked = 0;
    for operation in &operations {
        for parameter in operation
            .parameters
            .iter()
            .filter(|one| one.place == Place::Header)
        {
            for value in values {
                // What ends the key that asks is asked with one that is needed no more.
                let other;
                let party = if operation.id == "compatRotateKey" {
                    other = Party::stranger(&world).await;
                    &other
                } else {
                    &party
                };
                let name = &parameter.name;
                let value = HeaderValue::from_bytes(value).expect("a header's value");
                let what = format!("{} {name}: {value:?}", operation.id);
                let path = Call::own(operation, party).path;
                let client = client_of(operation, &world, party);
                let request = client
                    .request(operation.method.clone(), &path)
                    .header(name, value);
                let request = match fresh_body_of(operation, party) {
                    Some(body) => request.json(&body),
                    None => request,
                };
                is_sane(&what, &begun(request).await, "header", name);
                asked += 1;
            }
        }
    }
    assert!(asked > 200, "{asked}");
}

async fn methods_that_a_path_does_not_take(engine: Engine) {
    let world = World::start(engine).await;
    let operations = operations(&world).await;
    let party = Party::stranger(&world).await;
    for operation in &operations {
        let taken: BTreeSet<&str> = operations
            .iter()
            .filter(|other| other.path == operation.path)
            .map(|other| other.method.as_str())
            .collect();
        for method in [
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
            Method::TRACE,
        ] {
            if taken.contains(method.as_str()) {
                continue;
            }
            let client = client_of(operation, &world, &party);
            let call = Call::own(operation, &party);
            // A role has the routes that are its own: where this one is, the others are not.
            let posts = operation.method == Method::POST && operation.path.contains("/events");
            let is_ingests = posts && operation.ids_in(Place::Path).next().is_none();
            let client = client.at(if is_ingests { world.ingest() } else { world.api() });
            let answer = client.send(client.request(method.clone(), &call.path)).await;
            assert_eq!(answer.status, 405, "{method} {}: {answer:?}", call.path);
            answer.problem(405, "method_not_allowed");
            let allowed: BTreeSet<&str> = answer
                .header("allow")
                .split(',')
                .map(str::trim)
                .filter(|method| *method != "HEAD")
                .collect();
            assert!(
                allowed.is_subset(&taken) && allowed.contains(operation.method.as_str()),
                "{method} {}: {answer:?}",
                call.path
            );
        }
    }
}

async fn ids_that_are_none(engine: Engine) {
    let world = World::start(engine).await;
    let operations = operations(&world).await;
    let party = Party::stranger(&world).await;
    let long = "x".repeat(5_000);
    for operation in operations
        .iter()
        .filter(|operation| operation.access != Access::Open)
    {
        let client = client_of(operation, &world, &party);
        for (parameter, prefix) in operation.ids_in(Place::Path) {
            let of_another_kind = if prefix == "evt" { "sub" } else { "evt" };
            let others = party.ids[of_another_kind][0].clone();
            let own = party.ids.get(prefix).map(|ids| ids[0].to_uppercase());
            let too_large = format!("{prefix}_{}", "z".repeat(26));
            for bad in [
                "x", "%00", "%ff", "%2e%2e", "..%2f..", "%20", "evt_", "null", "0", "-1", &long, &others,
                &too_large,
            ]
            .into_iter()
            .map(str::to_owned)
            .chain(own)
            {
                let call = Call::own_but(operation, &party, &parameter.name, &bad).with_body(&party.ids);
                let answer = call.send(&client).await;
                assert_eq!(answer.status, 404, "{}: {answer:?}", call.what());
                answer.problem(404, "not_found");
            }
        }
    }
}
