//! The body of a webhook: an envelope around the payload, which is in it byte for byte as it was posted.

use std::{fmt::Write, sync::Arc};

use fluent_uri::UriRef;
use shared::{OrganizationId, subscription::Format};

use crate::lane::EventBody;

/// A body, and what to say that it is.
#[derive(Debug)]
pub struct Envelope {
    /// Its media type.
    pub content_type: &'static str,
    /// The bytes that are signed and sent.
    pub body: Vec<u8>,
}

/// Puts an event into the envelope that its subscription asks for.
pub fn seal(format: Format, id: &str, organization: OrganizationId, event: &Arc<EventBody>) -> Envelope {
    match format {
        Format::Standard => Envelope {
            content_type: "application/json",
            body: standard(id, event),
        },
        Format::CloudEvents => Envelope {
            content_type: "application/cloudevents+json",
            body: cloud_event(id, organization, event),
        },
    }
}

/// `{"id","type","timestamp","data"}`.
fn standard(id: &str, event: &EventBody) -> Vec<u8> {
    let (event_type, timestamp) = (escaped(&event.event_type), time(event));
    around(
        &event.payload,
        format_args!(r#"{{"id":"{id}","type":"{event_type}","timestamp":"{timestamp}","data":"#),
    )
}

/// A `CloudEvent` 1.0 in structured mode, as JSON: `id` and `type` are the event's, `source` is the producer's where it gave
/// one, and else names the organization.
fn cloud_event(id: &str, organization: OrganizationId, event: &EventBody) -> Vec<u8> {
    let (event_type, timestamp) = (escaped(&event.event_type), time(event));
    let source = source(event.source.as_deref(), organization);
    around(
        &event.payload,
        format_args!(
            r#"{{"specversion":"1.0","id":"{id}","source":"{source}","type":"{event_type}","time":"{timestamp}","datacontenttype":"application/json","data":"#
        ),
    )
}

fn around(payload: &[u8], head: std::fmt::Arguments<'_>) -> Vec<u8> {
    let mut text = String::with_capacity(320);
    if text.write_fmt(head).is_err() {
        unreachable!("a string takes all that is written to it");
    }
    let mut body = text.into_bytes();
    body.reserve_exact(payload.len() + 1);
    body.extend_from_slice(payload);
    body.push(b'}');
    body
}

/// A type may hold backslashes, which JSON escapes, and no quotes; ids, times and URIs hold nothing of the kind.
fn escaped(event_type: &str) -> String {
    event_type.replace('\\', "\\\\")
}

fn time(event: &EventBody) -> shared::Timestamp {
    event.occurred_at.unwrap_or(event.received_at)
}

/// The URI-reference that a `CloudEvent` must have as its source. A producer's text that is none becomes one: percent-encoded,
/// as one segment of a path.
fn source(given: Option<&str>, organization: OrganizationId) -> String {
    match given {
        None | Some("") => format!("urn:triggers:organization:{organization}"),
        Some(text) if UriRef::parse(text).is_ok() => text.to_owned(),
        Some(text) => {
            let mut encoded = String::with_capacity(text.len() * 2);
            for byte in text.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    encoded.push(char::from(byte));
                } else if write!(encoded, "%{byte:02X}").is_err() {
                    unreachable!("a string takes all that is written to it");
                }
            }
            encoded
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use shared::{EventId, Timestamp};

    use super::*;

    const PAYLOAD: &str = r#"{"b":1.0,  "a":[1e400,"\u00e9"]}"#;

    fn event(source: Option<&str>) -> Arc<EventBody> {
        Arc::new(EventBody {
            id: EventId::new(),
            event_type: r"odd\type".into(),
            received_at: Timestamp::from_millis(1_700_000_000_123),
            occurred_at: None,
            source: source.map(str::to_owned),
            trace: None,
            payload: Bytes::from_static(PAYLOAD.as_bytes()),
        })
    }

    fn sealed(format: Format, source: Option<&str>) -> String {
        let organization = "org_01h455vb4pex5vsknk084sn02q".parse().unwrap();
        let envelope = seal(format, "evt_1", organization, &event(source));
        String::from_utf8(envelope.body).unwrap()
    }

    #[test]
    fn data_is_byte_for_byte() {
        let body = sealed(Format::Standard, Some("shop"));
        let expected = format!(
            r#"{{"id":"evt_1","type":"odd\\type","timestamp":"2023-11-14T22:13:20.123Z","data":{PAYLOAD}}}"#
        );
        assert_eq!(body, expected);
        assert!(serde_json::from_str::<&RawValue>(&body).is_ok());
    }

    #[test]
    fn a_cloud_event_has_what_it_must() {
        let body = sealed(Format::CloudEvents, None);
        let expected = format!(
            r#"{{"specversion":"1.0","id":"evt_1","source":"urn:triggers:organization:org_01h455vb4pex5vsknk084sn02q","type":"odd\\type","time":"2023-11-14T22:13:20.123Z","datacontenttype":"application/json","data":{PAYLOAD}}}"#
        );
        assert_eq!(body, expected);
        assert!(serde_json::from_str::<&RawValue>(&body).is_ok());
    }

    #[test]
    fn a_source_is_a_reference_or_becomes_one() {
        let organization = OrganizationId::new();
        for uri in [
            "shop",
            "/shops/7",
            "https://example.com/a?b#c",
            "urn:a:b",
            "//host/a",
        ] {
            assert_eq!(source(Some(uri), organization), uri);
        }
        for (text, encoded) in [
            ("My shop: 5 %", "My%20shop%3A%205%20%25"),
            ("a\"b\\c", "a%22b%5Cc"),
            ("ü", "%C3%BC"),
            ("7:x", "7%3Ax"),
        ] {
            assert_eq!(source(Some(text), organization), encoded);
        }
    }

    proptest! {
        #[test]
        fn every_source_is_sound(given in ".{0,64}") {
            let made = source(Some(&given), OrganizationId::new());
            prop_assert!(!made.is_empty() && UriRef::parse(made.as_str()).is_ok());
            let body = sealed(Format::CloudEvents, Some(&given));
            let read: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&body.replace("1e400", "1")).unwrap();
            prop_assert_eq!(read["source"].as_str().unwrap(), if given.is_empty() { read["source"].as_str().unwrap() } else { &made });
        }
    }
}
