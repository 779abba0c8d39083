//! Searching events: a bounded number is looked at by index, without reading a payload.

use sqlx::{
    postgres::{PgConnection, PgRow},
    query,
};
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use super::{
    CALL, Engine, Result, Session, Statement, classify, partitions,
    records::{begin, commit, events_of, within_deliveries},
    rows::Columns,
    status::rank,
    within,
};
use crate::{
    EventStatus, OrganizationId, Timestamp,
    store::{
        EventQuery, EventRecord, Page, PageRequest,
        browse::{self, CLOCKS_APART, Seen},
    },
};

/// All events. `$1` organization, `$2` before which seq, `$3` and `$4` ids that bound the days, `$5` how many, `$6` whether their status is
/// asked for.
const ALL: &str = concat!(
    "SELECT e.id, e.seq, e.type, e.received_at, octet_length(e.payload) AS bytes, ",
    rank!("$6"),
    " FROM events e
     WHERE e.organization_id = $1 AND ($2::bigint IS NULL OR e.seq < $2) AND e.id >= $3 AND e.id < $4
     ORDER BY e.seq DESC LIMIT $5"
);

/// Events with deliveries of which there is an index: of the same parameters.
macro_rules! with_deliveries {
    ($which:literal) => {
        concat!(
            "SELECT e.id, e.seq, e.type, e.received_at, octet_length(e.payload) AS bytes, ",
            rank!("$6"),
            " FROM (
                SELECT DISTINCT ON (w.seq) w.event_id AS id, w.seq FROM deliveries w
                WHERE w.organization_id = $1 AND ",
            $which,
            "     AND ($2::bigint IS NULL OR w.seq < $2) AND w.event_id >= $3 AND w.event_id < $4
                ORDER BY w.seq DESC LIMIT $5
             ) found
             CROSS JOIN LATERAL (SELECT * FROM events e WHERE e.id = found.id LIMIT 1) e
             ORDER BY found.seq DESC"
        )
    };
}
const OPEN: &str = with_deliveries!("w.due_at IS NOT NULL");
const DEAD: &str = with_deliveries!("w.state = 'dead_letter'");

impl Engine {
    pub(super) async fn browse_events(
        &self,
        organization: OrganizationId,
        wanted: &EventQuery,
        page: PageRequest<i64>,
    ) -> Result<Page<EventRecord, i64>> {
        // Boxed: it is large, and so would be all that waits for it.
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let read = read(session.connection(), organization, wanted, page).await;
            session.settle_read(read)
        }))
        .await
    }
}

async fn read(
    connection: &mut PgConnection,
    organization: OrganizationId,
    wanted: &EventQuery,
    page: PageRequest<i64>,
) -> Result<Page<EventRecord, i64>> {
    begin(connection).await?;
    let seen = look(organization, wanted, &page)
        .fetch_all(&mut *connection)
        .await
        .map_err(classify)?;
    let seen = seen.iter().map(self::seen).collect::<Result<Vec<_>>>()?;
    let shown = within_deliveries(connection, browse::page(wanted, seen, page.limit)).await?;
    let ids = shown.items.iter().map(|event| event.id).collect();
    let mut items = events_of(connection, organization, ids).await?;
    commit(connection).await?;
    items.reverse();
    Ok(Page {
        items,
        next: shown.next,
    })
}

fn look(organization: OrganizationId, wanted: &EventQuery, page: &PageRequest<i64>) -> Statement {
    let sql = match wanted.status {
        Some(EventStatus::Pending) => OPEN,
        Some(EventStatus::DeadLetter) => DEAD,
        _ => ALL,
    };
    let (first, last) = days(wanted);
    query(sql)
        .bind(organization.uuid())
        .bind(page.after)
        .bind(first)
        .bind(last)
        .bind(i64::try_from(wanted.look_at(page.limit)).unwrap_or(i64::MAX))
        .bind(wanted.status.is_some())
}

/// Bounds of the ids of the days that may hold what is wanted: whole days, so that no partition is looked at for nothing.
fn days(wanted: &EventQuery) -> (Uuid, Uuid) {
    let day = |at: Timestamp| OffsetDateTime::from(at).date();
    let first = wanted.since.map_or(Uuid::nil(), |at| {
        partitions::first_id(day(at.minus(CLOCKS_APART)))
    });
    let last = wanted
        .until
        .and_then(|at| day(at.plus(CLOCKS_APART)).next_day())
        .map_or(Uuid::max(), |next: Date| partitions::first_id(next));
    (first, last)
}

pub(super) fn seen(row: &PgRow) -> Result<Seen<Uuid>> {
    Ok(Seen {
        id: row.value("id")?,
        seq: row.value("seq")?,
        event_type: row.value("type")?,
        received_at: row.at("received_at")?,
        bytes: u64::try_from(row.value::<i32>("bytes")?).unwrap_or(0),
        rank: row.value("rank")?,
    })
}
