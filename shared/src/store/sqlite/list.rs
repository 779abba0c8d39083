//! Lists of events.
//!
//! First the numbers of the events that a page shows, by the index that fits the filter, then their sizes (which SQLite
//! knows without reading a payload), then those that fit. What is open is found by the index over open deliveries, however much is closed; what failed or was acknowledged by one over
//! those few; everything else by walking an organization's events. Where a filter may leave out much of what is found, a page looks
//! at so many and no more.

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
        EventFilter, EventRecord, Order, Page, PageRequest, Passed, Result,
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
        let pending = |status: &EventStatus| *status == EventStatus::Pending;
        match &filter.statuses[..] {
            [] => Self::Events,
            statuses if statuses.iter().all(pending) => Self::Open,
            statuses if statuses.iter().all(ended) => Self::Ended,
            _ => Self::Events,
        }
    }
}

/// Adds what finds a part's events, as columns `seq` and `id`, in order: so many, where `window` says so.
fn push_found(
    query: &mut QueryBuilder<Sqlite>,
    organization: OrganizationId,
    filter: &EventFilter,
    part: &Part,
    window: Option<u64>,
) {
    let way = Way::of(filter);
    query.push(match way {
        Way::Open => {
            "SELECT d.seq, d.event_id AS id FROM deliveries d INDEXED BY deliveries_open \
             CROSS JOIN subscriptions s ON s.id = d.subscription_id \
             WHERE d.due_at IS NOT NULL AND s.deleted_at IS NULL AND d.organization_id = "
        }
        Way::Ended => {
            "SELECT d.seq, d.event_id AS id FROM deliveries d INDEXED BY deliveries_ended \
             WHERE d.state IN ('dead_letter', 'expired', 'acknowledged') AND d.organization_id = "
        }
        Way::Events => {
            "SELECT d.seq, d.id FROM events d INDEXED BY events_by_organization WHERE d.organization_id = "
        }
    });
    query.push_bind(organization.uuid());
    let (sign, direction) = match part.order {
        Order::OldestFirst => (">", "ASC"),
        Order::NewestFirst => ("<", "DESC"),
    };
    if let Some(after) = part.after {
        query.push(format_args!(" AND d.seq {sign} ")).push_bind(after);
    }
    if !matches!(way, Way::Events) {
        query.push(" GROUP BY d.seq");
    }
    query.push(format_args!(" ORDER BY d.seq {direction}"));
    if let Some(window) = window {
        query.push(" LIMIT ").push_bind(whole(window));
    }
}

/// Adds the statement that finds the numbers of a part's events, as column `seq`.
fn push_seqs(
    query: &mut QueryBuilder<Sqlite>,
    organization: OrganizationId,
    filter: &EventFilter,
    part: &Part,
    window: Option<u64>,
) {
    if window.is_some() {
        query.push("SELECT f.seq FROM (");
        push_found(query, organization, filter, part, window);
        query.push(") f WHERE true");
        push_filter(query, filter);
        let direction = match part.order {
            Order::OldestFirst => "ASC",
            Order::NewestFirst => "DESC",
        };
        query.push(format_args!(" ORDER BY f.seq {direction}"));
    } else {
        push_found(query, organization, filter, part, None);
    }
    query.push(" LIMIT ").push_bind(whole(part.limit));
    query.push(" OFFSET ").push_bind(whole(part.offset));
}

/// Adds what leaves out of the events `f` those that the filter does not show, as [`EventFilter::shows`] says it.
fn push_filter(query: &mut QueryBuilder<Sqlite>, filter: &EventFilter) {
    let rank = RANK.replace("{event}", "f.id");
    if let Some(event_type) = &filter.event_type {
        query.push(" AND (SELECT e.type FROM events e WHERE e.seq = f.seq) = ");
        query.push_bind(event_type.clone());
    }
    if !filter.statuses.is_empty() {
        query.push(format_args!(" AND {rank} IN ("));
        let mut ranks = query.separated(", ");
        for status in &filter.statuses {
            ranks.push_bind(i64::from(*status as u8));
        }
        query.push(")");
    }
    if let Some(wanted) = filter.failed {
        query
            .push(format_args!(
                " AND (NOT {rank} = 0 OR EXISTS (SELECT 1 FROM deliveries f2 \
                 JOIN subscriptions u ON u.id = f2.subscription_id \
                 WHERE f2.event_id = f.id AND f2.state = 'retrying' AND u.deleted_at IS NULL) = "
            ))
            .push_bind(wanted)
            .push(")");
    }
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The last event that was looked at for a part, if there may be more.
async fn last_looked_at(
    connection: &mut SqliteConnection,
    organization: OrganizationId,
    filter: &EventFilter,
    part: &Part,
    window: u64,
) -> Result<Option<i64>> {
    let last = match part.order {
        Order::OldestFirst => "max",
        Order::NewestFirst => "min",
    };
    let mut query = QueryBuilder::new(format!("SELECT count(*), {last}(seq) FROM ("));
    push_found(&mut query, organization, filter, part, Some(window));
    query.push(")");
    let row = query.build().fetch_one(connection).await.map_err(failed)?;
    if row.number::<u64>(0)? < window {
        return Ok(None);
    }
    row.value(1)
}

/// The numbers of a part's events, in its order, and the last that was looked at for it, if there may be more.
async fn find(
    connection: &mut SqliteConnection,
    organization: OrganizationId,
    filter: &EventFilter,
    part: &Part,
) -> Result<(Vec<i64>, Option<i64>)> {
    let window = filter.window(0);
    let mut query = QueryBuilder::new("");
    push_seqs(&mut query, organization, filter, part, window);
    let rows = query.build().fetch_all(&mut *connection).await.map_err(failed)?;
    let found: Result<Vec<i64>> = rows.iter().map(|row| row.value(0)).collect();
    let last = match window {
        Some(window) => last_looked_at(connection, organization, filter, part, window).await?,
        None => None,
    };
    Ok((found?, last))
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

/// The beginning of a page whose events have no more deliveries than one page may show.
pub(super) async fn within_deliveries(
    connection: &mut SqliteConnection,
    page: Page<Shown<()>, i64>,
) -> Result<Page<Shown<()>, i64>> {
    let seqs: Vec<i64> = page.items.iter().map(|event| event.seq).collect();
    let mut deliveries: HashMap<i64, u64> = HashMap::with_capacity(seqs.len());
    for portion in portions(&seqs) {
        let sql = format!(
            "SELECT e.seq, (SELECT count(*) FROM deliveries d WHERE d.event_id = e.id) FROM events e \
             WHERE e.seq IN ({})",
            marks(portion.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for seq in portion {
            query = query.bind(seq);
        }
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            deliveries.insert(row.value(0)?, row.number(1)?);
        }
    }
    let of = |event: &Shown<()>| deliveries.get(&event.seq).copied().unwrap_or(0);
    Ok(page::within_deliveries(page, of))
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
        let (found, last) = find(&mut snapshot, organization, filter, &part).await?;
        let shown = page::page_of(sized(&mut snapshot, &found).await?, page.limit, last);
        let shown = within_deliveries(&mut snapshot, shown).await?;
        let seqs: Vec<i64> = shown.items.iter().map(|event| event.seq).collect();
        Ok(Page {
            items: records(&mut snapshot, &seqs, Log::Last, Timestamp::now()).await?,
            next: shown.next,
        })
    }

    pub(super) async fn pass_over_events(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        after: Option<i64>,
        count: u64,
    ) -> Result<Passed> {
        let part = Part {
            order,
            after,
            limit: count,
            offset: 0,
        };
        let mut snapshot = self.readers.begin().await.map_err(failed)?;
        let (found, last) = find(&mut snapshot, organization, filter, &part).await?;
        let passed = found.into_iter().map(|seq| Shown {
            id: (),
            seq,
            bytes: 0,
        });
        Ok(Passed::of(&passed.collect::<Vec<_>>(), count, last))
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
        push_seqs(&mut query, organization, filter, &part, filter.window(most));
        query
            .push(")")
            .build()
            .fetch_one(&self.readers)
            .await
            .map_err(failed)?
            .number(0)
    }
}
