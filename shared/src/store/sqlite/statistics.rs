//! What the worker tells of subscriptions, and what it comes to.

use std::time::Duration;

use sqlx::{AssertSqlSafe, sqlite::SqliteRow};

use super::{
    Engine,
    row::{Columns as _, corrupt, failed},
    writer::Tx,
};
use crate::{
    EventId, SubscriptionId, Timestamp, WorkerId,
    statistics::Tally,
    store::{
        BACKLOG_COUNTED, COUNTED_FOR, CircuitReport, FLEET_COUNTED_FOR, Fleet, Minute, OpenCircuit, Result,
        SubscriptionStats, statistics::FLEET_LOOKED_AT,
    },
};

/// Rows of one transaction: others get their turn in between.
const STEP: usize = 500;
/// That a worker's lease lives.
const LIVES: &str = "EXISTS (SELECT 1 FROM workers w WHERE w.id = c.worker AND w.lease_until > ?)";

async fn write_minutes(tx: &mut Tx, counter: WorkerId, minutes: Vec<Minute>) -> Result<()> {
    for minute in minutes {
        let at = |ago: Option<Duration>| ago.map(|ago| tx.now.minus(ago).millis());
        sqlx::query(
            "INSERT INTO attempt_minutes (subscription_id, counter, number, at, succeeded, failed, failures, durations, \
             last_success_at, last_failure_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (subscription_id, counter, number) DO UPDATE SET succeeded = excluded.succeeded, \
             failed = excluded.failed, failures = excluded.failures, durations = excluded.durations, \
             last_success_at = excluded.last_success_at, last_failure_at = excluded.last_failure_at",
        )
        .bind(minute.subscription.uuid())
        .bind(counter.uuid())
        .bind(minute.number)
        .bind(tx.now.millis())
        .bind(i64::try_from(minute.tally.succeeded()).unwrap_or(i64::MAX))
        .bind(i64::try_from(minute.tally.failed()).unwrap_or(i64::MAX))
        .bind(minute.tally.failures_text())
        .bind(minute.tally.durations_text())
        .bind(at(minute.success_ago))
        .bind(at(minute.failure_ago))
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

async fn write_circuits(
    tx: &mut Tx,
    worker: WorkerId,
    open: Vec<OpenCircuit>,
    closed: Vec<SubscriptionId>,
) -> Result<()> {
    for subscription in closed {
        sqlx::query("DELETE FROM open_circuits WHERE subscription_id = ? AND worker = ?")
            .bind(subscription.uuid())
            .bind(worker.uuid())
            .execute(&mut tx.connection)
            .await
            .map_err(failed)?;
    }
    for circuit in open {
        sqlx::query(
            "INSERT INTO open_circuits (subscription_id, worker, since, next_probe_at) VALUES (?, ?, ?, ?) \
             ON CONFLICT (subscription_id, worker) DO UPDATE SET next_probe_at = excluded.next_probe_at, \
             since = excluded.since",
        )
        .bind(circuit.subscription.uuid())
        .bind(worker.uuid())
        .bind(tx.now.minus(circuit.open_for).millis())
        .bind(tx.now.plus(circuit.next_probe_in).millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

impl Engine {
    pub(super) async fn put_minutes(&self, counter: WorkerId, minutes: &[Minute]) -> Result<()> {
        for some in minutes.chunks(STEP) {
            let some = some.to_vec();
            self.writer
                .run(move |tx| Box::pin(write_minutes(tx, counter, some)))
                .await?;
        }
        Ok(())
    }

    pub(super) async fn put_circuits(
        &self,
        worker: WorkerId,
        open: &[OpenCircuit],
        closed: &[SubscriptionId],
    ) -> Result<()> {
        let (open, closed) = (open.to_vec(), closed.to_vec());
        self.writer
            .run(move |tx| Box::pin(write_circuits(tx, worker, open, closed)))
            .await
    }

    pub(super) async fn stats_of(&self, subscription: SubscriptionId) -> Result<SubscriptionStats> {
        let now = Timestamp::now();
        let mut snapshot = self.readers.begin().await.map_err(failed)?;
        let mut stats = SubscriptionStats::default();
        let last = sqlx::query("SELECT last_success_at, last_failure_at FROM subscriptions WHERE id = ?")
            .bind(subscription.uuid())
            .fetch_optional(&mut *snapshot)
            .await
            .map_err(failed)?;
        if let Some(row) = last {
            (stats.last_success_at, stats.last_failure_at) = (row.time_if_any(0)?, row.time_if_any(1)?);
        }
        let minutes = sqlx::query(
            "SELECT last_success_at, last_failure_at, succeeded, failures, durations FROM attempt_minutes \
             WHERE subscription_id = ? AND at > ?",
        )
        .bind(subscription.uuid())
        .bind(now.minus(COUNTED_FOR).millis())
        .fetch_all(&mut *snapshot)
        .await
        .map_err(failed)?;
        for row in &minutes {
            stats.tally.merge(&tally(row)?);
            stats.last_success_at = stats.last_success_at.max(row.time_if_any(0)?);
            stats.last_failure_at = stats.last_failure_at.max(row.time_if_any(1)?);
        }
        let backlog = sqlx::query(
            "SELECT count(*), min(event_id) FROM (SELECT event_id FROM deliveries INDEXED BY deliveries_due \
             WHERE subscription_id = ? AND due_at IS NOT NULL ORDER BY due_at LIMIT ?)",
        )
        .bind(subscription.uuid())
        .bind(BACKLOG_COUNTED + 1)
        .fetch_one(&mut *snapshot)
        .await
        .map_err(failed)?;
        stats.backlog = backlog.number(0)?;
        let oldest = backlog.value::<Option<uuid::Uuid>>(1)?.map(EventId::from_uuid);
        stats.oldest_undelivered = oldest.and_then(EventId::created_at).map(|at| now.since(at));
        let circuit = sqlx::query(AssertSqlSafe(format!(
            "SELECT min(since), min(next_probe_at), count(*) FROM open_circuits c WHERE subscription_id = ? AND {LIVES}"
        )))
        .bind(subscription.uuid())
        .bind(now.millis())
        .fetch_one(&mut *snapshot)
        .await
        .map_err(failed)?;
        if let (Some(since), Some(next_probe_at)) = (circuit.time_if_any(0)?, circuit.time_if_any(1)?) {
            stats.circuit = Some(CircuitReport {
                since,
                next_probe_at,
                is_half_open: next_probe_at <= now,
                workers: circuit.number(2)?,
            });
        }
        Ok(stats)
    }

    pub(super) async fn read_fleet(&self) -> Result<Fleet> {
        let now = Timestamp::now();
        let row = sqlx::query(AssertSqlSafe(format!(
            "SELECT (SELECT count(*) FROM subscriptions WHERE kind = 'push' AND enabled AND deleted_at IS NULL), \
             count(*) FILTER (WHERE probe > ?), count(*) FILTER (WHERE probe <= ?) FROM \
             (SELECT min(next_probe_at) AS probe FROM open_circuits c WHERE {LIVES} GROUP BY subscription_id)"
        )))
        .bind(now.millis())
        .bind(now.millis())
        .bind(now.millis())
        .fetch_one(&self.readers)
        .await
        .map_err(failed)?;
        let mut fleet = Fleet {
            subscriptions: row.number(0)?,
            open: row.number(1)?,
            half_open: row.number(2)?,
            ..Fleet::default()
        };
        let bands = sqlx::query(
            "SELECT count(*) FILTER (WHERE rate = 1), count(*) FILTER (WHERE rate >= 0.9 AND rate < 1), \
             count(*) FILTER (WHERE rate >= 0.5 AND rate < 0.9), count(*) FILTER (WHERE rate > 0 AND rate < 0.5), \
             count(*) FILTER (WHERE rate = 0) FROM (SELECT 1.0 * sum(succeeded) / sum(succeeded + failed) AS rate \
             FROM attempt_minutes WHERE at > ? AND succeeded + failed > 0 GROUP BY subscription_id)",
        )
        .bind(now.minus(FLEET_COUNTED_FOR).millis())
        .fetch_one(&self.readers)
        .await
        .map_err(failed)?;
        for (column, count) in fleet.by_success.iter_mut().enumerate() {
            *count = bands.number(column)?;
        }
        let next = sqlx::query(
            "SELECT (SELECT d.event_id FROM deliveries d INDEXED BY deliveries_due WHERE d.subscription_id = s.id \
             AND d.due_at IS NOT NULL ORDER BY d.due_at LIMIT 1) AS next FROM subscriptions s \
             WHERE s.kind = 'push' AND s.enabled AND s.deleted_at IS NULL AND next IS NOT NULL LIMIT ?",
        )
        .bind(FLEET_LOOKED_AT)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        for row in &next {
            fleet.note_next(row.id(0)?, now);
        }
        Ok(fleet)
    }
}

/// From the columns that follow the two times.
fn tally(row: &SqliteRow) -> Result<Tally> {
    Tally::from_texts(row.number(2)?, row.value(3)?, row.value(4)?).map_err(corrupt)
}
