//! Events as they are looked up and listed, and what was set aside.

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;
use sqlx::query;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Engine, Result, former,
    lists::{self, Part},
    organizations::paged,
    rows,
    rows::Columns,
};
use crate::{
    EventId, OrganizationId, SetAsideId, SubscriptionId,
    audit::{Action, Change},
    store::{
        EventFilter, EventQuery, EventRecord, Events, IntakeBatch, IntakeOutcome, Order, Page, PageRequest,
        Passed, SetAside, SetAsidePlace,
    },
};

const EVENT: &str = "
    SELECT e.id, e.seq, e.type, e.dedup_id, e.source, e.occurred_at, e.received_at, e.payload, e.erased_at
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

/// One that is among them twice is one row, and counts twice.
const SET_ASIDE: &str = "
    INSERT INTO set_aside (id, reason, detail, organization_id, event_id, frame, at, times)
    SELECT DISTINCT ON (id) id, reason, detail, organization_id, event_id, frame, at,
        (sum(times) OVER (PARTITION BY id))::bigint
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::bytea[], $7::timestamptz[], $8::bigint[])
        AS item (id, reason, detail, organization_id, event_id, frame, at, times)
    ORDER BY id
    ON CONFLICT (id) DO UPDATE SET
        reason = excluded.reason, detail = excluded.detail, at = excluded.at,
        times = set_aside.times + excluded.times";

const SET_ASIDE_AFTER: &str = "
    SELECT id, reason, detail, organization_id, event_id, frame, at, times FROM set_aside
    WHERE $1::timestamptz IS NULL OR (at, id) > ($1, $2)
    ORDER BY at, id LIMIT $3";

/// As often as it came when it was seen, if that is asked.
const FORGET: &str =
    "DELETE FROM set_aside WHERE id = $1 AND times = coalesce($2, times) RETURNING organization_id";

impl Engine {
    /// Below which `seq` nothing can come any more: what is listed oldest first ends there.
    async fn settled_below(&self, order: Order) -> Result<Option<i64>> {
        match order {
            Order::OldestFirst => Ok(Some(self.one(query(lists::SETTLED_BELOW)).await?.value("seq")?)),
            Order::NewestFirst => Ok(None),
        }
    }
}

impl Engine {
    async fn look_up(
        &self,
        organization: OrganizationId,
        id: EventId,
        only: Option<SubscriptionId>,
    ) -> Result<Option<EventRecord>> {
        let event = query(EVENT).bind(organization.uuid()).bind(id.uuid());
        if let Some(found) = self.read_one(organization, event, only).await? {
            return Ok(Some(found));
        }
        let former = query(former::OF_FORMER).bind(organization.uuid()).bind(id.uuid());
        let Some(row) = self.row(former).await? else {
            return Ok(None);
        };
        let event = query(EVENT)
            .bind(organization.uuid())
            .bind(row.value::<Uuid>("event_id")?);
        self.read_one(organization, event, only).await
    }
}

#[async_trait]
impl Events for Engine {
    async fn intake(&self, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome> {
        self.take_in(batch).await
    }

    async fn rehearse(&self) -> Result<()> {
        self.rehearse_intake().await
    }

    async fn admit(&self, ids: &[EventId], retention: Duration) -> Result<HashSet<EventId>> {
        self.make_room(ids, retention).await
    }

    async fn get(&self, organization: OrganizationId, id: EventId) -> Result<Option<EventRecord>> {
        self.look_up(organization, id, None).await
    }

    async fn get_delivery(
        &self,
        organization: OrganizationId,
        id: EventId,
        subscription: SubscriptionId,
    ) -> Result<Option<EventRecord>> {
        self.look_up(organization, id, Some(subscription)).await
    }

    async fn list(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        page: PageRequest<i64>,
        offset: u64,
    ) -> Result<Page<EventRecord, i64>> {
        let part = Part {
            after: page.after,
            limit: i64::from(page.limit) + 1,
            offset,
            settled_below: self.settled_below(order).await?,
        };
        let listed = lists::list(organization, filter, order, &part);
        self.read_page(organization, listed, order, page.limit).await
    }

    async fn pass_over(
        &self,
        organization: OrganizationId,
        filter: &EventFilter,
        order: Order,
        after: Option<i64>,
        count: u64,
    ) -> Result<Passed> {
        let part = Part {
            after,
            limit: i64::try_from(count).unwrap_or(i64::MAX),
            offset: 0,
            settled_below: self.settled_below(order).await?,
        };
        let listed = lists::list(organization, filter, order, &part);
        let (found, last) = self.find(listed, order).await?;
        Ok(Passed::of(&found, count, last))
    }

    async fn browse(
        &self,
        organization: OrganizationId,
        wanted: &EventQuery,
        page: PageRequest<i64>,
    ) -> Result<Page<EventRecord, i64>> {
        self.browse_events(organization, wanted, page).await
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
            )
            .bind(items.iter().map(|item| times(item.times)).collect::<Vec<_>>());
        self.rows(statement).await.map(drop)
    }

    async fn list_set_aside(
        &self,
        page: PageRequest<SetAsidePlace>,
    ) -> Result<Page<SetAside, SetAsidePlace>> {
        let statement = query(SET_ASIDE_AFTER)
            .bind(page.after.map(|place| OffsetDateTime::from(place.at)))
            .bind(page.after.map(|place| place.id.uuid()))
            .bind(i64::from(page.limit) + 1);
        let items = self
            .rows(statement)
            .await?
            .iter()
            .map(rows::set_aside)
            .collect::<Result<Vec<_>>>()?;
        Ok(paged(items, page.limit, SetAside::place))
    }

    async fn get_set_aside(&self, id: SetAsideId) -> Result<Option<SetAside>> {
        let statement = query(
            "SELECT id, reason, detail, organization_id, event_id, frame, at, times FROM set_aside WHERE id = $1",
        )
        .bind(id.uuid());
        self.row(statement)
            .await?
            .as_ref()
            .map(rows::set_aside)
            .transpose()
    }

    async fn forget_set_aside(&self, id: SetAsideId, seen: Option<u64>) -> Result<bool> {
        let statement = query(FORGET).bind(id.uuid()).bind(seen.map(times));
        // Who says which he has seen has put it back.
        let action = match seen {
            Some(_) => Action::PutBack,
            None => Action::Discarded,
        };
        let forgotten = self
            .audited(statement, |row| {
                let of: Option<OrganizationId> = row.optional_id("organization_id")?;
                Ok(vec![Change::of(of, action, id)])
            })
            .await?;
        Ok(forgotten.is_some())
    }

    async fn count_set_aside(&self) -> Result<u64> {
        self.one(query("SELECT count(*) AS count FROM set_aside"))
            .await?
            .number("count")
    }
}

fn times(times: u64) -> i64 {
    i64::try_from(times).unwrap_or(i64::MAX)
}
