//! Deliveries: one event to one subscription, and the attempts at it.

use std::{str::FromStr, time::Duration};

use serde::Serialize;

use crate::{EventId, Invalid, OrganizationId, SubscriptionId, Timestamp, announcement::Announcement};

/// What the store keeps of where a delivery is. Whether an open one is in flight or parked is asked of its lease and
/// of its subscription, not written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Open: no attempt has failed yet.
    Pending,
    /// Open: an attempt has failed, another is due.
    Retrying,
    /// The subscriber took it.
    Delivered,
    /// The last retry failed.
    DeadLetter,
    /// The subscriber, or its owner, acknowledged it.
    Acknowledged,
    /// Called off.
    Cancelled,
    /// Still open when its retention ended.
    Expired,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Retrying,
        Self::Delivered,
        Self::DeadLetter,
        Self::Acknowledged,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Its name in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Delivered => "delivered",
            Self::DeadLetter => "dead_letter",
            Self::Acknowledged => "acknowledged",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether something is still to be done.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Retrying)
    }
}

impl FromStr for State {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| Invalid::new("must be a delivery state"))
    }
}

/// What the API says of where a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting for its first attempt, or (kind `pull`) to be fetched.
    Pending,
    /// A worker holds it: it is being sent, or next in its lane. Or (kind `pull`) it is leased.
    InFlight,
    /// An attempt failed; the next is due at `next_attempt_at`.
    Retrying,
    /// Open, and its subscription is disabled.
    Parked,
    /// The subscriber took it.
    Delivered,
    /// The last retry failed.
    DeadLetter,
    /// Acknowledged.
    Acknowledged,
    /// Called off.
    Cancelled,
    /// Still open when its retention ended.
    Expired,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::InFlight,
        Self::Retrying,
        Self::Parked,
        Self::Delivered,
        Self::DeadLetter,
        Self::Acknowledged,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Its name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InFlight => "in_flight",
            Self::Retrying => "retrying",
            Self::Parked => "parked",
            Self::Delivered => "delivered",
            Self::DeadLetter => "dead_letter",
            Self::Acknowledged => "acknowledged",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// From what the store keeps: the state, whether a living worker or a lease holds it, and how its subscription is.
    pub const fn of(state: State, held: bool, subscription: SubscriptionCondition) -> Self {
        match (state, subscription) {
            (State::Pending | State::Retrying, SubscriptionCondition::Deleted) | (State::Cancelled, _) => {
                Self::Cancelled
            }
            (State::Pending | State::Retrying, _) if held => Self::InFlight,
            (State::Pending | State::Retrying, SubscriptionCondition::Disabled) => Self::Parked,
            (State::Pending, SubscriptionCondition::Enabled) => Self::Pending,
            (State::Retrying, SubscriptionCondition::Enabled) => Self::Retrying,
            (State::Delivered, _) => Self::Delivered,
            (State::DeadLetter, _) => Self::DeadLetter,
            (State::Acknowledged, _) => Self::Acknowledged,
            (State::Expired, _) => Self::Expired,
        }
    }

    /// Whether something is still to be done.
    pub const fn is_open(self) -> bool {
        matches!(
            self,
            Self::Pending | Self::InFlight | Self::Retrying | Self::Parked
        )
    }
}

impl FromStr for Status {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| {
                Invalid::new(
                    "must be pending, in_flight, retrying, parked, delivered, dead_letter, acknowledged, cancelled \
                     or expired",
                )
            })
    }
}

/// How a delivery's subscription is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscriptionCondition {
    /// Served.
    Enabled,
    /// Its deliveries are parked.
    Disabled,
    /// Its open deliveries are as good as cancelled.
    Deleted,
}

/// An event's status, by the first of these that fits its deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventStatus {
    /// A delivery is open.
    Pending,
    /// A delivery is a dead letter.
    DeadLetter,
    /// A delivery expired.
    Expired,
    /// A delivery was delivered.
    Delivered,
    /// A delivery was acknowledged.
    Acknowledged,
    /// All deliveries were cancelled.
    Cancelled,
}

impl EventStatus {
    /// Every status, in the order in which they go first.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::DeadLetter,
        Self::Expired,
        Self::Delivered,
        Self::Acknowledged,
        Self::Cancelled,
    ];

    /// Its name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::DeadLetter => "dead_letter",
            Self::Expired => "expired",
            Self::Delivered => "delivered",
            Self::Acknowledged => "acknowledged",
            Self::Cancelled => "cancelled",
        }
    }

    /// From the statuses of all its deliveries.
    pub fn of(deliveries: impl IntoIterator<Item = Status>) -> Self {
        deliveries
            .into_iter()
            .map(|status| match status {
                Status::Pending | Status::InFlight | Status::Retrying | Status::Parked => Self::Pending,
                Status::DeadLetter => Self::DeadLetter,
                Status::Expired => Self::Expired,
                Status::Delivered => Self::Delivered,
                Status::Acknowledged => Self::Acknowledged,
                Status::Cancelled => Self::Cancelled,
            })
            .min_by_key(|status| *status as u8)
            .unwrap_or(Self::Pending)
    }
}

impl std::str::FromStr for EventStatus {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let status = Self::ALL.into_iter().find(|status| status.as_str() == text);
        status.ok_or_else(|| {
            Invalid::new("must be pending, dead_letter, expired, delivered, acknowledged or cancelled")
        })
    }
}

/// A delivery's address: its primary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryKey {
    /// The event.
    pub event: EventId,
    /// The subscription.
    pub subscription: SubscriptionId,
}

/// What went wrong in an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The host's name did not resolve.
    Dns,
    /// The host resolves to an address that must not be reached.
    BlockedAddress,
    /// No connection, or it broke.
    Connect,
    /// The handshake or the certificate failed.
    Tls,
    /// The deadline passed.
    Timeout,
    /// An answer that is not 2xx.
    Status,
    /// The answer's body broke off.
    Body,
    /// The delivery cannot be sent as it is: its secret, its headers or its URL are none.
    Unsendable,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Dns,
        Self::BlockedAddress,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Status,
        Self::Body,
        Self::Unsendable,
    ];

    /// Its name in the API, the store and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::BlockedAddress => "blocked_address",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Body => "body",
            Self::Unsendable => "unsendable",
        }
    }
}

impl FromStr for FailureKind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| Invalid::new("must be a kind of failure"))
    }
}

/// How an attempt ended, for the store to apply. It applies only if the delivery is open, held by the worker that
/// says so, and has had exactly `number - 1` attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptOutcome {
    /// Of which delivery.
    pub delivery: DeliveryKey,
    /// Whose it is.
    pub organization: OrganizationId,
    /// Which attempt it was, from 1.
    pub number: u32,
    /// When it began, by the worker's clock: to be shown, not to be reckoned with.
    pub started_at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub result: AttemptResult,
    /// What is announced if it applies.
    pub announcement: Option<Announcement>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptResult {
    /// With a 2xx.
    Delivered {
        /// The status code.
        status_code: u16,
    },
    /// With anything else.
    Failed {
        /// What went wrong.
        failure: Failure,
        /// What comes next.
        next: Next,
    },
}

/// What went wrong, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// The answer's status code, where there was an answer.
    pub status_code: Option<u16>,
    /// The answer's first 1 KiB (lossy UTF-8, without NUL), or what the error said.
    pub detail: String,
}

/// What comes after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another attempt, this long after now by the store's clock.
    Retry {
        /// How long.
        after: Duration,
    },
    /// Nothing: it is a dead letter.
    DeadLetter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_what_its_first_fitting_delivery_is() {
        use Status as S;
        for (deliveries, expected) in [
            (vec![S::Delivered, S::Parked], EventStatus::Pending),
            (vec![S::Delivered, S::DeadLetter], EventStatus::DeadLetter),
            (vec![S::Acknowledged, S::Delivered], EventStatus::Delivered),
            (vec![S::Cancelled, S::Acknowledged], EventStatus::Acknowledged),
            (vec![S::Delivered, S::Expired], EventStatus::Expired),
            (vec![S::Cancelled], EventStatus::Cancelled),
        ] {
            assert_eq!(EventStatus::of(deliveries.clone()), expected, "{deliveries:?}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            let shown = serde_json::to_value(status).unwrap();
            assert_eq!(shown, status.as_str());
        }
        for kind in FailureKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
    }
}
