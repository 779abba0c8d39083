use std::net::SocketAddr;

use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::*;

const LONG: Duration = Duration::from_secs(20);

/// Serves some routes, and gives where.
async fn start(bounds: Bounds) -> (SocketAddr, Lifecycle) {
    let endless = async || {
        let piece = Bytes::from(vec![b'.'; 64 * 1024]);
        Body::from_stream(stream::repeat_with(move || Ok::<_, Infallible>(piece.clone())))
    };
    let router = Router::new()
        .route("/endless", get(endless))
        .route("/short", get(async || "short"))
        .route("/health/live", get(async || "alive"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lifecycle = Lifecycle::new();
    let serving = serve_within(bounds, listener, with_fallbacks(router), lifecycle.clone());
    lifecycle.critical("http", serving);
    (address, lifecycle)
}

async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    // Whoever is closed without a word is not answered, and that is all.
    let _ = client.write_all(request.as_bytes()).await;
    client
}

/// What is answered until the connection ends.
async fn answer(mut client: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(LONG, client.read_to_end(&mut answer))
        .await
        .expect("an end");
    String::from_utf8(answer).unwrap()
}

/// Asks until it is answered with this.
async fn answered(address: SocketAddr, path: &str, with: &str) {
    let asking = async {
        while !answer(ask(address, path).await).await.starts_with(with) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, asking)
        .await
        .unwrap_or_else(|_| panic!("{path} is never answered with {with}"));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_its_place_is_free_again() {
    let bounds = Bounds {
        connections: 1,
        stall: Duration::from_millis(300),
        ..Bounds::default()
    };
    let (address, lifecycle) = start(bounds).await;
    let mut stalled = ask(address, "/endless").await;
    // It has the only place, until it is cut off.
    answered(address, "/short", "HTTP/1.1 503").await;
    answered(address, "/short", "HTTP/1.1 200").await;
    // What was sent before is still there; the end of the body is not.
    let mut got = Vec::new();
    let _ = timeout(LONG, stalled.read_to_end(&mut got))
        .await
        .expect("the connection has ended");
    assert!(got.starts_with(b"HTTP/1.1 200") && !got.ends_with(b"0\r\n\r\n"));
    lifecycle.soft.cancel();
}

#[tokio::test]
async fn whoever_finds_no_place_is_told_so_and_closed() {
    for (connections, of_one_address, status, code) in
        [(3, None, 503, "unavailable"), (100, Some(3), 429, "rate_limited")]
    {
        let bounds = Bounds {
            connections,
            of_one_address,
            ..Bounds::default()
        };
        let (address, lifecycle) = start(bounds).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client
                .write_all(b"GET /short HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .unwrap();
            let mut answer = [0; 512];
            let bytes = timeout(LONG, client.read(&mut answer)).await.unwrap().unwrap();
            assert!(answer[..bytes].starts_with(b"HTTP/1.1 200"));
            held.push(client);
        }
        // As often as one likes: telling takes no place for long.
        for _ in 0..300 {
            let told = answer(ask(address, "/short").await).await;
            assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{told}");
            for part in [
                "retry-after: 1\r\n",
                "connection: close\r\n",
                "content-type: application/problem+json\r\n",
                &format!("\"code\":\"{code}\""),
            ] {
                assert!(told.contains(part), "{part} is missing: {told}");
            }
        }
        let alive = answer(ask(address, "/health/live").await).await;
        assert!(
            alive.starts_with("HTTP/1.1 200") && alive.ends_with("alive"),
            "{alive}"
        );
        // Those who have a place keep it.
        held[0]
            .write_all(b"GET /short HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let bytes = timeout(LONG, held[0].read(&mut [0; 512])).await.unwrap().unwrap();
        assert!(bytes > 0);
        held.pop();
        answered(address, "/short", "HTTP/1.1 200").await;
        lifecycle.soft.cancel();
    }
}

/// Those who find no place and then say nothing hold up neither the server nor, past a number, anybody who says something.
#[tokio::test]
async fn whoever_says_nothing_is_not_waited_for() {
    let bounds = Bounds {
        connections: 1,
        ..Bounds::default()
    };
    let (address, lifecycle) = start(bounds).await;
    let held = ask(address, "/endless").await;
    answered(address, "/short", "HTTP/1.1 503").await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    for mut client in silent {
        // Some are waited for a little, the others are closed at once.
        let ended = timeout(LONG, client.read(&mut [0; 64])).await.expect("an end");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    answered(address, "/short", "HTTP/1.1 503").await;
    drop(held);
    answered(address, "/short", "HTTP/1.1 200").await;
    lifecycle.soft.cancel();
}
