//! Bodies that nobody should send, to every route that takes one.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream};
use harness::{Engine, World, on_both_engines};
use http_body::Frame;
use http_body_util::StreamBody;

use super::{body_of, call::Call, client_of, operations, party::Party};

on_both_engines!(bodies_that_are_none, bodies_that_stand_still);

async fn bodies_that_are_none(engine: Engine) {
    let world = World::start(engine).await;
    let operations = operations(&world).await;
    let party = Party::stranger(&world).await;
    party.usage_is_counted().await;
    let before = party.everything(&operations).await;
    for operation in operations.iter().filter(|operation| operation.has_body) {
        let client = client_of(operation, &world, &party);
        let compatible = operation.path.starts_with("/api/");
        let send = async |headers: &[(&str, &str)], body: Vec<u8>| {
            let mut request = Call::own(operation, &party).request(&client).body(body);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            client.send(request).await
        };
        let good = operation.body_with(body_of(operation).expect("a body"), &party.ids);
        let good = good.to_string().into_bytes();
        let json = [("content-type", "application/json")];
        for headers in [
            vec![],
            vec![("content-type", "text/plain")],
            vec![("content-type", "multipart/form-data; boundary=x")],
            vec![("content-type", "application/json; charset=utf-16")],
            vec![("content-type", "application/json"), ("content-encoding", "gzip")],
            vec![("content-type", "application/json"), ("content-encoding", "zstd")],
        ] {
            let answer = send(&headers, good.clone()).await;
            assert_eq!(answer.status, 415, "{} {headers:?}: {answer:?}", operation.id);
            answer.problem(415, "unsupported_media_type");
        }
        let wide: Vec<u8> = String::from_utf8_lossy(&good)
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let is_array = operation.fields.is_empty();
        for (what, body) in [
            ("half of it", good[..good.len() - 1].to_vec()),
            ("two of it", good.repeat(2)),
            (
                "another shape",
                if is_array { b"{}".to_vec() } else { b"[]".to_vec() },
            ),
            ("null", b"null".to_vec()),
            ("a number", b"1".to_vec()),
            ("a string", b"\"{}\"".to_vec()),
            ("UTF-16", wide),
            ("a mark in front", [b"\xef\xbb\xbf", good.as_slice()].concat()),
            ("no UTF-8", [&b"{\"\xff\":\""[..], b"\xff\"}"].concat()),
            ("too deep", b"[".repeat(100_000)),
            (
                "too many fields",
                format!("{{{}\"a\":1}}", "\"a\":1,".repeat(10_000)).into_bytes(),
            ),
        ] {
            let answer = send(&json, body).await;
            assert_eq!(answer.status, 400, "{}: {what}: {answer:?}", operation.id);
            answer.problem(400, "invalid_json");
        }
        let empty = send(&json, Vec::new()).await;
        if operation.body_required {
            let status = if compatible { 400 } else { 422 };
            assert!(
                [400, status].contains(&empty.status),
                "{}: empty: {empty:?}",
                operation.id
            );
        }
        assert!(empty.status < 500, "{}: empty: {empty:?}", operation.id);
        send(&json, vec![b' '; 5 * 1024 * 1024])
            .await
            .problem(413, "payload_too_large");
    }
    let after = party.everything(&operations).await;
    for (path, was) in before.iter().filter(|(path, _)| {
        !["keys", "subscriptions", "audit-log"]
            .iter()
            .any(|part| path.contains(part))
    }) {
        assert_eq!(&after[path], was, "{path} is not what it was");
    }
}

async fn bodies_that_stand_still(engine: Engine) {
    let world = World::start(engine).await;
    let operations = operations(&world).await;
    let party = Party::stranger(&world).await;
    let with_body = operations.iter().filter(|operation| operation.has_body);
    let answers = with_body.map(async |operation| {
        let client = client_of(operation, &world, &party);
        let first = Frame::data(Bytes::from_static(b"{"));
        let body = stream::iter([Ok::<_, std::io::Error>(first)]).chain(stream::pending());
        let request = Call::own(operation, &party)
            .request(&client)
            .header("content-type", "application/json")
            .body(reqwest::Body::wrap(StreamBody::new(body)))
            .timeout(Duration::from_mins(1));
        (operation, client.send(request).await)
    });
    for (operation, answer) in join_all(answers).await {
        assert_eq!(answer.status, 408, "{}: {answer:?}", operation.id);
        answer.problem(408, "request_timeout");
    }
}
