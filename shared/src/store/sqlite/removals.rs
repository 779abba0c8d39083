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
    KeyId, OrganizationId,
    store::{Change, OrganizationStanding, Page, PageRequest, Removal, Removals, Removed, Result},
};

/// The most rows that one step removes.
const STEP: u32 = 256;

/// What an organization has besides events: tables, and what their rows are told apart by; what belongs to subscriptions
/// before them.
const REST: [(&str, &str); 11] = [
    ("dedup_keys", "key"),
    ("former_ids", "id"),
    ("erasures", "id"),
    ("set_aside", "id"),
    ("announcements", "id"),
    ("replays", "id"),
    ("test_pushes", "id"),
    ("subscription_failures", "subscription_id"),
    ("lanes", "subscription_id"),
    ("subscriptions", "id"),
    ("keys", "id"),
];

fn standing(row: &SqliteRow) -> Result<OrganizationStanding> {
    let removal = match row.time_if_any(5)? {
        Some(requested_at) => Some(Removal {
            requested_at,
            events: row.number(6)?,
            deliveries: row.number(7)?,
        }),
        None => None,
    };
    Ok(OrganizationStanding {
        organization: organization(row)?,
        removal,
    })
}

fn standings(rest: &str) -> String {
    format!(
        "SELECT {ORGANIZATION}, r.requested_at, r.events, r.deliveries \
         FROM organizations o LEFT JOIN removals r ON r.organization_id = o.id {rest}"
    )
}

async fn begin(tx: &mut Tx, id: OrganizationId) -> Result<Option<Vec<KeyId>>> {
    let there = sqlx::query(
        "UPDATE organizations SET subscriptions_version = subscriptions_version + 1 WHERE id = ?",
    )
    .bind(id.uuid())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    if there.rows_affected() == 0 {
        return Ok(None);
    }
    sqlx::query("INSERT INTO removals (organization_id, requested_at) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(id.uuid())
        .bind(tx.now.millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
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
    let revoked = sqlx::query(
        "UPDATE keys SET revoked_at = ? WHERE organization_id = ? AND revoked_at IS NULL RETURNING id",
    )
    .bind(tx.now.millis())
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

async fn remove_some(tx: &mut Tx, id: OrganizationId) -> Result<Removed> {
    let rows = sqlx::query("SELECT id FROM events WHERE organization_id = ? ORDER BY seq LIMIT ?")
        .bind(id.uuid())
        .bind(STEP)
        .fetch_all(&mut tx.connection)
        .await
        .map_err(failed)?;
    let events = rows
        .iter()
        .map(|row| row.value(0))
        .collect::<Result<Vec<Uuid>>>()?;
    if !events.is_empty() {
        for portion in portions(&events) {
            let sql = format!(
                "DELETE FROM event_aliases WHERE event_id IN ({})",
                marks(portion.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for event in portion {
                query = query.bind(event);
            }
            query.execute(&mut tx.connection).await.map_err(failed)?;
        }
        let removed = retention::remove(tx, &events).await?;
        sqlx::query(
            "UPDATE removals SET events = events + ?, deliveries = deliveries + ? WHERE organization_id = ?",
        )
        .bind(i64::try_from(removed.events).unwrap_or(i64::MAX))
        .bind(i64::try_from(removed.deliveries).unwrap_or(i64::MAX))
        .bind(id.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
        return Ok(Removed::Some);
    }
    for (table, key) in REST {
        let of = if key == "subscription_id" {
            "subscription_id IN (SELECT s.id FROM subscriptions s WHERE s.organization_id = ?)"
        } else {
            "organization_id = ?"
        };
        // A key may be another organization's too: of one table it is told apart by both.
        let also = if key == "subscription_id" {
            ""
        } else {
            "organization_id = ? AND "
        };
        let sql = format!(
            "DELETE FROM {table} WHERE {also}{key} IN (SELECT {key} FROM {table} WHERE {of} LIMIT ?)"
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(id.uuid());
        if !also.is_empty() {
            query = query.bind(id.uuid());
        }
        let done = query
            .bind(STEP)
            .execute(&mut tx.connection)
            .await
            .map_err(failed)?;
        if done.rows_affected() > 0 {
            return Ok(Removed::Some);
        }
    }
    // The one writer knows of no intake under way but its own.
    for sql in [
        "UPDATE removals SET finished_at = coalesce(finished_at, ?) WHERE organization_id = ?",
        "DELETE FROM organizations WHERE ? > 0 AND id = ?",
    ] {
        sqlx::query(sql)
            .bind(tx.now.millis())
            .bind(id.uuid())
            .execute(&mut tx.connection)
            .await
            .map_err(failed)?;
    }
    Ok(Removed::All)
}

#[async_trait]
impl Removals for Engine {
    async fn organizations(
        &self,
        page: PageRequest<OrganizationId>,
    ) -> Result<Page<OrganizationStanding, OrganizationId>> {
        let sql = standings("WHERE (? IS NULL OR o.id < ?) ORDER BY o.id DESC LIMIT ?");
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(page.after.map(OrganizationId::uuid))
            .bind(page.after.map(OrganizationId::uuid))
            .bind(i64::from(page.limit) + 1)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
        let found = rows.iter().map(standing).collect::<Result<Vec<_>>>()?;
        Ok(paged(found, page.limit, |one| one.organization.id))
    }

    async fn standing(&self, id: OrganizationId) -> Result<Option<OrganizationStanding>> {
        let row = sqlx::query(AssertSqlSafe(standings("WHERE o.id = ?")))
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
            "SELECT organization_id FROM removals WHERE finished_at IS NULL ORDER BY requested_at LIMIT ?",
        )
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
