//! The audit log: each entry is written in the transaction of the change that it tells of.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    Engine,
    organizations::paged,
    row::{Columns as _, corrupt, failed},
    writer::Tx,
};
use crate::{
    AuditEntryId, Id, KeyId, OrganizationId, SubscriptionId, Timestamp,
    audit::{Action, Actor, AuditEntry, Change},
    id::Kind,
    store::{AuditFilter, AuditLog, AuditPlace, Page, PageRequest, Result},
};

/// The most entries that one step forgets.
const STEP: u32 = 256;

/// Writes an entry, by whoever handed the change in.
pub(super) async fn write(tx: &mut Tx, change: &Change) -> Result<()> {
    let changed = serde_json::to_string(&change.changed).map_err(corrupt)?;
    sqlx::query(
        "INSERT INTO audit_log (id, organization_id, at, action, actor, key_id, target, subscription_id, changed, \
         reason, request_id, address) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(AuditEntryId::new().uuid())
    .bind(change.organization.map(OrganizationId::uuid))
    .bind(tx.now.millis())
    .bind(change.action.as_str())
    .bind(tx.by.actor.kind())
    .bind(tx.by.actor.key().map(KeyId::uuid))
    .bind(&change.target)
    .bind(change.subscription.map(SubscriptionId::uuid))
    .bind(changed)
    .bind(&change.reason)
    .bind(tx.by.request_id.clone())
    .bind(tx.by.address.map(|address| address.to_string()))
    .execute(&mut tx.connection)
    .await
    .map(drop)
    .map_err(failed)
}

fn id_if_any<K: Kind>(row: &SqliteRow, column: usize) -> Result<Option<Id<K>>> {
    Ok(row.value::<Option<Uuid>>(column)?.map(Id::from_uuid))
}

fn entry(row: &SqliteRow) -> Result<AuditEntry> {
    let kind: &str = row.value(4)?;
    let address: Option<&str> = row.value(11)?;
    Ok(AuditEntry {
        id: row.id(0)?,
        organization: id_if_any(row, 1)?,
        at: row.time(2)?,
        action: row.value(3)?,
        actor: Actor::stored(kind, id_if_any(row, 5)?)
            .ok_or_else(|| corrupt(format!("an entry of the audit log is by {kind:?}")))?,
        target: row.value(6)?,
        subscription: id_if_any(row, 7)?,
        changed: serde_json::from_str(row.value(8)?).map_err(corrupt)?,
        reason: row.value(9)?,
        request_id: row.value(10)?,
        address: address.and_then(|address| address.parse().ok()),
    })
}

#[async_trait]
impl AuditLog for Engine {
    async fn audit_entries(
        &self,
        filter: &AuditFilter,
        page: PageRequest<AuditPlace>,
    ) -> Result<Page<AuditEntry, AuditPlace>> {
        let mut conditions = Vec::new();
        if filter.organization.is_some() {
            conditions.push("organization_id = ?1");
        }
        if filter.action.is_some() {
            conditions.push("action = ?2");
        }
        if filter.since.is_some() {
            conditions.push("at >= ?3");
        }
        if filter.until.is_some() {
            conditions.push("at < ?4");
        }
        if page.after.is_some() {
            conditions.push("(at, id) < (?5, ?6)");
        }
        let conditions = match conditions.as_slice() {
            [] => String::new(),
            some => format!("WHERE {}", some.join(" AND ")),
        };
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT id, organization_id, at, action, actor, key_id, target, subscription_id, changed, reason, \
             request_id, address FROM audit_log {conditions} ORDER BY at DESC, id DESC LIMIT ?7"
        )))
        .bind(filter.organization.map(OrganizationId::uuid))
        .bind(filter.action.map(Action::as_str))
        .bind(filter.since.map(Timestamp::millis))
        .bind(filter.until.map(Timestamp::millis))
        .bind(page.after.map(|place| place.at.millis()))
        .bind(page.after.map(|place| place.id.uuid()))
        .bind(i64::from(page.limit) + 1)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let entries = rows.iter().map(entry).collect::<Result<Vec<_>>>()?;
        Ok(paged(entries, page.limit, |entry| AuditPlace {
            at: entry.at,
            id: entry.id,
        }))
    }

    async fn forget_audit_entries(&self, older_than: Duration) -> Result<bool> {
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    sqlx::query(
                        "DELETE FROM audit_log WHERE id IN (SELECT id FROM audit_log WHERE at < ? ORDER BY at LIMIT ?)",
                    )
                    .bind(tx.now.minus(older_than).millis())
                    .bind(STEP)
                    .execute(&mut tx.connection)
                    .await
                    .map(|done| done.rows_affected() == u64::from(STEP))
                    .map_err(failed)
                })
            })
            .await
    }
}
