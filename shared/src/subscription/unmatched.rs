//! Why an event has no delivery to a subscription, judged by the subscription as it is now: what it was when the event
//! was stored, nobody keeps.

use serde::Serialize;

use super::{Builtin, Subscription};
use crate::{EventType, Timestamp, announcement::SYSTEM, filter::Verdict};

/// Why an event has no delivery to a subscription. That it is disabled is no reason: its deliveries are parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoMatch {
    /// The type is none of those that it asks for.
    EventType,
    /// The event is the system's own, and goes only to those that name such types.
    SystemEvent,
    /// Its filter is false for the event.
    Filter,
    /// Its filter cannot be evaluated for the event.
    FilterFailed,
    /// It is the built-in inbox, which takes what no other subscription wants.
    OthersMatch,
    /// It would match, and was made after the event was accepted.
    CreatedLater,
    /// It would match, and was changed since: it asked for other events when this one was stored.
    ChangedLater,
}

impl NoMatch {
    /// Why an event of this type, accepted at this time, has no delivery to the subscription, whatever its filter says.
    pub fn why(subscription: &Subscription, event_type: &EventType, received_at: Timestamp) -> Self {
        let is_system = event_type.as_str().starts_with(SYSTEM);
        let asks_for_system = || {
            subscription
                .event_types
                .iter()
                .any(super::EventPattern::names_system_types)
        };
        match subscription.builtin {
            Some(Builtin::Inbox) if is_system => Self::SystemEvent,
            Some(Builtin::Inbox) => Self::OthersMatch,
            _ if subscription.wants(event_type) && subscription.created_at > received_at => {
                Self::CreatedLater
            }
            _ if subscription.wants(event_type) => Self::ChangedLater,
            _ if is_system && !asks_for_system() => Self::SystemEvent,
            _ => Self::EventType,
        }
    }

    /// Why, by what its filter says as well: it is asked if the type is one that the subscription wants.
    #[must_use]
    pub const fn or_filter(self, verdict: Option<&Verdict>) -> Self {
        match verdict {
            Some(Verdict::False) => Self::Filter,
            Some(Verdict::Failed(_)) => Self::FilterFailed,
            Some(Verdict::Matches) | None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        EventPattern, OrganizationId, SubscriptionId,
        subscription::{Metadata, Target},
    };

    #[test]
    fn each_reason_has_its_case() {
        let made = Timestamp::from_millis(1_700_000_000_000);
        let hour = Duration::from_hours(1);
        let (before, after) = (made.minus(hour), made.plus(hour));
        for (patterns, builtin, event_type, received_at, expected) in [
            (&["order.*"][..], None, "user.created", after, NoMatch::EventType),
            (
                &["*"],
                None,
                "triggers.delivery.expired",
                after,
                NoMatch::SystemEvent,
            ),
            (
                &["triggers.subscription.*"],
                None,
                "triggers.delivery.expired",
                after,
                NoMatch::EventType,
            ),
            (
                &["*"],
                Some(Builtin::Inbox),
                "user.created",
                before,
                NoMatch::OthersMatch,
            ),
            (
                &["*"],
                Some(Builtin::Inbox),
                "triggers.delivery.expired",
                after,
                NoMatch::SystemEvent,
            ),
            (
                &["*"],
                Some(Builtin::Webhook),
                "user.created",
                before,
                NoMatch::CreatedLater,
            ),
            (
                &["order.*", "user.*"],
                None,
                "user.created",
                after,
                NoMatch::ChangedLater,
            ),
        ] {
            let subscription = Subscription {
                id: SubscriptionId::new(),
                organization: OrganizationId::new(),
                builtin,
                target: Target::Pull,
                event_types: patterns
                    .iter()
                    .map(|pattern| EventPattern::parse(pattern).unwrap())
                    .collect(),
                enabled: false,
                disabled_reason: None,
                description: None,
                filter: None,
                metadata: Metadata::default(),
                version: 1,
                created_at: made,
                updated_at: made,
                enabled_at: None,
            };
            let event_type = EventType::parse_any(event_type).unwrap();
            let why = NoMatch::why(&subscription, &event_type, received_at);
            assert_eq!(why, expected, "{patterns:?} {event_type}");
            assert_eq!(why.or_filter(None), expected);
            assert_eq!(why.or_filter(Some(&Verdict::Matches)), expected);
            assert_eq!(why.or_filter(Some(&Verdict::False)), NoMatch::Filter);
            let failed = Verdict::Failed(String::new());
            assert_eq!(why.or_filter(Some(&failed)), NoMatch::FilterFailed);
        }
    }
}
