//! Refusing a request before its body is read, so that the refusal is heard.
//!
//! A server that answers and closes while the client still writes resets the connection, and the client may never see
//! the answer: a 413 or a 401 would look like an outage. So what a handler leaves of a body is read and dropped, up to a
//! size and for a while; whoever sends more than that is cut off all the same.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

/// The most bytes that are read and dropped: twice the largest body that any route takes.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// How long they may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A request's body; what is left of it when it is dropped is read to its end, within limits.
pub(super) struct Lingering {
    /// `None` once it has ended, or where nothing may be left: a client that waits for `100 Continue` has sent nothing.
    body: Option<Incoming>,
    linger: bool,
    tasks: TaskTracker,
}

impl Lingering {
    /// Of this request, reading what is left in one of `tasks`.
    pub(super) fn of(request: Request<Incoming>, tasks: &TaskTracker) -> Request<Self> {
        let linger = !request.headers().contains_key(header::EXPECT);
        request.map(|body| Self {
            body: Some(body),
            linger,
            tasks: tasks.clone(),
        })
    }
}

impl Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if let Some(mut body) = self
            .body
            .take()
            .filter(|body| self.linger && !body.is_end_stream())
        {
            self.tasks.spawn(tokio::time::timeout(TIMEOUT, async move {
                let mut left = MAX_BYTES;
                while let Some(Ok(frame)) = body.frame().await {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    match left.checked_sub(bytes) {
                        Some(less) => left = less,
                        None => break,
                    }
                }
            }));
        }
    }
}
