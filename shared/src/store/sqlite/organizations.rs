//! Organizations and their keys.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    Engine,
    many::{marks, portions},
    row::{Columns as _, corrupt, failed},
    subscriptions::insert_inbox,
    writer::Tx,
};
use crate::{
    Grant, Key, KeyHash, KeyId, Organization, OrganizationId, Scopes, Tier, Timestamp,
    audit::{Action, Change},
    store::{
        NewKey, OrganizationPatch, Organizations, Page, PageRequest, Result, Rotated, Rotation, USE_GRAIN,
    },
};

const KEY: &str = "id, organization_id, name, hint, scopes, created_at, expires_at, revoked_at, \
    replaced_by, last_used_at";

/// Of `organizations o`.
pub(super) const ORGANIZATION: &str = "o.id, o.name, o.tier, o.created_at, o.retention_days";

pub(super) fn organization(row: &SqliteRow) -> Result<Organization> {
    Ok(Organization {
        id: row.id(0)?,
        name: row.value(1)?,
        tier: row.value::<&str>(2)?.parse::<Tier>().map_err(corrupt)?,
        created_at: row.time(3)?,
        retention_days: row
            .value::<Option<i64>>(4)?
            .map(u16::try_from)
            .transpose()
            .map_err(corrupt)?,
    })
}

fn key(row: &SqliteRow) -> Result<Key> {
    Ok(Key {
        id: row.id(0)?,
        organization: row.id(1)?,
        name: row.value(2)?,
        hint: row.value(3)?,
        scopes: Scopes::from_text(row.value(4)?),
        created_at: row.time(5)?,
        expires_at: row.time_if_any(6)?,
        revoked_at: row.time_if_any(7)?,
        replaced_by: row.value::<Option<Uuid>>(8)?.map(KeyId::from_uuid),
        last_used_at: row.time_if_any(9)?,
    })
}

async fn insert_key(tx: &mut Tx, key: NewKey) -> Result<Key> {
    sqlx::query(
        "INSERT INTO keys (id, organization_id, name, hint, hash, scopes, created_at, expires_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(key.id.uuid())
    .bind(key.organization.uuid())
    .bind(&key.name)
    .bind(&key.hint)
    .bind(&key.hash.0[..])
    .bind(key.scopes.to_text())
    .bind(tx.now.millis())
    .bind(key.expires_at.map(Timestamp::millis))
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    tx.audit(Change::of(key.organization, Action::KeyCreated, key.id))
        .await?;
    Ok(Key {
        id: key.id,
        organization: key.organization,
        name: key.name,
        hint: key.hint,
        scopes: key.scopes,
        created_at: tx.now,
        expires_at: key.expires_at,
        revoked_at: None,
        replaced_by: None,
        last_used_at: None,
    })
}

async fn change(tx: &mut Tx, id: OrganizationId, patch: OrganizationPatch) -> Result<Option<Organization>> {
    let found = sqlx::query(AssertSqlSafe(format!(
        "SELECT {ORGANIZATION} FROM organizations o WHERE o.id = ? \
         AND NOT EXISTS (SELECT 1 FROM removals r WHERE r.organization_id = o.id)"
    )))
    .bind(id.uuid())
    .fetch_optional(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(row) = found else {
        return Ok(None);
    };
    let mut organization = organization(&row)?;
    let mut changed = Vec::new();
    if let Some(name) = patch.name.filter(|name| *name != organization.name) {
        organization.name = name;
        changed.push("name");
    }
    if let Some(days) = patch
        .retention_days
        .filter(|days| *days != organization.retention_days)
    {
        organization.retention_days = days;
        changed.push("retention_days");
    }
    if changed.is_empty() {
        return Ok(Some(organization));
    }
    sqlx::query("UPDATE organizations SET name = ?, retention_days = ? WHERE id = ?")
        .bind(&organization.name)
        .bind(organization.retention_days.map(i64::from))
        .bind(id.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    tx.audit(Change::of(id, Action::OrganizationUpdated, id).with_changed(changed))
        .await?;
    Ok(Some(organization))
}

async fn revoke(tx: &mut Tx, organization: OrganizationId, key: KeyId) -> Result<bool> {
    let ended = sqlx::query(
        "UPDATE keys SET revoked_at = ? WHERE id = ? AND organization_id = ? AND revoked_at IS NULL",
    )
    .bind(tx.now.millis())
    .bind(key.uuid())
    .bind(organization.uuid())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    if ended.rows_affected() > 0 {
        tx.audit(Change::of(organization, Action::KeyRevoked, key))
            .await?;
        return Ok(true);
    }
    let found = sqlx::query("SELECT 1 FROM keys WHERE id = ? AND organization_id = ?")
        .bind(key.uuid())
        .bind(organization.uuid())
        .fetch_optional(&mut tx.connection)
        .await
        .map_err(failed)?;
    Ok(found.is_some())
}

#[async_trait]
impl Organizations for Engine {
    async fn create(
        &self,
        id: OrganizationId,
        name: &str,
        tier: Tier,
        first_key: NewKey,
    ) -> Result<Organization> {
        let name = name.to_owned();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO organizations (id, name, tier, subscriptions_version, created_at) \
                         VALUES (?, ?, ?, 1, ?)",
                    )
                    .bind(id.uuid())
                    .bind(&name)
                    .bind(tier.as_str())
                    .bind(tx.now.millis())
                    .execute(&mut tx.connection)
                    .await
                    .map_err(failed)?;
                    insert_inbox(&mut tx.connection, id, tx.now).await?;
                    tx.audit(Change::of(id, Action::OrganizationCreated, id)).await?;
                    insert_key(tx, first_key).await?;
                    Ok(Organization {
                        id,
                        name,
                        tier,
                        retention_days: None,
                        created_at: tx.now,
                    })
                })
            })
            .await
    }

    async fn get(&self, id: OrganizationId) -> Result<Option<Organization>> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {ORGANIZATION} FROM organizations o WHERE o.id = ? \
             AND NOT EXISTS (SELECT 1 FROM removals r WHERE r.organization_id = o.id)"
        )))
        .bind(id.uuid())
        .fetch_optional(&self.readers)
        .await
        .map_err(failed)?
        .as_ref()
        .map(organization)
        .transpose()
    }

    async fn change(&self, id: OrganizationId, patch: OrganizationPatch) -> Result<Option<Organization>> {
        self.writer.run(move |tx| Box::pin(change(tx, id, patch))).await
    }

    async fn create_key(&self, key: NewKey) -> Result<Key> {
        self.writer.run(move |tx| Box::pin(insert_key(tx, key))).await
    }

    async fn keys(&self, organization: OrganizationId, page: PageRequest<KeyId>) -> Result<Page<Key, KeyId>> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT {KEY} FROM keys WHERE organization_id = ? AND (? IS NULL OR id < ?) ORDER BY id DESC LIMIT ?"
        )))
        .bind(organization.uuid())
        .bind(page.after.map(KeyId::uuid))
        .bind(page.after.map(KeyId::uuid))
        .bind(i64::from(page.limit) + 1)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let keys = rows.iter().map(key).collect::<Result<Vec<_>>>()?;
        Ok(paged(keys, page.limit, |key| key.id))
    }

    async fn revoke_key(&self, organization: OrganizationId, key: KeyId) -> Result<bool> {
        self.writer
            .run(move |tx| Box::pin(revoke(tx, organization, key)))
            .await
    }

    async fn rotate_key(&self, rotation: Rotation) -> Result<Rotated> {
        self.writer.run(move |tx| Box::pin(rotate(tx, rotation))).await
    }

    async fn note_used(&self, used: &[(KeyId, Duration)]) -> Result<()> {
        let used = used.to_vec();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    for (id, ago) in used {
                        let at = tx.now.minus(ago);
                        sqlx::query(
                            "UPDATE keys SET last_used_at = ? \
                             WHERE id = ? AND (last_used_at IS NULL OR last_used_at <= ?)",
                        )
                        .bind(at.millis())
                        .bind(id.uuid())
                        .bind(at.minus(USE_GRAIN).millis())
                        .execute(&mut tx.connection)
                        .await
                        .map_err(failed)?;
                    }
                    Ok(())
                })
            })
            .await
    }

    async fn grants(&self, hashes: &[KeyHash]) -> Result<Vec<(KeyHash, Grant)>> {
        let now = Timestamp::now();
        let mut grants = Vec::with_capacity(hashes.len());
        for portion in portions(hashes) {
            let sql = format!(
                "SELECT k.hash, k.id, k.organization_id, o.tier, k.scopes, k.expires_at \
                 FROM keys k JOIN organizations o ON o.id = k.organization_id \
                 WHERE NOT EXISTS (SELECT 1 FROM removals r WHERE r.organization_id = o.id) AND k.revoked_at IS NULL \
                 AND (k.expires_at IS NULL OR k.expires_at > ?) AND k.hash IN ({})",
                marks(portion.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql)).bind(now.millis());
            for hash in portion {
                query = query.bind(&hash.0[..]);
            }
            for row in query.fetch_all(&self.readers).await.map_err(failed)? {
                let hash = <[u8; 32]>::try_from(row.value::<&[u8]>(0)?)
                    .map_err(|_| corrupt("a key's hash is not 32 bytes"))?;
                let grant = Grant {
                    key: row.id(1)?,
                    organization: row.id(2)?,
                    tier: row.value::<&str>(3)?.parse().map_err(corrupt)?,
                    scopes: Scopes::from_text(row.value(4)?),
                    expires_at: row.time_if_any(5)?,
                };
                grants.push((KeyHash(hash), grant));
            }
        }
        Ok(grants)
    }
}

async fn rotate(tx: &mut Tx, rotation: Rotation) -> Result<Rotated> {
    let found = sqlx::query(AssertSqlSafe(format!(
        "SELECT {KEY} FROM keys WHERE id = ? AND organization_id = ?"
    )))
    .bind(rotation.old.uuid())
    .bind(rotation.organization.uuid())
    .fetch_optional(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(old) = found.as_ref().map(key).transpose()? else {
        return Ok(Rotated::NotFound);
    };
    if rotation
        .within
        .is_some_and(|within| !within.contains_all(old.scopes))
    {
        return Ok(Rotated::Beyond);
    }
    if old.revoked_at.is_some() || old.expires_at.is_some_and(|end| end <= tx.now) {
        return Ok(Rotated::Ended);
    }
    if let Some(successor) = old.replaced_by {
        return Ok(Rotated::Replaced(successor));
    }
    let until = (!rotation.overlap.is_zero()).then(|| {
        let overlapped = tx.now.plus(rotation.overlap);
        old.expires_at.map_or(overlapped, |end| end.min(overlapped))
    });
    tx.audit(Change::of(rotation.organization, Action::KeyRotated, old.id))
        .await?;
    sqlx::query("UPDATE keys SET replaced_by = ?, revoked_at = ?, expires_at = ? WHERE id = ?")
        .bind(rotation.id.uuid())
        .bind(until.is_none().then(|| tx.now.millis()))
        .bind(until.or(old.expires_at).map(Timestamp::millis))
        .bind(old.id.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    let new = NewKey {
        id: rotation.id,
        organization: rotation.organization,
        name: old.name,
        hint: rotation.hint,
        hash: rotation.hash,
        scopes: old.scopes,
        expires_at: old.expires_at,
    };
    Ok(Rotated::Done {
        new: insert_key(tx, new).await?,
        old_until: until,
    })
}

/// A page from what was read with one more than its limit.
pub(super) fn paged<T, C>(mut items: Vec<T>, limit: u32, cursor: impl FnOnce(&T) -> C) -> Page<T, C> {
    let limit = limit as usize;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(cursor);
    Page { items, next }
}
