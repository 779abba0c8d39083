//! Subscriptions that break a rule.

use harness::{Engine, World, on_both_engines};
use serde_json::json;

use super::long;

on_both_engines!(
    urls_that_break_a_rule,
    settings_that_break_a_rule,
    changes_that_break_a_rule,
);

const URL: &str = "http://127.0.0.1:9/hook";

/// Values of `url`, as JSON.
const URLS: &[&str] = &[
    r#""""#,
    "1",
    "null",
    r#"["http://127.0.0.1/"]"#,
    r#""nonsense""#,
    r#""//127.0.0.1/""#,
    r#""ftp://127.0.0.1/""#,
    r#""file:///etc/passwd""#,
    r#""javascript:alert(1)""#,
    r#""http://""#,
    r#""http://user@127.0.0.1/""#,
    r#""http://user:password@127.0.0.1/""#,
    r#""http://127.0.0.1/#fragment""#,
    r#""http://127.0.0.1/\u0000""#,
    r#""http://127.0.0.1/\r\nx: y""#,
    r#"" http://127.0.0.1/""#,
    r#""http://127.0.0.1:0/""#,
    r#""http://127.0.0.1:65536/""#,
    r#""http://[::1/""#,
];

/// Other fields, as JSON, and where they are wrong.
const SETTINGS: &[(&str, &str)] = &[
    (r#""kind":"poll""#, "/kind"),
    (r#""kind":1"#, "/kind"),
    (r#""event_types":[]"#, "/event_types"),
    (r#""event_types":"a""#, "/event_types"),
    (r#""event_types":["a",1]"#, "/event_types/1"),
    (r#""event_types":["a*"]"#, "/event_types/0"),
    (r#""event_types":["**"]"#, "/event_types/0"),
    (r#""event_types":["a.**.b"]"#, "/event_types/0"),
    (r#""event_types":["a b"]"#, "/event_types/0"),
    (r#""event_types":["a\u0000"]"#, "/event_types/0"),
    (r#""filter":"""#, "/filter"),
    (r#""filter":1"#, "/filter"),
    (r#""filter":"payload.a >""#, "/filter"),
    (r#""filter":"payload.a > 1 and true""#, "/filter"),
    (r#""filter":"event.a == 1""#, "/filter"),
    (r#""filter":"lower(type) == 'a'""#, "/filter"),
    (r#""filter":"type.matches('[')""#, "/filter"),
    (r#""filter":"'a' + 'b'""#, "/filter"),
    (r#""filter":"type ==\u0000 'a'""#, "/filter"),
    (r#""enabled":"yes""#, "/enabled"),
    (r#""enabled":null"#, "/enabled"),
    (r#""description":"a\u0007b""#, "/description"),
    (r#""description":{}"#, "/description"),
    (r#""retry_schedule_seconds":[0]"#, "/retry_schedule_seconds"),
    (r#""retry_schedule_seconds":[-1]"#, "/retry_schedule_seconds"),
    (r#""retry_schedule_seconds":[1.5]"#, "/retry_schedule_seconds"),
    (r#""retry_schedule_seconds":[604801]"#, "/retry_schedule_seconds"),
    (
        r#""retry_schedule_seconds":[99999999999999999999]"#,
        "/retry_schedule_seconds",
    ),
    (r#""retry_schedule_seconds":5"#, "/retry_schedule_seconds"),
    (r#""timeout_ms":999"#, "/timeout_ms"),
    (r#""timeout_ms":30001"#, "/timeout_ms"),
    (r#""timeout_ms":1e300"#, "/timeout_ms"),
    (r#""timeout_ms":-1"#, "/timeout_ms"),
    (r#""timeout_ms":"5000""#, "/timeout_ms"),
    (r#""max_in_flight":0"#, "/max_in_flight"),
    (r#""max_in_flight":257"#, "/max_in_flight"),
    (r#""id":"sub_01h455vb4pex5vsknk084sn02q""#, "/id"),
    (r#""secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw""#, "/secret"),
];

async fn urls_that_break_a_rule(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let too_long = format!("\"{URL}/{}\"", "x".repeat(2_048));
    let urls = URLS.iter().copied().chain([too_long.as_str()]);
    let bodies = urls.map(|url| format!("{{\"url\":{url}}}"));
    for body in bodies.chain(["{}".to_owned(), String::new()]) {
        let answer = client.post_text("/v1/subscriptions", body.clone()).await;
        assert_eq!(answer.status, 422, "{body}: {}", answer.text);
        answer.problem(422, "invalid_request");
        assert_eq!(answer.pointers(), ["/url"], "{body}: {}", answer.text);
    }
    let listed = client.get("/v1/subscriptions").await.expect(200);
    let count = listed["data"].as_array().map(Vec::len);
    assert_eq!(count, Some(1), "only the inbox: {listed}");
}

async fn settings_that_break_a_rule(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let patterns = vec!["a"; 2_000];
    let too_much = [
        (format!("\"description\":{}", long('x', 1_025)), "/description"),
        (format!("\"filter\":{}", long('(', 2_049)), "/filter"),
        (format!("\"filter\":{}", long('(', 2_000)), "/filter"),
        (format!("\"event_types\":[{}]", long('x', 257)), "/event_types/0"),
        (format!("\"event_types\":{}", json!(patterns)), "/event_types"),
        (
            format!("\"retry_schedule_seconds\":{}", json!(vec![1; 21])),
            "/retry_schedule_seconds",
        ),
    ];
    let settings = SETTINGS
        .iter()
        .map(|(setting, pointer)| ((*setting).to_owned(), *pointer));
    for (setting, pointer) in settings.chain(too_much) {
        let body = format!("{{\"url\":\"{URL}\",{setting}}}");
        let answer = client.post_text("/v1/subscriptions", body).await;
        assert_eq!(answer.status, 422, "{setting}: {}", answer.text);
        answer.problem(422, "invalid_request");
        assert_eq!(answer.pointers(), [pointer], "{setting}: {}", answer.text);
    }
    let all = json!({"url": "x", "timeout_ms": 1, "enabled": 0, "more": 1});
    let answer = client.post("/v1/subscriptions", &all).await;
    answer.problem(422, "invalid_request");
    assert_eq!(answer.pointers(), ["/enabled", "/more", "/timeout_ms", "/url"]);
    let listed = client.get("/v1/subscriptions").await.expect(200);
    let count = listed["data"].as_array().map(Vec::len);
    assert_eq!(count, Some(1), "only the inbox: {listed}");
}

async fn changes_that_break_a_rule(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let made = client.subscribe(&json!({"url": URL, "enabled": false})).await;
    let path = format!("/v1/subscriptions/{}", made.id);
    let before = client.get(&path).await.expect(200);
    for (body, pointer) in [
        (json!({"url": "ftp://x"}), "/url"),
        (json!({"kind": "pull"}), "/kind"),
        (json!({"timeout_ms": 0, "description": "changed"}), "/timeout_ms"),
        (json!({"enabled": null}), "/enabled"),
        (json!({"filter": "nothing"}), "/filter"),
        (json!({"more": 1}), "/more"),
    ] {
        let answer = client.patch(&path, &body).await;
        answer.problem(422, "invalid_request");
        assert_eq!(answer.pointers(), [pointer], "{body}");
    }
    let after = client.get(&path).await.expect(200);
    assert_eq!(after, before, "a refused change did something");
}
