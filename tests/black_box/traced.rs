//! Traces: one trace from the producer's `traceparent` to the subscriber's, at a collector.

use std::time::Duration;

use harness::{
    Answer, Authority, Client, Collector, Engine, Receiver, Reply, Traced, World, WorldBuilder, eventually,
    free_port, on_both_engines,
};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};

on_both_engines!(
    one_trace_leads_from_the_producer_to_the_subscriber,
    what_the_producer_does_not_sample_passes_through,
    a_trace_begins_here_where_the_producer_has_none,
    each_event_of_a_batch_has_its_own_trace,
    a_request_without_a_key_has_no_span,
    a_collector_that_is_away_costs_spans_and_nothing_else,
    a_collector_that_is_back_takes_spans_again,
    a_collector_that_hangs_holds_up_no_end,
    the_last_spans_are_sent_at_the_end,
    a_collector_is_reached_over_tls_with_headers,
);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn sampled() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

fn traced(engine: Engine, collector: &str) -> WorldBuilder {
    World::with(engine).set("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
}

async fn post(client: &Client, traceparent: &str, event: &Value) -> Answer {
    let request = client.request(http::Method::POST, "/v1/events");
    client
        .send(request.header("traceparent", traceparent).json(event))
        .await
}

fn of_kind(spans: &[Traced], kind: SpanKind) -> Vec<&Traced> {
    spans.iter().filter(|span| span.kind == kind).collect()
}

fn the(spans: &[Traced], kind: SpanKind) -> &Traced {
    match of_kind(spans, kind)[..] {
        [span] => span,
        _ => panic!("not one of {kind:?}: {spans:#?}"),
    }
}

async fn one_trace_leads_from_the_producer_to_the_subscriber(engine: Engine) {
    let collector = Collector::start().await;
    let world = traced(engine, &collector.url()).start().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script(
        "/hook-of-path-secret",
        [Reply::Full(500, Vec::new(), "answer-secret".into())],
    );
    let subscription = client
        .subscribe(&json!({
            "url": receiver.url("/hook-of-path-secret?token=query-secret"),
            "headers": {"Authorization": "Bearer header-secret"},
            "retry_schedule_seconds": [1],
        }))
        .await;
    let event = json!({"type": "order.placed", "payload": "payload-secret", "dedup_id": "key-secret"});
    let answer = post(&client, &sampled(), &event).await.expect(202);
    let id = answer["id"].as_str().expect("an id");
    let webhooks = receiver.wait_for("/hook-of-path-secret", 2).await;

    let spans = collector.wait_for(TRACE, 5).await;
    assert_eq!(spans.len(), 5, "{spans:#?}");
    let server = the(&spans, SpanKind::Server);
    assert_eq!((&*server.name, &*server.parent), ("POST /v1/events", PARENT));
    assert_eq!(server.attribute("http.route"), "/v1/events");
    assert_eq!(server.attribute("http.response.status_code"), "202");
    let producer = the(&spans, SpanKind::Producer);
    assert_eq!(
        (&producer.name[..], &producer.parent),
        ("send events", &server.id)
    );
    let consumer = the(&spans, SpanKind::Consumer);
    assert_eq!(
        (&consumer.name[..], &consumer.parent),
        ("process events", &producer.id)
    );
    assert_eq!(consumer.attribute("triggers.intake.outcome"), "stored");
    for span in [producer, consumer] {
        assert_eq!(span.attribute("messaging.message.id"), id);
        assert_eq!(span.attribute("triggers.organization.id"), client.organization);
    }
    let attempts = of_kind(&spans, SpanKind::Client);
    let port = receiver.address().port().to_string();
    for ((attempt, webhook), (number, status)) in
        attempts.iter().zip(&webhooks).zip([("1", "500"), ("2", "200")])
    {
        assert_eq!((&attempt.name[..], &attempt.parent), ("POST", &producer.id));
        assert_eq!(webhook.header("traceparent"), attempt.context(), "{attempts:#?}");
        for (name, value) in [
            ("triggers.attempt", number),
            ("http.response.status_code", status),
            ("triggers.event.id", id),
            ("triggers.subscription.id", &subscription.id),
            ("server.address", "127.0.0.1"),
            ("server.port", &port),
        ] {
            assert_eq!(attempt.attribute(name), value, "{name}: {attempt:#?}");
        }
    }
    assert!(attempts[0].failed, "{:#?}", attempts[0]);
    assert_eq!(attempts[0].attribute("error.type"), "status");
    let failed = spans.iter().filter(|span| span.failed).count();
    assert_eq!(failed, 1, "{spans:#?}");
    for span in &spans {
        let [began, ended] = span.times;
        assert!(began <= ended && began >= server.times[0], "{spans:#?}");
        let role = match span.kind {
            SpanKind::Server | SpanKind::Producer => "triggers-ingest",
            _ => "triggers-worker",
        };
        let service = if engine == Engine::Embedded {
            "triggers"
        } else {
            role
        };
        assert_eq!(span.service, service);
    }

    for request in collector.received() {
        for secret in ["-secret", &client.key, &subscription.secret] {
            let mut parts = request.body.windows(secret.len());
            assert!(
                !parts.any(|part| part == secret.as_bytes()),
                "{secret}: {spans:#?}"
            );
        }
    }
    let exported = sum(&world, "triggers_spans_exported_total").await;
    assert_eq!(exported, 5, "nothing else is traced");
    assert_eq!(sum(&world, "triggers_spans_dropped_total").await, 0);
}

async fn what_the_producer_does_not_sample_passes_through(engine: Engine) {
    let collector = Collector::start().await;
    let world = traced(engine, &collector.url()).start().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let event = json!({"type": "order.placed", "payload": 1});
    post(&client, unsampled, &event).await.expect(202);
    let webhook = receiver.wait_for("/hook", 1).await.remove(0);
    assert_eq!(webhook.header("traceparent"), unsampled);
    // What comes later is sent later.
    post(&client, &sampled(), &event).await.expect(202);
    collector.wait_for(TRACE, 4).await;
    let others = collector.spans().into_iter().filter(|span| span.trace != TRACE);
    assert_eq!(others.count(), 0);
}

async fn a_trace_begins_here_where_the_producer_has_none(engine: Engine) {
    let collector = Collector::start().await;
    let world = traced(engine, &collector.url()).start().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    client.event("order.placed").await;
    let webhook = receiver.wait_for("/hook", 1).await.remove(0);
    let trace = webhook.header("traceparent").split('-').nth(1).expect("a trace");
    let spans = collector.wait_for(trace, 4).await;
    assert_eq!(the(&spans, SpanKind::Server).parent, "");
    assert_eq!(
        webhook.header("traceparent"),
        the(&spans, SpanKind::Client).context()
    );

    // Unless the sampler says otherwise: then none is made up.
    world
        .restart_with("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        .await;
    client.event("order.placed").await;
    let webhook = receiver.wait_for("/hook", 2).await.remove(1);
    assert_eq!(webhook.header("traceparent"), "");
    let event = json!({"type": "order.placed", "payload": 1});
    post(&client, &sampled(), &event).await.expect(202);
    collector.wait_for(TRACE, 4).await;
    assert!(
        collector
            .spans()
            .iter()
            .all(|span| [TRACE, trace].contains(&&*span.trace))
    );
}

async fn each_event_of_a_batch_has_its_own_trace(engine: Engine) {
    const OWN: &str = "0af7651916cd43dd8448eb211c80319c";
    let collector = Collector::start().await;
    let world = traced(engine, &collector.url()).start().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let event = |id: &str| json!({"specversion": "1.0", "type": "order.placed", "source": "/shop", "id": id});
    let mut with_own = event("1");
    with_own["traceparent"] = format!("00-{OWN}-b7ad6b7169203331-01").into();
    let batch = json!([with_own, event("2")]);
    let request = client
        .request(http::Method::POST, "/v1/events")
        .header("traceparent", sampled())
        .header("content-type", "application/cloudevents-batch+json")
        .body(batch.to_string());
    client.send(request).await.expect(202);
    let webhooks = receiver.wait_for("/hook", 2).await;
    // Of the one that has its own, everything but the request is there.
    let (own, others) = (
        collector.wait_for(OWN, 3).await,
        collector.wait_for(TRACE, 4).await,
    );
    assert_eq!((own.len(), others.len()), (3, 4), "{own:#?} {others:#?}");
    assert_eq!(the(&own, SpanKind::Producer).parent, "b7ad6b7169203331");
    let server = the(&others, SpanKind::Server);
    assert_eq!(the(&others, SpanKind::Producer).parent, server.id);
    for spans in [&own, &others] {
        let producer = &the(spans, SpanKind::Producer).id;
        assert_eq!(&the(spans, SpanKind::Consumer).parent, producer);
        let attempt = the(spans, SpanKind::Client);
        assert_eq!(&attempt.parent, producer);
        let mut headers = webhooks.iter().map(|webhook| webhook.header("traceparent"));
        assert!(headers.any(|header| header == attempt.context()), "{attempt:#?}");
    }
}

async fn a_request_without_a_key_has_no_span(engine: Engine) {
    let collector = Collector::start().await;
    let world = traced(engine, &collector.url()).start().await;
    let client = world.organization().await;
    let event = json!({"type": "order.placed", "payload": 1});
    let strangers = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let post_as = async |key: Option<&str>| {
        let request = client
            .anonymous(http::Method::POST, "/v1/events")
            .header("traceparent", strangers);
        let request = match key {
            Some(key) => request.header("x-api-key", key),
            None => request,
        };
        client.send(request.json(&event)).await.expect(401);
    };
    post_as(None).await;
    post_as(Some("a-word")).await;
    // What comes later is sent later.
    post(&client, &sampled(), &event).await.expect(202);
    collector.wait_for(TRACE, 3).await;
    let others = collector.spans().into_iter().filter(|span| span.trace != TRACE);
    assert_eq!(others.count(), 0);
}

async fn a_collector_that_is_away_costs_spans_and_nothing_else(engine: Engine) {
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let world = traced(engine, &nowhere).start().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    for count in 1..=3 {
        client.event("order.placed").await;
        receiver.wait_for("/hook", count).await;
        // Server, producer, consumer and client.
        dropped(&world, 4 * count).await;
    }
    assert_eq!(sum(&world, "triggers_spans_exported_total").await, 0);
    for node in world.nodes() {
        let output = node.output();
        let warnings = output.matches("the collector does not take spans").count();
        assert!(warnings <= 1, "one an outage: {output}");
    }
    assert!(
        world
            .ingest()
            .output()
            .contains("the collector does not take spans")
    );
}

async fn a_collector_that_is_back_takes_spans_again(engine: Engine) {
    let collector = Collector::start().await;
    collector.always(Reply::Status(503));
    let world = traced(engine, &collector.url()).start().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    client.event("order.placed").await;
    dropped(&world, 4).await;
    collector.always(Reply::Status(200));
    let event = json!({"type": "order.placed", "payload": 1});
    post(&client, &sampled(), &event).await.expect(202);
    collector.wait_for(TRACE, 4).await;
    eventually("they are counted", Duration::from_secs(5), async || {
        match sum(&world, "triggers_spans_exported_total").await {
            4 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    let output = world.ingest().output();
    assert!(output.contains("the collector takes spans again"), "{output}");
}

async fn a_collector_that_hangs_holds_up_no_end(engine: Engine) {
    let collector = Collector::start().await;
    collector.always(Reply::Hang);
    let world = traced(engine, &collector.url()).start().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    client.subscribe_url(&receiver.url("/hook")).await;
    let id = client.event("order.placed").await;
    client.event_becomes(&id, "delivered").await;
    for node in [world.ingest(), world.worker()] {
        if node.id().is_none() {
            // They are one.
            continue;
        }
        let status = node.terminate().await;
        assert!(status.success(), "{} ended with {status}", node.program());
        let output = node.output();
        assert!(output.contains("the last spans were not sent"), "{output}");
    }
}

async fn the_last_spans_are_sent_at_the_end(engine: Engine) {
    let collector = Collector::start().await;
    let world = traced(engine, &collector.url()).start().await;
    let receiver = Receiver::start().await;
    let client = world.organization().await;
    receiver.script("/hook", [Reply::Late(Duration::from_millis(500))]);
    client.subscribe_url(&receiver.url("/hook")).await;
    let event = json!({"type": "order.placed", "payload": 1});
    post(&client, &sampled(), &event).await.expect(202);
    receiver.wait_for("/hook", 1).await;
    // The attempt is under way still.
    for node in world.nodes() {
        let status = node.terminate().await;
        assert!(status.success(), "{} ended with {status}", node.program());
    }
    let spans = collector.spans();
    assert_eq!(spans.len(), 4, "{spans:#?}");
    let attempt = the(&spans, SpanKind::Client);
    assert_eq!(attempt.attribute("http.response.status_code"), "200");
}

async fn a_collector_is_reached_over_tls_with_headers(engine: Engine) {
    let authority = Authority::new();
    let collector = Collector::start_tls(&authority).await;
    let world = World::with(engine)
        .set(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            format!("{}/v1/traces", collector.url()),
        )
        .set("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.file().display())
        .set("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a-word")
        .set("OTEL_SERVICE_NAME", "a-name")
        .start()
        .await;
    let client = world.organization().await;
    let event = json!({"type": "order.placed", "payload": 1});
    post(&client, &sampled(), &event).await.expect(202);
    let spans = collector.wait_for(TRACE, 3).await;
    assert!(spans.iter().all(|span| span.service == "a-name"), "{spans:#?}");
    for request in collector.received() {
        assert_eq!(request.header("authorization"), "Bearer a-word");
    }
    for node in world.nodes() {
        assert!(!node.output().contains("a-word"), "{}", node.output());
    }
}

/// A counter, over all processes.
async fn sum(world: &World, counter: &str) -> u64 {
    let mut sum = 0;
    for node in world.nodes() {
        let metrics = world.get(node, "/metrics").await;
        let lines = metrics.text.lines();
        let values = lines.filter_map(|line| line.strip_prefix(counter)?.trim().parse::<u64>().ok());
        sum += values.sum::<u64>();
    }
    sum
}

/// Waits until so many spans were dropped.
async fn dropped(world: &World, count: usize) {
    let what = format!("{count} spans are dropped");
    eventually(&what, Duration::from_secs(20), async || {
        match sum(world, "triggers_spans_dropped_total").await {
            dropped if dropped >= count as u64 => Ok(()),
            dropped => Err(dropped.to_string()),
        }
    })
    .await;
}
