//! The span of a request.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use http::HeaderValue;

use super::{Kind, start};
use crate::TraceParent;

const TRACEPARENT: &str = "traceparent";

/// Traces a request that posts events, below the trace of whoever makes it. From here on the request is part of its own
/// span: that is what its header says to all that read it.
pub async fn traced(mut request: Request, next: Next) -> Response {
    let parent = request.headers().get(TRACEPARENT);
    let parent = parent.and_then(|value| TraceParent::parse(value.to_str().ok()?));
    let Some(mut span) = start(Kind::Server, "POST", parent.as_ref()) else {
        return next.run(request).await;
    };
    if let Some(route) = request.extensions().get::<MatchedPath>() {
        span.name(format!("POST {}", route.as_str()));
        span.set("http.route", route.as_str().to_owned());
    }
    span.set("http.request.method", "POST");
    if let Ok(context) = HeaderValue::from_str(span.context().as_str()) {
        request.headers_mut().insert(TRACEPARENT, context);
    }
    let response = next.run(request).await;
    let status = response.status();
    span.set("http.response.status_code", i64::from(status.as_u16()));
    // What the producer did wrong is no failure of this side.
    if status.is_server_error() {
        span.fail(if status == http::StatusCode::SERVICE_UNAVAILABLE { "503" } else { "500" });
    }
    response
}
