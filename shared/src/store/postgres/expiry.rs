//! Deliveries that are still open when their retention ends.
//!
//! They end in steps, subscription by subscription, and each step tells of what it ended in its own transaction: nothing
//! expires in silence, and nothing is told of that did not.

use sqlx::{Connection as _, PgConnection, query};
use uuid::Uuid;

use super::{Result, announcements, classify, keeper::STEP, rows::Columns};
use crate::{DeliveryKey, OrganizationId, announcement::Expiries};

/// In order of subscription, so that few are told of in a step. What is told of: not events of the system's own, which
/// beget no others, nor what a deleted subscription leaves open.
const EXPIRE: &str = "
    WITH open AS (
        SELECT event_id, subscription_id FROM deliveries
        WHERE event_id >= $1 AND event_id < $2 AND due_at IS NOT NULL
          AND ($4::uuid IS NULL OR organization_id = $4)
        ORDER BY subscription_id, due_at LIMIT $3
        FOR UPDATE SKIP LOCKED
    ), ended AS (
        UPDATE deliveries d SET state = 'expired', due_at = NULL, lease_owner = NULL, updated_at = now()
        FROM unnest((SELECT array_agg(event_id) FROM open), (SELECT array_agg(subscription_id) FROM open))
            AS o (event_id, subscription_id)
        WHERE d.event_id = o.event_id AND d.subscription_id = o.subscription_id
          AND d.event_id >= $1 AND d.event_id < $2
        RETURNING d.event_id, d.subscription_id, d.organization_id
    )
    SELECT ended.*,
        coalesce((SELECT e.type NOT LIKE 'triggers.%' FROM events e WHERE e.id = ended.event_id LIMIT 1), false)
        AND EXISTS (SELECT FROM subscriptions s WHERE s.id = ended.subscription_id AND s.deleted_at IS NULL) AS told
    FROM ended ORDER BY event_id";

/// Ends what is open of events whose ids are from `first` on and before another, of one organization or of all; how many
/// deliveries those were.
pub(super) async fn expire(
    connection: &mut PgConnection,
    first: Uuid,
    before: Uuid,
    organization: Option<OrganizationId>,
) -> Result<u64> {
    let mut expired = 0;
    loop {
        let mut transaction = connection.begin().await.map_err(classify)?;
        let ended = query(EXPIRE)
            .bind(first)
            .bind(before)
            .bind(STEP)
            .bind(organization.map(OrganizationId::uuid))
            .fetch_all(&mut *transaction)
            .await
            .map_err(classify)?;
        let mut expiries = Expiries::default();
        for row in &ended {
            if row.value("told")? {
                let delivery = DeliveryKey {
                    event: row.id("event_id")?,
                    subscription: row.id("subscription_id")?,
                };
                expiries.add(row.id("organization_id")?, delivery);
            }
        }
        for (organization, announcement) in expiries.announcements() {
            announcements::announce(organization, &announcement)
                .execute(&mut *transaction)
                .await
                .map_err(classify)?;
        }
        transaction.commit().await.map_err(classify)?;
        expired += ended.len() as u64;
        if i64::try_from(ended.len()).unwrap_or(i64::MAX) < STEP {
            return Ok(expired);
        }
    }
}
