//! Events of one organization, removed before their day: where it keeps them for shorter than the deployment does, or goes
//! itself.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, query};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Result, classify, expiry,
    keeper::{FRAMES_STEP, SEEN_EXPIRED, earlier, step},
    partitions,
    rows::Columns,
};
use crate::{OrganizationId, store::Retention};

/// The most events that one step removes, with all that belongs to them.
const EVENTS: i64 = 500;
/// The most deliveries of a step, but for an event that has more by itself.
const DELIVERIES: i64 = 5_000;

/// `$3`: the oldest of them after `$4`, but for those of which something expired since `$5`. Who erases one, or opens its
/// deliveries again, holds it first, too.
const OLDEST: &str = "
    SELECT e.id, e.seq, (SELECT count(*) FROM deliveries d WHERE d.event_id = e.id) AS deliveries
    FROM (
        SELECT id, seq FROM events WHERE organization_id = $1 AND id < $2 AND seq > $4 AND NOT EXISTS (
            SELECT FROM deliveries d WHERE d.event_id = events.id AND d.event_id < $2
                AND d.state = 'expired' AND d.updated_at > $5
        )
        ORDER BY seq LIMIT $3 FOR UPDATE
    ) e ORDER BY e.seq";

/// `$1` are ids, from `$2` to `$3`. In the order in which outcomes are written; what an attempt that was being recorded has
/// left is seen by the statements after it.
const DELETE_DELIVERIES: &str = "
    WITH held AS MATERIALIZED (
        SELECT event_id, subscription_id FROM deliveries
        WHERE event_id = ANY ($1) AND event_id BETWEEN $2 AND $3
        ORDER BY event_id, subscription_id FOR UPDATE
    )
    DELETE FROM deliveries d
    USING unnest((SELECT array_agg(event_id) FROM held), (SELECT array_agg(subscription_id) FROM held))
        AS h (event_id, subscription_id)
    WHERE d.event_id = h.event_id AND d.subscription_id = h.subscription_id AND d.event_id BETWEEN $2 AND $3";
const DELETE_ATTEMPTS: &str = "DELETE FROM attempts WHERE event_id = ANY ($1) AND event_id BETWEEN $2 AND $3";
const DELETE_ALIASES: &str = "DELETE FROM event_aliases WHERE event_id = ANY ($1) AND $2::uuid <= $3::uuid";
const DELETE_EVENTS: &str = "DELETE FROM events WHERE id = ANY ($1) AND id BETWEEN $2 AND $3";

/// `$2` is a time.
const FORGET_SET_ASIDE: &str = "
    WITH forgotten AS (
        DELETE FROM set_aside WHERE id = ANY (ARRAY(
            SELECT id FROM set_aside WHERE organization_id = $1 AND at < $2 LIMIT $3
        )) AND at < $2
        RETURNING 1
    )
    SELECT count(*) AS changed FROM forgotten";

/// How much was removed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gone {
    pub(super) events: u64,
    /// Of whatever kind, events included.
    pub(super) rows: u64,
    /// The place of the last of those events.
    pub(super) up_to: i64,
}

/// Which events of an organization are to be removed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doomed {
    /// Those whose ids are before this.
    pub(super) before: Uuid,
    /// Those after this place.
    pub(super) after: i64,
    /// Those of which nothing has expired since.
    pub(super) expired_since: Option<OffsetDateTime>,
}

impl Doomed {
    /// All there are.
    pub(super) const ALL: Self = Self {
        before: Uuid::max(),
        after: i64::MIN,
        expired_since: None,
    };
}

/// Removes the oldest of these events of an organization, with all that belongs to them.
pub(super) async fn remove_events(
    connection: &mut PgConnection,
    organization: OrganizationId,
    doomed: Doomed,
) -> Result<Gone> {
    let oldest = query(OLDEST)
        .bind(organization.uuid())
        .bind(doomed.before)
        .bind(EVENTS)
        .bind(doomed.after)
        .bind(doomed.expired_since)
        .fetch_all(&mut *connection)
        .await
        .map_err(classify)?;
    let (mut ids, mut deliveries, mut up_to): (Vec<Uuid>, i64, i64) = (Vec::new(), 0, doomed.after);
    for row in &oldest {
        deliveries += row.value::<i64>("deliveries")?;
        if deliveries > DELIVERIES && !ids.is_empty() {
            break;
        }
        ids.push(row.value("id")?);
        up_to = row.value("seq")?;
    }
    let (Some(first), Some(last)) = (ids.iter().min().copied(), ids.iter().max().copied()) else {
        return Ok(Gone::default());
    };
    let mut gone = Gone {
        up_to,
        ..Gone::default()
    };
    for sql in [DELETE_DELIVERIES, DELETE_ATTEMPTS, DELETE_ALIASES, DELETE_EVENTS] {
        let done = query(sql)
            .bind(ids.clone())
            .bind(first)
            .bind(last)
            .execute(&mut *connection)
            .await
            .map_err(classify)?;
        gone.rows += done.rows_affected();
        // The last are the events.
        gone.events = done.rows_affected();
    }
    Ok(gone)
}

/// Organizations that keep their events for shorter than the deployment does: by the same rules, whole days at a time, but
/// row by row. Only days that have ended are asked for, so that there is nothing to read where nothing has.
pub(super) async fn keep_for_shorter(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    retention: Duration,
    done: &mut Retention,
) -> Result<()> {
    let shorter = query("SELECT id, retention_days FROM organizations WHERE retention_days IS NOT NULL")
        .fetch_all(&mut *connection)
        .await
        .map_err(classify)?;
    for row in &shorter {
        let organization: OrganizationId = row.id("id")?;
        let own = Duration::from_hours(24 * u64::from(row.count("retention_days")?));
        if own >= retention {
            continue;
        }
        if let Some(before) = earlier(now, own) {
            let first = partitions::first_id(before.date());
            done.expired += expiry::expire(&mut *connection, Uuid::nil(), first, Some(organization)).await?;
            loop {
                let statement = query(FORGET_SET_ASIDE)
                    .bind(organization.uuid())
                    .bind(before)
                    .bind(FRAMES_STEP);
                let changed = step(&mut *connection, statement).await?;
                done.set_aside_removed += u64::try_from(changed).unwrap_or(0);
                if changed < FRAMES_STEP {
                    break;
                }
            }
        }
        if let Some(before) = earlier(now, own.saturating_add(SEEN_EXPIRED)) {
            // What expired late, for the organization has only now come to keep it for shorter, can be seen for as long.
            let mut doomed = Doomed {
                before: partitions::first_id(before.date()),
                expired_since: earlier(now, SEEN_EXPIRED),
                ..Doomed::ALL
            };
            loop {
                let mut transaction = connection.begin().await.map_err(classify)?;
                let gone = remove_events(&mut transaction, organization, doomed).await?;
                transaction.commit().await.map_err(classify)?;
                if gone.events == 0 {
                    break;
                }
                doomed.after = gone.up_to;
                done.removed_early += gone.events;
            }
        }
    }
    Ok(())
}
