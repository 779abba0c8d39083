//! Events of the system's own, under `triggers.`: for whoever subscribes to them, and nobody else.

use std::collections::BTreeMap;

use crate::{DeliveryKey, EventId, OrganizationId, SubscriptionId};

/// A delivery's last retry failed.
pub const DEAD_LETTERED: &str = "triggers.delivery.dead_lettered";
/// Deliveries of a subscription were still open when their retention ended.
pub const EXPIRED: &str = "triggers.delivery.expired";
/// A subscription was disabled by the system.
pub const DISABLED: &str = "triggers.subscription.disabled";
/// A subscription that had failed for long succeeded again.
pub const RECOVERED: &str = "triggers.subscription.recovered";
/// A test push: for the subscription that is tested alone, whatever it asks for.
pub const TEST: &str = "triggers.test";

/// The payload of a test push.
pub fn test_payload(subscription: SubscriptionId) -> String {
    let message = "This is a test. Whoever answers it with 2xx is ready for events.";
    serde_json::json!({"subscription": subscription, "message": message}).to_string()
}

/// What the types of all of them begin with.
pub const SYSTEM: &str = "triggers.";

/// An event to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The event's id.
    pub id: EventId,
    /// Its type.
    pub event_type: &'static str,
    /// Its payload, which is JSON.
    pub payload: String,
}

impl Announcement {
    /// Of a delivery whose last retry failed; `None` where that was of an event of the system's own, which begets no others.
    pub fn dead_lettered(
        event: EventId,
        event_type: &str,
        subscription: SubscriptionId,
        attempts: u32,
        failure: &crate::delivery::Failure,
    ) -> Option<Self> {
        let payload = serde_json::json!({
            "event": event,
            "event_type": event_type,
            "subscription": subscription,
            "attempts": attempts,
            "error": failure.kind,
            "status_code": failure.status_code,
        });
        (!event_type.starts_with(SYSTEM)).then(|| Self::new(DEAD_LETTERED, &payload))
    }

    /// Of a subscription that the system disables.
    pub fn disabled(subscription: SubscriptionId, reason: &str) -> Self {
        Self::new(
            DISABLED,
            &serde_json::json!({"subscription": subscription, "reason": reason}),
        )
    }

    /// Of a subscription that succeeds again after so long.
    pub fn recovered(subscription: SubscriptionId, failing_seconds: u64) -> Self {
        let payload = serde_json::json!({"subscription": subscription, "failing_seconds": failing_seconds});
        Self::new(RECOVERED, &payload)
    }

    fn new(event_type: &'static str, payload: &serde_json::Value) -> Self {
        Self {
            id: EventId::new(),
            event_type,
            payload: payload.to_string(),
        }
    }
}

/// Deliveries that expired together, to be told of by one event a subscription: thousands may expire at once.
#[derive(Debug, Default)]
pub struct Expiries(BTreeMap<(OrganizationId, SubscriptionId), (u64, Vec<EventId>)>);

impl Expiries {
    /// How many events an announcement names as examples.
    const EXAMPLES: usize = 10;

    /// One more, of an event that is not the system's own: those beget no others.
    pub fn add(&mut self, organization: OrganizationId, delivery: DeliveryKey) {
        let (count, examples) = self.0.entry((organization, delivery.subscription)).or_default();
        *count += 1;
        if examples.len() < Self::EXAMPLES {
            examples.push(delivery.event);
        }
    }

    /// What there is to announce, and to whom.
    pub fn announcements(self) -> impl Iterator<Item = (OrganizationId, Announcement)> {
        self.0
            .into_iter()
            .map(|((organization, subscription), (count, events))| {
                let payload =
                    serde_json::json!({"subscription": subscription, "count": count, "events": events});
                (organization, Announcement::new(EXPIRED, &payload))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expires_together_is_told_of_once_a_subscription() {
        let (ours, theirs) = (OrganizationId::new(), OrganizationId::new());
        let (one, other) = (SubscriptionId::new(), SubscriptionId::new());
        let mut expiries = Expiries::default();
        let first = EventId::new();
        let mut add = |organization, subscription, event| {
            expiries.add(organization, DeliveryKey { event, subscription });
        };
        add(ours, one, first);
        for _ in 0..99 {
            add(ours, one, EventId::new());
        }
        add(theirs, other, first);
        let told: Vec<_> = expiries.announcements().collect();
        assert_eq!(
            told.iter()
                .map(|(organization, _)| *organization)
                .collect::<Vec<_>>(),
            [ours, theirs]
        );
        let payload: serde_json::Value = serde_json::from_str(&told[0].1.payload).unwrap();
        assert_eq!(
            (&payload["count"], &payload["events"][0]),
            (&100.into(), &first.to_string().into())
        );
        assert_eq!(
            payload["events"].as_array().map(Vec::len),
            Some(Expiries::EXAMPLES)
        );
        assert_eq!(told[1].1.event_type, EXPIRED);
    }
}
