//! Lists larger than what is held of them: whole, in bounded memory, and not for ever.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use shared::{EventId, SubscriptionId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::harness::{Desk, LONG, Tenant, event};

/// The largest payload that is accepted, a different one for each number.
fn largest(number: usize) -> String {
    let fill = char::from(b'a' + u8::try_from(number % 26).unwrap());
    let mut payload = format!("{{ \"n\":{number}, \"fill\":\"");
    let missing = 256 * 1024 - payload.len() - 2;
    payload.extend(std::iter::repeat_n(fill, missing));
    payload.push_str("\"}");
    payload
}

/// Takes events of the largest kind in; gives their ids, oldest first.
async fn large_events(desk: &Desk, tenant: &Tenant, to: SubscriptionId, count: usize) -> Vec<EventId> {
    let mut ids = Vec::new();
    for numbers in (0..count).collect::<Vec<_>>().chunks(20) {
        let events: Vec<_> = numbers
            .iter()
            .map(|number| event(tenant, "large", &largest(*number)))
            .collect();
        desk.take_in_all(&events, to).await;
        ids.extend(events.iter().map(|event| event.id));
    }
    ids
}

#[tokio::test]
async fn a_list_of_large_events_is_whole() {
    const EVENTS: usize = 90;
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let inbox = desk.inbox(&tenant).await;
    let ids = large_events(&desk, &tenant, inbox, EVENTS).await;

    // Existing clients count on whole pages: `limit` events, however large, where there are more.
    let listed = desk.get("/api/inbox?limit=80&offset=3", &tenant.key).await;
    assert_eq!(listed.status, 200);
    let expected: Vec<_> = (0..EVENTS).rev().skip(3).take(80).collect();
    let shown: Vec<_> = expected.iter().map(|at| ids[*at].uuid().to_string()).collect();
    assert_eq!(listed.ids(), shown);
    let mut rest = listed.text.as_str();
    for number in expected {
        // Byte for byte, white space and all.
        let payload = format!("\"payload\":{},", largest(number));
        let at = rest.find(&payload).expect("the payload as it was sent");
        rest = &rest[at + payload.len()..];
    }
    let pagination = &listed.body["pagination"];
    assert_eq!(pagination["total"], EVENTS);
    assert_eq!(
        (pagination["limit"].as_u64(), pagination["offset"].as_u64()),
        (Some(80), Some(3))
    );
    assert_eq!(pagination["has_more"], true);
    let next = listed.next("/api/inbox?limit=1000").unwrap();
    let last = desk.get(&next, &tenant.key).await;
    assert_eq!(last.ids().len(), EVENTS - 83);
    assert_eq!(last.body["pagination"]["has_more"], false);
    assert_eq!(last.next(""), None);
}

#[tokio::test]
async fn the_inbox_ends_early_where_events_are_large_and_skips_nothing() {
    const EVENTS: usize = 40;
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let inbox = desk.inbox(&tenant).await;
    let ids: Vec<_> = large_events(&desk, &tenant, inbox, EVENTS)
        .await
        .iter()
        .map(ToString::to_string)
        .collect();
    let first = desk.get("/v1/inbox?limit=1000", &tenant.key).await;
    assert_eq!(first.ids(), ids[..32], "8 MiB of payloads");
    let next = first.next("/v1/inbox?limit=1000").unwrap();
    let second = desk.get(&next, &tenant.key).await;
    assert_eq!(second.ids(), ids[32..]);
    assert_eq!(second.next(""), None);
}

#[tokio::test]
async fn a_short_list_tells_its_length() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    for path in ["/api/inbox", "/v1/inbox"] {
        let empty = desk.get(path, &tenant.key).await;
        assert_eq!(empty.headers["content-length"], empty.text.len().to_string());
        assert_eq!(empty.ids().len(), 0);
        assert!(empty.body["next_cursor"].is_null());
    }
}

/// Asks and reads no more than the beginning of the answer.
async fn ask_and_do_not_read(address: SocketAddr, path: &str, key: &str) -> (TcpStream, String) {
    let socket = TcpSocket::new_v4().unwrap();
    // So that not much of the answer is under way in the kernel.
    socket.set_recv_buffer_size(4 * 1024).unwrap();
    let mut client = socket.connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    tokio::time::timeout(LONG, client.read_exact(&mut status))
        .await
        .expect("an answer")
        .unwrap();
    (client, String::from_utf8_lossy(&status).into_owned())
}

#[tokio::test]
async fn lists_that_nobody_reads_hold_others_up_within_bounds() {
    const STALL: Duration = Duration::from_secs(3);
    let desk = Desk::with_stall(STALL).await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let inbox = desk.inbox(&tenant).await;
    large_events(&desk, &tenant, inbox, 60).await;

    let mut stalled = Vec::new();
    let refused = loop {
        let (client, status) = ask_and_do_not_read(desk.address, "/api/inbox?limit=1000", &tenant.key).await;
        if status != "HTTP/1.1 200" {
            break status;
        }
        stalled.push(client);
        assert!(stalled.len() < 100, "there is no bound");
    };
    assert_eq!(refused, "HTTP/1.1 503");
    assert_eq!(stalled.len(), 8, "an organization's share of the room");
    let problem = desk.get("/v1/inbox", &tenant.key).await;
    assert_eq!(
        problem.problem(),
        "503 more lists are being read than there is room for; try again"
    );
    assert_eq!(problem.headers["retry-after"], "1");
    // Others have their own.
    assert_eq!(desk.get("/v1/inbox", &other.key).await.status, 200);

    // Those that do not read are cut off, and what they held is free again.
    let freed = tokio::time::timeout(LONG, async {
        while desk.get("/v1/inbox?limit=1", &tenant.key).await.status != 200 {}
    });
    freed.await.expect("there is room again");
    // That one is cut off; the last of them began less than its time before, and is read once that is over as well.
    tokio::time::sleep(2 * STALL).await;
    for mut client in stalled {
        let mut got = Vec::new();
        let _ = tokio::time::timeout(LONG, client.read_to_end(&mut got))
            .await
            .expect("the connection has ended");
        assert!(
            !got.ends_with(b"0\r\n\r\n"),
            "half a list was taken for a whole one"
        );
    }
}

/// Whatever is large and is not read takes of its organization's room, until that is used up.
#[tokio::test]
async fn large_answers_that_nobody_reads_hold_others_up_within_bounds() {
    // Of one organization.
    const SHARE: usize = 32 * 1024 * 1024;
    let desk = Desk::with_small_buffers().await;
    let (tenant, other) = (desk.tenant().await, desk.tenant().await);
    let inbox = desk.inbox(&tenant).await;
    let event = large_events(&desk, &tenant, inbox, 1).await[0];
    let patterns: Vec<_> = (0..100).map(|n| format!("x.{n:0250}")).collect();
    for _ in 0..50 {
        let body = json!({"kind": "pull", "event_types": patterns});
        let made = desk.post("/v1/subscriptions", &tenant.key, &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
    }
    for (path, weight) in [
        ("/v1/subscriptions?limit=1000".to_owned(), 1024 * 1024),
        (format!("/v1/events/{event}"), 256 * 1024),
    ] {
        let mut stalled = Vec::new();
        let refused = loop {
            let (client, status) = ask_and_do_not_read(desk.address, &path, &tenant.key).await;
            if status != "HTTP/1.1 200" {
                break status;
            }
            stalled.push(client);
            let most = 2 * SHARE / weight;
            assert!(stalled.len() <= most, "there is no bound for {path}");
        };
        assert_eq!(refused, "HTTP/1.1 503", "{path}");
        // Others have their own, and what is little is answered.
        assert_eq!(desk.get("/v1/subscriptions", &other.key).await.status, 200);
        assert_eq!(desk.get("/v1/organization", &tenant.key).await.status, 200);
        drop(stalled);
        let freed = tokio::time::timeout(LONG, async {
            while desk.get("/v1/subscriptions?limit=1", &tenant.key).await.status != 200 {}
        });
        freed.await.expect("there is room again");
    }
}

#[tokio::test]
async fn large_subscriptions_are_listed_in_pages() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let patterns: Vec<_> = (0..100).map(|n| format!("x.{n:0250}")).collect();
    for _ in 0..50 {
        let body = json!({"kind": "pull", "event_types": patterns});
        desk.post("/v1/subscriptions", &tenant.key, &body).await;
    }
    let first = desk.get("/v1/subscriptions?limit=1000", &tenant.key).await;
    assert!(first.text.len() < 1_200_000, "{}", first.text.len());
    assert_eq!(first.headers["content-length"], first.text.len().to_string());
    let next = first.next("/v1/subscriptions?limit=1000").expect("there is more");
    let second = desk.get(&next, &tenant.key).await;
    assert_eq!(first.ids().len() + second.ids().len(), 51);
    assert_eq!(second.next(""), None);
}
