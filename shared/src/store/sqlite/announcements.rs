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
    store::{Announced, Announcements, FailedAttempt, Recovered, Result},
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

/// Since when a subscription has failed, if it does, and whether an attempt that failed begets.
async fn failing(tx: &mut Tx, subscription: SubscriptionId) -> Result<Option<(Timestamp, bool)>> {
    let row =
        sqlx::query("SELECT failing_since, begets FROM subscription_failures WHERE subscription_id = ?")
            .bind(subscription.uuid())
            .fetch_optional(&mut tx.connection)
            .await
            .map_err(failed)?;
    row.map(|row| Ok((row.time(0)?, row.value(1)?))).transpose()
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

    async fn failed(&self, attempts: &[FailedAttempt]) -> Result<Vec<(SubscriptionId, Duration)>> {
        let attempts = attempts.to_vec();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    let mut ages = Vec::with_capacity(attempts.len());
                    for attempt in attempts {
                        sqlx::query(
                            "INSERT INTO subscription_failures (subscription_id, failing_since, begets) \
                             SELECT id, ?, ? FROM subscriptions WHERE id = ? AND version = ? AND enabled \
                             AND deleted_at IS NULL ON CONFLICT (subscription_id) \
                             DO UPDATE SET begets = begets OR excluded.begets",
                        )
                        .bind(tx.now.millis())
                        .bind(attempt.begets)
                        .bind(attempt.subscription.uuid())
                        .bind(attempt.version)
                        .execute(&mut tx.connection)
                        .await
                        .map_err(failed)?;
                        let fails = failing(tx, attempt.subscription).await?;
                        let since = fails.map_or(tx.now, |(since, _)| since);
                        ages.push((attempt.subscription, tx.now.since(since)));
                    }
                    Ok(ages)
                })
            })
            .await
    }

    async fn succeeded(&self, subscriptions: &[SubscriptionId]) -> Result<Vec<Recovered>> {
        let subscriptions = subscriptions.to_vec();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    let mut recovered = Vec::new();
                    for subscription in subscriptions {
                        if let Some((since, begets)) = failing(tx, subscription).await? {
                            forget_failing(tx, subscription).await?;
                            recovered.push(Recovered {
                                subscription,
                                failed_for: tx.now.since(since),
                                begets,
                            });
                        }
                    }
                    Ok(recovered)
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
    ) -> Result<bool> {
        let reason = reason.to_owned();
        self.writer
            .run(move |tx| {
                Box::pin(async move {
                    match failing(tx, id).await? {
                        Some((since, begets)) if since <= tx.now.minus(failed_for) => {
                            disable(tx, organization, id, version, reason, begets).await
                        }
                        _ => Ok(false),
                    }
                })
            })
            .await
    }
}
