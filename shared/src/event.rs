//! An event as producers post it, and as it travels in frames and is stored.

use std::fmt;

use bytes::Bytes;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::{EventId, Invalid, OrganizationId, Timestamp, announcement, invalid};

/// The most bytes of a payload, as sent.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;
/// The most levels of arrays and objects in a payload.
pub const MAX_PAYLOAD_DEPTH: usize = 64;
/// The most characters of a deduplication key.
const MAX_DEDUP_ID: usize = 256;
/// What the keys of CloudEvents begin with, and no other.
const CLOUD_EVENT: &str = "cloudevent:";

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

text_newtype! {
    /// What kind of event it is: 1 to 256 visible ASCII characters without `*`, quotes or spaces; dots part it into
    /// segments. The prefix `triggers.` is the system's own.
    EventType
}
text_newtype! {
    /// The producer's key for deduplication within its organization: 1 to 256 characters. The prefix `cloudevent:` is for
    /// those of CloudEvents.
    DedupId
}
text_newtype! {
    /// Where the producer says the event is from: at most 256 characters.
    Source
}
text_newtype! {
    /// A W3C `traceparent`, kept only if it is well formed.
    TraceParent
}

impl EventType {
    /// A type that a producer may post.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let event_type = Self::parse_any(text)?;
        if event_type.is_system() {
            return Err(Invalid::new(
                "must not begin with `triggers.`, which is the system's own",
            ));
        }
        Ok(event_type)
    }

    /// Whether it is of the system's own events: those are for whoever asks for them by name, and beget no others.
    pub fn is_system(&self) -> bool {
        self.0.starts_with(announcement::SYSTEM)
    }

    /// A type that a producer or the system itself may post.
    pub fn parse_any(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > 256 {
            return Err(Invalid::new("must be 1 to 256 characters"));
        }
        if text
            .bytes()
            .any(|b| !b.is_ascii_graphic() || matches!(b, b'*' | b'"' | b'\'' | b'`'))
        {
            return Err(Invalid::new(
                "must be visible ASCII characters without `*`, quotes or spaces",
            ));
        }
        Ok(Self(text.into()))
    }
}

impl DedupId {
    /// A key that a producer may post.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let key = Self::parse_any(text)?;
        if text.starts_with(CLOUD_EVENT) {
            return Err(Invalid::new(
                "must not begin with `cloudevent:`, which is for CloudEvents",
            ));
        }
        Ok(key)
    }

    /// A key that a producer may post, or that a CloudEvent has.
    pub fn parse_any(text: &str) -> Result<Self, Invalid> {
        invalid::text(text, 1, MAX_DEDUP_ID).map(|text| Self(text.into()))
    }

    /// The key of a CloudEvent, which its `source` and `id` are together ([CloudEvents 1.0, `id`][id]): the two with a space
    /// between, which is unambiguous because a source has none, or their hash if that is too long.
    ///
    /// [id]: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#id
    pub fn of_cloud_event(source: &str, id: &str) -> Result<Self, Invalid> {
        if source.contains(char::is_whitespace) {
            return Err(Invalid::new("must be a URI reference, without spaces"));
        }
        let readable = format!("{CLOUD_EVENT}{source} {id}");
        if readable.chars().count() <= MAX_DEDUP_ID {
            return Self::parse_any(&readable);
        }
        let hash = Sha256::digest(&readable[CLOUD_EVENT.len()..]);
        let mut key = format!("{CLOUD_EVENT}sha256:");
        for byte in hash {
            let _: fmt::Result = fmt::Write::write_fmt(&mut key, format_args!("{byte:02x}"));
        }
        Self::parse_any(&key)
    }
}

impl Source {
    /// Checks the rule.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        invalid::text(text, 0, 256).map(|text| Self(text.into()))
    }
}

impl TraceParent {
    /// The `traceparent` header's value if it is of version 00 and names a trace; anything else is as if it were not
    /// there ([Trace Context, section 3.2](https://www.w3.org/TR/trace-context/#traceparent-header)).
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let named = |part: &str| hex(part) && part.bytes().any(|b| b != b'0');
        if text.len() != 55 || !text.is_ascii() {
            return None;
        }
        let mut parts = text.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let shaped = version == "00" && trace.len() == 32 && parent.len() == 16 && flags.len() == 2;
        (shaped && named(trace) && named(parent) && hex(flags)).then(|| Self(text.into()))
    }

    /// That of a span: its trace's id and its own, neither of them zero, and its flags.
    pub fn of(trace: [u8; 16], span: [u8; 8], flags: u8) -> Self {
        let (trace, span) = (u128::from_be_bytes(trace), u64::from_be_bytes(span));
        Self(format!("00-{trace:032x}-{span:016x}-{flags:02x}").into())
    }
}

/// Any JSON value, as it was sent, byte for byte: at most [`MAX_PAYLOAD_BYTES`] and [`MAX_PAYLOAD_DEPTH`].
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Bytes);

/// Why a payload is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PayloadError {
    /// More than [`MAX_PAYLOAD_BYTES`].
    #[error("must be at most 262144 bytes as sent")]
    TooLarge,
    /// More than [`MAX_PAYLOAD_DEPTH`].
    #[error("must be at most 64 levels deep")]
    TooDeep,
}

impl Payload {
    /// Checks size and depth; that it is JSON the raw value guarantees. Copies the bytes.
    pub fn parse(raw: &RawValue) -> Result<Self, PayloadError> {
        check(raw.get()).map(|text| Self(Bytes::copy_from_slice(text)))
    }

    /// As [`Payload::parse`], of a value that was read from `body`: copies nothing, and holds on to the body.
    pub fn within(body: &Bytes, raw: &RawValue) -> Result<Self, PayloadError> {
        let text = check(raw.get())?;
        let inside = body.as_ptr_range();
        Ok(if inside.contains(&text.as_ptr()) {
            Self(body.slice_ref(text))
        } else {
            Self(Bytes::copy_from_slice(text))
        })
    }

    /// A text, as a JSON string.
    pub fn text(text: &str) -> Result<Self, PayloadError> {
        // Not written out if it is too large in any case: escapes only make it longer.
        if text.len() + 2 > MAX_PAYLOAD_BYTES {
            return Err(PayloadError::TooLarge);
        }
        let json = serde_json::Value::from(text).to_string();
        check(&json)?;
        Ok(Self(json.into()))
    }

    /// No payload: `null`.
    pub fn null() -> Self {
        Self(Bytes::from_static(b"null"))
    }

    /// What a frame or the store gives back: it was checked on its way in. Invalid UTF-8 is refused all the same,
    /// since the store and the signature count on it.
    pub fn from_trusted(bytes: Bytes) -> Result<Self, Invalid> {
        match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(Self(bytes)),
            Err(_) => Err(Invalid::new("must be UTF-8")),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        // UTF-8 by construction; an empty text would be seen at once by whoever parses it.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// A copy that does not hold on to the frame that it came in.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

fn check(json: &str) -> Result<&[u8], PayloadError> {
    let text = json.as_bytes();
    if text.len() > MAX_PAYLOAD_BYTES {
        return Err(PayloadError::TooLarge);
    }
    if deeper_than(text, MAX_PAYLOAD_DEPTH) {
        return Err(PayloadError::TooDeep);
    }
    Ok(text)
}

/// Whether a valid JSON text nests arrays and objects deeper than `limit`.
fn deeper_than(json: &[u8], limit: usize) -> bool {
    let (mut depth, mut rest) = (0usize, json);
    while let Some(at) = rest
        .iter()
        .position(|b| matches!(b, b'"' | b'[' | b'{' | b']' | b'}'))
    {
        let byte = rest[at];
        rest = &rest[at + 1..];
        match byte {
            b'[' | b'{' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => loop {
                let Some(end) = memchr::memchr2(b'"', b'\\', rest) else {
                    return false;
                };
                let escaped = rest[end] == b'\\';
                rest = rest.get(end + 1 + usize::from(escaped)..).unwrap_or_default();
                if !escaped {
                    break;
                }
            },
        }
    }
    false
}

/// A short hash of what a repeat must share with the first to be the same: type and payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest16(pub [u8; 16]);

impl Digest16 {
    /// Of an event's type and payload.
    pub fn of(event_type: &EventType, payload: &Payload) -> Self {
        let mut hash = Sha256::new();
        hash.update(event_type.as_str());
        hash.update([0]);
        hash.update(payload.as_bytes());
        let full: [u8; 32] = hash.finalize().into();
        let mut short = [0; 16];
        short.copy_from_slice(&full[..16]);
        Self(short)
    }
}

/// An event that passed the front, as a frame carries it to intake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedEvent {
    /// The id that the producer was answered, unless it has [former ids](Self::former_ids).
    pub id: EventId,
    /// Ids that it had before, the first of which the producer was answered: it was put back under another.
    pub former_ids: Vec<EventId>,
    /// Whose it is.
    pub organization: OrganizationId,
    /// Its type.
    pub event_type: EventType,
    /// The producer's key for deduplication.
    pub dedup_id: Option<DedupId>,
    /// When the front took it, by the front's clock.
    pub received_at: Timestamp,
    /// When the producer says that it happened.
    pub occurred_at: Option<Timestamp>,
    /// Where the producer says that it is from.
    pub source: Option<Source>,
    /// The trace that it is part of.
    pub trace: Option<TraceParent>,
    /// Its payload.
    pub payload: Payload,
}

/// A note that a repeat was answered by the front itself: nothing to store but that it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    /// An id of the note's own, so that a note delivered twice counts once.
    pub id: EventId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// The first event, whose id was answered.
    pub first: EventId,
    /// Whether type or payload were others than the first's.
    pub differs: bool,
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An event to store and deliver.
    Event(AcceptedEvent),
    /// A repeat to count.
    Repeat(Repeat),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(json: &str) -> Result<Payload, PayloadError> {
        Payload::parse(serde_json::from_str(json).expect("json"))
    }

    #[test]
    fn depth_is_counted_outside_strings_only() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(payload(&nested(64)).is_ok());
        assert_eq!(payload(&nested(65)), Err(PayloadError::TooDeep));
        let quoted = format!(r#"{{"a":"\\\"{}"}}"#, "[".repeat(100));
        assert!(payload(&quoted).is_ok());
        let wide = format!("[{}]", vec![nested(63); 100].join(","));
        assert!(payload(&wide).is_ok());
    }

    #[test]
    fn size_is_that_of_the_text() {
        let text = |bytes: usize| format!("\"{}\"", "a".repeat(bytes - 2));
        assert!(payload(&text(MAX_PAYLOAD_BYTES)).is_ok());
        assert_eq!(payload(&text(MAX_PAYLOAD_BYTES + 1)), Err(PayloadError::TooLarge));
    }

    #[test]
    fn a_payload_within_a_body_is_not_copied() {
        let body = Bytes::from_static(br#" {"a": 1.0} "#);
        let raw: &RawValue = serde_json::from_slice(&body).unwrap();
        let payload = Payload::within(&body, raw).unwrap();
        assert_eq!(payload.as_str(), r#"{"a": 1.0}"#);
        assert_eq!(payload.as_bytes().as_ptr(), body[1..].as_ptr());
        let elsewhere = Payload::within(&Bytes::new(), raw).unwrap();
        assert_eq!(elsewhere, payload);
    }

    #[test]
    fn a_text_is_a_json_string() {
        assert_eq!(Payload::text("a\"b\n").unwrap().as_str(), r#""a\"b\n""#);
        let escapes = "\n".repeat(MAX_PAYLOAD_BYTES / 2);
        assert_eq!(Payload::text(&escapes), Err(PayloadError::TooLarge));
        assert_eq!(Payload::null().as_str(), "null");
    }

    #[test]
    fn keys_of_cloud_events_are_no_others() {
        let key = |source: &str, id: &str| DedupId::of_cloud_event(source, id).unwrap();
        assert_eq!(key("/orders", "7 8").as_str(), "cloudevent:/orders 7 8");
        assert_ne!(key("/orders", "7"), key("/order", "s7"));
        assert!(DedupId::parse("cloudevent:/orders 7").is_err());
        assert!(DedupId::of_cloud_event("/or ders", "7").is_err());
        let long = key(&"s".repeat(256), "7");
        assert!(long.as_str().starts_with("cloudevent:sha256:"), "{long}");
        assert_ne!(long, key(&"s".repeat(255), "s7"));
    }

    proptest! {
        #[test]
        fn keys_of_cloud_events_fit(source in "[!-~äß]{1,256}", id in "\\PC{1,256}", other in "\\PC{1,256}") {
            let key = DedupId::of_cloud_event(&source, &id).unwrap();
            prop_assert!(DedupId::parse(key.as_str()).is_err());
            prop_assert_eq!(&DedupId::parse_any(key.as_str()).unwrap(), &key);
            prop_assert_eq!(key == DedupId::of_cloud_event(&source, &other).unwrap(), id == other);
        }

        #[test]
        fn types_hold_their_rule(text in ".{0,300}") {
            if let Ok(event_type) = EventType::parse(&text) {
                prop_assert_eq!(event_type.as_str(), text.as_str());
                prop_assert!((1..=256).contains(&text.len()));
                prop_assert!(!text.contains(['*', ' ', '"', '\'', '`']) && !text.starts_with("triggers."));
            }
        }

        #[test]
        fn dedup_ids_hold_their_rule(text in "\\PC{0,300}") {
            let characters = text.chars().count();
            let fits = (1..=256).contains(&characters) && !text.starts_with("cloudevent:");
            prop_assert_eq!(DedupId::parse(&text).is_ok(), fits);
        }
    }

    #[test]
    fn trace_parents() {
        assert!(TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").is_some());
        for bad in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0é",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }
}
