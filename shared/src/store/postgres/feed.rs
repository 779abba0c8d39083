//! Events as they come.

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};
use uuid::Uuid;

use super::{Engine, Result, lists::SETTLED_BELOW, organizations::uuids, rows::Columns};
use crate::{
    EventId, EventPattern, OrganizationId,
    store::{
        Feed, FeedEvent, FeedPage,
        browse::{MAX_LOOKED_AT, fits},
        feed::{FEED_BYTES, PAGE_EVENTS},
        page::{self, Shown},
    },
};

const NEWEST: &str = "
    SELECT asked.id, newest.seq FROM unnest($1::uuid[]) AS asked (id)
    CROSS JOIN LATERAL (
        SELECT e.seq FROM events e WHERE e.organization_id = asked.id AND e.seq <= $2 ORDER BY e.seq DESC LIMIT 1
    ) newest";

/// The next to look at, without their payloads.
const NEXT: &str = "
    SELECT id, seq, type, octet_length(payload) AS bytes FROM events
    WHERE organization_id = $1 AND seq > $2 AND seq <= $3 ORDER BY seq LIMIT $4";

const EVENTS: &str = "
    SELECT e.id, e.seq, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload, e.erased_at
    FROM unnest((SELECT $1::uuid[])) AS asked (id)
    JOIN events e ON e.id = asked.id AND e.id BETWEEN $2 AND $3
    ORDER BY e.seq";

#[async_trait]
impl Feed for Engine {
    async fn settled(&self) -> Result<i64> {
        let below: i64 = self.one(query(SETTLED_BELOW)).await?.value("seq")?;
        Ok(below - 1)
    }

    async fn newest(
        &self,
        organizations: &[OrganizationId],
        settled: i64,
    ) -> Result<Vec<(OrganizationId, i64)>> {
        let statement = query(NEWEST).bind(uuids(organizations)).bind(settled);
        let rows = self.rows(statement).await?;
        rows.iter()
            .map(|row| Ok((row.id("id")?, row.value("seq")?)))
            .collect()
    }

    async fn follow(
        &self,
        organization: OrganizationId,
        wanted: Option<&EventPattern>,
        after: i64,
        up_to: i64,
    ) -> Result<FeedPage> {
        let statement = query(NEXT)
            .bind(organization.uuid())
            .bind(after)
            .bind(up_to)
            .bind(i64::try_from(MAX_LOOKED_AT).unwrap_or(i64::MAX));
        let rows = self.rows(statement).await?;
        let looked_up_to = match rows.last() {
            Some(last) if rows.len() >= MAX_LOOKED_AT => last.value("seq")?,
            _ => up_to,
        };
        let mut found = Vec::new();
        for row in &rows {
            if fits(wanted, row.value("type")?) {
                found.push(shown(row)?);
            }
        }
        let page = page::page_within(found, PAGE_EVENTS, FEED_BYTES);
        let ids: Vec<Uuid> = page.items.iter().map(|event| event.id).collect();
        let events = match (ids.iter().min().copied(), ids.iter().max().copied()) {
            (Some(first), Some(last)) => {
                let statement = query(EVENTS).bind(ids).bind(first).bind(last);
                let rows = self.rows(statement).await?;
                rows.iter().map(event).collect::<Result<_>>()?
            }
            _ => Vec::new(),
        };
        Ok(FeedPage {
            events,
            up_to: page.next.unwrap_or(looked_up_to),
        })
    }

    async fn place(&self, organization: OrganizationId, id: EventId) -> Result<Option<i64>> {
        Ok(self.resolve(organization, id).await?.map(|(_, seq)| seq))
    }
}

fn shown(row: &PgRow) -> Result<Shown<Uuid>> {
    Ok(Shown {
        id: row.value("id")?,
        seq: row.value("seq")?,
        bytes: u64::try_from(row.value::<i32>("bytes")?).unwrap_or(0),
    })
}

fn event(row: &PgRow) -> Result<FeedEvent> {
    Ok(FeedEvent {
        id: row.id("id")?,
        seq: row.value("seq")?,
        event_type: row.value("type")?,
        dedup_id: row.value("dedup_id")?,
        source: row.value("source")?,
        occurred_at: row.optional_at("occurred_at")?,
        received_at: row.at("received_at")?,
        payload: row.value("payload")?,
        erased_at: row.optional_at("erased_at")?,
    })
}
