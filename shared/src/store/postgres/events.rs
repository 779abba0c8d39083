//! Events as they are looked up and listed, and what was set aside.

use async_trait::async_trait;
use sqlx::query;
use time::OffsetDateTime;

use super::{
    Engine, Result,
    lists::{self, Part},
    organizations::paged,
    rows,
    rows::Columns,
};
use crate::{
    EventId, OrganizationId, SetAsideId,
    store::{
        EventFilter, EventRecord, Events, IntakeBatch, IntakeOutcome, Order, Page, PageRequest, SetAside,
    },
};

const EVENT: &str = "
    SELECT e.id, e.seq, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload
    FROM (SELECT $2::uuid AS id) asked
    LEFT JOIN LATERAL (
        SELECT a.event_id FROM event_aliases a WHERE a.id = asked.id AND a.organization_id = $1 LIMIT 1
    ) first ON true
    LEFT JOIN LATERAL (
        SELECT a.event_id FROM event_aliases a WHERE a.id = first.event_id AND a.organization_id = $1 LIMIT 1
    ) first_of_first ON true
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.id = coalesce(first_of_first.event_id, first.event_id, asked.id) AND e.organization_id = $1 LIMIT 1
    ) e";

const SET_ASIDE: &str = "
    INSERT INTO set_aside (id, reason, detail, organization_id, event_id, frame, at)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::bytea[], $7::timestamptz[])
    ORDER BY 1
    ON CONFLICT (id) DO NOTHING";

#[async_trait]
impl Events for Engine {
    async fn intake(&self, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome> {
        self.take_in(batch).await
    }

    async fn get(&self, organization: OrganizationId, id: EventId) -> Result<Option<EventRecord>> {
        let event = query(EVENT).bind(organization.uuid()).bind(id.uuid());
        self.read_one(organization, event).await
    }

    async fn list(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        page: PageRequest<i64>,
        offset: u64,
    ) -> Result<Page<EventRecord, i64>> {
        let settled_below = match order {
            Order::OldestFirst => Some(self.one(query(lists::SETTLED_BELOW)).await?.value("seq")?),
            Order::NewestFirst => None,
        };
        let part = Part {
            after: page.after,
            limit: i64::from(page.limit) + 1,
            offset,
            settled_below,
        };
        let found = lists::list(organization, filter, order, &part);
        self.read_page(organization, found, order, page.limit).await
    }

    async fn count(&self, organization: OrganizationId, filter: &EventFilter, most: u64) -> Result<u64> {
        self.one(lists::count(organization, filter, most))
            .await?
            .number("count")
    }

    async fn set_aside(&self, items: &[SetAside]) -> Result<()> {
        let statement = query(SET_ASIDE)
            .bind(items.iter().map(|item| item.id.uuid()).collect::<Vec<_>>())
            .bind(items.iter().map(|item| item.reason.as_str()).collect::<Vec<_>>())
            // PostgreSQL's text cannot hold it, and what is set aside may.
            .bind(
                items
                    .iter()
                    .map(|item| item.detail.replace('\0', "\u{fffd}"))
                    .collect::<Vec<_>>(),
            )
            .bind(
                items
                    .iter()
                    .map(|item| item.organization.map(OrganizationId::uuid))
                    .collect::<Vec<_>>(),
            )
            .bind(
                items
                    .iter()
                    .map(|item| item.event.map(EventId::uuid))
                    .collect::<Vec<_>>(),
            )
            .bind(items.iter().map(|item| item.frame.as_slice()).collect::<Vec<_>>())
            .bind(
                items
                    .iter()
                    .map(|item| OffsetDateTime::from(item.at))
                    .collect::<Vec<_>>(),
            );
        self.rows(statement).await.map(drop)
    }

    async fn list_set_aside(&self, page: PageRequest<SetAsideId>) -> Result<Page<SetAside, SetAsideId>> {
        let statement = query(
            "SELECT id, reason, detail, organization_id, event_id, frame, at FROM set_aside
             WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2",
        )
        .bind(page.after.map(SetAsideId::uuid))
        .bind(i64::from(page.limit) + 1);
        let items = self
            .rows(statement)
            .await?
            .iter()
            .map(rows::set_aside)
            .collect::<Result<Vec<_>>>()?;
        Ok(paged(items, page.limit, |item| item.id))
    }

    async fn get_set_aside(&self, id: SetAsideId) -> Result<Option<SetAside>> {
        let statement = query(
            "SELECT id, reason, detail, organization_id, event_id, frame, at FROM set_aside WHERE id = $1",
        )
        .bind(id.uuid());
        self.row(statement)
            .await?
            .as_ref()
            .map(rows::set_aside)
            .transpose()
    }

    async fn forget_set_aside(&self, id: SetAsideId) -> Result<bool> {
        let statement = query("DELETE FROM set_aside WHERE id = $1 RETURNING id").bind(id.uuid());
        Ok(self.row(statement).await?.is_some())
    }

    async fn count_set_aside(&self) -> Result<u64> {
        self.one(query("SELECT count(*) AS count FROM set_aside"))
            .await?
            .number("count")
    }
}
