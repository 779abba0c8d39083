//! Subscriptions: who wants which events, and where they are sent.

mod headers;
mod metadata;
mod subscriber;
mod unmatched;

use std::{fmt, str::FromStr, time::Duration};

use serde::Serialize;
use url::Url;

pub use self::{subscriber::Subscriber, unmatched::NoMatch};
use crate::{
    EventType, Filter, Invalid, OrganizationId, SubscriptionId, Timestamp, announcement::SYSTEM,
    filter::FiltersFull, seal::Sealed, signature::SignatureScheme,
};

pub use self::{
    headers::{HeaderName, HeaderValue, MASK, MAX_HEADERS, SealedHeaders, StaticHeaders},
    metadata::{MAX_ENTRIES, Metadata},
};

/// The most subscriptions of an organization, the built-in inbox aside: an event goes to all of them at most, in the one transaction
/// that stores it.
pub const MAX_SUBSCRIPTIONS: u32 = 1_000;

/// Why an organization can have no such subscription besides those that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// It has as many as it may.
    #[error(
        "an organization has at most {MAX_SUBSCRIPTIONS} subscriptions, and this one has as many: delete one that is not needed"
    )]
    Subscriptions,
    /// Its filters leave no room for another.
    #[error(transparent)]
    Filters(#[from] FiltersFull),
}

/// A subscription as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// One that the system made, not a client.
    pub builtin: Option<Builtin>,
    /// Where its events go.
    pub target: Target,
    /// Which events it wants: those that match any of these.
    pub event_types: Vec<EventPattern>,
    /// Which of those events it wants, if not all.
    pub filter: Option<Filter>,
    /// Whether it is served; a disabled one parks its deliveries and drops nothing.
    pub enabled: bool,
    /// Why the system disabled it, where it was not a client that did.
    pub disabled_reason: Option<String>,
    /// A text for people, at most 1,024 characters.
    pub description: Option<String>,
    /// What clients note on it for themselves.
    pub metadata: Metadata,
    /// Counts its changes.
    pub version: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was last enabled, if it ever was disabled.
    pub enabled_at: Option<Timestamp>,
}

impl Subscription {
    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        const OF_A_TEXT: usize = 24;
        let texts = [&self.disabled_reason, &self.description];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        let patterns: usize = self
            .event_types
            .iter()
            .map(|pattern| OF_A_TEXT + pattern.0.len())
            .sum();
        let filter = self.filter.as_ref().map_or(0, |filter| filter.as_str().len());
        let metadata = self.metadata.bytes();
        let push = self.push().map_or(0, |push| {
            let headers = push.headers.as_ref().map_or(0, |headers| {
                let names: usize = headers
                    .names
                    .iter()
                    .map(|name| OF_A_TEXT + name.as_str().len())
                    .sum();
                names + headers.values.0.len()
            });
            let former = push.former.as_ref().map_or(0, |former| former.secret.0.len());
            push.url.as_str().len()
                + push.secret.0.len()
                + former
                + headers
                + 4 * push.retry_schedule.seconds().len()
        });
        size_of::<Self>() + texts + patterns + filter + metadata + push
    }

    /// The fields, as the API names them, of which a client has made something else. Secrets are not among them, since they are
    /// rotated; of headers it is told that they are others. Each member is named here: whoever adds one says what it is.
    pub(crate) fn other_than(&self, before: &Self) -> Vec<&'static str> {
        let Self {
            id: _,
            organization: _,
            builtin: _,
            target,
            event_types,
            filter,
            enabled,
            disabled_reason: _,
            description,
            metadata,
            version: _,
            created_at: _,
            updated_at: _,
            enabled_at: _,
        } = self;
        let mut fields = Vec::new();
        let mut note = |is_other: bool, field| {
            if is_other {
                fields.push(field);
            }
        };
        match (target, &before.target) {
            (Target::Push(push), Target::Push(before)) => {
                let Push {
                    url,
                    scheme: _,
                    secret: _,
                    public_key: _,
                    former: _,
                    retry_schedule,
                    timeout,
                    max_in_flight,
                    rate_limit,
                    ordering,
                    format,
                    headers,
                } = push;
                note(*url != before.url, "url");
                note(*headers != before.headers, "headers");
                note(*format != before.format, "format");
                note(*retry_schedule != before.retry_schedule, "retry_schedule_seconds");
                note(*timeout != before.timeout, "timeout_ms");
                note(*max_in_flight != before.max_in_flight, "max_in_flight");
                note(*rate_limit != before.rate_limit, "rate_limit_per_second");
                note(*ordering != before.ordering, "ordering");
            }
            (Target::Pull, Target::Pull) => {}
            _ => note(true, "kind"),
        }
        note(*event_types != before.event_types, "event_types");
        note(*filter != before.filter, "filter");
        note(*enabled != before.enabled, "enabled");
        note(*description != before.description, "description");
        note(*metadata != before.metadata, "metadata");
        fields
    }
}

/// Where events of a subscription go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all subscriptions are of the large one, and they are shared by reference"
)]
pub enum Target {
    /// They are posted to a URL.
    Push(Push),
    /// They wait until they are fetched and acknowledged.
    Pull,
}

/// How events are pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Where to.
    pub url: SubscriptionUrl,
    /// How webhooks are signed.
    pub scheme: SignatureScheme,
    /// The signing secret, sealed for this organization and subscription.
    pub secret: Sealed,
    /// What to verify by, where the scheme has such a thing.
    pub public_key: Option<String>,
    /// The secret before the last rotation, while it signs, too.
    pub former: Option<FormerSecret>,
    /// When to try again.
    pub retry_schedule: RetrySchedule,
    /// How long one attempt may take, in all.
    pub timeout: AttemptTimeout,
    /// How many attempts may be under way at once.
    pub max_in_flight: MaxInFlight,
    /// How many attempts may begin within a second.
    pub rate_limit: Option<RateLimit>,
    /// In which order events are sent.
    pub ordering: Ordering,
    /// What a webhook's body is.
    pub format: Format,
    /// Headers that each webhook has beside the system's own, if there are any.
    pub headers: Option<SealedHeaders>,
}

/// What the body of a webhook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `{"id","type","timestamp","data"}`, by Standard Webhooks.
    #[default]
    Standard,
    /// A `CloudEvent` in structured mode.
    CloudEvents,
}

impl Format {
    /// Its name in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::CloudEvents => "cloudevents",
        }
    }
}

impl FromStr for Format {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "standard" => Ok(Self::Standard),
            "cloudevents" => Ok(Self::CloudEvents),
            _ => Err(Invalid::new("must be standard or cloudevents")),
        }
    }
}

/// A secret that was rotated, for as long as it signs beside the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormerSecret {
    /// How it signs.
    pub scheme: SignatureScheme,
    /// The secret, sealed as the current one is.
    pub secret: Sealed,
    /// Until when.
    pub until: Timestamp,
}

/// In which order events are sent to a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ordering {
    /// In no order: each as soon as it can be.
    #[default]
    None,
    /// One at a time, in order of `seq`; one that fails holds the rest until it is delivered or given up.
    Fifo,
}

impl Ordering {
    /// Its name in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fifo => "fifo",
        }
    }
}

impl FromStr for Ordering {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "none" => Ok(Self::None),
            "fifo" => Ok(Self::Fifo),
            _ => Err(Invalid::new("must be none or fifo")),
        }
    }
}

impl Subscription {
    /// Its push settings, if it is one of kind `push`.
    pub fn push(&self) -> Option<&Push> {
        match &self.target {
            Target::Push(push) => Some(push),
            Target::Pull => None,
        }
    }

    /// Whether it wants events of this type, but for what its filter says. The built-in inbox wants none: it gets what nobody else
    /// does.
    pub fn wants(&self, event_type: &EventType) -> bool {
        self.builtin != Some(Builtin::Inbox)
            && self.event_types.iter().any(|pattern| pattern.matches(event_type))
    }
}

/// Subscriptions that every organization has, or may have, without asking for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Builtin {
    /// Takes the events that match no other subscription; of kind `pull`; made with the organization.
    Inbox,
    /// The default push subscription that `POST /api/webhook/config` sets.
    Webhook,
}

impl Builtin {
    /// Its name in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbox => "inbox",
            Self::Webhook => "webhook",
        }
    }
}

impl FromStr for Builtin {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "inbox" => Ok(Self::Inbox),
            "webhook" => Ok(Self::Webhook),
            _ => Err(Invalid::new("must be inbox or webhook")),
        }
    }
}

/// A pattern over event types: `user.created`, `user.*` (exactly one more segment), `user.**` (one or more), or `*`
/// (all but the system's own). A `*` may stand for any one segment; types under `triggers.` match only patterns
/// that begin with `triggers.`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct EventPattern(Box<str>);

impl EventPattern {
    /// Everything but the system's own events.
    pub fn all() -> Self {
        Self("*".into())
    }

    /// Checks the rule.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > 256 {
            return Err(Invalid::new("must be 1 to 256 characters"));
        }
        if text
            .bytes()
            .any(|b| !b.is_ascii_graphic() || matches!(b, b'"' | b'\'' | b'`'))
        {
            return Err(Invalid::new(
                "must be visible ASCII characters without quotes or spaces",
            ));
        }
        let segments: Vec<&str> = text.split('.').collect();
        for (at, segment) in segments.iter().enumerate() {
            let last = at + 1 == segments.len();
            let whole = *segment == "*" || (*segment == "**" && last && at > 0);
            if segment.contains('*') && !whole {
                return Err(Invalid::new(
                    "may hold `*` only as a whole segment, and `**` only as the last of several",
                ));
            }
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the system's own events are what it is about.
    pub fn names_system_types(&self) -> bool {
        self.0.starts_with(SYSTEM)
    }

    /// Whether an event of this type fits.
    pub fn matches(&self, event_type: &EventType) -> bool {
        let event_type = event_type.as_str();
        if event_type.starts_with(SYSTEM) && !self.names_system_types() {
            return false;
        }
        if &*self.0 == "*" {
            return true;
        }
        let (mut wanted, mut given) = (self.0.split('.'), event_type.split('.'));
        loop {
            match (wanted.next(), given.next()) {
                (None, None) | (Some("**"), Some(_)) => return true,
                (Some("*"), Some(_)) => {}
                (Some(want), Some(have)) if want == have => {}
                _ => return false,
            }
        }
    }
}

/// The most characters of a URL, as it is given and as it is sent.
const MAX_URL: usize = 2_048;

/// A URL to push to: `https` (or `http`, which the deployment's policy may refuse), at most 2,048 characters, with a
/// host, no user info and no fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionUrl(Url);

impl SubscriptionUrl {
    /// Checks the form; whether it may be reached, the guard says.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let rule = || Invalid::new("must be at most 2048 characters");
        if text.len() > MAX_URL {
            return Err(rule());
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Invalid::new("must not hold control characters or spaces"));
        }
        let url = Url::parse(text).map_err(|error| Invalid::new(format!("must be a URL: {error}")))?;
        // As it is sent and stored it may be longer: what is not ASCII is encoded. What is accepted must be read again.
        if url.as_str().len() > MAX_URL {
            return Err(rule());
        }
        if !matches!(url.scheme(), "https" | "http") {
            return Err(Invalid::new("must begin with https://"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(Invalid::new("must have a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Invalid::new("must not hold a user name or password"));
        }
        if url.fragment().is_some() {
            return Err(Invalid::new("must not have a fragment (#…)"));
        }
        if url.port_or_known_default() == Some(0) {
            return Err(Invalid::new("must not have port 0"));
        }
        Ok(Self(url))
    }

    /// The URL.
    pub const fn url(&self) -> &Url {
        &self.0
    }

    /// As it is shown and stored.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// How long to wait before each retry, in seconds: at most 20 waits of 1 second to 7 days. After the last the delivery
/// is a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RetrySchedule(Vec<u32>);

impl RetrySchedule {
    /// The longest wait.
    pub const MAX_SECONDS: u32 = 7 * 24 * 3600;
    /// The most waits.
    pub const MAX_RETRIES: usize = 20;
    /// How far a wait strays from the schedule, either way.
    pub const JITTER: f64 = 0.2;

    /// Checks the rule.
    pub fn new(seconds: Vec<u32>) -> Result<Self, Invalid> {
        if seconds.len() > Self::MAX_RETRIES {
            return Err(Invalid::new("must have at most 20 entries"));
        }
        if seconds.iter().any(|wait| !(1..=Self::MAX_SECONDS).contains(wait)) {
            return Err(Invalid::new(
                "must hold whole numbers of seconds from 1 to 604800",
            ));
        }
        Ok(Self(seconds))
    }

    /// The waits, in seconds.
    pub fn seconds(&self) -> &[u32] {
        &self.0
    }

    /// How long to wait after attempt number `attempt` (from 1) has failed: the schedule's wait, ±20 % by
    /// `random`, which is in [0, 1). `None` once the schedule is used up.
    pub fn wait_after(&self, attempt: u32, random: f64) -> Option<Duration> {
        let wait = *self.0.get(usize::try_from(attempt).ok()?.checked_sub(1)?)?;
        Some(Duration::from_secs_f64(
            f64::from(wait) * (1.0 - Self::JITTER + 2.0 * Self::JITTER * random),
        ))
    }
}

impl Default for RetrySchedule {
    /// About 27 hours in seven retries.
    fn default() -> Self {
        Self(vec![5, 300, 1_800, 7_200, 18_000, 36_000, 36_000])
    }
}

macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident: $inner:ty, $min:literal..=$max:literal, $default:literal) => {
        bounded! { $(#[$doc])* $name: $inner, $min..=$max }

        impl Default for $name {
            fn default() -> Self {
                Self($default)
            }
        }
    };
    ($(#[$doc:meta])* $name:ident: $inner:ty, $min:literal..=$max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Checks the range.
            pub fn new(value: u64) -> Result<Self, Invalid> {
                <$inner>::try_from(value).ok().filter(|value| ($min..=$max).contains(value)).map(Self).ok_or_else(
                    || Invalid::new(concat!("must be a whole number from ", $min, " to ", $max)),
                )
            }

            /// The number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }
    };
}

bounded! {
    /// How long one attempt may take in all, in milliseconds: 1,000 to 30,000, 15,000 unless set.
    AttemptTimeout: u32, 1_000..=30_000, 15_000
}
bounded! {
    /// How many attempts of one subscription may be under way at once: 1 to 256, 16 unless set.
    MaxInFlight: u16, 1..=256, 16
}
bounded! {
    /// How many attempts at one subscription may begin within a second, over all workers: 1 to 10,000.
    RateLimit: u32, 1..=10_000
}

impl AttemptTimeout {
    /// As a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }
}

impl fmt::Display for SubscriptionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_documented() {
        let matches = |pattern: &str, event_type: &str| {
            EventPattern::parse(pattern)
                .unwrap()
                .matches(&EventType::parse_any(event_type).unwrap())
        };
        for (pattern, event_type, fits) in [
            ("*", "user", true),
            ("*", "user.created", true),
            ("*", "triggers.subscription.disabled", false),
            ("user.created", "user.created", true),
            ("user.created", "user.created.now", false),
            ("user.created", "User.created", false),
            ("user.*", "user.created", true),
            ("user.*", "user", false),
            ("user.*", "user.created.now", false),
            ("user.**", "user.created", true),
            ("user.**", "user.created.now", true),
            ("user.**", "user", false),
            ("*.created", "user.created", true),
            ("*.*", "triggers.disabled", false),
            ("triggers.**", "triggers.subscription.disabled", true),
            ("user.*.done", "user.import.done", true),
        ] {
            assert_eq!(matches(pattern, event_type), fits, "{pattern} {event_type}");
        }
        for bad in ["", "**", "user*", "user.**.done", "a b", "us*er.x", "\"x\""] {
            assert!(EventPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_that_are_refused() {
        for bad in [
            "",
            "example.com",
            "ftp://example.com",
            "https://",
            "https://u@example.com",
            "https://u:p@example.com",
            "https://example.com/#a",
            "https://exa mple.com",
            "https://example.com/\n",
            "https://example.com:0/",
            "javascript:alert(1)",
            "file:///etc/passwd",
        ] {
            assert!(SubscriptionUrl::parse(bad).is_err(), "{bad}");
        }
        assert!(SubscriptionUrl::parse("https://example.com/hook?a=b").is_ok());
        let long = format!("https://example.com/{}", "a".repeat(2_048));
        assert!(SubscriptionUrl::parse(&long).is_err());
        let longer_once_encoded = format!("https://example.com/{}", "é".repeat(700));
        assert!(longer_once_encoded.len() < 2_048);
        assert!(SubscriptionUrl::parse(&longer_once_encoded).is_err());
    }

    proptest! {
        /// The store reads it by the same rule: one that it refused would stop all that is asked of its organization.
        #[test]
        fn a_url_that_is_accepted_is_accepted_as_it_is_stored(rest in "\\PC{0,40}", times in 1usize..400) {
            if let Ok(url) = SubscriptionUrl::parse(&format!("https://example.com/{}", rest.repeat(times))) {
                prop_assert_eq!(SubscriptionUrl::parse(url.as_str()), Ok(url));
            }
            if let Ok(url) = SubscriptionUrl::parse(&format!("http://{rest}")) {
                prop_assert_eq!(SubscriptionUrl::parse(url.as_str()), Ok(url));
            }
        }

        #[test]
        fn waits_stay_within_their_jitter(waits in prop::collection::vec(1..=RetrySchedule::MAX_SECONDS, 0..=20),
                                          attempt in 0u32..30, random in 0.0..1.0f64) {
            let schedule = RetrySchedule::new(waits.clone()).unwrap();
            match schedule.wait_after(attempt, random) {
                Some(wait) => {
                    let planned = f64::from(waits[attempt as usize - 1]);
                    prop_assert!(wait.as_secs_f64() >= planned * 0.8 - 1e-6);
                    prop_assert!(wait.as_secs_f64() <= planned * 1.2 + 1e-6);
                }
                None => prop_assert!(attempt == 0 || attempt as usize > waits.len()),
            }
        }

        /// Equal draws give equal shares of the whole width, so that what fails together does not come back together.
        #[test]
        fn jitter_spreads_evenly_about_the_schedule(wait in 1..=RetrySchedule::MAX_SECONDS, low in 0.0..1.0f64,
                                                    high in 0.0..1.0f64) {
            let schedule = RetrySchedule::new(vec![wait]).unwrap();
            let at = |random| schedule.wait_after(1, random).unwrap().as_secs_f64();
            let width = f64::from(wait) * 2.0 * RetrySchedule::JITTER;
            prop_assert!((at(0.5) - f64::from(wait)).abs() < 1e-6);
            prop_assert!((at(high) - at(low) - (high - low) * width).abs() < 1e-6 * f64::from(wait));
        }

        #[test]
        fn a_schedule_is_taken_exactly_if_it_follows_the_rule(
            waits in prop::collection::vec(prop_oneof![4 => 1..=RetrySchedule::MAX_SECONDS, 1 => any::<u32>()], 0..=24),
        ) {
            let follows = waits.len() <= RetrySchedule::MAX_RETRIES
                && waits.iter().all(|wait| *wait >= 1 && *wait <= 604_800);
            let taken = RetrySchedule::new(waits.clone());
            prop_assert_eq!(taken.is_ok(), follows);
            if let Ok(schedule) = taken {
                let planned = |attempt| schedule.wait_after(attempt, 0.5).map(|wait| wait.as_secs_f64());
                let attempts = 1..=u32::try_from(waits.len()).unwrap();
                for (attempt, wait) in attempts.zip(&waits) {
                    let planned = planned(attempt).unwrap();
                    prop_assert!((planned - f64::from(*wait)).abs() < 1e-6);
                }
                prop_assert_eq!(schedule.wait_after(u32::try_from(waits.len()).unwrap() + 1, 0.5), None);
                prop_assert_eq!(schedule.wait_after(u32::MAX, 0.5), None);
            }
        }
    }
}
