//! Announcements, and for how long subscriptions have failed.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};

use super::{Engine, Result, Statement, organizations::uuids, rows::Columns, subscriptions::Why};
use crate::{
    EventId, OrganizationId, SubscriptionId,
    announcement::Announcement,
    store::{Announced, Announcements, FailedAttempt, Recovered},
};

/// Whether somebody might want an announcement of the organization given.
macro_rules! wanted {
    ($organization:literal) => {
        concat!(
            "EXISTS (SELECT FROM subscriptions listening WHERE listening.organization_id = ",
            $organization,
            " AND listening.deleted_at IS NULL
               AND EXISTS (SELECT FROM unnest(listening.event_types) AS pattern WHERE pattern LIKE 'triggers.%'))"
        )
    };
}
pub(super) use wanted;

const ANNOUNCE: &str = concat!(
    "INSERT INTO announcements (id, organization_id, type, payload) SELECT $1, $2, $3, $4 WHERE ",
    wanted!("$2"),
    " ON CONFLICT DO NOTHING"
);

/// Rows are locked in order of id, as by [`SUCCEEDED`].
const FAILED: &str = "
    WITH noted AS (
        INSERT INTO subscription_failures AS f (subscription_id, begets)
        SELECT s.id, bool_or(failed.begets) FROM unnest($1::uuid[], $2::bigint[], $3::boolean[]) AS failed (id, version, begets)
        JOIN subscriptions s ON s.id = failed.id AND s.version = failed.version
        WHERE s.enabled AND s.deleted_at IS NULL GROUP BY s.id ORDER BY s.id
        ON CONFLICT (subscription_id) DO UPDATE SET begets = true WHERE excluded.begets AND NOT f.begets
    )
    SELECT id, greatest(0, coalesce(extract(epoch FROM now() - f.failing_since), 0) * 1000)::bigint AS ms
    FROM unnest($1::uuid[]) AS failed (id) LEFT JOIN subscription_failures f ON f.subscription_id = id";

const SUCCEEDED: &str = "
    WITH ended AS MATERIALIZED (
        SELECT subscription_id FROM subscription_failures WHERE subscription_id = ANY ($1)
        ORDER BY subscription_id FOR UPDATE
    )
    DELETE FROM subscription_failures f USING ended WHERE f.subscription_id = ended.subscription_id
    RETURNING f.subscription_id AS id, f.begets, greatest(0, extract(epoch FROM now() - f.failing_since) * 1000)::bigint AS ms";

/// Keeps an announcement, if somebody might want it.
pub(super) fn announce(organization: OrganizationId, announcement: &Announcement) -> Statement {
    query(ANNOUNCE)
        .bind(announcement.id.uuid())
        .bind(organization.uuid())
        .bind(announcement.event_type)
        .bind(announcement.payload.clone())
}

#[async_trait]
impl Announcements for Engine {
    async fn announce(&self, organization: OrganizationId, announcement: &Announcement) -> Result<()> {
        self.rows(announce(organization, announcement)).await.map(drop)
    }

    async fn announcements(&self, limit: u32) -> Result<Vec<Announced>> {
        let statement = query(
            "SELECT id, organization_id, type, payload, at FROM announcements ORDER BY at, id LIMIT $1",
        );
        let rows = self.rows(statement.bind(i64::from(limit))).await?;
        let read = rows.iter().map(|row| {
            Ok(Announced {
                id: row.id("id")?,
                organization: row.id("organization_id")?,
                event_type: row.value("type")?,
                payload: row.value("payload")?,
                at: row.at("at")?,
            })
        });
        read.collect()
    }

    async fn announced(&self, ids: &[EventId]) -> Result<()> {
        let statement = query("DELETE FROM announcements WHERE id = ANY ($1)").bind(uuids(ids));
        self.rows(statement).await.map(drop)
    }

    async fn failed(&self, attempts: &[FailedAttempt]) -> Result<Vec<(SubscriptionId, Duration)>> {
        let subscriptions: Vec<_> = attempts.iter().map(|failed| failed.subscription).collect();
        let versions: Vec<i64> = attempts.iter().map(|failed| failed.version).collect();
        let begets: Vec<bool> = attempts.iter().map(|failed| failed.begets).collect();
        let statement = query(FAILED)
            .bind(uuids(&subscriptions))
            .bind(versions)
            .bind(begets);
        self.rows(statement).await?.iter().map(age).collect()
    }

    async fn succeeded(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<Recovered>> {
        let rows = self.rows(query(SUCCEEDED).bind(uuids(subscriptions))).await?;
        let recovered = rows.iter().map(|row| {
            let (subscription, failed_for) = age(row)?;
            Ok(Recovered {
                subscription,
                failed_for,
                begets: row.value("begets")?,
            })
        });
        recovered.collect()
    }

    async fn disable_failing(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        failed_for: Duration,
        reason: &str,
    ) -> Result<bool> {
        self.disable_as(organization, id, version, reason, Why::Failed(failed_for))
            .await
    }
}

fn age(row: &PgRow) -> Result<(SubscriptionId, Duration)> {
    Ok((row.id("id")?, Duration::from_millis(row.number("ms")?)))
}
