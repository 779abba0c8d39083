//! CloudEvents 1.0 over HTTP: structured (the event is the body), binary (its attributes are headers, its data is the body),
//! and batched ([`crate::batch`]).
//!
//! By the [JSON format](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md) and the
//! [HTTP binding](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md). `source` and `id` together are
//! the deduplication key, `time` is when the event occurred, the extension `traceparent` is its trace, and the data is the
//! payload: JSON as it is, text as a string, and anything else as a string of base64. Other attributes are taken and not
//! kept.

use std::str::FromStr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;
use shared::{
    DedupId, EventType, Invalid, Payload, Source, Timestamp, TraceParent,
    event::PayloadError,
    http::{
        ApiError, Code, FieldError, Fields, Unknown,
        body::{MediaType, unsupported},
        fields::{self, Broken, malformed},
    },
    invalid,
};

use crate::posted::{self, Posted};

/// What the types of CloudEvents in any format begin with.
const FORMATS: &str = "application/cloudevents";
const STRUCTURED: &str = "application/cloudevents+json";
const BATCHED: &str = "application/cloudevents-batch+json";
/// The most characters of an `id` and of a `source`.
const MAX_TEXT: usize = 256;

/// How an event is written in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As a JSON object of ours.
    Plain,
    /// As a CloudEvent that is the body.
    Structured,
    /// As a CloudEvent whose attributes are headers.
    Binary,
}

impl Form {
    /// By the head of a request ([HTTP binding, section 3](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md#3-http-message-mapping)):
    /// first the content type counts, then the attributes that every CloudEvent has.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        match MediaType::of(headers) {
            Some(media) if media.is(STRUCTURED) => Ok(Self::Structured),
            Some(media) if media.essence().starts_with(FORMATS) => Err(unsupported(
                "CloudEvents are taken as application/cloudevents+json or application/cloudevents-batch+json, in UTF-8",
            )),
            _ if REQUIRED.iter().any(|name| headers.contains_key(*name)) => Ok(Self::Binary),
            _ => Ok(Self::Plain),
        }
    }
}

/// Whether a request is a batch of CloudEvents.
pub(crate) fn is_batch(headers: &HeaderMap) -> bool {
    MediaType::of(headers).is_some_and(|media| media.is(BATCHED))
}

/// Reads an event in the JSON format, which is `what` of `body`; `trace` is that of its request.
pub(crate) fn structured(
    what: &'static str,
    text: &[u8],
    body: &Bytes,
    trace: Option<TraceParent>,
) -> Result<Posted, ApiError> {
    let mut fields = Fields::parse_part(what, text, Unknown::Ignore)?;
    let version = fields.required("specversion", fields::string(version));
    let event_type = fields.required("type", fields::string(EventType::parse));
    let source = fields.required("source", fields::string(source));
    let id = fields.required("id", fields::string(id));
    let occurred_at = fields.optional("time", fields::string(Timestamp::from_str));
    // What needs escapes is none.
    let own = fields
        .take("traceparent")
        .and_then(|raw| TraceParent::parse(raw.get().trim_matches('"')));
    let data = fields.optional("data", |raw| Payload::within(body, raw));
    let encoded = fields.optional("data_base64", |raw| base64(body, raw));
    let payload = match (data, encoded) {
        (Some(_), Some(_)) => {
            fields.refuse(FieldError::at(&["data_base64"], "must not be given beside data"));
            None
        }
        (data, encoded) => Some(data.or(encoded).unwrap_or_else(Payload::null)),
    };
    let key = source.as_ref().zip(id).and_then(|(source, id)| {
        DedupId::of_cloud_event(source.as_str(), &id)
            .map_err(|invalid| fields.refuse(FieldError::at(&["id"], invalid.rule())))
            .ok()
    });
    let whole = version.zip(event_type).zip(source).zip(key).zip(payload);
    let (((((), event_type), source), key), payload) = fields.finish(whole)?;
    Ok(Posted {
        event_type,
        payload,
        dedup_id: Some(key),
        occurred_at,
        source: Some(source),
        trace: own.or(trace),
    })
}

/// Reads an event whose attributes are headers.
pub(crate) fn binary(headers: &HeaderMap, body: &Bytes) -> Result<Posted, ApiError> {
    let mut attributes = Attributes {
        headers,
        errors: Vec::new(),
    };
    let version = attributes.required("ce-specversion", version);
    let event_type = attributes.required("ce-type", EventType::parse);
    let source = attributes.required("ce-source", source);
    let id = attributes.required("ce-id", id);
    let occurred_at = attributes.optional("ce-time", Timestamp::from_str);
    let own = headers
        .get("ce-traceparent")
        .and_then(|value| TraceParent::parse(value.to_str().ok()?));
    let key = source.as_ref().zip(id).and_then(|(source, id)| {
        DedupId::of_cloud_event(source.as_str(), &id)
            .map_err(|invalid| attributes.refuse("ce-id", &invalid))
            .ok()
    });
    let whole = version.zip(event_type).zip(source).zip(key);
    let ((((), event_type), source), key) = attributes.finish(whole)?;
    Ok(Posted {
        event_type,
        payload: data(headers, body)?,
        dedup_id: Some(key),
        occurred_at,
        source: Some(source),
        trace: own.or_else(|| posted::trace(headers)),
    })
}

fn version(text: &str) -> Result<(), Invalid> {
    match text {
        "1.0" => Ok(()),
        _ => Err(Invalid::new("must be 1.0")),
    }
}

fn source(text: &str) -> Result<Source, Invalid> {
    let text = invalid::text(text, 1, MAX_TEXT)?;
    if text.contains(char::is_whitespace) {
        return Err(Invalid::new("must be a URI reference, without spaces"));
    }
    Source::parse(text)
}

fn id(text: &str) -> Result<String, Invalid> {
    invalid::text(text, 1, MAX_TEXT).map(str::to_owned)
}

/// Binary data in the JSON format: the string stays as it is.
fn base64(body: &Bytes, raw: &RawValue) -> Result<Payload, Broken> {
    let payload = Payload::within(body, raw)?;
    let check = |text: &str| match STANDARD.decode(text) {
        Ok(_) => Ok(()),
        Err(_) => Err(Invalid::new("must be base64")),
    };
    fields::string(check)(raw)?;
    Ok(payload)
}

/// The data of an event whose attributes are headers. Without a content type it is taken to be JSON, as in the JSON format.
fn data(headers: &HeaderMap, body: &Bytes) -> Result<Payload, ApiError> {
    let media = MediaType::of(headers);
    let essence = media.as_ref().map_or("application/json", MediaType::essence);
    let is_json = essence == "application/json" || essence.ends_with("+json");
    let is_text = essence.starts_with("text/");
    if (is_json || is_text) && !media.as_ref().is_none_or(MediaType::is_utf8) {
        return Err(unsupported("the data must be in UTF-8"));
    }
    let payload = if body.is_empty() && !is_text {
        Ok(Payload::null())
    } else if is_json {
        let raw = serde_json::from_slice(body).map_err(|error| malformed("the data", "JSON", &error))?;
        Payload::within(body, raw)
    } else if is_text {
        let text = std::str::from_utf8(body)
            .map_err(|_| ApiError::new(Code::InvalidRequest, "the data must be in UTF-8"))?;
        Payload::text(text)
    } else {
        Payload::text(&STANDARD.encode(body))
    };
    payload.map_err(|error| {
        let code = match error {
            PayloadError::TooLarge => Code::PayloadTooLarge,
            PayloadError::TooDeep => Code::InvalidRequest,
        };
        ApiError::new(code, format!("the data {error}"))
    })
}

/// The attributes that every event has, as headers.
const REQUIRED: [&str; 4] = ["ce-specversion", "ce-type", "ce-source", "ce-id"];

/// Reads attributes from headers, so that every broken rule is named.
struct Attributes<'a> {
    headers: &'a HeaderMap,
    errors: Vec<FieldError>,
}

impl Attributes<'_> {
    fn required<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Option<T> {
        if !self.headers.contains_key(name) {
            self.refuse(name, &Invalid::new("is required"));
            return None;
        }
        self.optional(name, parse)
    }

    fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Option<T> {
        let mut given = self.headers.get_all(name).iter();
        let value = given.next()?;
        let parsed = match given.next() {
            Some(_) => Err(Invalid::new("is given more than once")),
            None => decoded(value).and_then(|text| parse(&text)),
        };
        parsed.map_err(|invalid| self.refuse(name, &invalid)).ok()
    }

    fn refuse(&mut self, name: &'static str, invalid: &Invalid) {
        self.errors.push(FieldError::header(name, invalid.rule()));
    }

    fn finish<T>(self, value: Option<T>) -> Result<T, ApiError> {
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(ApiError::invalid(self.errors)),
        }
    }
}

/// The text that a header's value stands for ([HTTP binding, section 3.1.3.2](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md#3132-http-header-values)):
/// first quotes are taken off, then `%20` and the like are decoded, once. A `%` that begins nothing stays: older libraries
/// do not encode.
fn decoded(value: &HeaderValue) -> Result<String, Invalid> {
    let not_utf8 = || Invalid::new("must be UTF-8");
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| not_utf8())?;
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let unquoted = quoted.map(|text| {
        let mut plain = String::with_capacity(text.len());
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            plain.extend(match character {
                '\\' => characters.next(),
                _ => Some(character),
            });
        }
        plain
    });
    let text = unquoted.as_deref().unwrap_or(text);
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| not_utf8())?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests;
