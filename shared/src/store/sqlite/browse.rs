//! Searching events: a bounded number is looked at by index, without reading a payload.

use sqlx::{AssertSqlSafe, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    Engine,
    events::{Log, records},
    list::{RANK, within_deliveries},
    row::{Columns as _, failed},
};
use crate::{
    EventStatus, OrganizationId, Timestamp,
    store::{
        EventQuery, EventRecord, Page, PageRequest, Result,
        browse::{self, CLOCKS_APART, Seen},
    },
};

/// How events are found: all of an organization, or by the deliveries of which there is an index.
fn found(status: Option<EventStatus>) -> &'static str {
    match status {
        Some(EventStatus::Pending) => {
            "SELECT DISTINCT seq FROM deliveries INDEXED BY deliveries_open WHERE due_at IS NOT NULL"
        }
        Some(EventStatus::DeadLetter | EventStatus::Expired | EventStatus::Acknowledged) => {
            "SELECT DISTINCT seq FROM deliveries INDEXED BY deliveries_ended \
             WHERE state IN ('dead_letter', 'expired', 'acknowledged')"
        }
        _ => "SELECT seq FROM events INDEXED BY events_by_organization WHERE true",
    }
}

impl Engine {
    pub(super) async fn browse_events(
        &self,
        organization: OrganizationId,
        wanted: &EventQuery,
        page: PageRequest<i64>,
    ) -> Result<Page<EventRecord, i64>> {
        let mut snapshot = self.readers.begin().await.map_err(failed)?;
        let seen = look(&mut snapshot, organization, wanted, &page).await?;
        let shown = browse::page(wanted, seen, page.limit);
        let shown = within_deliveries(&mut snapshot, shown).await?;
        let seqs: Vec<i64> = shown.items.iter().map(|event| event.seq).collect();
        Ok(Page {
            items: records(&mut snapshot, &seqs, Log::Last, Timestamp::now()).await?,
            next: shown.next,
        })
    }
}

async fn look(
    connection: &mut SqliteConnection,
    organization: OrganizationId,
    wanted: &EventQuery,
    page: &PageRequest<i64>,
) -> Result<Vec<Seen<()>>> {
    let mut before = page.after.unwrap_or(i64::MAX);
    if let Some(until) = wanted.until {
        before = before.min(after_all_before(connection, until.plus(CLOCKS_APART)).await?);
    }
    let since = match wanted.since {
        Some(since) => place_before(connection, since).await?,
        None => i64::MIN,
    };
    let rank = rank(wanted);
    let sql = format!(
        "SELECT e.seq, e.type, e.received_at, octet_length(e.payload), {rank} \
         FROM ({} AND organization_id = ? AND seq < ? AND seq > ? ORDER BY seq DESC LIMIT ?) f \
         CROSS JOIN events e ON e.seq = f.seq ORDER BY f.seq DESC",
        found(wanted.status)
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(organization.uuid())
        .bind(before)
        .bind(since)
        .bind(i64::try_from(wanted.look_at(page.limit)).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    rows.iter().map(seen).collect()
}

/// What tells the status of an event `e`, if it is asked for.
pub(super) fn rank(wanted: &EventQuery) -> String {
    match wanted.status {
        Some(_) => RANK.replace("{event}", "e.id"),
        None => "NULL".to_owned(),
    }
}

/// A place before every event that was accepted at that time or later.
pub(super) async fn place_before(connection: &mut SqliteConnection, since: Timestamp) -> Result<i64> {
    let long_before = since.minus(CLOCKS_APART).minus(CLOCKS_APART);
    Ok(after_all_before(connection, long_before).await? - 1)
}

/// The place after the last event whose id is of an earlier time.
async fn after_all_before(connection: &mut SqliteConnection, at: Timestamp) -> Result<i64> {
    let millis = u128::try_from(at.millis()).unwrap_or(0);
    let last: Option<i64> =
        sqlx::query_scalar("SELECT seq FROM events WHERE id < ? ORDER BY id DESC LIMIT 1")
            .bind(Uuid::from_u128(millis << 80))
            .fetch_optional(connection)
            .await
            .map_err(failed)?;
    Ok(last.map_or(0, |seq| seq + 1))
}

/// From a row of number, type, acceptance, size and [`rank`].
pub(super) fn seen(row: &SqliteRow) -> Result<Seen<()>> {
    Ok(Seen {
        id: (),
        seq: row.value(0)?,
        event_type: row.value(1)?,
        received_at: row.time(2)?,
        bytes: row.number(3)?,
        rank: row.value(4)?,
    })
}
