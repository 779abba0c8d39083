//! What operators look at: health and metrics.

use harness::{Engine, Receiver, Reply, World, on_both_engines};
use serde_json::json;

on_both_engines!(health_is_told, metrics_count_what_happens);

async fn health_is_told(engine: Engine) {
    let world = World::start(engine).await;
    for node in world.nodes() {
        for path in ["/health", "/health/live", "/health/ready"] {
            let answer = world.get(node, path).await;
            let health = answer.expect(200);
            assert_eq!(health["status"], "ok", "{} {path}: {health}", node.program());
            assert!(
                health["timestamp"].is_string() && health["version"].is_string(),
                "{health}"
            );
        }
    }
}

async fn metrics_count_what_happens(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client
        .subscribe(&json!({"url": receiver.url("/good"), "event_types": ["good"]}))
        .await;
    receiver.always("/bad", Reply::Status(500));
    let bad = client
        .subscribe(
            &json!({"url": receiver.url("/bad"), "event_types": ["bad"], "retry_schedule_seconds": []}),
        )
        .await;
    for _ in 0..3 {
        let id = client.event("good").await;
        client.event_becomes(&id, "delivered").await;
    }
    let id = client.event("bad").await;
    client.delivery_becomes(&id, &bad.id, "dead_letter").await;
    client
        .post("/v1/events", &json!({"type": "good"}))
        .await
        .problem(422, "invalid_request");

    let mut all = String::new();
    for node in world.nodes() {
        let metrics = world.get(node, "/metrics").await;
        assert_eq!(metrics.status, 200);
        assert!(metrics.header("content-type").starts_with("text/plain"));
        all.push_str(&metrics.text);
    }
    let value = |series: &str| {
        let values = all.lines().filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            (name == series).then(|| value.parse::<f64>().expect("a number"))
        });
        values.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value))
    };
    for (series, expected) in [
        ("triggers_events_accepted_total", 4.0),
        ("triggers_events_refused_total{reason=\"invalid\"}", 1.0),
        ("triggers_events_stored_total", 4.0),
        ("triggers_deliveries_total{outcome=\"delivered\"}", 3.0),
        ("triggers_deliveries_total{outcome=\"dead_letter\"}", 1.0),
        ("triggers_attempt_failures_total{kind=\"status\"}", 1.0),
        ("triggers_frames_published_total", 4.0),
        ("triggers_delivery_seconds_count", 3.0),
        ("triggers_attempt_seconds_count", 4.0),
    ] {
        assert_eq!(value(series), Some(expected), "{series} in:\n{all}");
    }
    for series in [
        "triggers_frame_events_count",
        "triggers_publish_seconds_count",
        "triggers_queue_frames",
        "triggers_queue_age_seconds",
        "triggers_intake_batch_events_count",
        "triggers_intake_seconds_count",
        "triggers_lanes_busy",
    ] {
        assert!(value(series).is_some(), "{series} is missing in:\n{all}");
    }
    // No label tells of anybody.
    assert!(!all.contains(&client.organization) && !all.contains(&bad.id));
}
