//! Events as they come.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Engine, Result, browse::seen, lists::SETTLED_BELOW, organizations::uuids, partitions, rows::Columns,
    status::rank,
};
use crate::{
    EventId, OrganizationId, Timestamp,
    store::{EventQuery, Feed, FeedEvent, FeedPage, browse::MAX_LOOKED_AT, feed},
};

/// Further than an id is older than the acceptance of its event: a front takes both from one clock, and one that is put back gets a
/// later id.
const OLDER: Duration = Duration::from_hours(24);

const NEWEST: &str = "
    SELECT asked.id, newest.seq FROM unnest($1::uuid[]) AS asked (id)
    CROSS JOIN LATERAL (
        SELECT e.seq FROM events e WHERE e.organization_id = asked.id AND e.seq <= $2 ORDER BY e.seq DESC LIMIT 1
    ) newest";

/// The next to look at, without their payloads; `$5`: whether their status is asked for.
const NEXT: &str = concat!(
    "SELECT e.id, e.seq, e.type, e.received_at, octet_length(e.payload) AS bytes, ",
    rank!("$5"),
    " FROM events e
     WHERE e.organization_id = $1 AND e.seq > $2 AND e.seq <= $3 ORDER BY e.seq LIMIT $4"
);

/// The first of those days that may hold what was accepted since: no other partition is looked at.
const FIRST: &str = "SELECT seq FROM events WHERE organization_id = $1 AND id >= $2 ORDER BY seq LIMIT 1";

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
        wanted: &EventQuery,
        after: i64,
        up_to: i64,
    ) -> Result<FeedPage> {
        let statement = query(NEXT)
            .bind(organization.uuid())
            .bind(after)
            .bind(up_to)
            .bind(i64::try_from(MAX_LOOKED_AT).unwrap_or(i64::MAX))
            .bind(wanted.status.is_some());
        let rows = self.rows(statement).await?;
        let seen = rows.iter().map(seen).collect::<Result<Vec<_>>>()?;
        let page = feed::page(wanted, seen, up_to);
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
            up_to: page.next.unwrap_or(up_to),
        })
    }

    async fn place(&self, organization: OrganizationId, id: EventId) -> Result<Option<i64>> {
        Ok(self.resolve(organization, id).await?.map(|(_, seq)| seq))
    }

    async fn place_before(&self, organization: OrganizationId, since: Timestamp) -> Result<i64> {
        // First, so that nothing comes between it and where nothing was found.
        let settled = self.settled().await?;
        let day = OffsetDateTime::from(since.minus(OLDER)).date();
        let statement = query(FIRST)
            .bind(organization.uuid())
            .bind(partitions::first_id(day));
        let first = self.row(statement).await?;
        let first: Option<i64> = first.as_ref().map(|row| row.value("seq")).transpose()?;
        Ok(first.map_or(settled, |first| settled.min(first - 1)))
    }
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
