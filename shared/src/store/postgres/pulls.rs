//! Pulling: each operation is one statement, and those that say how deliveries are then, another that reads.
//!
//! A lease moves `due_at` to where it ends, and names itself in `lease_owner`, where a worker would be named if there were
//! one: so the index that leads to what is due passes by what is leased, however much that is, and what ran out is
//! found again without anybody's doing.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};
use uuid::Uuid;

use super::{
    Engine, Result, Statement, deliveries::asked, organizations::uuids, records::condition, rows,
    rows::Columns,
};
use crate::{
    DeliveryStatus, EventId, SubscriptionId,
    store::{LeaseChange, PAGE_BYTES, PullSource, Pulled, PulledEvent, Pulls, Settled, parse_state},
};

/// Whether `d` is leased.
macro_rules! leased {
    () => {
        "(d.lease_owner IS NOT NULL AND d.due_at > now())"
    };
}

/// Whether there is a pull subscription `$3` in the organization `$1`.
macro_rules! is_pulled_from {
    () => {
        "(SELECT true FROM subscriptions s
          WHERE s.id = $3 AND s.organization_id = $1 AND s.kind = 'pull' AND s.deleted_at IS NULL)"
    };
}

/// Always a row, if there is such a subscription. What others lease at the same time is passed by: it is theirs.
const PULL: &str = "
    WITH lane AS MATERIALIZED (
        SELECT kind, enabled FROM subscriptions WHERE id = $1 AND organization_id = $2 AND deleted_at IS NULL
    ), picked AS MATERIALIZED (
        SELECT d.event_id, d.due_at, d.seq FROM deliveries d
        WHERE d.subscription_id = $1 AND d.due_at <= now() AND (SELECT kind = 'pull' AND enabled FROM lane)
        ORDER BY d.due_at, d.seq LIMIT $3 FOR UPDATE SKIP LOCKED
    ), weighed AS (
        SELECT picked.event_id, e.bytes, sum(e.bytes) OVER (ORDER BY picked.due_at, picked.seq) AS total
        FROM picked CROSS JOIN LATERAL (
            SELECT octet_length(payload) AS bytes FROM events WHERE id = picked.event_id LIMIT 1
        ) e
    ), leased AS (
        UPDATE deliveries d SET due_at = now() + make_interval(secs => $5), lease_owner = $6,
            attempts = d.attempts + 1, updated_at = now()
        FROM unnest((SELECT array_agg(event_id ORDER BY event_id) FROM weighed WHERE total <= $4 OR total = bytes))
            AS f (event_id)
        WHERE d.event_id = f.event_id AND d.subscription_id = $1
        RETURNING d.event_id, d.seq, d.attempts, d.due_at
    )
    SELECT lane.kind, lane.enabled, l.event_id, l.attempts, l.due_at AS lease_until,
           e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload,
           CASE WHEN NOT EXISTS (SELECT FROM picked) THEN (
               SELECT ceil(extract(epoch FROM d.due_at - now()) * 1000)::bigint FROM deliveries d
               WHERE d.subscription_id = $1 AND d.due_at > now() ORDER BY d.due_at LIMIT 1
           ) END AS due_in_ms
    FROM lane
    LEFT JOIN leased l ON true
    LEFT JOIN LATERAL (
        SELECT type, dedup_id, source, occurred_at, received_at, payload FROM events WHERE id = l.event_id LIMIT 1
    ) e ON true
    ORDER BY l.seq";

const ACKNOWLEDGE: &str = concat!(
    "WITH ",
    asked!(),
    ", closed AS (
        UPDATE deliveries d SET state = 'acknowledged', due_at = NULL, lease_owner = NULL, updated_at = now()
        FROM unnest((SELECT array_agg(DISTINCT id) FROM asked WHERE id IS NOT NULL)) AS e (id)
        WHERE d.event_id = e.id AND d.subscription_id = $3 AND d.due_at IS NOT NULL AND ",
    is_pulled_from!(),
    ")
    SELECT id FROM asked ORDER BY place"
);

const RELEASE: &str = concat!(
    "WITH ",
    asked!(),
    ", released AS (
        UPDATE deliveries d SET due_at = now() + make_interval(secs => $4), lease_owner = NULL, updated_at = now()
        FROM unnest((SELECT array_agg(DISTINCT id) FROM asked WHERE id IS NOT NULL)) AS e (id)
        WHERE d.event_id = e.id AND d.subscription_id = $3 AND ",
    leased!(),
    " AND ",
    is_pulled_from!(),
    " RETURNING 1
    ), told AS (
        SELECT count(pg_notify('triggers_changes', 'l:' || $3)) AS times WHERE EXISTS (SELECT FROM released)
    )
    SELECT asked.id FROM asked CROSS JOIN told ORDER BY asked.place"
);

const EXTEND: &str = concat!(
    "WITH ",
    asked!(),
    ", extended AS (
        UPDATE deliveries d SET due_at = now() + make_interval(secs => $4), updated_at = now()
        FROM unnest((SELECT array_agg(DISTINCT id) FROM asked WHERE id IS NOT NULL)) AS e (id)
        WHERE d.event_id = e.id AND d.subscription_id = $3 AND ",
    leased!(),
    " AND ",
    is_pulled_from!(),
    ")
    SELECT id FROM asked ORDER BY place"
);

/// `$3`, `$4` bound the events, so that few partitions are looked at.
const SETTLED: &str = concat!(
    "SELECT d.event_id, d.state, d.updated_at, s.enabled, CASE WHEN ",
    leased!(),
    " THEN d.due_at END AS lease_until
    FROM unnest((SELECT $1::uuid[])) AS asked (id)
    JOIN deliveries d ON d.event_id = asked.id AND d.event_id BETWEEN $3 AND $4 AND d.subscription_id = $2
    LEFT JOIN subscriptions s ON s.id = d.subscription_id AND s.deleted_at IS NULL"
);

#[async_trait]
impl Pulls for Engine {
    async fn pull(&self, source: PullSource, most: u32, lease: Duration) -> Result<Pulled> {
        let statement = query(PULL)
            .bind(source.subscription.uuid())
            .bind(source.organization.uuid())
            .bind(i64::from(most))
            .bind(i64::try_from(PAGE_BYTES).unwrap_or(i64::MAX))
            .bind(rows::seconds(lease))
            .bind(Uuid::now_v7());
        let rows = self.rows(statement).await?;
        let Some(first) = rows.first() else {
            return Ok(Pulled::NotFound);
        };
        if first.value::<&str>("kind")? != "pull" {
            return Ok(Pulled::Pushed);
        }
        if !first.value::<bool>("enabled")? {
            return Ok(Pulled::Disabled);
        }
        if first.value::<Option<Uuid>>("event_id")?.is_none() {
            let due_in = first.optional_number("due_in_ms")?.map(Duration::from_millis);
            return Ok(Pulled::Nothing { due_in });
        }
        rows.iter().map(pulled).collect::<Result<_>>().map(Pulled::Events)
    }

    async fn acknowledge_pulled(&self, source: PullSource, events: &[EventId]) -> Result<Vec<Settled>> {
        let statement = query(ACKNOWLEDGE)
            .bind(source.organization.uuid())
            .bind(uuids(events));
        let statement = statement.bind(source.subscription.uuid());
        self.settle(source.subscription, statement).await
    }

    async fn change_leases(
        &self,
        source: PullSource,
        events: &[EventId],
        change: LeaseChange,
    ) -> Result<Vec<Settled>> {
        let (sql, after) = match change {
            LeaseChange::Release { due_in } => (RELEASE, due_in),
            LeaseChange::Extend { lease } => (EXTEND, lease),
        };
        let statement = query(sql)
            .bind(source.organization.uuid())
            .bind(uuids(events))
            .bind(source.subscription.uuid())
            .bind(rows::seconds(after));
        self.settle(source.subscription, statement).await
    }

    async fn tell_awaited(&self, subscription: SubscriptionId) -> Result<()> {
        let statement = query("SELECT pg_notify('triggers_changes', 'w:' || $1::uuid)");
        self.rows(statement.bind(subscription.uuid())).await.map(drop)
    }
}

impl Engine {
    /// Runs a statement that answers with the event that each id stands for; then reads how their deliveries are. (Of what
    /// another changes at the same time, the statement itself knows only how it was.)
    async fn settle(&self, subscription: SubscriptionId, statement: Statement) -> Result<Vec<Settled>> {
        let asked = self.rows(statement).await?;
        let asked: Vec<Option<EventId>> = asked
            .iter()
            .map(|row| row.optional_id("id"))
            .collect::<Result<_>>()?;
        let mut events: Vec<EventId> = asked.iter().copied().flatten().collect();
        events.sort_unstable();
        events.dedup();
        let statement = query(SETTLED)
            .bind(uuids(&events))
            .bind(subscription.uuid())
            .bind(events.first().map(|event| event.uuid()))
            .bind(events.last().map(|event| event.uuid()));
        let mut settled = HashMap::with_capacity(events.len());
        for row in &self.rows(statement).await? {
            let event: EventId = row.id("event_id")?;
            settled.insert(event, settled_delivery(event, row)?);
        }
        let of = |event: Option<EventId>| event.and_then(|event| settled.get(&event).copied());
        Ok(asked
            .into_iter()
            .map(|event| of(event).unwrap_or(Settled::NotFound))
            .collect())
    }
}

fn settled_delivery(event: EventId, row: &PgRow) -> Result<Settled> {
    let lease_until = row.optional_at("lease_until")?;
    let state = parse_state(row.value("state")?)?;
    let status = DeliveryStatus::of(state, lease_until.is_some(), condition(row)?);
    Ok(Settled::Delivery {
        event,
        status,
        updated_at: row.at("updated_at")?,
        lease_until: lease_until.filter(|_| status.is_open()),
    })
}

fn pulled(row: &PgRow) -> Result<PulledEvent> {
    Ok(PulledEvent {
        id: row.id("event_id")?,
        event_type: row.value("type")?,
        dedup_id: row.value("dedup_id")?,
        source: row.value("source")?,
        occurred_at: row.optional_at("occurred_at")?,
        received_at: row.at("received_at")?,
        payload: row.value("payload")?,
        pulls: row.count("attempts")?,
        lease_until: row.at("lease_until")?,
    })
}
