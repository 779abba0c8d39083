//! Organizations and their keys.

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

/// Organizations and their keys.
#[async_trait]
pub trait Organizations: Send + Sync {
    /// Creates an organization with its built-in inbox subscription and a first key, all or nothing.
    async fn create(&self, id: OrganizationId, name: &str, tier: Tier, key: NewKey) -> Result<Organization>;
    /// Looks one up.
    async fn get(&self, id: OrganizationId) -> Result<Option<Organization>>;
    /// Changes the name; `None` if there is no such organization.
    async fn rename(&self, id: OrganizationId, name: &str) -> Result<Option<Organization>>;
    /// Adds a key.
    async fn create_key(&self, key: NewKey) -> Result<Key>;
    /// Lists the keys of an organization, newest first, revoked ones included.
    async fn keys(&self, organization: OrganizationId, page: PageRequest<KeyId>) -> Result<Page<Key, KeyId>>;
    /// Ends a key now; `false` if the organization has no such key. Revoking again changes nothing.
    async fn revoke_key(&self, organization: OrganizationId, key: KeyId) -> Result<bool>;
    /// Adds `new` and ends `old` now, in one transaction; `None` if `old` is not a valid key of the organization.
    async fn rotate_key(&self, old: KeyId, new: NewKey) -> Result<Option<Key>>;
    /// What these keys grant; unknown, revoked and expired ones are left out.
    async fn grants(&self, hashes: &[KeyHash]) -> Result<Vec<(KeyHash, Grant)>>;
}
