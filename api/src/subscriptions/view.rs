//! A subscription as it is shown.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    Builtin, EventPattern, Filter, RetrySchedule, Subscription, SubscriptionId, Timestamp,
    http::openapi::Mask,
    signature::{SignatureScheme, SigningKey},
    subscription::{AttemptTimeout, Format, MASK, MaxInFlight, Metadata, Ordering, RateLimit, Target},
};

use super::request::Kind;

/// Who wants which events, and where they are sent.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Subscription")]
pub(super) struct SubscriptionView {
    id: SubscriptionId,
    kind: Kind,
    builtin: Option<Builtin>,
    #[serde(flatten)]
    push: Option<PushView>,
    event_types: Vec<EventPattern>,
    filter: Option<Filter>,
    enabled: bool,
    disabled_reason: Option<String>,
    description: Option<String>,
    metadata: Metadata,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// Shown when it is made and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PushSettings")]
struct PushView {
    url: String,
    retry_schedule_seconds: RetrySchedule,
    timeout_ms: AttemptTimeout,
    max_in_flight: MaxInFlight,
    rate_limit_per_second: Option<RateLimit>,
    ordering: Ordering,
    format: Format,
    /// By name; the values are shown to nobody.
    #[schemars(with = "BTreeMap<String, Mask>")]
    headers: BTreeMap<String, &'static str>,
    signature_scheme: SignatureScheme,
    /// What to verify by, where the scheme has such a thing.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    /// Until when the secret before the last rotation signs, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    former_secret_until: Option<Timestamp>,
}

impl SubscriptionView {
    pub(super) fn of(subscription: Subscription, secret: Option<&SigningKey>) -> Self {
        let (kind, push) = match subscription.target {
            Target::Pull => (Kind::Pull, None),
            Target::Push(push) => {
                let headers = push.headers.iter().flat_map(|headers| &headers.names);
                let headers = headers.map(|name| (name.as_str().to_owned(), MASK)).collect();
                let view = PushView {
                    url: push.url.as_str().to_owned(),
                    retry_schedule_seconds: push.retry_schedule,
                    timeout_ms: push.timeout,
                    max_in_flight: push.max_in_flight,
                    rate_limit_per_second: push.rate_limit,
                    ordering: push.ordering,
                    format: push.format,
                    headers,
                    signature_scheme: push.scheme,
                    public_key: push.public_key,
                    former_secret_until: push.former.map(|former| former.until),
                };
                (Kind::Push, Some(view))
            }
        };
        Self {
            id: subscription.id,
            kind,
            builtin: subscription.builtin,
            push,
            event_types: subscription.event_types,
            filter: subscription.filter,
            enabled: subscription.enabled,
            disabled_reason: subscription.disabled_reason,
            description: subscription.description,
            metadata: subscription.metadata,
            created_at: subscription.created_at,
            updated_at: subscription.updated_at,
            secret: secret.and_then(SigningKey::secret_text),
        }
    }
}
