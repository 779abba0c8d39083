//! Subscriptions: which events go where.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

#[cfg(doc)]
use super::{Change, Keeper, PAGE_BYTES};
use super::{Page, PageRequest, Result};
use crate::{
    EventPattern, EventType, Filter, OrganizationId, Subscription, SubscriptionId,
    filter::FiltersFull,
    seal::{KeyId, Sealed},
    signature::SignatureScheme,
    subscription::{Full, Metadata, Target},
};

/// A change to a subscription; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct SubscriptionPatch {
    /// The target as a whole: the caller has read the current one and changed it.
    pub target: Option<Target>,
    /// Which events it wants.
    pub event_types: Option<Vec<EventPattern>>,
    /// Which of those events; `Some(None)` is all.
    pub filter: Option<Option<Filter>>,
    /// Whether it is served.
    pub enabled: Option<bool>,
    /// A text for people; `Some(None)` removes it.
    pub description: Option<Option<String>>,
    /// The metadata as a whole: the caller has read the current one and changed it.
    pub metadata: Option<Metadata>,
}

/// What came of a change to a subscription.
#[derive(Debug, Clone)]
pub enum PatchOutcome {
    /// It was made; this is how the subscription is now.
    Changed(Box<Subscription>),
    /// Somebody else changed it since the caller read it; read it again.
    Conflict,
    /// The organization has no such subscription.
    NotFound,
    /// The organization's filters leave no room for the one that it was to have.
    FiltersFull(FiltersFull),
}

/// A secret to be.
#[derive(Debug, Clone)]
pub struct NewSecret {
    /// How it signs.
    pub scheme: SignatureScheme,
    /// The secret, sealed for the subscription.
    pub secret: Sealed,
    /// What to verify by, where the scheme has such a thing.
    pub public_key: Option<String>,
}

/// What is sealed of a subscription.
#[derive(Debug, Clone)]
pub struct SealedSecrets {
    /// Whose it is.
    pub organization: OrganizationId,
    /// Which it is.
    pub id: SubscriptionId,
    /// The current secret, the one before it, and the static headers, as far as they are there.
    pub secrets: Vec<Sealed>,
}

/// An organization's subscriptions as intake sees them.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The organization.
    pub organization: OrganizationId,
    /// Counts the changes to the organization's subscriptions.
    pub version: i64,
    /// All that are not deleted, disabled ones and the built-in inbox included, in order of id; without their descriptions and their
    /// metadata, which nothing is planned by.
    pub subscriptions: Vec<Arc<Subscription>>,
}

impl InForce {
    /// Whether any of them has a filter.
    pub fn has_filters(&self) -> bool {
        self.subscriptions
            .iter()
            .any(|subscription| subscription.filter.is_some())
    }

    /// Those that want events of this type, but for what their filters say.
    pub fn wanting(&self, event_type: &EventType) -> impl Iterator<Item = &Arc<Subscription>> {
        self.subscriptions
            .iter()
            .filter(|subscription| subscription.wants(event_type))
    }
}

/// Subscriptions. Every change raises the organization's subscriptions version in the same transaction, and is
/// announced as [`Change::Subscription`].
#[async_trait]
pub trait Subscriptions: Send + Sync {
    /// Adds one (its id, organization, target and so on as given; `version` 1, times the store's), unless the organization has no
    /// room for it or for its filter: they are counted in the same transaction, so that however many are made at once, there are
    /// never more than may be.
    async fn create(&self, subscription: Subscription) -> Result<Result<Subscription, Full>>;
    /// Looks one up; deleted ones are gone.
    async fn get(&self, organization: OrganizationId, id: SubscriptionId) -> Result<Option<Subscription>>;
    /// Lists those of an organization in order of id, oldest first, the built-in ones included. A page ends before its limit rather
    /// than weigh more than [`PAGE_BYTES`]; its `next` says that there is more.
    async fn list(
        &self,
        organization: OrganizationId,
        page: PageRequest<SubscriptionId>,
    ) -> Result<Page<Subscription, SubscriptionId>>;
    /// Changes one, if its version is still `version`. Setting `enabled` clears the reason for being disabled. A filter that it
    /// is to have is counted as in [`Subscriptions::create`].
    async fn patch(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        patch: SubscriptionPatch,
    ) -> Result<PatchOutcome>;
    /// Deletes one; `false` if there is none, or it is the built-in inbox. Its open deliveries count as cancelled from
    /// now on, and [`Keeper::cancel_deleted`] writes that down.
    async fn delete(&self, organization: OrganizationId, id: SubscriptionId) -> Result<bool>;
    /// Disables one for a reason of the system's, if its version is still `version`: what speaks against it was learnt of
    /// that one. Changes nothing, and says `false`, if it has changed since, is disabled, or is gone. It is announced if it is
    /// to be: not where it was learnt of the system's own events, which beget no others.
    async fn disable(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        reason: &str,
        announced: bool,
    ) -> Result<bool>;
    /// Gives one of kind `push` another secret, if its version is still `version`; the one before signs beside it for
    /// `overlap`, by the store's clock, and the one before that not any more.
    async fn rotate(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        secret: NewSecret,
        overlap: Duration,
    ) -> Result<PatchOutcome>;
    /// Subscriptions with a secret or headers that are not sealed under this key, deleted ones included, in order of id.
    async fn sealed_otherwise(
        &self,
        key: KeyId,
        after: Option<SubscriptionId>,
        limit: u32,
    ) -> Result<Vec<SealedSecrets>>;
    /// Puts what is sealed anew in place of what was, wherever the subscription has it; `false` if it has it no more. Raises the
    /// subscription's version, so that a change by what was read before does not put the old back; but not the organization's, and
    /// announces nothing: it is sent as before. Plans are by the version of before until [`Subscriptions::raise_version`].
    async fn reseal(&self, id: SubscriptionId, before: &Sealed, after: Sealed) -> Result<bool>;
    /// Raises the organization's version alone, once its subscriptions are sealed anew: so plans come to be by the versions that
    /// they have now.
    async fn raise_version(&self, organization: OrganizationId) -> Result<()>;
    /// The organization's built-in push subscription that `POST /api/webhook/config` sets, if it has one.
    async fn webhook(&self, organization: OrganizationId) -> Result<Option<Subscription>>;
    /// What is in force for these organizations, each read in one snapshot with its version. An organization that does
    /// not exist is left out.
    async fn in_force(&self, organizations: &[OrganizationId]) -> Result<Vec<InForce>>;
    /// These subscriptions as they are now, without their descriptions and their metadata, which nothing is sent by; deleted ones are
    /// left out.
    async fn by_ids(&self, ids: &[SubscriptionId]) -> Result<Vec<Arc<Subscription>>>;
}
