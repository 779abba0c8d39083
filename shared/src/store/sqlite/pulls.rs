//! Pulling: each operation is one change of the writer's, so that no two pulls can meet.
//!
//! A lease moves `due_at` to where it ends, and names itself in `lease_owner`, where a worker would be named if there were
//! one. It outlives the process: what was leased before a restart is leased after it.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    Engine,
    events::{condition, resolve},
    many::{marks, portions},
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    DeliveryStatus, EventId, SubscriptionId, Timestamp,
    store::{
        Change, LeaseChange, PAGE_BYTES, PullSource, Pulled, PulledEvent, Pulls, Result, Settled, parse_state,
    },
};

/// Whether a delivery is leased: now.
const LEASED: &str = "(lease_owner IS NOT NULL AND due_at > ?)";

/// What is due of a subscription, as the index has it: first what became so first, and of one intake by id, which is the
/// order of its `seq`.
fn due(columns: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "SELECT {columns} FROM deliveries d INDEXED BY deliveries_due CROSS JOIN events e ON e.seq = d.seq \
         WHERE d.subscription_id = ? AND d.due_at <= ? ORDER BY d.due_at, d.state, d.event_id LIMIT ?"
    ))
}

/// Why nothing can be pulled, if so.
async fn refusal(tx: &mut Tx, source: PullSource) -> Result<Option<Pulled>> {
    let lane = sqlx::query(
        "SELECT kind, enabled FROM subscriptions WHERE id = ? AND organization_id = ? AND deleted_at IS NULL",
    )
    .bind(source.subscription.uuid())
    .bind(source.organization.uuid())
    .fetch_optional(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(lane) = lane else {
        return Ok(Some(Pulled::NotFound));
    };
    Ok(match (lane.value::<&str>(0)?, lane.value::<bool>(1)?) {
        ("pull", true) => None,
        ("pull", false) => Some(Pulled::Disabled),
        _ => Some(Pulled::Pushed),
    })
}

async fn pull(tx: &mut Tx, source: PullSource, most: u32, lease: Duration) -> Result<Pulled> {
    if let Some(refused) = refusal(tx, source).await? {
        return Ok(refused);
    }
    // The size is in the row's header: the payload itself is not read for it.
    let sizes = sqlx::query(due("octet_length(e.payload)"))
        .bind(source.subscription.uuid())
        .bind(tx.now.millis())
        .bind(most)
        .fetch_all(&mut tx.connection)
        .await
        .map_err(failed)?;
    let (mut fitting, mut bytes) = (0_u32, 0);
    for row in &sizes {
        bytes += row.number::<u64>(0)?;
        if fitting > 0 && bytes > PAGE_BYTES {
            break;
        }
        fitting += 1;
    }
    if fitting == 0 {
        return Ok(Pulled::Nothing {
            due_in: next_due(tx, source.subscription).await?,
        });
    }
    let lease_until = tx.now.plus(lease);
    let rows = sqlx::query(due(
        "e.id, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload, d.attempts, e.seq",
    ))
    .bind(source.subscription.uuid())
    .bind(tx.now.millis())
    .bind(fitting)
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    let mut pulled = rows
        .iter()
        .map(|row| Ok((row.value::<i64>(8)?, event(row, lease_until)?)))
        .collect::<Result<Vec<_>>>()?;
    pulled.sort_by_key(|(seq, _)| *seq);
    let pulled: Vec<PulledEvent> = pulled.into_iter().map(|(_, event)| event).collect();
    hold(tx, source.subscription, &pulled, lease_until).await?;
    Ok(Pulled::Events(pulled))
}

fn event(row: &SqliteRow, lease_until: Timestamp) -> Result<PulledEvent> {
    Ok(PulledEvent {
        id: row.id(0)?,
        event_type: row.value(1)?,
        dedup_id: row.value(2)?,
        source: row.value(3)?,
        occurred_at: row.time_if_any(4)?,
        received_at: row.time(5)?,
        payload: row.value(6)?,
        pulls: row.number::<u32>(7)?.saturating_add(1),
        lease_until,
    })
}

async fn next_due(tx: &mut Tx, subscription: SubscriptionId) -> Result<Option<Duration>> {
    let next = sqlx::query(
        "SELECT min(due_at) FROM deliveries INDEXED BY deliveries_due WHERE subscription_id = ? AND due_at > ?",
    )
    .bind(subscription.uuid())
    .bind(tx.now.millis())
    .fetch_one(&mut tx.connection)
    .await
    .map_err(failed)?;
    Ok(next.time_if_any(0)?.map(|next| next.since(tx.now)))
}

async fn hold(
    tx: &mut Tx,
    subscription: SubscriptionId,
    pulled: &[PulledEvent],
    lease_until: Timestamp,
) -> Result<()> {
    let owner = Uuid::now_v7();
    for portion in portions(pulled) {
        let sql = format!(
            "UPDATE deliveries SET due_at = ?, lease_owner = ?, attempts = attempts + 1, updated_at = ? \
             WHERE subscription_id = ? AND event_id IN ({})",
            marks(portion.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql))
            .bind(lease_until.millis())
            .bind(owner)
            .bind(tx.now.millis())
            .bind(subscription.uuid());
        for event in portion {
            query = query.bind(event.id.uuid());
        }
        query.execute(&mut tx.connection).await.map_err(failed)?;
    }
    Ok(())
}

/// What is done to deliveries.
#[derive(Clone, Copy)]
enum Act {
    Acknowledge,
    Change(LeaseChange),
}

impl Act {
    async fn on(self, tx: &mut Tx, subscription: SubscriptionId, events: &[EventId]) -> Result<u64> {
        let (set, due_at) = match self {
            Self::Acknowledge => (
                "state = 'acknowledged', lease_owner = NULL, due_at = ?, updated_at = ?",
                None,
            ),
            Self::Change(LeaseChange::Release { due_in }) => (
                "lease_owner = NULL, due_at = ?, updated_at = ?",
                Some(tx.now.plus(due_in).millis()),
            ),
            Self::Change(LeaseChange::Extend { lease }) => {
                ("due_at = ?, updated_at = ?", Some(tx.now.plus(lease).millis()))
            }
        };
        // What is to be closed may be leased or not.
        let any = matches!(self, Self::Acknowledge);
        let mut changed = 0;
        for portion in portions(events) {
            let sql = format!(
                "UPDATE deliveries SET {set} WHERE subscription_id = ? AND event_id IN ({}) AND due_at IS NOT NULL \
                 AND (? OR {LEASED})",
                marks(portion.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql))
                .bind(due_at)
                .bind(tx.now.millis())
                .bind(subscription.uuid());
            for event in portion {
                query = query.bind(event.uuid());
            }
            let query = query.bind(any).bind(tx.now.millis());
            changed += query
                .execute(&mut tx.connection)
                .await
                .map_err(failed)?
                .rows_affected();
        }
        Ok(changed)
    }
}

async fn act(tx: &mut Tx, source: PullSource, asked: Vec<EventId>, act: Act) -> Result<Vec<Settled>> {
    let subscription = source.subscription;
    let firsts = resolve(&mut tx.connection, source.organization, &asked).await?;
    let mut events: Vec<EventId> = firsts.values().copied().collect();
    events.sort_unstable();
    events.dedup();
    if !matches!(
        refusal(tx, source).await?,
        Some(Pulled::NotFound | Pulled::Pushed)
    ) {
        let changed = act.on(tx, subscription, &events).await?;
        if changed > 0 && matches!(act, Act::Change(LeaseChange::Release { .. })) {
            tx.announce(Change::Lane(subscription));
        }
    }
    let settled = settled(tx, subscription, &events).await?;
    let of = |id: &EventId| firsts.get(id).and_then(|event| settled.get(event).copied());
    Ok(asked
        .iter()
        .map(|id| of(id).unwrap_or(Settled::NotFound))
        .collect())
}

/// How the deliveries of these events are.
async fn settled(
    tx: &mut Tx,
    subscription: SubscriptionId,
    events: &[EventId],
) -> Result<HashMap<EventId, Settled>> {
    let mut settled = HashMap::with_capacity(events.len());
    for portion in portions(events) {
        let sql = format!(
            "SELECT d.event_id, d.state, d.updated_at, s.enabled, s.deleted_at IS NOT NULL, iif({LEASED}, d.due_at, NULL) \
             FROM deliveries d JOIN subscriptions s ON s.id = d.subscription_id \
             WHERE d.subscription_id = ? AND d.event_id IN ({})",
            marks(portion.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql))
            .bind(tx.now.millis())
            .bind(subscription.uuid());
        for event in portion {
            query = query.bind(event.uuid());
        }
        for row in query.fetch_all(&mut tx.connection).await.map_err(failed)? {
            let event = row.id(0)?;
            let lease_until = row.time_if_any(5)?;
            let status = DeliveryStatus::of(
                parse_state(row.value(1)?)?,
                lease_until.is_some(),
                condition(row.value(4)?, row.value(3)?),
            );
            let delivery = Settled::Delivery {
                event,
                status,
                updated_at: row.time(2)?,
                lease_until: lease_until.filter(|_| status.is_open()),
            };
            settled.insert(event, delivery);
        }
    }
    Ok(settled)
}

#[async_trait]
impl Pulls for Engine {
    async fn pull(&self, source: PullSource, most: u32, lease: Duration) -> Result<Pulled> {
        self.writer
            .run(move |tx| Box::pin(pull(tx, source, most, lease)))
            .await
    }

    async fn acknowledge_pulled(&self, source: PullSource, events: &[EventId]) -> Result<Vec<Settled>> {
        let events = events.to_vec();
        self.writer
            .run(move |tx| Box::pin(act(tx, source, events, Act::Acknowledge)))
            .await
    }

    async fn change_leases(
        &self,
        source: PullSource,
        events: &[EventId],
        change: LeaseChange,
    ) -> Result<Vec<Settled>> {
        let events = events.to_vec();
        self.writer
            .run(move |tx| Box::pin(act(tx, source, events, Act::Change(change))))
            .await
    }

    async fn tell_awaited(&self, subscription: SubscriptionId) -> Result<()> {
        // Heard in this process alone: there is nothing to commit before it is said.
        let _: Result<_, _> = self.changes.send(Change::Awaited(subscription));
        Ok(())
    }
}
