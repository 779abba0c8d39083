//! Opening deliveries again.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    Engine,
    many::{marks, portions},
    row::{Columns as _, corrupt, failed},
    writer::Tx,
};
use crate::{
    DeliveryKey, DeliveryState, EventId, EventPattern, OrganizationId, ReplayId, SubscriptionId, Timestamp,
    audit::{self, Action},
    store::{
        ActedOn, Candidates, Change, NewReplay, REPLAY_KEPT, Replay, ReplayStatus, ReplayStep, Replays,
        Result, Way, parse_state,
    },
};

/// What a delivery that is opened again becomes: now, now.
const OPENED: &str = "state = 'pending', due_at = ?, lease_owner = NULL, attempts_before = attempts, updated_at = ?, \
     started_at = NULL, duration_ms = NULL, status_code = NULL";

const REPLAY: &str = "r.id, r.organization_id, r.subscription_id, r.since, r.until, r.statuses, r.event_types, r.state, \
     r.after_seq, r.looked_at, r.opened, r.created_at, r.updated_at, \
     r.before_seq, r.walk, r.first_place, r.last_place, r.after_id";
/// How many columns these are.
const REPLAY_COLUMNS: usize = 18;

/// From a row of [`REPLAY`].
fn replay(row: &SqliteRow) -> Result<Replay> {
    let statuses: Vec<String> = serde_json::from_str(row.value(5)?).map_err(corrupt)?;
    let patterns: Vec<String> = serde_json::from_str(row.value(6)?).map_err(corrupt)?;
    let patterns = patterns.iter().map(|pattern| EventPattern::parse(pattern));
    let way = match row.value::<Option<&str>>(14)? {
        None => None,
        Some(walk) => Some(Way {
            walk: walk.parse().map_err(corrupt)?,
            first: row.value(15)?,
            last: row.value(16)?,
        }),
    };
    Ok(Replay {
        id: row.id(0)?,
        organization: row.id(1)?,
        subscription: row.id(2)?,
        since: row.time_if_any(3)?,
        until: row.time(4)?,
        statuses: statuses
            .iter()
            .map(|name| parse_state(name))
            .collect::<Result<_>>()?,
        event_types: patterns.collect::<Result<_, _>>().map_err(corrupt)?,
        status: row.value::<&str>(7)?.parse().map_err(corrupt)?,
        before_seq: row.value(13)?,
        way,
        after_seq: row.value(8)?,
        after_id: row.value::<Option<Uuid>>(17)?.map(EventId::from_uuid),
        looked_at: row.number(9)?,
        opened: row.number(10)?,
        created_at: row.time(11)?,
        updated_at: row.time(12)?,
    })
}

async fn retry(tx: &mut Tx, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn> {
    let of = "event_id = ? AND subscription_id = ? AND organization_id = ? AND EXISTS \
         (SELECT 1 FROM subscriptions s WHERE s.id = deliveries.subscription_id AND s.deleted_at IS NULL) AND EXISTS \
         (SELECT 1 FROM events e WHERE e.id = deliveries.event_id AND e.erased_at IS NULL)";
    for sql in [
        format!("UPDATE deliveries SET {OPENED} WHERE due_at IS NULL AND {of}"),
        format!(
            "UPDATE deliveries SET due_at = min(due_at, ?), updated_at = ? WHERE due_at IS NOT NULL AND {of}"
        ),
    ] {
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(tx.now.millis())
            .bind(tx.now.millis())
            .bind(delivery.event.uuid())
            .bind(delivery.subscription.uuid())
            .bind(organization.uuid())
            .execute(&mut tx.connection)
            .await
            .map_err(failed)?;
        if done.rows_affected() > 0 {
            let (event, subscription) = (delivery.event, delivery.subscription);
            tx.announce(Change::Subscription(subscription));
            let retried =
                audit::Change::of_delivery(organization, Action::DeliveryRetried, event, subscription);
            tx.audit(retried).await?;
            return Ok(ActedOn::Done);
        }
    }
    Ok(ActedOn::Refused)
}

async fn cancel(tx: &mut Tx, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn> {
    let held = sqlx::query(
        "SELECT 1 FROM deliveries WHERE event_id = ? AND subscription_id = ? AND organization_id = ? \
         AND due_at IS NOT NULL AND lease_owner IS NOT NULL",
    )
    .bind(delivery.event.uuid())
    .bind(delivery.subscription.uuid())
    .bind(organization.uuid())
    .fetch_optional(&mut tx.connection)
    .await
    .map_err(failed)?;
    if held.is_some() {
        tx.announce(Change::Cancelled(delivery));
    }
    let done = sqlx::query(
        "UPDATE deliveries SET state = 'cancelled', due_at = NULL, lease_owner = NULL, updated_at = ? \
         WHERE event_id = ? AND subscription_id = ? AND organization_id = ? AND due_at IS NOT NULL",
    )
    .bind(tx.now.millis())
    .bind(delivery.event.uuid())
    .bind(delivery.subscription.uuid())
    .bind(organization.uuid())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    if done.rows_affected() == 0 {
        return Ok(ActedOn::Refused);
    }
    let (event, subscription) = (delivery.event, delivery.subscription);
    let cancelled = audit::Change::of_delivery(organization, Action::DeliveryCancelled, event, subscription);
    tx.audit(cancelled).await?;
    Ok(ActedOn::Done)
}

async fn create(tx: &mut Tx, new: NewReplay, most: u32) -> Result<Option<Replay>> {
    sqlx::query("DELETE FROM replays WHERE state <> 'running' AND updated_at < ?")
        .bind(tx.now.minus(REPLAY_KEPT).millis())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    let running: i64 =
        sqlx::query_scalar("SELECT count(*) FROM replays WHERE organization_id = ? AND state = 'running'")
            .bind(new.organization.uuid())
            .fetch_one(&mut tx.connection)
            .await
            .map_err(failed)?;
    if running >= i64::from(most) {
        return Ok(None);
    }
    // There is one writer: what is there is there.
    let last: Option<i64> = sqlx::query_scalar("SELECT max(seq) FROM events")
        .fetch_one(&mut tx.connection)
        .await
        .map_err(failed)?;
    let before_seq = last.unwrap_or(0) + 1;
    let made = Replay {
        id: new.id,
        organization: new.organization,
        subscription: new.subscription,
        since: new.since,
        until: new.until.unwrap_or(tx.now),
        statuses: new.statuses,
        event_types: new.event_types,
        status: ReplayStatus::Running,
        before_seq: Some(before_seq),
        way: None,
        after_seq: 0,
        after_id: None,
        looked_at: 0,
        opened: 0,
        created_at: tx.now,
        updated_at: tx.now,
    };
    let statuses: Vec<&str> = made
        .statuses
        .iter()
        .map(|status| DeliveryState::as_str(*status))
        .collect();
    sqlx::query(
        "INSERT INTO replays (id, organization_id, subscription_id, since, until, statuses, event_types, state, \
         after_seq, looked_at, opened, created_at, updated_at, turn_at, before_seq) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(made.id.uuid())
    .bind(made.organization.uuid())
    .bind(made.subscription.uuid())
    .bind(made.since.map(Timestamp::millis))
    .bind(made.until.millis())
    .bind(serde_json::to_string(&statuses).map_err(corrupt)?)
    .bind(serde_json::to_string(&made.event_types).map_err(corrupt)?)
    .bind(made.status.as_str())
    .bind(0)
    .bind(0)
    .bind(0)
    .bind(tx.now.millis())
    .bind(tx.now.millis())
    .bind(tx.now.millis())
    .bind(before_seq)
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    let created = audit::Change::of(made.organization, Action::ReplayCreated, made.id);
    tx.audit(created.with_subscription(made.subscription)).await?;
    Ok(Some(made))
}

async fn cancel_replay(tx: &mut Tx, organization: OrganizationId, id: ReplayId) -> Result<bool> {
    let row = sqlx::query(
        "SELECT subscription_id FROM replays WHERE id = ? AND organization_id = ? AND state = 'running'",
    )
    .bind(id.uuid())
    .bind(organization.uuid())
    .fetch_optional(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(row) = row else {
        return Ok(false);
    };
    sqlx::query("UPDATE replays SET state = 'cancelled', updated_at = ? WHERE id = ?")
        .bind(tx.now.millis())
        .bind(id.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    let cancelled = audit::Change::of(organization, Action::ReplayCancelled, id);
    tx.audit(cancelled.with_subscription(row.id(0)?)).await?;
    Ok(true)
}

async fn begin(tx: &mut Tx, replay: Replay, way: Way) -> Result<Option<Replay>> {
    let begun = sqlx::query(
        "UPDATE replays SET walk = ?, first_place = ?, last_place = ?, turn_at = ? \
         WHERE id = ? AND state = 'running' AND walk IS NULL AND after_seq = ?",
    )
    .bind(way.walk.as_str())
    .bind(way.first)
    .bind(way.last)
    .bind(tx.now.millis())
    .bind(replay.id.uuid())
    .bind(replay.after_seq)
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    Ok((begun.rows_affected() > 0).then_some(Replay {
        way: Some(way),
        ..replay
    }))
}

async fn put_off(tx: &mut Tx, replay: ReplayId, by: Duration) -> Result<()> {
    sqlx::query("UPDATE replays SET turn_at = ? WHERE id = ? AND state = 'running'")
        .bind(tx.now.plus(by).millis())
        .bind(replay.uuid())
        .execute(&mut tx.connection)
        .await
        .map(drop)
        .map_err(failed)
}

async fn step(tx: &mut Tx, replay: Replay, step: ReplayStep) -> Result<Option<u64>> {
    let status = if step.done {
        ReplayStatus::Done
    } else {
        ReplayStatus::Running
    };
    let moved = sqlx::query(
        "UPDATE replays SET after_seq = ?, after_id = ?, looked_at = looked_at + ?, state = ?, updated_at = ?, turn_at = ? \
         WHERE id = ? AND state = 'running' AND after_seq = ? AND after_id IS ?",
    )
    .bind(step.after_seq)
    .bind(step.after_id.map(EventId::uuid))
    .bind(i64::try_from(step.looked_at).unwrap_or(i64::MAX))
    .bind(status.as_str())
    .bind(tx.now.millis())
    .bind(tx.now.millis())
    .bind(replay.id.uuid())
    .bind(replay.after_seq)
    .bind(replay.after_id.map(EventId::uuid))
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    if moved.rows_affected() == 0 {
        return Ok(None);
    }
    let wanted = marks(replay.statuses.len());
    let mut opened = 0;
    for portion in portions(&step.events) {
        let sql = format!(
            "UPDATE deliveries SET {OPENED} WHERE due_at IS NULL AND subscription_id = ? AND state IN ({wanted}) \
             AND event_id IN ({}) AND EXISTS (SELECT 1 FROM subscriptions s \
             WHERE s.id = deliveries.subscription_id AND s.deleted_at IS NULL) AND EXISTS (SELECT 1 FROM events e \
             WHERE e.id = deliveries.event_id AND e.erased_at IS NULL)",
            marks(portion.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql))
            .bind(tx.now.millis())
            .bind(tx.now.millis())
            .bind(replay.subscription.uuid());
        for status in &replay.statuses {
            query = query.bind(status.as_str());
        }
        for event in portion {
            query = query.bind(event.uuid());
        }
        opened += query
            .execute(&mut tx.connection)
            .await
            .map_err(failed)?
            .rows_affected();
    }
    sqlx::query("UPDATE replays SET opened = opened + ? WHERE id = ?")
        .bind(i64::try_from(opened).unwrap_or(i64::MAX))
        .bind(replay.id.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    if opened > 0 {
        tx.announce(Change::Subscription(replay.subscription));
    }
    Ok(Some(opened))
}

#[async_trait]
impl Replays for Engine {
    async fn retry(&self, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn> {
        self.writer
            .run(move |tx| Box::pin(retry(tx, organization, delivery)))
            .await
    }

    async fn cancel(&self, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn> {
        self.writer
            .run(move |tx| Box::pin(cancel(tx, organization, delivery)))
            .await
    }

    async fn create_replay(&self, replay: NewReplay, most: u32) -> Result<Option<Replay>> {
        self.writer
            .run(move |tx| Box::pin(create(tx, replay, most)))
            .await
    }

    async fn get_replay(&self, organization: OrganizationId, id: ReplayId) -> Result<Option<Replay>> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {REPLAY} FROM replays r WHERE r.id = ? AND r.organization_id = ?"
        )))
        .bind(id.uuid())
        .bind(organization.uuid())
        .fetch_optional(&self.readers)
        .await
        .map_err(failed)?
        .as_ref()
        .map(replay)
        .transpose()
    }

    async fn list_replays(
        &self,
        organization: OrganizationId,
        subscription: SubscriptionId,
        limit: u32,
    ) -> Result<Vec<Replay>> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {REPLAY} FROM replays r WHERE r.subscription_id = ? AND r.organization_id = ? \
             ORDER BY r.id DESC LIMIT ?"
        )))
        .bind(subscription.uuid())
        .bind(organization.uuid())
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?
        .iter()
        .map(replay)
        .collect()
    }

    async fn cancel_replay(&self, organization: OrganizationId, id: ReplayId) -> Result<bool> {
        self.writer
            .run(move |tx| Box::pin(cancel_replay(tx, organization, id)))
            .await
    }

    async fn running_replays(&self, limit: u32) -> Result<Vec<(Replay, bool)>> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {REPLAY}, EXISTS (SELECT 1 FROM subscriptions s \
             WHERE s.id = r.subscription_id AND s.deleted_at IS NULL) \
             FROM replays r WHERE r.state = 'running' AND r.turn_at <= ? ORDER BY r.turn_at LIMIT ?"
        )))
        .bind(Timestamp::now().millis())
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?
        .iter()
        .map(|row| Ok((replay(row)?, row.value(REPLAY_COLUMNS)?)))
        .collect()
    }

    async fn begin_replay(&self, replay: &Replay) -> Result<Option<Replay>> {
        let way = self.way_of_replay(replay).await?;
        let replay = replay.clone();
        self.writer.run(move |tx| Box::pin(begin(tx, replay, way))).await
    }

    async fn replay_candidates(&self, replay: &Replay, limit: u32) -> Result<Candidates> {
        let way = replay
            .way
            .ok_or_else(|| corrupt("a replay that has not begun looks for events"))?;
        self.next_of_replay(replay, way, limit).await
    }

    async fn put_off_replay(&self, replay: &Replay, by: Duration) -> Result<()> {
        let id = replay.id;
        self.writer.run(move |tx| Box::pin(put_off(tx, id, by))).await
    }

    async fn replay_step(&self, replay: &Replay, wanted: &ReplayStep) -> Result<Option<u64>> {
        let (replay, wanted) = (replay.clone(), wanted.clone());
        self.writer
            .run(move |tx| Box::pin(step(tx, replay, wanted)))
            .await
    }
}
