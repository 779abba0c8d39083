//! Subscriptions. Every change is one statement that also raises the organization's subscriptions version (which locks
//! its row, so that changes within an organization come one after the other) and gives notice.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};
use uuid::Uuid;

use super::{
    Engine, Result, Statement,
    organizations::{paged, uuids},
    rows,
    rows::Columns,
};
use crate::{
    OrganizationId, Subscription, SubscriptionId,
    store::{InForce, Page, PageRequest, PatchOutcome, SubscriptionPatch, Subscriptions},
    subscription::Target,
};

macro_rules! columns {
    ($table:literal) => {
        concat!(
            $table,
            ".id, ",
            $table,
            ".organization_id, ",
            $table,
            ".builtin, ",
            $table,
            ".kind, ",
            $table,
            ".url, ",
            $table,
            ".secret, ",
            $table,
            ".event_types, ",
            $table,
            ".enabled, ",
            $table,
            ".disabled_reason, ",
            $table,
            ".description, ",
            $table,
            ".retry_schedule_seconds, ",
            $table,
            ".timeout_ms, ",
            $table,
            ".max_in_flight, ",
            $table,
            ".version, ",
            $table,
            ".created_at, ",
            $table,
            ".updated_at"
        )
    };
}

/// A change to rows of `subscriptions` that returns them, with all that a change entails.
macro_rules! changing {
    ($change:literal) => {
        concat!(
            "WITH changed AS (",
            $change,
            " RETURNING *), raised AS (
                UPDATE organizations SET subscriptions_version = subscriptions_version + 1
                WHERE id IN (SELECT organization_id FROM changed)
            )
            SELECT ",
            columns!("changed"),
            ", pg_notify('triggers_changes', 's:' || changed.id) FROM changed"
        )
    };
}

const CREATE: &str = changing!(
    "INSERT INTO subscriptions (id, organization_id, builtin, kind, url, secret, retry_schedule_seconds, timeout_ms,
        max_in_flight, event_types, enabled, disabled_reason, description)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
);

const PATCH: &str = changing!(
    "UPDATE subscriptions SET
        kind = coalesce($4, kind),
        url = CASE WHEN $4 IS NULL THEN url ELSE $5 END,
        secret = CASE WHEN $4 IS NULL THEN secret ELSE $6 END,
        retry_schedule_seconds = CASE WHEN $4 IS NULL THEN retry_schedule_seconds ELSE $7 END,
        timeout_ms = CASE WHEN $4 IS NULL THEN timeout_ms ELSE $8 END,
        max_in_flight = CASE WHEN $4 IS NULL THEN max_in_flight ELSE $9 END,
        event_types = coalesce($10, event_types),
        enabled = coalesce($11, enabled),
        disabled_reason = CASE WHEN $11::boolean IS NULL THEN disabled_reason END,
        description = CASE WHEN $12 THEN $13 ELSE description END,
        version = version + 1,
        updated_at = now()
     WHERE id = $1 AND organization_id = $2 AND version = $3 AND deleted_at IS NULL"
);

const DELETE: &str = changing!(
    "UPDATE subscriptions SET deleted_at = now(), updated_at = now(), version = version + 1
     WHERE id = $1 AND organization_id = $2 AND deleted_at IS NULL AND builtin IS DISTINCT FROM 'inbox'"
);

const DISABLE: &str = changing!(
    "UPDATE subscriptions SET enabled = false, disabled_reason = $4, updated_at = now(), version = version + 1
     WHERE id = $1 AND organization_id = $2 AND version = $3 AND deleted_at IS NULL AND enabled"
);

const GET: &str = concat!(
    "SELECT ",
    columns!("s"),
    " FROM subscriptions s WHERE id = $1 AND organization_id = $2 AND deleted_at IS NULL"
);

const LIST: &str = concat!(
    "SELECT ", columns!("s"),
    " FROM subscriptions s
      WHERE organization_id = $1 AND deleted_at IS NULL AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3"
);

const WEBHOOK: &str = concat!(
    "SELECT ",
    columns!("s"),
    " FROM subscriptions s WHERE organization_id = $1 AND builtin = 'webhook' AND deleted_at IS NULL"
);

const BY_IDS: &str = concat!(
    "SELECT ",
    columns!("s"),
    " FROM subscriptions s WHERE id = ANY($1) AND deleted_at IS NULL ORDER BY id"
);

const IN_FORCE: &str = concat!(
    "SELECT o.id AS organization, o.subscriptions_version, ",
    columns!("s"),
    " FROM organizations o
      LEFT JOIN subscriptions s ON s.organization_id = o.id AND s.deleted_at IS NULL
      WHERE o.id = ANY($1) ORDER BY o.id, s.id"
);

fn bind_target(statement: Statement, target: Option<&Target>) -> Statement {
    let kind = target.map(|target| match target {
        Target::Push(_) => "push",
        Target::Pull => "pull",
    });
    let push = match target {
        Some(Target::Push(push)) => Some(push),
        Some(Target::Pull) | None => None,
    };
    statement
        .bind(kind)
        .bind(push.map(|push| push.url.as_str().to_owned()))
        .bind(push.map(|push| push.secret.0.clone()))
        // Numbers that their types bound far below i32's range.
        .bind(push.map(|push| {
            let waits = push.retry_schedule.seconds().iter();
            waits
                .map(|wait| i32::try_from(*wait).unwrap_or(i32::MAX))
                .collect::<Vec<_>>()
        }))
        .bind(push.map(|push| i32::try_from(push.timeout.get()).unwrap_or(i32::MAX)))
        .bind(push.map(|push| i32::from(push.max_in_flight.get())))
}

fn shared(rows: &[PgRow]) -> Result<Vec<Arc<Subscription>>> {
    rows.iter()
        .map(|row| rows::subscription(row).map(Arc::new))
        .collect()
}

#[async_trait]
impl Subscriptions for Engine {
    async fn create(&self, subscription: Subscription) -> Result<Subscription> {
        let statement = query(CREATE)
            .bind(subscription.id.uuid())
            .bind(subscription.organization.uuid())
            .bind(subscription.builtin.map(crate::Builtin::as_str));
        let statement = bind_target(statement, Some(&subscription.target))
            .bind(patterns(&subscription.event_types))
            .bind(subscription.enabled)
            .bind(subscription.disabled_reason)
            .bind(subscription.description);
        rows::subscription(&self.one(statement).await?)
    }

    async fn get(&self, organization: OrganizationId, id: SubscriptionId) -> Result<Option<Subscription>> {
        let statement = query(GET).bind(id.uuid()).bind(organization.uuid());
        self.row(statement)
            .await?
            .as_ref()
            .map(rows::subscription)
            .transpose()
    }

    async fn list(
        &self,
        organization: OrganizationId,
        page: PageRequest<SubscriptionId>,
    ) -> Result<Page<Subscription, SubscriptionId>> {
        let statement = query(LIST)
            .bind(organization.uuid())
            .bind(page.after.map(SubscriptionId::uuid))
            .bind(i64::from(page.limit) + 1);
        let listed = self
            .rows(statement)
            .await?
            .iter()
            .map(rows::subscription)
            .collect::<Result<Vec<_>>>()?;
        Ok(paged(listed, page.limit, |subscription| subscription.id))
    }

    async fn patch(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        patch: SubscriptionPatch,
    ) -> Result<PatchOutcome> {
        let statement = query(PATCH)
            .bind(id.uuid())
            .bind(organization.uuid())
            .bind(version);
        let statement = bind_target(statement, patch.target.as_ref())
            .bind(patch.event_types.as_deref().map(patterns))
            .bind(patch.enabled)
            .bind(patch.description.is_some())
            .bind(patch.description.flatten());
        if let Some(row) = self.row(statement).await? {
            return Ok(PatchOutcome::Changed(Box::new(rows::subscription(&row)?)));
        }
        Ok(match Subscriptions::get(self, organization, id).await? {
            Some(_) => PatchOutcome::Conflict,
            None => PatchOutcome::NotFound,
        })
    }

    async fn delete(&self, organization: OrganizationId, id: SubscriptionId) -> Result<bool> {
        let statement = query(DELETE).bind(id.uuid()).bind(organization.uuid());
        Ok(self.row(statement).await?.is_some())
    }

    async fn disable(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        reason: &str,
    ) -> Result<bool> {
        let statement = query(DISABLE)
            .bind(id.uuid())
            .bind(organization.uuid())
            .bind(version)
            .bind(reason.to_owned());
        Ok(self.row(statement).await?.is_some())
    }

    async fn webhook(&self, organization: OrganizationId) -> Result<Option<Subscription>> {
        let statement = query(WEBHOOK).bind(organization.uuid());
        self.row(statement)
            .await?
            .as_ref()
            .map(rows::subscription)
            .transpose()
    }

    async fn in_force(&self, organizations: &[OrganizationId]) -> Result<Vec<InForce>> {
        let read = self.rows(query(IN_FORCE).bind(uuids(organizations))).await?;
        let mut in_force: Vec<InForce> = Vec::new();
        for row in &read {
            let organization: OrganizationId = row.id("organization")?;
            if in_force
                .last()
                .is_none_or(|last| last.organization != organization)
            {
                let version = row.value("subscriptions_version")?;
                in_force.push(InForce {
                    organization,
                    version,
                    subscriptions: Vec::new(),
                });
            }
            if row.value::<Option<Uuid>>("id")?.is_some()
                && let Some(last) = in_force.last_mut()
            {
                last.subscriptions.push(Arc::new(rows::subscription(row)?));
            }
        }
        Ok(in_force)
    }

    async fn by_ids(&self, ids: &[SubscriptionId]) -> Result<Vec<Arc<Subscription>>> {
        shared(&self.rows(query(BY_IDS).bind(uuids(ids))).await?)
    }
}

fn patterns(patterns: &[crate::EventPattern]) -> Vec<String> {
    patterns
        .iter()
        .map(|pattern| pattern.as_str().to_owned())
        .collect()
}
