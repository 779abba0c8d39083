//! Removing an organization with everything of it, and events before their day.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::{
    Connection as _,
    postgres::{PgConnection, PgRow},
    query,
};
use uuid::Uuid;

use super::{
    CALL, Engine, Result, Session, StoreError, classify,
    organizations::{paged, uuids},
    rows,
    rows::Columns,
    within,
};
use crate::{
    KeyId, OrganizationId,
    store::{OrganizationStanding, Page, PageRequest, Removal, Removals, Removed},
};

/// The most events that one step removes, with all that belongs to them.
pub(super) const STEP: i64 = 500;
/// The most rows of anything else, and of what may be large.
const ROWS: i64 = 1_000;
const FRAMES: i64 = 100;

macro_rules! standing {
    ($rest:literal) => {
        concat!(
            "SELECT o.id, o.name, o.tier, o.retention_days, o.created_at, r.requested_at, r.events, r.deliveries
             FROM organizations o LEFT JOIN removals r ON r.organization_id = o.id ",
            $rest
        )
    };
}

const LIST: &str = standing!("WHERE $1::uuid IS NULL OR o.id < $1 ORDER BY o.id DESC LIMIT $2");
const ONE: &str = standing!("WHERE o.id = $1");

/// The version is raised with it: no plan of before is good any more.
const BEGIN: &str = "
    WITH there AS (
        UPDATE organizations SET subscriptions_version = subscriptions_version + 1 WHERE id = $1 RETURNING id
    ), begun AS (
        INSERT INTO removals (organization_id) SELECT id FROM there ON CONFLICT DO NOTHING
    ), ended AS (
        UPDATE subscriptions SET deleted_at = now(), updated_at = now(), version = version + 1
        WHERE organization_id = $1 AND deleted_at IS NULL RETURNING id
    ), revoked AS (
        UPDATE api_keys SET revoked_at = now() WHERE organization_id = $1 AND revoked_at IS NULL RETURNING id
    ), told AS MATERIALIZED (
        SELECT pg_notify('triggers_changes', 's:' || id) FROM ended
    )
    SELECT ARRAY(SELECT id FROM revoked) AS keys, (SELECT count(*) FROM told) AS told FROM there";

/// Of rows that an organization has, by a key of the table.
macro_rules! some {
    ($table:literal, $key:literal) => {
        concat!(
            "WITH some AS (SELECT ",
            $key,
            " AS key FROM ",
            $table,
            " WHERE organization_id = $1 LIMIT $2)
             DELETE FROM ",
            $table,
            " WHERE organization_id = $1 AND ",
            $key,
            " = ANY (ARRAY(SELECT key FROM some))"
        )
    };
}

/// What an organization has besides events, in an order that breaks no reference; what belongs to subscriptions before them.
const REST: [(&str, i64); 11] = [
    (some!("dedup_keys", "key"), ROWS),
    (some!("former_ids", "id"), ROWS),
    (some!("erasures", "id"), ROWS),
    (some!("set_aside", "id"), FRAMES),
    (some!("announcements", "id"), ROWS),
    (some!("replays", "id"), ROWS),
    (some!("test_pushes", "id"), ROWS),
    (
        "WITH some AS (
            SELECT f.subscription_id FROM subscription_failures f JOIN subscriptions s ON s.id = f.subscription_id
            WHERE s.organization_id = $1 LIMIT $2
         )
         DELETE FROM subscription_failures WHERE subscription_id IN (SELECT subscription_id FROM some)",
        ROWS,
    ),
    (
        "WITH some AS (
            SELECT l.subscription_id FROM lanes l JOIN subscriptions s ON s.id = l.subscription_id
            WHERE s.organization_id = $1 LIMIT $2
         )
         DELETE FROM lanes WHERE subscription_id IN (SELECT subscription_id FROM some)",
        ROWS,
    ),
    (some!("subscriptions", "id"), ROWS),
    (some!("api_keys", "id"), ROWS),
];

/// Removes the oldest events of an organization whose ids are before one, with all that belongs to them: how many events, and
/// how many deliveries.
pub(super) async fn remove_events(
    connection: &mut PgConnection,
    organization: OrganizationId,
    before: Uuid,
) -> Result<(u64, u64)> {
    let rows = query("SELECT id FROM events WHERE organization_id = $1 AND id < $2 ORDER BY seq LIMIT $3")
        .bind(organization.uuid())
        .bind(before)
        .bind(STEP)
        .fetch_all(&mut *connection)
        .await
        .map_err(classify)?;
    let mut ids = rows
        .iter()
        .map(|row| row.value("id"))
        .collect::<Result<Vec<Uuid>>>()?;
    ids.sort_unstable();
    let (Some(first), Some(last)) = (ids.first().copied(), ids.last().copied()) else {
        return Ok((0, 0));
    };
    let (mut events, mut deliveries) = (0, 0);
    for (sql, count) in [
        (
            "DELETE FROM attempts WHERE event_id = ANY ($1) AND event_id BETWEEN $2 AND $3",
            None,
        ),
        (
            "DELETE FROM deliveries WHERE event_id = ANY ($1) AND event_id BETWEEN $2 AND $3",
            Some(&mut deliveries),
        ),
        (
            "DELETE FROM event_aliases WHERE event_id = ANY ($1) AND $2 <= $3",
            None,
        ),
        (
            "DELETE FROM events WHERE id = ANY ($1) AND id BETWEEN $2 AND $3",
            Some(&mut events),
        ),
    ] {
        let done = query(sql)
            .bind(ids.clone())
            .bind(first)
            .bind(last)
            .execute(&mut *connection)
            .await
            .map_err(classify)?;
        if let Some(count) = count {
            *count = done.rows_affected();
        }
    }
    Ok((events, deliveries))
}

/// A step, in a transaction.
async fn step(connection: &mut PgConnection, id: OrganizationId) -> Result<Removed> {
    // Dropped on the way, it rolls back.
    let mut transaction = connection.begin().await.map_err(classify)?;
    let alone: bool = query("SELECT pg_try_advisory_xact_lock(hashtextextended($1::text, 17)) AS alone")
        .bind(id.uuid())
        .fetch_one(&mut *transaction)
        .await
        .map_err(classify)?
        .value("alone")?;
    if !alone {
        return Ok(Removed::NotNow);
    }
    let (events, deliveries) = remove_events(&mut transaction, id, Uuid::max()).await?;
    let mut removed = events;
    if events > 0 {
        query("UPDATE removals SET events = events + $2, deliveries = deliveries + $3 WHERE organization_id = $1")
            .bind(id.uuid())
            .bind(i64::try_from(events).unwrap_or(i64::MAX))
            .bind(i64::try_from(deliveries).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
    } else {
        for (sql, most) in REST {
            let done = query(sql)
                .bind(id.uuid())
                .bind(most)
                .execute(&mut *transaction)
                .await
                .map_err(classify)?;
            removed += done.rows_affected();
            if removed > 0 {
                break;
            }
        }
    }
    transaction.commit().await.map_err(classify)?;
    Ok(if removed > 0 { Removed::Some } else { Removed::All })
}

/// The organization itself, if nothing of it is left.
async fn finish(connection: &mut PgConnection, id: OrganizationId) -> Result<Removed> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let left = query("SELECT 1 AS one FROM events WHERE organization_id = $1 LIMIT 1")
        .bind(id.uuid())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(classify)?;
    if left.is_some() {
        return Ok(Removed::Some);
    }
    for sql in [
        "DELETE FROM organizations WHERE id = $1",
        "UPDATE removals SET finished_at = coalesce(finished_at, now()) WHERE organization_id = $1",
    ] {
        query(sql)
            .bind(id.uuid())
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
    }
    transaction.commit().await.map_err(classify)?;
    Ok(Removed::All)
}

#[async_trait]
impl Removals for Engine {
    async fn organizations(
        &self,
        page: PageRequest<OrganizationId>,
    ) -> Result<Page<OrganizationStanding, OrganizationId>> {
        let statement = query(LIST)
            .bind(page.after.map(OrganizationId::uuid))
            .bind(i64::from(page.limit) + 1);
        let rows = self.rows(statement).await?;
        let found = rows.iter().map(standing).collect::<Result<Vec<_>>>()?;
        Ok(paged(found, page.limit, |one| one.organization.id))
    }

    async fn standing(&self, id: OrganizationId) -> Result<Option<OrganizationStanding>> {
        let row = self.row(query(ONE).bind(id.uuid())).await?;
        row.as_ref().map(standing).transpose()
    }

    async fn begin_removal(&self, id: OrganizationId) -> Result<Option<Vec<KeyId>>> {
        let Some(row) = self.row(query(BEGIN).bind(id.uuid())).await? else {
            return Ok(None);
        };
        let keys: Vec<Uuid> = row.value("keys")?;
        Ok(Some(keys.into_iter().map(KeyId::from_uuid).collect()))
    }

    async fn under_removal(&self, limit: u32) -> Result<Vec<OrganizationId>> {
        let statement = query(
            "SELECT organization_id FROM removals WHERE finished_at IS NULL ORDER BY requested_at LIMIT $1",
        )
        .bind(i64::from(limit));
        let rows = self.rows(statement).await?;
        rows.iter().map(|row| row.id("organization_id")).collect()
    }

    async fn remove_some(&self, id: OrganizationId) -> Result<Removed> {
        let in_session = async |last: bool| {
            Box::pin(within(CALL, async {
                let mut session = Session::of(&self.pool).await?;
                let done = if last {
                    finish(session.connection(), id).await
                } else {
                    step(session.connection(), id).await
                };
                session.settle_read(done)
            }))
            .await
        };
        match in_session(false).await? {
            // An intake of before may still store something of it.
            Removed::All => match self.outwait_intakes().await {
                Ok(()) => in_session(true).await,
                Err(StoreError::Unavailable(_)) => Ok(Removed::NotNow),
                Err(error) => Err(error),
            },
            other => Ok(other),
        }
    }

    async fn removed(&self, ids: &[OrganizationId]) -> Result<HashSet<OrganizationId>> {
        let statement = query("SELECT organization_id FROM removals WHERE organization_id = ANY ($1)");
        let rows = self.rows(statement.bind(uuids(ids))).await?;
        rows.iter().map(|row| row.id("organization_id")).collect()
    }
}

fn standing(row: &PgRow) -> Result<OrganizationStanding> {
    let removal = match row.optional_at("requested_at")? {
        Some(requested_at) => Some(Removal {
            requested_at,
            events: row.number("events")?,
            deliveries: row.number("deliveries")?,
        }),
        None => None,
    };
    Ok(OrganizationStanding {
        organization: rows::organization(row)?,
        removal,
    })
}
