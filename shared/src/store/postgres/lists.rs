//! Which events a list shows: its statements. They answer with ids and sizes (which are known without reading a payload
//! out of line): what of it is one page is read then.
//!
//! Events that are `pending` are found by the partial index over open deliveries alone; other statuses by walking the
//! organization's events in order.

use sqlx::query;

use super::Statement;
use crate::{
    EventStatus, OrganizationId,
    store::{EventFilter, Order},
};

/// Below which seq nothing is still to be committed: that of the oldest intake under way. To be asked before the snapshot
/// is taken that is read by.
///
/// An intake locks `events` before it has a transaction id. So one that was not seen here to be under way is committed by
/// the time of that snapshot, or has an id that was not given out yet at the start of this statement. Other transactions
/// on the server, which may be open for hours, hold nobody up.
pub(super) const SETTLED_BELOW: &str = "
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

const PENDING_OLDEST: &str = pending!("e.id, e.seq, octet_length(e.payload) AS bytes", oldest);
const PENDING_NEWEST: &str = pending!("e.id, e.seq, octet_length(e.payload) AS bytes", newest);
const WALKED_OLDEST: &str = walked!("e.id, e.seq, octet_length(e.payload) AS bytes", oldest);
const WALKED_NEWEST: &str = walked!("e.id, e.seq, octet_length(e.payload) AS bytes", newest);
const PENDING_COUNT: &str = concat!(
    "SELECT count(*) AS count FROM (",
    pending!("1", newest),
    ") shown"
);
const WALKED_COUNT: &str = concat!("SELECT count(*) AS count FROM (", walked!("1", newest), ") shown");

fn pending_alone(filter: &EventFilter) -> bool {
    !filter.statuses.is_empty()
        && filter
            .statuses
            .iter()
            .all(|status| *status == EventStatus::Pending)
}

/// Which part of a list is asked for.
pub(super) struct Part {
    pub(super) after: Option<i64>,
    pub(super) limit: i64,
    pub(super) offset: u64,
    /// What [`SETTLED_BELOW`] said, if the list is to end there.
    pub(super) settled_below: Option<i64>,
}

pub(super) fn list(
    organization: OrganizationId,
    filter: &EventFilter,
    order: Order,
    part: &Part,
) -> Statement {
    let sql = match (pending_alone(filter), order) {
        (true, Order::OldestFirst) => PENDING_OLDEST,
        (true, Order::NewestFirst) => PENDING_NEWEST,
        (false, Order::OldestFirst) => WALKED_OLDEST,
        (false, Order::NewestFirst) => WALKED_NEWEST,
    };
    bind(sql, organization, filter, part)
}

/// Counts what a list would show, no further than `most`.
pub(super) fn count(organization: OrganizationId, filter: &EventFilter, most: u64) -> Statement {
    let sql = if pending_alone(filter) {
        PENDING_COUNT
    } else {
        WALKED_COUNT
    };
    let limit = i64::try_from(most).unwrap_or(i64::MAX);
    bind(
        sql,
        organization,
        filter,
        &Part {
            after: None,
            limit,
            offset: 0,
            settled_below: None,
        },
    )
}

fn bind(sql: &'static str, organization: OrganizationId, filter: &EventFilter, part: &Part) -> Statement {
    let statement = query(sql)
        .bind(organization.uuid())
        .bind(part.after)
        .bind(filter.event_type.clone())
        .bind(filter.failed)
        .bind(part.limit)
        .bind(i64::try_from(part.offset).unwrap_or(i64::MAX))
        .bind(part.settled_below);
    if pending_alone(filter) {
        statement
    } else {
        let statuses: Vec<i32> = filter.statuses.iter().map(|status| *status as i32).collect();
        statement.bind((!statuses.is_empty()).then_some(statuses))
    }
}
