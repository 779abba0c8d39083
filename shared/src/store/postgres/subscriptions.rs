//! Subscriptions. Every change is one statement that also raises the organization's subscriptions version (which locks
//! its row, so that changes within an organization come one after the other) and gives notice.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    Connection as _,
    postgres::{PgConnection, PgRow},
    query,
};
use uuid::Uuid;

use super::{
    CALL, Engine, Result, Session, Statement, StoreError,
    announcements::wanted,
    audit_log, classify,
    organizations::{paged, uuids},
    rows,
    rows::Columns,
    within,
};
use crate::{
    Filter, OrganizationId, Subscription, SubscriptionId,
    announcement::Announcement,
    audit::{Action, By, Change},
    filter::{FiltersFull, FiltersKept, PATTERN_WORD},
    seal::{KeyId, Sealed},
    store::{
        InForce, NewSecret, PAGE_BYTES, Page, PageRequest, PatchOutcome, SealedSecrets, SubscriptionPatch,
        Subscriptions,
    },
    subscription::{Full, MAX_SUBSCRIPTIONS, Target},
};

macro_rules! columns {
    ($table:literal) => {
        concat!(
            $table,
            ".description, ",
            $table,
            ".metadata, ",
            columns_to_serve!($table)
        )
    };
}

/// Without what is for people: the planning and the sending of deliveries have no need of it.
macro_rules! columns_to_serve {
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
            ".filter, ",
            $table,
            ".version, ",
            $table,
            ".created_at, ",
            $table,
            ".updated_at, ",
            $table,
            ".enabled_at"
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
        disabled_reason, description, metadata, signature_scheme, public_key, filter)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)"
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
        enabled_at = CASE WHEN $16 AND NOT enabled THEN now() ELSE enabled_at END,
        description = CASE WHEN $17 THEN $18 ELSE description END,
        metadata = CASE WHEN $19 THEN $20 ELSE metadata END,
        filter = CASE WHEN $21 THEN $22 ELSE filter END,
        version = version + 1,
        updated_at = now()
     WHERE id = $1 AND organization_id = $2 AND version = $3 AND deleted_at IS NULL",
    // What this reads is the row as it was.
    ", forgotten AS (
        DELETE FROM subscription_failures f USING changed, subscriptions was
        WHERE f.subscription_id = changed.id AND was.id = changed.id
          AND (was.enabled <> changed.enabled OR was.url IS DISTINCT FROM changed.url)
    )"
);

const DELETE: &str = changing!(
    "UPDATE subscriptions SET deleted_at = now(), updated_at = now(), version = version + 1
     WHERE id = $1 AND organization_id = $2 AND deleted_at IS NULL AND builtin IS DISTINCT FROM 'inbox'",
    ", forgotten AS (DELETE FROM subscription_failures WHERE subscription_id IN (SELECT id FROM changed))"
);

/// `$7` is for how many seconds it must have failed, if that is what it is disabled for. That row is locked, so that a success
/// which is just being told of comes first; and after the subscription's own, as wherever both are. It says whether it is announced,
/// and else `$8` does.
const DISABLE: &str = changing!(
    "UPDATE subscriptions s SET enabled = false, disabled_reason = $4, updated_at = now(), version = version + 1
     WHERE id = (
         SELECT id FROM subscriptions
         WHERE id = $1 AND organization_id = $2 AND version = $3 AND deleted_at IS NULL AND enabled FOR UPDATE
     ) AND ($7::double precision IS NULL OR (
         SELECT true FROM subscription_failures
         WHERE subscription_id = s.id AND failing_since <= now() - make_interval(secs => $7) FOR UPDATE
     ))",
    concat!(
        ", forgotten AS (
            DELETE FROM subscription_failures WHERE subscription_id IN (SELECT id FROM changed) RETURNING begets
        ), told AS (
            INSERT INTO announcements (id, organization_id, type, payload)
            SELECT $5, organization_id, 'triggers.subscription.disabled', $6 FROM changed
            WHERE CASE WHEN $7 IS NULL THEN $8::boolean ELSE EXISTS (SELECT FROM forgotten WHERE begets) END AND ",
        wanted!("changed.organization_id"),
        "   ON CONFLICT DO NOTHING
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

/// The organization's version stays: nothing that deliveries are planned by has changed, and thousands of these in a row would
/// make every plan stale. It is raised once, at the end.
const RESEAL: &str = "
    UPDATE subscriptions SET
        secret = CASE WHEN secret = $2 THEN $3 ELSE secret END,
        former_secret = CASE WHEN former_secret = $2 THEN $3 ELSE former_secret END,
        headers = CASE WHEN headers = $2 THEN $3 ELSE headers END,
        version = version + 1
    WHERE id = $1 AND (secret = $2 OR former_secret = $2 OR headers = $2) RETURNING organization_id";

const RAISE: &str =
    "UPDATE organizations SET subscriptions_version = subscriptions_version + 1 WHERE id = $1";

const GET: &str = concat!(
    "SELECT ",
    columns!("s"),
    " FROM subscriptions s WHERE id = $1 AND organization_id = $2 AND deleted_at IS NULL"
);

/// Held before it is changed: so what is seen to be other is what the change has made so.
const GET_HELD: &str = concat!(
    "SELECT ",
    columns!("s"),
    " FROM subscriptions s WHERE id = $1 AND organization_id = $2 AND deleted_at IS NULL FOR UPDATE"
);

/// Those of a page: what they weigh together is summed up before they are read. `$3` as many as are asked for and one more, `$4`
/// what they may weigh.
const LIST: &str = concat!(
    "WITH found AS MATERIALIZED (
        SELECT id, row_number() OVER (ORDER BY id) AS place, sum(
            1024 + octet_length(event_types::text) + coalesce(octet_length(url), 0) + coalesce(octet_length(filter), 0)
            + coalesce(octet_length(metadata), 0) + coalesce(octet_length(description), 0)
            + coalesce(octet_length(headers), 0) + coalesce(octet_length(header_names::text), 0)
        ) OVER (ORDER BY id) AS weight
        FROM (
            SELECT * FROM subscriptions
            WHERE organization_id = $1 AND deleted_at IS NULL AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3
        ) few
     )
     SELECT ",
    columns!("s"),
    ", (SELECT count(*) FROM found) AS found
     FROM found f JOIN subscriptions s ON s.id = f.id WHERE f.place = 1 OR f.weight <= $4 ORDER BY s.id"
);

const WEBHOOK: &str = concat!(
    "SELECT ",
    columns!("s"),
    " FROM subscriptions s WHERE organization_id = $1 AND builtin = 'webhook' AND deleted_at IS NULL"
);

const BY_IDS: &str = concat!(
    "SELECT NULL::text AS description, NULL::text AS metadata, ",
    columns_to_serve!("s"),
    " FROM subscriptions s WHERE id = ANY($1) AND deleted_at IS NULL ORDER BY id"
);

const IN_FORCE: &str = concat!(
    "SELECT o.id AS organization, o.subscriptions_version, NULL::text AS description, NULL::text AS metadata, ",
    columns_to_serve!("s"),
    " FROM organizations o
      LEFT JOIN subscriptions s ON s.organization_id = o.id AND s.deleted_at IS NULL
      WHERE o.id = ANY($1) AND NOT EXISTS (SELECT FROM removals r WHERE r.organization_id = o.id)
      ORDER BY o.id, s.id"
);

/// Comes before what is to be counted: whoever else changes the organization's filters has been, or waits. The change itself
/// locks the same row later.
const HOLD_ORGANIZATION: &str = "SELECT id FROM organizations WHERE id = $1 FOR NO KEY UPDATE";

const FILTERS_BESIDE: &str = "
    SELECT coalesce(sum(length(filter)), 0)::bigint AS characters,
        coalesce(sum((length(filter) - length(replace(filter, $3::text, ''))) / length($3::text)), 0)::bigint AS patterns
    FROM subscriptions
    WHERE organization_id = $1 AND id <> $2 AND deleted_at IS NULL AND filter IS NOT NULL";

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

/// The built-in inbox, which each organization has, does not count.
const COUNT: &str = "
    SELECT count(*) AS count FROM subscriptions
    WHERE organization_id = $1 AND deleted_at IS NULL AND builtin IS DISTINCT FROM 'inbox'";

/// Holds back whoever else would give the organization something that is counted, until the end of the transaction.
async fn hold(connection: &mut PgConnection, organization: OrganizationId) -> Result<()> {
    let held = query(HOLD_ORGANIZATION).bind(organization.uuid());
    held.execute(connection).await.map(drop).map_err(classify)
}

/// Whether an organization's filters leave room for one that a subscription is to have. That holds until the end of the
/// transaction.
async fn room_for(
    connection: &mut PgConnection,
    organization: OrganizationId,
    id: SubscriptionId,
    filter: &Filter,
) -> Result<Result<(), FiltersFull>> {
    hold(connection, organization).await?;
    let beside = query(FILTERS_BESIDE)
        .bind(organization.uuid())
        .bind(id.uuid())
        .bind(PATTERN_WORD)
        .fetch_one(connection)
        .await
        .map_err(classify)?;
    let kept = FiltersKept {
        characters: beside.number("characters")?,
        patterns: beside.number("patterns")?,
    };
    Ok(kept.room_for(filter))
}

/// Whether an organization has room for a subscription that is to be. That holds until the end of the transaction.
async fn room_for_one(
    connection: &mut PgConnection,
    subscription: &Subscription,
) -> Result<Result<(), Full>> {
    let organization = subscription.organization;
    hold(connection, organization).await?;
    let counted = query(COUNT).bind(organization.uuid());
    let count: u64 = counted
        .fetch_one(&mut *connection)
        .await
        .map_err(classify)?
        .number("count")?;
    Ok(match &subscription.filter {
        _ if count >= u64::from(MAX_SUBSCRIPTIONS) => Err(Full::Subscriptions),
        Some(filter) => room_for(connection, organization, subscription.id, filter)
            .await?
            .map_err(Full::Filters),
        None => Ok(()),
    })
}

/// Makes a subscription, and writes down that it was.
async fn made(
    connection: &mut PgConnection,
    by: &By,
    subscription: &Subscription,
    create: Statement,
) -> Result<Result<Subscription, Full>> {
    // Dropped on the way, it rolls back.
    let mut transaction = connection.begin().await.map_err(classify)?;
    let (organization, id) = (subscription.organization, subscription.id);
    if let Err(full) = room_for_one(&mut transaction, subscription).await? {
        transaction.rollback().await.map_err(classify)?;
        return Ok(Err(full));
    }
    // Read to its end: what is first seen at the commit is an error, too.
    let made = create.fetch_all(&mut *transaction).await.map_err(classify)?.pop();
    let made = made.ok_or_else(|| StoreError::Corrupt("an inserted row was not answered".to_owned()))?;
    let change = Change::of(organization, Action::SubscriptionCreated, id);
    audit_log::write(&mut transaction, by, &change).await?;
    transaction.commit().await.map_err(classify)?;
    rows::subscription(&made).map(Ok)
}

/// Runs a patch, and writes down which fields it has changed; `None` if it does not apply.
async fn patched(
    connection: &mut PgConnection,
    by: &By,
    (organization, id): (OrganizationId, SubscriptionId),
    filter: Option<Filter>,
    patch: Statement,
) -> Result<Result<Option<Subscription>, FiltersFull>> {
    // Dropped on the way, it rolls back.
    let mut transaction = connection.begin().await.map_err(classify)?;
    let before = query(GET_HELD)
        .bind(id.uuid())
        .bind(organization.uuid())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(classify)?;
    // After the subscription's own row, as wherever both are locked.
    if before.is_some()
        && let Some(filter) = &filter
        && let Err(full) = room_for(&mut transaction, organization, id, filter).await?
    {
        transaction.rollback().await.map_err(classify)?;
        return Ok(Err(full));
    }
    let changed = patch.fetch_all(&mut *transaction).await.map_err(classify)?.pop();
    let changed = match (before, changed) {
        (Some(before), Some(changed)) => {
            let (before, changed) = (rows::subscription(&before)?, rows::subscription(&changed)?);
            if let Some(change) = Change::of_subscription(&before, &changed) {
                audit_log::write(&mut transaction, by, &change).await?;
            }
            Some(changed)
        }
        _ => None,
    };
    transaction.commit().await.map_err(classify)?;
    Ok(Ok(changed))
}

fn shared(rows: &[PgRow]) -> Result<Vec<Arc<Subscription>>> {
    rows.iter()
        .map(|row| rows::subscription(row).map(Arc::new))
        .collect()
}

#[async_trait]
impl Subscriptions for Engine {
    async fn create(&self, subscription: Subscription) -> Result<Result<Subscription, Full>> {
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
            .bind(subscription.push().and_then(|push| push.public_key.clone()))
            .bind(text(subscription.filter.as_ref()));
        let by = By::now();
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let done = made(session.connection(), &by, &subscription, statement).await;
            session.settle_read(done)
        }))
        .await
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
            .bind(i64::from(page.limit) + 1)
            .bind(i64::try_from(PAGE_BYTES).unwrap_or(i64::MAX));
        let rows = self.rows(statement).await?;
        let found: usize = match rows.first() {
            Some(row) => row.number("found")?,
            None => 0,
        };
        let listed = rows.iter().map(rows::subscription).collect::<Result<Vec<_>>>()?;
        let mut page = paged(listed, page.limit, |subscription| subscription.id);
        if found > page.items.len() {
            page.next = page.items.last().map(|subscription| subscription.id);
        }
        Ok(page)
    }

    async fn patch(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        patch: SubscriptionPatch,
    ) -> Result<PatchOutcome> {
        let filter = patch.filter.clone().flatten();
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
            .bind(patch.metadata.and_then(|metadata| metadata.to_json()))
            .bind(patch.filter.is_some())
            .bind(text(patch.filter.flatten().as_ref()));
        let by = By::now();
        let patched = Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let which = (organization, id);
            let done = patched(session.connection(), &by, which, filter, statement).await;
            session.settle_read(done)
        }))
        .await?;
        match patched {
            Ok(Some(changed)) => return Ok(PatchOutcome::Changed(Box::new(changed))),
            Ok(None) => {}
            Err(full) => return Ok(PatchOutcome::FiltersFull(full)),
        }
        Ok(match Subscriptions::get(self, organization, id).await? {
            Some(_) => PatchOutcome::Conflict,
            None => PatchOutcome::NotFound,
        })
    }

    async fn delete(&self, organization: OrganizationId, id: SubscriptionId) -> Result<bool> {
        let statement = query(DELETE).bind(id.uuid()).bind(organization.uuid());
        let deleted = Change::of(organization, Action::SubscriptionDeleted, id);
        Ok(self.audited_as(statement, deleted).await?.is_some())
    }

    async fn disable(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        reason: &str,
        announced: bool,
    ) -> Result<bool> {
        self.disable_as(organization, id, version, reason, Why::Told { announced })
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
        let statement = query(ROTATE)
            .bind(id.uuid())
            .bind(organization.uuid())
            .bind(version)
            .bind(secret.scheme.as_str())
            .bind(secret.secret.0)
            .bind(secret.public_key)
            .bind(rows::seconds(overlap));
        let rotated = Change::of(organization, Action::SecretRotated, id);
        if let Some(row) = self.audited_as(statement, rotated).await? {
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
        let resealed = self
            .audited(statement, |row| {
                let of: OrganizationId = row.id("organization_id")?;
                Ok(vec![Change::of(of, Action::SubscriptionResealed, id)])
            })
            .await?;
        Ok(resealed.is_some())
    }

    async fn raise_version(&self, organization: OrganizationId) -> Result<()> {
        self.rows(query(RAISE).bind(organization.uuid())).await.map(drop)
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

/// What one is disabled for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Why {
    /// Its subscriber, or a client, wants it so.
    Told {
        /// Whether it is announced.
        announced: bool,
    },
    /// It has failed for so long; that it has says whether it is announced.
    Failed(Duration),
}

impl Engine {
    /// Disables one; if it is for how long it has failed, only if it has.
    pub(super) async fn disable_as(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        reason: &str,
        why: Why,
    ) -> Result<bool> {
        let (failed_for, announced) = match why {
            Why::Told { announced } => (None, announced),
            Why::Failed(failed_for) => (Some(failed_for), false),
        };
        let announcement = Announcement::disabled(id, reason);
        let statement = query(DISABLE)
            .bind(id.uuid())
            .bind(organization.uuid())
            .bind(version)
            .bind(reason.to_owned())
            .bind(announcement.id.uuid())
            .bind(announcement.payload)
            .bind(failed_for.map(rows::seconds))
            .bind(announced);
        let disabled = Change::of(organization, Action::SubscriptionDisabled, id)
            .with_changed(vec!["enabled"])
            .because(reason);
        Ok(self.audited_as(statement, disabled).await?.is_some())
    }
}

fn text(filter: Option<&Filter>) -> Option<String> {
    filter.map(|filter| filter.as_str().to_owned())
}

fn patterns(patterns: &[crate::EventPattern]) -> Vec<String> {
    patterns
        .iter()
        .map(|pattern| pattern.as_str().to_owned())
        .collect()
}
