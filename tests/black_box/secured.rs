//! Webhooks over TLS: what is trusted, HTTP/2 where it is offered, and what each failure is called.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use harness::{
    Authority, Client, Engine, Flaw, Received, Receiver, Reply, World, eventually, on_both_engines,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

on_both_engines!(
    http2_is_spoken_where_it_is_offered,
    http1_is_spoken_where_it_is_not,
    bad_certificates_fail_as_tls,
    each_phase_has_its_name,
    a_refused_stream_is_sent_again_at_once,
    a_connection_that_hangs_is_given_up,
    a_slow_subscriber_has_connections_of_its_own,
);

/// A world that trusts an authority, and may connect to this machine by name and by address.
async fn trusting(engine: Engine, authority: &Authority) -> World {
    World::with(engine)
        .set("TRIGGERS_EXTRA_CA_FILE", authority.file().display())
        .set("TRIGGERS_ALLOW_PRIVATE_TARGETS", "127.0.0.0/8,::1/128")
        .start()
        .await
}

fn connections(webhooks: &[Received]) -> HashSet<usize> {
    webhooks.iter().map(|webhook| webhook.connection).collect()
}

async fn http2_is_spoken_where_it_is_offered(engine: Engine) {
    let authority = Authority::new();
    let world = trusting(engine, &authority).await;
    let receiver = Receiver::start_tls(&authority, Flaw::None, &["h2", "http/1.1"]).await;
    let client = world.organization().await;
    let subscription = client.subscribe_url(&receiver.url("/hook")).await;
    client.event("order.placed").await;
    receiver.wait_for("/hook", 1).await;
    // A burst that would take as many connections of HTTP/1.1.
    receiver.always("/hook", Reply::Late(Duration::from_millis(200)));
    for _ in 0..16 {
        client.event("order.placed").await;
    }
    let webhooks = receiver.wait_for("/hook", 17).await;
    for webhook in &webhooks {
        assert_eq!(webhook.version, http::Version::HTTP_2);
        webhook
            .verify(&subscription.secret)
            .expect("signed, whatever carries it");
        assert_eq!(webhook.header("webhook-attempt"), "1");
    }
    assert!(
        connections(&webhooks).len() <= 2,
        "one for all, but for a pause: {:?}",
        connections(&webhooks)
    );
    assert!(receiver.most_at_once("/hook") > 1, "several at once over it");
    // An answer without end is cut off, and the connection goes on.
    receiver.always("/hook", Reply::Huge(10 * 1024 * 1024));
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
    receiver.always("/hook", Reply::Status(204));
    let id = client.event("order.placed").await;
    client.delivery_becomes(&id, &subscription.id, "delivered").await;
}

async fn http1_is_spoken_where_it_is_not(engine: Engine) {
    let authority = Authority::new();
    let world = trusting(engine, &authority).await;
    let client = world.organization().await;
    for protocols in [&["http/1.1"][..], &[]] {
        let receiver = Receiver::start_tls(&authority, Flaw::None, protocols).await;
        let subscription = client.subscribe_url(&receiver.url("/hook")).await;
        for _ in 0..5 {
            let id = client.event("order.placed").await;
            client.delivery_becomes(&id, &subscription.id, "delivered").await;
        }
        let webhooks = receiver.received("/hook");
        assert!(
            webhooks
                .iter()
                .all(|webhook| webhook.version == http::Version::HTTP_11)
        );
        assert!(
            connections(&webhooks).len() < webhooks.len(),
            "connections are used again"
        );
        client
            .delete(&format!("/v1/subscriptions/{}", subscription.id))
            .await;
    }
}

/// The first attempt at a URL that fails.
async fn failed(client: &Client, url: &str) -> Value {
    let subscription = client
        .subscribe(&json!({"url": url, "retry_schedule_seconds": [600], "timeout_ms": 1000}))
        .await;
    let id = client.event("order.placed").await;
    let delivery = client.delivery_becomes(&id, &subscription.id, "retrying").await;
    client
        .delete(&format!("/v1/subscriptions/{}", subscription.id))
        .await;
    delivery["log"][0].clone()
}

async fn bad_certificates_fail_as_tls(engine: Engine) {
    let authority = Authority::new();
    let world = trusting(engine, &authority).await;
    let client = world.organization().await;
    let strange = Authority::new();
    let cases = [
        (&authority, Flaw::OtherHost),
        (&authority, Flaw::Expired),
        (&authority, Flaw::SelfSigned),
        (&strange, Flaw::None),
    ];
    for (authority, flaw) in cases {
        let receiver = Receiver::start_tls(authority, flaw, &["h2"]).await;
        let attempt = failed(&client, &receiver.url("/hook")).await;
        assert_eq!(attempt["error"], "tls", "{flaw:?}: {attempt}");
        assert_eq!(receiver.count("/hook"), 0);
    }
}

async fn each_phase_has_its_name(engine: Engine) {
    let authority = Authority::new();
    let world = trusting(engine, &authority).await;
    let client = world.organization().await;
    let attempt = failed(&client, "https://nowhere.invalid/").await;
    assert_eq!(attempt["error"], "dns", "{attempt}");

    // Its connections are made by the kernel, and nobody takes them.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!(
        "https://127.0.0.1:{}/",
        listener.local_addr().expect("bound").port()
    );
    let attempt = failed(&client, &url).await;
    assert_eq!(attempt["error"], "timeout", "{attempt}");
    assert_eq!(attempt["detail"], "the TLS handshake did not end within 1000 ms");

    for protocols in [&["h2"][..], &["http/1.1"]] {
        let receiver = Receiver::start_tls(&authority, Flaw::None, protocols).await;
        receiver.always("/hook", Reply::Hang);
        let attempt = failed(&client, &receiver.url("/hook")).await;
        assert_eq!(attempt["error"], "timeout", "{attempt}");
        assert_eq!(attempt["detail"], "no answer's head within 1000 ms");
        receiver.always("/drips", Reply::Drips(200));
        let attempt = failed(&client, &receiver.url("/drips")).await;
        assert_eq!(attempt["error"], "timeout", "{attempt}");
        assert_eq!(attempt["detail"], "the answer's body did not end within 1000 ms");
        receiver.always("/refuses", Reply::Drips(500));
        let attempt = failed(&client, &receiver.url("/refuses")).await;
        assert_eq!(
            (&attempt["error"], &attempt["status_code"], &attempt["detail"]),
            (&json!("status"), &json!(500), &json!("x")),
        );
        receiver.always("/cut", Reply::Cut);
        let attempt = failed(&client, &receiver.url("/cut")).await;
        assert_eq!(
            (&attempt["error"], &attempt["status_code"]),
            (&json!("body"), &json!(200))
        );
    }
}

/// A server of HTTP/2 that refuses so many streams before it answers with 200, and says how many came.
fn refusing(
    listener: TcpListener,
    authority: &Authority,
    refused: usize,
) -> JoinHandle<Result<usize, h2::Error>> {
    let tls = authority.server(Flaw::None, &["h2"]);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let stream = tls.accept(stream).await.expect("a handshake");
        let mut connection = h2::server::handshake(stream).await?;
        let mut came = 0;
        // Who was told that the connection ends may hang up before all is said.
        while let Some(Ok((_request, mut answer))) = connection.accept().await {
            came += 1;
            if came <= refused {
                answer.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                let response = http::Response::new(());
                let mut body = answer.send_response(response, false)?;
                body.send_data(Bytes::new(), true)?;
                connection.graceful_shutdown();
            }
        }
        Ok(came)
    })
}

async fn a_refused_stream_is_sent_again_at_once(engine: Engine) {
    let authority = Authority::new();
    let world = trusting(engine, &authority).await;
    let client = world.organization().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let server = refusing(listener, &authority, 2);
    let subscription = client.subscribe_url(&format!("https://localhost:{port}/")).await;
    let id = client.event("order.placed").await;
    let delivery = client.delivery_becomes(&id, &subscription.id, "delivered").await;
    assert_eq!(delivery["attempts"], 1, "the subscriber had not looked at it");
    assert_eq!(
        server
            .await
            .expect("it does not panic")
            .expect("it is spoken to well"),
        3
    );
}

async fn a_connection_that_hangs_is_given_up(engine: Engine) {
    let authority = Authority::new();
    let world = trusting(engine, &authority).await;
    let client = world.organization().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let tls = authority.server(Flaw::None, &["h2"]);
    let server = tokio::spawn(async move {
        // The first is taken, and then neither read nor written: not even a ping is answered.
        let (stream, _) = listener.accept().await.expect("a connection");
        let _hung = tls.accept(stream).await.expect("a handshake");
        loop {
            let (stream, _) = listener.accept().await.expect("another connection");
            let Ok(stream) = tls.accept(stream).await else {
                continue;
            };
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            while let Some(Ok((_request, mut answer))) = connection.accept().await {
                let _ = answer.send_response(http::Response::new(()), true);
            }
        }
    });
    let subscription = client
        .subscribe(&json!({
            "url": format!("https://localhost:{port}/"),
            "timeout_ms": 1000,
            "retry_schedule_seconds": vec![1; 20],
        }))
        .await;
    let id = client.event("order.placed").await;
    let what = "it is delivered over another connection";
    let delivery = eventually(what, Duration::from_secs(40), async || {
        let delivery = client.look_up(&id).await["deliveries"][0].clone();
        if delivery["status"] == "delivered" {
            Ok(delivery)
        } else {
            Err(delivery.to_string())
        }
    })
    .await;
    assert_eq!(delivery["subscription"], subscription.id.as_str());
    assert_eq!(delivery["log"][0]["error"], "timeout", "{delivery}");
    server.abort();
}

async fn a_slow_subscriber_has_connections_of_its_own(engine: Engine) {
    let authority = Authority::new();
    let world = trusting(engine, &authority).await;
    let receiver = Receiver::start_tls(&authority, Flaw::None, &["h2"]).await;
    let client = world.organization().await;
    // On one host, one that takes its time, and one that does not.
    receiver.always("/slow", Reply::Late(Duration::from_millis(1_500)));
    client
        .subscribe(&json!({"url": receiver.url("/slow"), "event_types": ["slow"]}))
        .await;
    client
        .subscribe(&json!({"url": receiver.url("/quick"), "event_types": ["quick"]}))
        .await;
    for count in 1..=2 {
        let id = client.event("slow").await;
        receiver.wait_for("/slow", count).await;
        client.event_becomes(&id, "delivered").await;
    }
    client.event("slow").await;
    let slow = receiver.wait_for("/slow", 3).await;
    client.event("quick").await;
    let quick = receiver.wait_for("/quick", 1).await;
    assert_ne!(slow[2].connection, quick[0].connection);
}
