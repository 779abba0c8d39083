//! Schema, partitions, retention, health.
//!
//! Upkeep has a connection of its own, which is closed after each round: its advisory lock ends with it, however the
//! round ends.

use std::{borrow::Cow, time::Duration};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions, Connection, Row, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgConnection},
    query,
};
use time::OffsetDateTime;
use tokio::sync::broadcast;

use super::{
    Engine, Result, StoreError, classify, expiry, own_retention, partitions, removals, rows::Columns, within,
};
use crate::{
    audit::{self, Action},
    seal::Sealed,
    store::{COUNTED_FOR, Change, Keeper, LIMITS_KEPT, PING_TIMEOUT, Retention, USAGE_KEPT},
};

const MIGRATE: Duration = Duration::from_mins(2);
const KEEP: Duration = Duration::from_mins(10);
/// How many rows a step of upkeep changes.
pub(super) const STEP: i64 = 1_000;
/// How many, where each may be a large frame.
pub(super) const FRAMES_STEP: i64 = 100;
/// How long what expired can still be seen.
pub(super) const SEEN_EXPIRED: Duration = Duration::from_hours(24);

/// Whoever keeps holds this advisory lock.
const KEEPING: i64 = 0x7472_6967_0002;

/// Each with its number and name.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (
        1,
        "schema",
        include_str!("../../../../migrations/postgres/0001_schema.sql"),
    ),
    (
        2,
        "secret check",
        include_str!("../../../../migrations/postgres/0002_secret_check.sql"),
    ),
    (
        3,
        "set aside",
        include_str!("../../../../migrations/postgres/0003_set_aside.sql"),
    ),
    (
        4,
        "order and rate",
        include_str!("../../../../migrations/postgres/0004_order_and_rate.sql"),
    ),
    (
        5,
        "signing",
        include_str!("../../../../migrations/postgres/0005_signing.sql"),
    ),
    (
        6,
        "replays",
        include_str!("../../../../migrations/postgres/0006_replays.sql"),
    ),
    (
        7,
        "announcements",
        include_str!("../../../../migrations/postgres/0007_announcements.sql"),
    ),
    (
        8,
        "seeing",
        include_str!("../../../../migrations/postgres/0008_seeing.sql"),
    ),
    (
        9,
        "push",
        include_str!("../../../../migrations/postgres/0009_push.sql"),
    ),
    (
        12,
        "keys",
        include_str!("../../../../migrations/postgres/0012_keys.sql"),
    ),
    (
        13,
        "limits",
        include_str!("../../../../migrations/postgres/0013_limits.sql"),
    ),
    (
        14,
        "erasures",
        include_str!("../../../../migrations/postgres/0014_erasures.sql"),
    ),
    (
        15,
        "organizations",
        include_str!("../../../../migrations/postgres/0015_organizations.sql"),
    ),
    (
        16,
        "filters",
        include_str!("../../../../migrations/postgres/0016_filters.sql"),
    ),
    (
        17,
        "audit_log",
        include_str!("../../../../migrations/postgres/0017_audit_log.sql"),
    ),
    (
        18,
        "pauses",
        include_str!("../../../../migrations/postgres/0018_pauses.sql"),
    ),
    (
        23,
        "parked",
        include_str!("../../../../migrations/postgres/0023_parked.sql"),
    ),
    (
        24,
        "order",
        include_str!("../../../../migrations/postgres/0024_order.sql"),
    ),
    (
        25,
        "begets",
        include_str!("../../../../migrations/postgres/0025_begets.sql"),
    ),
    (
        26,
        "limit_debits",
        include_str!("../../../../migrations/postgres/0026_limit_debits.sql"),
    ),
    (
        27,
        "replay_ways",
        include_str!("../../../../migrations/postgres/0027_replay_ways.sql"),
    ),
];

fn migrator() -> Migrator {
    let migrations = MIGRATIONS.iter().map(|&(version, name, text)| {
        let name = Cow::Borrowed(name);
        Migration::new(version, name, MigrationType::Simple, text.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // In a rolling deploy a newer version has migrated already, and this one starts once more.
    migrator.set_ignore_missing(true);
    migrator
}

/// On the server that the database was on all along there is nothing to do. On another, transaction ids begin anew: the
/// offset lets the order of intake go on from where it was.
const CONTINUE_ORDER: &str = "
    UPDATE intake_order SET
        system_identifier = here.system_identifier,
        xid_offset = greatest(xid_offset, (SELECT coalesce(max(seq) >> 18, 0) FROM events) + 1
            - pg_current_xact_id()::text::bigint)
    FROM pg_control_system() here
    WHERE intake_order.system_identifier <> here.system_identifier";

const FORGET_KEYS: &str = "
    WITH expired AS (
        SELECT organization_id, key FROM dedup_keys WHERE expires_at <= now() ORDER BY expires_at LIMIT $1
        FOR UPDATE SKIP LOCKED
    ), forgotten AS (
        DELETE FROM dedup_keys k
        USING unnest((SELECT array_agg(organization_id) FROM expired), (SELECT array_agg(key) FROM expired))
            AS e (organization_id, key)
        WHERE k.organization_id = e.organization_id AND k.key = e.key AND k.expires_at <= now()
        RETURNING 1
    )
    SELECT count(*) AS changed FROM forgotten";

/// `$1` is a time.
const FORGET_SET_ASIDE: &str = "
    WITH old AS (
        SELECT id FROM set_aside WHERE at < $1 ORDER BY at, id LIMIT $2
        FOR UPDATE SKIP LOCKED
    ), forgotten AS (
        DELETE FROM set_aside s USING unnest((SELECT array_agg(id) FROM old)) AS o (id)
        WHERE s.id = o.id AND s.at < $1
        RETURNING 1
    )
    SELECT count(*) AS changed FROM forgotten";

/// `$1` is a time. Of what goes, the last success and failure stay with the subscription.
const FORGET_MINUTES: &str = "
    WITH old AS (
        SELECT subscription_id, counter, number FROM attempt_minutes WHERE at < $1 ORDER BY at LIMIT $2
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM attempt_minutes m
        USING unnest((SELECT array_agg(subscription_id) FROM old), (SELECT array_agg(counter) FROM old),
                     (SELECT array_agg(number) FROM old)) AS o (subscription_id, counter, number)
        WHERE m.subscription_id = o.subscription_id AND m.counter = o.counter AND m.number = o.number
        RETURNING m.subscription_id, m.last_success_at, m.last_failure_at
    ), kept AS (
        UPDATE subscriptions s SET
            last_success_at = greatest(s.last_success_at, g.success),
            last_failure_at = greatest(s.last_failure_at, g.failure)
        FROM (SELECT subscription_id, max(last_success_at) AS success, max(last_failure_at) AS failure
              FROM gone GROUP BY subscription_id) g
        WHERE s.id = g.subscription_id
    )
    SELECT count(*) AS changed FROM gone";

/// `$1` is an id: they go with the events that they lead to.
const FORGET_FORMER_IDS: &str = "
    WITH old AS (
        SELECT organization_id, id FROM former_ids WHERE event_id < $1 ORDER BY event_id LIMIT $2
        FOR UPDATE SKIP LOCKED
    ), forgotten AS (
        DELETE FROM former_ids f
        USING unnest((SELECT array_agg(organization_id) FROM old), (SELECT array_agg(id) FROM old))
            AS o (organization_id, id)
        WHERE f.organization_id = o.organization_id AND f.id = o.id
        RETURNING 1
    )
    SELECT count(*) AS changed FROM forgotten";

/// What no node tells of any more; `$1` is a time. A bucket is forgotten as late as words are: what it refilled while the store was
/// away is owed to those who come back.
const FORGET_LIMITS: [&str; 3] = [
    "DELETE FROM limit_buckets WHERE organization_id = ANY (ARRAY(
        SELECT organization_id FROM limit_buckets WHERE full_at < $1 FOR UPDATE SKIP LOCKED))",
    "DELETE FROM limit_shares WHERE (organization_id, counter) IN (
        SELECT organization_id, counter FROM limit_shares WHERE at < $1
        FOR UPDATE SKIP LOCKED)",
    "DELETE FROM limit_nodes WHERE node = ANY (ARRAY(
        SELECT node FROM limit_nodes WHERE seen_at < $1 FOR UPDATE SKIP LOCKED))",
];

/// `$1` is an hour.
const FORGET_USAGE: &str = "
    WITH old AS (
        SELECT organization_id, hour, node FROM usage_hours WHERE hour < $1 ORDER BY hour LIMIT $2
        FOR UPDATE SKIP LOCKED
    ), forgotten AS (
        DELETE FROM usage_hours u
        USING unnest((SELECT array_agg(organization_id) FROM old), (SELECT array_agg(hour) FROM old),
                     (SELECT array_agg(node) FROM old)) AS o (organization_id, hour, node)
        WHERE u.organization_id = o.organization_id AND u.hour = o.hour AND u.node = o.node
        RETURNING 1
    )
    SELECT count(*) AS changed FROM forgotten";

/// A deleted subscription is looked at until it has no open deliveries, a minute after its end at the soonest: an
/// intake that did not see it deleted is over by then.
const CANCEL_DELETED: &str = "
    WITH gone AS MATERIALIZED (
        SELECT id, deleted_at FROM subscriptions WHERE deleted_at IS NOT NULL AND swept_at IS NULL
        ORDER BY deleted_at LIMIT 100
    ), open AS MATERIALIZED (
        SELECT d.event_id, d.subscription_id FROM gone CROSS JOIN LATERAL (
            SELECT event_id, subscription_id FROM deliveries
            WHERE subscription_id = gone.id AND due_at IS NOT NULL LIMIT $1
            FOR UPDATE SKIP LOCKED
        ) d LIMIT $1
    ), cancelled AS (
        UPDATE deliveries d SET state = 'cancelled', due_at = NULL, lease_owner = NULL, updated_at = now()
        FROM unnest((SELECT array_agg(event_id) FROM open), (SELECT array_agg(subscription_id) FROM open))
            AS o (event_id, subscription_id)
        WHERE d.event_id = o.event_id AND d.subscription_id = o.subscription_id
        RETURNING 1
    ), swept AS (
        UPDATE subscriptions s SET swept_at = now() FROM gone
        WHERE s.id = gone.id AND gone.deleted_at < now() - interval '1 minute'
          AND (SELECT true FROM deliveries d WHERE d.subscription_id = gone.id AND d.due_at IS NOT NULL LIMIT 1) IS NULL
    )
    SELECT count(*) AS changed FROM cancelled";

#[async_trait]
impl Keeper for Engine {
    async fn migrate(&self) -> Result<()> {
        within(MIGRATE, async {
            let mut connection = upkeep(&self.connect).await?;
            // `run` is this for whatever a connection can be had from, which the compiler cannot see to be `Send` here.
            migrator()
                .run_direct(None, &mut connection, false)
                .await
                .map_err(migration)?;
            query(CONTINUE_ORDER)
                .execute(&mut connection)
                .await
                .map_err(classify)?;
            partitions::make_ahead(&mut connection).await.map_err(classify)?;
            connection.close().await.map_err(classify)
        })
        .await
    }

    async fn ping(&self) -> Result<()> {
        // A process that migrates beside its other work is not ready before all of its schema is there.
        let versions: Vec<i64> = migrator().iter().map(|migration| migration.version).collect();
        let most = i64::try_from(versions.len()).unwrap_or(i64::MAX);
        let look = query("SELECT count(*) AS done FROM _sqlx_migrations WHERE success AND version = ANY($1)");
        let done: i64 = within(PING_TIMEOUT, self.one(look.bind(versions)))
            .await?
            .value("done")?;
        if done == most {
            Ok(())
        } else {
            let error = format!("the schema has {done} of the {most} migrations of this version");
            Err(StoreError::Unavailable(sqlx::Error::Protocol(error)))
        }
    }

    async fn secret_check(&self, sealed: Sealed) -> Result<Sealed> {
        // Two statements: of a row that another start writes meanwhile, the first one's snapshot knows nothing.
        let insert = query("INSERT INTO secret_check (sealed) VALUES ($1) ON CONFLICT DO NOTHING");
        self.rows(insert.bind(sealed.0)).await?;
        self.one(query("SELECT sealed FROM secret_check"))
            .await?
            .value("sealed")
            .map(Sealed)
    }

    async fn kept_secret_check(&self) -> Result<Option<Sealed>> {
        let kept = self.row(query("SELECT sealed FROM secret_check")).await?;
        kept.map(|row| row.value("sealed").map(Sealed)).transpose()
    }

    async fn replace_secret_check(&self, before: &Sealed, after: Sealed) -> Result<bool> {
        let update = query("UPDATE secret_check SET sealed = $2 WHERE sealed = $1 RETURNING single");
        let update = update.bind(before.0.clone()).bind(after.0);
        let changed = audit::Change::of(None, Action::SecretKeyChanged, "deployment");
        Ok(self.audited_as(update, changed).await?.is_some())
    }

    async fn keep(&self, retention: Duration) -> Result<Retention> {
        within(KEEP, async {
            let mut connection = upkeep(&self.connect).await?;
            let kept = keep(&mut connection, retention).await;
            // Closed in order or not, the lock ends with it.
            let closed = connection.close().await.map_err(classify);
            let kept = kept?;
            closed.map(|()| kept)
        })
        .await
    }

    async fn cancel_deleted(&self) -> Result<bool> {
        let changed: i64 = self
            .one(query(CANCEL_DELETED).bind(STEP))
            .await?
            .value("changed")?;
        Ok(changed >= STEP)
    }

    fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn close(&self) {
        self.changes.close().await;
        self.pool.close().await;
        self.lean.close().await;
    }
}

/// A connection for statements that take their time.
pub(super) async fn upkeep(connect: &PgConnectOptions) -> Result<PgConnection> {
    let connect = connect
        .clone()
        .options([("statement_timeout", "60s"), ("lock_timeout", "30s")]);
    within(Duration::from_secs(5), async {
        connect.connect().await.map_err(classify)
    })
    .await
}

fn migration(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => classify(error),
        error => StoreError::Refused(sqlx::Error::Migrate(Box::new(error))),
    }
}

async fn keep(connection: &mut PgConnection, retention: Duration) -> Result<Retention> {
    let mine: bool = query("SELECT pg_try_advisory_lock($1) AS mine")
        .bind(KEEPING)
        .fetch_one(&mut *connection)
        .await
        .map_err(classify)?
        .value("mine")?;
    if !mine {
        return Ok(Retention::default());
    }
    partitions::make_ahead(&mut *connection).await.map_err(classify)?;
    // Nobody is shown them any more; that they go changes nothing that is in force.
    query(
        "UPDATE subscriptions SET former_secret = NULL, former_scheme = NULL, former_until = NULL
         WHERE former_until <= now()",
    )
    .execute(&mut *connection)
    .await
    .map_err(classify)?;
    let now: OffsetDateTime = query("SELECT now() AS now")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get("now"))
        .map_err(classify)?;
    let mut done = Retention::default();
    if let Some(before) = earlier(now, retention) {
        for day in partitions::days_before(&mut *connection, before)
            .await
            .map_err(classify)?
        {
            let Some(next) = day.next_day() else { continue };
            let (first, next) = (partitions::first_id(day), partitions::first_id(next));
            done.expired += expiry::expire(&mut *connection, first, next, None).await?;
        }
        loop {
            let statement = query(FORGET_SET_ASIDE).bind(before).bind(FRAMES_STEP);
            let changed = step(&mut *connection, statement).await?;
            done.set_aside_removed += u64::try_from(changed).unwrap_or(0);
            if changed < FRAMES_STEP {
                break;
            }
        }
    }
    if let Some(before) = earlier(now, retention.saturating_add(SEEN_EXPIRED)) {
        done.removed = partitions::drop_before(&mut *connection, before)
            .await
            .map_err(classify)?;
        let before = partitions::first_id_at(before);
        while step(&mut *connection, query(FORGET_FORMER_IDS).bind(before).bind(STEP)).await? == STEP {}
    }
    if let Some(before) = earlier(now, COUNTED_FOR) {
        while step(&mut *connection, query(FORGET_MINUTES).bind(before).bind(STEP)).await? == STEP {}
    }
    query("DELETE FROM open_circuits WHERE worker NOT IN (SELECT id FROM workers WHERE lease_until > now())")
        .execute(&mut *connection)
        .await
        .map_err(classify)?;
    own_retention::keep_for_shorter(connection, now, retention, &mut done).await?;
    removals::forget(connection).await?;
    while step(&mut *connection, query(FORGET_KEYS).bind(STEP)).await? == STEP {}
    for statement in FORGET_LIMITS {
        query(statement)
            .bind(earlier(now, LIMITS_KEPT))
            .execute(&mut *connection)
            .await
            .map_err(classify)?;
    }
    if let Some(before) = earlier(now, USAGE_KEPT) {
        let hour = before.unix_timestamp().div_euclid(3_600);
        while step(&mut *connection, query(FORGET_USAGE).bind(hour).bind(STEP)).await? == STEP {}
    }
    query("DELETE FROM erasures WHERE expires_at <= now()")
        .execute(&mut *connection)
        .await
        .map_err(classify)?;
    Ok(done)
}

/// `None` is before all time.
pub(super) fn earlier(now: OffsetDateTime, by: Duration) -> Option<OffsetDateTime> {
    now.checked_sub(time::Duration::try_from(by).ok()?)
}

pub(super) async fn step(connection: &mut PgConnection, statement: super::Statement) -> Result<i64> {
    statement
        .fetch_one(connection)
        .await
        .map_err(classify)?
        .value("changed")
}
