//! Opening deliveries again.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};
use time::OffsetDateTime;

use super::{Engine, Result, lists::SETTLED_BELOW, organizations::uuids, rows::Columns};
use crate::{
    DeliveryKey, DeliveryState, EventId, EventPattern, OrganizationId, ReplayId, SubscriptionId,
    audit::{Action, Change},
    store::{
        ActedOn, Candidates, NewReplay, REPLAY_KEPT, Replay, ReplayStep, Replays, StoreError, Way,
        parse_state,
    },
};

/// What a delivery `d` that is opened again becomes, of a subscription `s`.
macro_rules! opened {
    () => {
        "state = 'pending', due_at = now(), lease_owner = NULL, attempts_before = d.attempts, updated_at = now(),
         started_at = NULL, duration_ms = NULL, status_code = NULL"
    };
}

/// What is erased stays closed. The event's row is held, so that an erasure comes before or after, and not in between.
const RETRY_CLOSED: &str = concat!(
    "WITH kept AS MATERIALIZED (
        SELECT id FROM events WHERE id = $1 AND organization_id = $3 AND erased_at IS NULL FOR SHARE
     ), opened AS (UPDATE deliveries d SET ",
    opened!(),
    " FROM subscriptions s, kept
     WHERE d.event_id = $1 AND d.subscription_id = $2 AND d.organization_id = $3 AND d.due_at IS NULL
       AND s.id = $2 AND s.deleted_at IS NULL
     RETURNING d.subscription_id)
     SELECT pg_notify('triggers_changes', 's:' || subscription_id) FROM opened"
);

const RETRY_OPEN: &str = "
    WITH sooner AS (
        UPDATE deliveries d SET due_at = least(due_at, now()), updated_at = now()
        FROM subscriptions s
        WHERE d.event_id = $1 AND d.subscription_id = $2 AND d.organization_id = $3 AND d.due_at IS NOT NULL
          AND s.id = $2 AND s.deleted_at IS NULL
        RETURNING d.subscription_id)
    SELECT pg_notify('triggers_changes', 's:' || subscription_id) FROM sooner";

/// It keeps the name of its owner, who is told by notice.
const CANCEL: &str = "
    WITH cancelled AS (
        UPDATE deliveries SET state = 'cancelled', due_at = NULL, updated_at = now()
        WHERE event_id = $1 AND subscription_id = $2 AND organization_id = $3 AND due_at IS NOT NULL
        RETURNING event_id, subscription_id, lease_owner
    )
    SELECT (SELECT pg_notify('triggers_changes', 'd:' || event_id || '/' || subscription_id)
            WHERE lease_owner = ANY (ARRAY(SELECT id FROM workers WHERE lease_until > now())))
    FROM cancelled";

/// What is stored by transactions that have no id yet comes at or after `before_seq` (see the table `intake_order`).
const CREATE: &str = "
    INSERT INTO replays (id, organization_id, subscription_id, since, until, statuses, event_types, state, before_seq)
    SELECT $1, $2, $3, $4, coalesce($5, now()), $6, $7, 'running',
        (SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + xid_offset) << 18 FROM intake_order)
    WHERE (SELECT count(*) FROM replays WHERE organization_id = $2 AND state = 'running') < $8
    RETURNING *";

const STEP: &str = concat!(
    "WITH job AS (
        SELECT r.id, r.subscription_id, r.statuses FROM replays r
        WHERE r.id = $1 AND r.state = 'running' AND r.after_seq = $2 AND r.after_id IS NOT DISTINCT FROM $9 FOR UPDATE
    ), kept AS MATERIALIZED (
        SELECT e.id FROM unnest((SELECT $6::uuid[])) AS asked (id)
        JOIN events e ON e.id = asked.id AND e.id BETWEEN $7 AND $8
        WHERE e.erased_at IS NULL ORDER BY e.id FOR SHARE OF e
    ), opened AS (
        UPDATE deliveries d SET ",
    opened!(),
    "   FROM job, subscriptions s, kept e
        WHERE s.id = job.subscription_id AND s.deleted_at IS NULL
          AND d.event_id = e.id AND d.event_id BETWEEN $7 AND $8 AND d.subscription_id = job.subscription_id
          AND d.due_at IS NULL AND d.state = ANY (job.statuses)
        RETURNING d.event_id
    )
    UPDATE replays r SET after_seq = $3, after_id = $10, looked_at = looked_at + $4, opened = opened + (SELECT count(*) FROM opened),
        state = CASE WHEN $5 THEN 'done' ELSE 'running' END, updated_at = now(), turn_at = now()
    FROM job WHERE r.id = job.id
    RETURNING (SELECT count(*) FROM opened) AS opened,
        (SELECT pg_notify('triggers_changes', 's:' || job.subscription_id) WHERE EXISTS (SELECT FROM opened))"
);

/// Whoever is first says it; so of all the workers one way is gone.
const BEGIN: &str = "
    UPDATE replays SET walk = $2, first_place = $3, last_place = $4, before_seq = $5, turn_at = now()
    WHERE id = $1 AND state = 'running' AND walk IS NULL AND after_seq = $6
    RETURNING *";

fn replay(row: &PgRow) -> Result<Replay> {
    let corrupt = |what: &str| StoreError::Corrupt(format!("a replay holds {what:?}"));
    let statuses: Vec<String> = row.value("statuses")?;
    let patterns: Vec<String> = row.value("event_types")?;
    Ok(Replay {
        id: row.id("id")?,
        organization: row.id("organization_id")?,
        subscription: row.id("subscription_id")?,
        since: row.optional_at("since")?,
        until: row.at("until")?,
        statuses: statuses
            .iter()
            .map(|name| parse_state(name))
            .collect::<Result<_>>()?,
        event_types: patterns
            .iter()
            .map(|pattern| EventPattern::parse(pattern).map_err(|_| corrupt(pattern)))
            .collect::<Result<_>>()?,
        status: row.parsed("state")?,
        before_seq: row.value("before_seq")?,
        way: way(row)?,
        after_seq: row.value("after_seq")?,
        after_id: row.optional_id("after_id")?,
        looked_at: row.number("looked_at")?,
        opened: row.number("opened")?,
        created_at: row.at("created_at")?,
        updated_at: row.at("updated_at")?,
    })
}

fn way(row: &PgRow) -> Result<Option<Way>> {
    if row.value::<Option<&str>>("walk")?.is_none() {
        return Ok(None);
    }
    Ok(Some(Way {
        walk: row.parsed("walk")?,
        first: row.value("first_place")?,
        last: row.value("last_place")?,
    }))
}

#[async_trait]
impl Replays for Engine {
    async fn retry(&self, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn> {
        for sql in [RETRY_CLOSED, RETRY_OPEN] {
            let retried = Change::of_delivery(
                organization,
                Action::DeliveryRetried,
                delivery.event,
                delivery.subscription,
            );
            let statement = of_delivery(sql, organization, delivery);
            if self.audited_as(statement, retried).await?.is_some() {
                return Ok(ActedOn::Done);
            }
        }
        Ok(ActedOn::Refused)
    }

    async fn cancel(&self, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn> {
        let cancelled = Change::of_delivery(
            organization,
            Action::DeliveryCancelled,
            delivery.event,
            delivery.subscription,
        );
        let statement = of_delivery(CANCEL, organization, delivery);
        Ok(match self.audited_as(statement, cancelled).await? {
            Some(_) => ActedOn::Done,
            None => ActedOn::Refused,
        })
    }

    async fn create_replay(&self, new: NewReplay, most: u32) -> Result<Option<Replay>> {
        let forget =
            "DELETE FROM replays WHERE state <> 'running' AND updated_at < now() - make_interval(secs => $1)";
        self.rows(query(forget).bind(super::rows::seconds(REPLAY_KEPT)))
            .await?;
        let statuses = new
            .statuses
            .iter()
            .map(|status| DeliveryState::as_str(*status).to_owned());
        let patterns = new.event_types.iter().map(|pattern| pattern.as_str().to_owned());
        let statement = query(CREATE)
            .bind(new.id.uuid())
            .bind(new.organization.uuid())
            .bind(new.subscription.uuid())
            .bind(new.since.map(OffsetDateTime::from))
            .bind(new.until.map(OffsetDateTime::from))
            .bind(statuses.collect::<Vec<_>>())
            .bind(patterns.collect::<Vec<_>>())
            .bind(i64::from(most));
        let created =
            Change::of(new.organization, Action::ReplayCreated, new.id).with_subscription(new.subscription);
        let made = self.audited_as(statement, created).await?;
        made.as_ref().map(replay).transpose()
    }

    async fn get_replay(&self, organization: OrganizationId, id: ReplayId) -> Result<Option<Replay>> {
        let statement = query("SELECT * FROM replays WHERE id = $1 AND organization_id = $2");
        let statement = statement.bind(id.uuid()).bind(organization.uuid());
        self.row(statement).await?.as_ref().map(replay).transpose()
    }

    async fn list_replays(
        &self,
        organization: OrganizationId,
        subscription: SubscriptionId,
        limit: u32,
    ) -> Result<Vec<Replay>> {
        let statement = query(
            "SELECT * FROM replays WHERE subscription_id = $1 AND organization_id = $2 ORDER BY id DESC LIMIT $3",
        )
        .bind(subscription.uuid())
        .bind(organization.uuid())
        .bind(i64::from(limit));
        self.rows(statement).await?.iter().map(replay).collect()
    }

    async fn cancel_replay(&self, organization: OrganizationId, id: ReplayId) -> Result<bool> {
        let statement = query(
            "UPDATE replays SET state = 'cancelled', updated_at = now()
             WHERE id = $1 AND organization_id = $2 AND state = 'running' RETURNING subscription_id",
        );
        let statement = statement.bind(id.uuid()).bind(organization.uuid());
        let cancelled = self
            .audited(statement, |row| {
                let change = Change::of(organization, Action::ReplayCancelled, id);
                Ok(vec![change.with_subscription(row.id("subscription_id")?)])
            })
            .await?;
        Ok(cancelled.is_some())
    }

    async fn running_replays(&self, limit: u32) -> Result<Vec<(Replay, bool)>> {
        let statement = query(
            "SELECT r.*, s.id IS NOT NULL AS is_there FROM replays r
             LEFT JOIN subscriptions s ON s.id = r.subscription_id AND s.deleted_at IS NULL
             WHERE r.state = 'running' AND r.turn_at <= now() ORDER BY r.turn_at LIMIT $1",
        );
        let rows = self.rows(statement.bind(i64::from(limit))).await?;
        rows.iter()
            .map(|row| Ok((replay(row)?, row.value("is_there")?)))
            .collect()
    }

    async fn begin_replay(&self, replay: &Replay) -> Result<Option<Replay>> {
        let settled: i64 = self.one(query(SETTLED_BELOW)).await?.value("seq")?;
        let before_seq = replay.before_seq.unwrap_or(settled);
        if settled < before_seq {
            return Ok(None);
        }
        let way = self.way_of_replay(replay, before_seq).await?;
        let statement = query(BEGIN)
            .bind(replay.id.uuid())
            .bind(way.walk.as_str())
            .bind(way.first)
            .bind(way.last)
            .bind(before_seq)
            .bind(replay.after_seq);
        self.row(statement).await?.as_ref().map(self::replay).transpose()
    }

    async fn replay_candidates(&self, replay: &Replay, limit: u32) -> Result<Candidates> {
        let way = replay
            .way
            .ok_or_else(|| StoreError::Corrupt("a replay that has not begun looks for events".to_owned()))?;
        self.next_of_replay(replay, way, limit).await
    }

    async fn put_off_replay(&self, replay: &Replay, by: Duration) -> Result<()> {
        let statement = query(
            "UPDATE replays SET turn_at = now() + make_interval(secs => $2) WHERE id = $1 AND state = 'running'",
        );
        let statement = statement.bind(replay.id.uuid()).bind(super::rows::seconds(by));
        self.rows(statement).await.map(drop)
    }

    async fn replay_step(&self, replay: &Replay, step: &ReplayStep) -> Result<Option<u64>> {
        let mut events = step.events.clone();
        events.sort_unstable();
        let statement = query(STEP)
            .bind(replay.id.uuid())
            .bind(replay.after_seq)
            .bind(step.after_seq)
            .bind(i64::try_from(step.looked_at).unwrap_or(i64::MAX))
            .bind(step.done)
            .bind(uuids(&events))
            .bind(events.first().map(|id| id.uuid()))
            .bind(events.last().map(|id| id.uuid()))
            .bind(replay.after_id.map(EventId::uuid))
            .bind(step.after_id.map(EventId::uuid));
        let stepped = self.row(statement).await?;
        stepped.as_ref().map(|row| row.number("opened")).transpose()
    }
}

fn of_delivery(sql: &'static str, organization: OrganizationId, delivery: DeliveryKey) -> super::Statement {
    query(sql)
        .bind(delivery.event.uuid())
        .bind(delivery.subscription.uuid())
        .bind(organization.uuid())
}
