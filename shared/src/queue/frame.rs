//! How accepted events are written into frames, and read back.
//!
//! An entry is a line of JSON (what is known of the event, and the payload's length), a line feed, exactly that many
//! payload bytes, and a line feed: a person can read a frame in the broker's own UI. A frame is entries one after
//! another, so that entries are encoded by whoever accepts them and frames are made by putting them together.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    AcceptedEvent, DedupId, Entry, EventId, EventType, Invalid, OrganizationId, Payload, Repeat, Source,
    Timestamp, TraceParent,
};

/// The content type of a frame's message; it names the version of the format.
pub const CONTENT_TYPE: &str = "application/vnd.triggers.frame.v1";

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    id: EventId,
    org: OrganizationId,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    r#type: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    key: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    received_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    occurred_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    source: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    trace: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeats: Option<EventId>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", default)]
    former_ids: std::borrow::Cow<'a, [EventId]>,
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    differs: bool,
    len: usize,
}

/// Encoded entries of one organization, which says to which of several queues they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Whose they are.
    pub organization: OrganizationId,
    /// What is written of them.
    pub bytes: Bytes,
    /// How many they are.
    pub entries: usize,
}

impl std::ops::Deref for Encoded {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// Writes one entry.
pub fn encode(entry: &Entry) -> Encoded {
    let (organization, payload) = match entry {
        Entry::Event(event) => (event.organization, event.payload.as_bytes().len()),
        Entry::Repeat(repeat) => (repeat.organization, 0),
    };
    let mut bytes = Vec::with_capacity(256 + payload);
    encode_into(&mut bytes, entry);
    Encoded {
        organization,
        bytes: bytes.into(),
        entries: 1,
    }
}

/// Writes an entry behind others.
pub fn encode_into(bytes: &mut Vec<u8>, entry: &Entry) {
    let (line, payload): (Line<'_>, &[u8]) = match entry {
        Entry::Event(event) => (
            Line {
                id: event.id,
                org: event.organization,
                r#type: Some(event.event_type.as_str().into()),
                key: event.dedup_id.as_ref().map(|key| key.as_str().into()),
                received_at: Some(event.received_at),
                occurred_at: event.occurred_at,
                source: event.source.as_ref().map(|source| source.as_str().into()),
                trace: event.trace.as_ref().map(|trace| trace.as_str().into()),
                repeats: None,
                former_ids: event.former_ids.as_slice().into(),
                differs: false,
                len: event.payload.as_bytes().len(),
            },
            event.payload.as_bytes(),
        ),
        Entry::Repeat(repeat) => (
            Line {
                id: repeat.id,
                org: repeat.organization,
                r#type: None,
                key: None,
                received_at: None,
                occurred_at: None,
                source: None,
                trace: None,
                repeats: Some(repeat.first),
                former_ids: std::borrow::Cow::default(),
                differs: repeat.differs,
                len: 0,
            },
            b"",
        ),
    };
    if let Err(error) = serde_json::to_writer(&mut *bytes, &line) {
        unreachable!("a line of strings, ids and numbers is always written: {error}");
    }
    bytes.push(b'\n');
    bytes.extend_from_slice(payload);
    bytes.push(b'\n');
}

/// A frame that cannot be read: where, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the frame: {why}")]
pub struct Unreadable {
    at: usize,
    why: String,
}

/// Reads all entries of a frame. Payloads borrow from it.
pub fn decode(frame: &Bytes) -> Result<Vec<Entry>, Unreadable> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < frame.len() {
        let unreadable = |why: String| Unreadable { at, why };
        let end =
            memchr::memchr(b'\n', &frame[at..]).ok_or_else(|| unreadable("a line without an end".into()))?;
        let line: Line<'_> =
            serde_json::from_slice(&frame[at..at + end]).map_err(|error| unreadable(error.to_string()))?;
        let payload_at = at + end + 1;
        let payload_end = payload_at
            .checked_add(line.len)
            .filter(|end| frame.get(*end) == Some(&b'\n'))
            .ok_or_else(|| unreadable("the payload is not as long as its line says".into()))?;
        let payload = frame.slice(payload_at..payload_end);
        entries.push(entry(line, payload).map_err(|invalid| unreadable(invalid.to_string()))?);
        at = payload_end + 1;
    }
    Ok(entries)
}

fn entry(line: Line<'_>, payload: Bytes) -> Result<Entry, Invalid> {
    if let Some(first) = line.repeats {
        let Line {
            id,
            org: organization,
            differs,
            ..
        } = line;
        return Ok(Entry::Repeat(Repeat {
            id,
            organization,
            first,
            differs,
        }));
    }
    let missing = |name: &'static str| Invalid::new(format!("{name} is missing"));
    Ok(Entry::Event(AcceptedEvent {
        id: line.id,
        former_ids: line.former_ids.into_owned(),
        organization: line.org,
        event_type: EventType::parse_any(&line.r#type.ok_or_else(|| missing("type"))?)?,
        dedup_id: line.key.as_deref().map(DedupId::parse_any).transpose()?,
        received_at: line.received_at.ok_or_else(|| missing("received_at"))?,
        occurred_at: line.occurred_at,
        source: line.source.as_deref().map(Source::parse).transpose()?,
        trace: line.trace.as_deref().and_then(TraceParent::parse),
        payload: Payload::from_trusted(payload)?,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_entry() -> impl Strategy<Value = Entry> {
        let event = (
            "[a-zA-Z0-9._~{}#-]{1,40}".prop_filter("the system's own", |t| !t.starts_with("triggers.")),
            prop::option::of("\\PC{1,40}"),
            prop::option::of("\\PC{0,40}"),
            prop::option::of(0i64..4_000_000_000_000),
            "\\PC{0,200}",
            0..3usize,
        )
            .prop_map(|(event_type, key, source, occurred, text, formers)| {
                Entry::Event(AcceptedEvent {
                    id: EventId::new(),
                    former_ids: (0..formers).map(|_| EventId::new()).collect(),
                    organization: OrganizationId::new(),
                    event_type: EventType::parse(&event_type).unwrap(),
                    dedup_id: key.map(|key| DedupId::parse(&key).unwrap()),
                    received_at: Timestamp::now(),
                    occurred_at: occurred.map(Timestamp::from_millis),
                    source: source.map(|source| Source::parse(&source).unwrap()),
                    trace: TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
                    payload: Payload::from_trusted(format!("\"{text}\n\"").into()).unwrap(),
                })
            });
        let repeat = any::<bool>().prop_map(|differs| {
            let (id, first) = (EventId::new(), EventId::new());
            Entry::Repeat(Repeat {
                id,
                organization: OrganizationId::new(),
                first,
                differs,
            })
        });
        prop_oneof![3 => event, 1 => repeat]
    }

    proptest! {
        #[test]
        fn written_and_read_back(entries in prop::collection::vec(any_entry(), 0..8)) {
            let frame: Vec<u8> = entries.iter().flat_map(|entry| encode(entry).to_vec()).collect();
            prop_assert_eq!(decode(&frame.into()).unwrap(), entries);
        }

        #[test]
        fn a_cut_frame_is_unreadable(entry in any_entry(), cut in 1usize..100) {
            let frame = encode(&entry);
            let cut = frame.slice(..frame.len().saturating_sub(cut).max(1));
            prop_assert!(decode(&cut).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode(&bytes.into());
        }
    }

    #[test]
    fn a_person_can_read_it() {
        let event = AcceptedEvent {
            id: "evt_01h455vb4pex5vsknk084sn02q".parse().unwrap(),
            former_ids: Vec::new(),
            organization: "org_01h455vb4pex5vsknk084sn02r".parse().unwrap(),
            event_type: EventType::parse("user.created").unwrap(),
            dedup_id: Some(DedupId::parse("signup-42").unwrap()),
            received_at: Timestamp::from_millis(1_700_000_000_123),
            occurred_at: None,
            source: None,
            trace: None,
            payload: Payload::from_trusted(Bytes::from_static(b"{\"user\": 42}")).unwrap(),
        };
        insta::assert_snapshot!(String::from_utf8(encode(&Entry::Event(event)).to_vec()).unwrap());
    }
}
