//! Bodies, methods, heads and ids that are not what they should be.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use harness::{Answer, Engine, World, on_both_engines};
use http::Method;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

on_both_engines!(
    bodies_that_are_not_what_they_should_be,
    routes_and_methods_that_are_not_there,
    requests_that_are_not_http,
    ids_that_are_none,
    request_ids_are_kept_if_they_are_sane,
);

async fn bodies_that_are_not_what_they_should_be(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let good = r#"{"type":"a","payload":1}"#;
    let send = async |path: &str, headers: &[(&str, &str)], body: Vec<u8>| {
        let mut request = client.request(Method::POST, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        client.send(request.body(body)).await
    };
    for path in ["/v1/events", "/v1/subscriptions"] {
        for headers in [
            vec![],
            vec![("content-type", "text/plain")],
            vec![("content-type", "application/x-www-form-urlencoded")],
            vec![("content-type", "application/jsonp")],
            vec![("content-type", "application/json; charset=utf-16")],
            vec![("content-type", "application/json"), ("content-encoding", "gzip")],
            vec![("content-type", "application/json"), ("content-encoding", "br")],
        ] {
            let answer = send(path, &headers, good.into()).await;
            assert_eq!(answer.status, 415, "{path} {headers:?}: {}", answer.text);
            answer.problem(415, "unsupported_media_type");
        }
        let json = [("content-type", "application/json")];
        let huge = send(path, &json, vec![b' '; 400 * 1024]).await;
        huge.problem(413, "payload_too_large");
        // Without a length up front the body is counted as it comes.
        let pieces = (0..100).map(|_| Frame::data(Bytes::from_static(&[b' '; 8 * 1024])));
        let pieces = stream::iter(pieces.map(Ok::<_, std::io::Error>));
        let streamed = client
            .request(Method::POST, path)
            .header("content-type", "application/json")
            .body(reqwest::Body::wrap(StreamBody::new(pieces)));
        match streamed.send().await {
            Ok(response) => {
                Answer::of(response).await.problem(413, "payload_too_large");
            }
            // The answer came before all was written, and the connection was closed with it.
            Err(error) => assert!(error.is_request(), "{error:?}"),
        }
        let not_utf8 = send(path, &json, b"{\"type\":\"\xff\",\"payload\":1}".to_vec()).await;
        assert!(matches!(not_utf8.status, 400 | 422), "{}", not_utf8.text);
        let wide: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
        send(path, &json, wide).await.problem(400, "invalid_json");
        let marked = [b"\xef\xbb\xbf", good.as_bytes()].concat();
        send(path, &json, marked).await.problem(400, "invalid_json");
        let nested = [b"{\"a\":".repeat(100_000 / 5), b"1".to_vec()].concat();
        let nested = send(path, &json, nested).await;
        assert!(matches!(nested.status, 400 | 422), "{}", nested.text);
    }
    for content_type in [
        "application/json; charset=UTF-8",
        "APPLICATION/JSON",
        "application/json;charset=\"utf-8\"",
    ] {
        let answer = send("/v1/events", &[("content-type", content_type)], good.into()).await;
        assert_eq!(answer.status, 202, "{content_type}: {}", answer.text);
    }
}

async fn routes_and_methods_that_are_not_there(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    for node in world.nodes() {
        for path in [
            "/",
            "/v1",
            "/v1/nothing",
            "/v2/events",
            "/v1/events/",
            "/..%2f",
            "/%00",
        ] {
            let answer = world.get(node, path).await;
            answer.problem(404, "not_found");
        }
    }
    for (method, path, allowed) in [
        (Method::PUT, "/v1/events", "POST"),
        (Method::DELETE, "/v1/subscriptions", "GET"),
        (Method::POST, "/v1/inbox", "GET"),
        (Method::GET, "/v1/inbox/ack", "POST"),
        (Method::PATCH, "/v1/keys", "POST"),
        (Method::GET, "/api/events", "POST"),
        (Method::POST, "/health", "GET"),
    ] {
        let answer = client.send(client.request(method.clone(), path)).await;
        answer.problem(405, "method_not_allowed");
        assert!(
            answer.header("allow").contains(allowed),
            "{method} {path}: {answer:?}"
        );
    }
}

async fn requests_that_are_not_http(engine: Engine) {
    let world = World::start(engine).await;
    let address = world.ingest().url().replace("http://", "");
    let many_headers = "x-many: 1\r\n".repeat(2_000);
    let long_header = format!("x-long: {}\r\n", "y".repeat(100_000));
    let long_path = "x".repeat(100_000);
    for (request, status) in [
        ("nonsense\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), "400"),
        ("\x16\x03\x01\x02\x00\x01".to_owned(), "400"),
        (
            "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_owned(),
            "400",
        ),
        (
            "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"
                .to_owned(),
            "400",
        ),
        (
            format!("GET /health HTTP/1.1\r\nhost: x\r\n{many_headers}\r\n"),
            "431",
        ),
        (
            format!("GET /health HTTP/1.1\r\nhost: x\r\n{long_header}\r\n"),
            "431",
        ),
        (format!("GET /{long_path} HTTP/1.1\r\nhost: x\r\n\r\n"), "431"),
    ] {
        let mut stream = TcpStream::connect(&address).await.expect("the node listens");
        let shown: String = request.chars().take(60).collect();
        stream
            .write_all(request.as_bytes())
            .await
            .expect("all of it is taken");
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await;
        read.unwrap_or_else(|_| panic!("the connection stays open after {shown:?}"))
            .expect("the answer is heard");
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{shown:?} is answered with {answer}"
        );
        // They are hyper's own answers, and have no body.
        assert!(
            answer.ends_with("content-length: 0\r\n\r\n") || answer.ends_with("GMT\r\n\r\n"),
            "{answer}"
        );
    }
    world.ingest().ready().await;
}

async fn ids_that_are_none(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let id = client.event("order.placed").await;
    let other_kind = id.replace("evt_", "sub_");
    let long = "x".repeat(5_000);
    for bad in [
        "x",
        "evt_",
        "evt_x",
        "%00",
        "%ff",
        "..%2f..",
        &other_kind,
        &long,
        "00000000-0000-0000-0000",
    ] {
        for (method, path) in [
            (Method::GET, format!("/v1/events/{bad}")),
            (Method::POST, format!("/v1/inbox/{bad}/ack")),
            (Method::POST, format!("/api/ack/{bad}")),
            (Method::DELETE, format!("/v1/keys/{bad}")),
        ] {
            let answer = client.send(client.request(method.clone(), &path)).await;
            assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text);
            answer.problem(404, "not_found");
        }
    }
    // An id that may be on its way says when to try again; an old one is just not there.
    let answer = client
        .get(&format!("/v1/events/{}?wait_ms=50", uuid::Uuid::now_v7()))
        .await;
    answer.problem(404, "not_found");
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    let old = client.get("/v1/events/evt_01h455vb4pex5vsknk084sn02q").await;
    old.problem(404, "not_found");
    assert_eq!(old.header("retry-after"), "");
    for wait in ["-1", "30001", "x", ""] {
        let answer = client.get(&format!("/v1/events/{id}?wait_ms={wait}")).await;
        answer.problem(422, "invalid_request");
    }
}

async fn request_ids_are_kept_if_they_are_sane(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let ask = async |id: &str| {
        let request = client
            .request(Method::GET, "/v1/inbox")
            .header("x-request-id", id);
        client.send(request).await.header("x-request-id").to_owned()
    };
    assert_eq!(ask("my-request:42").await, "my-request:42");
    for wrong in ["a b", "<script>", &"x".repeat(129), "\"quoted\""] {
        let given = ask(wrong).await;
        assert!(given != *wrong && !given.is_empty(), "{given}");
    }
}
