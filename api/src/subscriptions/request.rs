//! What clients say of a subscription, when they make one and when they change it.

use std::str::FromStr;

use serde::Serialize;
use serde_json::value::RawValue;
use shared::{
    EventPattern, Invalid, OrganizationId, RetrySchedule, SubscriptionId, SubscriptionUrl,
    http::{ApiError, FieldError, Fields, Unknown, fields},
    invalid,
    seal::Sealer,
    signature::SignatureScheme,
    subscription::{
        AttemptTimeout, Format, HeaderName, HeaderValue, MAX_ENTRIES, MAX_HEADERS, MaxInFlight, Metadata,
        Ordering, Push, RateLimit, SealedHeaders, StaticHeaders, Target,
    },
};

/// The most patterns of a subscription.
const MAX_PATTERNS: usize = 100;
/// The most characters of a description.
const MAX_DESCRIPTION: usize = 1_024;

/// Whether events are sent or fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
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

/// What a request says: each member as given, or `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) kind: Option<Kind>,
    pub(super) url: Option<SubscriptionUrl>,
    pub(super) event_types: Option<Vec<EventPattern>>,
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
    /// Reads a request body; every broken rule is named.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body, Unknown::Refuse)?;
        let settings = Self {
            kind: set(&mut fields, "kind", fields::string(str::parse)),
            url: set(&mut fields, "url", fields::string(SubscriptionUrl::parse)),
            event_types: set(&mut fields, "event_types", patterns),
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
        fields.finish(Some(settings))
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
                ("url", self.url.is_some()),
                ("retry_schedule_seconds", self.retry_schedule.is_some()),
                ("timeout_ms", self.timeout.is_some()),
                ("max_in_flight", self.max_in_flight.is_some()),
                ("rate_limit_per_second", self.rate_limit.is_some()),
                ("ordering", self.ordering.is_some()),
                ("format", self.format.is_some()),
                ("headers", self.headers.is_some()),
                ("signature_scheme", self.signature_scheme.is_some()),
            ];
            let given = given.into_iter().filter(|(_, given)| *given);
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
                "ordering":"lifo","signature_scheme":"rsa","filter":"true","format":"xml","headers":{"Content-Type":"x"},
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

    #[test]
    fn nothing_given_is_nothing_to_change() {
        assert!(Settings::parse(b"{}").unwrap().is_empty());
        assert!(Settings::parse(br#"{"kind":"push"}"#).unwrap().is_empty());
        assert!(!Settings::parse(br#"{"description":null}"#).unwrap().is_empty());
        assert!(!Settings::parse(br#"{"headers":null}"#).unwrap().is_empty());
    }
}
