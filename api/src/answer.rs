//! Answers that are not problems: JSON, with a status, and what goes with it.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use shared::http::{
    ApiError,
    openapi::{Operation, Output, Parameter, Parameters},
};

use crate::{listing, room::Held};

/// A JSON answer with this status.
pub(crate) struct Answer<T, const STATUS: u16 = 200> {
    headers: HeaderMap,
    body: T,
    held: Option<Held>,
}

/// 201.
pub(crate) type Made<T> = Answer<T, 201>;
/// 202.
pub(crate) type Taken<T> = Answer<T, 202>;

impl<T: Serialize> Answer<T> {
    /// 200.
    pub(crate) fn ok(body: T) -> Self {
        Self::new(body)
    }
}

impl<T: Serialize> Made<T> {
    /// 201.
    pub(crate) fn created(body: T) -> Self {
        Self::new(body)
    }
}

impl<T: Serialize> Taken<T> {
    /// 202.
    pub(crate) fn accepted(body: T) -> Self {
        Self::new(body)
    }
}

impl<T: JsonSchema, const STATUS: u16> Output for Answer<T, STATUS> {
    fn describe(operation: &mut Operation<'_>) {
        operation.answer::<T>(STATUS);
    }
}

impl<T: Serialize, const STATUS: u16> Answer<T, STATUS> {
    fn new(body: T) -> Self {
        Self {
            headers: HeaderMap::new(),
            body,
            held: None,
        }
    }

    /// With where the thing is now.
    pub(crate) fn at(mut self, path: &str) -> Self {
        if let Ok(path) = HeaderValue::from_str(path) {
            self.headers.insert(header::LOCATION, path);
        }
        self
    }

    /// With the room that was taken for it: it keeps what it weighs until it is sent.
    pub(crate) fn keeping(mut self, held: Held) -> Self {
        self.held = Some(held);
        self
    }

    /// It holds a secret: no cache may keep it.
    pub(crate) fn secret(mut self) -> Self {
        self.headers
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self
    }
}

impl<T: Serialize, const STATUS: u16> IntoResponse for Answer<T, STATUS> {
    fn into_response(self) -> Response {
        let text = match serde_json::to_vec(&self.body) {
            Ok(text) => text,
            Err(error) => return ApiError::internal(&error).into_response(),
        };
        let status = StatusCode::from_u16(STATUS).unwrap_or_default();
        let mut response = match self.held {
            Some(held) => listing::whole(text.into(), held),
            None => (listing::JSON, text).into_response(),
        };
        *response.status_mut() = status;
        response.headers_mut().extend(self.headers);
        response
    }
}

/// 204.
pub(crate) struct NoContent;

impl Output for NoContent {
    fn describe(operation: &mut Operation<'_>) {
        operation.answer_nothing(204);
    }
}

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

/// A page of a list.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ListOf{T}")]
pub(crate) struct Listing<T> {
    pub(crate) data: Vec<T>,
    /// Where the next page begins; `null` is that there is none.
    pub(crate) next_cursor: Option<String>,
}

/// `limit`, of lists.
pub(crate) const LIMIT: Parameter = Parameter::of::<Limit>("limit", "How many are shown; 50 unless given.");
/// `cursor`, of lists.
pub(crate) const CURSOR: Parameter =
    Parameter::of::<Cursor>("cursor", "Where to go on: the `next_cursor` of this same list.");

/// What a list has answered.
pub(crate) struct Cursor;

impl JsonSchema for Cursor {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cursor".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$"})
    }
}

/// 1 to 1,000.
pub(crate) struct Limit;

impl JsonSchema for Limit {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 50})
    }
}

/// The parameters of a list that is shown whole, page by page.
pub(crate) struct Paged;

impl Parameters for Paged {
    const ALL: &'static [Parameter] = &[LIMIT, CURSOR];
}
