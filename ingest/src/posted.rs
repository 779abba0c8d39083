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
}
