//! What is seen of deliveries; of lists, each statement walks one index in its order, for so many rows and no further.

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};
use uuid::Uuid;

use super::{Engine, Result, records::condition, rows::Columns};
use crate::{
    OrganizationId, SubscriptionId, WorkerId,
    delivery::Status,
    store::{
        DeliveryFilter, DeliveryPlace, Fleet, Insight, ListedDelivery, Minute, OpenCircuit, Page,
        PageRequest, SubscriptionStats,
        looked::{self, Found, Looked, Where},
        parse_state,
    },
};

/// Of a delivery `d` and its subscription `s`, where it has one.
macro_rules! found {
    () => {
        "d.subscription_id, d.state, d.attempts, d.updated_at, s.enabled,
         CASE WHEN s.kind = 'push' THEN d.due_at END AS next_attempt_at,
         CASE WHEN s.kind = 'pull' AND d.lease_owner IS NOT NULL AND d.due_at > now() THEN d.due_at END AS lease_until,
         coalesce(d.lease_owner = ANY (ARRAY(SELECT id FROM workers WHERE lease_until > now())), false) AS held"
    };
}

macro_rules! subscription {
    () => {
        "LEFT JOIN LATERAL (
            SELECT s.enabled, s.kind FROM subscriptions s WHERE s.id = d.subscription_id AND s.deleted_at IS NULL LIMIT 1
         ) s ON true"
    };
}

/// Event by event. `$1` organization, `$2` and `$3` the place after which it begins, `$4` how many are looked at, `$5` the
/// subscription.
const EVERYWHERE: &str = concat!(
    "SELECT e.id AS event_id, e.seq, e.type, e.received_at, ",
    found!(),
    " FROM (
        SELECT id, seq, type, received_at FROM events
        WHERE organization_id = $1 AND ($2::bigint IS NULL OR seq <= $2) ORDER BY seq DESC LIMIT $4
    ) e LEFT JOIN LATERAL (
        SELECT * FROM deliveries d
        WHERE d.event_id = e.id AND ($5::uuid IS NULL OR d.subscription_id = $5)
          AND ($2::bigint IS NULL OR e.seq < $2 OR d.subscription_id > $3::uuid)
        ORDER BY d.subscription_id LIMIT $4
    ) d ON true ",
    subscription!(),
    " ORDER BY e.seq DESC, d.subscription_id LIMIT $4"
);

/// By the partial index over the few that the condition holds for; the subscription is looked at by who asks.
macro_rules! walked {
    ($condition:literal) => {
        concat!(
            "SELECT d.event_id, d.seq, e.type, e.received_at, ",
            found!(),
            " FROM (
                SELECT * FROM deliveries d
                WHERE d.organization_id = $1 AND ",
            $condition,
            " AND ($2::bigint IS NULL OR (d.seq <= $2 AND (d.seq < $2 OR d.subscription_id > $3::uuid)))
                ORDER BY d.seq DESC, d.subscription_id LIMIT $4
            ) d CROSS JOIN LATERAL (
                SELECT e.type, e.received_at FROM events e WHERE e.id = d.event_id LIMIT 1
            ) e ",
            subscription!(),
            " ORDER BY d.seq DESC, d.subscription_id"
        )
    };
}
const OPEN: &str = walked!("d.due_at IS NOT NULL");
const DEAD: &str = walked!("d.state = 'dead_letter'");

#[async_trait]
impl Insight for Engine {
    async fn list_deliveries(
        &self,
        organization: OrganizationId,
        filter: &DeliveryFilter,
        page: PageRequest<DeliveryPlace>,
    ) -> Result<Page<ListedDelivery, DeliveryPlace>> {
        let window = looked::window(filter, page.limit);
        let sql = match Where::of(filter) {
            Where::Open => OPEN,
            Where::Dead => DEAD,
            Where::Everywhere => EVERYWHERE,
        };
        let statement = query(sql)
            .bind(organization.uuid())
            .bind(page.after.map(|place| place.seq))
            .bind(page.after.map(|place| place.subscription.uuid()))
            .bind(i64::from(window));
        let statement = match Where::of(filter) {
            Where::Everywhere => statement.bind(filter.subscription.map(SubscriptionId::uuid)),
            Where::Open | Where::Dead => statement,
        };
        let rows = self.rows(statement).await?;
        let looked = rows.iter().map(looked).collect::<Result<Vec<_>>>()?;
        Ok(looked::page(looked, window, filter, page.limit))
    }

    async fn write_minutes(&self, counter: WorkerId, minutes: &[Minute]) -> Result<()> {
        self.put_minutes(counter, minutes).await
    }

    async fn write_circuits(
        &self,
        worker: WorkerId,
        open: &[OpenCircuit],
        closed: &[SubscriptionId],
    ) -> Result<()> {
        self.put_circuits(worker, open, closed).await
    }

    async fn subscription_stats(&self, subscription: SubscriptionId) -> Result<SubscriptionStats> {
        self.stats_of(subscription).await
    }

    async fn fleet(&self) -> Result<Fleet> {
        self.read_fleet().await
    }
}

fn looked(row: &PgRow) -> Result<Looked> {
    let delivery = match row.value::<Option<Uuid>>("subscription_id")? {
        None => None,
        Some(subscription) => {
            let lease_until = row.optional_at("lease_until")?;
            let held = row.value("held")? || lease_until.is_some();
            Some(Found {
                subscription: SubscriptionId::from_uuid(subscription),
                status: Status::of(parse_state(row.value("state")?)?, held, condition(row)?),
                attempts: row.count("attempts")?,
                lease_until,
                next_attempt_at: row.optional_at("next_attempt_at")?,
                updated_at: row.at("updated_at")?,
            })
        }
    };
    Ok(Looked {
        event: row.id("event_id")?,
        seq: row.value("seq")?,
        event_type: row.value("type")?,
        received_at: row.at("received_at")?,
        delivery,
    })
}
