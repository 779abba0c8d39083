//! Events as they come. There is one writer: whatever is committed is settled.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, sqlite::SqliteRow};

use super::{
    Engine,
    browse::{place_before, rank, seen},
    events::resolve,
    many::{marks, portions},
    row::{Columns as _, failed},
};
use crate::{
    EventId, OrganizationId, Timestamp,
    store::{EventQuery, Feed, FeedEvent, FeedPage, Result, browse::MAX_LOOKED_AT, feed},
};

#[async_trait]
impl Feed for Engine {
    async fn settled(&self) -> Result<i64> {
        sqlx::query_scalar("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)")
            .fetch_one(&self.readers)
            .await
            .map_err(failed)
    }

    async fn newest(
        &self,
        organizations: &[OrganizationId],
        settled: i64,
    ) -> Result<Vec<(OrganizationId, i64)>> {
        let mut found = Vec::with_capacity(organizations.len());
        for organization in organizations {
            let newest: Option<i64> =
                sqlx::query_scalar("SELECT max(seq) FROM events WHERE organization_id = ? AND seq <= ?")
                    .bind(organization.uuid())
                    .bind(settled)
                    .fetch_one(&self.readers)
                    .await
                    .map_err(failed)?;
            found.extend(newest.map(|seq| (*organization, seq)));
        }
        Ok(found)
    }

    async fn follow(
        &self,
        organization: OrganizationId,
        wanted: &EventQuery,
        after: i64,
        up_to: i64,
    ) -> Result<FeedPage> {
        let mut snapshot = self.readers.begin().await.map_err(failed)?;
        let sql = format!(
            "SELECT e.seq, e.type, e.received_at, octet_length(e.payload), {} \
             FROM events e INDEXED BY events_by_organization \
             WHERE e.organization_id = ? AND e.seq > ? AND e.seq <= ? ORDER BY e.seq LIMIT ?",
            rank(wanted)
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(organization.uuid())
            .bind(after)
            .bind(up_to)
            .bind(i64::try_from(MAX_LOOKED_AT).unwrap_or(i64::MAX))
            .fetch_all(&mut *snapshot)
            .await
            .map_err(failed)?;
        let seen = rows.iter().map(seen).collect::<Result<Vec<_>>>()?;
        let page = feed::page(wanted, seen, up_to);
        let seqs: Vec<i64> = page.items.iter().map(|event| event.seq).collect();
        let mut events = Vec::with_capacity(seqs.len());
        for portion in portions(&seqs) {
            let sql = format!(
                "SELECT seq, id, type, dedup_id, source, occurred_at, received_at, payload, erased_at FROM events \
                 WHERE seq IN ({}) ORDER BY seq",
                marks(portion.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for seq in portion {
                query = query.bind(seq);
            }
            for row in query.fetch_all(&mut *snapshot).await.map_err(failed)? {
                events.push(event(&row)?);
            }
        }
        Ok(FeedPage {
            events,
            up_to: page.next.unwrap_or(up_to),
        })
    }

    async fn place(&self, organization: OrganizationId, id: EventId) -> Result<Option<i64>> {
        let mut snapshot = self.readers.begin().await.map_err(failed)?;
        let Some(event) = resolve(&mut snapshot, organization, &[id]).await?.remove(&id) else {
            return Ok(None);
        };
        sqlx::query_scalar("SELECT seq FROM events WHERE id = ?")
            .bind(event.uuid())
            .fetch_optional(&mut *snapshot)
            .await
            .map_err(failed)
    }

    async fn place_before(&self, _: OrganizationId, since: Timestamp) -> Result<i64> {
        let mut snapshot = self.readers.begin().await.map_err(failed)?;
        place_before(&mut snapshot, since).await
    }
}

fn event(row: &SqliteRow) -> Result<FeedEvent> {
    Ok(FeedEvent {
        seq: row.value(0)?,
        id: row.id(1)?,
        event_type: row.value(2)?,
        dedup_id: row.value(3)?,
        source: row.value(4)?,
        occurred_at: row.time_if_any(5)?,
        received_at: row.time(6)?,
        payload: row.value(7)?,
        erased_at: row.time_if_any(8)?,
    })
}
