//! Request bodies: whole, within a cap and a deadline, never compressed. What is larger than a connection's own buffer takes
//! [room](Room), of which there is so much for all and for each organization.

use std::{marker::PhantomData, sync::Arc, time::Duration};

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
    room::{Held, Room, Whose},
};
use crate::event::MAX_PAYLOAD_BYTES;

/// The most bytes of a body: the largest payload and room for what is around it.
pub const MAX_BODY_BYTES: usize = MAX_PAYLOAD_BYTES + 64 * 1024;
/// How long a body may take, in all.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The most bytes of a body that takes no room: as much as a connection may keep of a client anyway.
pub const SMALL: usize = 8 * 1024;

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

/// What whoever finds no room for a body is told.
pub const NO_ROOM: &str = "more bodies are under way than there is room for; try again";

/// What serves routes that take bodies: it has room for them.
pub trait Bodies {
    /// The room.
    fn bodies(&self) -> &Room;
}

impl<T: Bodies> Bodies for Arc<T> {
    fn bodies(&self) -> &Room {
        (**self).bodies()
    }
}

/// Whose a request is, among its extensions; whoever knows it says so before the body is read.
#[derive(Debug, Clone, Copy)]
pub struct OfOrganization(pub crate::OrganizationId);

/// A whole body of type `application/json`, of the shape `B`, with the room that it takes. An empty one is let through whatever
/// its type: routes without required fields take it as `{}`.
#[derive(Debug)]
pub struct JsonBody<B = ()> {
    /// Its bytes.
    pub bytes: Bytes,
    held: Held,
    shape: PhantomData<fn() -> B>,
}

impl<B> JsonBody<B> {
    /// The body of a request of theirs.
    pub async fn read(request: Request, room: &Room, whose: Whose) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        refuse_compressed(&parts.headers)?;
        refuse_larger(&body, CAP)?;
        let json = MediaType::of(&parts.headers).is_some_and(|media| media.is("application/json"));
        if !json && http_body::Body::size_hint(&body).exact() != Some(0) {
            return Err(unsupported("the content-type must be application/json"));
        }
        let (bytes, held) = read_within(body, room, whose).await?;
        Ok(Self {
            bytes,
            held,
            shape: PhantomData,
        })
    }

    /// The room that it takes, to be held for as long as any of its bytes.
    pub fn into_held(self) -> Held {
        self.held
    }
}

impl<B: JsonSchema + 'static> JsonBody<B> {
    /// Its fields, which are those of `B`.
    pub fn fields(&self, unknown: Unknown) -> Result<Fields<'_>, ApiError> {
        Ok(Fields::parse(&self.bytes, unknown)?.documented::<B>())
    }
}

impl<B: JsonSchema> Input for JsonBody<B> {
    fn describe(operation: &mut Operation<'_>) {
        operation.body::<B>("application/json");
    }
}

impl<S: Bodies + Sync, B> FromRequest<S> for JsonBody<B> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let whose = request.extensions().get::<OfOrganization>();
        let whose = whose.map(|OfOrganization(organization)| *organization);
        Self::read(request, state.bodies(), whose).await
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

/// Reads a body of any route but those of batches to its end, within room that it takes: for as much as it announces, or as it
/// comes, if it does not say.
pub async fn read_within(body: Body, room: &Room, whose: Whose) -> Result<(Bytes, Held), ApiError> {
    refuse_larger(&body, CAP)?;
    let mut held = Held::default();
    let announced = http_body::Body::size_hint(&body).exact();
    let announced = announced.and_then(|bytes| usize::try_from(bytes).ok());
    if let Some(bytes) = announced.filter(|bytes| *bytes > SMALL) {
        room.grow(whose, &mut held, bytes)?;
    }
    let (mut arrived, mut taken) = (0, 0);
    let body = read(body, CAP, |bytes| {
        arrived += bytes;
        if announced.is_none() && arrived > SMALL {
            room.grow(whose, &mut held, arrived - taken)?;
            taken = arrived;
        }
        Ok(())
    })
    .await?;
    Ok((body, held))
}

async fn read_to_cap(
    mut body: Body,
    cap: Cap,
    mut admit: impl FnMut(usize) -> Result<(), ApiError>,
) -> Result<Bytes, ApiError> {
    // What is announced is only a promise: no more is made ready for it than has come so far, once more.
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
                    let arrived = first.len() + data.len();
                    gathered.reserve(capacity.clamp(arrived, 2 * arrived));
                    gathered.extend_from_slice(&first);
                }
                gathered.extend_from_slice(&data);
            }
        }
    }
    Ok(whole.unwrap_or_else(|| gathered.freeze()))
}
