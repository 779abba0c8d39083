//! Subscriptions.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    AssertSqlSafe, Row as _, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{
    Engine,
    announcements::{announce, forget_failing},
    many::{marks, portions},
    organizations::paged,
    row::{Columns as _, corrupt, failed},
    writer::Tx,
};
use crate::{
    Builtin, EventPattern, Filter, OrganizationId, RetrySchedule, Subscription, SubscriptionId,
    SubscriptionUrl, Timestamp,
    announcement::Announcement,
    audit::{self, Action},
    filter::{FiltersFull, FiltersKept, PATTERN_WORD},
    seal::{KeyId, Sealed},
    signature::SignatureScheme,
    store::{
        Change, InForce, NewSecret, PAGE_BYTES, Page, PageRequest, PatchOutcome, Result, SealedSecrets,
        SubscriptionPatch, Subscriptions,
    },
    subscription::{
        AttemptTimeout, Format, FormerSecret, Full, HeaderName, MAX_SUBSCRIPTIONS, MaxInFlight, Metadata,
        Ordering, Push, RateLimit, SealedHeaders, Target,
    },
};

macro_rules! columns {
    ($description:literal, $metadata:literal) => {
        concat!(
            "s.id, s.organization_id, s.builtin, s.kind, s.url, s.secret, s.retry_schedule, s.timeout_ms, \
             s.max_in_flight, s.event_types, s.enabled, s.disabled_reason, ",
            $description,
            ", s.version, s.created_at, s.updated_at, s.rate_limit_per_second, s.ordering, s.signature_scheme, \
             s.public_key, s.former_secret, s.former_scheme, s.former_until, s.format, s.header_names, s.headers, ",
            $metadata,
            ", s.filter, s.enabled_at"
        )
    };
}

const SUBSCRIPTION: &str = columns!("s.description", "s.metadata");

/// Without what is for people: the planning and the sending of deliveries have no need of it.
const TO_SERVE: &str = columns!("NULL", "NULL");

/// From a row of [`SUBSCRIPTION`].
fn subscription(row: &SqliteRow) -> Result<Subscription> {
    let patterns: Vec<String> = serde_json::from_str(row.value(9)?).map_err(corrupt)?;
    let patterns = patterns.iter().map(|pattern| EventPattern::parse(pattern));
    Ok(Subscription {
        id: row.id(0)?,
        organization: row.id(1)?,
        builtin: row
            .value::<Option<&str>>(2)?
            .map(str::parse::<Builtin>)
            .transpose()
            .map_err(corrupt)?,
        target: match row.value::<&str>(3)? {
            "push" => Target::Push(push(row)?),
            "pull" => Target::Pull,
            kind => return Err(corrupt(format!("unknown kind of subscription {kind:?}"))),
        },
        event_types: patterns.collect::<Result<_, _>>().map_err(corrupt)?,
        filter: row.value::<Option<&str>>(27)?.map(Filter::from_trusted),
        enabled: row.value(10)?,
        disabled_reason: row.value(11)?,
        description: row.value(12)?,
        metadata: Metadata::from_json(row.value(26)?).map_err(corrupt)?,
        version: row.value(13)?,
        created_at: row.time(14)?,
        updated_at: row.time(15)?,
        enabled_at: row.time_if_any(28)?,
    })
}

fn push(row: &SqliteRow) -> Result<Push> {
    let waits: Vec<u32> = serde_json::from_str(row.value(6)?).map_err(corrupt)?;
    Ok(Push {
        url: SubscriptionUrl::parse(row.value(4)?).map_err(corrupt)?,
        scheme: scheme(row, 18)?,
        secret: Sealed(row.value(5)?),
        public_key: row.value(19)?,
        former: match (row.value::<Option<Vec<u8>>>(20)?, row.time_if_any(22)?) {
            (Some(secret), Some(until)) if until > Timestamp::now() => Some(FormerSecret {
                scheme: scheme(row, 21)?,
                secret: Sealed(secret),
                until,
            }),
            _ => None,
        },
        retry_schedule: RetrySchedule::new(waits).map_err(corrupt)?,
        timeout: AttemptTimeout::new(row.number(7)?).map_err(corrupt)?,
        max_in_flight: MaxInFlight::new(row.number(8)?).map_err(corrupt)?,
        rate_limit: row
            .value::<Option<u32>>(16)?
            .map(|rate| RateLimit::new(rate.into()))
            .transpose()
            .map_err(corrupt)?,
        ordering: match row.value::<Option<&str>>(17)? {
            Some(name) => name.parse().map_err(corrupt)?,
            None => Ordering::None,
        },
        format: match row.value::<Option<&str>>(23)? {
            Some(name) => name.parse().map_err(corrupt)?,
            None => Format::Standard,
        },
        headers: headers(row)?,
    })
}

fn headers(row: &SqliteRow) -> Result<Option<SealedHeaders>> {
    let Some(values) = row.value::<Option<Vec<u8>>>(25)? else {
        return Ok(None);
    };
    let names: Vec<String> = serde_json::from_str(row.value(24)?).map_err(corrupt)?;
    let names = names.iter().map(|name| HeaderName::parse(name));
    Ok(Some(SealedHeaders {
        names: names.collect::<Result<_, _>>().map_err(corrupt)?,
        values: Sealed(values),
    }))
}

fn scheme(row: &SqliteRow, column: usize) -> Result<SignatureScheme> {
    match row.value::<Option<&str>>(column)? {
        Some(name) => name.parse().map_err(corrupt),
        None => Ok(SignatureScheme::Hmac),
    }
}

/// Binds what a client may set: kind, url, secret, schedule, timeout, limit, rate, ordering, format, names and values of
/// headers, types, enabled, reason, description, metadata, filter.
fn bind_settings<'q>(
    query: Query<'q, Sqlite, SqliteArguments>,
    subscription: &Subscription,
) -> Result<Query<'q, Sqlite, SqliteArguments>> {
    let push = subscription.push();
    let waits = push
        .map(|push| serde_json::to_string(&push.retry_schedule))
        .transpose();
    let patterns = serde_json::to_string(&subscription.event_types);
    let headers = push.and_then(|push| push.headers.as_ref());
    let names = headers.map(|headers| {
        let names: Vec<&str> = headers.names.iter().map(HeaderName::as_str).collect();
        serde_json::json!(names).to_string()
    });
    Ok(query
        .bind(if push.is_some() { "push" } else { "pull" })
        .bind(push.map(|push| push.url.as_str().to_owned()))
        .bind(push.map(|push| push.secret.0.clone()))
        .bind(waits.map_err(corrupt)?)
        .bind(push.map(|push| push.timeout.get()))
        .bind(push.map(|push| i64::from(push.max_in_flight.get())))
        .bind(push.and_then(|push| push.rate_limit).map(RateLimit::get))
        .bind(push.map(|push| push.ordering.as_str()))
        .bind(push.map(|push| push.format.as_str()))
        .bind(names)
        .bind(headers.map(|headers| headers.values.0.clone()))
        .bind(patterns.map_err(corrupt)?)
        .bind(subscription.enabled)
        .bind(subscription.disabled_reason.clone())
        .bind(subscription.description.clone())
        .bind(subscription.metadata.to_json())
        .bind(
            subscription
                .filter
                .as_ref()
                .map(|filter| filter.as_str().to_owned()),
        ))
}

async fn insert(connection: &mut SqliteConnection, subscription: &Subscription) -> Result<()> {
    let query = sqlx::query(
        "INSERT INTO subscriptions (id, organization_id, builtin, version, created_at, updated_at, kind, url, secret, \
         retry_schedule, timeout_ms, max_in_flight, rate_limit_per_second, ordering, format, header_names, headers, \
         event_types, enabled, disabled_reason, description, metadata, filter, signature_scheme, public_key) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(subscription.id.uuid())
    .bind(subscription.organization.uuid())
    .bind(subscription.builtin.map(Builtin::as_str))
    .bind(subscription.version)
    .bind(subscription.created_at.millis())
    .bind(subscription.updated_at.millis());
    bind_settings(query, subscription)?
        .bind(subscription.push().map(|push| push.scheme.as_str()))
        .bind(subscription.push().and_then(|push| push.public_key.clone()))
        .execute(connection)
        .await
        .map(drop)
        .map_err(failed)
}

/// The inbox that every organization has from the start.
pub(super) async fn insert_inbox(
    connection: &mut SqliteConnection,
    organization: OrganizationId,
    now: Timestamp,
) -> Result<()> {
    let inbox = Subscription {
        id: SubscriptionId::new(),
        organization,
        builtin: Some(Builtin::Inbox),
        target: Target::Pull,
        event_types: vec![EventPattern::all()],
        enabled: true,
        disabled_reason: None,
        description: None,
        filter: None,
        metadata: Metadata::default(),
        version: 1,
        created_at: now,
        updated_at: now,
        enabled_at: None,
    };
    insert(connection, &inbox).await
}

async fn raise_version(tx: &mut Tx, organization: OrganizationId) -> Result<()> {
    sqlx::query("UPDATE organizations SET subscriptions_version = subscriptions_version + 1 WHERE id = ?")
        .bind(organization.uuid())
        .execute(&mut tx.connection)
        .await
        .map(drop)
        .map_err(failed)
}

/// Raises the organization's version, and announces the change.
async fn changed(tx: &mut Tx, organization: OrganizationId, id: SubscriptionId) -> Result<()> {
    raise_version(tx, organization).await?;
    tx.announce(Change::Subscription(id));
    Ok(())
}

/// Whether an organization's filters leave room for one that a subscription is to have. That holds, for nobody else writes.
async fn room_for(
    tx: &mut Tx,
    organization: OrganizationId,
    id: SubscriptionId,
    filter: &Filter,
) -> Result<Result<(), FiltersFull>> {
    let row = sqlx::query(
        "SELECT coalesce(sum(length(filter)), 0), \
         coalesce(sum((length(filter) - length(replace(filter, ?1, ''))) / length(?1)), 0) FROM subscriptions \
         WHERE organization_id = ?2 AND id <> ?3 AND deleted_at IS NULL AND filter IS NOT NULL",
    )
    .bind(PATTERN_WORD)
    .bind(organization.uuid())
    .bind(id.uuid())
    .fetch_one(&mut tx.connection)
    .await
    .map_err(failed)?;
    let kept = FiltersKept {
        characters: row.number(0)?,
        patterns: row.number(1)?,
    };
    Ok(kept.room_for(filter))
}

async fn create(tx: &mut Tx, mut subscription: Subscription) -> Result<Result<Subscription, Full>> {
    let (organization, id) = (subscription.organization, subscription.id);
    let row = sqlx::query(
        "SELECT count(*) FROM subscriptions \
         WHERE organization_id = ? AND deleted_at IS NULL AND builtin IS NOT 'inbox'",
    )
    .bind(organization.uuid())
    .fetch_one(&mut tx.connection)
    .await
    .map_err(failed)?;
    let count: u64 = row.number(0)?;
    if count >= u64::from(MAX_SUBSCRIPTIONS) {
        return Ok(Err(Full::Subscriptions));
    }
    if let Some(filter) = &subscription.filter
        && let Err(full) = room_for(tx, organization, id, filter).await?
    {
        return Ok(Err(full.into()));
    }
    subscription.version = 1;
    subscription.created_at = tx.now;
    subscription.updated_at = tx.now;
    insert(&mut tx.connection, &subscription).await?;
    changed(tx, organization, id).await?;
    tx.audit(audit::Change::of(organization, Action::SubscriptionCreated, id))
        .await?;
    Ok(Ok(subscription))
}

async fn patch(
    tx: &mut Tx,
    organization: OrganizationId,
    id: SubscriptionId,
    version: i64,
    patch: SubscriptionPatch,
) -> Result<PatchOutcome> {
    let row = sqlx::query(AssertSqlSafe(format!(
        "SELECT {SUBSCRIPTION} FROM subscriptions s WHERE s.id = ? AND s.organization_id = ? AND s.deleted_at IS NULL"
    )))
    .bind(id.uuid())
    .bind(organization.uuid())
    .fetch_optional(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(row) = row else {
        return Ok(PatchOutcome::NotFound);
    };
    let mut subscription = subscription(&row)?;
    if subscription.version != version {
        return Ok(PatchOutcome::Conflict);
    }
    if let Some(Some(filter)) = &patch.filter
        && let Err(full) = room_for(tx, organization, id, filter).await?
    {
        return Ok(PatchOutcome::FiltersFull(full));
    }
    let was = (subscription.enabled, url(&subscription));
    let before = subscription.clone();
    if let Some(target) = patch.target {
        subscription.target = target;
    }
    if let Some(event_types) = patch.event_types {
        subscription.event_types = event_types;
    }
    if patch.enabled == Some(true) && !subscription.enabled {
        subscription.enabled_at = Some(tx.now);
    }
    if let Some(filter) = patch.filter {
        subscription.filter = filter;
    }
    if let Some(enabled) = patch.enabled {
        subscription.enabled = enabled;
        subscription.disabled_reason = None;
    }
    if let Some(description) = patch.description {
        subscription.description = description;
    }
    if let Some(metadata) = patch.metadata {
        subscription.metadata = metadata;
    }
    subscription.version += 1;
    subscription.updated_at = tx.now;

    let query = sqlx::query(
        "UPDATE subscriptions SET kind = ?, url = ?, secret = ?, retry_schedule = ?, timeout_ms = ?, \
         max_in_flight = ?, rate_limit_per_second = ?, ordering = ?, format = ?, header_names = ?, headers = ?, \
         event_types = ?, enabled = ?, disabled_reason = ?, description = ?, metadata = ?, filter = ?, version = ?, \
         updated_at = ?, enabled_at = ? WHERE id = ?",
    );
    bind_settings(query, &subscription)?
        .bind(subscription.version)
        .bind(subscription.updated_at.millis())
        .bind(subscription.enabled_at.map(Timestamp::millis))
        .bind(id.uuid())
        .execute(&mut tx.connection)
        .await
        .map_err(failed)?;
    if was != (subscription.enabled, url(&subscription)) {
        forget_failing(tx, id).await?;
    }
    changed(tx, organization, id).await?;
    if let Some(change) = audit::Change::of_subscription(&before, &subscription) {
        tx.audit(change).await?;
    }
    Ok(PatchOutcome::Changed(Box::new(subscription)))
}

fn url(subscription: &Subscription) -> Option<String> {
    subscription.push().map(|push| push.url.as_str().to_owned())
}

async fn delete(tx: &mut Tx, organization: OrganizationId, id: SubscriptionId) -> Result<bool> {
    let deleted = sqlx::query(
        "UPDATE subscriptions SET deleted_at = ?, updated_at = ?, version = version + 1 \
         WHERE id = ? AND organization_id = ? AND deleted_at IS NULL AND builtin IS NOT 'inbox'",
    )
    .bind(tx.now.millis())
    .bind(tx.now.millis())
    .bind(id.uuid())
    .bind(organization.uuid())
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    if deleted.rows_affected() == 0 {
        return Ok(false);
    }
    forget_failing(tx, id).await?;
    changed(tx, organization, id).await?;
    tx.audit(audit::Change::of(organization, Action::SubscriptionDeleted, id))
        .await?;
    Ok(true)
}

/// Disables one, if it is as it was, and tells of it if it is to be announced.
pub(super) async fn disable(
    tx: &mut Tx,
    organization: OrganizationId,
    id: SubscriptionId,
    version: i64,
    reason: String,
    announced: bool,
) -> Result<bool> {
    let announcement = Announcement::disabled(id, &reason);
    let audited = audit::Change::of(organization, Action::SubscriptionDisabled, id)
        .with_changed(vec!["enabled"])
        .because(&reason);
    let disabled = sqlx::query(
        "UPDATE subscriptions SET enabled = 0, disabled_reason = ?, version = version + 1, updated_at = ? \
         WHERE id = ? AND organization_id = ? AND version = ? AND deleted_at IS NULL AND enabled",
    )
    .bind(reason)
    .bind(tx.now.millis())
    .bind(id.uuid())
    .bind(organization.uuid())
    .bind(version)
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    if disabled.rows_affected() == 0 {
        return Ok(false);
    }
    if announced {
        announce(tx, organization, &announcement).await?;
    }
    tx.audit(audited).await?;
    forget_failing(tx, id).await?;
    changed(tx, organization, id).await?;
    Ok(true)
}

async fn rotate(
    tx: &mut Tx,
    organization: OrganizationId,
    id: SubscriptionId,
    version: i64,
    secret: NewSecret,
    overlap: Duration,
) -> Result<PatchOutcome> {
    let until = (!overlap.is_zero()).then(|| tx.now.plus(overlap).millis());
    let rotated = sqlx::query(
        "UPDATE subscriptions SET former_secret = CASE WHEN ?1 IS NOT NULL THEN secret END, \
         former_scheme = CASE WHEN ?1 IS NOT NULL THEN signature_scheme END, former_until = ?1, \
         signature_scheme = ?2, secret = ?3, public_key = ?4, version = version + 1, updated_at = ?5 \
         WHERE id = ?6 AND organization_id = ?7 AND version = ?8 AND deleted_at IS NULL AND kind = 'push'",
    )
    .bind(until)
    .bind(secret.scheme.as_str())
    .bind(secret.secret.0)
    .bind(secret.public_key)
    .bind(tx.now.millis())
    .bind(id.uuid())
    .bind(organization.uuid())
    .bind(version)
    .execute(&mut tx.connection)
    .await
    .map_err(failed)?;
    let row = sqlx::query(AssertSqlSafe(format!(
        "SELECT {SUBSCRIPTION} FROM subscriptions s WHERE s.id = ? AND s.organization_id = ? AND s.deleted_at IS NULL"
    )))
    .bind(id.uuid())
    .bind(organization.uuid())
    .fetch_optional(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(row) = row else {
        return Ok(PatchOutcome::NotFound);
    };
    if rotated.rows_affected() == 0 {
        return Ok(PatchOutcome::Conflict);
    }
    changed(tx, organization, id).await?;
    tx.audit(audit::Change::of(organization, Action::SecretRotated, id))
        .await?;
    Ok(PatchOutcome::Changed(Box::new(subscription(&row)?)))
}

async fn reseal(tx: &mut Tx, id: SubscriptionId, before: Sealed, after: Sealed) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE subscriptions SET secret = CASE WHEN secret = ?2 THEN ?3 ELSE secret END, \
         former_secret = CASE WHEN former_secret = ?2 THEN ?3 ELSE former_secret END, \
         headers = CASE WHEN headers = ?2 THEN ?3 ELSE headers END, version = version + 1 \
         WHERE id = ?1 AND (secret = ?2 OR former_secret = ?2 OR headers = ?2) RETURNING organization_id",
    )
    .bind(id.uuid())
    .bind(before.0)
    .bind(after.0)
    .fetch_all(&mut tx.connection)
    .await
    .map_err(failed)?;
    let Some(row) = done.first() else {
        return Ok(false);
    };
    let of: OrganizationId = row.id(0)?;
    tx.audit(audit::Change::of(of, Action::SubscriptionResealed, id))
        .await?;
    Ok(true)
}

#[async_trait]
impl Subscriptions for Engine {
    async fn create(&self, subscription: Subscription) -> Result<Result<Subscription, Full>> {
        self.writer
            .run(move |tx| Box::pin(create(tx, subscription)))
            .await
    }

    async fn get(&self, organization: OrganizationId, id: SubscriptionId) -> Result<Option<Subscription>> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {SUBSCRIPTION} FROM subscriptions s \
             WHERE s.id = ? AND s.organization_id = ? AND s.deleted_at IS NULL"
        )))
        .bind(id.uuid())
        .bind(organization.uuid())
        .fetch_optional(&self.readers)
        .await
        .map_err(failed)?
        .as_ref()
        .map(subscription)
        .transpose()
    }

    async fn list(
        &self,
        organization: OrganizationId,
        page: PageRequest<SubscriptionId>,
    ) -> Result<Page<Subscription, SubscriptionId>> {
        let after = page.after.map_or_else(uuid::Uuid::nil, SubscriptionId::uuid);
        // What they weigh together is summed up before they are read.
        let rows = sqlx::query(AssertSqlSafe(format!(
            "WITH found AS MATERIALIZED ( \
                SELECT id, row_number() OVER (ORDER BY id) AS place, sum(1024 + octet_length(event_types) \
                + coalesce(octet_length(url), 0) + coalesce(octet_length(filter), 0) \
                + coalesce(octet_length(metadata), 0) + coalesce(octet_length(description), 0) \
                + coalesce(octet_length(headers), 0) + coalesce(octet_length(header_names), 0)) \
                OVER (ORDER BY id) AS weight \
                FROM (SELECT * FROM subscriptions \
                WHERE organization_id = ? AND deleted_at IS NULL AND id > ? ORDER BY id LIMIT ?) \
             ) \
             SELECT {SUBSCRIPTION}, (SELECT count(*) FROM found) AS found \
             FROM found f JOIN subscriptions s ON s.id = f.id WHERE f.place = 1 OR f.weight <= ? ORDER BY s.id"
        )))
        .bind(organization.uuid())
        .bind(after)
        .bind(i64::from(page.limit) + 1)
        .bind(i64::try_from(PAGE_BYTES).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let found: i64 = match rows.first() {
            Some(row) => row.try_get("found").map_err(failed)?,
            None => 0,
        };
        let items = rows.iter().map(subscription).collect::<Result<Vec<_>>>()?;
        let mut page = paged(items, page.limit, |subscription| subscription.id);
        if usize::try_from(found).is_ok_and(|found| found > page.items.len()) {
            page.next = page.items.last().map(|subscription| subscription.id);
        }
        Ok(page)
    }

    async fn patch(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        change: SubscriptionPatch,
    ) -> Result<PatchOutcome> {
        self.writer
            .run(move |tx| Box::pin(patch(tx, organization, id, version, change)))
            .await
    }

    async fn delete(&self, organization: OrganizationId, id: SubscriptionId) -> Result<bool> {
        self.writer
            .run(move |tx| Box::pin(delete(tx, organization, id)))
            .await
    }

    async fn disable(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        reason: &str,
        announced: bool,
    ) -> Result<bool> {
        let reason = reason.to_owned();
        self.writer
            .run(move |tx| Box::pin(disable(tx, organization, id, version, reason, announced)))
            .await
    }

    async fn rotate(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        secret: NewSecret,
        overlap: Duration,
    ) -> Result<PatchOutcome> {
        self.writer
            .run(move |tx| Box::pin(rotate(tx, organization, id, version, secret, overlap)))
            .await
    }

    async fn sealed_otherwise(
        &self,
        key: KeyId,
        after: Option<SubscriptionId>,
        limit: u32,
    ) -> Result<Vec<SealedSecrets>> {
        let rows = sqlx::query(
            "SELECT organization_id, id, secret, former_secret, headers FROM subscriptions \
             WHERE id > ? AND (substr(secret, 1, 4) <> ? OR substr(former_secret, 1, 4) <> ? OR substr(headers, 1, 4) <> ?) \
             ORDER BY id LIMIT ?",
        )
        .bind(after.map_or_else(uuid::Uuid::nil, SubscriptionId::uuid))
        .bind(key.to_vec())
        .bind(key.to_vec())
        .bind(key.to_vec())
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let read = rows.iter().map(|row| {
            let secrets = [row.value::<Option<Vec<u8>>>(2)?, row.value(3)?, row.value(4)?];
            Ok(SealedSecrets {
                organization: row.id(0)?,
                id: row.id(1)?,
                secrets: secrets.into_iter().flatten().map(Sealed).collect(),
            })
        });
        read.collect()
    }

    async fn reseal(&self, id: SubscriptionId, before: &Sealed, after: Sealed) -> Result<bool> {
        let before = before.clone();
        self.writer
            .run(move |tx| Box::pin(reseal(tx, id, before, after)))
            .await
    }

    async fn raise_version(&self, organization: OrganizationId) -> Result<()> {
        self.writer
            .run(move |tx| Box::pin(raise_version(tx, organization)))
            .await
    }

    async fn webhook(&self, organization: OrganizationId) -> Result<Option<Subscription>> {
        sqlx::query(AssertSqlSafe(format!(
            "SELECT {SUBSCRIPTION} FROM subscriptions s \
             WHERE s.organization_id = ? AND s.builtin = 'webhook' AND s.deleted_at IS NULL"
        )))
        .bind(organization.uuid())
        .fetch_optional(&self.readers)
        .await
        .map_err(failed)?
        .as_ref()
        .map(subscription)
        .transpose()
    }

    async fn in_force(&self, organizations: &[OrganizationId]) -> Result<Vec<InForce>> {
        let mut found: Vec<InForce> = Vec::with_capacity(organizations.len());
        for portion in portions(organizations) {
            // One statement sees one snapshot. There is always a row: nobody can delete the inbox.
            let sql = format!(
                "SELECT {TO_SERVE}, o.subscriptions_version FROM organizations o \
                 JOIN subscriptions s ON s.organization_id = o.id AND s.deleted_at IS NULL \
                 WHERE o.id IN ({}) AND NOT EXISTS (SELECT 1 FROM removals r WHERE r.organization_id = o.id) \
                 ORDER BY o.id, s.id",
                marks(portion.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for organization in portion {
                query = query.bind(organization.uuid());
            }
            for row in query.fetch_all(&self.readers).await.map_err(failed)? {
                let subscription = Arc::new(subscription(&row)?);
                match found.last_mut() {
                    Some(last) if last.organization == subscription.organization => {
                        last.subscriptions.push(subscription);
                    }
                    _ => found.push(InForce {
                        organization: subscription.organization,
                        version: row.value(29)?,
                        subscriptions: vec![subscription],
                    }),
                }
            }
        }
        Ok(found)
    }

    async fn by_ids(&self, ids: &[SubscriptionId]) -> Result<Vec<Arc<Subscription>>> {
        let mut found = Vec::with_capacity(ids.len());
        for portion in portions(ids) {
            let sql = format!(
                "SELECT {TO_SERVE} FROM subscriptions s WHERE s.deleted_at IS NULL AND s.id IN ({})",
                marks(portion.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for id in portion {
                query = query.bind(id.uuid());
            }
            for row in query.fetch_all(&self.readers).await.map_err(failed)? {
                found.push(Arc::new(subscription(&row)?));
            }
        }
        Ok(found)
    }
}
