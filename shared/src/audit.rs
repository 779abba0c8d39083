//! The audit log: who has changed what of organizations, keys, subscriptions and what else is set, and from where.
//!
//! An entry is written by the store, in the transaction of the change that it tells of: there is no change without one, and none
//! without a change. It names what was changed, and never how it was or is: no secret and no header can be in it.
//!
//! On whose behalf a change is made travels with the task that makes it ([`on_behalf`]): a change that nobody has thought
//! to attribute is the system's, and is in the log all the same.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use crate::{AuditEntryId, EventId, Invalid, KeyId, OrganizationId, Subscription, SubscriptionId, Timestamp};

/// Who has made a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// Whoever has this key.
    Key(KeyId),
    /// Whoever has the deployment's admin token.
    AdminToken,
    /// Whoever asked without either, where that is open.
    Anyone,
    /// A command on a machine of the deployment.
    Command,
    /// The system, by a rule.
    System,
}

impl Actor {
    /// What kind of actor it is, as it is stored and shown.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::AdminToken => "admin_token",
            Self::Anyone => "anyone",
            Self::Command => "command",
            Self::System => "system",
        }
    }

    /// The key, if it is one.
    pub const fn key(self) -> Option<KeyId> {
        match self {
            Self::Key(key) => Some(key),
            _ => None,
        }
    }

    /// From how it is stored; `None` if it is not stored so.
    pub(crate) fn stored(kind: &str, key: Option<KeyId>) -> Option<Self> {
        match (kind, key) {
            ("key", Some(key)) => Some(Self::Key(key)),
            ("admin_token", None) => Some(Self::AdminToken),
            ("anyone", None) => Some(Self::Anyone),
            ("command", None) => Some(Self::Command),
            ("system", None) => Some(Self::System),
            _ => None,
        }
    }
}

/// The request or command that changes things.
#[derive(Debug)]
pub struct Origin {
    actor: OnceLock<Actor>,
    unless_said: Actor,
    request_id: Option<String>,
    address: Option<IpAddr>,
}

impl Origin {
    /// A request, of whom it is not known yet who makes it.
    pub const fn request(request_id: Option<String>, address: Option<IpAddr>) -> Self {
        Self {
            actor: OnceLock::new(),
            unless_said: Actor::Anyone,
            request_id,
            address,
        }
    }

    /// A command on a machine of the deployment.
    pub const fn command() -> Self {
        Self {
            actor: OnceLock::new(),
            unless_said: Actor::Command,
            request_id: None,
            address: None,
        }
    }
}

tokio::task_local! {
    static ORIGIN: Arc<Origin>;
}

/// Does something on behalf of a request or command. What it spawns is not part of that.
pub async fn on_behalf<F: Future>(origin: Origin, work: F) -> F::Output {
    ORIGIN.scope(Arc::new(origin), work).await
}

/// Notes who makes the request that this task works for; the first to be noted stays.
pub fn made_by(actor: Actor) {
    let _ = ORIGIN.try_with(|origin| {
        let _ = origin.actor.set(actor);
    });
}

/// On whose behalf something is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct By {
    pub(crate) actor: Actor,
    pub(crate) request_id: Option<String>,
    pub(crate) address: Option<IpAddr>,
}

impl By {
    /// The system itself.
    pub(crate) const SYSTEM: Self = Self {
        actor: Actor::System,
        request_id: None,
        address: None,
    };

    /// Whoever this task works for.
    pub(crate) fn now() -> Self {
        ORIGIN
            .try_with(|origin| Self {
                actor: *origin.actor.get().unwrap_or(&origin.unless_said),
                request_id: origin.request_id.clone(),
                address: origin.address,
            })
            .unwrap_or(Self::SYSTEM)
    }
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What has happened to something.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Action {
            $($(#[$doc])* $name,)*
        }

        impl Action {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As it is stored and shown.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

actions! {
    /// An organization was created.
    OrganizationCreated = "organization.created",
    /// An organization was changed.
    OrganizationUpdated = "organization.updated",
    /// An organization is removed, with everything of it; told of at the deployment's side, for at the organization's nothing is left.
    OrganizationRemoved = "organization.removed",
    /// A key was made.
    KeyCreated = "key.created",
    /// A key has another in its place.
    KeyRotated = "key.rotated",
    /// A key was revoked.
    KeyRevoked = "key.revoked",
    /// A subscription was created.
    SubscriptionCreated = "subscription.created",
    /// A subscription was changed.
    SubscriptionUpdated = "subscription.updated",
    /// A subscription was enabled, and nothing else of it changed.
    SubscriptionEnabled = "subscription.enabled",
    /// A subscription was disabled, and nothing else of it changed.
    SubscriptionDisabled = "subscription.disabled",
    /// A subscription was deleted.
    SubscriptionDeleted = "subscription.deleted",
    /// A subscription has another signing secret.
    SecretRotated = "subscription.secret_rotated",
    /// A subscription's secret or headers were sealed under another key of the deployment.
    SubscriptionResealed = "subscription.resealed",
    /// A test push was asked for.
    SubscriptionTested = "subscription.tested",
    /// A replay was begun.
    ReplayCreated = "replay.created",
    /// A replay was called off.
    ReplayCancelled = "replay.cancelled",
    /// A delivery was opened again, or brought forward.
    DeliveryRetried = "delivery.retried",
    /// A delivery was called off.
    DeliveryCancelled = "delivery.cancelled",
    /// What a producer sent was erased, or is to be when it comes.
    EventErased = "event.erased",
    /// What was set aside went back into the queue.
    PutBack = "set_aside.put_back",
    /// What was set aside was thrown away.
    Discarded = "set_aside.discarded",
    /// The deployment's secret key is another.
    SecretKeyChanged = "deployment.secret_key_changed",
}

impl std::str::FromStr for Action {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let named = Self::ALL.iter().find(|action| action.as_str() == text);
        named.copied().ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|action| action.as_str()).collect();
            Invalid::new(format!("must be one of {}", all.join(", ")))
        })
    }
}

/// A change, as the store writes it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Whose log it is in; `None` is the deployment's own.
    pub(crate) organization: Option<OrganizationId>,
    pub(crate) action: Action,
    /// The id of what has changed, as it is shown.
    pub(crate) target: String,
    /// Of a replay or a delivery: of which subscription.
    pub(crate) subscription: Option<SubscriptionId>,
    /// The fields that are other than before.
    pub(crate) changed: Vec<&'static str>,
    /// Why, where the system has a reason.
    pub(crate) reason: Option<String>,
}

impl Change {
    /// One of which there is nothing more to say.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "nearly all are ids, which are copied"
    )]
    pub(crate) fn of(
        organization: impl Into<Option<OrganizationId>>,
        action: Action,
        target: impl ToString,
    ) -> Self {
        Self {
            organization: organization.into(),
            action,
            target: target.to_string(),
            subscription: None,
            changed: Vec::new(),
            reason: None,
        }
    }

    /// Of a subscription that a client has changed; `None` if nothing is other than before.
    pub(crate) fn of_subscription(before: &Subscription, after: &Subscription) -> Option<Self> {
        let changed = after.other_than(before);
        let action = match (changed.as_slice(), after.enabled) {
            ([], _) => return None,
            (["enabled"], true) => Action::SubscriptionEnabled,
            (["enabled"], false) => Action::SubscriptionDisabled,
            _ => Action::SubscriptionUpdated,
        };
        Some(Self::of(after.organization, action, after.id).with_changed(changed))
    }

    /// Of a delivery: its event is what it is named by.
    pub(crate) fn of_delivery(
        organization: OrganizationId,
        action: Action,
        event: EventId,
        subscription: SubscriptionId,
    ) -> Self {
        Self::of(organization, action, event).with_subscription(subscription)
    }

    pub(crate) fn with_subscription(mut self, subscription: SubscriptionId) -> Self {
        self.subscription = Some(subscription);
        self
    }

    pub(crate) fn with_changed(mut self, changed: Vec<&'static str>) -> Self {
        self.changed = changed;
        self
    }

    pub(crate) fn because(mut self, reason: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self
    }
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its id.
    pub id: AuditEntryId,
    /// Whose log it is in; `None` is the deployment's own.
    pub organization: Option<OrganizationId>,
    /// When it was, by the store's clock.
    pub at: Timestamp,
    /// What has happened, as [`Action::as_str`] says it. A later version may know others.
    pub action: String,
    /// Who did it.
    pub actor: Actor,
    /// The id of what has changed, as it is shown.
    pub target: String,
    /// Of a replay or a delivery: of which subscription.
    pub subscription: Option<SubscriptionId>,
    /// The fields that are other than before.
    pub changed: Vec<String>,
    /// Why, where the system had a reason.
    pub reason: Option<String>,
    /// The request by which it was done.
    pub request_id: Option<String>,
    /// From where that came.
    pub address: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_by_whoever_the_task_works_for() {
        assert_eq!(By::now(), By::SYSTEM);
        let address = Some(IpAddr::from([127, 0, 0, 1]));
        let key = KeyId::new();
        on_behalf(Origin::request(Some("a-request".to_owned()), address), async {
            assert_eq!(By::now().actor, Actor::Anyone);
            made_by(Actor::Key(key));
            made_by(Actor::AdminToken);
            let by = By::now();
            assert_eq!(by.actor, Actor::Key(key), "the first stays");
            assert_eq!(
                (by.request_id.as_deref(), by.address),
                (Some("a-request"), address)
            );
            let spawned = tokio::spawn(async { By::now() }).await.unwrap();
            assert_eq!(spawned, By::SYSTEM);
        })
        .await;
        on_behalf(Origin::command(), async {
            assert_eq!(By::now().actor, Actor::Command);
        })
        .await;
        assert_eq!(By::now(), By::SYSTEM);
    }

    #[test]
    fn actions_are_read_as_they_are_written() {
        for action in Action::ALL {
            assert_eq!(action.as_str().parse(), Ok(*action));
        }
        assert!("subscription.painted".parse::<Action>().is_err());
        let key = KeyId::new();
        for actor in [
            Actor::Key(key),
            Actor::AdminToken,
            Actor::Anyone,
            Actor::Command,
            Actor::System,
        ] {
            assert_eq!(Actor::stored(actor.kind(), actor.key()), Some(actor));
        }
        assert_eq!(Actor::stored("key", None), None);
    }
}
