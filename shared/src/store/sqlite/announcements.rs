//! Announcements, and for how long subscriptions have failed.

use std::time::Duration;

use async_trait::async_trait;

use super::{
    Engine,
    row::{Columns as _, failed},
    subscriptions::disable,
    writer::Tx,
};
use crate::{
    EventId, OrganizationId, SubscriptionId, Timestamp,
    announcement::Announcement,
    store::{Announced, Announcements, Result},
};

/// Keeps an announcement, if somebody might want it, as part of the transaction that it tells of.
pub(super) async fn announce(
    tx: &mut Tx,
    organization: OrganizationId,
    announcement: &Announcement,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO announcements (id, organization_id, type, payload, at) SELECT ?, ?, ?, ?, ? WHERE EXISTS \
         (SELECT 1 FROM subscriptions s, json_each(s.event_types) pattern WHERE s.organization_id = ? \
         AND s.deleted_at IS NULL AND pattern.value LIKE 'triggers.%') ON CONFLICT DO NOTHING",
    )
    .bind(announcement.id.uuid())
    .bind(organization.uuid())
    .bind(announcement.event_type)
    .bind(announcement.payload.clone())
    .bind(tx.now.millis())
    .bind(organization.uuid())
    .execute(&mut tx.connection)
    .await
    .map(drop)
    .map_err(failed)
}

/// Forgets that a subscription fails.
pub(super) async fn forget_failing(tx: &mut Tx, subscription: SubscriptionId) -> Result<()> {
    sqlx::query("DELETE FROM subscription_failures WHERE subscription_id = ?")
        .bind(subscription.uuid())
        .execute(&mut tx.connection)
        .await
        .map(drop)
        .map_err(failed)
}

/// Since when a subscription has failed, if it does.
pub(super) async fn since(tx: &mut Tx, subscription: SubscriptionId) -> Result<Option<Timestamp>> {
    let row = sqlx::query("SELECT failing_since FROM subscription_failures WHERE subscription_id = ?")
        .bind(subscription.uuid())
        .fetch_optional(&mut tx.connection)
        .await
        .map_err(failed)?;
    row.map(|row| row.time(0)).transpose()
}

#[async_trait]
impl Announcements for Engine {
    async fn announce(&self, organization: OrganizationId, announcement: &Announcement) -> Result<()> {
        let announcement = announcement.clone();
        self.writer
            .run(move |tx| Box::pin(async move { announce(tx, organization, &announcement).await }))
            .await
    }

    async fn announcements(&self, limit: u32) -> Result<Vec<Announced>> {
        let rows = sqlx::query(
            "SELECT id, organization_id, type, payload, at FROM announcements ORDER BY at, id LIMIT ?",
        )
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let read = rows.iter().map(|row| {
            Ok(Announced {
                id: row.id(0)?,
                organization: row.id(1)?,
                event_type: row.value(2)?,
                payload: row.value(3)?,
                at: row.time(4)?,
            })
        });
        read.collect()
    }

    async fn announced(&self, ids: &[EventId]) -> Result<()> {
        let ids = ids.to_vec();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    for id in ids {
                        sqlx::query("DELETE FROM announcements WHERE id = ?")
                            .bind(id.uuid())
                            .execute(&mut tx.connection)
                            .await
                            .map_err(failed)?;
                    }
                    Ok(())
                })
            })
            .await
    }

    async fn failed(&self, attempts: &[(SubscriptionId, i64)]) -> Result<Vec<(SubscriptionId, Duration)>> {
        let attempts = attempts.to_vec();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    let mut ages = Vec::with_capacity(attempts.len());
                    for (subscription, version) in attempts {
                        sqlx::query(
                            "INSERT INTO subscription_failures (subscription_id, failing_since) \
                             SELECT id, ? FROM subscriptions WHERE id = ? AND version = ? AND enabled \
                             AND deleted_at IS NULL ON CONFLICT DO NOTHING",
                        )
                        .bind(tx.now.millis())
                        .bind(subscription.uuid())
                        .bind(version)
                        .execute(&mut tx.connection)
                        .await
                        .map_err(failed)?;
                        let since = since(tx, subscription).await?.unwrap_or(tx.now);
                        ages.push((subscription, tx.now.since(since)));
                    }
                    Ok(ages)
                })
            })
            .await
    }

    async fn succeeded(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<(SubscriptionId, Duration)>> {
        let subscriptions = subscriptions.to_vec();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    let mut ages = Vec::new();
                    for subscription in subscriptions {
                        if let Some(since) = since(tx, subscription).await? {
                            forget_failing(tx, subscription).await?;
                            ages.push((subscription, tx.now.since(since)));
                        }
                    }
                    Ok(ages)
                })
            })
            .await
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
        let reason = reason.to_owned();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    let since = since(tx, id).await?;
                    if since.is_none_or(|since| since > tx.now.minus(failed_for)) {
                        return Ok(false);
                    }
                    disable(tx, organization, id, version, reason, announced).await
                })
            })
            .await
    }
}
