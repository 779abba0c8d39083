//! Events with all that belongs to them, read in one snapshot: deliveries, attempts and repeats, each by the index of its
//! own.

use std::{cmp::Reverse, collections::HashMap, time::Duration};

use sqlx::{
    postgres::{PgConnection, PgRow},
    query,
};
use uuid::Uuid;

use super::{
    CALL, Engine, Result, Session, Statement, classify, lists::Listed, partitions, rows::Columns, within,
};
use crate::{
    DeliveryKey, DeliveryState, DeliveryStatus, EventId, OrganizationId, SubscriptionId,
    delivery::SubscriptionCondition,
    store::{
        AttemptRecord, DeliveryRecord, EventRecord, Order, Page,
        events::attempts_of_each,
        page::{self, Shown},
        parse_state,
    },
};

/// The most that an id made later can seem older than the first of its key: ids reach from 2 days back to 3 ahead.
const CLOCKS_APART: Duration = Duration::from_hours(6 * 24);

const DELIVERIES: &str = "
    SELECT d.event_id, d.subscription_id, d.state, d.attempts, d.updated_at, d.started_at, d.duration_ms,
           d.status_code, s.enabled, CASE WHEN s.kind = 'push' THEN d.due_at END AS next_attempt_at,
           CASE WHEN s.kind = 'pull' AND d.lease_owner IS NOT NULL AND d.due_at > now() THEN d.due_at END AS lease_until,
           coalesce(d.lease_owner = ANY (ARRAY(SELECT id FROM workers WHERE lease_until > now())), false) AS held
    FROM unnest((SELECT $1::uuid[])) AS asked (id)
    JOIN deliveries d ON d.event_id = asked.id AND d.event_id BETWEEN $2 AND $3
    LEFT JOIN subscriptions s ON s.id = d.subscription_id AND s.deleted_at IS NULL
    WHERE $4::uuid IS NULL OR d.subscription_id = $4
    ORDER BY d.event_id, d.subscription_id";

/// How many deliveries the events of a page have.
const COUNTS: &str = "
    SELECT d.event_id, count(*) AS deliveries FROM unnest((SELECT $1::uuid[])) AS asked (id)
    JOIN deliveries d ON d.event_id = asked.id AND d.event_id BETWEEN $2 AND $3
    GROUP BY d.event_id";

/// The last so many (`$5`) of each delivery.
const ATTEMPTS: &str = "
    SELECT a.event_id, a.subscription_id, a.number, a.started_at, a.duration_ms, a.status_code, a.failure, a.detail
    FROM unnest((SELECT $1::uuid[])) AS asked (id)
    JOIN deliveries d ON d.event_id = asked.id AND d.event_id BETWEEN $2 AND $3
    JOIN attempts a ON a.event_id = asked.id AND a.event_id BETWEEN $2 AND $3
        AND a.subscription_id = d.subscription_id AND a.number > d.attempts - $5
    WHERE $4::uuid IS NULL OR d.subscription_id = $4
    ORDER BY a.event_id, a.subscription_id, a.number";

const LAST_ATTEMPTS: &str = "
    SELECT DISTINCT ON (a.event_id, a.subscription_id)
        a.event_id, a.subscription_id, a.number, a.started_at, a.duration_ms, a.status_code, a.failure, a.detail
    FROM unnest((SELECT $1::uuid[])) AS asked (id)
    JOIN attempts a ON a.event_id = asked.id AND a.event_id BETWEEN $2 AND $3
    ORDER BY a.event_id, a.subscription_id, a.number DESC";

/// What is read of deliveries.
#[derive(Debug, Clone, Copy)]
enum Log {
    /// The last attempts of all of them, or of the one to this subscription.
    Whole(Option<SubscriptionId>),
    /// The last attempt of each.
    Last,
}

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

/// The events of a page.
const EVENTS: &str = "
    SELECT e.id, e.seq, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload, e.erased_at
    FROM unnest((SELECT $1::uuid[])) AS asked (id)
    JOIN events e ON e.id = asked.id AND e.id BETWEEN $2 AND $3
    ORDER BY e.seq";

impl Engine {
    /// Reads the event that a statement finds, and all that belongs to it, in one snapshot.
    pub(super) async fn read_one(
        &self,
        organization: OrganizationId,
        event: Statement,
        only: Option<SubscriptionId>,
    ) -> Result<Option<EventRecord>> {
        // Boxed: it is large, and so would be all that waits for it.
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let read = read_one(session.connection(), organization, event, only).await;
            session.settle_read(read)
        }))
        .await
    }

    /// Reads a page of the events that a statement of [`lists`](super::lists) finds, in one snapshot.
    pub(super) async fn read_page(
        &self,
        organization: OrganizationId,
        listed: Listed,
        order: Order,
        limit: u32,
    ) -> Result<Page<EventRecord, i64>> {
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let read = read_page(session.connection(), organization, listed, order, limit).await;
            session.settle_read(read)
        }))
        .await
    }

    /// Finds what a list shows, without reading it.
    pub(super) async fn find(&self, listed: Listed, order: Order) -> Result<(Vec<Shown<Uuid>>, Option<i64>)> {
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let found = find(session.connection(), listed, order).await;
            session.settle_read(found)
        }))
        .await
    }
}

pub(super) async fn begin(connection: &mut PgConnection) -> Result<()> {
    query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .execute(connection)
        .await
        .map(drop)
        .map_err(classify)
}

pub(super) async fn commit(connection: &mut PgConnection) -> Result<()> {
    query("COMMIT")
        .execute(connection)
        .await
        .map(drop)
        .map_err(classify)
}

async fn read_one(
    connection: &mut PgConnection,
    organization: OrganizationId,
    event: Statement,
    only: Option<SubscriptionId>,
) -> Result<Option<EventRecord>> {
    begin(connection).await?;
    let rows = event.fetch_all(&mut *connection).await.map_err(classify)?;
    let mut records = records(connection, organization, rows, Log::Whole(only)).await?;
    commit(connection).await?;
    Ok(records.pop())
}

async fn read_page(
    connection: &mut PgConnection,
    organization: OrganizationId,
    listed: Listed,
    order: Order,
    limit: u32,
) -> Result<Page<EventRecord, i64>> {
    begin(connection).await?;
    let (found, last) = find(connection, listed, order).await?;
    let shown = within_deliveries(connection, page::page_of(found, limit, last)).await?;
    let ids = shown.items.iter().map(|event| event.id).collect();
    let mut items = events_of(connection, organization, ids).await?;
    commit(connection).await?;
    if order == Order::NewestFirst {
        items.reverse();
    }
    Ok(Page {
        items,
        next: shown.next,
    })
}

/// What a list shows, in its order, and the last that was looked at for it, if there may be more.
async fn find(
    connection: &mut PgConnection,
    listed: Listed,
    order: Order,
) -> Result<(Vec<Shown<Uuid>>, Option<i64>)> {
    let rows = listed.statement.fetch_all(connection).await;
    let (mut found, mut last) = (Vec::new(), None);
    for row in rows.map_err(classify)? {
        if row.value::<Option<Uuid>>("id")?.is_some() {
            found.push(shown(&row)?);
        } else if row.optional_number::<u64>("looked")? >= listed.window {
            last = row.value("seq")?;
        }
    }
    match order {
        Order::OldestFirst => found.sort_unstable_by_key(|event| event.seq),
        Order::NewestFirst => found.sort_unstable_by_key(|event| Reverse(event.seq)),
    }
    Ok((found, last))
}

/// The beginning of a page whose events have no more deliveries than one page may show.
pub(super) async fn within_deliveries(
    connection: &mut PgConnection,
    page: Page<Shown<Uuid>, i64>,
) -> Result<Page<Shown<Uuid>, i64>> {
    let ids: Vec<Uuid> = page.items.iter().map(|event| event.id).collect();
    let Some((first, last)) = span(&ids) else {
        return Ok(page);
    };
    let counts = query(COUNTS).bind(ids).bind(first).bind(last);
    let mut deliveries: HashMap<Uuid, u64> = HashMap::new();
    for row in counts.fetch_all(connection).await.map_err(classify)? {
        deliveries.insert(row.value("event_id")?, row.number("deliveries")?);
    }
    let of = |event: &Shown<Uuid>| deliveries.get(&event.id).copied().unwrap_or(0);
    Ok(page::within_deliveries(page, of))
}

/// The events with these ids, in order of `seq`, as lists show them.
pub(super) async fn events_of(
    connection: &mut PgConnection,
    organization: OrganizationId,
    ids: Vec<Uuid>,
) -> Result<Vec<EventRecord>> {
    let Some((first, last)) = span(&ids) else {
        return Ok(Vec::new());
    };
    let rows = query(EVENTS)
        .bind(ids)
        .bind(first)
        .bind(last)
        .fetch_all(&mut *connection)
        .await
        .map_err(classify)?;
    records(connection, organization, rows, Log::Last).await
}

/// The least and the greatest: partitions outside of them need not be opened.
fn span(ids: &[Uuid]) -> Option<(Uuid, Uuid)> {
    Some((*ids.iter().min()?, *ids.iter().max()?))
}

/// The events of `rows`, in their order, with all that belongs to them.
async fn records(
    connection: &mut PgConnection,
    organization: OrganizationId,
    rows: Vec<PgRow>,
    log: Log,
) -> Result<Vec<EventRecord>> {
    let mut records = rows.iter().map(event).collect::<Result<Vec<_>>>()?;
    // They hold the payloads a second time.
    drop(rows);
    let ids: Vec<Uuid> = records.iter().map(|record| record.id.uuid()).collect();
    let Some((first, last)) = span(&ids) else {
        return Ok(records);
    };
    let of_these = |sql| query(sql).bind(ids.clone()).bind(first).bind(last);
    let only = match log {
        Log::Whole(only) => only.map(SubscriptionId::uuid),
        Log::Last => None,
    };
    let deliveries = of_these(DELIVERIES)
        .bind(only)
        .fetch_all(&mut *connection)
        .await
        .map_err(classify)?;
    let attempts = match log {
        Log::Whole(_) => of_these(ATTEMPTS)
            .bind(only)
            .bind(attempts_of_each(deliveries.len())),
        Log::Last => of_these(LAST_ATTEMPTS),
    };
    let attempts = attempts.fetch_all(&mut *connection).await.map_err(classify)?;
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
    Ok(records)
}

fn shown(row: &PgRow) -> Result<Shown<Uuid>> {
    let bytes: i32 = row.value("bytes")?;
    Ok(Shown {
        id: row.value("id")?,
        seq: row.value("seq")?,
        bytes: u64::try_from(bytes).unwrap_or(0),
    })
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
        erased_at: row.optional_at("erased_at")?,
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
    let lease_until = row.optional_at("lease_until")?;
    let held = row.value("held")? || lease_until.is_some();
    let status = DeliveryStatus::of(state, held, condition(row)?);
    Ok(DeliveryRecord {
        subscription: row.id("subscription_id")?,
        status,
        has_failed: status.is_open() && state == DeliveryState::Retrying,
        attempts,
        lease_until,
        next_attempt_at: if status.is_open() {
            row.optional_at("next_attempt_at")?
        } else {
            None
        },
        updated_at: row.at("updated_at")?,
        log,
    })
}

/// How the delivery's subscription is, which is joined only while it is there.
pub(super) fn condition(row: &PgRow) -> Result<SubscriptionCondition> {
    Ok(match row.value::<Option<bool>>("enabled")? {
        Some(true) => SubscriptionCondition::Enabled,
        Some(false) => SubscriptionCondition::Disabled,
        None => SubscriptionCondition::Deleted,
    })
}
