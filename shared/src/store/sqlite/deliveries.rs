//! Deliveries: workers' leases, and what they take and give back.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection, sqlite::SqliteRow};

use super::{
    Engine,
    many::{portions, values},
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    DeliveryKey, EventId, OrganizationId, SubscriptionId, Timestamp, WorkerId,
    delivery::AttemptOutcome,
    store::{
        Acknowledged, Backlog, CLAIM_BYTES, CLAIM_IN_ORDER_BYTES, Change, Claimed, Deliveries, Lease, Result,
        Standing,
    },
};

/// Leases that ran out longer ago than this are forgotten.
const FORGET_WORKERS_AFTER: Duration = Duration::from_hours(1);
/// Where counts of the backlog stop.
const MOST_COUNTED: i64 = 100_000;
/// That nobody holds the delivery `d`.
const FREE: &str = "(d.lease_owner IS NULL OR NOT EXISTS \
     (SELECT 1 FROM workers w WHERE w.id = d.lease_owner AND w.lease_until > ?))";

/// Of a delivery `d` and its event `e`, all that is needed to send it.
const CLAIMED: &str = "d.event_id, d.organization_id, d.seq, d.attempts, e.type, e.received_at, e.trace, e.payload, e.occurred_at, \
     d.attempts_before, e.source";

/// Whether the worker's lease lives: the fence before all that it writes.
pub(super) async fn lives(
    connection: &mut SqliteConnection,
    worker: WorkerId,
    now: Timestamp,
) -> Result<bool> {
    sqlx::query("SELECT 1 FROM workers WHERE id = ? AND lease_until > ?")
        .bind(worker.uuid())
        .bind(now.millis())
        .fetch_optional(connection)
        .await
        .map(|row| row.is_some())
        .map_err(failed)
}

async fn renew(tx: &mut Tx, worker: WorkerId, ttl: Duration) -> Result<Lease> {
    sqlx::query("DELETE FROM workers WHERE lease_until < ?")
        .bind(tx.now.minus(FORGET_WORKERS_AFTER).millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    let renewed = sqlx::query("UPDATE workers SET lease_until = ? WHERE id = ? AND lease_until > ?")
        .bind(tx.now.plus(ttl).millis())
        .bind(worker.uuid())
        .bind(tx.now.millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    Ok(if renewed.rows_affected() > 0 {
        Lease::Held
    } else {
        Lease::Lost
    })
}

/// Which of a lane's due deliveries are taken, and in which order.
#[derive(Clone, Copy)]
enum Part {
    /// What was parked when the subscription was last enabled, at this time: in order of `seq`.
    Parked(i64),
    /// What has come to be due after this time: oldest due first.
    Since(i64),
}

impl Part {
    /// The deliveries of it that nobody holds: subscription, after, until, now, limit.
    fn due(self, columns: &str) -> AssertSqlSafe<String> {
        let (index, order) = match self {
            Self::Parked(_) => ("deliveries_parked", "seq"),
            Self::Since(_) => ("deliveries_due", "due_at"),
        };
        AssertSqlSafe(format!(
            "SELECT {columns} FROM deliveries d INDEXED BY {index} CROSS JOIN events e ON e.seq = d.seq \
             WHERE d.subscription_id = ? AND d.due_at > ? AND d.due_at <= ? AND {FREE} \
             ORDER BY d.{order} LIMIT ?"
        ))
    }

    async fn rows(
        self,
        tx: &mut Tx,
        columns: &str,
        subscription: SubscriptionId,
        limit: u32,
    ) -> Result<Vec<SqliteRow>> {
        let (after, until) = match self {
            Self::Parked(until) => (i64::MIN, until),
            Self::Since(after) => (after, tx.now.millis()),
        };
        sqlx::query(self.due(columns))
            .bind(subscription.uuid())
            .bind(after)
            .bind(until)
            .bind(tx.now.millis())
            .bind(limit)
            .fetch_all(&mut tx.connection)
            .await
            .map_err(failed)
    }
}

/// The parts of a lane, in the order in which they are taken; none, if it is not served.
async fn parts(tx: &mut Tx, subscription: SubscriptionId) -> Result<Vec<Part>> {
    let row = sqlx::query(AssertSqlSafe(format!(
        "SELECT s.enabled_at, EXISTS (SELECT 1 FROM deliveries d INDEXED BY deliveries_due \
         WHERE d.subscription_id = s.id AND d.due_at <= s.enabled_at AND {FREE}) FROM subscriptions s \
         WHERE s.id = ? AND s.kind = 'push' AND s.enabled AND s.deleted_at IS NULL"
    )))
    .bind(tx.now.millis())
    .bind(subscription.uuid())
    .fetch_optional(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(row) = row else {
        return Ok(Vec::new());
    };
    let enabled_at: Option<i64> = row.value(0)?;
    let since = Part::Since(enabled_at.unwrap_or(i64::MIN));
    Ok(match enabled_at {
        Some(until) if row.value(1)? => vec![Part::Parked(until), since],
        _ => vec![since],
    })
}

/// Takes of a part of a lane, `most` at most, until `room` is used up.
async fn take(
    tx: &mut Tx,
    part: Part,
    subscription: SubscriptionId,
    most: u32,
    room: &mut usize,
) -> Result<Vec<Claimed>> {
    // The size is in the row's header: the payload itself is not read for it.
    let sizes = part
        .rows(tx, "octet_length(e.payload)", subscription, most)
        .await?;
    let mut fitting = 0;
    for row in &sizes {
        if *room == 0 {
            break;
        }
        fitting += 1;
        *room = room.saturating_sub(row.number::<usize>(0)?);
    }
    let rows = part.rows(tx, CLAIMED, subscription, fitting).await?;
    rows.iter().map(|row| read_claimed(row, subscription)).collect()
}

/// Whether another worker that lives owns the lane.
async fn is_anothers(tx: &mut Tx, worker: WorkerId, lane: SubscriptionId) -> Result<bool> {
    sqlx::query(
        "SELECT 1 FROM lanes l JOIN workers w ON w.id = l.owner \
         WHERE l.subscription_id = ? AND l.owner <> ? AND w.lease_until > ?",
    )
    .bind(lane.uuid())
    .bind(worker.uuid())
    .bind(tx.now.millis())
    .fetch_optional(&mut tx.connection)
    .await
    .map(|row| row.is_some())
    .map_err(failed)
}

async fn claim(tx: &mut Tx, worker: WorkerId, wanted: Vec<(SubscriptionId, u32)>) -> Result<Vec<Claimed>> {
    if !lives(&mut tx.connection, worker, tx.now).await? {
        return Ok(Vec::new());
    }
    let mut claimed = Vec::new();
    let mut room = CLAIM_BYTES;
    for (subscription, most) in wanted {
        if is_anothers(tx, worker, subscription).await? {
            continue;
        }
        let mut left = most;
        for part in parts(tx, subscription).await? {
            if left == 0 || room == 0 {
                break;
            }
            let taken = take(tx, part, subscription, left, &mut room).await?;
            left = left.saturating_sub(u32::try_from(taken.len()).unwrap_or(u32::MAX));
            claimed.extend(taken);
        }
    }
    hold(tx, worker, &claimed).await?;
    Ok(claimed)
}

/// From a row of [`CLAIMED`].
fn read_claimed(row: &SqliteRow, subscription: SubscriptionId) -> Result<Claimed> {
    Ok(Claimed {
        key: DeliveryKey {
            event: row.id(0)?,
            subscription,
        },
        organization: row.id(1)?,
        seq: row.value(2)?,
        attempts: row.number(3)?,
        attempts_before: row.number(9)?,
        event_type: Arc::from(row.value::<&str>(4)?),
        received_at: row.time(5)?,
        source: row.value(10)?,
        trace: row.value(6)?,
        // Text is read as it is stored, and only the payload is shared on.
        payload: row.value::<Vec<u8>>(7)?.into(),
        occurred_at: row.time_if_any(8)?,
    })
}

async fn hold(tx: &mut Tx, worker: WorkerId, claimed: &[Claimed]) -> Result<()> {
    let keys: Vec<DeliveryKey> = claimed.iter().map(|claimed| claimed.key).collect();
    for portion in portions(&keys) {
        let sql = format!(
            "UPDATE deliveries SET lease_owner = ? FROM (VALUES {}) v \
             WHERE deliveries.event_id = v.column1 AND deliveries.subscription_id = v.column2",
            values(portion.len(), 2)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(worker.uuid());
        for key in portion {
            query = query.bind(key.event.uuid()).bind(key.subscription.uuid());
        }
        query.execute(&mut tx.connection).await.map_err(failed)?;
    }
    Ok(())
}

/// The first of a lane in order, up to the first that has to wait, or that makes more than [`CLAIM_IN_ORDER_BYTES`].
async fn claim_in_order(
    tx: &mut Tx,
    worker: WorkerId,
    lane: SubscriptionId,
    most: u32,
) -> Result<Vec<Claimed>> {
    if !lives(&mut tx.connection, worker, tx.now).await? {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT {CLAIMED}, d.due_at <= ? AND {FREE} FROM deliveries d INDEXED BY deliveries_parked \
         CROSS JOIN events e ON e.seq = d.seq \
         WHERE d.subscription_id = ? AND d.due_at IS NOT NULL \
         AND EXISTS (SELECT 1 FROM lanes l WHERE l.subscription_id = d.subscription_id AND l.owner = ?) \
         AND EXISTS (SELECT 1 FROM subscriptions s WHERE s.id = d.subscription_id AND s.kind = 'push' AND s.enabled \
         AND s.deleted_at IS NULL) ORDER BY d.seq LIMIT ?"
    )))
    .bind(tx.now.millis())
    .bind(tx.now.millis())
    .bind(lane.uuid())
    .bind(worker.uuid())
    .bind(most)
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    let (mut claimed, mut bytes) = (Vec::new(), 0);
    for row in &rows {
        if bytes >= CLAIM_IN_ORDER_BYTES || !row.value::<bool>(11)? {
            break;
        }
        let read = read_claimed(row, lane)?;
        bytes += read.payload.len();
        claimed.push(read);
    }
    hold(tx, worker, &claimed).await?;
    Ok(claimed)
}

async fn own(tx: &mut Tx, worker: WorkerId, lanes: Vec<SubscriptionId>) -> Result<Vec<SubscriptionId>> {
    let mut owned = Vec::with_capacity(lanes.len());
    if !lives(&mut tx.connection, worker, tx.now).await? {
        return Ok(owned);
    }
    for lane in lanes {
        let done = sqlx::query(
            "INSERT INTO lanes (subscription_id, owner) VALUES (?, ?) ON CONFLICT (subscription_id) \
             DO UPDATE SET owner = excluded.owner WHERE lanes.owner = excluded.owner OR NOT EXISTS \
             (SELECT 1 FROM workers w WHERE w.id = lanes.owner AND w.lease_until > ?)",
        )
        .bind(lane.uuid())
        .bind(worker.uuid())
        .bind(tx.now.millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
        if done.rows_affected() > 0 {
            owned.push(lane);
        }
    }
    Ok(owned)
}

async fn hand_over(tx: &mut Tx, from: WorkerId, to: WorkerId) -> Result<Vec<SubscriptionId>> {
    if !lives(&mut tx.connection, to, tx.now).await? {
        return Ok(Vec::new());
    }
    sqlx::query("UPDATE lanes SET owner = ? WHERE owner = ? RETURNING subscription_id")
        .bind(to.uuid())
        .bind(from.uuid())
        .fetch_all(&mut tx.connection)
        .await
        .map_err(failed)?
        .iter()
        .map(|row| row.id(0))
        .collect()
}

async fn disown(tx: &mut Tx, worker: WorkerId, lanes: Vec<SubscriptionId>) -> Result<()> {
    for lane in lanes {
        sqlx::query("DELETE FROM lanes WHERE subscription_id = ? AND owner = ?")
            .bind(lane.uuid())
            .bind(worker.uuid())
            .execute(&mut tx.connection)
            .await
            .map_err(failed)?;
    }
    Ok(())
}

async fn release(tx: &mut Tx, worker: WorkerId, keys: Vec<DeliveryKey>) -> Result<()> {
    for portion in portions(&keys) {
        let sql = format!(
            "UPDATE deliveries SET lease_owner = NULL FROM (VALUES {}) v \
             WHERE deliveries.event_id = v.column1 AND deliveries.subscription_id = v.column2 \
             AND deliveries.due_at IS NOT NULL AND deliveries.lease_owner = ?",
            values(portion.len(), 2)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for key in portion {
            query = query.bind(key.event.uuid()).bind(key.subscription.uuid());
        }
        let query = query.bind(worker.uuid());
        query.execute(&mut tx.connection).await.map_err(failed)?;
    }
    Ok(())
}

#[async_trait]
impl Deliveries for Engine {
    async fn enlist(&self, worker: WorkerId, ttl: Duration) -> Result<()> {
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    // A lease that ran out does not come back: what its worker held may be held by others.
                    sqlx::query(
                        "INSERT INTO workers (id, lease_until) VALUES (?, ?) ON CONFLICT (id) DO NOTHING",
                    )
                    .bind(worker.uuid())
                    .bind(tx.now.plus(ttl).millis())
                    .execute(&mut tx.connection)
                    .await
                    .map(drop)
                    .map_err(failed)
                })
            })
            .await
    }

    async fn renew(&self, worker: WorkerId, ttl: Duration) -> Result<Lease> {
        self.writer.run(move |tx| Box::pin(renew(tx, worker, ttl))).await
    }

    async fn resign(&self, worker: WorkerId) -> Result<()> {
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    for sql in [
                        "DELETE FROM lanes WHERE owner = ?",
                        "DELETE FROM workers WHERE id = ?",
                    ] {
                        sqlx::query(sql)
                            .bind(worker.uuid())
                            .execute(&mut tx.connection)
                            .await
                            .map_err(failed)?;
                    }
                    Ok(())
                })
            })
            .await
    }

    async fn lanes_due(
        &self,
        worker: WorkerId,
        after: Option<SubscriptionId>,
        limit: u32,
    ) -> Result<Vec<SubscriptionId>> {
        let now = Timestamp::now().millis();
        sqlx::query(AssertSqlSafe(format!(
            "SELECT s.id FROM subscriptions s \
             WHERE s.kind = 'push' AND s.enabled AND s.deleted_at IS NULL AND EXISTS (SELECT 1 FROM deliveries d \
             WHERE d.subscription_id = s.id AND d.due_at <= ? AND {FREE}) \
             AND NOT EXISTS (SELECT 1 FROM lanes l JOIN workers w ON w.id = l.owner \
             WHERE l.subscription_id = s.id AND l.owner <> ? AND w.lease_until > ?) \
             ORDER BY s.id <= ?, s.id LIMIT ?"
        )))
        .bind(now)
        .bind(now)
        .bind(worker.uuid())
        .bind(now)
        .bind(after.map_or_else(uuid::Uuid::nil, SubscriptionId::uuid))
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?
        .iter()
        .map(|row| row.id(0))
        .collect()
    }

    async fn claim(&self, worker: WorkerId, wanted: &[(SubscriptionId, u32)]) -> Result<Vec<Claimed>> {
        let wanted = wanted.to_vec();
        self.writer
            .run(move |tx| Box::pin(claim(tx, worker, wanted)))
            .await
    }

    async fn standing(&self, worker: WorkerId) -> Result<Standing> {
        // The ids of one worker end in the same 64 bits.
        let row = sqlx::query(
            "SELECT count(DISTINCT substr(id, 9)), (SELECT count(*) FROM lanes WHERE owner = ?), \
             (SELECT count(*) FROM lanes l JOIN workers w ON w.id = l.owner WHERE w.lease_until > ?) \
             FROM workers WHERE lease_until > ?",
        )
        .bind(worker.uuid())
        .bind(Timestamp::now().millis())
        .bind(Timestamp::now().millis())
        .fetch_one(&self.readers)
        .await
        .map_err(failed)?;
        Ok(Standing {
            workers: row.number(0)?,
            mine: row.number(1)?,
            all: row.number(2)?,
        })
    }

    async fn own(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<Vec<SubscriptionId>> {
        let lanes = lanes.to_vec();
        self.writer.run(move |tx| Box::pin(own(tx, worker, lanes))).await
    }

    async fn hand_over(&self, from: WorkerId, to: WorkerId) -> Result<Vec<SubscriptionId>> {
        self.writer.run(move |tx| Box::pin(hand_over(tx, from, to))).await
    }

    async fn disown(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<()> {
        let lanes = lanes.to_vec();
        self.writer
            .run(move |tx| Box::pin(disown(tx, worker, lanes)))
            .await
    }

    async fn tell_owners(&self, lanes: &[SubscriptionId]) -> Result<()> {
        let lanes = lanes.to_vec();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    for lane in lanes {
                        tx.announce(Change::Lane(lane));
                    }
                    Ok(())
                })
            })
            .await
    }

    async fn claim_in_order(
        &self,
        worker: WorkerId,
        lane: SubscriptionId,
        most: u32,
    ) -> Result<Vec<Claimed>> {
        self.writer
            .run(move |tx| Box::pin(claim_in_order(tx, worker, lane, most)))
            .await
    }

    async fn release(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<()> {
        let keys = keys.to_vec();
        self.writer
            .run(move |tx| Box::pin(release(tx, worker, keys)))
            .await
    }

    async fn still_held(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<Vec<DeliveryKey>> {
        let now = Timestamp::now().millis();
        let mut held = Vec::with_capacity(keys.len());
        for portion in portions(keys) {
            let sql = format!(
                "SELECT d.event_id, d.subscription_id FROM (VALUES {}) v CROSS JOIN deliveries d \
                 ON d.event_id = v.column1 AND d.subscription_id = v.column2 \
                 CROSS JOIN subscriptions s ON s.id = d.subscription_id \
                 WHERE d.due_at IS NOT NULL AND s.deleted_at IS NULL AND d.lease_owner = ? \
                 AND EXISTS (SELECT 1 FROM workers w WHERE w.id = d.lease_owner AND w.lease_until > ?)",
                values(portion.len(), 2)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for key in portion {
                query = query.bind(key.event.uuid()).bind(key.subscription.uuid());
            }
            let query = query.bind(worker.uuid()).bind(now);
            for row in query.fetch_all(&self.readers).await.map_err(failed)? {
                held.push(DeliveryKey {
                    event: row.id(0)?,
                    subscription: row.id(1)?,
                });
            }
        }
        Ok(held)
    }

    async fn record(&self, worker: WorkerId, outcomes: &[AttemptOutcome]) -> Result<Vec<DeliveryKey>> {
        self.write_outcomes(worker, outcomes).await
    }

    async fn acknowledge(
        &self,
        organization: OrganizationId,
        events: &[EventId],
    ) -> Result<Vec<Acknowledged>> {
        self.close_deliveries(organization, events).await
    }

    async fn backlog(&self) -> Result<Backlog> {
        let count = |which: &str| {
            format!(
                "(SELECT count(*) FROM (SELECT 1 FROM subscriptions s CROSS JOIN deliveries d \
                 INDEXED BY deliveries_due ON d.subscription_id = s.id AND d.due_at IS NOT NULL \
                 WHERE s.kind = 'push' AND s.deleted_at IS NULL AND {which} LIMIT {MOST_COUNTED}))"
            )
        };
        let now = Timestamp::now();
        let row = sqlx::query(AssertSqlSafe(format!(
            "SELECT {}, {}, {}, (SELECT min((SELECT min(d.due_at) FROM deliveries d INDEXED BY deliveries_due \
             WHERE d.subscription_id = s.id AND d.due_at IS NOT NULL)) \
             FROM subscriptions s WHERE s.kind = 'push' AND s.enabled AND s.deleted_at IS NULL)",
            count("s.enabled AND d.state = 'pending'"),
            count("s.enabled AND d.state = 'retrying'"),
            count("NOT s.enabled")
        )))
        .fetch_one(&self.readers)
        .await
        .map_err(failed)?;
        Ok(Backlog {
            pending: row.number(0)?,
            retrying: row.number(1)?,
            parked: row.number(2)?,
            oldest_due: row
                .time_if_any(3)?
                .map_or(Duration::ZERO, |oldest| now.since(oldest)),
        })
    }
}
