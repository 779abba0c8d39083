//! How the domain's own types look in JSON.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::{
    Builtin, DeliveryState, DeliveryStatus, EventPattern, EventStatus, EventType, FailureKind, Filter, Id,
    RetrySchedule, Scope, Scopes, Tier, Timestamp,
    filter::MAX_FILTER,
    http::Code,
    id::Kind,
    signature::SignatureScheme,
    store::ReplayStatus,
    subscription::{AttemptTimeout, Format, MASK, MaxInFlight, Metadata, NoMatch, Ordering, RateLimit},
};

macro_rules! schemas {
    ($($type:ty as $name:literal: $json:tt;)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($json)
            }
        }
    )*};
}

/// The names of these, as they are written.
fn names_of<T: serde::Serialize>(all: &[T]) -> Value {
    json!(all)
}

schemas! {
    Timestamp as "Timestamp": {"type": "string", "format": "date-time", "description": "RFC 3339, in UTC, to the millisecond."};
    Scope as "Scope": {"type": "string", "enum": names_of(&Scope::ALL), "description": "What a key may do."};
    Scopes as "Scopes": {"type": "array", "items": {"type": "string", "enum": names_of(&Scope::ALL)}};
    Tier as "Tier": {
        "type": "string", "enum": ["free", "pro", "business", "enterprise", "unlimited"],
        "description": "Accepted events a minute: 100, 1,000, 10,000, 100,000, no limit."
    };
    DeliveryState as "DeliveryState": {"type": "string", "enum": names_of(&DeliveryState::ALL), "description": "How a delivery is stored."};
    DeliveryStatus as "DeliveryStatus": {"type": "string", "enum": names_of(&DeliveryStatus::ALL), "description": "How a delivery is."};
    EventStatus as "EventStatus": {
        "type": "string", "enum": names_of(&EventStatus::ALL),
        "description": "The first that fits its deliveries: `pending` (one is open), `dead_letter`, `expired`, `delivered`, `acknowledged`, `cancelled`."
    };
    FailureKind as "FailureKind": {"type": "string", "enum": names_of(&FailureKind::ALL), "description": "What went wrong in an attempt."};
    ReplayStatus as "ReplayStatus": {"type": "string", "enum": ["running", "done", "cancelled"]};
    SignatureScheme as "SignatureScheme": {"type": "string", "enum": ["hmac", "ed25519"], "description": "How pushes are signed."};
    Format as "Format": {"type": "string", "enum": ["standard", "cloudevents"], "description": "What is pushed: our envelope, or a CloudEvent."};
    Ordering as "Ordering": {"type": "string", "enum": ["none", "fifo"], "description": "`fifo`: one at a time, in order; one that fails holds the rest."};
    Builtin as "Builtin": {"type": "string", "enum": ["inbox", "webhook"], "description": "A subscription that the system made."};
    NoMatch as "NoMatch": {
        "type": "string", "enum": ["event_type", "system_event", "filter", "filter_failed", "others_match", "created_later", "changed_later"],
        "description": "Why a subscription has no delivery of an event."
    };
    EventType as "EventType": {
        "type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[!#-&()+-_a-~]+$",
        "description": "Visible ASCII without `*`, quotes or spaces; dots part it into segments. What begins with `triggers.` is the system's own."
    };
    EventPattern as "EventPattern": {
        "type": "string", "minLength": 1, "maxLength": 256,
        "pattern": r"^([!#-&()+-\-/-_a-~]+|\*)(\.([!#-&()+-\-/-_a-~]+|\*))*(\.\*\*)?$",
        "description": "`user.created`, `user.*` (one more segment), `user.**` (one or more), `*` (all but the system's own)."
    };
    Filter as "Filter": {
        "type": "string", "minLength": 1, "maxLength": MAX_FILTER, "pattern": TEXT,
        "description": "A CEL expression over `type`, `source`, `occurred_at` and `payload` that is true or false.",
        "examples": ["payload.amount > 100 && payload.currency == 'EUR'"]
    };
    RetrySchedule as "RetrySchedule": {
        "type": "array", "items": {"type": "integer", "minimum": 1, "maximum": RetrySchedule::MAX_SECONDS},
        "maxItems": RetrySchedule::MAX_RETRIES, "description": "Seconds before each retry, ±20 %."
    };
    AttemptTimeout as "AttemptTimeout": {"type": "integer", "minimum": 1000, "maximum": 30_000};
    MaxInFlight as "MaxInFlight": {"type": "integer", "minimum": 1, "maximum": 256};
    RateLimit as "RateLimit": {"type": "integer", "minimum": 1, "maximum": 10_000};
    Metadata as "Metadata": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Whatever is of use to the caller."};
    Mask as "Mask": {"const": MASK};
    NameText as "Name": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": TEXT};
    Overlap as "Overlap": {"type": "integer", "minimum": 0, "maximum": 604_800};
    AnyEventId as "AnyEventId": {
        "type": "string",
        "pattern": "^(evt_[0-7][0-9a-hjkmnp-tv-z]{25}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$",
        "description": "An event's id, or its UUID."
    };
}

/// What is shown in place of a value that nobody may see.
pub struct Mask;
/// A name of something.
pub struct NameText;
/// How long two things are good beside each other.
pub struct Overlap;
/// An event's id, as it may be given.
pub struct AnyEventId;

/// A text without control characters, as a pattern.
pub const TEXT: &str = r"^[^\x00-\x1f\x7f-\x9f]*$";

impl<K: Kind> JsonSchema for Id<K> {
    fn schema_name() -> Cow<'static, str> {
        let of = match K::TYPE {
            "org" => "Organization",
            "key" => "Key",
            "evt" => "Event",
            "sub" => "Subscription",
            "rpl" => "Replay",
            "aside" => "SetAside",
            other => other,
        };
        format!("{of}Id").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": format!("^{}_[0-7][0-9a-hjkmnp-tv-z]{{25}}$", K::TYPE)})
    }
}

/// A problem.
pub(super) fn problem() -> Value {
    json!({
        "type": "object",
        "description": "What went wrong, by RFC 9457. `code` is stable; `detail` is for people.",
        "required": ["type", "title", "status", "detail", "code", "request_id"],
        "properties": {
            "type": {"type": "string", "description": "`urn:triggers:problem:` and the code."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string", "enum": Code::ALL.map(Code::as_str)},
            "request_id": {"type": "string"},
            "errors": {"type": "array", "items": {
                "type": "object",
                "description": "A broken rule, and where: in the body, the query or a header.",
                "required": ["detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "RFC 6901"},
                    "parameter": {"type": "string"},
                    "header": {"type": "string"},
                    "detail": {"type": "string"},
                },
            }},
        },
    })
}

/// The name of the schema of problems of this kind.
pub(super) fn problem_name(code: Code) -> String {
    let words = code.as_str().split('_').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_uppercase() + rest
    });
    words.collect::<String>() + "Problem"
}

/// A problem of one kind.
pub(super) fn one_problem(code: Code) -> Value {
    json!({
        "description": format!("{}.", code.title()),
        "allOf": [{"$ref": "#/components/schemas/Problem"}],
        "properties": {"status": {"const": code.status().as_u16()}, "code": {"const": code.as_str()}},
    })
}

/// A problem of an `/api` route.
pub(super) fn compatible_problem() -> Value {
    json!({
        "description": "A problem, with what existing clients look for.",
        "allOf": [{"$ref": "#/components/schemas/Problem"}],
        "type": "object",
        "required": ["error", "message"],
        "properties": {
            "error": {"type": "string", "description": "As `code`."},
            "message": {"type": "string", "description": "As `detail`."},
            "id": {"type": "string", "format": "uuid", "description": "Of a duplicate: the first event's."},
            "event_id": {"type": "string", "format": "uuid", "description": "As `id`."},
        },
    })
}
