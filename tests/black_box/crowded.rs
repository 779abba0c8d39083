//! Clients that take more than their part: of connections, and of room for bodies. They hear of it at once, and others do not.

use std::{net::SocketAddr, time::Duration};

use harness::{Client, Engine, Node, World, eventually, on_both_engines};
use http::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

on_both_engines!(
    an_address_has_so_many_connections,
    a_head_that_comes_slowly_ends_its_connection,
    bodies_that_do_not_come_leave_others_room,
);

const LONG: Duration = Duration::from_secs(30);

fn address_of(node: &Node) -> SocketAddr {
    let url = node.url();
    let address = url.strip_prefix("http://").expect("a URL of a node");
    address.parse().expect("an address")
}

/// Connects from another address of this machine.
async fn connect_from(address: &str, node: &Node) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let from = format!("{address}:0").parse().expect("an address");
    socket.bind(from).expect("all of 127.0.0.0/8 is this machine's");
    socket.connect(address_of(node)).await.expect("the node listens")
}

/// What is answered to a request, with its body.
async fn ask(stream: &mut TcpStream, head: &str) -> String {
    // Whoever is turned away may find the connection closed by then.
    let _ = stream
        .write_all(format!("{head}\r\nhost: x\r\n\r\n").as_bytes())
        .await;
    let (mut answer, mut piece) = (Vec::new(), vec![0; 16 * 1024]);
    let whole = |answer: &[u8]| {
        let text = String::from_utf8_lossy(answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))?;
        (body.len() >= length.parse().ok()?).then_some(text)
    };
    loop {
        if let Some(text) = whole(&answer) {
            return text;
        }
        match timeout(LONG, stream.read(&mut piece)).await.expect("an answer") {
            Ok(bytes) if bytes > 0 => answer.extend_from_slice(&piece[..bytes]),
            _ => panic!("no answer: {}", String::from_utf8_lossy(&answer)),
        }
    }
}

/// Waits until it is taken again.
async fn is_free_again(address: &str, node: &Node) {
    eventually(&format!("{address} may connect"), LONG, async || {
        let mut stream = connect_from(address, node).await;
        let answer = ask(&mut stream, "GET /openapi.json HTTP/1.1").await;
        if answer.starts_with("HTTP/1.1 200 ") {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;
}

async fn an_address_has_so_many_connections(engine: Engine) {
    const MOST: usize = 20;
    let world = World::with(engine)
        .set("TRIGGERS_CONNECTIONS_PER_ADDRESS", MOST)
        .set("TRIGGERS_TRUSTED_PROXIES", "127.0.0.3/32")
        .start()
        .await;
    let client = world.organization().await;
    for node in [world.ingest(), world.api()] {
        let mut held = Vec::new();
        for _ in 0..MOST {
            let mut stream = connect_from("127.0.0.2", node).await;
            let answer = ask(&mut stream, "GET /health HTTP/1.1").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            held.push(stream);
        }
        for _ in 0..2 * MOST {
            let mut stream = connect_from("127.0.0.2", node).await;
            let answer = ask(&mut stream, "POST /api/events HTTP/1.1").await;
            assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
            for part in [
                "content-type: application/problem+json",
                "retry-after: 1\r\n",
                "connection: close\r\n",
                "too many connections from this address: 20 at once may",
                "\"code\":\"rate_limited\"",
                "\"error\":\"rate_limited\"",
                "\"request_id\":\"",
            ] {
                assert!(answer.contains(part), "{part} is missing: {answer}");
            }
            // And it ends.
            let end = timeout(LONG, stream.read(&mut [0; 64])).await.expect("an end");
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        }
        // Whoever looks whether the process is up, hears that it is.
        let mut probe = connect_from("127.0.0.2", node).await;
        let alive = ask(&mut probe, "GET /health/live HTTP/1.1").await;
        assert!(alive.starts_with("HTTP/1.1 200 "), "{alive}");
        // Others are not concerned, and a proxy that is trusted to be one has as many as it likes.
        client.at(node).get("/v1/inbox").await;
        let mut through = Vec::new();
        for _ in 0..2 * MOST {
            let mut stream = connect_from("127.0.0.3", node).await;
            let answer = ask(&mut stream, "GET /openapi.json HTTP/1.1").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            through.push(stream);
        }
        let metrics = world.get(node, "/metrics").await.text;
        let counted = metrics
            .lines()
            .find_map(|line| line.strip_prefix("triggers_connections_turned_away_total "));
        let counted: usize = counted.expect("it is counted").parse().expect("a number");
        assert!(counted > 2 * MOST, "{counted}");
        drop(held);
        is_free_again("127.0.0.2", node).await;
    }
}

async fn a_head_that_comes_slowly_ends_its_connection(engine: Engine) {
    let world = World::start(engine).await;
    let node = world.ingest();
    let mut slow = TcpStream::connect(address_of(node))
        .await
        .expect("the node listens");
    let mut idle = TcpStream::connect(address_of(node))
        .await
        .expect("the node listens");
    ask(&mut idle, "GET /health HTTP/1.1").await;
    slow.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ")
        .await
        .expect("it is open");
    let (mut read, mut write) = slow.split();
    // It never stops for long, and never ends.
    let dripping = async {
        while write.write_all(b".").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        answer
    };
    tokio::select! {
        answer = ended => assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer)),
        () = dripping => {}
        () = tokio::time::sleep(LONG) => panic!("a head may take for ever"),
    }
    // So ends a connection on which nothing comes.
    let end = timeout(LONG, idle.read(&mut [0; 64]))
        .await
        .expect("an idle connection ends");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

/// Announces a body, and sends nothing of it. It is waited for by now: room was taken for it.
async fn promise(client: &Client, node: &Node, path: &str, bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address_of(node))
        .await
        .expect("the node listens");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {bytes}\r\nexpect: 100-continue\r\n\r\n",
        client.key
    );
    stream.write_all(head.as_bytes()).await.expect("it is open");
    let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut go_on).await.expect("an answer");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

async fn bodies_that_do_not_come_leave_others_room(engine: Engine) {
    const MIB: usize = 1024 * 1024;
    const MOST: usize = 327_680;
    let world = World::start(engine).await;
    let (client, other) = (world.organization().await, world.organization().await);
    let large = json!({"type": "order.placed", "payload": "x".repeat(20_000)});
    let small = json!({"type": "order.placed", "payload": 1});
    let subscription = |description: usize| {
        json!({"url": "http://127.0.0.1:9/hook", "metadata": {"a": "x".repeat(400)}, "event_types":
            (0..description).map(|number| format!("a.{number}.{}", "x".repeat(200))).collect::<Vec<_>>()})
    };
    // The posting routes have room of their own, and so do all others.
    for (node, path, share, large, small) in [
        (world.ingest(), "/v1/events", 32 * MIB, &large, &small),
        (
            world.api(),
            "/v1/subscriptions",
            8 * MIB,
            &subscription(60),
            &subscription(1),
        ),
    ] {
        let mut held = Vec::new();
        // All of it but a little, in bodies as large as any and one that is less.
        for bytes in (0..share / MOST).map(|_| MOST).chain([share % MOST - 9_000]) {
            held.push(promise(&client, node, path, bytes).await);
        }
        let post = async |client: &Client, body| {
            client
                .at(node)
                .send(client.at(node).request(Method::POST, path).json(body))
                .await
        };
        let problem = post(&client, large).await.problem(503, "unavailable");
        let detail = problem["detail"].as_str().expect("a text");
        assert_eq!(
            detail,
            "more bodies are under way than there is room for; try again"
        );
        // What is small needs none, and another organization has its own.
        for (client, body) in [(&client, small), (&other, large)] {
            let answer = post(client, body).await;
            assert!(
                [201, 202].contains(&answer.status),
                "{} {}",
                answer.status,
                answer.text
            );
        }
        drop(held);
        eventually("there is room again", LONG, async || {
            let answer = post(&client, large).await;
            if [201, 202].contains(&answer.status) {
                Ok(())
            } else {
                Err(answer.text)
            }
        })
        .await;
    }
}
