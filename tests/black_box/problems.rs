//! Every problem that is documented, as a client gets it: each code has a snapshot of its head and body, and the same one on
//! both engines. A code that has none fails the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use harness::{Answer, Client, Engine, EventStream, World, on_both_engines};
use http::Method;
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};

on_both_engines!(every_problem_is_as_documented);

/// Streams that an organization may have at a node.
const STREAMS: usize = 32;
/// Events a minute of the smallest tier.
const LIMIT: usize = 100;

/// Headers that differ from answer to answer, whatever is wrong.
const UNTOLD: [&str; 3] = ["date", "content-length", "connection"];

/// Shows an answer, all of it but what differs each time.
fn shown(request: &str, answer: &Answer) -> String {
    let mut text = format!("{request}\n\n{}\n", answer.status);
    let mut headers: Vec<_> = answer
        .headers
        .keys()
        .map(|name| (name.as_str(), answer.header(name.as_str())))
        .filter(|(name, _)| !UNTOLD.contains(name))
        .collect();
    headers.sort_unstable();
    for (name, value) in headers {
        // How much of a limit is left depends on the time that has passed.
        let value = if name.contains("ratelimit") { "…" } else { value };
        let _ = writeln!(text, "{name}: {value}");
    }
    let mut body = answer.json();
    for name in ["id", "event_id"] {
        if body[name].is_string() {
            body[name] = json!("…");
        }
    }
    let _ = write!(text, "\n{body:#}");
    text
}

/// The problems that were seen: their codes, and the status of each on the routes that are not for existing clients.
#[derive(Default)]
struct Seen(BTreeMap<String, u16>);

impl Seen {
    /// Sends a request that must fail, and holds what it is answered against the snapshot of this name.
    async fn sees(&mut self, name: &str, request: reqwest::RequestBuilder) {
        let request = request
            .header("x-request-id", "of-the-snapshot")
            .timeout(Duration::from_mins(1));
        let (http, request) = request.build_split();
        let request = request.expect("a request");
        let path = request.url().path().to_owned();
        let asked = format!("{} {}", request.method(), without_ids(&path));
        let answer = http.execute(request).await.expect("the request is answered");
        let answer = Answer::of(answer).await;
        let code = answer.json()["code"].as_str().expect("a code").to_owned();
        let problem = answer.problem(answer.status, &code);
        assert!(name.starts_with(&code), "{name} is {code}: {answer:?}");
        if path.starts_with("/api/") {
            assert_eq!(problem["error"], problem["code"]);
            assert_eq!(problem["message"], problem["detail"]);
        }
        insta::assert_snapshot!(name, shown(&asked, &answer));
        if !path.starts_with("/api/") || code == "duplicate" {
            self.0.insert(code, answer.status);
        }
    }
}

/// A path whose ids are told by what they are of.
fn without_ids(path: &str) -> String {
    let segments = path.split('/').map(|segment| match segment.split_once('_') {
        Some((prefix, rest)) if rest.len() == 26 => format!("{{{prefix}}}"),
        _ if segment.len() == 36 => "{uuid}".to_owned(),
        _ => segment.to_owned(),
    });
    segments.collect::<Vec<_>>().join("/")
}

/// What the store holds of subscriptions does not read as what it should be: that is no outage, but a fault of ours.
async fn damage_subscriptions(world: &World) {
    const STATEMENT: &str = "UPDATE subscriptions SET url = 'no URL' WHERE url IS NOT NULL";
    match world.engine {
        Engine::Servers => {
            let database = PgConnection::connect(&world.database_url()).await;
            let mut database = database.expect("the database answers");
            let damaged = sqlx::query(STATEMENT).execute(&mut database).await;
            damaged.expect("the row is changed");
        }
        Engine::Embedded => {
            let file = SqliteConnectOptions::new().filename(world.data_directory().join("store.db"));
            let database = SqliteConnection::connect_with(&file).await;
            let mut database = database.expect("the file opens");
            let damaged = sqlx::query(STATEMENT).execute(&mut database).await;
            damaged.expect("the row is changed");
        }
    }
}

/// The codes of the documentation for people, with their statuses.
fn told() -> BTreeMap<String, u16> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    let text = std::fs::read_to_string(file).expect("docs/api.md is there");
    let table = text
        .split("| `code` | status |")
        .nth(1)
        .expect("it has a table of codes");
    let rows = table.lines().skip(2).map_while(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (code, rest) = row.split_once("` | ").expect("a code");
        let status = rest.split(' ').next().and_then(|status| status.parse().ok());
        (code.to_owned(), status.expect("a status"))
    })
    .collect()
}

/// A request whose body begins, and does not go on.
fn stands_still(client: &Client) -> reqwest::RequestBuilder {
    let first = Frame::data(Bytes::from_static(b"{"));
    let body = stream::iter([Ok::<_, std::io::Error>(first)]).chain(stream::pending());
    client
        .request(Method::POST, "/v1/events")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap(StreamBody::new(body)))
}

/// A request of an organization that has used its limit up.
async fn past_the_limit(world: &World) -> reqwest::RequestBuilder {
    let limited = world.organization_of("free").await;
    let all: Vec<Value> = vec![json!({"type": "a", "payload": 1}); LIMIT];
    limited.post("/v1/events/batch", &json!(all)).await.expect(202);
    limited.request(Method::POST, "/v1/events").json(&all[0])
}

async fn every_problem_is_as_documented(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let mut seen = Seen::default();
    let json_of = |path: &str, body: &str| {
        client
            .request(Method::POST, path)
            .header("content-type", "application/json")
            .body(body.to_owned())
    };

    // One that takes its time comes first, and the others beside it.
    let slow = stands_still(&client);
    let slow = tokio::spawn(async move {
        let mut seen = Seen::default();
        seen.sees("request_timeout", slow).await;
        seen.0
    });

    seen.sees("invalid_json", json_of("/v1/events", r#"{"type":"#))
        .await;
    let broken = r#"{"type":"a b","dedup_id":"","source":1,"more":true}"#;
    seen.sees("invalid_request", json_of("/v1/events", broken)).await;
    seen.sees("invalid_request_on_api", json_of("/api/events", broken))
        .await;
    let parameter = client.request(Method::GET, "/v1/events?limit=0&status=lost");
    seen.sees("invalid_request_parameter", parameter).await;
    let header =
        json_of("/v1/events", r#"{"type":"a","payload":1}"#).header("idempotency-key", "x".repeat(257));
    seen.sees("invalid_request_header", header).await;
    seen.sees("unauthorized", client.anonymous(Method::GET, "/v1/events"))
        .await;
    seen.sees("unauthorized_on_api", client.anonymous(Method::GET, "/api/inbox"))
        .await;
    let made = client
        .post(
            "/v1/keys",
            &json!({"name": "a reader", "scopes": ["events:read"]}),
        )
        .await;
    let reader = client.with_key(made.expect(201)["key"].as_str().expect("its text"));
    seen.sees("forbidden", reader.request(Method::GET, "/v1/keys"))
        .await;
    let old = "/v1/events/evt_01h455vb4pex5vsknk084sn02q";
    seen.sees("not_found", client.request(Method::GET, old)).await;
    let young = format!("/v1/events/{}?wait_ms=0", uuid::Uuid::now_v7());
    seen.sees("not_found_yet", client.request(Method::GET, &young))
        .await;
    seen.sees("not_found_route", client.request(Method::GET, "/v1/nothing"))
        .await;
    seen.sees(
        "not_found_on_api",
        client.request(Method::POST, "/api/ack/01890a5d-ac96-774b-bcce-b302099a8057"),
    )
    .await;
    seen.sees(
        "method_not_allowed",
        client.request(Method::PUT, "/v1/subscriptions"),
    )
    .await;
    let inbox = client.get("/v1/subscriptions").await.expect(200)["data"][0]["id"].clone();
    let inbox = format!("/v1/subscriptions/{}", inbox.as_str().expect("the inbox"));
    seen.sees("conflict", client.request(Method::DELETE, &inbox))
        .await;
    let keyed = r#"{"type":"a","payload":1,"dedup_id":"once"}"#;
    client.post_text("/api/events", keyed).await.expect(202);
    seen.sees("duplicate", json_of("/api/events", keyed)).await;
    let large = format!(r#"{{"type":"a","payload":"{}"}}"#, "x".repeat(256 * 1024));
    seen.sees("payload_too_large", json_of("/v1/events", &large))
        .await;
    let body = "x".repeat(400 * 1024);
    seen.sees("payload_too_large_body", json_of("/v1/events", &body))
        .await;
    let text = client
        .request(Method::POST, "/v1/events")
        .header("content-type", "text/plain")
        .body("a");
    seen.sees("unsupported_media_type", text).await;

    seen.sees("rate_limited", past_the_limit(&world).await).await;

    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(EventStream::open(client.request(Method::GET, "/v1/events/stream")).await);
    }
    seen.sees("unavailable", client.request(Method::GET, "/v1/events/stream"))
        .await;
    drop(streams);

    let damaged = client.subscribe_url("http://127.0.0.1:9/hook").await;
    damage_subscriptions(&world).await;
    let path = format!("/v1/subscriptions/{}", damaged.id);
    seen.sees("internal", client.request(Method::GET, &path)).await;

    seen.0.extend(slow.await.expect("the slow one is answered"));
    let document = world.get(world.api(), "/openapi.json").await.expect(200);
    let problem = &document["components"]["schemas"]["Problem"];
    let documented = problem["properties"]["code"]["enum"].as_array();
    let documented = documented.expect("the document lists the codes").iter();
    let documented: BTreeSet<&str> = documented.filter_map(Value::as_str).collect();
    let codes: BTreeSet<&str> = seen.0.keys().map(String::as_str).collect();
    assert_eq!(codes, documented, "each code that is documented has a snapshot");
    assert_eq!(told(), seen.0, "docs/api.md tells of each, with its status");
}
