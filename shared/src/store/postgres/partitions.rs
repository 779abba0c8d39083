//! Partitions: a day of ids each, by the time that a version 7 UUID begins with.
//!
//! They are made ahead, and where a worker comes late to a day, on demand; each as a table of its own that is then attached; a constraint that says the same as the bounds
//! spares the scan for it. There is no default partition: an id that is older than
//! retention, or too far ahead, has no place, and is refused. They
//! leave by being detached concurrently, which stops no reader and no writer, and then dropped; what a crash leaves in
//! between, the next round ends.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row, query, raw_sql};
use time::{Date, OffsetDateTime, Time};
use uuid::Uuid;

/// How many days back from today there are partitions at first.
pub(super) const BACK: i64 = 2;
/// How many days ahead.
pub(super) const AHEAD: i64 = 3;

/// A partitioned table: what it is called, what it is partitioned by, and how its partitions are kept.
struct Partitioned {
    name: &'static str,
    key: &'static str,
    storage: &'static str,
}

/// In the order in which they are made. They are dropped in the opposite order: events last, so that no delivery is without
/// its event. Rows of deliveries change once, as a rule within moments: room on the page keeps the change near, and vacuum
/// comes by early. The others only grow.
const TABLES: [Partitioned; 4] = [
    Partitioned {
        name: "events",
        key: "id",
        storage: "autovacuum_vacuum_insert_scale_factor = 0.5",
    },
    Partitioned {
        name: "deliveries",
        key: "event_id",
        storage: "fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1",
    },
    Partitioned {
        name: "attempts",
        key: "event_id",
        storage: "autovacuum_vacuum_insert_scale_factor = 0.5",
    },
    Partitioned {
        name: "event_aliases",
        key: "id",
        storage: "autovacuum_vacuum_insert_scale_factor = 0.5",
    },
];

/// Whoever makes partitions holds this advisory lock meanwhile.
const MAKING: i64 = 0x7472_6967_0001;

fn day_start(day: Date) -> i128 {
    OffsetDateTime::new_utc(day, Time::MIDNIGHT).unix_timestamp_nanos() / 1_000_000
}

/// The least id of a day: its first millisecond, in the 48 bits that a version 7 UUID begins with, and zeros.
pub(super) fn first_id(day: Date) -> Uuid {
    from_millis(day_start(day))
}

/// The least id of a moment.
pub(super) fn first_id_at(at: OffsetDateTime) -> Uuid {
    from_millis(at.unix_timestamp_nanos() / 1_000_000)
}

fn from_millis(millis: i128) -> Uuid {
    let millis = u128::try_from(millis.clamp(0, (1 << 48) - 1)).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}

/// The least id of the millisecond that is so much earlier than the id's.
pub(super) fn earlier(id: Uuid, by: Duration) -> Uuid {
    let millis = i128::try_from(id.as_u128() >> 80).unwrap_or(0);
    from_millis(millis - i128::try_from(by.as_millis()).unwrap_or(i128::MAX))
}

fn partition_name(table: &str, day: Date) -> String {
    format!(
        "{table}_p{:04}{:02}{:02}",
        day.year(),
        u8::from(day.month()),
        day.day()
    )
}

fn day_of(partition: &str) -> Option<Date> {
    let digits = partition.rsplit_once("_p")?.1;
    if digits.len() != 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let month: u8 = digits[4..6].parse().ok()?;
    Date::from_calendar_date(
        digits[..4].parse().ok()?,
        month.try_into().ok()?,
        digits[6..].parse().ok()?,
    )
    .ok()
}

/// Today, by the server's clock.
pub(super) async fn today(connection: &mut PgConnection) -> Result<Date, sqlx::Error> {
    query("SELECT (now() AT TIME ZONE 'UTC')::date AS today")
        .fetch_one(connection)
        .await?
        .try_get("today")
}

/// Makes the partitions that are missing from [`BACK`] to [`AHEAD`]; further back only what already was. The connection must
/// be closed if this fails: it holds a lock then.
pub(super) async fn make_ahead(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let today = today(&mut *connection).await?;
    let days: Vec<Date> = (-BACK..=AHEAD)
        .filter_map(|days| today.checked_add(time::Duration::days(days)))
        .collect();
    make_all(connection, &days).await
}

/// Makes the partitions of these days that are missing. The connection must be closed if this fails: it holds a lock then.
pub(super) async fn make_all(connection: &mut PgConnection, days: &[Date]) -> Result<(), sqlx::Error> {
    // A statement of its own: within a transaction that had begun before, what others made would not be seen yet.
    query("SELECT pg_advisory_lock($1)")
        .bind(MAKING)
        .execute(&mut *connection)
        .await?;
    for day in days {
        for table in &TABLES {
            make(&mut *connection, table, *day).await?;
        }
    }
    query("SELECT pg_advisory_unlock($1)")
        .bind(MAKING)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

async fn make(connection: &mut PgConnection, table: &Partitioned, day: Date) -> Result<(), sqlx::Error> {
    let name = partition_name(table.name, day);
    let exists: bool = query("SELECT to_regclass($1) IS NOT NULL AS exists")
        .bind(name.clone())
        .fetch_one(&mut *connection)
        .await?
        .try_get("exists")?;
    let Some(next) = day.next_day().filter(|_| !exists) else {
        return Ok(());
    };
    let Partitioned {
        name: parent,
        key,
        storage,
    } = table;
    let (from, to) = (first_id(day), first_id(next));
    // One transaction, so that nothing is left half made.
    raw_sql(AssertSqlSafe(format!(
        "BEGIN;
         CREATE TABLE {name} (LIKE {parent} INCLUDING ALL) WITH ({storage});
         ALTER TABLE {name} ADD CONSTRAINT {name}_range CHECK ({key} >= '{from}' AND {key} < '{to}');
         ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}');
         ALTER TABLE {name} DROP CONSTRAINT {name}_range;
         COMMIT;"
    )))
    .execute(&mut *connection)
    .await?;
    Ok(())
}

/// A partition that is, or was, of a table.
struct Partition {
    parent: &'static str,
    name: String,
    /// Whether it still is, and whether detaching it was begun.
    attached: Option<bool>,
}

/// The days, oldest first, whose last moment is before `before`, of which there are partitions of deliveries.
pub(super) async fn days_before(
    connection: &mut PgConnection,
    before: OffsetDateTime,
) -> Result<Vec<Date>, sqlx::Error> {
    let mut days: Vec<Date> = partitions(connection, "deliveries")
        .await?
        .iter()
        .filter(|partition| partition.attached.is_some())
        .filter_map(|partition| day_of(&partition.name))
        .filter(|day| ended(*day, before))
        .collect();
    days.sort_unstable();
    Ok(days)
}

fn ended(day: Date, before: OffsetDateTime) -> bool {
    day.next_day()
        .is_some_and(|next| OffsetDateTime::new_utc(next, Time::MIDNIGHT) <= before)
}

/// Those that are detached by half first: as long as there is one, its table lets no other go.
async fn partitions(
    connection: &mut PgConnection,
    parent: &'static str,
) -> Result<Vec<Partition>, sqlx::Error> {
    query(
        "SELECT c.relname::text AS name, i.inhdetachpending AS detaching
         FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = to_regclass($1)
         WHERE c.relkind = 'r' AND c.relname ~ ('^' || $1 || '_p[0-9]{8}$')
           AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($1))
         ORDER BY i.inhdetachpending DESC NULLS LAST, c.relname",
    )
    .bind(parent)
    .fetch_all(connection)
    .await?
    .iter()
    .map(|row| {
        Ok(Partition {
            parent,
            name: row.try_get("name")?,
            attached: row.try_get("detaching")?,
        })
    })
    .collect()
}

/// Drops every partition whose day ended before `before`, and what an interrupted round left. Returns how many partitions
/// of events went.
pub(super) async fn drop_before(
    connection: &mut PgConnection,
    before: OffsetDateTime,
) -> Result<u64, sqlx::Error> {
    let mut dropped = 0;
    for table in TABLES.iter().rev() {
        for partition in partitions(&mut *connection, table.name).await? {
            let old = day_of(&partition.name).is_some_and(|day| ended(day, before));
            let leftover = partition.attached != Some(false);
            if !old && !leftover {
                continue;
            }
            remove(&mut *connection, &partition).await?;
            dropped += u64::from(table.name == "events");
        }
    }
    Ok(dropped)
}

async fn remove(connection: &mut PgConnection, partition: &Partition) -> Result<(), sqlx::Error> {
    let Partition {
        parent,
        name,
        attached,
    } = partition;
    let detach = match attached {
        Some(false) => Some("CONCURRENTLY"),
        Some(true) => Some("FINALIZE"),
        None => None,
    };
    if let Some(how) = detach {
        raw_sql(AssertSqlSafe(format!(
            "ALTER TABLE {parent} DETACH PARTITION {name} {how}"
        )))
        .execute(&mut *connection)
        .await?;
    }
    raw_sql(AssertSqlSafe(format!("DROP TABLE {name}")))
        .execute(&mut *connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_takes_the_ids_of_its_day() {
        let id = crate::EventId::new();
        let today = OffsetDateTime::from(id.created_at().expect("a version 7")).date();
        assert!(first_id(today) <= id.uuid());
        assert!(id.uuid() < first_id(today.next_day().expect("a next day")));
        assert!(earlier(id.uuid(), Duration::from_hours(24)) < first_id(today));
        assert_eq!(day_of(&partition_name("events", today)), Some(today));
        assert_eq!(day_of("events_p20269999"), None);
    }
}
