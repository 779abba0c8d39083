//! Request bodies: JSON, whole, within a cap and a deadline.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;

use super::{ApiError, Code};
use crate::event::MAX_PAYLOAD_BYTES;

/// The most bytes of a body: the largest payload and room for what is around it.
pub const MAX_BODY_BYTES: usize = MAX_PAYLOAD_BYTES + 64 * 1024;
/// How long a body may take, in all.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A whole body of type `application/json`. An empty one is let through whatever its type: routes without required
/// fields take it as `{}`.
#[derive(Debug)]
pub struct JsonBody(pub Bytes);

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        check_encoding(&parts.headers)?;
        let json = is_json(&parts.headers);
        let announced = http_body::Body::size_hint(&body);
        if announced.lower() > MAX_BODY_BYTES as u64 {
            return Err(too_large());
        }
        if !json && announced.exact() != Some(0) {
            return Err(ApiError::new(
                Code::UnsupportedMediaType,
                "the content-type must be application/json",
            ));
        }
        let capacity = usize::try_from(announced.exact().unwrap_or(0)).unwrap_or(0);
        let read = read_to_cap(body, capacity);
        tokio::time::timeout(BODY_TIMEOUT, read)
            .await
            .unwrap_or_else(|_| {
                Err(ApiError::new(
                    Code::RequestTimeout,
                    "the body must be sent within 30 seconds",
                ))
            })
    }
}

async fn read_to_cap(mut body: axum::body::Body, capacity: usize) -> Result<JsonBody, ApiError> {
    let mut whole: Option<Bytes> = None;
    let mut gathered = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::new(Code::InvalidJson, "the body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.as_ref().map_or(0, Bytes::len) + gathered.len() + data.len() > MAX_BODY_BYTES {
            return Err(too_large());
        }
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
    Ok(JsonBody(whole.unwrap_or_else(|| gathered.freeze())))
}

fn too_large() -> ApiError {
    ApiError::new(
        Code::PayloadTooLarge,
        "the body must be at most 327680 bytes, its payload at most 262144",
    )
}

/// Compressed bodies are refused: what is measured and signed is what was sent.
fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(ApiError::new(
            Code::UnsupportedMediaType,
            "the body must not be compressed (content-encoding)",
        )),
        _ => Ok(()),
    }
}

/// `application/json`, with any parameters but a charset other than UTF-8.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let mut parts = value.split(';');
    let essence = parts.next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        && parts.all(|parameter| match parameter.trim().split_once('=') {
            Some((name, charset)) if name.eq_ignore_ascii_case("charset") => {
                charset.trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        })
}
