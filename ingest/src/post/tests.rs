//! Events posted alone: whose clients hang up, and for whose bodies there is no room.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::join_all, stream};
use hyper::body::{Frame, SizeHint};
use shared::{OrganizationId, Tier};

use super::*;
use crate::batch::tests::Front;

fn request(body: impl Into<Body>) -> Request {
    let request = http::Request::builder().header("content-type", "application/json");
    request.body(body.into()).unwrap()
}

fn event() -> Request {
    request(r#"{"type":"a","payload":1}"#)
}

#[tokio::test]
async fn an_event_in_the_queue_is_counted_though_its_client_has_gone() {
    let front = Front::open().await;
    let poster = front.poster(Tier::Free);
    let held = front.hold();
    let posting = Box::pin(accept_from(&poster, event(), Unknown::Refuse));
    // Dropped with its frame on its way, as when the client hangs up.
    front.offered(1, posting).await;
    assert_eq!(front.ingest.limits.accepted(&poster.grant), 0);
    drop(held);
    front.counts(&poster, 1).await;
    // And one that is waited for counts once.
    accept_from(&poster, event(), Unknown::Refuse).await.unwrap();
    assert_eq!(front.ingest.limits.accepted(&poster.grant), 2);
}

#[tokio::test]
async fn an_event_that_is_left_out_is_given_back() {
    /// Frames that may be on their way.
    const FRAMES: usize = 4;
    let front = Front::open().await;
    let poster = front.poster(Tier::Free);
    let held = front.hold();
    let mut posting = Vec::new();
    for frame in 1..=FRAMES {
        let mut one = Box::pin(accept_from(&poster, event(), Unknown::Refuse));
        front.offered(frame, &mut one).await;
        posting.push(one);
    }
    // No frame has room for these, and nobody waits for them.
    for _ in 0..60 {
        let late = accept_from(&poster, event(), Unknown::Refuse);
        assert!(late.now_or_never().is_none(), "it would wait");
    }
    let left = || -> u32 {
        let limit = poster.limit();
        limit["ratelimit-remaining"].to_str().unwrap().parse().unwrap()
    };
    assert!(left() < 60, "{}", left());
    drop(held);
    for answer in join_all(posting).await {
        answer.unwrap();
    }
    // Whatever comes is behind what was left out.
    accept_from(&poster, event(), Unknown::Refuse).await.unwrap();
    assert_eq!(front.ingest.limits.accepted(&poster.grant), 5);
    assert!(left() > 90, "{}", left());
}

#[tokio::test]
async fn large_bodies_have_so_much_room_for_an_organization_and_for_all() {
    let front = Front::open().await;
    let poster = front.poster(Tier::Unlimited);
    let room = &front.ingest.bodies;
    let (ours, other) = (Some(front.organization), Some(OrganizationId::new()));
    let large = || format!(r#"{{"type":"a","payload":"{}"}}"#, "x".repeat(20_000));
    let in_pieces = || {
        let pieces: Vec<_> = large()
            .as_bytes()
            .chunks(1_000)
            .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
            .collect();
        request(Body::from_stream(stream::iter(pieces)))
    };
    let cloud_event = || {
        let mut request = request(large());
        let headers = request.headers_mut();
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-type", "a"),
            ("ce-source", "/"),
            ("ce-id", "1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        request
    };
    for whose in [ours, other] {
        // All of its share; what another takes leaves ours alone.
        let mut held = Held::default();
        while room.grow(whose, &mut held, 1_024).is_ok() {}
        for request in [request(large()), in_pieces(), cloud_event()] {
            let answer = accept_from(&poster, request, Unknown::Refuse).await;
            if whose == ours {
                let error = answer.expect_err("there is no room");
                assert_eq!(error.code(), Code::Unavailable);
                assert_eq!(error.detail(), body::NO_ROOM);
                assert_eq!(error.to_result()["retry_after_seconds"], 1);
            } else {
                answer.unwrap();
            }
        }
        // What is small takes none.
        accept_from(&poster, event(), Unknown::Refuse).await.unwrap();
    }
    accept_from(&poster, request(large()), Unknown::Refuse)
        .await
        .unwrap();
}

/// What is announced takes its room though it does not come, and gives it back with its connection.
#[tokio::test]
async fn a_body_that_does_not_come_holds_the_room_that_it_announces() {
    let front = Front::open().await;
    let poster = front.poster(Tier::Unlimited);
    let (room, whose) = (&front.ingest.bodies, Some(front.organization));
    let fits = |bytes: usize| room.grow(whose, &mut Held::default(), bytes).is_ok();
    let slow =
        stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) }).chain(stream::pending());
    let slow = http_body_util::StreamBody::new(Box::pin(slow.map(|piece| piece.map(Frame::data))));
    let slow = accept_from(
        &poster,
        request(Body::new(Announced(slow, 300_000))),
        Unknown::Refuse,
    );
    let mut slow = Box::pin(slow);
    assert!((&mut slow).now_or_never().is_none());
    assert!(!fits(ROOM / 4 - 299_999) && fits(ROOM / 4 - 300_000));
    drop(slow);
    assert!(fits(ROOM / 4));
}

/// A body that says how much it is.
struct Announced<B>(B, u64);

impl<B: HttpBody + Unpin> HttpBody for Announced<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.1)
    }
}
