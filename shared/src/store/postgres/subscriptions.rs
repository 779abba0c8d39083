//! Subscriptions. Every change is one statement that also raises the organization's subscriptions version (which locks
//! its row, so that changes within an organization come one after the other) and gives notice.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};
use uuid::Uuid;

use super::{
    Engine, Result, Statement,
    announcements::wanted,
    organizations::{paged, uuids},
    rows,
    rows::Columns,
};
use crate::{
    OrganizationId, Subscription, SubscriptionId,
    announcement::Announcement,
    seal::{KeyId, Sealed},
    store::{
        InForce, NewSecret, Page, PageRequest, PatchOutcome, SealedSecrets, SubscriptionPatch, Subscriptions,
    },
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
            ".signature_scheme, ",
            $table,
            ".public_key, CASE WHEN ",
            $table,
            ".former_until > now() THEN ",
            $table,
            ".former_secret END AS former_secret, ",
            $table,
            ".former_scheme, ",
            $table,
            ".former_until, ",
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
            ".rate_limit_per_second, ",
            $table,
            ".ordering, ",
            $table,
            ".format, ",
            $table,
            ".header_names, ",
            $table,
            ".headers, ",
            $table,
            ".metadata, ",
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
        changing!($change, "")
    };
    ($change:literal, $beside:expr) => {
        concat!(
            "WITH changed AS (",
            $change,
            " RETURNING *), raised AS (
                UPDATE organizations SET subscriptions_version = subscriptions_version + 1
                WHERE id IN (SELECT organization_id FROM changed)
            )",
            $beside,
            " SELECT ",
            columns!("changed"),
            ", pg_notify('triggers_changes', 's:' || changed.id) FROM changed"
        )
    };
}

const CREATE: &str = changing!(
    "INSERT INTO subscriptions (id, organization_id, builtin, kind, url, secret, retry_schedule_seconds, timeout_ms,
        max_in_flight, rate_limit_per_second, ordering, format, header_names, headers, event_types, enabled,
        disabled_reason, description, metadata, signature_scheme, public_key)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)"
);

const PATCH: &str = changing!(
    "UPDATE subscriptions SET
        kind = coalesce($4, kind),
        url = CASE WHEN $4 IS NULL THEN url ELSE $5 END,
        secret = CASE WHEN $4 IS NULL THEN secret ELSE $6 END,
        retry_schedule_seconds = CASE WHEN $4 IS NULL THEN retry_schedule_seconds ELSE $7 END,
        timeout_ms = CASE WHEN $4 IS NULL THEN timeout_ms ELSE $8 END,
        max_in_flight = CASE WHEN $4 IS NULL THEN max_in_flight ELSE $9 END,
        rate_limit_per_second = CASE WHEN $4 IS NULL THEN rate_limit_per_second ELSE $10 END,
        ordering = CASE WHEN $4 IS NULL THEN ordering ELSE $11 END,
        format = CASE WHEN $4 IS NULL THEN format ELSE $12 END,
        header_names = CASE WHEN $4 IS NULL THEN header_names ELSE $13 END,
        headers = CASE WHEN $4 IS NULL THEN headers ELSE $14 END,
        event_types = coalesce($15, event_types),
        enabled = coalesce($16, enabled),
        disabled_reason = CASE WHEN $16::boolean IS NULL THEN disabled_reason END,
        description = CASE WHEN $17 THEN $18 ELSE description END,
        metadata = CASE WHEN $19 THEN $20 ELSE metadata END,
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
     WHERE id = $1 AND organization_id = $2 AND version = $3 AND deleted_at IS NULL AND enabled",
    concat!(
        ", told AS (
            INSERT INTO announcements (id, organization_id, type, payload)
            SELECT $5, organization_id, 'triggers.subscription.disabled', $6 FROM changed WHERE ",
        wanted!("changed.organization_id"),
        "   ON CONFLICT DO NOTHING
        ), forgotten AS (
            DELETE FROM subscription_failures WHERE subscription_id IN (SELECT id FROM changed)
        )"
    )
);

const ROTATE: &str = changing!(
    "UPDATE subscriptions SET
        former_secret = CASE WHEN $7 > 0 THEN secret END,
        former_scheme = CASE WHEN $7 > 0 THEN signature_scheme END,
        former_until = CASE WHEN $7 > 0 THEN now() + make_interval(secs => $7) END,
        signature_scheme = $4, secret = $5, public_key = $6,
        version = version + 1, updated_at = now()
     WHERE id = $1 AND organization_id = $2 AND version = $3 AND deleted_at IS NULL AND kind = 'push'"
);

const SEALED_OTHERWISE: &str = "
    SELECT organization_id, id, secret, former_secret, headers FROM subscriptions
    WHERE ($2::uuid IS NULL OR id > $2)
      AND (substring(secret FROM 1 FOR 4) <> $1 OR substring(former_secret FROM 1 FOR 4) <> $1
           OR substring(headers FROM 1 FOR 4) <> $1)
    ORDER BY id LIMIT $3";

const RESEAL: &str = "
    UPDATE subscriptions SET
        secret = CASE WHEN secret = $2 THEN $3 ELSE secret END,
        former_secret = CASE WHEN former_secret = $2 THEN $3 ELSE former_secret END,
        headers = CASE WHEN headers = $2 THEN $3 ELSE headers END
    WHERE id = $1 AND (secret = $2 OR former_secret = $2 OR headers = $2) RETURNING id";

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
      WHERE o.id = ANY($1) AND NOT EXISTS (SELECT FROM removals r WHERE r.organization_id = o.id)
      ORDER BY o.id, s.id"
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
    let headers = push.and_then(|push| push.headers.as_ref());
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
        .bind(
            push.and_then(|push| push.rate_limit)
                .map(|rate| i32::try_from(rate.get()).unwrap_or(i32::MAX)),
        )
        .bind(push.map(|push| push.ordering.as_str()))
        .bind(push.map(|push| push.format.as_str()))
        .bind(headers.map(|headers| {
            let names = headers.names.iter();
            names.map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
        }))
        .bind(headers.map(|headers| headers.values.0.clone()))
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
            .bind(subscription.disabled_reason.clone())
            .bind(subscription.description.clone())
            .bind(subscription.metadata.to_json())
            .bind(subscription.push().map(|push| push.scheme.as_str()))
            .bind(subscription.push().and_then(|push| push.public_key.clone()));
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
            .bind(patch.description.flatten())
            .bind(patch.metadata.is_some())
            .bind(patch.metadata.and_then(|metadata| metadata.to_json()));
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
        let announcement = Announcement::disabled(id, reason);
        let statement = statement.bind(announcement.id.uuid()).bind(announcement.payload);
        Ok(self.row(statement).await?.is_some())
    }

    async fn rotate(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        secret: NewSecret,
        overlap: Duration,
    ) -> Result<PatchOutcome> {
        let statement = query(ROTATE)
            .bind(id.uuid())
            .bind(organization.uuid())
            .bind(version)
            .bind(secret.scheme.as_str())
            .bind(secret.secret.0)
            .bind(secret.public_key)
            .bind(rows::seconds(overlap));
        if let Some(row) = self.row(statement).await? {
            return Ok(PatchOutcome::Changed(Box::new(rows::subscription(&row)?)));
        }
        Ok(match Subscriptions::get(self, organization, id).await? {
            Some(_) => PatchOutcome::Conflict,
            None => PatchOutcome::NotFound,
        })
    }

    async fn sealed_otherwise(
        &self,
        key: KeyId,
        after: Option<SubscriptionId>,
        limit: u32,
    ) -> Result<Vec<SealedSecrets>> {
        let statement = query(SEALED_OTHERWISE)
            .bind(key.to_vec())
            .bind(after.map(SubscriptionId::uuid))
            .bind(i64::from(limit));
        let found = self.rows(statement).await?;
        let read = found.iter().map(|row| {
            let secrets = [
                row.value::<Option<Vec<u8>>>("secret")?,
                row.value("former_secret")?,
                row.value("headers")?,
            ];
            Ok(SealedSecrets {
                organization: row.id("organization_id")?,
                id: row.id("id")?,
                secrets: secrets.into_iter().flatten().map(Sealed).collect(),
            })
        });
        read.collect()
    }

    async fn reseal(&self, id: SubscriptionId, before: &Sealed, after: Sealed) -> Result<bool> {
        let statement = query(RESEAL).bind(id.uuid()).bind(before.0.clone()).bind(after.0);
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
