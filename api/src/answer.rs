//! Answers that are not problems: JSON, with a status, and what goes with it.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use shared::http::ApiError;

/// A JSON answer.
pub(crate) struct Answer<T> {
    status: StatusCode,
    headers: HeaderMap,
    body: T,
}

impl<T: Serialize> Answer<T> {
    /// 200.
    pub(crate) fn ok(body: T) -> Self {
        Self::with_status(StatusCode::OK, body)
    }

    /// 201.
    pub(crate) fn created(body: T) -> Self {
        Self::with_status(StatusCode::CREATED, body)
    }

    /// 202.
    pub(crate) fn accepted(body: T) -> Self {
        Self::with_status(StatusCode::ACCEPTED, body)
    }

    fn with_status(status: StatusCode, body: T) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body,
        }
    }

    /// With where the thing is now.
    pub(crate) fn at(mut self, path: &str) -> Self {
        if let Ok(path) = HeaderValue::from_str(path) {
            self.headers.insert(header::LOCATION, path);
        }
        self
    }

    /// It holds a secret: no cache may keep it.
    pub(crate) fn secret(mut self) -> Self {
        self.headers
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let body = match serde_json::to_vec(&self.body) {
            Ok(body) => body,
            Err(error) => return ApiError::internal(&error).into_response(),
        };
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (self.status, json, self.headers, body).into_response()
    }
}

/// 204.
pub(crate) const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;

/// A page of a list.
#[derive(Serialize)]
pub(crate) struct Listing<T> {
    pub(crate) data: Vec<T>,
    pub(crate) next_cursor: Option<String>,
}
