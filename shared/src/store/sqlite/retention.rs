//! What goes, and when: in small transactions of their own, so that others get their turn.
//!
//! An event's age is that of its id. Once it is older than its retention, what is still open of it is `expired`; it
//! stays to be seen for another day, then it is removed with all that belongs to it.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{
    Engine,
    announcements::announce,
    many::{marks, portions},
    removals,
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    DeliveryKey, OrganizationId, SubscriptionId, Timestamp,
    announcement::Expiries,
    store::{COUNTED_FOR, LIMITS_KEPT, Result, Retention, USAGE_KEPT},
};

/// Rows of one transaction.
const STEP: u32 = 256;
/// Rows, where each may be a large frame.
const FRAMES: u32 = 32;
/// How long what has expired stays to be seen.
const SHOWN_FOR: Duration = Duration::from_hours(24);

impl Engine {
    pub(super) async fn keep_for(&self, retention: Duration) -> Result<Retention> {
        let Ok(_alone) = self.retention.try_lock() else {
            return Ok(Retention::default());
        };
        let now = Timestamp::now();
        let ended = first_id(now.minus(retention));
        let gone = first_id(now.minus(retention).minus(SHOWN_FOR));
        let expired = self.expire(ended, None).await?;
        let mut done = self.keep_for_shorter(now, retention).await?;
        done.expired += expired;
        done.removed = self.remove(gone, now.minus(SHOWN_FOR)).await?;
        done.set_aside_removed += self
            .in_steps(
                "DELETE FROM set_aside WHERE id IN (SELECT id FROM set_aside WHERE at < ? ORDER BY at LIMIT ?)",
                Bound::Time(now.minus(retention)),
            )
            .await?;
        self.in_steps(
            "DELETE FROM former_ids WHERE (organization_id, id) IN \
             (SELECT organization_id, id FROM former_ids WHERE event_id < ? LIMIT ?)",
            Bound::Id(gone),
        )
        .await?;
        self.in_steps(
            "DELETE FROM event_aliases WHERE id IN (SELECT id FROM event_aliases WHERE id < ? LIMIT ?)",
            Bound::Id(gone),
        )
        .await?;
        while self
            .writer
            .run(move |tx| Box::pin(forget_minutes(tx, now.minus(COUNTED_FOR))))
            .await?
        {}
        self.writer.run(|tx| Box::pin(forget_circuits(tx))).await?;
        self.writer.run(|tx| Box::pin(removals::forget(tx))).await?;
        self.in_steps(
            "DELETE FROM dedup_keys WHERE (organization_id, key) IN \
             (SELECT organization_id, key FROM dedup_keys WHERE expires_at <= ? LIMIT ?)",
            Bound::Time(now),
        )
        .await?;
        self.in_steps(
            "DELETE FROM erasures WHERE (id, organization_id) IN \
             (SELECT id, organization_id FROM erasures WHERE expires_at <= ? LIMIT ?)",
            Bound::Time(now),
        )
        .await?;
        for (step, bound) in [
            (
                "DELETE FROM limit_buckets WHERE organization_id IN \
                 (SELECT organization_id FROM limit_buckets WHERE full_at < ? * 1000000 LIMIT ?)",
                Bound::Time(now.minus(LIMITS_KEPT)),
            ),
            (
                "DELETE FROM limit_shares WHERE (organization_id, counter) IN \
                 (SELECT organization_id, counter FROM limit_shares WHERE at < ? LIMIT ?)",
                Bound::Time(now.minus(LIMITS_KEPT)),
            ),
            (
                "DELETE FROM limit_nodes WHERE node IN (SELECT node FROM limit_nodes WHERE seen_at < ? LIMIT ?)",
                Bound::Time(now.minus(LIMITS_KEPT)),
            ),
            (
                "DELETE FROM usage_hours WHERE (organization_id, hour, node) IN \
                 (SELECT organization_id, hour, node FROM usage_hours WHERE hour < ? / 3600000 LIMIT ?)",
                Bound::Time(now.minus(USAGE_KEPT)),
            ),
        ] {
            self.in_steps(step, bound).await?;
        }
        Ok(done)
    }

    /// Ends what is open of events before `ended`, of one organization or of all, subscription by subscription.
    async fn expire(&self, ended: Uuid, organization: Option<OrganizationId>) -> Result<u64> {
        // What a deleted subscription leaves open counts as cancelled, and is written down as that.
        let subscriptions = sqlx::query(
            "SELECT s.id, s.organization_id FROM subscriptions s \
             WHERE s.deleted_at IS NULL AND s.organization_id = coalesce(?, s.organization_id) \
             AND EXISTS (SELECT 1 FROM deliveries d INDEXED BY deliveries_due WHERE d.subscription_id = s.id \
             AND d.due_at IS NOT NULL AND d.event_id < ?)",
        )
        .bind(organization.map(OrganizationId::uuid))
        .bind(ended)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let mut expired = 0;
        for row in subscriptions {
            let (subscription, organization) = (row.id(0)?, row.id(1)?);
            loop {
                let rows = self
                    .writer
                    .run(move |tx| Box::pin(expire(tx, organization, subscription, ended)))
                    .await?;
                expired += rows;
                if rows < u64::from(STEP) {
                    break;
                }
            }
        }
        Ok(expired)
    }

    /// Organizations that keep their events for shorter than the deployment does, by the same rules.
    async fn keep_for_shorter(&self, now: Timestamp, retention: Duration) -> Result<Retention> {
        let organizations =
            sqlx::query("SELECT id, retention_days FROM organizations WHERE retention_days IS NOT NULL")
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
        let mut done = Retention::default();
        for row in organizations {
            let (organization, own): (OrganizationId, Duration) = (row.id(0)?, days(row.number(1)?));
            if own >= retention {
                continue;
            }
            let ended = now.minus(own);
            done.expired += self.expire(first_id(ended), Some(organization)).await?;
            done.removed_early += self.remove_early(organization, now, own).await?;
            loop {
                let gone = self
                    .writer
                    .run(move |tx| Box::pin(forget_set_aside(tx, organization, ended)))
                    .await?;
                done.set_aside_removed += gone;
                if gone < u64::from(FRAMES) {
                    break;
                }
            }
        }
        Ok(done)
    }

    /// Removes events of an organization that are older than its own retention, a day after they ended.
    async fn remove_early(
        &self,
        organization: OrganizationId,
        now: Timestamp,
        retention: Duration,
    ) -> Result<u64> {
        let seen = now.minus(SHOWN_FOR);
        let gone = first_id(seen.minus(retention));
        let (mut removed, mut after) = (0, 0_i64);
        // In order, which is nearly that of age: where none of the oldest is to go, none of the others is.
        loop {
            let rows = sqlx::query(
                "SELECT e.seq, e.id, e.id < ? AND NOT EXISTS (SELECT 1 FROM deliveries d \
                 WHERE d.event_id = e.id AND d.state = 'expired' AND d.updated_at > ?) \
                 FROM events e WHERE e.organization_id = ? AND e.seq > ? ORDER BY e.seq LIMIT ?",
            )
            .bind(gone)
            .bind(seen.millis())
            .bind(organization.uuid())
            .bind(after)
            .bind(STEP)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
            let mut ids: Vec<Uuid> = Vec::new();
            for row in &rows {
                after = row.value(0)?;
                if row.value(2)? {
                    ids.push(row.value(1)?);
                }
            }
            if ids.is_empty() {
                return Ok(removed);
            }
            removed += self
                .writer
                .run(move |tx| Box::pin(async move { remove(tx, &ids).await }))
                .await?
                .events;
        }
    }

    /// Removes events before `gone`, but for those of which something expired after `seen`.
    async fn remove(&self, gone: Uuid, seen: Timestamp) -> Result<u64> {
        let (mut removed, mut after) = (0, Uuid::nil());
        loop {
            let rows = sqlx::query(
                "SELECT e.id FROM events e WHERE e.id > ? AND e.id < ? AND NOT EXISTS (SELECT 1 FROM deliveries d \
                 WHERE d.event_id = e.id AND d.state = 'expired' AND d.updated_at > ?) ORDER BY e.id LIMIT ?",
            )
            .bind(after)
            .bind(gone)
            .bind(seen.millis())
            .bind(STEP)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
            let ids = rows
                .iter()
                .map(|row| row.value(0))
                .collect::<Result<Vec<Uuid>>>()?;
            let Some(last) = ids.last() else {
                return Ok(removed);
            };
            after = *last;
            removed += self
                .writer
                .run(move |tx| Box::pin(async move { remove(tx, &ids).await }))
                .await?
                .events;
        }
    }

    /// Runs a statement with a bound and a limit until it finds nothing more; how many rows it changed.
    async fn in_steps(&self, step: &'static str, bound: Bound) -> Result<u64> {
        let mut changed = 0;
        loop {
            let rows = self
                .writer
                .run(move |tx| {
                    Box::pin(async move {
                        let query = match bound {
                            Bound::Id(id) => sqlx::query(step).bind(id),
                            Bound::Time(at) => sqlx::query(step).bind(at.millis()),
                        };
                        query
                            .bind(STEP)
                            .execute(&mut tx.connection)
                            .await
                            .map(|done| done.rows_affected())
                            .map_err(failed)
                    })
                })
                .await?;
            changed += rows;
            if rows < u64::from(STEP) {
                return Ok(changed);
            }
        }
    }
}

/// A retention of so many days.
fn days(days: u16) -> Duration {
    Duration::from_hours(24 * u64::from(days))
}

/// Before what something is to go.
#[derive(Clone, Copy)]
enum Bound {
    Id(Uuid),
    Time(Timestamp),
}

/// Forgets some of what was set aside of an organization before; how much that was.
async fn forget_set_aside(tx: &mut Tx, organization: OrganizationId, before: Timestamp) -> Result<u64> {
    sqlx::query(
        "DELETE FROM set_aside WHERE id IN \
         (SELECT id FROM set_aside WHERE organization_id = ? AND at < ? LIMIT ?)",
    )
    .bind(organization.uuid())
    .bind(before.millis())
    .bind(FRAMES)
    .execute(&mut tx.connection)
    .await
    .map(|done| done.rows_affected())
    .map_err(failed)
}

/// Ends some of what is open of a subscription, and tells of it; how many deliveries those were.
async fn expire(
    tx: &mut Tx,
    organization: OrganizationId,
    subscription: SubscriptionId,
    ended: Uuid,
) -> Result<u64> {
    let rows = sqlx::query(
        "UPDATE deliveries SET state = 'expired', due_at = NULL, lease_owner = NULL, updated_at = ? \
         WHERE subscription_id = ? AND event_id IN (SELECT d.event_id FROM deliveries d INDEXED BY deliveries_due \
         WHERE d.subscription_id = ? AND d.due_at IS NOT NULL AND d.event_id < ? LIMIT ?) \
         RETURNING event_id, coalesce((SELECT e.type NOT LIKE 'triggers.%' FROM events e WHERE e.id = event_id), 0)",
    )
    .bind(tx.now.millis())
    .bind(subscription.uuid())
    .bind(subscription.uuid())
    .bind(ended)
    .bind(STEP)
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    let mut expiries = Expiries::default();
    for row in &rows {
        // Events of the system's own beget no others.
        if row.value(1)? {
            let event = row.id(0)?;
            expiries.add(organization, DeliveryKey { event, subscription });
        }
    }
    for (organization, announcement) in expiries.announcements() {
        announce(tx, organization, &announcement).await?;
    }
    Ok(rows.len() as u64)
}

/// Forgets some of what was counted before; whether there may be more. The last success and failure stay with the
/// subscription.
async fn forget_minutes(tx: &mut Tx, before: Timestamp) -> Result<bool> {
    let gone = sqlx::query(
        "DELETE FROM attempt_minutes WHERE (subscription_id, counter, number) IN \
         (SELECT subscription_id, counter, number FROM attempt_minutes WHERE at < ? ORDER BY at LIMIT ?) \
         RETURNING subscription_id, last_success_at, last_failure_at",
    )
    .bind(before.millis())
    .bind(STEP)
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    for row in &gone {
        let (success, failure): (Option<i64>, Option<i64>) = (row.value(1)?, row.value(2)?);
        sqlx::query(
            "UPDATE subscriptions SET last_success_at = max(coalesce(last_success_at, ?), coalesce(?, last_success_at)), \
             last_failure_at = max(coalesce(last_failure_at, ?), coalesce(?, last_failure_at)) WHERE id = ?",
        )
        .bind(success)
        .bind(success)
        .bind(failure)
        .bind(failure)
        .bind(row.value::<Uuid>(0)?)
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    }
    Ok(gone.len() == STEP as usize)
}

/// Forgets circuits of workers that are gone.
async fn forget_circuits(tx: &mut Tx) -> Result<()> {
    sqlx::query(
        "DELETE FROM open_circuits WHERE worker NOT IN (SELECT id FROM workers WHERE lease_until > ?)",
    )
    .bind(tx.now.millis())
    .execute(&mut tx.connection)
    .await
    .map(drop)
    .map_err(failed)
}

/// How much was removed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gone {
    pub(super) events: u64,
    /// Rows of whatever kind, events included.
    pub(super) rows: u64,
}

/// Removes events with all that belongs to them; aliases go by their own age.
pub(super) async fn remove(tx: &mut Tx, ids: &[Uuid]) -> Result<Gone> {
    let mut removed = Gone::default();
    for portion in portions(ids) {
        for (table, column) in [
            ("attempts", "event_id"),
            ("deliveries", "event_id"),
            ("events", "id"),
        ] {
            let sql = format!("DELETE FROM {table} WHERE {column} IN ({})", marks(portion.len()));
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for id in portion {
                query = query.bind(id);
            }
            let done = query.execute(&mut tx.connection).await.map_err(failed)?;
            removed.rows += done.rows_affected();
            if table == "events" {
                removed.events += done.rows_affected();
            }
        }
    }
    Ok(removed)
}

/// Writes `cancelled` to open deliveries of deleted subscriptions; whether there may be more.
pub(super) async fn cancel_deleted(tx: &mut Tx) -> Result<bool> {
    let cancelled = sqlx::query(
        "UPDATE deliveries SET state = 'cancelled', due_at = NULL, lease_owner = NULL, updated_at = ? \
         WHERE (event_id, subscription_id) IN (SELECT d.event_id, d.subscription_id FROM subscriptions s \
         CROSS JOIN deliveries d INDEXED BY deliveries_due ON d.subscription_id = s.id AND d.due_at IS NOT NULL \
         WHERE s.deleted_at IS NOT NULL LIMIT ?)",
    )
    .bind(tx.now.millis())
    .bind(STEP)
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    Ok(cancelled.rows_affected() == u64::from(STEP))
}

/// The first id that a UUIDv7 of this time can be.
fn first_id(at: Timestamp) -> Uuid {
    let millis = u128::try_from(at.millis()).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}
