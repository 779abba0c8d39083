//! Which events a list shows: its statements. They answer with ids and sizes (which are known without reading a payload
//! out of line): what of it is one page is read then.
//!
//! Events that are `pending` are found by the partial index over open deliveries alone, dead letters by that over dead ones, other
//! statuses by walking the organization's events in order. Where a filter may leave out much of what is found, a page [looks
//! at](listed) so many and no more, and says how far that was.

use sqlx::query;

use super::{
    Statement,
    status::{deliveries_of, least},
};
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

/// `$1` organization, `$2` cursor, `$3` limit, `$4` offset, `$5` the end of what is settled; where there is a filter, `$6` type,
/// `$7` statuses, `$8` failed, `$9` how many are looked at.
macro_rules! place {
    ($seq:literal, oldest) => {
        concat!(
            "($2::bigint IS NULL OR ",
            $seq,
            " > $2) AND ($5::bigint IS NULL OR ",
            $seq,
            " < $5)"
        )
    };
    ($seq:literal, newest) => {
        concat!(
            "($2::bigint IS NULL OR ",
            $seq,
            " < $2) AND ($5::bigint IS NULL OR ",
            $seq,
            " < $5)"
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

/// Pending events, all of them: by the open deliveries, of which an event may have several. All on one level, so that the
/// planner knows of the limit and reads the index in order, no further than that.
macro_rules! pending {
    ($columns:literal, $order:tt) => {
        concat!(
            "SELECT DISTINCT ON (d.seq) ", $columns, " FROM deliveries d
            CROSS JOIN LATERAL (SELECT * FROM events e WHERE e.id = d.event_id LIMIT 1) e
            WHERE d.organization_id = $1 AND d.due_at IS NOT NULL AND ", place!("d.seq", $order), "
              AND (SELECT true FROM subscriptions s WHERE s.id = d.subscription_id AND s.deleted_at IS NULL)
            ORDER BY d.seq ", direction!($order), " LIMIT $3 OFFSET $4"
        )
    };
}

/// All events.
macro_rules! all {
    ($columns:literal, $order:tt) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM events e WHERE e.organization_id = $1 AND ",
            place!("e.seq", $order),
            "
            ORDER BY e.seq ",
            direction!($order),
            " LIMIT $3 OFFSET $4"
        )
    };
}

/// What is looked at of all events.
macro_rules! of_events {
    ($order:tt) => {
        concat!(
            "SELECT e.id, e.seq, e.type, octet_length(e.payload) AS bytes FROM events e
             WHERE e.organization_id = $1 AND ",
            place!("e.seq", $order),
            "
             ORDER BY e.seq ",
            direction!($order),
            " LIMIT $9"
        )
    };
}

/// What is looked at of events with deliveries of which there is an index.
macro_rules! with_deliveries {
    ($which:literal, $order:tt) => {
        concat!(
            "SELECT e.id, found.seq, e.type, octet_length(e.payload) AS bytes FROM (
                SELECT DISTINCT ON (w.seq) w.event_id AS id, w.seq FROM deliveries w
                WHERE w.organization_id = $1 AND ",
            $which,
            " AND ",
            place!("w.seq", $order),
            "
                ORDER BY w.seq ",
            direction!($order),
            " LIMIT $9
             ) found
             CROSS JOIN LATERAL (SELECT * FROM events e WHERE e.id = found.id LIMIT 1) e"
        )
    };
}

/// Those of the events that are looked at which the filter shows, as [`EventFilter::shows`] says it.
macro_rules! shown {
    ($looked:expr, $order:tt) => {
        concat!(
            "WITH looked AS MATERIALIZED (", $looked, "),
            shown AS (
                SELECT l.id, l.seq, l.bytes FROM looked l
                LEFT JOIN LATERAL (
                    SELECT ", least!(), " AS status,
                        coalesce(bool_or(d.due_at IS NOT NULL AND s.id IS NOT NULL AND d.state = 'retrying'), false) AS failed
                    FROM ", deliveries_of!("l.id"), "
                ) summary ON $7::integer[] IS NOT NULL OR $8::boolean IS NOT NULL
                WHERE ($6::text IS NULL OR l.type = $6)
                  AND ($7::integer[] IS NULL OR summary.status = ANY ($7))
                  AND ($8::boolean IS NULL OR summary.status <> 0 OR summary.failed = $8)
                ORDER BY l.seq ", direction!($order), " LIMIT $3 OFFSET $4
            ) "
        )
    };
}

/// Those that are shown, in no order; and in a row without an id, the last that was looked at and how many were.
macro_rules! listed {
    ($looked:expr, oldest) => {
        concat!(
            shown!($looked, oldest),
            "SELECT id, seq, bytes, NULL::bigint AS looked FROM shown
             UNION ALL SELECT NULL, max(seq), NULL, count(*) FROM looked"
        )
    };
    ($looked:expr, newest) => {
        concat!(
            shown!($looked, newest),
            "SELECT id, seq, bytes, NULL::bigint AS looked FROM shown
             UNION ALL SELECT NULL, min(seq), NULL, count(*) FROM looked"
        )
    };
}
macro_rules! counted {
    ($looked:expr) => {
        concat!(shown!($looked, newest), "SELECT count(*) AS count FROM shown")
    };
}

/// The statements of one way to find events.
struct Found {
    oldest: &'static str,
    newest: &'static str,
    count: &'static str,
}

const PENDING: Found = Found {
    oldest: pending!("e.id, e.seq, octet_length(e.payload) AS bytes", oldest),
    newest: pending!("e.id, e.seq, octet_length(e.payload) AS bytes", newest),
    count: concat!(
        "SELECT count(*) AS count FROM (",
        pending!("1", newest),
        ") shown"
    ),
};
const ALL: Found = Found {
    oldest: all!("e.id, e.seq, octet_length(e.payload) AS bytes", oldest),
    newest: all!("e.id, e.seq, octet_length(e.payload) AS bytes", newest),
    count: concat!("SELECT count(*) AS count FROM (", all!("1", newest), ") shown"),
};
const FILTERED: Found = Found {
    oldest: listed!(of_events!(oldest), oldest),
    newest: listed!(of_events!(newest), newest),
    count: counted!(of_events!(newest)),
};
const FILTERED_OPEN: Found = Found {
    oldest: listed!(with_deliveries!("w.due_at IS NOT NULL", oldest), oldest),
    newest: listed!(with_deliveries!("w.due_at IS NOT NULL", newest), newest),
    count: counted!(with_deliveries!("w.due_at IS NOT NULL", newest)),
};
const FILTERED_DEAD: Found = Found {
    oldest: listed!(with_deliveries!("w.state = 'dead_letter'", oldest), oldest),
    newest: listed!(with_deliveries!("w.state = 'dead_letter'", newest), newest),
    count: counted!(with_deliveries!("w.state = 'dead_letter'", newest)),
};

/// Which part of a list is asked for.
pub(super) struct Part {
    pub(super) after: Option<i64>,
    pub(super) limit: i64,
    pub(super) offset: u64,
    /// What [`SETTLED_BELOW`] said, if the list is to end there.
    pub(super) settled_below: Option<i64>,
}

/// A statement that gives a part of a list, and how many it looks at, where that is bounded: then it says, too, how far it came.
pub(super) struct Listed {
    pub(super) statement: Statement,
    pub(super) window: Option<u64>,
}

pub(super) fn list(organization: OrganizationId, filter: &EventFilter, order: Order, part: &Part) -> Listed {
    let found = found(filter);
    let sql = match order {
        Order::OldestFirst => found.oldest,
        Order::NewestFirst => found.newest,
    };
    let window = filter.window(0);
    Listed {
        statement: bind(sql, organization, filter, part, window),
        window,
    }
}

/// Counts what a list would show, no further than `most`; with a filter, of so many alone.
pub(super) fn count(organization: OrganizationId, filter: &EventFilter, most: u64) -> Statement {
    let part = Part {
        after: None,
        limit: i64::try_from(most).unwrap_or(i64::MAX),
        offset: 0,
        settled_below: None,
    };
    bind(
        found(filter).count,
        organization,
        filter,
        &part,
        filter.window(most),
    )
}

fn found(filter: &EventFilter) -> Found {
    match (filter.window(0), &filter.statuses[..]) {
        (None, []) => ALL,
        (None, _) => PENDING,
        (Some(_), [EventStatus::Pending]) => FILTERED_OPEN,
        (Some(_), [EventStatus::DeadLetter]) => FILTERED_DEAD,
        (Some(_), _) => FILTERED,
    }
}

fn bind(
    sql: &'static str,
    organization: OrganizationId,
    filter: &EventFilter,
    part: &Part,
    window: Option<u64>,
) -> Statement {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let statement = query(sql)
        .bind(organization.uuid())
        .bind(part.after)
        .bind(part.limit)
        .bind(number(part.offset))
        .bind(part.settled_below);
    let Some(window) = window else {
        return statement;
    };
    let statuses: Vec<i32> = filter.statuses.iter().map(|status| *status as i32).collect();
    statement
        .bind(filter.event_type.clone())
        .bind((!statuses.is_empty()).then_some(statuses))
        .bind(filter.failed)
        .bind(number(window))
}
