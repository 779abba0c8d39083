//! What the posting routes take and answer, as the API's description has it: their handlers take requests whole, because an
//! event may come in several forms.

use schemars::JsonSchema;
use serde_json::{Value, json};
use shared::{
    EventType, Scope, Timestamp,
    http::{
        Code,
        openapi::{Operation, Security, TEXT},
    },
};

use crate::{accepted, batch, post};

/// An event to post.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
pub(crate) struct NewEvent {
    #[schemars(with = "PostedType")]
    r#type: EventType,
    /// Any JSON value, at most 256 KiB as sent and 64 levels deep. It arrives as it was sent, byte for byte.
    #[schemars(with = "Anything")]
    payload: Value,
    /// A repeat of the same within 24 hours creates nothing. Or the header `Idempotency-Key`.
    #[schemars(length(min = 1, max = 256), regex(pattern = TEXT), extend("not" = prefixed("cloudevent:")))]
    dedup_id: Option<String>,
    /// When it happened, by the producer's clock.
    occurred_at: Option<Timestamp>,
    /// Where it is from.
    #[schemars(length(max = 256), regex(pattern = TEXT))]
    source: Option<String>,
}

/// A type that may be posted.
struct PostedType;

impl JsonSchema for PostedType {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PostedType".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = generator.subschema_for::<EventType>();
        schema.insert("not".into(), prefixed(r"triggers\."));
        schema
    }
}

/// Texts that begin so.
fn prefixed(prefix: &str) -> Value {
    json!({"type": "string", "pattern": format!("^{prefix}")})
}

/// As [`NewEvent`], with whatever else there is.
struct CompatibleEvent;

/// Any JSON value.
struct Anything;

impl JsonSchema for Anything {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Anything".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({})
    }
}

impl JsonSchema for CompatibleEvent {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CompatNewEvent".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = NewEvent::json_schema(generator);
        schema.remove("additionalProperties");
        schema
    }
}

/// A CloudEvent in the JSON format.
struct CloudEvent;

impl JsonSchema for CloudEvent {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CloudEvent".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let kind = generator.subschema_for::<PostedType>();
        let time = generator.subschema_for::<Option<Timestamp>>();
        schemars::json_schema!({
            "type": "object",
            "description": "A CloudEvent 1.0. `source` and `id` together are its key; extensions are taken and not kept.",
            "required": ["specversion", "type", "source", "id"],
            "properties": {
                "specversion": {"const": "1.0"},
                "type": kind,
                "source": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[!-~]+$", "description": "A URI reference."},
                "id": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": TEXT},
                "time": time,
                "traceparent": {"type": "string", "description": "The trace it is part of."},
                "data": {"description": "The payload."},
                "data_base64": {"type": ["string", "null"], "pattern": "^([A-Za-z0-9+/]{4})*$", "description": "The payload, if it is not JSON; it arrives as this string. Not beside `data`."},
            },
            "not": {"required": ["data", "data_base64"]},
        })
    }
}

fn posting(operation: &mut Operation<'_>) {
    operation.needs(Security::Key(&[Scope::EventsWrite]));
    operation.limited();
    operation.body_required();
    operation.request_header(
        "traceparent",
        "W3C Trace Context: the trace that goes with the event to its subscribers. One that is not well formed is passed over.",
        &json!({"type": "string"}),
    );
    operation.problem(
        Code::Unavailable,
        "the queue cannot be reached, is full, or did not confirm in time",
    );
    operation.problem(Code::Internal, "a fault of ours");
}

fn idempotency_key(operation: &mut Operation<'_>) {
    operation.request_header(
        "Idempotency-Key",
        "As `dedup_id`; both, and different, is refused. Not with CloudEvents, whose `source` and `id` are their key.",
        &json!({"type": "string", "maxLength": 256, "pattern": "^[!-~]([ -~]*[!-~])?$", "not": prefixed("cloudevent:")}),
    );
}

/// `POST /v1/events`.
pub(crate) fn one(operation: &mut Operation<'_>) {
    posting(operation);
    idempotency_key(operation);
    for (name, text) in [
        ("ce-specversion", "Of a CloudEvent in binary mode: `1.0`."),
        ("ce-type", "Of a CloudEvent in binary mode: its type."),
        ("ce-source", "Of a CloudEvent in binary mode: its source."),
        ("ce-id", "Of a CloudEvent in binary mode: its id."),
        ("ce-time", "Of a CloudEvent in binary mode: when it happened."),
    ] {
        operation.request_header(name, text, &json!({"type": "string"}));
    }
    operation.body::<NewEvent>("application/json");
    operation.body::<CloudEvent>("application/cloudevents+json");
    let event = json!({"description": "A CloudEvent; one that is not is refused by itself."});
    operation.body_of(
        "application/cloudevents-batch+json",
        &json!({"type": "array", "maxItems": batch::MAX_EVENTS, "items": event}),
    );
    operation.answer::<Either>(202);
}

/// What is answered to an event, or to a batch of CloudEvents.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "it is the shape of an answer")]
enum Either {
    One(accepted::Answer<'static>),
    Many(batch::answer::Answer<'static>),
}

/// `POST /v1/events/batch`.
pub(crate) fn many(operation: &mut Operation<'_>) {
    posting(operation);
    let event =
        json!({"description": "As `POST /v1/events` takes it; one that is not is refused by itself."});
    operation.body_of(
        "application/json",
        &json!({"type": "array", "minItems": 1, "maxItems": batch::MAX_EVENTS, "items": event}),
    );
    let lines = json!({"type": "string", "description": "An event a line."});
    operation.body_of("application/x-ndjson", &lines);
    operation.answer::<batch::answer::Answer<'static>>(202);
}

/// `POST /api/events`.
pub(crate) fn compatible(operation: &mut Operation<'_>) {
    posting(operation);
    idempotency_key(operation);
    operation.body::<CompatibleEvent>("application/json");
    operation.answer::<post::CompatibleAnswer<'static>>(202);
}
