//! Subscribers that speak HTTP badly, or not at all: each attempt ends in time, with the kind of its failure.

use std::time::{Duration, Instant};

use harness::{Engine, World, on_both_engines};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

on_both_engines!(a_subscriber_that_misbehaves_fails_its_own_attempts);

/// What a subscriber does with a connection once a request has begun to come.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// Closes it.
    Closes,
    /// Closes it with what came unread, which resets it.
    Resets,
    /// Answers with something else than HTTP.
    Babbles,
    /// Sends its head a byte at a time.
    DripsItsHead,
    /// Sends a head, and a body that it announced to be longer.
    BreaksOff,
    /// Sends headers without end.
    SendsHeadersForever,
}

const MANNERS: [Manner; 6] = [
    Manner::Closes,
    Manner::Resets,
    Manner::Babbles,
    Manner::DripsItsHead,
    Manner::BreaksOff,
    Manner::SendsHeadersForever,
];

impl Manner {
    /// The kinds that the failure may be called: where a connection breaks is a matter of luck.
    const fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::Closes | Self::Resets | Self::Babbles | Self::SendsHeadersForever => &["connect"],
            Self::DripsItsHead => &["timeout"],
            Self::BreaksOff => &["body"],
        }
    }

    async fn treat(self, mut stream: TcpStream) -> std::io::Result<()> {
        if matches!(self, Self::Resets) {
            stream.readable().await?;
            return Ok(());
        }
        let mut request = vec![0; 64 * 1024];
        let _ = stream.read(&mut request).await?;
        match self {
            Self::Closes | Self::Resets => {}
            Self::Babbles => stream.write_all(b"220 mail.example ESMTP\r\n").await?,
            Self::DripsItsHead => {
                for byte in b"HTTP/1.1 200 OK\r\nx-long: ".iter().chain([b'x'; 1_000].iter()) {
                    stream.write_all(&[*byte]).await?;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Self::BreaksOff => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all")
                    .await?;
            }
            Self::SendsHeadersForever => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                loop {
                    stream
                        .write_all(b"x-more: and more, and more, and more\r\n")
                        .await?;
                }
            }
        }
        Ok(())
    }
}

/// Listens, and treats every connection in this manner.
async fn subscriber(manner: Manner) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("the loopback interface has a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(manner.treat(stream));
        }
    });
    (format!("http://{address}/hook"), task)
}

async fn a_subscriber_that_misbehaves_fails_its_own_attempts(engine: Engine) {
    let world = World::start(engine).await;
    let client = world.organization().await;
    let (mut subscribers, mut tasks) = (Vec::new(), Vec::new());
    for manner in MANNERS {
        let (url, task) = subscriber(manner).await;
        let body = json!({"url": url, "timeout_ms": 1000, "retry_schedule_seconds": []});
        subscribers.push((manner, client.subscribe(&body).await));
        tasks.push(task);
    }
    // TLS is asked for where there is none.
    let (url, task) = subscriber(Manner::Babbles).await;
    let body = json!({"url": url.replace("http:", "https:"), "retry_schedule_seconds": []});
    let tls = client.subscribe(&body).await;
    tasks.push(task);

    let begun = Instant::now();
    let id = client.event("order.placed").await;
    for (manner, subscription) in &subscribers {
        let delivery = client
            .delivery_becomes(&id, &subscription.id, "dead_letter")
            .await;
        let error = delivery["log"][0]["error"].as_str().unwrap_or_default();
        assert!(manner.kinds().contains(&error), "{manner:?}: {delivery}");
    }
    let delivery = client.delivery_becomes(&id, &tls.id, "dead_letter").await;
    assert_eq!(delivery["log"][0]["error"], "tls", "{delivery}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for task in tasks {
        task.abort();
    }
}
