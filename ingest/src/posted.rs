//! An event as it was posted, well formed: every rule about its fields is checked here, whichever way it came.

use bytes::Bytes;
use http::HeaderMap;
use shared::{
    AcceptedEvent, DedupId, EventId, EventType, OrganizationId, Payload, Source, Timestamp, TraceParent,
    http::{ApiError, FieldError, Fields, fields},
};

use crate::describing::NewEvent;

/// A well-formed event.
#[derive(Debug)]
pub(crate) struct Posted {
    pub(crate) event_type: EventType,
    pub(crate) payload: Payload,
    pub(crate) dedup_id: Option<DedupId>,
    pub(crate) occurred_at: Option<Timestamp>,
    pub(crate) source: Option<Source>,
    pub(crate) trace: Option<TraceParent>,
}

impl Posted {
    /// From its fields, which were read from `body`; it may have its key in a header.
    pub(crate) fn from_fields(
        mut fields: Fields<'_>,
        body: &Bytes,
        header: Result<Option<DedupId>, FieldError>,
        trace: Option<TraceParent>,
    ) -> Result<Self, ApiError> {
        fields = fields.documented::<NewEvent>();
        let event_type = fields.required("type", fields::string(EventType::parse));
        let payload = fields.required("payload", |raw| Payload::within(body, raw));
        let dedup_id = fields.optional("dedup_id", fields::string(DedupId::parse));
        let occurred_at = fields.optional("occurred_at", fields::string(str::parse));
        let source = fields.optional("source", fields::string(Source::parse));
        let dedup_id = match (dedup_id, header) {
            (field, Err(error)) => {
                fields.refuse(error);
                field
            }
            (Some(field), Ok(Some(header))) if field != header => {
                fields.refuse(FieldError::at(
                    &["dedup_id"],
                    "differs from the header Idempotency-Key",
                ));
                None
            }
            (field, Ok(header)) => field.or(header),
        };
        let (event_type, payload) = fields.finish(event_type.zip(payload))?;
        Ok(Self {
            event_type,
            payload,
            dedup_id,
            occurred_at,
            source,
            trace,
        })
    }

    /// The event that is stored, under this id.
    pub(crate) fn under(
        self,
        id: EventId,
        organization: OrganizationId,
        received_at: Timestamp,
    ) -> AcceptedEvent {
        AcceptedEvent {
            id,
            former_ids: Vec::new(),
            organization,
            event_type: self.event_type,
            dedup_id: self.dedup_id,
            received_at,
            occurred_at: self.occurred_at,
            source: self.source,
            trace: self.trace,
            payload: self.payload,
        }
    }
}

/// The name of the header that may hold an event's key.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// The key in the head of a request.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<DedupId>, FieldError> {
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(value) = given.next() else {
        return Ok(None);
    };
    if given.next().is_some() {
        return Err(FieldError::header(IDEMPOTENCY_KEY, "is given more than once"));
    }
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| FieldError::header(IDEMPOTENCY_KEY, "must be UTF-8"))?;
    DedupId::parse(text)
        .map(Some)
        .map_err(|invalid| FieldError::header(IDEMPOTENCY_KEY, invalid.rule()))
}

/// 422 if there is a key in the head of a request whose events have, or may have, keys of their own.
pub(crate) fn refuse_idempotency_key(headers: &HeaderMap, rule: &'static str) -> Result<(), ApiError> {
    if headers.contains_key("idempotency-key") {
        return Err(ApiError::invalid(vec![FieldError::header(IDEMPOTENCY_KEY, rule)]));
    }
    Ok(())
}

/// The trace that a request is part of.
pub(crate) fn trace(headers: &HeaderMap) -> Option<TraceParent> {
    TraceParent::parse(headers.get("traceparent")?.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use serde_json::{Value, json};
    use shared::http::Unknown;

    use super::*;

    fn key(text: &str) -> DedupId {
        DedupId::parse(text).unwrap()
    }

    fn posted(body: &'static str, header: Option<DedupId>) -> Result<Posted, ApiError> {
        let body = Bytes::from_static(body.as_bytes());
        let fields = Fields::parse(&body, Unknown::Refuse)?;
        Posted::from_fields(fields, &body, Ok(header), None)
    }

    #[test]
    fn header_and_field_must_agree() {
        let body = r#"{"type":"a","payload":{},"dedup_id":"one"}"#;
        assert!(posted(body, Some(key("one"))).is_ok());
        assert!(posted(body, None).is_ok());
        let error = posted(body, Some(key("two"))).unwrap_err();
        assert_eq!(error.detail(), "dedup_id differs from the header Idempotency-Key");
        let posted = posted(r#"{"type":"a","payload":{}}"#, Some(key("two"))).unwrap();
        assert_eq!(posted.dedup_id.unwrap().as_str(), "two");
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[a-z.*' ]{0,12}".prop_map(Value::from),
            "[a-z]{250,260}".prop_map(Value::from),
            "triggers\\.[a-z]{0,3}|cloudevent:[a-z]{0,3}".prop_map(Value::from),
            "20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,9})?(Z|[+-][0-2][0-9]:[0-6][0-9])"
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[a-z/~]{0,4}", inner, 0..6).prop_map(|members| json!(members)),
            ]
        })
    }

    /// An event's members, most of which break a rule now and then.
    fn members() -> impl Strategy<Value = BTreeMap<String, Value>> {
        let name = prop_oneof![
            9 => prop::sample::select(vec!["type", "payload", "dedup_id", "occurred_at", "source"]).prop_map(str::to_owned),
            1 => "[a-z/~\\u{0}-\\u{1f}]{0,5}",
        ];
        let members = prop::collection::btree_map(name, json_value(), 0..7);
        (members, any::<bool>()).prop_map(|(mut members, least)| {
            if least {
                members.entry("type".into()).or_insert(json!("a.b"));
                members.entry("payload".into()).or_insert(json!({}));
            }
            members
        })
    }

    fn of(members: &BTreeMap<String, Value>) -> Result<Posted, ApiError> {
        let body = Bytes::from(json!(members).to_string());
        Posted::from_fields(Fields::parse(&body, Unknown::Refuse)?, &body, Ok(None), None)
    }

    /// The members that a problem names.
    fn named(error: &ApiError) -> BTreeSet<String> {
        let problem = error.to_result();
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        let pointers = errors
            .iter()
            .filter_map(|error| error["pointer"].as_str()?.strip_prefix('/'));
        pointers
            .map(|pointer| pointer.replace("~1", "/").replace("~0", "~"))
            .collect()
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_what_was_sent(members in members()) {
            let Ok(posted) = of(&members) else { return Ok(()) };
            let text = |name: &str| members.get(name).and_then(Value::as_str);
            let event_type = posted.event_type.as_str();
            prop_assert_eq!(Some(event_type), text("type"));
            prop_assert!((1..=256).contains(&event_type.len()) && event_type.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(!event_type.starts_with("triggers.") && !event_type.contains(['*', '"', '\'', '`']));
            prop_assert_eq!(posted.payload.as_str(), members["payload"].to_string());
            prop_assert_eq!(posted.dedup_id.as_ref().map(DedupId::as_str), text("dedup_id"));
            prop_assert_eq!(posted.source.as_ref().map(Source::as_str), text("source"));
            prop_assert_eq!(posted.occurred_at.is_some(), text("occurred_at").is_some());
            for kept in [text("dedup_id"), text("source")].into_iter().flatten() {
                prop_assert!(kept.chars().count() <= 256 && !kept.chars().any(char::is_control));
            }
            let known = ["type", "payload", "dedup_id", "occurred_at", "source"];
            prop_assert!(members.keys().all(|name| known.contains(&name.as_str())));
        }

        #[test]
        fn what_is_named_is_all_that_is_wrong(members in members()) {
            let Err(error) = of(&members) else { return Ok(()) };
            let named = named(&error);
            prop_assert!(!named.is_empty(), "{error}");
            let mut mended = members.clone();
            for name in &named {
                // What is named is there, or missing.
                prop_assert!(members.contains_key(name) || ["type", "payload"].contains(&name.as_str()), "{name}");
                mended.remove(name);
            }
            mended.entry("type".into()).or_insert(json!("a.b"));
            mended.entry("payload".into()).or_insert(json!(1));
            prop_assert!(of(&mended).is_ok(), "{named:?} was not all: {:?}", of(&mended));
            // And each by itself is wrong.
            for name in named.iter().filter(|name| members.contains_key(*name)) {
                let mut one = BTreeMap::from([("type".to_owned(), json!("a.b")), ("payload".to_owned(), json!(1))]);
                one.insert(name.clone(), members[name].clone());
                prop_assert!(of(&one).is_err(), "nothing is wrong with {name}");
            }
        }
    }
}
