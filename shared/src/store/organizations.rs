//! Organizations and their keys.

use std::time::Duration;

use async_trait::async_trait;

use super::{Page, PageRequest, Result};
use crate::{Grant, Key, KeyHash, KeyId, Organization, OrganizationId, Scopes, Tier, Timestamp};

/// A key to create.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// What is listed of it; `created_at` and `revoked_at` are the store's to set.
    pub id: KeyId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// A name for people.
    pub name: String,
    /// The first characters of its text.
    pub hint: String,
    /// What it is looked up by.
    pub hash: KeyHash,
    /// What it may do.
    pub scopes: Scopes,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// A key to take another's place, with the same name, scopes and end.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// The one whose place it takes.
    pub old: KeyId,
    /// Whose both are.
    pub organization: OrganizationId,
    /// The new one's id.
    pub id: KeyId,
    /// The first characters of its text.
    pub hint: String,
    /// What it is looked up by.
    pub hash: KeyHash,
    /// How long the old one is good beside it; zero revokes it.
    pub overlap: Duration,
    /// What the old one may do at most: the new one may do the same, and is in the hands of whoever asks. `None` is that the old
    /// one itself asks.
    pub within: Option<Scopes>,
}

/// What came of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    /// The new key is there.
    Done {
        /// It.
        new: Key,
        /// When the old one ends; `None` is that it has.
        old_until: Option<Timestamp>,
    },
    /// The old one had been revoked, or had expired.
    Ended,
    /// This key has taken its place already.
    Replaced(KeyId),
    /// The old one may do more than [`Rotation::within`].
    Beyond,
    /// The organization has no such key.
    NotFound,
}

/// How much later than what is stored a use must be to be written down.
pub const USE_GRAIN: Duration = Duration::from_mins(5);

/// What is to change of an organization.
#[derive(Debug, Clone, Default)]
pub struct OrganizationPatch {
    /// Its name.
    pub name: Option<String>,
    /// How many days it keeps its events; `Some(None)` is as many as the deployment.
    pub retention_days: Option<Option<u16>>,
}

/// Organizations and their keys.
#[async_trait]
pub trait Organizations: Send + Sync {
    /// Creates an organization with its built-in inbox subscription and a first key, all or nothing.
    async fn create(&self, id: OrganizationId, name: &str, tier: Tier, key: NewKey) -> Result<Organization>;
    /// Looks one up; `None` for one that is being removed, too.
    async fn get(&self, id: OrganizationId) -> Result<Option<Organization>>;
    /// Changes what is given; `None` if there is no such organization.
    async fn change(&self, id: OrganizationId, patch: OrganizationPatch) -> Result<Option<Organization>>;
    /// Adds a key.
    async fn create_key(&self, key: NewKey) -> Result<Key>;
    /// Lists the keys of an organization, newest first, revoked ones included.
    async fn keys(&self, organization: OrganizationId, page: PageRequest<KeyId>) -> Result<Page<Key, KeyId>>;
    /// Ends a key now; `false` if the organization has no such key. Revoking again changes nothing.
    async fn revoke_key(&self, organization: OrganizationId, key: KeyId) -> Result<bool>;
    /// Adds a key in another's place, and ends that once they have overlapped, all or nothing. A key is replaced once.
    async fn rotate_key(&self, rotation: Rotation) -> Result<Rotated>;
    /// Notes how long ago keys were last used, where that is [`USE_GRAIN`] later than what is known. Each key once.
    async fn note_used(&self, used: &[(KeyId, Duration)]) -> Result<()>;
    /// What these keys grant; unknown, revoked and expired ones are left out, and those of organizations that are being
    /// removed.
    async fn grants(&self, hashes: &[KeyHash]) -> Result<Vec<(KeyHash, Grant)>>;
}
