//! Request bodies: whole, within a cap and a deadline, never compressed.

use std::{marker::PhantomData, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, Request},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;

use schemars::JsonSchema;

use super::{
    ApiError, Code, Fields, Unknown,
    openapi::{Input, Operation},
};
use crate::event::MAX_PAYLOAD_BYTES;

/// The most bytes of a body: the largest payload and room for what is around it.
pub const MAX_BODY_BYTES: usize = MAX_PAYLOAD_BYTES + 64 * 1024;
/// How long a body may take, in all.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How large a body may be.
#[derive(Debug, Clone, Copy)]
pub struct Cap {
    /// The most bytes.
    pub bytes: usize,
    /// What whoever sends more is told.
    pub rule: &'static str,
}

/// Of all bodies but those of batches.
pub const CAP: Cap = Cap {
    bytes: MAX_BODY_BYTES,
    rule: "the body must be at most 327680 bytes, its payload at most 262144",
};

/// A whole body of type `application/json`, of the shape `B`. An empty one is let through whatever its type: routes without
/// required fields take it as `{}`.
#[derive(Debug)]
pub struct JsonBody<B = ()>(pub Bytes, PhantomData<fn() -> B>);

impl<B: JsonSchema + 'static> JsonBody<B> {
    /// Its fields, which are those of `B`.
    pub fn fields(&self, unknown: Unknown) -> Result<Fields<'_>, ApiError> {
        Ok(Fields::parse(&self.0, unknown)?.documented::<B>())
    }
}

impl<B: JsonSchema> Input for JsonBody<B> {
    fn describe(operation: &mut Operation<'_>) {
        operation.body::<B>("application/json");
    }
}

impl<S: Sync, B> FromRequest<S> for JsonBody<B> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        refuse_compressed(&parts.headers)?;
        refuse_larger(&body, CAP)?;
        let json = MediaType::of(&parts.headers).is_some_and(|media| media.is("application/json"));
        if !json && http_body::Body::size_hint(&body).exact() != Some(0) {
            return Err(unsupported("the content-type must be application/json"));
        }
        read(body, CAP, |_| Ok(()))
            .await
            .map(|body| Self(body, PhantomData))
    }
}

/// What a `content-type` says: the type in lower case, and its charset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaType {
    essence: String,
    utf8: bool,
}

impl MediaType {
    /// Of a request; `None` if it does not say, or not in words.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let mut parts = value.split(';');
        let essence = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
        let utf8 = parts.all(|parameter| match parameter.trim().split_once('=') {
            Some((name, charset)) if name.eq_ignore_ascii_case("charset") => {
                charset.trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        });
        Some(Self { essence, utf8 })
    }

    /// The type, as `application/json`, without parameters.
    pub fn essence(&self) -> &str {
        &self.essence
    }

    /// Whether it is in UTF-8, which it is unless it names another charset.
    pub fn is_utf8(&self) -> bool {
        self.utf8
    }

    /// Whether it is this type, in UTF-8.
    pub fn is(&self, essence: &str) -> bool {
        self.utf8 && self.essence == essence
    }
}

/// Compressed bodies are refused: what is measured and signed is what was sent.
pub fn refuse_compressed(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(unsupported("the body must not be compressed (content-encoding)"))
        }
        _ => Ok(()),
    }
}

/// Refuses a body that is announced to be larger, before any of it is read.
pub fn refuse_larger(body: &Body, cap: Cap) -> Result<(), ApiError> {
    if http_body::Body::size_hint(body).lower() > cap.bytes as u64 {
        return Err(ApiError::new(Code::PayloadTooLarge, cap.rule));
    }
    Ok(())
}

/// 415.
pub fn unsupported(detail: &'static str) -> ApiError {
    ApiError::new(Code::UnsupportedMediaType, detail)
}

/// Reads a body to its end. `admit` is asked about each piece, by its size, before it is kept.
pub async fn read(
    body: Body,
    cap: Cap,
    admit: impl FnMut(usize) -> Result<(), ApiError>,
) -> Result<Bytes, ApiError> {
    refuse_larger(&body, cap)?;
    let read = tokio::time::timeout(BODY_TIMEOUT, read_to_cap(body, cap, admit));
    read.await.unwrap_or_else(|_| {
        let detail = "the body must be sent within 30 seconds";
        Err(ApiError::new(Code::RequestTimeout, detail))
    })
}

async fn read_to_cap(
    mut body: Body,
    cap: Cap,
    mut admit: impl FnMut(usize) -> Result<(), ApiError>,
) -> Result<Bytes, ApiError> {
    // What is announced is only a promise: no more is made ready for it than for any body.
    let announced = http_body::Body::size_hint(&body).exact().unwrap_or(0);
    let capacity = usize::try_from(announced).map_or(MAX_BODY_BYTES, |bytes| bytes.min(MAX_BODY_BYTES));
    let mut whole: Option<Bytes> = None;
    let mut gathered = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::new(Code::InvalidJson, "the body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.as_ref().map_or(0, Bytes::len) + gathered.len() + data.len() > cap.bytes {
            return Err(ApiError::new(Code::PayloadTooLarge, cap.rule));
        }
        admit(data.len())?;
        // The usual body is one piece, which needs no copy.
        match whole.take() {
            None if gathered.is_empty() => whole = Some(data),
            first => {
                if let Some(first) = first {
                    gathered.reserve(capacity.max(first.len() + data.len()));
                    gathered.extend_from_slice(&first);
                }
                gathered.extend_from_slice(&data);
            }
        }
    }
    Ok(whole.unwrap_or_else(|| gathered.freeze()))
}
