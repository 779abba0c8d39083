//! What workers tell of subscriptions, and what it comes to.

use std::time::Duration;

use sqlx::{postgres::PgRow, query};
use uuid::Uuid;

use super::{Engine, Result, StoreError, organizations::uuids, rows, rows::Columns};
use crate::{
    EventId, SubscriptionId, WorkerId,
    statistics::Tally,
    store::{
        BACKLOG_COUNTED, COUNTED_FOR, CircuitReport, FLEET_COUNTED_FOR, Fleet, Minute, OpenCircuit,
        SubscriptionStats, SuccessBand, statistics::FLEET_LOOKED_AT,
    },
};

const WRITE_MINUTES: &str = "
    INSERT INTO attempt_minutes
        (subscription_id, counter, number, succeeded, failed, failures, durations, last_success_at, last_failure_at)
    SELECT subscription_id, $1, number, succeeded, failed, failures, durations,
        now() - make_interval(secs => success_ago), now() - make_interval(secs => failure_ago)
    FROM unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::double precision[],
        $9::double precision[])
        AS m (subscription_id, number, succeeded, failed, failures, durations, success_ago, failure_ago)
    ORDER BY subscription_id, number
    ON CONFLICT (subscription_id, counter, number) DO UPDATE SET
        succeeded = excluded.succeeded, failed = excluded.failed, failures = excluded.failures,
        durations = excluded.durations, last_success_at = excluded.last_success_at,
        last_failure_at = excluded.last_failure_at";

const WRITE_CIRCUITS: &str = "
    WITH closed AS (
        DELETE FROM open_circuits WHERE worker = $1 AND subscription_id = ANY ($5)
    )
    INSERT INTO open_circuits (subscription_id, worker, since, next_probe_at)
    SELECT subscription_id, $1, now() - make_interval(secs => open_for), now() + make_interval(secs => next_probe_in)
    FROM unnest($2::uuid[], $3::double precision[], $4::double precision[])
        AS c (subscription_id, open_for, next_probe_in)
    ORDER BY subscription_id
    ON CONFLICT (subscription_id, worker) DO UPDATE SET next_probe_at = excluded.next_probe_at, since = excluded.since";

/// `$2` is in seconds.
const MINUTES: &str = "
    SELECT succeeded, failures, durations, last_success_at, last_failure_at FROM attempt_minutes
    WHERE subscription_id = $1 AND at > now() - make_interval(secs => $2)";

/// The oldest is that of those that are due first, where there are more than `$2`.
const STANDING: &str = "
    WITH open AS MATERIALIZED (
        SELECT event_id FROM deliveries WHERE subscription_id = $1 AND due_at IS NOT NULL ORDER BY due_at LIMIT $2
    ), circuit AS (
        SELECT min(since) AS since, min(next_probe_at) AS next_probe_at, count(*) AS workers FROM open_circuits
        WHERE subscription_id = $1 AND worker = ANY (ARRAY(SELECT id FROM workers WHERE lease_until > now()))
    )
    SELECT (SELECT count(*) FROM open) AS backlog, (SELECT event_id FROM open ORDER BY event_id LIMIT 1) AS oldest,
           now() AS now, circuit.*, coalesce(circuit.next_probe_at <= now(), false) AS half_open,
           s.last_success_at, s.last_failure_at
    FROM circuit LEFT JOIN subscriptions s ON s.id = $1";

/// `$1` is in seconds.
const FLEET: &str = "
    WITH circuits AS (
        SELECT subscription_id, min(next_probe_at) <= now() AS half_open FROM open_circuits
        WHERE worker = ANY (ARRAY(SELECT id FROM workers WHERE lease_until > now())) GROUP BY subscription_id
    ), rates AS (
        SELECT sum(succeeded)::double precision / sum(succeeded + failed)::double precision AS rate FROM attempt_minutes
        WHERE at > now() - make_interval(secs => $1) AND succeeded + failed > 0 GROUP BY subscription_id
    ), bands AS (
        SELECT count(*) FILTER (WHERE rate = 1) AS band_all, count(*) FILTER (WHERE rate >= 0.9 AND rate < 1) AS band_most,
               count(*) FILTER (WHERE rate >= 0.5 AND rate < 0.9) AS band_half,
               count(*) FILTER (WHERE rate > 0 AND rate < 0.5) AS band_few, count(*) FILTER (WHERE rate = 0) AS band_none
        FROM rates
    )
    SELECT bands.*, now() AS now,
           (SELECT count(*) FROM subscriptions WHERE kind = 'push' AND enabled AND deleted_at IS NULL) AS subscriptions,
           (SELECT count(*) FROM circuits WHERE NOT half_open) AS open,
           (SELECT count(*) FROM circuits WHERE half_open) AS half_open
    FROM bands";

/// Hops from one subscription with open deliveries to the next, and takes the one of each that is due first.
const NEXT_OF_EACH: &str = "
    WITH RECURSIVE lanes AS (
        (SELECT subscription_id FROM deliveries WHERE due_at IS NOT NULL ORDER BY subscription_id LIMIT 1)
        UNION ALL
        SELECT next.subscription_id FROM lanes CROSS JOIN LATERAL (
            SELECT subscription_id FROM deliveries
            WHERE due_at IS NOT NULL AND subscription_id > lanes.subscription_id
            ORDER BY subscription_id LIMIT 1
        ) next
    )
    SELECT d.event_id FROM lanes CROSS JOIN LATERAL (
        SELECT s.id, s.enabled FROM subscriptions s
        WHERE s.id = lanes.subscription_id AND s.kind = 'push' AND s.deleted_at IS NULL LIMIT 1
    ) s CROSS JOIN LATERAL (
        SELECT event_id FROM deliveries WHERE subscription_id = s.id AND due_at IS NOT NULL ORDER BY due_at LIMIT 1
    ) d WHERE s.enabled LIMIT $1";

impl Engine {
    pub(super) async fn put_minutes(&self, counter: WorkerId, minutes: &[Minute]) -> Result<()> {
        let of = |read: fn(&Minute) -> i64| minutes.iter().map(read).collect::<Vec<_>>();
        let ago = |read: fn(&Minute) -> Option<Duration>| {
            let ago = minutes.iter().map(|minute| read(minute).map(rows::seconds));
            ago.collect::<Vec<_>>()
        };
        let text = |read: fn(&Tally) -> String| {
            let text = minutes.iter().map(|minute| read(&minute.tally));
            text.collect::<Vec<_>>()
        };
        let subscriptions: Vec<Uuid> = minutes.iter().map(|minute| minute.subscription.uuid()).collect();
        let statement = query(WRITE_MINUTES)
            .bind(counter.uuid())
            .bind(subscriptions)
            .bind(of(|minute| minute.number))
            .bind(of(|minute| {
                i64::try_from(minute.tally.succeeded()).unwrap_or(i64::MAX)
            }))
            .bind(of(|minute| {
                i64::try_from(minute.tally.failed()).unwrap_or(i64::MAX)
            }))
            .bind(text(Tally::failures_text))
            .bind(text(Tally::durations_text))
            .bind(ago(|minute| minute.success_ago))
            .bind(ago(|minute| minute.failure_ago));
        self.rows(statement).await.map(drop)
    }

    pub(super) async fn put_circuits(
        &self,
        worker: WorkerId,
        open: &[OpenCircuit],
        closed: &[SubscriptionId],
    ) -> Result<()> {
        let seconds = |read: fn(&OpenCircuit) -> Duration| {
            open.iter()
                .map(|one| rows::seconds(read(one)))
                .collect::<Vec<_>>()
        };
        let subscriptions: Vec<Uuid> = open.iter().map(|one| one.subscription.uuid()).collect();
        let statement = query(WRITE_CIRCUITS)
            .bind(worker.uuid())
            .bind(subscriptions)
            .bind(seconds(|one| one.open_for))
            .bind(seconds(|one| one.next_probe_in))
            .bind(uuids(closed));
        self.rows(statement).await.map(drop)
    }

    pub(super) async fn stats_of(&self, subscription: SubscriptionId) -> Result<SubscriptionStats> {
        let standing = query(STANDING)
            .bind(subscription.uuid())
            .bind(i64::from(BACKLOG_COUNTED) + 1);
        let row = self.one(standing).await?;
        let mut stats = SubscriptionStats {
            tally: Tally::default(),
            last_success_at: row.optional_at("last_success_at")?,
            last_failure_at: row.optional_at("last_failure_at")?,
            backlog: row.number("backlog")?,
            oldest_undelivered: match row.optional_id("oldest")?.and_then(EventId::created_at) {
                Some(oldest) => Some(row.at("now")?.since(oldest)),
                None => None,
            },
            circuit: circuit(&row)?,
        };
        let minutes = query(MINUTES)
            .bind(subscription.uuid())
            .bind(rows::seconds(COUNTED_FOR));
        for row in self.rows(minutes).await? {
            stats.tally.merge(&tally(&row)?);
            stats.last_success_at = stats.last_success_at.max(row.optional_at("last_success_at")?);
            stats.last_failure_at = stats.last_failure_at.max(row.optional_at("last_failure_at")?);
        }
        Ok(stats)
    }

    pub(super) async fn read_fleet(&self) -> Result<Fleet> {
        let row = self
            .one(query(FLEET).bind(rows::seconds(FLEET_COUNTED_FOR)))
            .await?;
        let mut fleet = Fleet {
            subscriptions: row.number("subscriptions")?,
            open: row.number("open")?,
            half_open: row.number("half_open")?,
            ..Fleet::default()
        };
        for band in SuccessBand::ALL {
            fleet.by_success[band as usize] = row.number(&format!("band_{}", band.as_str()))?;
        }
        let now = row.at("now")?;
        let next = query(NEXT_OF_EACH).bind(i64::from(FLEET_LOOKED_AT));
        for row in self.rows(next).await? {
            fleet.note_next(row.id("event_id")?, now);
        }
        Ok(fleet)
    }
}

fn tally(row: &PgRow) -> Result<Tally> {
    let (failures, durations) = (row.value("failures")?, row.value("durations")?);
    Tally::from_texts(row.number("succeeded")?, failures, durations)
        .map_err(|invalid| StoreError::Corrupt(format!("counts of attempts {}", invalid.rule())))
}

fn circuit(row: &PgRow) -> Result<Option<CircuitReport>> {
    let (Some(since), Some(next_probe_at)) = (row.optional_at("since")?, row.optional_at("next_probe_at")?)
    else {
        return Ok(None);
    };
    Ok(Some(CircuitReport {
        since,
        next_probe_at,
        is_half_open: row.value("half_open")?,
        workers: row.number("workers")?,
    }))
}
