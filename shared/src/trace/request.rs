//! The span of a request.

use axum::{
    Router,
    extract::{MatchedPath, Request},
    middleware::{self, Next},
    response::Response,
};
use http::{HeaderValue, StatusCode};
use opentelemetry::trace::SpanKind;

use super::{is_on, start};
use crate::{TraceParent, auth};

const TRACEPARENT: &str = "traceparent";

/// These routes, which post events, with a span for each request. Without a collector they are as they were.
pub fn routes(routes: Router) -> Router {
    if is_on() {
        routes.route_layer(middleware::from_fn(traced))
    } else {
        routes
    }
}

/// Traces a request below the trace of whoever makes it. One without what reads as a key has no span: whoever may send nothing is not
/// to crowd out the spans of those who may. From here on the request is part of its own span: that is what its
/// header says to all that read it.
async fn traced(mut request: Request, next: Next) -> Response {
    if !auth::presents_key(request.headers()) {
        return next.run(request).await;
    }
    let parent = request.headers().get(TRACEPARENT);
    let parent = parent.and_then(|value| TraceParent::parse(value.to_str().ok()?));
    let Some(mut span) = start(SpanKind::Server, "POST", parent.as_ref()) else {
        return next.run(request).await;
    };
    if let Some(route) = request.extensions().get::<MatchedPath>() {
        span.rename(format!("POST {}", route.as_str()));
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
    match status {
        StatusCode::SERVICE_UNAVAILABLE => span.fail("503"),
        _ if status.is_server_error() => span.fail("500"),
        _ => {}
    }
    response
}
