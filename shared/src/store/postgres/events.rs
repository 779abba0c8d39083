//! Events as they are looked up and listed, and what was set aside.
//!
//! A list is read in one snapshot: which events, then their deliveries, attempts and repeats, each by the index of its
//! own. Events that are `pending` are found by the partial index over open deliveries alone; other statuses by walking the
//! organization's events in order.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use sqlx::{
    postgres::{PgConnection, PgRow},
    query,
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    CALL, Engine, Result, Statement, classify, organizations::paged, partitions, rows, rows::Columns, within,
};
use crate::{
    DeliveryKey, DeliveryState, DeliveryStatus, EventId, EventStatus, OrganizationId, SetAsideId,
    delivery::SubscriptionCondition,
    store::{
        AttemptRecord, DeliveryRecord, EventFilter, EventRecord, Events, IntakeBatch, IntakeOutcome, Order,
        Page, PageRequest, SetAside, parse_state,
    },
};

/// The most that an id made later can seem older than the first of its key: ids reach from 2 days back to 3 ahead.
const CLOCKS_APART: Duration = Duration::from_hours(144);

const EVENT: &str = "
    SELECT e.id, e.seq, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload
    FROM (SELECT $2::uuid AS id) asked
    LEFT JOIN LATERAL (
        SELECT a.event_id FROM event_aliases a WHERE a.id = asked.id AND a.organization_id = $1 LIMIT 1
    ) first ON true
    LEFT JOIN LATERAL (
        SELECT a.event_id FROM event_aliases a WHERE a.id = first.event_id AND a.organization_id = $1 LIMIT 1
    ) first_of_first ON true
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.id = coalesce(first_of_first.event_id, first.event_id, asked.id) AND e.organization_id = $1 LIMIT 1
    ) e";

const DELIVERIES: &str = "
    SELECT d.event_id, d.subscription_id, d.state, d.attempts, d.due_at, d.updated_at, d.started_at, d.duration_ms,
           d.status_code, s.enabled,
           coalesce(d.lease_owner = ANY (ARRAY(SELECT id FROM workers WHERE lease_until > now())), false) AS held
    FROM unnest((SELECT $1::uuid[])) AS asked (id)
    JOIN deliveries d ON d.event_id = asked.id AND d.event_id BETWEEN $2 AND $3
    LEFT JOIN subscriptions s ON s.id = d.subscription_id AND s.deleted_at IS NULL
    ORDER BY d.event_id, d.subscription_id";

macro_rules! attempts {
    ($distinct:literal, $order:literal) => {
        concat!(
            "SELECT ",
            $distinct,
            " a.event_id, a.subscription_id, a.number, a.started_at, a.duration_ms,
                 a.status_code, a.failure, a.detail
             FROM unnest((SELECT $1::uuid[])) AS asked (id)
             JOIN attempts a ON a.event_id = asked.id AND a.event_id BETWEEN $2 AND $3
             ORDER BY a.event_id, a.subscription_id, a.number ",
            $order
        )
    };
}
const ATTEMPTS: &str = attempts!("", "");
const LAST_ATTEMPTS: &str = attempts!("DISTINCT ON (a.event_id, a.subscription_id)", "DESC");

/// A repeat may have been answered with an id that was itself a repeat's: it counts for the first all the same.
const REPEATS: &str = "
    SELECT first, count(*) AS repeats, count(*) FILTER (WHERE differs) AS differing FROM (
        SELECT asked.id AS first, a.differs
        FROM unnest((SELECT $1::uuid[])) AS asked (id)
        JOIN event_aliases a ON a.event_id = asked.id AND a.id >= $2
        WHERE a.organization_id = $3
        UNION ALL
        SELECT asked.id, b.differs
        FROM unnest((SELECT $1::uuid[])) AS asked (id)
        JOIN event_aliases a ON a.event_id = asked.id AND a.id >= $2
        CROSS JOIN LATERAL (
            SELECT b.differs FROM event_aliases b
            WHERE b.event_id = a.id AND b.id >= $2 AND b.organization_id = $3 OFFSET 0
        ) b
        WHERE a.organization_id = $3
    ) repeated GROUP BY first";

/// Below which seq nothing is still to be committed: that of the oldest intake under way. To be asked before the snapshot
/// is taken that is read by.
///
/// An intake locks `events` before it has a transaction id. So one that was not seen here to be under way is committed by
/// the time of that snapshot, or has an id that was not given out yet at the start of this statement. Other transactions
/// on the server, which may be open for hours, hold nobody up.
const SETTLED_BELOW: &str = "
    SELECT (coalesce(
        (SELECT min(running::text::bigint) FROM pg_snapshot_xip(pg_current_snapshot()) AS running
         WHERE running::xid IN (
            SELECT own.transactionid FROM pg_locks own JOIN pg_locks intake ON intake.pid = own.pid
            WHERE own.locktype = 'transactionid' AND own.mode = 'ExclusiveLock' AND own.granted
              AND intake.locktype = 'relation' AND intake.mode = 'RowExclusiveLock'
              AND intake.relation = 'events'::regclass
              AND intake.database = (SELECT oid FROM pg_database WHERE datname = current_database())
         )),
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    ) + xid_offset) << 18 AS seq FROM intake_order";

/// `$1` organization, `$2` cursor, `$3` type, `$4` failed, `$5` limit, `$6` offset, `$7` the end of what is settled, `$8`
/// statuses.
macro_rules! place {
    ($seq:literal, oldest) => {
        concat!(
            "($2::bigint IS NULL OR ",
            $seq,
            " > $2) AND ($7::bigint IS NULL OR ",
            $seq,
            " < $7)"
        )
    };
    ($seq:literal, newest) => {
        concat!(
            "($2::bigint IS NULL OR ",
            $seq,
            " < $2) AND ($7::bigint IS NULL OR ",
            $seq,
            " < $7)"
        )
    };
}
macro_rules! direction {
    (oldest) => {
        "ASC"
    };
    (newest) => {
        "DESC"
    };
}

/// Pending events alone: by the open deliveries, of which an event may have several. All on one level, so that the
/// planner knows of the limit and reads the index in order, no further than that.
macro_rules! pending {
    ($columns:literal, $order:tt) => {
        concat!(
            "SELECT DISTINCT ON (d.seq) ", $columns, " FROM deliveries d
            CROSS JOIN LATERAL (SELECT * FROM events e WHERE e.id = d.event_id LIMIT 1) e
            WHERE d.organization_id = $1 AND d.due_at IS NOT NULL AND ", place!("d.seq", $order), "
              AND (SELECT true FROM subscriptions s WHERE s.id = d.subscription_id AND s.deleted_at IS NULL)
              AND ($3::text IS NULL OR e.type = $3)
              AND ($4::boolean IS NULL OR $4 = (
                SELECT bool_or(o.state = 'retrying') FROM deliveries o
                WHERE o.event_id = d.event_id AND o.due_at IS NOT NULL
                  AND (SELECT true FROM subscriptions s WHERE s.id = o.subscription_id AND s.deleted_at IS NULL)
              ))
            ORDER BY d.seq ", direction!($order), " LIMIT $5 OFFSET $6"
        )
    };
}

/// Any events: each with its status, the least of its deliveries', in the order of [`EventStatus`].
macro_rules! walked {
    ($columns:literal, $order:tt) => {
        concat!(
            "SELECT ", $columns, " FROM events e
            LEFT JOIN LATERAL (
                SELECT coalesce(min(CASE
                    WHEN d.due_at IS NOT NULL THEN CASE WHEN s.id IS NULL THEN 5 ELSE 0 END
                    WHEN d.state = 'dead_letter' THEN 1
                    WHEN d.state = 'expired' THEN 2
                    WHEN d.state = 'delivered' THEN 3
                    WHEN d.state = 'acknowledged' THEN 4
                    ELSE 5 END), 0) AS status,
                    coalesce(bool_or(d.due_at IS NOT NULL AND s.id IS NOT NULL AND d.state = 'retrying'), false) AS failed
                FROM deliveries d
                LEFT JOIN LATERAL (
                    SELECT s.id FROM subscriptions s WHERE s.id = d.subscription_id AND s.deleted_at IS NULL LIMIT 1
                ) s ON true
                WHERE d.event_id = e.id
            ) summary ON $8::integer[] IS NOT NULL OR $4::boolean IS NOT NULL
            WHERE e.organization_id = $1 AND ($3::text IS NULL OR e.type = $3) AND ", place!("e.seq", $order), "
              AND ($8::integer[] IS NULL OR summary.status = ANY ($8))
              AND ($4::boolean IS NULL OR summary.status <> 0 OR summary.failed = $4)
            ORDER BY e.seq ", direction!($order), " LIMIT $5 OFFSET $6"
        )
    };
}

const PENDING_OLDEST: &str = pending!(
    "e.id, e.seq, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload",
    oldest
);
const PENDING_NEWEST: &str = pending!(
    "e.id, e.seq, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload",
    newest
);
const WALKED_OLDEST: &str = walked!(
    "e.id, e.seq, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload",
    oldest
);
const WALKED_NEWEST: &str = walked!(
    "e.id, e.seq, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload",
    newest
);
const PENDING_COUNT: &str = concat!(
    "SELECT count(*) AS count FROM (",
    pending!("1", newest),
    ") shown"
);
const WALKED_COUNT: &str = concat!("SELECT count(*) AS count FROM (", walked!("1", newest), ") shown");

const SET_ASIDE: &str = "
    INSERT INTO set_aside (id, reason, detail, organization_id, event_id, frame, at)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::bytea[], $7::timestamptz[])
    ORDER BY 1
    ON CONFLICT (id) DO NOTHING";

fn pending_alone(filter: &EventFilter) -> bool {
    !filter.statuses.is_empty()
        && filter
            .statuses
            .iter()
            .all(|status| *status == EventStatus::Pending)
}

fn bind_filter(
    sql: &'static str,
    organization: OrganizationId,
    filter: &EventFilter,
    after: Option<i64>,
    limit: i64,
    offset: u64,
    settled_below: Option<i64>,
) -> Statement {
    let statement = query(sql)
        .bind(organization.uuid())
        .bind(after)
        .bind(filter.event_type.clone())
        .bind(filter.failed)
        .bind(limit)
        .bind(i64::try_from(offset).unwrap_or(i64::MAX))
        .bind(settled_below);
    if pending_alone(filter) {
        statement
    } else {
        let statuses: Vec<i32> = filter.statuses.iter().map(|status| *status as i32).collect();
        statement.bind((!statuses.is_empty()).then_some(statuses))
    }
}

#[async_trait]
impl Events for Engine {
    async fn intake(&self, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome> {
        self.take_in(batch).await
    }

    async fn get(&self, organization: OrganizationId, id: EventId) -> Result<Option<EventRecord>> {
        let event = query(EVENT).bind(organization.uuid()).bind(id.uuid());
        Ok(self.read(organization, event, ATTEMPTS).await?.pop())
    }

    async fn list(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        page: PageRequest<i64>,
        offset: u64,
    ) -> Result<Page<EventRecord, i64>> {
        let sql = match (pending_alone(filter), order) {
            (true, Order::OldestFirst) => PENDING_OLDEST,
            (true, Order::NewestFirst) => PENDING_NEWEST,
            (false, Order::OldestFirst) => WALKED_OLDEST,
            (false, Order::NewestFirst) => WALKED_NEWEST,
        };
        let limit = i64::from(page.limit) + 1;
        let settled_below = match order {
            Order::OldestFirst => Some(self.one(query(SETTLED_BELOW)).await?.value("seq")?),
            Order::NewestFirst => None,
        };
        let events = bind_filter(
            sql,
            organization,
            filter,
            page.after,
            limit,
            offset,
            settled_below,
        );
        let records = self.read(organization, events, LAST_ATTEMPTS).await?;
        Ok(paged(records, page.limit, |event| event.seq))
    }

    async fn count(&self, organization: OrganizationId, filter: &EventFilter, most: u64) -> Result<u64> {
        let sql = if pending_alone(filter) {
            PENDING_COUNT
        } else {
            WALKED_COUNT
        };
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.one(bind_filter(sql, organization, filter, None, most, 0, None))
            .await?
            .number("count")
    }

    async fn set_aside(&self, items: &[SetAside]) -> Result<()> {
        let statement = query(SET_ASIDE)
            .bind(items.iter().map(|item| item.id.uuid()).collect::<Vec<_>>())
            .bind(items.iter().map(|item| item.reason.as_str()).collect::<Vec<_>>())
            // PostgreSQL's text cannot hold it, and what is set aside may.
            .bind(
                items
                    .iter()
                    .map(|item| item.detail.replace('\0', "\u{fffd}"))
                    .collect::<Vec<_>>(),
            )
            .bind(
                items
                    .iter()
                    .map(|item| item.organization.map(OrganizationId::uuid))
                    .collect::<Vec<_>>(),
            )
            .bind(
                items
                    .iter()
                    .map(|item| item.event.map(EventId::uuid))
                    .collect::<Vec<_>>(),
            )
            .bind(items.iter().map(|item| item.frame.as_slice()).collect::<Vec<_>>())
            .bind(
                items
                    .iter()
                    .map(|item| OffsetDateTime::from(item.at))
                    .collect::<Vec<_>>(),
            );
        self.rows(statement).await.map(drop)
    }

    async fn list_set_aside(&self, page: PageRequest<SetAsideId>) -> Result<Page<SetAside, SetAsideId>> {
        let statement = query(
            "SELECT id, reason, detail, organization_id, event_id, frame, at FROM set_aside
             WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2",
        )
        .bind(page.after.map(SetAsideId::uuid))
        .bind(i64::from(page.limit) + 1);
        let items = self
            .rows(statement)
            .await?
            .iter()
            .map(rows::set_aside)
            .collect::<Result<Vec<_>>>()?;
        Ok(paged(items, page.limit, |item| item.id))
    }

    async fn get_set_aside(&self, id: SetAsideId) -> Result<Option<SetAside>> {
        let statement = query(
            "SELECT id, reason, detail, organization_id, event_id, frame, at FROM set_aside WHERE id = $1",
        )
        .bind(id.uuid());
        self.row(statement)
            .await?
            .as_ref()
            .map(rows::set_aside)
            .transpose()
    }

    async fn forget_set_aside(&self, id: SetAsideId) -> Result<bool> {
        let statement = query("DELETE FROM set_aside WHERE id = $1 RETURNING id").bind(id.uuid());
        Ok(self.row(statement).await?.is_some())
    }

    async fn count_set_aside(&self) -> Result<u64> {
        self.one(query("SELECT count(*) AS count FROM set_aside"))
            .await?
            .number("count")
    }
}

impl Engine {
    /// Reads the events that a statement finds, and all that belongs to them, in one snapshot.
    async fn read(
        &self,
        organization: OrganizationId,
        events: Statement,
        attempts: &'static str,
    ) -> Result<Vec<EventRecord>> {
        within(CALL, async {
            let mut session = self.session().await?;
            let records = read(session.connection(), organization, events, attempts).await;
            if records.is_ok() {
                session.settle(Ok(()))?;
            }
            records
        })
        .await
    }
}

async fn read(
    connection: &mut PgConnection,
    organization: OrganizationId,
    events: Statement,
    attempts: &'static str,
) -> Result<Vec<EventRecord>> {
    query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .execute(&mut *connection)
        .await
        .map_err(classify)?;
    let events = events.fetch_all(&mut *connection).await.map_err(classify)?;
    let mut records = events.iter().map(event).collect::<Result<Vec<_>>>()?;
    let ids: Vec<Uuid> = records.iter().map(|record| record.id.uuid()).collect();
    if let (Some(first), Some(last)) = (ids.iter().min().copied(), ids.iter().max().copied()) {
        let of_these = |sql| query(sql).bind(ids.clone()).bind(first).bind(last);
        let deliveries = of_these(DELIVERIES)
            .fetch_all(&mut *connection)
            .await
            .map_err(classify)?;
        let attempts = of_these(attempts)
            .fetch_all(&mut *connection)
            .await
            .map_err(classify)?;
        let repeats = query(REPEATS)
            .bind(ids.clone())
            .bind(partitions::earlier(first, CLOCKS_APART))
            .bind(organization.uuid())
            .fetch_all(&mut *connection)
            .await
            .map_err(classify)?;
        attach(
            &mut records,
            &deliveries,
            attempts_by_delivery(&attempts)?,
            &repeats,
        )?;
    }
    query("COMMIT")
        .execute(&mut *connection)
        .await
        .map_err(classify)?;
    Ok(records)
}

fn event(row: &PgRow) -> Result<EventRecord> {
    Ok(EventRecord {
        id: row.id("id")?,
        seq: row.value("seq")?,
        event_type: row.value("type")?,
        dedup_id: row.value("dedup_id")?,
        source: row.value("source")?,
        occurred_at: row.optional_at("occurred_at")?,
        received_at: row.at("received_at")?,
        payload: row.value("payload")?,
        repeats: 0,
        differing_repeats: 0,
        deliveries: Vec::new(),
    })
}

fn attempts_by_delivery(rows: &[PgRow]) -> Result<HashMap<DeliveryKey, Vec<AttemptRecord>>> {
    let mut attempts: HashMap<DeliveryKey, Vec<AttemptRecord>> = HashMap::new();
    for row in rows {
        let key = DeliveryKey {
            event: row.id("event_id")?,
            subscription: row.id("subscription_id")?,
        };
        attempts.entry(key).or_default().push(AttemptRecord {
            number: row.count("number")?,
            started_at: row.at("started_at")?,
            duration: Duration::from_millis(row.number("duration_ms")?),
            status_code: row.status_code("status_code")?,
            failure: Some(row.parsed("failure")?),
            detail: Some(row.value("detail")?),
        });
    }
    Ok(attempts)
}

fn attach(
    records: &mut [EventRecord],
    deliveries: &[PgRow],
    mut attempts: HashMap<DeliveryKey, Vec<AttemptRecord>>,
    repeats: &[PgRow],
) -> Result<()> {
    let places: HashMap<EventId, usize> = records
        .iter()
        .enumerate()
        .map(|(place, record)| (record.id, place))
        .collect();
    for row in deliveries {
        let key = DeliveryKey {
            event: row.id("event_id")?,
            subscription: row.id("subscription_id")?,
        };
        let log = attempts.remove(&key).unwrap_or_default();
        if let Some(place) = places.get(&key.event) {
            records[*place].deliveries.push(delivery(row, log)?);
        }
    }
    for row in repeats {
        if let Some(place) = places.get(&row.id("first")?) {
            records[*place].repeats = row.number("repeats")?;
            records[*place].differing_repeats = row.number("differing")?;
        }
    }
    Ok(())
}

fn delivery(row: &PgRow, mut log: Vec<AttemptRecord>) -> Result<DeliveryRecord> {
    let state = parse_state(row.value("state")?)?;
    let attempts: u32 = row.count("attempts")?;
    if state == DeliveryState::Delivered
        && let Some(started_at) = row.optional_at("started_at")?
    {
        log.push(AttemptRecord {
            number: attempts,
            started_at,
            duration: Duration::from_millis(row.optional_number("duration_ms")?.unwrap_or(0)),
            status_code: row.status_code("status_code")?,
            failure: None,
            detail: None,
        });
    }
    let subscription = match row.value::<Option<bool>>("enabled")? {
        Some(true) => SubscriptionCondition::Enabled,
        Some(false) => SubscriptionCondition::Disabled,
        None => SubscriptionCondition::Deleted,
    };
    let status = DeliveryStatus::of(state, row.value("held")?, subscription);
    Ok(DeliveryRecord {
        subscription: row.id("subscription_id")?,
        status,
        attempts,
        next_attempt_at: if status.is_open() {
            row.optional_at("due_at")?
        } else {
            None
        },
        updated_at: row.at("updated_at")?,
        log,
    })
}
