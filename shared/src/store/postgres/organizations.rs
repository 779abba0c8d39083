//! Organizations and their keys.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Engine, Result, Statement, StoreError, rows, rows::Columns};
use crate::{
    Grant, Key, KeyHash, KeyId, Organization, OrganizationId, Scopes, SubscriptionId, Tier,
    audit::{Action, Change},
    id::KeyKind,
    store::{NewKey, OrganizationPatch, Organizations, Page, PageRequest, Rotated, Rotation, USE_GRAIN},
};

const CREATE: &str = "
    WITH organization AS (
        INSERT INTO organizations (id, name, tier) VALUES ($1, $2, $3)
        RETURNING id, name, tier, retention_days, created_at
    ), inbox AS (
        INSERT INTO subscriptions (id, organization_id, builtin, kind, event_types, enabled)
        SELECT $4, id, 'inbox', 'pull', ARRAY['*'], true FROM organization
    ), key AS (
        INSERT INTO api_keys (id, organization_id, name, hint, hash, scopes, expires_at)
        SELECT $5, id, $6, $7, $8, $9, $10 FROM organization
    )
    SELECT id, name, tier, retention_days, created_at FROM organization";

/// It is gone for everybody but the operator once it is being removed.
const GET: &str = "
    SELECT id, name, tier, retention_days, created_at FROM organizations
    WHERE id = $1 AND NOT EXISTS (SELECT FROM removals WHERE organization_id = $1)";

const CHANGE: &str = "
    WITH before AS MATERIALIZED (
        SELECT id, name, retention_days FROM organizations
        WHERE id = $1 AND NOT EXISTS (SELECT FROM removals WHERE organization_id = $1)
        FOR UPDATE
    )
    UPDATE organizations o SET name = coalesce($2, o.name),
        retention_days = CASE WHEN $3 THEN $4 ELSE o.retention_days END
    FROM before WHERE o.id = before.id
    RETURNING o.id, o.name, o.tier, o.retention_days, o.created_at, o.name <> before.name AS other_name,
        o.retention_days IS DISTINCT FROM before.retention_days AS other_retention";

const CREATE_KEY: &str = "
    INSERT INTO api_keys (id, organization_id, name, hint, hash, scopes, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    RETURNING id, organization_id, name, hint, scopes, created_at, expires_at, revoked_at, replaced_by,
              last_used_at";

/// The old key is locked first, so that what is read of it still holds when it is written. `$6` is the overlap, `$7` what the old
/// key may do at most.
const ROTATE_KEY: &str = "
    WITH old AS MATERIALIZED (
        SELECT id, organization_id, name, scopes, expires_at, replaced_by,
               revoked_at IS NOT NULL OR coalesce(expires_at <= now(), false) AS ended,
               NOT coalesce(string_to_array(scopes, ' ') <@ $7::text[], true) AS beyond
        FROM api_keys WHERE id = $1 AND organization_id = $2
        FOR UPDATE
    ), new AS (
        INSERT INTO api_keys (id, organization_id, name, hint, hash, scopes, expires_at)
        SELECT $3, organization_id, name, $4, $5, scopes, expires_at FROM old
        WHERE NOT ended AND NOT beyond AND replaced_by IS NULL
        RETURNING id, organization_id, name, hint, scopes, created_at, expires_at, revoked_at, replaced_by,
                  last_used_at
    ), changed AS (
        UPDATE api_keys k
        SET replaced_by = new.id,
            revoked_at = CASE WHEN $6::double precision = 0 THEN now() END,
            expires_at = CASE WHEN $6::double precision = 0 THEN k.expires_at
                              ELSE least(k.expires_at, now() + make_interval(secs => $6)) END
        FROM new WHERE k.id = $1
        RETURNING k.expires_at AS old_until, k.revoked_at AS old_revoked_at
    )
    SELECT old.ended AS old_ended, old.beyond AS old_beyond, old.replaced_by AS old_replaced_by, changed.old_until, changed.old_revoked_at,
           new.*
    FROM old LEFT JOIN new ON true LEFT JOIN changed ON true";

/// A key that another node is writing is left to it: it was used just as late there.
const NOTE_USED: &str = "
    WITH used AS (
        SELECT k.id, now() - make_interval(secs => u.ago) AS at
        FROM unnest($1::uuid[], $2::double precision[]) AS u (id, ago) JOIN api_keys k ON k.id = u.id
        WHERE k.last_used_at IS NULL OR k.last_used_at <= now() - make_interval(secs => u.ago + $3)
        FOR NO KEY UPDATE OF k SKIP LOCKED
    )
    UPDATE api_keys k SET last_used_at = used.at FROM used WHERE k.id = used.id";

const REVOKE_KEY: &str = "
    WITH before AS MATERIALIZED (
        SELECT id, revoked_at FROM api_keys WHERE id = $1 AND organization_id = $2 FOR UPDATE
    )
    UPDATE api_keys k SET revoked_at = coalesce(k.revoked_at, now()) FROM before WHERE k.id = before.id
    RETURNING before.revoked_at IS NULL AS ended";

const KEYS: &str = "
    SELECT id, organization_id, name, hint, scopes, created_at, expires_at, revoked_at, replaced_by, last_used_at
    FROM api_keys
    WHERE organization_id = $1 AND ($2::uuid IS NULL OR id < $2)
    ORDER BY id DESC LIMIT $3";

const GRANTS: &str = "
    SELECT k.hash, k.id, k.organization_id, o.tier, k.scopes, k.expires_at
    FROM api_keys k JOIN organizations o ON o.id = k.organization_id
    WHERE k.hash = ANY($1) AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
      AND NOT EXISTS (SELECT FROM removals r WHERE r.organization_id = k.organization_id)";

fn bind_key(statement: Statement, key: &NewKey) -> Statement {
    statement
        .bind(key.id.uuid())
        .bind(key.organization.uuid())
        .bind(key.name.clone())
        .bind(key.hint.clone())
        .bind(key.hash.0.to_vec())
        .bind(key.scopes.to_text())
        .bind(key.expires_at.map(OffsetDateTime::from))
}

#[async_trait]
impl Organizations for Engine {
    async fn create(&self, id: OrganizationId, name: &str, tier: Tier, key: NewKey) -> Result<Organization> {
        let first_key = key.id;
        let statement = query(CREATE)
            .bind(id.uuid())
            .bind(name.to_owned())
            .bind(tier.as_str())
            .bind(SubscriptionId::new().uuid())
            .bind(key.id.uuid())
            .bind(key.name)
            .bind(key.hint)
            .bind(key.hash.0.to_vec())
            .bind(key.scopes.to_text())
            .bind(key.expires_at.map(OffsetDateTime::from));
        let made = self
            .audited(statement, |_| {
                Ok(vec![
                    Change::of(id, Action::OrganizationCreated, id),
                    Change::of(id, Action::KeyCreated, first_key),
                ])
            })
            .await?;
        rows::organization(&answered(made)?)
    }

    async fn get(&self, id: OrganizationId) -> Result<Option<Organization>> {
        let statement = query(GET).bind(id.uuid());
        self.row(statement)
            .await?
            .as_ref()
            .map(rows::organization)
            .transpose()
    }

    async fn change(&self, id: OrganizationId, patch: OrganizationPatch) -> Result<Option<Organization>> {
        let statement = query(CHANGE)
            .bind(id.uuid())
            .bind(patch.name)
            .bind(patch.retention_days.is_some())
            .bind(patch.retention_days.flatten().map(i32::from));
        self.audited(statement, |row| {
            let mut changed = Vec::new();
            for (column, field) in [("other_name", "name"), ("other_retention", "retention_days")] {
                if row.value(column)? {
                    changed.push(field);
                }
            }
            Ok(match changed.as_slice() {
                [] => Vec::new(),
                _ => vec![Change::of(id, Action::OrganizationUpdated, id).with_changed(changed)],
            })
        })
        .await?
        .as_ref()
        .map(rows::organization)
        .transpose()
    }

    async fn create_key(&self, key: NewKey) -> Result<Key> {
        let made = Change::of(key.organization, Action::KeyCreated, key.id);
        rows::key(&answered(
            self.audited_as(bind_key(query(CREATE_KEY), &key), made).await?,
        )?)
    }

    async fn keys(&self, organization: OrganizationId, page: PageRequest<KeyId>) -> Result<Page<Key, KeyId>> {
        let statement = query(KEYS)
            .bind(organization.uuid())
            .bind(page.after.map(KeyId::uuid))
            .bind(i64::from(page.limit) + 1);
        let keys = self
            .rows(statement)
            .await?
            .iter()
            .map(rows::key)
            .collect::<Result<Vec<_>>>()?;
        Ok(paged(keys, page.limit, |key| key.id))
    }

    async fn revoke_key(&self, organization: OrganizationId, key: KeyId) -> Result<bool> {
        let statement = query(REVOKE_KEY).bind(key.uuid()).bind(organization.uuid());
        let revoked = self
            .audited(statement, |row| {
                Ok(if row.value("ended")? {
                    vec![Change::of(organization, Action::KeyRevoked, key)]
                } else {
                    Vec::new()
                })
            })
            .await?;
        Ok(revoked.is_some())
    }

    async fn rotate_key(&self, rotation: Rotation) -> Result<Rotated> {
        let statement = query(ROTATE_KEY)
            .bind(rotation.old.uuid())
            .bind(rotation.organization.uuid())
            .bind(rotation.id.uuid())
            .bind(rotation.hint.clone())
            .bind(rotation.hash.0.to_vec())
            .bind(rows::seconds(rotation.overlap))
            .bind(rotation.within.map(|within| {
                let scopes = within.iter().map(|scope| scope.as_str().to_owned());
                scopes.collect::<Vec<_>>()
            }));
        let (organization, old, new) = (rotation.organization, rotation.old, rotation.id);
        let rotated = self
            .audited(statement, |row| {
                Ok(match row.optional_id::<KeyKind>("id")? {
                    Some(_) => vec![
                        Change::of(organization, Action::KeyRotated, old),
                        Change::of(organization, Action::KeyCreated, new),
                    ],
                    None => Vec::new(),
                })
            })
            .await?;
        let Some(row) = rotated else {
            return Ok(Rotated::NotFound);
        };
        if row.value("old_beyond")? {
            return Ok(Rotated::Beyond);
        }
        if row.value("old_ended")? {
            return Ok(Rotated::Ended);
        }
        if let Some(successor) = row.optional_id("old_replaced_by")? {
            return Ok(Rotated::Replaced(successor));
        }
        let revoked = row.optional_at("old_revoked_at")?.is_some();
        Ok(Rotated::Done {
            new: rows::key(&row)?,
            old_until: if revoked {
                None
            } else {
                row.optional_at("old_until")?
            },
        })
    }

    async fn note_used(&self, used: &[(KeyId, Duration)]) -> Result<()> {
        let (ids, ago): (Vec<Uuid>, Vec<f64>) = used
            .iter()
            .map(|(id, ago)| (id.uuid(), rows::seconds(*ago)))
            .unzip();
        let statement = query(NOTE_USED)
            .bind(ids)
            .bind(ago)
            .bind(rows::seconds(USE_GRAIN));
        self.rows(statement).await.map(drop)
    }

    async fn grants(&self, hashes: &[KeyHash]) -> Result<Vec<(KeyHash, Grant)>> {
        let hashes: Vec<Vec<u8>> = hashes.iter().map(|hash| hash.0.to_vec()).collect();
        self.rows(query(GRANTS).bind(hashes))
            .await?
            .iter()
            .map(|row| {
                let hash = <[u8; 32]>::try_from(row.value::<&[u8]>("hash")?)
                    .map_err(|_| StoreError::Corrupt("a key's hash is not of 32 bytes".to_owned()))?;
                let grant = Grant {
                    key: row.id("id")?,
                    organization: row.id("organization_id")?,
                    tier: row.parsed("tier")?,
                    scopes: Scopes::from_text(row.value("scopes")?),
                    expires_at: row.optional_at("expires_at")?,
                };
                Ok((KeyHash(hash), grant))
            })
            .collect()
    }
}

/// The row of a statement that always answers with one.
fn answered(row: Option<PgRow>) -> Result<PgRow> {
    row.ok_or_else(|| StoreError::Corrupt("a statement that answers one row answered none".to_owned()))
}

/// A page of what was read with one more than its limit, to see whether there is more.
pub(super) fn paged<T, C>(mut items: Vec<T>, limit: u32, cursor: impl Fn(&T) -> C) -> Page<T, C> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(cursor) } else { None };
    Page { items, next }
}

/// Ids as an array's elements.
pub(super) fn uuids<K: crate::id::Kind>(ids: &[crate::Id<K>]) -> Vec<Uuid> {
    ids.iter().map(|id| id.uuid()).collect()
}
