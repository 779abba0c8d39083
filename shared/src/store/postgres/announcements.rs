//! Announcements, and for how long subscriptions have failed.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};

use super::{Engine, Result, Statement, organizations::uuids, rows::Columns};
use crate::{
    EventId, OrganizationId, SubscriptionId,
    announcement::Announcement,
    store::{Announced, Announcements},
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

const FAILED: &str = "
    WITH first AS (
        INSERT INTO subscription_failures (subscription_id)
        SELECT s.id FROM unnest($1::uuid[], $2::bigint[]) AS failed (id, version)
        JOIN subscriptions s ON s.id = failed.id AND s.version = failed.version
        WHERE s.enabled AND s.deleted_at IS NULL ORDER BY s.id
        ON CONFLICT DO NOTHING
    )
    SELECT id, greatest(0, coalesce(extract(epoch FROM now() - f.failing_since), 0) * 1000)::bigint AS ms
    FROM unnest($1::uuid[]) AS failed (id) LEFT JOIN subscription_failures f ON f.subscription_id = id";

const SUCCEEDED: &str = "
    DELETE FROM subscription_failures WHERE subscription_id = ANY ($1)
    RETURNING subscription_id AS id, greatest(0, extract(epoch FROM now() - failing_since) * 1000)::bigint AS ms";

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

    async fn failed(&self, attempts: &[(SubscriptionId, i64)]) -> Result<Vec<(SubscriptionId, Duration)>> {
        let (subscriptions, versions): (Vec<_>, Vec<i64>) = attempts
            .iter()
            .map(|(subscription, version)| (subscription.uuid(), *version))
            .unzip();
        let rows = self
            .rows(query(FAILED).bind(subscriptions).bind(versions))
            .await?;
        rows.iter().map(age).collect()
    }

    async fn succeeded(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<(SubscriptionId, Duration)>> {
        let rows = self.rows(query(SUCCEEDED).bind(uuids(subscriptions))).await?;
        rows.iter().map(age).collect()
    }

    async fn disable_failing(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        failed_for: Duration,
        reason: &str,
        announced: bool,
    ) -> Result<bool> {
        self.disable_as(organization, id, version, Some(failed_for), reason, announced)
            .await
    }
}

fn age(row: &PgRow) -> Result<(SubscriptionId, Duration)> {
    Ok((row.id("id")?, Duration::from_millis(row.number("ms")?)))
}
