//! Lists of events.
//!
//! First the numbers of the events that a page shows, by the index that fits the filter, then their sizes (which SQLite
//! knows without reading a payload), then those that fit. What is open is found by the index over open deliveries, however much is closed; what failed or was acknowledged by one over
//! those few; everything else by walking an organization's events.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, QueryBuilder, Sqlite, SqliteConnection};

use super::{
    Engine,
    events::{Log, records},
    many::{marks, portions},
    row::{Columns as _, failed},
};
use crate::{
    EventStatus, OrganizationId, Timestamp,
    store::{
        EventFilter, EventRecord, Order, Page, PageRequest, Result,
        page::{self, Shown},
    },
};

/// An event's status as [`EventStatus`] orders them; `{event}` is its id.
pub(super) const RANK: &str = "coalesce((SELECT min(CASE WHEN o.due_at IS NOT NULL THEN iif(t.deleted_at IS NULL, 0, 5) \
     ELSE CASE o.state WHEN 'dead_letter' THEN 1 WHEN 'expired' THEN 2 WHEN 'delivered' THEN 3 \
     WHEN 'acknowledged' THEN 4 ELSE 5 END END) \
     FROM deliveries o JOIN subscriptions t ON t.id = o.subscription_id WHERE o.event_id = {event}), 0)";

/// Which part of a list is asked for.
struct Part {
    order: Order,
    after: Option<i64>,
    limit: u64,
    offset: u64,
}

/// How the events of a filter are found.
enum Way {
    /// By their open deliveries.
    Open,
    /// By their deliveries that ended otherwise than planned.
    Ended,
    /// All of the organization's.
    Events,
}

impl Way {
    fn of(filter: &EventFilter) -> Self {
        let ended = |status: &EventStatus| {
            matches!(
                status,
                EventStatus::DeadLetter | EventStatus::Expired | EventStatus::Acknowledged
            )
        };
        match &filter.statuses[..] {
            [] => Self::Events,
            [EventStatus::Pending] => Self::Open,
            statuses if statuses.iter().all(ended) => Self::Ended,
            _ => Self::Events,
        }
    }
}

/// Adds the statement that finds the numbers of a part's events, as column `seq`.
fn push_seqs(
    query: &mut QueryBuilder<Sqlite>,
    organization: OrganizationId,
    filter: &EventFilter,
    part: &Part,
) {
    let way = Way::of(filter);
    let (from, seq, event) = match way {
        Way::Open => (
            "SELECT d.seq FROM deliveries d INDEXED BY deliveries_open \
             CROSS JOIN subscriptions s ON s.id = d.subscription_id \
             WHERE d.due_at IS NOT NULL AND s.deleted_at IS NULL AND d.organization_id = ",
            "d.seq",
            "d.event_id",
        ),
        Way::Ended => (
            "SELECT d.seq FROM deliveries d INDEXED BY deliveries_ended \
             WHERE d.state IN ('dead_letter', 'expired', 'acknowledged') AND d.organization_id = ",
            "d.seq",
            "d.event_id",
        ),
        Way::Events => (
            "SELECT e.seq FROM events e INDEXED BY events_by_organization WHERE e.organization_id = ",
            "e.seq",
            "e.id",
        ),
    };
    let rank = RANK.replace("{event}", event);

    query.push(from).push_bind(organization.uuid());
    if let Some(after) = part.after {
        let sign = if part.order == Order::OldestFirst {
            ">"
        } else {
            "<"
        };
        query.push(format_args!(" AND {seq} {sign} ")).push_bind(after);
    }
    if let Some(event_type) = &filter.event_type {
        match way {
            Way::Events => query.push(" AND e.type = "),
            Way::Open | Way::Ended => query.push(" AND (SELECT e.type FROM events e WHERE e.seq = d.seq) = "),
        };
        query.push_bind(event_type.clone());
    }
    if !filter.statuses.is_empty() && !matches!(way, Way::Open) {
        query.push(format_args!(" AND {rank} IN ("));
        let mut ranks = query.separated(", ");
        for status in &filter.statuses {
            ranks.push_bind(i64::from(*status as u8));
        }
        query.push(")");
    }
    if let Some(wanted) = filter.failed {
        let pending = match way {
            Way::Open => "true".to_owned(),
            Way::Ended | Way::Events => format!("{rank} = 0"),
        };
        query
            .push(format_args!(
                " AND (NOT {pending} OR EXISTS (SELECT 1 FROM deliveries f \
                 JOIN subscriptions u ON u.id = f.subscription_id \
                 WHERE f.event_id = {event} AND f.state = 'retrying' AND u.deleted_at IS NULL) = "
            ))
            .push_bind(wanted)
            .push(")");
    }
    if !matches!(way, Way::Events) {
        query.push(" GROUP BY d.seq");
    }
    let direction = if part.order == Order::OldestFirst {
        "ASC"
    } else {
        "DESC"
    };
    query.push(format_args!(" ORDER BY {seq} {direction} LIMIT "));
    query.push_bind(i64::try_from(part.limit).unwrap_or(i64::MAX));
    query.push(" OFFSET ");
    query.push_bind(i64::try_from(part.offset).unwrap_or(i64::MAX));
}

/// The events with these numbers, in their order, with their sizes.
async fn sized(connection: &mut SqliteConnection, seqs: &[i64]) -> Result<Vec<Shown<()>>> {
    let mut sizes = HashMap::with_capacity(seqs.len());
    for portion in portions(seqs) {
        let marks = marks(portion.len());
        let sql = format!("SELECT seq, octet_length(payload) FROM events WHERE seq IN ({marks})");
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for seq in portion {
            query = query.bind(seq);
        }
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            sizes.insert(row.value::<i64>(0)?, row.number(1)?);
        }
    }
    let shown = |seq: &i64| {
        let bytes = *sizes.get(seq)?;
        Some(Shown {
            id: (),
            seq: *seq,
            bytes,
        })
    };
    Ok(seqs.iter().filter_map(shown).collect())
}

impl Engine {
    pub(super) async fn list_events(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        page: PageRequest<i64>,
        offset: u64,
    ) -> Result<Page<EventRecord, i64>> {
        let part = Part {
            order,
            after: page.after,
            limit: u64::from(page.limit) + 1,
            offset,
        };
        let mut snapshot = self.readers.begin().await.map_err(failed)?;
        let mut query = QueryBuilder::new("");
        push_seqs(&mut query, organization, filter, &part);
        let rows = query.build().fetch_all(&mut *snapshot).await.map_err(failed)?;
        let found = rows
            .iter()
            .map(|row| row.value(0))
            .collect::<Result<Vec<i64>>>()?;
        let shown = page::page(sized(&mut snapshot, &found).await?, page.limit);
        let seqs: Vec<i64> = shown.items.iter().map(|event| event.seq).collect();
        Ok(Page {
            items: records(&mut snapshot, &seqs, Log::Last, Timestamp::now()).await?,
            next: shown.next,
        })
    }

    pub(super) async fn count_events(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        most: u64,
    ) -> Result<u64> {
        let part = Part {
            order: Order::NewestFirst,
            after: None,
            limit: most,
            offset: 0,
        };
        let mut query = QueryBuilder::new("SELECT count(*) FROM (");
        push_seqs(&mut query, organization, filter, &part);
        query
            .push(")")
            .build()
            .fetch_one(&self.readers)
            .await
            .map_err(failed)?
            .number(0)
    }
}
