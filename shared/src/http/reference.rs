//! `/openapi.json` and `/docs`: what the API is, for programs and for people. Neither needs a key.
//!
//! The document is kept in the tree (`shared/openapi.json`), so that every role serves that of the whole deployment; a test holds it
//! against what the routes say of themselves ([`super::openapi`]).

mod page;

use std::sync::LazyLock;

use axum::{
    Router,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use super::openapi::{Routes, doc, get};

/// The description of the API: an OpenAPI 3.1 document.
pub const DOCUMENT: &str = include_str!("../../openapi.json");

const STYLE: &str = include_str!("reference/docs.css");
const SCRIPT: &str = include_str!("reference/docs.js");

/// Nothing but what this server itself has, and no page around it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// The document without what is for the eye.
static COMPACT: LazyLock<String> = LazyLock::new(|| {
    let document = serde_json::from_str::<serde_json::Value>(DOCUMENT).unwrap_or_default();
    document.to_string()
});

/// The page, which is made once it is asked for.
static PAGE: LazyLock<String> = LazyLock::new(|| page::render(DOCUMENT));

/// The routes.
pub fn routes() -> Router {
    table().into_router()
}

/// The routes, each with its description.
pub fn table<S: Clone + Send + Sync + 'static>() -> Routes<S> {
    Routes::of("Operating")
        .at(
            "/openapi.json",
            get(
                document,
                doc("getOpenApi", "This description, as OpenAPI 3.1").with(|operation| {
                    operation.answer_of(200, "application/json", &json!({"type": "object"}));
                    operation.answer_nothing(304);
                }),
            ),
        )
        .at(
            "/docs",
            get(
                docs,
                doc("getDocs", "This description, for people")
                    .with(|operation| served(operation, "text/html")),
            ),
        )
        .at(
            "/docs/style.css",
            get(
                style,
                doc("getDocsStyle", "How it looks").with(|operation| served(operation, "text/css")),
            ),
        )
        .at(
            "/docs/script.js",
            get(
                script,
                doc("getDocsScript", "Its search").with(|operation| served(operation, "text/javascript")),
            ),
        )
}

fn served(operation: &mut super::openapi::Operation<'_>, content_type: &str) {
    operation.answer_of(200, content_type, &json!({"type": "string"}));
    operation.answer_nothing(304);
}

async fn document(headers: HeaderMap) -> Response {
    file(&headers, "application/json", &COMPACT)
}

async fn docs(headers: HeaderMap) -> Response {
    file(&headers, "text/html; charset=utf-8", &PAGE)
}

async fn style(headers: HeaderMap) -> Response {
    file(&headers, "text/css; charset=utf-8", STYLE)
}

async fn script(headers: HeaderMap) -> Response {
    file(&headers, "text/javascript; charset=utf-8", SCRIPT)
}

/// A file of this version's: kept by whoever asked for it, and asked for again by its tag.
fn file(headers: &HeaderMap, content_type: &'static str, text: &'static str) -> Response {
    let tag = format!("\"{:08x}-{}\"", crc32fast::hash(text.as_bytes()), text.len());
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|tags| {
            tags.split(',')
                .any(|one| one.trim().trim_start_matches("W/") == tag)
        });
    let head = [
        (
            header::ETAG,
            HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\"")),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            HeaderValue::from_static("same-origin"),
        ),
    ];
    if known {
        return (StatusCode::NOT_MODIFIED, head).into_response();
    }
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))];
    (head, kind, text).into_response()
}
