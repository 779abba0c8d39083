//! The audit log: each entry is written in the transaction of the change that it tells of.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{
    Connection as _,
    postgres::{PgConnection, PgRow},
    query,
};
use time::OffsetDateTime;

use super::{
    CALL, Engine, Result, Session, Statement, StoreError, classify, organizations::paged, rows,
    rows::Columns, within,
};
use crate::{
    AuditEntryId, KeyId, SubscriptionId,
    audit::{Actor, AuditEntry, By, Change},
    store::{AuditFilter, AuditLog, AuditPlace, Page, PageRequest},
};

/// The most entries that one step forgets.
const STEP: i64 = 1_000;

const WRITE: &str = "
    INSERT INTO audit_log (id, organization_id, action, actor, key_id, target, subscription_id, changed, reason,
        request_id, address)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

/// `$2` and `$3` are where the page before ended.
macro_rules! list {
    ($of:literal) => {
        concat!(
            "SELECT id, organization_id, at, action, actor, key_id, target, subscription_id, changed, reason, request_id,
                address
             FROM audit_log
             WHERE ",
            $of,
            " AND ($2::timestamptz IS NULL OR (at, id) < ($2, $3)) AND ($4::text IS NULL OR action = $4)
               AND ($5::timestamptz IS NULL OR at >= $5) AND ($6::timestamptz IS NULL OR at < $6)
             ORDER BY at DESC, id DESC LIMIT $7"
        )
    };
}

const OF_ONE: &str = list!("organization_id = $1");
const OF_ALL: &str = list!("$1::uuid IS NULL");

const FORGET: &str = "
    WITH old AS (SELECT id FROM audit_log WHERE at < now() - make_interval(secs => $1) ORDER BY at LIMIT $2),
    forgotten AS (DELETE FROM audit_log WHERE id = ANY (ARRAY(SELECT id FROM old)) RETURNING 1)
    SELECT count(*) AS forgotten FROM forgotten";

/// Writes an entry, in whatever transaction the connection is in.
pub(super) async fn write(connection: &mut PgConnection, by: &By, change: &Change) -> Result<()> {
    query(WRITE)
        .bind(AuditEntryId::new().uuid())
        .bind(change.organization.map(crate::OrganizationId::uuid))
        .bind(change.action.as_str())
        .bind(by.actor.kind())
        .bind(by.actor.key().map(KeyId::uuid))
        .bind(change.target.clone())
        .bind(change.subscription.map(SubscriptionId::uuid))
        .bind(
            change
                .changed
                .iter()
                .map(|field| (*field).to_owned())
                .collect::<Vec<_>>(),
        )
        .bind(change.reason.clone())
        .bind(by.request_id.clone())
        .bind(by.address.map(|address| address.to_string()))
        .execute(connection)
        .await
        .map(drop)
        .map_err(classify)
}

impl Engine {
    /// Runs a statement of at most one row; if there is one, something has changed, and what of it belongs into the log is
    /// written in the same transaction.
    pub(super) async fn audited(
        &self,
        statement: Statement,
        changes: impl FnOnce(&PgRow) -> Result<Vec<Change>> + Send,
    ) -> Result<Option<PgRow>> {
        let by = By::now();
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let done = audited(session.connection(), &by, statement, changes).await;
            session.settle_read(done)
        }))
        .await
    }

    /// As [`Engine::audited`], of a statement whose every row is the same change.
    pub(super) async fn audited_as(&self, statement: Statement, change: Change) -> Result<Option<PgRow>> {
        self.audited(statement, |_| Ok(vec![change])).await
    }
}

async fn audited(
    connection: &mut PgConnection,
    by: &By,
    statement: Statement,
    changes: impl FnOnce(&PgRow) -> Result<Vec<Change>> + Send,
) -> Result<Option<PgRow>> {
    // Dropped on the way, it rolls back.
    let mut transaction = connection.begin().await.map_err(classify)?;
    let row = statement
        .fetch_all(&mut *transaction)
        .await
        .map_err(classify)?
        .pop();
    if let Some(row) = &row {
        for change in changes(row)? {
            write(&mut transaction, by, &change).await?;
        }
    }
    transaction.commit().await.map_err(classify)?;
    Ok(row)
}

fn entry(row: &PgRow) -> Result<AuditEntry> {
    let kind: &str = row.value("actor")?;
    let actor = Actor::stored(kind, row.optional_id("key_id")?)
        .ok_or_else(|| StoreError::Corrupt(format!("an entry of the audit log is by {kind:?}")))?;
    let address: Option<&str> = row.value("address")?;
    Ok(AuditEntry {
        id: row.id("id")?,
        organization: row.optional_id("organization_id")?,
        at: row.at("at")?,
        action: row.value("action")?,
        actor,
        target: row.value("target")?,
        subscription: row.optional_id("subscription_id")?,
        changed: row.value("changed")?,
        reason: row.value("reason")?,
        request_id: row.value("request_id")?,
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
        let statement = query(if filter.organization.is_some() {
            OF_ONE
        } else {
            OF_ALL
        })
        .bind(filter.organization.map(crate::OrganizationId::uuid))
        .bind(page.after.map(|place| OffsetDateTime::from(place.at)))
        .bind(page.after.map(|place| place.id.uuid()))
        .bind(filter.action.map(crate::audit::Action::as_str))
        .bind(filter.since.map(OffsetDateTime::from))
        .bind(filter.until.map(OffsetDateTime::from))
        .bind(i64::from(page.limit) + 1);
        let rows = self.rows(statement).await?;
        let entries = rows.iter().map(entry).collect::<Result<Vec<_>>>()?;
        Ok(paged(entries, page.limit, |entry| AuditPlace {
            at: entry.at,
            id: entry.id,
        }))
    }

    async fn forget_audit_entries(&self, older_than: Duration) -> Result<bool> {
        let statement = query(FORGET).bind(rows::seconds(older_than)).bind(STEP);
        let forgotten: i64 = self.one(statement).await?.value("forgotten")?;
        Ok(forgotten == STEP)
    }
}
