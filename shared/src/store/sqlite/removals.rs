//! Removing an organization with everything of it.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    Engine,
    many::{marks, portions},
    organizations::{ORGANIZATION, organization, paged},
    retention,
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    KeyId, OrganizationId, Timestamp,
    audit::{self, Action},
    id::OrganizationKind,
    store::{
        Change, OrganizationStanding, Page, PageRequest, REMAINING_COUNTED, REMOVAL_REMEMBERED, Removal,
        Removals, Removed, Result, SWEPT_AFTER,
    },
};

/// The most events that one step removes, with all that belongs to them.
const EVENTS: u32 = 256;
/// The most deliveries of a step, but for an event that has more by itself.
const DELIVERIES: i64 = 2_000;
/// How many aliases are looked at in a step: nothing finds those of an organization.
const ALIASES: u32 = 4_096;
/// The most rows of anything else, and of what may be large.
const ROWS: u32 = 256;
const FRAMES: u32 = 32;

/// What an organization has besides events: tables, what their rows are told apart by, and how many go in a step; in an
/// order that breaks no reference, what belongs to subscriptions before them. Keys are last: as long as they are there,
/// whoever asks once more can be told of them.
const REST: [(&str, &str, u32); 18] = [
    ("dedup_keys", "key", ROWS),
    ("former_ids", "id", ROWS),
    ("erasures", "id", ROWS),
    ("set_aside", "id", FRAMES),
    ("announcements", "id", ROWS),
    ("replays", "id", ROWS),
    ("test_pushes", "id", ROWS),
    ("audit_log", "id", ROWS),
    ("limit_buckets", "organization_id", ROWS),
    ("limit_shares", "counter", ROWS),
    ("usage_hours", "hour", ROWS),
    ("subscription_failures", OF_SUBSCRIPTIONS, ROWS),
    ("attempt_minutes", OF_SUBSCRIPTIONS, ROWS),
    ("open_circuits", OF_SUBSCRIPTIONS, ROWS),
    ("lanes", OF_SUBSCRIPTIONS, ROWS),
    ("pauses", OF_SUBSCRIPTIONS, ROWS),
    ("subscriptions", "id", ROWS),
    ("keys", "id", ROWS),
];
/// What rows of subscriptions are told apart by: they do not name their organization.
const OF_SUBSCRIPTIONS: &str = "subscription_id";

fn standing(row: &SqliteRow) -> Result<OrganizationStanding> {
    let removal = match row.time_if_any(6)? {
        Some(requested_at) => Some(Removal {
            requested_at,
            finished_at: row.time_if_any(7)?,
            events: row.number(8)?,
            rows: row.number(9)?,
            remaining: row.number(10)?,
        }),
        None => None,
    };
    let there = row.value::<Option<&str>>(1)?.is_some();
    Ok(OrganizationStanding {
        id: row.id(5)?,
        organization: if there { Some(organization(row)?) } else { None },
        removal,
    })
}

/// `asked` are ids. What is left is counted of those that are being removed.
fn standings(asked: &str) -> String {
    format!(
        "SELECT {ORGANIZATION}, asked.id, r.requested_at, r.finished_at, r.events_removed, r.rows_removed, \
         (SELECT count(*) FROM (SELECT 1 FROM events e WHERE e.organization_id = r.organization_id LIMIT {REMAINING_COUNTED})) \
         FROM ({asked}) asked LEFT JOIN organizations o ON o.id = asked.id \
         LEFT JOIN removals r ON r.organization_id = asked.id \
         WHERE o.id IS NOT NULL OR r.organization_id IS NOT NULL ORDER BY asked.id DESC"
    )
}

/// Begins; what was revoked by an earlier call is answered again.
async fn begin(tx: &mut Tx, id: OrganizationId) -> Result<Option<Vec<KeyId>>> {
    let there = sqlx::query(
        "UPDATE organizations SET subscriptions_version = subscriptions_version + 1 WHERE id = ?",
    )
    .bind(id.uuid())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    if there.rows_affected() == 0 {
        let removed = sqlx::query("SELECT 1 FROM removals WHERE organization_id = ?")
            .bind(id.uuid())
            .fetch_optional(&mut tx.connection)
            .await
            .map_err(failed)?;
        return Ok(removed.map(|_| Vec::new()));
    }
    let begun = sqlx::query(
        "INSERT INTO removals (organization_id, requested_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(id.uuid())
    .bind(tx.now.millis())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    if begun.rows_affected() > 0 {
        tx.audit(audit::Change::of(None, Action::OrganizationRemoved, id))
            .await?;
    }
    let ended = sqlx::query(
        "UPDATE subscriptions SET deleted_at = ?, updated_at = ?, version = version + 1 \
         WHERE organization_id = ? AND deleted_at IS NULL RETURNING id",
    )
    .bind(tx.now.millis())
    .bind(tx.now.millis())
    .bind(id.uuid())
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    for row in ended {
        tx.announce(Change::Subscription(row.id(0)?));
    }
    sqlx::query("UPDATE keys SET revoked_at = ? WHERE organization_id = ? AND revoked_at IS NULL")
        .bind(tx.now.millis())
        .bind(id.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    let revoked = sqlx::query(
        "SELECT id FROM keys WHERE organization_id = ? \
         AND revoked_at >= (SELECT requested_at FROM removals WHERE organization_id = ?)",
    )
    .bind(id.uuid())
    .bind(id.uuid())
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    revoked
        .iter()
        .map(|row| row.id(0))
        .collect::<Result<_>>()
        .map(Some)
}

/// The oldest events of an organization, as many as a step removes.
async fn oldest(tx: &mut Tx, id: OrganizationId) -> Result<Vec<Uuid>> {
    let rows = sqlx::query(
        "SELECT e.id, (SELECT count(*) FROM deliveries d WHERE d.event_id = e.id) \
         FROM events e WHERE e.organization_id = ? ORDER BY e.seq LIMIT ?",
    )
    .bind(id.uuid())
    .bind(EVENTS)
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    let (mut events, mut deliveries) = (Vec::new(), 0);
    for row in &rows {
        deliveries += row.value::<i64>(1)?;
        if deliveries > DELIVERIES && !events.is_empty() {
            break;
        }
        events.push(row.value(0)?);
    }
    Ok(events)
}

async fn delete_by_id(tx: &mut Tx, table: &str, column: &str, ids: &[Uuid]) -> Result<u64> {
    let mut deleted = 0;
    for portion in portions(ids) {
        let sql = format!("DELETE FROM {table} WHERE {column} IN ({})", marks(portion.len()));
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for id in portion {
            query = query.bind(id);
        }
        let done = query.execute(&mut tx.connection).await.map_err(failed)?;
        deleted += done.rows_affected();
    }
    Ok(deleted)
}

/// Aliases that lead to no event, or to another alias, in the order of all of them: how many were removed, and whether there may
/// be more.
async fn some_aliases(tx: &mut Tx, id: OrganizationId) -> Result<(u64, bool)> {
    let rows = sqlx::query(
        "SELECT id, organization_id FROM event_aliases \
         WHERE id > (SELECT aliases_after FROM removals WHERE organization_id = ?) ORDER BY id LIMIT ?",
    )
    .bind(id.uuid())
    .bind(ALIASES)
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(last) = rows.last() else {
        return Ok((0, false));
    };
    let mut ours: Vec<Uuid> = Vec::new();
    for row in &rows {
        if row.id::<OrganizationKind>(1)? == id {
            ours.push(row.value(0)?);
        }
    }
    sqlx::query("UPDATE removals SET aliases_after = ? WHERE organization_id = ?")
        .bind(last.value::<Uuid>(0)?)
        .bind(id.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    let gone = delete_by_id(tx, "event_aliases", "id", &ours).await?;
    Ok((gone, rows.len() == ALIASES as usize))
}

async fn some_of(tx: &mut Tx, id: OrganizationId, (table, key, most): (&str, &str, u32)) -> Result<u64> {
    // A key may be another organization's, too: of one table it is told apart by both.
    let sql = if key == OF_SUBSCRIPTIONS {
        format!(
            "DELETE FROM {table} WHERE {key} IN (SELECT t.{key} FROM {table} t JOIN subscriptions s ON s.id = t.{key} \
             WHERE s.organization_id = ?1 LIMIT ?2)"
        )
    } else {
        format!(
            "DELETE FROM {table} WHERE organization_id = ?1 AND {key} IN \
             (SELECT {key} FROM {table} WHERE organization_id = ?1 LIMIT ?2)"
        )
    };
    let done = sqlx::query(AssertSqlSafe(sql))
        .bind(id.uuid())
        .bind(most)
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    Ok(done.rows_affected())
}

/// A step: the one writer knows of no intake under way but its own, and does one thing at a time.
async fn remove_some(tx: &mut Tx, id: OrganizationId) -> Result<Removed> {
    let held = sqlx::query("SELECT swept_at FROM removals WHERE organization_id = ?")
        .bind(id.uuid())
        .fetch_optional(&mut tx.connection)
        .await
        .map_err(failed)?;
    match held {
        None => return Ok(Removed::NotNow),
        Some(row) if row.time_if_any(0)?.is_some() => return Ok(Removed::All),
        Some(_) => {}
    }
    let events = oldest(tx, id).await?;
    if !events.is_empty() {
        let aliases = delete_by_id(tx, "event_aliases", "event_id", &events).await?;
        let gone = retention::remove(tx, &events).await?;
        count(tx, id, gone.events, gone.rows + aliases).await?;
        return Ok(Removed::Some);
    }
    let (aliases, more) = some_aliases(tx, id).await?;
    if aliases > 0 || more {
        count(tx, id, 0, aliases).await?;
        return Ok(Removed::Some);
    }
    for some in REST {
        let rows = some_of(tx, id, some).await?;
        if rows > 0 {
            count(tx, id, 0, rows).await?;
            return Ok(Removed::Some);
        }
    }
    let gone = delete_by_id(tx, "organizations", "id", &[id.uuid()]).await?;
    count(tx, id, 0, gone).await?;
    sqlx::query(
        "UPDATE removals SET finished_at = coalesce(finished_at, ?), swept_at = iif(finished_at < ?, ?, NULL) \
         WHERE organization_id = ?",
    )
    .bind(tx.now.millis())
    .bind(tx.now.minus(SWEPT_AFTER).millis())
    .bind(tx.now.millis())
    .bind(id.uuid())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    Ok(Removed::All)
}

async fn count(tx: &mut Tx, id: OrganizationId, events: u64, rows: u64) -> Result<()> {
    sqlx::query(
        "UPDATE removals SET events_removed = events_removed + ?, rows_removed = rows_removed + ? \
         WHERE organization_id = ?",
    )
    .bind(i64::try_from(events).unwrap_or(i64::MAX))
    .bind(i64::try_from(rows).unwrap_or(i64::MAX))
    .bind(id.uuid())
    .execute(&mut tx.connection)
    .await
    .map(drop)
    .map_err(failed)
}

/// Forgets removals of long ago, and what was written for subscriptions while they went.
pub(super) async fn forget(tx: &mut Tx) -> Result<()> {
    sqlx::query("DELETE FROM removals WHERE swept_at < ?")
        .bind(tx.now.minus(REMOVAL_REMEMBERED).millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    for table in ["lanes", "open_circuits", "subscription_failures"] {
        let sql =
            format!("DELETE FROM {table} WHERE {OF_SUBSCRIPTIONS} NOT IN (SELECT id FROM subscriptions)");
        sqlx::query(AssertSqlSafe(sql))
            .execute(&mut tx.connection)
            .await
            .map_err(failed)?;
    }
    Ok(())
}

#[async_trait]
impl Removals for Engine {
    async fn organizations(
        &self,
        page: PageRequest<OrganizationId>,
    ) -> Result<Page<OrganizationStanding, OrganizationId>> {
        let asked = "SELECT id FROM organizations WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2";
        let rows = sqlx::query(AssertSqlSafe(standings(asked)))
            .bind(page.after.map(OrganizationId::uuid))
            .bind(i64::from(page.limit) + 1)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        let found = rows.iter().map(standing).collect::<Result<Vec<_>>>()?;
        Ok(paged(found, page.limit, |one| one.id))
    }

    async fn standing(&self, id: OrganizationId) -> Result<Option<OrganizationStanding>> {
        let row = sqlx::query(AssertSqlSafe(standings("SELECT ? AS id")))
            .bind(id.uuid())
            .fetch_optional(&self.readers)
            .await
            .map_err(failed)?;
        row.as_ref().map(standing).transpose()
    }

    async fn begin_removal(&self, id: OrganizationId) -> Result<Option<Vec<KeyId>>> {
        self.writer.run(move |tx| Box::pin(begin(tx, id))).await
    }

    async fn under_removal(&self, limit: u32) -> Result<Vec<OrganizationId>> {
        let rows = sqlx::query(
            "SELECT organization_id FROM removals WHERE swept_at IS NULL AND (finished_at IS NULL OR finished_at < ?) \
             ORDER BY requested_at LIMIT ?",
        )
        .bind(Timestamp::now().minus(SWEPT_AFTER).millis())
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        rows.iter().map(|row| row.id(0)).collect()
    }

    async fn remove_some(&self, id: OrganizationId) -> Result<Removed> {
        self.writer.run(move |tx| Box::pin(remove_some(tx, id))).await
    }

    async fn removed(&self, ids: &[OrganizationId]) -> Result<HashSet<OrganizationId>> {
        let mut found = HashSet::new();
        for portion in portions(ids) {
            let sql = format!(
                "SELECT organization_id FROM removals WHERE organization_id IN ({})",
                marks(portion.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for id in portion {
                query = query.bind(id.uuid());
            }
            for row in query.fetch_all(&self.readers).await.map_err(failed)? {
                found.insert(row.id(0)?);
            }
        }
        Ok(found)
    }
}
