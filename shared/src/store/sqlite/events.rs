//! Events: the aggregate's operations, and the look-up of one.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection, sqlite::SqliteRow};

use super::{
    Engine,
    many::{marks, portions},
    row::{Columns as _, corrupt, failed},
};
use crate::{
    DeliveryState, EventId, FailureKind, OrganizationId, SetAsideId, SubscriptionId, Timestamp,
    delivery::{Status, SubscriptionCondition},
    store::{
        AttemptRecord, DeliveryRecord, EventFilter, EventQuery, EventRecord, Events, IntakeBatch,
        IntakeOutcome, Order, Page, PageRequest, Passed, Result, SetAside, SetAsidePlace,
        events::attempts_of_each, is_in_range, parse_state,
    },
};

/// The repeats of `e`: its aliases, and notes that name one of those instead of it.
const ALIASES: &str = "(SELECT count(*) FROM event_aliases a WHERE a.organization_id = e.organization_id AND \
     (a.event_id = e.id OR a.event_id IN (SELECT b.id FROM event_aliases b WHERE b.event_id = e.id))";

/// A delivery, its last failed attempts, and what its status depends on: its subscription and its owner's lease.
const DELIVERY: &str = "SELECT d.event_id, d.subscription_id, d.state, d.attempts, iif(s.kind = 'push', d.due_at, NULL), d.updated_at, \
     d.started_at, d.duration_ms, d.status_code, s.enabled, s.deleted_at IS NOT NULL, \
     EXISTS (SELECT 1 FROM workers w WHERE w.id = d.lease_owner AND w.lease_until > ?), \
     a.number, a.started_at, a.duration_ms, a.status_code, a.failure, a.detail, \
     iif(s.kind = 'pull' AND d.lease_owner IS NOT NULL AND d.due_at > ?, d.due_at, NULL) \
     FROM deliveries d JOIN subscriptions s ON s.id = d.subscription_id \
     LEFT JOIN attempts a ON a.event_id = d.event_id AND a.subscription_id = d.subscription_id \
     AND a.number > d.attempts - ?";

/// What is read of deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    /// The last attempts of all of them, of which there are so many, or of the one to this subscription.
    Whole {
        deliveries: usize,
        only: Option<SubscriptionId>,
    },
    /// The last attempt of each.
    Last,
}

/// What an id stands for: itself, the event whose alias it is, or the event that had it formerly. A note's alias may name
/// an alias in turn.
pub(super) async fn resolve(
    connection: &mut SqliteConnection,
    organization: OrganizationId,
    ids: &[EventId],
) -> Result<HashMap<EventId, EventId>> {
    let mut found = HashMap::with_capacity(ids.len());
    for portion in portions(ids) {
        let marks = marks(portion.len());
        let sql = format!(
            "SELECT e.id, e.id FROM events e WHERE e.organization_id = ? AND e.id IN ({marks}) \
             UNION ALL \
             SELECT a.id, e.id FROM event_aliases a \
             LEFT JOIN event_aliases b ON b.id = a.event_id AND b.organization_id = a.organization_id \
             JOIN events e ON e.id = coalesce(b.event_id, a.event_id) AND e.organization_id = a.organization_id \
             WHERE a.organization_id = ? AND a.id IN ({marks}) \
             UNION ALL \
             SELECT f.id, e.id FROM former_ids f \
             LEFT JOIN event_aliases a ON a.id = f.event_id AND a.organization_id = f.organization_id \
             LEFT JOIN event_aliases b ON b.id = a.event_id AND b.organization_id = a.organization_id \
             JOIN events e ON e.id = coalesce(b.event_id, a.event_id, f.event_id) \
             AND e.organization_id = f.organization_id \
             WHERE f.organization_id = ? AND f.id IN ({marks})"
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for _ in 0..3 {
            query = query.bind(organization.uuid());
            for id in portion {
                query = query.bind(id.uuid());
            }
        }
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            found.insert(row.id(0)?, row.id(1)?);
        }
    }
    Ok(found)
}

/// The events with these numbers, with their deliveries, in the order of `seqs`.
pub(super) async fn records(
    connection: &mut SqliteConnection,
    seqs: &[i64],
    log: Log,
    now: Timestamp,
) -> Result<Vec<EventRecord>> {
    let mut records = HashMap::with_capacity(seqs.len());
    let mut places = HashMap::with_capacity(seqs.len());
    for portion in portions(seqs) {
        let sql = format!(
            "SELECT e.seq, e.id, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload, \
             {ALIASES}), {ALIASES} AND a.differs), e.erased_at FROM events e WHERE e.seq IN ({})",
            marks(portion.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for seq in portion {
            query = query.bind(seq);
        }
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            let record = record(&row)?;
            places.insert(record.id, record.seq);
            records.insert(record.seq, record);
        }
    }
    let ids: Vec<EventId> = places.keys().copied().collect();
    let (of_each, only) = match log {
        Log::Whole { only: Some(only), .. } => (attempts_of_each(1), Some(only.uuid())),
        Log::Whole { deliveries, .. } => (attempts_of_each(deliveries), None),
        Log::Last => (1, None),
    };
    for portion in portions(&ids) {
        let sql = format!(
            "{DELIVERY} WHERE (? IS NULL OR d.subscription_id = ?) AND d.event_id IN ({}) ORDER BY d.event_id, d.subscription_id, a.number",
            marks(portion.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql))
            .bind(now.millis())
            .bind(now.millis())
            .bind(of_each)
            .bind(only)
            .bind(only);
        for id in portion {
            query = query.bind(id.uuid());
        }
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            let seq = places.get(&row.id(0)?);
            if let Some(record) = seq.and_then(|seq| records.get_mut(seq)) {
                add_delivery(&mut record.deliveries, &row)?;
            }
        }
    }
    let mut records: Vec<EventRecord> = seqs.iter().filter_map(|seq| records.remove(seq)).collect();
    for delivery in records.iter_mut().flat_map(|record| &mut record.deliveries) {
        if log == Log::Last && delivery.log.len() > 1 {
            delivery.log.drain(..delivery.log.len() - 1);
        }
        delivery.log.sort_by_key(|attempt| attempt.number);
    }
    Ok(records)
}

fn record(row: &SqliteRow) -> Result<EventRecord> {
    Ok(EventRecord {
        seq: row.value(0)?,
        id: row.id(1)?,
        event_type: row.value(2)?,
        dedup_id: row.value(3)?,
        source: row.value(4)?,
        occurred_at: row.time_if_any(5)?,
        received_at: row.time(6)?,
        payload: row.value(7)?,
        erased_at: row.time_if_any(10)?,
        repeats: row.number(8)?,
        differing_repeats: row.number(9)?,
        deliveries: Vec::new(),
    })
}

/// Adds a row of [`DELIVERY`]: to the delivery before, if it is another attempt at that.
fn add_delivery(deliveries: &mut Vec<DeliveryRecord>, row: &SqliteRow) -> Result<()> {
    let subscription = row.id(1)?;
    if deliveries
        .last()
        .is_none_or(|last| last.subscription != subscription)
    {
        let state = parse_state(row.value(2)?)?;
        let condition = condition(row.value(10)?, row.value(9)?);
        let lease_until = row.time_if_any(18)?;
        let status = Status::of(state, row.value(11)? || lease_until.is_some(), condition);
        let attempts = row.number(3)?;
        let succeeded = (state == DeliveryState::Delivered)
            .then(|| attempt(row, attempts, 6, None))
            .transpose()?;
        deliveries.push(DeliveryRecord {
            subscription,
            status,
            has_failed: status.is_open() && state == DeliveryState::Retrying,
            attempts,
            lease_until: lease_until.filter(|_| status.is_open()),
            next_attempt_at: row.time_if_any(4)?.filter(|_| status.is_open()),
            updated_at: row.time(5)?,
            log: succeeded.into_iter().collect(),
        });
    }
    if row.value::<Option<i64>>(12)?.is_some()
        && let Some(delivery) = deliveries.last_mut()
    {
        let failure = (
            row.value::<&str>(16)?.parse::<FailureKind>().map_err(corrupt)?,
            row.value(17)?,
        );
        delivery
            .log
            .push(attempt(row, row.number(12)?, 13, Some(failure))?);
    }
    Ok(())
}

/// How a delivery's subscription is.
pub(super) const fn condition(deleted: bool, enabled: bool) -> SubscriptionCondition {
    match (deleted, enabled) {
        (true, _) => SubscriptionCondition::Deleted,
        (false, true) => SubscriptionCondition::Enabled,
        (false, false) => SubscriptionCondition::Disabled,
    }
}

/// An attempt whose start, duration and status code begin at a column.
fn attempt(
    row: &SqliteRow,
    number: u32,
    column: usize,
    failure: Option<(FailureKind, String)>,
) -> Result<AttemptRecord> {
    let (failure, detail) = failure.unzip();
    Ok(AttemptRecord {
        number,
        started_at: row.time(column)?,
        duration: Duration::from_millis(row.number(column + 1)?),
        status_code: row
            .value::<Option<i64>>(column + 2)?
            .map(u16::try_from)
            .transpose()
            .map_err(corrupt)?,
        failure,
        detail,
    })
}

impl Engine {
    async fn look_up(
        &self,
        organization: OrganizationId,
        id: EventId,
        only: Option<SubscriptionId>,
    ) -> Result<Option<EventRecord>> {
        let mut snapshot = self.readers.begin().await.map_err(failed)?;
        let Some(first) = resolve(&mut snapshot, organization, &[id]).await?.remove(&id) else {
            return Ok(None);
        };
        let found = sqlx::query(
            "SELECT e.seq, (SELECT count(*) FROM deliveries d WHERE d.event_id = e.id) FROM events e WHERE e.id = ?",
        )
        .bind(first.uuid())
        .fetch_optional(&mut *snapshot)
        .await
        .map_err(failed)?;
        let Some(found) = found else {
            return Ok(None);
        };
        let log = Log::Whole {
            deliveries: found.number(1)?,
            only,
        };
        let mut records = records(&mut snapshot, &[found.value(0)?], log, Timestamp::now()).await?;
        Ok(records.pop())
    }
}

#[async_trait]
impl Events for Engine {
    async fn intake(&self, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome> {
        self.take_in(batch).await
    }

    async fn rehearse(&self) -> Result<()> {
        self.rehearse_intake().await
    }

    async fn admit(&self, ids: &[EventId], retention: Duration) -> Result<HashSet<EventId>> {
        let now = Timestamp::now();
        let out = ids.iter().filter(|id| !is_in_range(**id, now, retention));
        Ok(out.copied().collect())
    }

    async fn get(&self, organization: OrganizationId, id: EventId) -> Result<Option<EventRecord>> {
        self.look_up(organization, id, None).await
    }

    async fn get_delivery(
        &self,
        organization: OrganizationId,
        id: EventId,
        subscription: SubscriptionId,
    ) -> Result<Option<EventRecord>> {
        self.look_up(organization, id, Some(subscription)).await
    }

    async fn list(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        page: PageRequest<i64>,
        offset: u64,
    ) -> Result<Page<EventRecord, i64>> {
        self.list_events(organization, filter, order, page, offset).await
    }

    async fn pass_over(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        after: Option<i64>,
        count: u64,
    ) -> Result<Passed> {
        self.pass_over_events(organization, filter, order, after, count)
            .await
    }

    async fn browse(
        &self,
        organization: OrganizationId,
        wanted: &EventQuery,
        page: PageRequest<i64>,
    ) -> Result<Page<EventRecord, i64>> {
        self.browse_events(organization, wanted, page).await
    }

    async fn count(&self, organization: OrganizationId, filter: &EventFilter, most: u64) -> Result<u64> {
        self.count_events(organization, filter, most).await
    }

    async fn set_aside(&self, items: &[SetAside]) -> Result<()> {
        self.keep_aside(items).await
    }

    async fn list_set_aside(
        &self,
        page: PageRequest<SetAsidePlace>,
    ) -> Result<Page<SetAside, SetAsidePlace>> {
        self.set_asides(page).await
    }

    async fn get_set_aside(&self, id: SetAsideId) -> Result<Option<SetAside>> {
        self.one_set_aside(id).await
    }

    async fn forget_set_aside(&self, id: SetAsideId, times: Option<u64>) -> Result<bool> {
        self.forget(id, times).await
    }

    async fn count_set_aside(&self) -> Result<u64> {
        self.how_many_set_aside().await
    }
}
