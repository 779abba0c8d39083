//! Events of the system's own, under `triggers.`: for whoever subscribes to them, and nobody else.

use crate::{EventId, SubscriptionId};

/// A delivery's last retry failed.
pub const DEAD_LETTERED: &str = "triggers.delivery.dead_lettered";
/// A subscription was disabled by the system.
pub const DISABLED: &str = "triggers.subscription.disabled";
/// A subscription that had failed for long succeeded again.
pub const RECOVERED: &str = "triggers.subscription.recovered";

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
        (!event_type.starts_with("triggers.")).then(|| Self::new(DEAD_LETTERED, &payload))
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
