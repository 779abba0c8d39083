//! Removing an organization with everything of it.
//!
//! A step holds the removal's row: so one worker is at it at a time, and each step is counted in its own transaction. Rows
//! are held in the order in which others hold them: events, then deliveries, each by id.

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
    own_retention::{Doomed, Gone, remove_events},
    rows,
    rows::Columns,
    within,
};
use crate::{
    KeyId, OrganizationId,
    audit::{Action, Change},
    store::{
        OrganizationStanding, Page, PageRequest, REMAINING_COUNTED, REMOVAL_REMEMBERED, Removal, Removals,
        Removed, SWEPT_AFTER,
    },
};

/// The most rows that one step removes beside events, and of what may be large.
const ROWS: i64 = 1_000;
const FRAMES: i64 = 100;
/// How many aliases are looked at in a step: nothing finds those of an organization.
const ALIASES: i64 = 10_000;

macro_rules! standing {
    ($asked:literal) => {
        concat!(
            "SELECT asked.id, o.name, o.tier, o.retention_days, o.created_at, r.requested_at, r.finished_at,
                r.events_removed, r.rows_removed,
                CASE WHEN r.organization_id IS NOT NULL AND r.finished_at IS NULL THEN
                    (SELECT count(*) FROM (SELECT FROM events WHERE organization_id = r.organization_id LIMIT $1) remaining)
                END AS remaining
             FROM (",
            $asked,
            ") asked
             LEFT JOIN organizations o ON o.id = asked.id LEFT JOIN removals r ON r.organization_id = asked.id
             WHERE o.id IS NOT NULL OR r.organization_id IS NOT NULL ORDER BY asked.id DESC"
        )
    };
}

const LIST: &str =
    standing!("SELECT id FROM organizations WHERE $2::uuid IS NULL OR id < $2 ORDER BY id DESC LIMIT $3");
const ONE: &str = standing!("SELECT $2::uuid AS id");

/// Subscriptions come first, as in every change of one, so that two who meet wait for each other in the same order. The
/// version is raised with it: no plan of before is good any more. What was revoked by an earlier call is answered again.
const BEGIN: &str = "
    WITH ended AS (
        UPDATE subscriptions SET deleted_at = now(), updated_at = now(), version = version + 1
        WHERE organization_id = $1 AND deleted_at IS NULL RETURNING id
    ), there AS (
        UPDATE organizations SET subscriptions_version = subscriptions_version + 1
        WHERE id = $1 AND (SELECT count(*) FROM ended) >= 0 RETURNING id
    ), begun AS (
        INSERT INTO removals (organization_id) SELECT id FROM there ON CONFLICT DO NOTHING RETURNING 1
    ), revoked AS (
        UPDATE api_keys SET revoked_at = now() WHERE organization_id = $1 AND revoked_at IS NULL
    ), told AS MATERIALIZED (
        SELECT pg_notify('triggers_changes', 's:' || id) FROM ended
    )
    SELECT
        ARRAY(
            SELECT id FROM api_keys WHERE organization_id = $1 AND (
                revoked_at IS NULL
                OR revoked_at >= (SELECT requested_at FROM removals WHERE organization_id = $1)
            )
        ) AS keys,
        (SELECT count(*) FROM told) AS told,
        EXISTS (SELECT FROM begun) AS begins
    FROM (
        SELECT id FROM there
        UNION ALL SELECT organization_id FROM removals WHERE organization_id = $1 AND finished_at IS NOT NULL
    ) known LIMIT 1";

const UNDER_REMOVAL: &str = "
    SELECT organization_id FROM removals
    WHERE swept_at IS NULL AND (finished_at IS NULL OR finished_at < now() - make_interval(secs => $2))
    ORDER BY requested_at LIMIT $1";

/// Of rows that an organization has, by a key of the table.
macro_rules! some {
    ($table:literal, $key:literal) => {
        concat!(
            "WITH few AS (SELECT ",
            $key,
            " AS key FROM ",
            $table,
            " WHERE organization_id = $1 LIMIT $2)
             DELETE FROM ",
            $table,
            " WHERE organization_id = $1 AND ",
            $key,
            " = ANY (ARRAY(SELECT key FROM few))"
        )
    };
}

/// Of rows that an organization's subscriptions have.
macro_rules! some_of_subscriptions {
    ($table:literal) => {
        concat!(
            "WITH few AS (
                SELECT t.subscription_id FROM ",
            $table,
            " t JOIN subscriptions s ON s.id = t.subscription_id WHERE s.organization_id = $1 LIMIT $2
             )
             DELETE FROM ",
            $table,
            " WHERE subscription_id = ANY (ARRAY(SELECT subscription_id FROM few))"
        )
    };
}

/// What an organization has besides events, in an order that breaks no reference; what belongs to subscriptions before them, and
/// keys last: as long as they are there, whoever asks once more can be told of them.
const REST: [(&str, i64); 18] = [
    (some!("dedup_keys", "key"), ROWS),
    (some!("former_ids", "id"), ROWS),
    (some!("erasures", "id"), ROWS),
    (some!("set_aside", "id"), FRAMES),
    (some!("announcements", "id"), ROWS),
    (some!("replays", "id"), ROWS),
    (some!("test_pushes", "id"), ROWS),
    (some!("audit_log", "id"), ROWS),
    (some!("limit_buckets", "organization_id"), ROWS),
    (some!("limit_shares", "counter"), ROWS),
    (some!("usage_hours", "hour"), ROWS),
    (some_of_subscriptions!("subscription_failures"), ROWS),
    (some_of_subscriptions!("attempt_minutes"), ROWS),
    (some_of_subscriptions!("open_circuits"), ROWS),
    (some_of_subscriptions!("lanes"), ROWS),
    (some_of_subscriptions!("pauses"), ROWS),
    (some!("subscriptions", "id"), ROWS),
    (some!("api_keys", "id"), ROWS),
];

/// Aliases that lead to no event, or to another alias: in the order of all of them, from `$2` on.
const SOME_ALIASES: &str = "
    WITH looked AS MATERIALIZED (
        SELECT id, organization_id FROM event_aliases WHERE id > $2 ORDER BY id LIMIT $3
    ), gone AS (
        DELETE FROM event_aliases a
        USING unnest((SELECT array_agg(id) FROM looked WHERE organization_id = $1)) AS l (id)
        WHERE a.id = l.id AND a.id > $2
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM looked) AS looked, (SELECT count(*) FROM gone) AS gone,
        (SELECT id FROM looked ORDER BY id DESC LIMIT 1) AS last";

/// What a step is of.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Events, and what belongs to them.
    Events,
    /// What is left when no intake can bring more of them.
    Rest,
}

/// A step, in a transaction; dropped on the way, it rolls back.
async fn step(connection: &mut PgConnection, id: OrganizationId, part: Part) -> Result<Removed> {
    let mut transaction = connection.begin().await.map_err(classify)?;
    let held = query(
        "SELECT aliases_after, swept_at FROM removals WHERE organization_id = $1 FOR UPDATE SKIP LOCKED",
    )
    .bind(id.uuid())
    .fetch_optional(&mut *transaction)
    .await
    .map_err(classify)?;
    let removed = match &held {
        None => Removed::NotNow,
        Some(row) if row.optional_at("swept_at")?.is_some() => Removed::All,
        Some(row) => {
            let (gone, removed) = match part {
                Part::Events => {
                    let gone = remove_events(&mut transaction, id, Doomed::ALL).await?;
                    (
                        gone,
                        if gone.events > 0 {
                            Removed::Some
                        } else {
                            Removed::All
                        },
                    )
                }
                Part::Rest => rest(&mut transaction, id, row.value("aliases_after")?).await?,
            };
            count(&mut transaction, id, gone).await?;
            removed
        }
    };
    transaction.commit().await.map_err(classify)?;
    Ok(removed)
}

async fn count(connection: &mut PgConnection, id: OrganizationId, gone: Gone) -> Result<()> {
    if gone.rows == 0 {
        return Ok(());
    }
    query(
        "UPDATE removals SET events_removed = events_removed + $2, rows_removed = rows_removed + $3
         WHERE organization_id = $1",
    )
    .bind(id.uuid())
    .bind(i64::try_from(gone.events).unwrap_or(i64::MAX))
    .bind(i64::try_from(gone.rows).unwrap_or(i64::MAX))
    .execute(connection)
    .await
    .map(drop)
    .map_err(classify)
}

/// Some of what is left beside events; and if nothing is, the organization itself.
async fn rest(
    connection: &mut PgConnection,
    id: OrganizationId,
    aliases_after: Uuid,
) -> Result<(Gone, Removed)> {
    let some = |rows| {
        let gone = Gone {
            rows,
            ..Gone::default()
        };
        (gone, Removed::Some)
    };
    let late = query("SELECT 1 AS one FROM events WHERE organization_id = $1 LIMIT 1")
        .bind(id.uuid())
        .fetch_optional(&mut *connection)
        .await
        .map_err(classify)?;
    if late.is_some() {
        return Ok(some(0));
    }
    let aliases = query(SOME_ALIASES)
        .bind(id.uuid())
        .bind(aliases_after)
        .bind(ALIASES)
        .fetch_one(&mut *connection)
        .await
        .map_err(classify)?;
    if let Some(last) = aliases.value::<Option<Uuid>>("last")? {
        query("UPDATE removals SET aliases_after = $2 WHERE organization_id = $1")
            .bind(id.uuid())
            .bind(last)
            .execute(&mut *connection)
            .await
            .map_err(classify)?;
    }
    let (looked, gone): (i64, i64) = (aliases.value("looked")?, aliases.value("gone")?);
    if looked == ALIASES || gone > 0 {
        return Ok(some(u64::try_from(gone).unwrap_or(0)));
    }
    for (sql, most) in REST {
        let done = query(sql)
            .bind(id.uuid())
            .bind(most)
            .execute(&mut *connection)
            .await
            .map_err(classify)?;
        if done.rows_affected() > 0 {
            return Ok(some(done.rows_affected()));
        }
    }
    let gone = query("DELETE FROM organizations WHERE id = $1")
        .bind(id.uuid())
        .execute(&mut *connection)
        .await
        .map_err(classify)?;
    query(
        "UPDATE removals SET finished_at = coalesce(finished_at, now()),
            swept_at = CASE WHEN finished_at < now() - make_interval(secs => $2) THEN now() END
         WHERE organization_id = $1",
    )
    .bind(id.uuid())
    .bind(rows::seconds(SWEPT_AFTER))
    .execute(&mut *connection)
    .await
    .map_err(classify)?;
    let gone = Gone {
        rows: gone.rows_affected(),
        ..Gone::default()
    };
    Ok((gone, Removed::All))
}

/// Forgets removals of long ago, and what was written for subscriptions while they went.
pub(super) async fn forget(connection: &mut PgConnection) -> Result<()> {
    query("DELETE FROM removals WHERE swept_at < now() - make_interval(secs => $1)")
        .bind(rows::seconds(REMOVAL_REMEMBERED))
        .execute(&mut *connection)
        .await
        .map_err(classify)?;
    for sql in [
        "DELETE FROM lanes t WHERE NOT EXISTS (SELECT FROM subscriptions s WHERE s.id = t.subscription_id)",
        "DELETE FROM open_circuits t WHERE NOT EXISTS (SELECT FROM subscriptions s WHERE s.id = t.subscription_id)",
        "DELETE FROM subscription_failures t
         WHERE NOT EXISTS (SELECT FROM subscriptions s WHERE s.id = t.subscription_id)",
    ] {
        query(sql).execute(&mut *connection).await.map_err(classify)?;
    }
    Ok(())
}

impl Engine {
    async fn removal_step(&self, id: OrganizationId, part: Part) -> Result<Removed> {
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let done = step(session.connection(), id, part).await;
            session.settle_read(done)
        }))
        .await
    }
}

#[async_trait]
impl Removals for Engine {
    async fn organizations(
        &self,
        page: PageRequest<OrganizationId>,
    ) -> Result<Page<OrganizationStanding, OrganizationId>> {
        let statement = query(LIST)
            .bind(i64::from(REMAINING_COUNTED))
            .bind(page.after.map(OrganizationId::uuid))
            .bind(i64::from(page.limit) + 1);
        let rows = self.rows(statement).await?;
        let found = rows.iter().map(standing).collect::<Result<Vec<_>>>()?;
        Ok(paged(found, page.limit, |one| one.id))
    }

    async fn standing(&self, id: OrganizationId) -> Result<Option<OrganizationStanding>> {
        let statement = query(ONE).bind(i64::from(REMAINING_COUNTED)).bind(id.uuid());
        let row = self.row(statement).await?;
        row.as_ref().map(standing).transpose()
    }

    async fn begin_removal(&self, id: OrganizationId) -> Result<Option<Vec<KeyId>>> {
        let begun = self
            .audited(query(BEGIN).bind(id.uuid()), |row| {
                Ok(if row.value("begins")? {
                    vec![Change::of(None, Action::OrganizationRemoved, id)]
                } else {
                    Vec::new()
                })
            })
            .await?;
        let Some(row) = begun else {
            return Ok(None);
        };
        let keys: Vec<Uuid> = row.value("keys")?;
        Ok(Some(keys.into_iter().map(KeyId::from_uuid).collect()))
    }

    async fn under_removal(&self, limit: u32) -> Result<Vec<OrganizationId>> {
        let statement = query(UNDER_REMOVAL)
            .bind(i64::from(limit))
            .bind(rows::seconds(SWEPT_AFTER));
        let rows = self.rows(statement).await?;
        rows.iter().map(|row| row.id("organization_id")).collect()
    }

    async fn remove_some(&self, id: OrganizationId) -> Result<Removed> {
        match self.removal_step(id, Part::Events).await? {
            Removed::All => {}
            other => return Ok(other),
        }
        // An intake of before may still store something of it.
        match self.outwait_intakes().await {
            Ok(()) => self.removal_step(id, Part::Rest).await,
            Err(StoreError::Unavailable(_)) => Ok(Removed::NotNow),
            Err(error) => Err(error),
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
            finished_at: row.optional_at("finished_at")?,
            events: row.number("events_removed")?,
            rows: row.number("rows_removed")?,
            remaining: row.optional_number("remaining")?.unwrap_or(0),
        }),
        None => None,
    };
    let there = row.value::<Option<&str>>("name")?.is_some();
    Ok(OrganizationStanding {
        id: row.id("id")?,
        organization: if there {
            Some(rows::organization(row)?)
        } else {
            None
        },
        removal,
    })
}
