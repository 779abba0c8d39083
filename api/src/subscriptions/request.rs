//! What clients say of a subscription, when they make one and when they change it.

use std::{borrow::Cow, str::FromStr, time::Duration};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::{
    EventPattern, Filter, Invalid, OrganizationId, RetrySchedule, SubscriptionId, SubscriptionUrl,
    filter::Refused,
    http::openapi::TEXT,
    http::{ApiError, FieldError, Fields, Unknown, fields},
    invalid,
    seal::Sealer,
    signature::SignatureScheme,
    subscription::{
        AttemptTimeout, Format, HeaderName, HeaderValue, MASK, MAX_ENTRIES, MAX_HEADERS, MaxInFlight,
        Metadata, Ordering, Push, RateLimit, SealedHeaders, StaticHeaders, Target,
    },
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The most patterns of a subscription.
const MAX_PATTERNS: usize = 100;
/// The most characters of a description.
const MAX_DESCRIPTION: usize = 1_024;

/// How many bodies are read at once: one with a filter takes a thread with a stack of its own, and all that one core has.
const AT_ONCE: usize = 4;
/// How long one waits for its turn.
const WAIT: Duration = Duration::from_secs(2);
/// The turns that there are.
static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

/// Waits for a turn, and no longer than that.
async fn turn(turns: &Semaphore, wait: Duration) -> Result<SemaphorePermit<'_>, ApiError> {
    match tokio::time::timeout(wait, turns.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        Ok(Err(_)) | Err(_) => Err(ApiError::unavailable(
            "more subscriptions are being read than can be at once; try again",
            Duration::from_secs(1),
        )),
    }
}

/// Whether events are sent or fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "SubscriptionKind")]
pub(super) enum Kind {
    #[default]
    Push,
    Pull,
}

impl FromStr for Kind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "push" => Ok(Self::Push),
            "pull" => Ok(Self::Pull),
            _ => Err(Invalid::new("must be push or pull")),
        }
    }
}

impl Kind {
    pub(super) const fn of(target: &Target) -> Self {
        match target {
            Target::Push(_) => Self::Push,
            Target::Pull => Self::Pull,
        }
    }
}

/// A subscription to create.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, transform = by_kind)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
pub(super) struct NewSubscription {
    #[schemars(default)]
    kind: Kind,
    /// Where to push: `https` (or `http` where the deployment allows it), without user info and fragment. Required for the kind
    /// `push`, and not taken for `pull`, as all that is about pushing.
    #[schemars(default)]
    url: TargetUrl,
    /// Events that are wanted; `*` leaves out the system's own.
    #[schemars(default = "all", length(min = 1, max = 100))]
    event_types: Vec<EventPattern>,
    /// Of those events, only the ones for which this is true; `null` is all of them.
    filter: Option<Filter>,
    #[schemars(default = "yes")]
    enabled: bool,
    #[schemars(length(max = 1_024), regex(pattern = TEXT))]
    description: Option<String>,
    /// Seconds before each retry.
    #[schemars(default)]
    retry_schedule_seconds: RetrySchedule,
    /// How long one attempt may take in all.
    #[schemars(default)]
    timeout_ms: AttemptTimeout,
    /// How many attempts may be under way at once.
    #[schemars(default)]
    max_in_flight: MaxInFlight,
    /// How many attempts may begin within a second; as many as come, unless given.
    rate_limit_per_second: Option<RateLimit>,
    #[schemars(default)]
    ordering: Ordering,
    #[schemars(default)]
    format: Format,
    /// Headers to add to each push, at most 20; their values are shown to nobody.
    headers: Option<HeaderMembers>,
    /// At most 50 members; keys of at most 40 characters, values of at most 500.
    metadata: Option<MetadataMembers>,
    #[schemars(default)]
    signature_scheme: SignatureScheme,
}

/// Where to push.
#[derive(Default)]
pub(crate) struct TargetUrl;

impl JsonSchema for TargetUrl {
    fn schema_name() -> Cow<'static, str> {
        "TargetUrl".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "format": "uri", "maxLength": 2_048, "pattern": "^https?://[^@#]+$",
            "description": "Where it may point is the deployment's to say: by default https, and public addresses.",
        })
    }
}

/// What is about pushing is not for the kind `pull`, and the kind `push` needs a URL.
fn by_kind(schema: &mut schemars::Schema) {
    let refused: Vec<_> = FOR_PUSH
        .iter()
        .map(|name| serde_json::json!({"required": [name]}))
        .collect();
    let pull = serde_json::json!({"required": ["kind"], "properties": {"kind": {"const": "pull"}}});
    schema.insert("if".into(), pull);
    schema.insert("then".into(), serde_json::json!({"not": {"anyOf": refused}}));
    schema.insert("else".into(), serde_json::json!({"required": ["url"]}));
}

/// Fields that are for subscriptions of kind push alone.
const FOR_PUSH: [&str; 9] = [
    "url",
    "retry_schedule_seconds",
    "timeout_ms",
    "max_in_flight",
    "rate_limit_per_second",
    "ordering",
    "format",
    "headers",
    "signature_scheme",
];

macro_rules! members {
    ($($name:ident: $most:expr, $names:tt, $values:tt;)*) => {$(
        /// Members by name; `null` removes one.
        struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "object", "maxProperties": $most, "propertyNames": $names,
                    "additionalProperties": {"anyOf": [$values, {"type": "null"}]},
                })
            }
        }
    )*};
}

members! {
    HeaderMembers: MAX_HEADERS,
        {"pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", "maxLength": 64, "not": {"pattern": "^([Cc]ontent-|[Ww]ebhook-)"}},
        {"type": "string", "pattern": "^[!-~]([ -~]*[!-~])?$", "maxLength": 1_024, "not": {"const": MASK}};
    MetadataMembers: MAX_ENTRIES,
        {"pattern": TEXT, "minLength": 1, "maxLength": 40},
        {"type": "string", "pattern": TEXT, "maxLength": 500};
}

fn all() -> Vec<EventPattern> {
    vec![EventPattern::all()]
}

fn yes() -> bool {
    true
}

/// What is to change: what a subscription is created with, nothing of it required.
pub(super) struct SubscriptionChange;

impl JsonSchema for SubscriptionChange {
    fn schema_name() -> Cow<'static, str> {
        "SubscriptionChange".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = NewSubscription::json_schema(generator);
        for rule in ["required", "if", "then", "else"] {
            schema.remove(rule);
        }
        schema.insert(
            "description".into(),
            "What is to change of a subscription; what is not given stays.".into(),
        );
        let properties = schema
            .get_mut("properties")
            .and_then(serde_json::Value::as_object_mut);
        for property in properties.into_iter().flatten() {
            if let Some(property) = property.1.as_object_mut() {
                property.remove("default");
            }
        }
        schema
    }
}

/// What a request says: each member as given, or `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) kind: Option<Kind>,
    pub(super) url: Option<SubscriptionUrl>,
    pub(super) event_types: Option<Vec<EventPattern>>,
    /// `Some(None)` is `null`: all events of the types.
    #[expect(
        clippy::option_option,
        reason = "not given, null and a filter are three things"
    )]
    pub(super) filter: Option<Option<Filter>>,
    pub(super) enabled: Option<bool>,
    /// `Some(None)` is `null`: there is to be none.
    #[expect(
        clippy::option_option,
        reason = "not given, null and a text are three things, as the store's patch has them"
    )]
    pub(super) description: Option<Option<String>>,
    pub(super) retry_schedule: Option<RetrySchedule>,
    pub(super) timeout: Option<AttemptTimeout>,
    pub(super) max_in_flight: Option<MaxInFlight>,
    /// `Some(None)` is `null`: as many as come.
    #[expect(
        clippy::option_option,
        reason = "not given, null and a number are three things"
    )]
    pub(super) rate_limit: Option<Option<RateLimit>>,
    pub(super) ordering: Option<Ordering>,
    pub(super) format: Option<Format>,
    pub(super) headers: Option<Members<HeaderName, HeaderValue>>,
    pub(super) metadata: Option<Members<String, String>>,
    pub(super) signature_scheme: Option<SignatureScheme>,
}

/// What is to become of an object's members: all are to go (`null`), or these are set, or removed (`null`), and the rest stays.
pub(super) type Members<K, V> = Option<Vec<(K, Option<V>)>>;

impl Settings {
    /// Reads a request body, where blocking is allowed: compiling a filter may take some milliseconds.
    pub(super) async fn read(body: Bytes) -> Result<Self, ApiError> {
        let turn = turn(&TURNS, WAIT).await?;
        // The thread keeps the turn: it goes on when the client does not wait for it any more.
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            Self::parse(&body)
        });
        let read = reading.await;
        read.map_err(|error| ApiError::internal(&format!("a body was not read: {error}")))?
    }

    /// Reads a request body; every broken rule is named.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body, Unknown::Refuse)?.documented::<NewSubscription>();
        let mut not_now = None;
        let filter = |text: &str| {
            Filter::parse(text).map_err(|refused| match refused {
                Refused::Invalid(rule) => rule,
                Refused::NotNow(error) => {
                    let rule = Invalid::new(error.to_string());
                    not_now = Some(error);
                    rule
                }
            })
        };
        let settings = Self {
            kind: set(&mut fields, "kind", fields::string(str::parse)),
            url: set(&mut fields, "url", fields::string(SubscriptionUrl::parse)),
            event_types: set(&mut fields, "event_types", patterns),
            filter: fields.nullable("filter", fields::string(filter)),
            enabled: set(&mut fields, "enabled", fields::boolean),
            description: fields.nullable("description", fields::string(description)),
            retry_schedule: set(
                &mut fields,
                "retry_schedule_seconds",
                fields::numbers(RetrySchedule::new),
            ),
            timeout: set(&mut fields, "timeout_ms", fields::number(AttemptTimeout::new)),
            max_in_flight: set(&mut fields, "max_in_flight", fields::number(MaxInFlight::new)),
            rate_limit: fields.nullable("rate_limit_per_second", fields::number(RateLimit::new)),
            ordering: set(&mut fields, "ordering", fields::string(str::parse)),
            format: set(&mut fields, "format", fields::string(str::parse)),
            headers: fields.nullable(
                "headers",
                fields::members(MAX_HEADERS, HeaderName::parse, HeaderValue::parse),
            ),
            metadata: fields.nullable(
                "metadata",
                fields::members(MAX_ENTRIES, Metadata::key, Metadata::value),
            ),
            signature_scheme: set(&mut fields, "signature_scheme", fields::string(str::parse)),
        };
        match not_now {
            Some(error) => Err(error.into()),
            None => fields.finish(Some(settings)),
        }
    }

    /// The rules that hold between the fields, for a subscription of this kind.
    pub(super) fn check(&self, kind: Kind) -> Result<(), ApiError> {
        let mut errors = Vec::new();
        if self.kind.is_some_and(|asked| asked != kind) {
            errors.push(FieldError::at(
                &["kind"],
                "cannot change: make another subscription",
            ));
        }
        if kind == Kind::Pull {
            let given = [
                self.url.is_some(),
                self.retry_schedule.is_some(),
                self.timeout.is_some(),
                self.max_in_flight.is_some(),
                self.rate_limit.is_some(),
                self.ordering.is_some(),
                self.format.is_some(),
                self.headers.is_some(),
                self.signature_scheme.is_some(),
            ];
            let given = FOR_PUSH.into_iter().zip(given).filter(|(_, given)| *given);
            errors.extend(given.map(|(name, _)| {
                FieldError::at(
                    &[name],
                    "is for subscriptions of kind push: nothing is sent to one of kind pull",
                )
            }));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(ApiError::invalid(errors))
        }
    }

    /// Whether nothing is asked for.
    pub(super) fn is_empty(&self) -> bool {
        let kind = self.kind;
        *self
            == Self {
                kind,
                signature_scheme: self.signature_scheme,
                ..Self::default()
            }
    }

    /// The push settings that `current` become, if any of them is to change.
    pub(super) fn merged(&self, current: &Push, row: &Row<'_>) -> Result<Option<Push>, ApiError> {
        let mut push = current.clone();
        if let Some(members) = &self.headers {
            push.headers = row.headers(current, members.as_deref())?;
        }
        if let Some(url) = &self.url {
            push.url = url.clone();
        }
        if let Some(schedule) = &self.retry_schedule {
            push.retry_schedule = schedule.clone();
        }
        push.timeout = self.timeout.unwrap_or(push.timeout);
        push.max_in_flight = self.max_in_flight.unwrap_or(push.max_in_flight);
        push.rate_limit = self.rate_limit.unwrap_or(push.rate_limit);
        push.ordering = self.ordering.unwrap_or(push.ordering);
        push.format = self.format.unwrap_or(push.format);
        Ok((push != *current).then_some(push))
    }

    /// The metadata that `current` becomes, if it is to change.
    pub(super) fn metadata(&self, current: &Metadata) -> Result<Option<Metadata>, ApiError> {
        let Some(members) = &self.metadata else {
            return Ok(None);
        };
        let mut metadata = Metadata::default();
        if let Some(members) = members {
            metadata = current.clone();
            metadata.merge(members.iter().cloned()).map_err(at("metadata"))?;
        }
        Ok((metadata != *current).then_some(metadata))
    }
}

/// The subscription that headers are sealed for.
pub(super) struct Row<'a> {
    pub(super) sealer: &'a Sealer,
    pub(super) organization: OrganizationId,
    pub(super) id: SubscriptionId,
}

impl Row<'_> {
    /// The headers that those of `current` become. Where that is the same they stay sealed as they are.
    fn headers(
        &self,
        current: &Push,
        members: Option<&[(HeaderName, Option<HeaderValue>)]>,
    ) -> Result<Option<SealedHeaders>, ApiError> {
        let Some(members) = members else { return Ok(None) };
        let before = match &current.headers {
            Some(sealed) => sealed
                .open(self.sealer, self.organization, self.id)
                .map_err(|error| ApiError::internal(&format!("static headers of {}: {error}", self.id)))?,
            None => StaticHeaders::default(),
        };
        let mut headers = before.clone();
        headers.merge(members.iter().cloned()).map_err(at("headers"))?;
        if headers == before {
            return Ok(current.headers.clone());
        }
        Ok(headers.seal(self.sealer, self.organization, self.id))
    }
}

fn at(field: &'static str) -> impl FnOnce(Invalid) -> ApiError {
    move |invalid| ApiError::invalid(vec![FieldError::at(&[field], invalid.rule())])
}

/// Takes a field that may be missing, and not `null`: what that would mean, nobody could be sure of.
fn set<'a, T, E: Into<fields::Broken>>(
    fields: &mut Fields<'a>,
    name: &str,
    parse: impl FnOnce(&'a RawValue) -> Result<T, E>,
) -> Option<T> {
    let value = fields.nullable(name, parse)?;
    if value.is_none() {
        fields.refuse(FieldError::at(&[name], "must not be null; leave it out"));
    }
    value
}

pub(super) fn patterns(value: &RawValue) -> Result<Vec<EventPattern>, fields::Broken> {
    let patterns = fields::strings(MAX_PATTERNS, EventPattern::parse)(value)?;
    if patterns.is_empty() {
        return Err(Invalid::new("must have at least one entry; `*` is all").into());
    }
    Ok(patterns)
}

fn description(text: &str) -> Result<String, Invalid> {
    invalid::text(text, 0, MAX_DESCRIPTION).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        let checked = Settings::parse(body.as_bytes()).and_then(|settings| {
            settings
                .check(settings.kind.unwrap_or_default())
                .map(|()| settings)
        });
        checked.unwrap_err().to_string()
    }

    #[test]
    fn every_broken_rule_is_named() {
        insta::assert_snapshot!(refused(
            r#"{"kind":"poll","url":"ftp://x","event_types":["a","b*"],"enabled":1,"description":"\u0000",
                "retry_schedule_seconds":[0],"timeout_ms":999,"max_in_flight":257,"rate_limit_per_second":0,
                "ordering":"lifo","signature_scheme":"rsa","filter":"true =","format":"xml","headers":{"Content-Type":"x"},
                "metadata":{"a":1}}"#
        ));
        insta::assert_snapshot!(refused(
            r#"{"kind":"pull","url":"https://example.com","retry_schedule_seconds":[],"timeout_ms":1000,"max_in_flight":1,
                "rate_limit_per_second":null,"ordering":"none","format":"standard","headers":{},"metadata":{}}"#
        ));
        insta::assert_snapshot!(refused(
            r#"{"kind":null,"url":null,"event_types":[],"enabled":null}"#
        ));
    }

    #[test]
    fn a_bad_member_is_named() {
        for body in [
            r#"{"headers":[]}"#,
            r#"{"headers":{"x-a":"1","X-A":"2"}}"#,
            r#"{"headers":{"webhook-id":null}}"#,
            r#"{"headers":{"x-a/b":7}}"#,
            r#"{"headers":{"x-a":"a\u0000b"}}"#,
            r#"{"headers":{"x-a":"********"}}"#,
            r#"{"metadata":{"":"x"}}"#,
            r#"{"metadata":{"a":{"b":"c"}}}"#,
        ] {
            insta::assert_snapshot!(refused(body));
        }
        let many: Vec<String> = (0..100).map(|at| format!(r#""k{at}":"v""#)).collect();
        insta::assert_snapshot!(refused(&format!(r#"{{"metadata":{{{}}}}}"#, many.join(","))));
    }

    #[tokio::test]
    async fn a_turn_is_waited_for_and_not_for_long() {
        let turns = Semaphore::new(1);
        let first = turn(&turns, WAIT).await.unwrap();
        let refused = turn(&turns, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(refused.code(), shared::http::Code::Unavailable);
        let (second, ()) = tokio::join!(turn(&turns, WAIT), async { drop(first) });
        assert!(second.is_ok());
    }

    #[test]
    fn nothing_given_is_nothing_to_change() {
        assert!(Settings::parse(b"{}").unwrap().is_empty());
        assert!(Settings::parse(br#"{"kind":"push"}"#).unwrap().is_empty());
        assert!(!Settings::parse(br#"{"description":null}"#).unwrap().is_empty());
        assert!(!Settings::parse(br#"{"headers":null}"#).unwrap().is_empty());
    }
}
