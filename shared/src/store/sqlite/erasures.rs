//! Erasing what a producer sent: one transaction of the one writer, so that no intake falls in between.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::{
    Engine,
    events::resolve,
    many::{portions, values},
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    EventId, OrganizationId,
    audit::{self, Action},
    store::{
        Change, ERASURE_KEPT, Erased, Erasures, MAX_MARKS, Result,
        erasures::{BETWEEN_LOOKS, NO_PAYLOAD, may_come},
    },
};

type Address = (OrganizationId, EventId);

/// Which of these ids are marked.
pub(super) async fn marked(connection: &mut SqliteConnection, ids: &[Address]) -> Result<HashSet<Address>> {
    let mut marked = HashSet::new();
    let any = sqlx::query("SELECT 1 FROM erasures LIMIT 1")
        .fetch_optional(&mut *connection)
        .await
        .map_err(failed)?;
    if any.is_none() {
        return Ok(marked);
    }
    for portion in portions(ids) {
        let sql = format!(
            "SELECT m.organization_id, m.id FROM (VALUES {}) v CROSS JOIN erasures m \
             ON m.organization_id = v.column1 AND m.id = v.column2",
            values(portion.len(), 2)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (organization, id) in portion {
            query = query.bind(organization.uuid()).bind(id.uuid());
        }
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            marked.insert((row.id(0)?, row.id(1)?));
        }
    }
    Ok(marked)
}

/// When an erasure was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Now,
    Before,
}

/// Erases the event that the id leads to, if it is stored.
async fn erase_stored(
    tx: &mut Tx,
    organization: OrganizationId,
    id: EventId,
    asked: Asked,
) -> Result<Option<EventId>> {
    let Some(event) = resolve(&mut tx.connection, organization, &[id])
        .await?
        .remove(&id)
    else {
        return Ok(None);
    };
    let fresh = sqlx::query("SELECT 1 FROM events WHERE id = ? AND erased_at IS NULL")
        .bind(event.uuid())
        .fetch_optional(&mut tx.connection)
        .await
        .map_err(failed)?;
    if asked == Asked::Now && fresh.is_some() {
        tx.audit(audit::Change::of(organization, Action::EventErased, event))
            .await?;
    }
    sqlx::query(
        "UPDATE events SET payload = ?, source = NULL, dedup_id = NULL, occurred_at = NULL, trace = NULL, \
         erased_at = coalesce(erased_at, ?) WHERE id = ?",
    )
    .bind(NO_PAYLOAD)
    .bind(tx.now.millis())
    .bind(event.uuid())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    let held = sqlx::query(
        "SELECT 1 FROM deliveries WHERE event_id = ? AND due_at IS NOT NULL AND lease_owner IS NOT NULL",
    )
    .bind(event.uuid())
    .fetch_optional(&mut tx.connection)
    .await
    .map_err(failed)?;
    if held.is_some() {
        tx.announce(Change::Closed(event));
    }
    sqlx::query(
        "UPDATE deliveries SET state = 'cancelled', due_at = NULL, lease_owner = NULL, updated_at = ? \
         WHERE event_id = ? AND due_at IS NOT NULL",
    )
    .bind(tx.now.millis())
    .bind(event.uuid())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    sqlx::query("UPDATE attempts SET detail = '' WHERE event_id = ?")
        .bind(event.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    for id in [event, id] {
        forget_set_aside(tx, organization, id).await?;
    }
    sqlx::query("DELETE FROM erasures WHERE organization_id = ? AND id = ?")
        .bind(organization.uuid())
        .bind(id.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    Ok(Some(event))
}

async fn forget_set_aside(tx: &mut Tx, organization: OrganizationId, id: EventId) -> Result<bool> {
    sqlx::query("DELETE FROM set_aside WHERE organization_id = ? AND event_id = ?")
        .bind(organization.uuid())
        .bind(id.uuid())
        .execute(&mut tx.connection)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(failed)
}

async fn erase(tx: &mut Tx, organization: OrganizationId, id: EventId) -> Result<Erased> {
    if let Some(event) = erase_stored(tx, organization, id, Asked::Now).await? {
        return Ok(Erased::Done { event });
    }
    let was_set_aside = forget_set_aside(tx, organization, id).await?;
    if !was_set_aside && !may_come(id, tx.now) {
        return Ok(Erased::NotFound);
    }
    let marked = sqlx::query("SELECT 1 FROM erasures WHERE organization_id = ? AND id = ?")
        .bind(organization.uuid())
        .bind(id.uuid())
        .fetch_optional(&mut tx.connection)
        .await
        .map_err(failed)?;
    let erased = audit::Change::of(organization, Action::EventErased, id);
    if was_set_aside {
        tx.audit(erased.clone()).await?;
    }
    let marks: i64 = sqlx::query_scalar("SELECT count(*) FROM erasures WHERE organization_id = ?")
        .bind(organization.uuid())
        .fetch_one(&mut tx.connection)
        .await
        .map_err(failed)?;
    if marks >= i64::from(MAX_MARKS) {
        return Ok(Erased::TooMany);
    }
    sqlx::query(
        "INSERT INTO erasures (organization_id, id, expires_at, looked_at) VALUES (?, ?, ?, ?) \
         ON CONFLICT (id, organization_id) DO UPDATE SET expires_at = excluded.expires_at",
    )
    .bind(organization.uuid())
    .bind(id.uuid())
    .bind(tx.now.plus(ERASURE_KEPT).millis())
    .bind(tx.now.millis())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    if !was_set_aside && marked.is_none() {
        tx.audit(erased).await?;
    }
    Ok(Erased::Marked)
}

async fn settle(tx: &mut Tx, most: u32) -> Result<u32> {
    let rows = sqlx::query(
        "SELECT organization_id, id FROM erasures WHERE looked_at < ? ORDER BY looked_at LIMIT ?",
    )
    .bind(tx.now.minus(BETWEEN_LOOKS).millis())
    .bind(most)
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    let mut settled = 0;
    for row in rows {
        let (organization, id): Address = (row.id(0)?, row.id(1)?);
        if erase_stored(tx, organization, id, Asked::Before).await?.is_some() {
            settled += 1;
            continue;
        }
        // What was set aside meanwhile goes with the look.
        forget_set_aside(tx, organization, id).await?;
        sqlx::query("UPDATE erasures SET looked_at = ? WHERE organization_id = ? AND id = ?")
            .bind(tx.now.millis())
            .bind(organization.uuid())
            .bind(id.uuid())
            .execute(&mut tx.connection)
            .await
            .map_err(failed)?;
    }
    Ok(settled)
}

#[async_trait]
impl Erasures for Engine {
    async fn erase(&self, organization: OrganizationId, id: EventId) -> Result<Erased> {
        self.writer
            .run(move |tx| Box::pin(erase(tx, organization, id)))
            .await
    }

    async fn settle_erasures(&self, most: u32) -> Result<u32> {
        self.writer.run(move |tx| Box::pin(settle(tx, most))).await
    }
}
