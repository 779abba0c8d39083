//! The HTTP/1.1 server of every role: [places](super::places) for connections, a deadline for heads, a limit on how long a
//! client may not read its answer, or hardly,, and an envelope around each request.
//!
//! `axum::serve` sets no timer, so connections are served through hyper with one. The envelope gives each request an
//! id, turns panics and [`ApiError`]s into problems, and puts `x-request-id` on every answer. On the soft signal the
//! server stops accepting, lets requests under way finish, and closes idle connections; on the hard one it ends. What a
//! handler leaves of a body is read for a while, so that refusals are heard. Where file descriptors have run out, who
//! connects is turned away by closing.

use std::{convert::Infallible, net::IpAddr, panic::AssertUnwindSafe, time::Duration};

use axum::{Router, body::Body};
use futures_util::FutureExt;
use http::{Extensions, HeaderName, HeaderValue, Request, Response};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service;
use uuid::Uuid;

use super::{
    ApiError,
    heard::Heard,
    linger::Lingering,
    places::{Place, Places},
    spare::Spare,
    stall::{LEAST, Stalling},
};
use crate::lifecycle::Lifecycle;

/// How long a request's head may take, and an idle connection stay open.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The most headers of a request; more is a 431.
pub(super) const MAX_HEADERS: usize = 64;
/// The most bytes of a request's head; more is a 431.
pub(super) const MAX_HEAD_BYTES: usize = 32 * 1024;

/// What a server bounds its clients by; by default as production does.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The most connections at once; further ones are told so, and closed.
    pub connections: usize,
    /// The most of one address; `None` is as many as there are.
    pub of_one_address: Option<usize>,
    /// Proxies, which have as many as there are.
    pub trusted_proxies: Vec<IpNet>,
    /// How long a client may take next to nothing of its answer before it is cut off.
    pub stall: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 16_384,
            of_one_address: Some(1_024),
            trusted_proxies: Vec::new(),
            stall: Duration::from_secs(30),
        }
    }
}

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who has connected, which may be a proxy: among a request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

impl Peer {
    /// Of a request with these extensions; one that was served by [`serve`] has it.
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }
}

/// A request's id: the caller's `x-request-id` if it is sane, else a new UUID.
#[derive(Debug, Clone)]
pub struct RequestId(pub HeaderValue);

impl RequestId {
    fn of<B>(request: &Request<B>) -> Self {
        let sane = |value: &&HeaderValue| {
            (1..=128).contains(&value.len())
                && value
                    .as_bytes()
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(b))
        };
        Self(
            request
                .headers()
                .get(&X_REQUEST_ID)
                .filter(sane)
                .cloned()
                .unwrap_or_else(|| {
                    let id = Uuid::now_v7().hyphenated().to_string();
                    HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
                }),
        )
    }
}

/// With problems for routes and methods that are not there.
pub fn with_fallbacks(router: Router) -> Router {
    router
        .fallback(async || ApiError::not_found("route"))
        .method_not_allowed_fallback(async || {
            ApiError::new(
                super::Code::MethodNotAllowed,
                "the route does not take this method",
            )
        })
}

/// Serves `router` until the lifecycle stops. Ends with an error only if the listener breaks for good.
pub async fn serve(listener: TcpListener, router: Router, lifecycle: Lifecycle) -> anyhow::Result<()> {
    serve_within(Bounds::default(), listener, router, lifecycle).await
}

/// As [`serve`], within these bounds.
pub async fn serve_within(
    bounds: Bounds,
    listener: TcpListener,
    router: Router,
    lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    let places = Places::of(&bounds);
    let mut spare = Spare::keep();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .half_close(false);
    loop {
        let accepted = tokio::select! {
            () = lifecycle.soft.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, Peer(peer.ip().to_canonical())),
            Err(error) => {
                // Out of file descriptors, or a connection that was reset before it was taken: neither ends the server.
                // Who waits is turned away; where that cannot be done either, the pause keeps it from spinning.
                tracing::warn!(%error, "a connection could not be accepted");
                if !spare.turn_away(&listener).await {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                continue;
            }
        };
        // Small answers must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        match places.take(peer.0) {
            Ok(place) => serve_one(&builder, bounds.stall, place, stream, peer, &router, &lifecycle),
            Err(why) => places.turn_away(why, stream, peer, &router, &lifecycle.tasks),
        }
    }
    Ok(())
}

/// Serves a connection, in a task of its own.
fn serve_one(
    builder: &http1::Builder,
    stall: Duration,
    place: Place,
    stream: TcpStream,
    peer: Peer,
    router: &Router,
    lifecycle: &Lifecycle,
) {
    let (router, tasks) = (router.clone(), lifecycle.tasks.clone());
    let service = service_fn(move |request| envelope(router.clone(), peer, Lingering::of(request, &tasks)));
    let stream = TokioIo::new(Stalling::new(Heard::new(stream), stall, LEAST));
    let mut connection = Box::pin(builder.serve_connection(stream, service));
    let (soft, hard) = (lifecycle.soft.clone(), lifecycle.hard.clone());
    lifecycle.tasks.spawn(async move {
        let _place = place;
        let served = tokio::select! {
            served = &mut connection => served,
            () = hard.cancelled() => return,
            () = soft.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    served = &mut connection => served,
                    () = hard.cancelled() => return,
                }
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection broke");
        }
    });
}

pub(super) async fn envelope(
    mut router: Router,
    peer: Peer,
    request: Request<Lingering>,
) -> Result<Response<Body>, Infallible> {
    let request_id = RequestId::of(&request);
    let compatible = request.uri().path().starts_with("/api/");
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(request_id.clone());
    request.extensions_mut().insert(peer);
    let answered = AssertUnwindSafe(router.call(request)).catch_unwind().await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => axum::response::IntoResponse::into_response(ApiError::internal(&"a handler panicked")),
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let headers = std::mem::take(response.headers_mut());
        let code = error.code();
        tracing::debug!(request.id = ?request_id.0, code = code.as_str(), detail = error.detail(), "a request was refused");
        response = error.into_http(&request_id.0, compatible);
        // What the router added stays: `allow` on a 405.
        for (name, value) in &headers {
            if name == http::header::ALLOW {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    response.headers_mut().insert(X_REQUEST_ID.clone(), request_id.0);
    Ok(response)
}

#[cfg(test)]
mod tests;
