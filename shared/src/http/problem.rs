//! One error type, which becomes `application/problem+json` ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)).
//!
//! A handler returns an [`ApiError`]; the server's envelope writes it out with the request's id. Internal causes are
//! logged where they happen and never sent.

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::{Scope, filter, queue::PublishError, store::StoreError};

/// The most broken rules that are named: more than any request has fields. Past that a body is noise, and its answer would
/// be larger than it.
const MAX_NAMED: usize = 20;
/// The most characters of a field's name that are shown: more than any of ours has.
const MAX_NAME: usize = 100;

/// What kind of problem it is: the stable `code`, from which status and title follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The body is not JSON, or not of the shape that the route takes.
    InvalidJson,
    /// Fields, parameters or headers break their rules.
    InvalidRequest,
    /// There is no key, or it is not a valid one.
    Unauthorized,
    /// The key lacks the scope.
    Forbidden,
    /// There is no such thing, or it is another organization's.
    NotFound,
    /// The route does not take the method.
    MethodNotAllowed,
    /// The body did not come in time.
    RequestTimeout,
    /// It clashes with what is there.
    Conflict,
    /// The event was posted before.
    Duplicate,
    /// The body, or the payload in it, is too large.
    PayloadTooLarge,
    /// The body is of a type or an encoding that the route does not take.
    UnsupportedMediaType,
    /// The organization's limit is used up.
    RateLimited,
    /// A fault of ours.
    Internal,
    /// The queue or the store is away, or there is too much to do.
    Unavailable,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 14] = [
        Self::InvalidJson,
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::Duplicate,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::RateLimited,
        Self::Internal,
        Self::Unavailable,
    ];

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::Conflict => "conflict",
            Self::Duplicate => "duplicate",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::RateLimited => "rate_limited",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::InvalidJson => StatusCode::BAD_REQUEST,
            Self::InvalidRequest => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict | Self::Duplicate => StatusCode::CONFLICT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The HTTP status on the routes of existing clients, where that is another: a broken rule is a 400 there.
    pub(super) const fn status_in(self, compatible: bool) -> StatusCode {
        match self {
            Self::InvalidRequest if compatible => StatusCode::BAD_REQUEST,
            code => code.status(),
        }
    }

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::InvalidJson => "The body does not parse",
            Self::InvalidRequest => "The request breaks a rule",
            Self::Unauthorized => "A valid API key is needed",
            Self::Forbidden => "The API key may not do this",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::RequestTimeout => "The body took too long",
            Self::Conflict => "Conflict",
            Self::Duplicate => "The event was posted before",
            Self::PayloadTooLarge => "Too large",
            Self::UnsupportedMediaType => "Unsupported media type",
            Self::RateLimited => "Too many events",
            Self::Internal => "Internal error",
            Self::Unavailable => "Unavailable for a moment",
        }
    }
}

/// Where in the request a rule is broken, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    place: Place,
    detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Pointer(String),
    Parameter(String),
    Header(&'static str),
}

impl FieldError {
    /// In the body, by [JSON pointer](https://www.rfc-editor.org/rfc/rfc6901) from the names on the way, each cut after 100
    /// characters.
    pub fn at(path: &[&str], detail: impl Into<String>) -> Self {
        let shown = |name: &str| match name.char_indices().nth(MAX_NAME) {
            Some((end, _)) => format!("{}…", &name[..end]),
            None => name.to_owned(),
        };
        let names: Vec<String> = path
            .iter()
            .map(|name| shown(name).replace('~', "~0").replace('/', "~1"))
            .collect();
        let pointer = format!("/{}", names.join("/"));
        Self {
            place: Place::Pointer(pointer),
            detail: detail.into(),
        }
    }

    /// In the query.
    pub fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            place: Place::Parameter(name.into()),
            detail: detail.into(),
        }
    }

    /// In a header.
    pub fn header(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            place: Place::Header(name),
            detail: detail.into(),
        }
    }

    fn name(&self) -> &str {
        match &self.place {
            Place::Pointer(pointer) => pointer.strip_prefix('/').unwrap_or(pointer),
            Place::Parameter(name) => name,
            Place::Header(name) => name,
        }
    }

    fn to_json(&self) -> Value {
        let (key, place) = match &self.place {
            Place::Pointer(pointer) => ("pointer", pointer.as_str()),
            Place::Parameter(name) => ("parameter", name.as_str()),
            Place::Header(name) => ("header", *name),
        };
        json!({ key: place, "detail": self.detail })
    }
}

/// A problem, on its way to the client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {detail}", .code.as_str())]
pub struct ApiError {
    code: Code,
    detail: Cow<'static, str>,
    fields: Vec<FieldError>,
    retry_after: Option<Duration>,
    /// Boxed because it is most of the size, and handlers return this by value.
    headers: Box<HeaderMap>,
    extra: Map<String, Value>,
}

impl ApiError {
    /// Of a kind, with a sentence for the client.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            fields: Vec::new(),
            retry_after: None,
            headers: Box::default(),
            extra: Map::new(),
        }
    }

    /// 422: these break their rules. The sentence is made of them, and both of the first 20.
    pub fn invalid(mut fields: Vec<FieldError>) -> Self {
        fields.truncate(MAX_NAMED);
        let detail = fields
            .iter()
            .map(|field| format!("{} {}", field.name(), field.detail))
            .collect::<Vec<_>>();
        Self {
            fields,
            ..Self::new(Code::InvalidRequest, detail.join("; "))
        }
    }

    /// 413: a field of the body is too large.
    pub fn field_too_large(field: FieldError) -> Self {
        let detail = format!("{} {}", field.name(), field.detail);
        Self {
            fields: vec![field],
            ..Self::new(Code::PayloadTooLarge, detail)
        }
    }

    /// 401.
    pub fn unauthorized(detail: &'static str) -> Self {
        Self::new(Code::Unauthorized, detail).with_header(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"triggers\""),
        )
    }

    /// 403: the key is valid, and lacks a scope.
    pub fn missing_scope(scope: Scope) -> Self {
        Self::new(
            Code::Forbidden,
            format!("the API key needs the scope {}", scope.as_str()),
        )
    }

    /// 404.
    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no such {what}"))
    }

    /// 429, with how long to wait.
    pub fn rate_limited(detail: impl Into<Cow<'static, str>>, after: Duration) -> Self {
        Self {
            retry_after: Some(after),
            ..Self::new(Code::RateLimited, detail)
        }
    }

    /// 503, with how long to wait.
    pub fn unavailable(detail: &'static str, after: Duration) -> Self {
        Self {
            retry_after: Some(after),
            ..Self::new(Code::Unavailable, detail)
        }
    }

    /// 500. The cause is logged here, and not sent.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed by a fault of ours");
        Self::new(
            Code::Internal,
            "something went wrong on our side; it was logged under this request_id",
        )
    }

    /// With a header on the answer.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With headers on the answer.
    #[must_use]
    pub fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers.extend(headers);
        self
    }

    /// With a further member of the problem object.
    #[must_use]
    pub fn with_member(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// With how long to wait before trying again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Its kind.
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The sentence for the client.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// As one of several results in an answer, whose request's id and headers are all of theirs: how long to wait is a
    /// member.
    pub fn to_result(&self) -> Value {
        let mut problem = self.members(self.code.status());
        problem.extend(self.extra.clone());
        if let Some(after) = self.retry_after {
            problem.insert("retry_after_seconds".into(), whole_seconds(after).into());
        }
        Value::Object(problem)
    }

    fn members(&self, status: StatusCode) -> Map<String, Value> {
        let mut problem = Map::new();
        problem.insert(
            "type".into(),
            format!("urn:triggers:problem:{}", self.code.as_str()).into(),
        );
        problem.insert("title".into(), self.code.title().into());
        problem.insert("status".into(), status.as_u16().into());
        problem.insert("detail".into(), self.detail.as_ref().into());
        problem.insert("code".into(), self.code.as_str().into());
        if !self.fields.is_empty() {
            problem.insert(
                "errors".into(),
                self.fields.iter().map(FieldError::to_json).collect(),
            );
        }
        problem
    }

    /// Writes it out. On the `/api` routes existing clients find `error` and `message` beside the problem's members, and
    /// broken rules are a 400.
    pub(super) fn into_http(self, request_id: &HeaderValue, compatible: bool) -> Response {
        let status = self.code.status_in(compatible);
        let mut problem = self.members(status);
        problem.insert(
            "request_id".into(),
            request_id.to_str().unwrap_or_default().into(),
        );
        if compatible {
            problem.insert("error".into(), self.code.as_str().into());
            problem.insert("message".into(), self.detail.into());
        }
        problem.extend(self.extra);
        let mut response = (status, Value::Object(problem).to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.extend(*self.headers);
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        response
    }
}

/// Rounded up, at least one (RFC 9110, section 10.2.3).
fn whole_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1)
}

impl IntoResponse for ApiError {
    /// Carries the error to the server's envelope, which knows the request's id and writes it out.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_transient() {
            tracing::warn!(%error, "the store is away");
            Self::unavailable("the store cannot be reached; try again", Duration::from_secs(1))
        } else {
            Self::internal(&error)
        }
    }
}

impl From<filter::NotNow> for ApiError {
    fn from(error: filter::NotNow) -> Self {
        tracing::warn!(%error, "a filter is not read");
        Self::unavailable(
            "filters cannot be read at the moment; try again",
            Duration::from_secs(1),
        )
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        let detail = match error {
            PublishError::Overloaded => "more events are under way than the queue takes; try again",
            PublishError::Unavailable => "the queue cannot be reached; try again",
            PublishError::Full => "the queue is full; try again later",
            PublishError::TimedOut => {
                "the queue did not confirm the event in time; it may be accepted all the same: \
                                       try again with the same dedup_id or Idempotency-Key"
            }
        };
        Self::unavailable(detail, Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(error: ApiError, compatible: bool) -> String {
        let response = error.into_http(&HeaderValue::from_static("req-1"), compatible);
        let retry = response.headers().get(header::RETRY_AFTER).cloned();
        let status = response.status();
        let body = futures_util::FutureExt::now_or_never(axum::body::to_bytes(response.into_body(), 10_000));
        let body = body.expect("in memory").expect("a body");
        format!("{status} {retry:?}\n{}", String::from_utf8_lossy(&body))
    }

    #[test]
    fn problems_read_as_documented() {
        let invalid = ApiError::invalid(vec![
            FieldError::at(&["event_types", "0"], "must be 1 to 256 characters"),
            FieldError::at(&["a/b"], "is not a field of this request"),
            FieldError::parameter("limit", "must be a whole number from 1 to 1000"),
        ]);
        insta::assert_snapshot!(shown(invalid.clone(), false));
        insta::assert_snapshot!(shown(invalid, true));
        insta::assert_snapshot!(shown(
            ApiError::unavailable("away", Duration::from_millis(1_200)),
            false
        ));
    }

    #[test]
    fn a_result_is_a_problem_without_a_request() {
        let limited = ApiError::rate_limited("full", Duration::from_millis(600));
        insta::assert_snapshot!(limited.to_result());
        insta::assert_snapshot!(
            ApiError::invalid(vec![FieldError::at(&["type"], "is required")]).to_result()
        );
    }

    #[test]
    fn what_is_named_is_bounded() {
        let name = "é~".repeat(50) + "and more";
        let many = vec![FieldError::at(&[&name], "is not a field of this request"); 1_000];
        let shown = ApiError::invalid(many).to_result().to_string();
        assert!(shown.len() < 20 * 600, "{}", shown.len());
        assert!(shown.contains(&format!("/{}…\"", "é~0".repeat(50))), "{shown}");
    }

    #[test]
    fn every_code_has_a_word_of_its_own() {
        let words: std::collections::HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), Code::ALL.len());
    }
}
