//! What is seen of deliveries; of lists, each statement walks one index in its order, for so many rows and no further.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, sqlite::SqliteRow};

use super::{
    Engine,
    events::condition,
    row::{Columns as _, failed},
};
use crate::{
    OrganizationId, SubscriptionId, Timestamp, WorkerId,
    delivery::Status,
    store::{
        DeliveryFilter, DeliveryPlace, Fleet, Insight, ListedDelivery, Minute, OpenCircuit, Page,
        PageRequest, Result, SubscriptionStats,
        looked::{self, Found, Looked, Where},
        parse_state,
    },
};

/// Of a delivery `d`, where there is one, its event `e`, and its subscription `s`.
const LOOKED: &str = "SELECT e.id, e.seq, e.type, e.received_at, d.subscription_id, d.state, d.attempts, d.updated_at, \
     iif(s.kind = 'push', d.due_at, NULL), s.enabled, s.deleted_at IS NOT NULL, \
     EXISTS (SELECT 1 FROM workers w WHERE w.id = d.lease_owner AND w.lease_until > ?1), \
     iif(s.kind = 'pull' AND d.lease_owner IS NOT NULL AND d.due_at > ?1, d.due_at, NULL)";

/// Event by event: now, organization, the place after which it begins, how many are looked at, the subscription.
fn everywhere() -> String {
    format!(
        "{LOOKED} FROM (SELECT id, seq, type, received_at FROM events INDEXED BY events_by_organization \
         WHERE organization_id = ?2 AND (?3 IS NULL OR seq <= ?3) ORDER BY seq DESC LIMIT ?5) e \
         LEFT JOIN deliveries d ON d.event_id = e.id AND (?6 IS NULL OR d.subscription_id = ?6) \
         AND (?3 IS NULL OR e.seq < ?3 OR d.subscription_id > ?4) \
         LEFT JOIN subscriptions s ON s.id = d.subscription_id ORDER BY e.seq DESC, d.subscription_id LIMIT ?5"
    )
}

/// By an index over the few that the condition holds for.
fn walked(index: &str, condition: &str) -> String {
    format!(
        "{LOOKED} FROM (SELECT * FROM deliveries INDEXED BY {index} WHERE organization_id = ?2 AND {condition} \
         AND (?3 IS NULL OR (seq <= ?3 AND (seq < ?3 OR subscription_id > ?4))) \
         ORDER BY seq DESC, subscription_id LIMIT ?5) d \
         JOIN events e ON e.seq = d.seq LEFT JOIN subscriptions s ON s.id = d.subscription_id \
         ORDER BY d.seq DESC, d.subscription_id"
    )
}

#[async_trait]
impl Insight for Engine {
    async fn list_deliveries(
        &self,
        organization: OrganizationId,
        filter: &DeliveryFilter,
        page: PageRequest<DeliveryPlace>,
    ) -> Result<Page<ListedDelivery, DeliveryPlace>> {
        let window = looked::window(filter, page.limit);
        let way = Where::of(filter);
        let sql = match way {
            Where::Open => walked("deliveries_open", "due_at IS NOT NULL"),
            Where::Dead => walked(
                "deliveries_ended",
                "state IN ('dead_letter', 'expired', 'acknowledged')",
            ),
            Where::Everywhere => everywhere(),
        };
        let query = sqlx::query(AssertSqlSafe(sql))
            .bind(Timestamp::now().millis())
            .bind(organization.uuid())
            .bind(page.after.map(|place| place.seq))
            .bind(page.after.map(|place| place.subscription.uuid()))
            .bind(window);
        let query = match way {
            Where::Everywhere => query.bind(filter.subscription.map(SubscriptionId::uuid)),
            Where::Open | Where::Dead => query,
        };
        let rows = query.fetch_all(&self.readers).await.map_err(failed)?;
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

fn looked(row: &SqliteRow) -> Result<Looked> {
    let delivery = match row.value::<Option<uuid::Uuid>>(4)? {
        None => None,
        Some(subscription) => {
            let condition = condition(row.value(10)?, row.value(9)?);
            let lease_until = row.time_if_any(12)?;
            let held = row.value(11)? || lease_until.is_some();
            Some(Found {
                subscription: SubscriptionId::from_uuid(subscription),
                status: Status::of(parse_state(row.value(5)?)?, held, condition),
                attempts: row.number(6)?,
                lease_until,
                next_attempt_at: row.time_if_any(8)?,
                updated_at: row.time(7)?,
            })
        }
    };
    Ok(Looked {
        event: row.id(0)?,
        seq: row.value(1)?,
        event_type: row.value(2)?,
        received_at: row.time(3)?,
        delivery,
    })
}
