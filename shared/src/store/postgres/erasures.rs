//! Erasing what a producer sent.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection as _, postgres::PgConnection, query};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    CALL, Engine, Result, Session, Statement, audit_log, classify, former, rows, rows::Columns, timed_out,
    within,
};
use crate::{
    EventId, OrganizationId, Timestamp,
    audit::{Action, By, Change},
    store::{
        ERASURE_KEPT, Erased, Erasures, MAX_MARKS,
        erasures::{BETWEEN_LOOKS, NO_PAYLOAD, may_come},
    },
};

/// How long an erasure waits for intakes that may not have seen its mark.
const INTAKES: Duration = Duration::from_secs(3);
/// How long it waits between two looks.
const BETWEEN: Duration = Duration::from_millis(5);

/// Which event an id is of, or an alias of it.
const RESOLVE: &str = "
    SELECT e.id, e.seq FROM (SELECT $2::uuid AS id) asked
    LEFT JOIN LATERAL (
        SELECT a.event_id FROM event_aliases a WHERE a.id = asked.id AND a.organization_id = $1 LIMIT 1
    ) first ON true
    LEFT JOIN LATERAL (
        SELECT a.event_id FROM event_aliases a WHERE a.id = first.event_id AND a.organization_id = $1 LIMIT 1
    ) first_of_first ON true
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.id = coalesce(first_of_first.event_id, first.event_id, asked.id) AND e.organization_id = $1 LIMIT 1
    ) e";

/// First, so that its row is held when deliveries are looked at: whoever opens one again asks the event first.
const ERASE: &str = "
    UPDATE events SET payload = $2, source = NULL, dedup_id = NULL, occurred_at = NULL, trace = NULL,
        erased_at = coalesce(erased_at, now())
    WHERE id = $1";

const IS_THERE: &str = "SELECT 1 AS one FROM events WHERE id = $1 AND erased_at IS NULL FOR UPDATE";

const CANCEL: &str = "
    WITH held AS (
        SELECT event_id, subscription_id, lease_owner FROM deliveries
        WHERE event_id = $1 AND due_at IS NOT NULL ORDER BY subscription_id FOR UPDATE
    ), cancelled AS (
        UPDATE deliveries d SET state = 'cancelled', due_at = NULL, lease_owner = NULL, updated_at = now()
        FROM held WHERE d.event_id = held.event_id AND d.subscription_id = held.subscription_id AND d.event_id = $1
        RETURNING held.lease_owner
    )
    SELECT pg_notify('triggers_changes', 'c:' || $1::text)
    WHERE EXISTS (SELECT FROM cancelled WHERE lease_owner IS NOT NULL)";

/// After the deliveries: what an attempt that was being recorded has left is seen by now.
const ERASE_ANSWERS: &str = "UPDATE attempts SET detail = '' WHERE event_id = $1 AND detail <> ''";

const FORGET_SET_ASIDE: &str =
    "DELETE FROM set_aside WHERE organization_id = $1 AND event_id = ANY ($2) RETURNING 1 AS one";

const MARK: &str = "
    INSERT INTO erasures (organization_id, id, expires_at)
    SELECT $1, $2, now() + make_interval(secs => $3)
    WHERE (SELECT count(*) FROM (SELECT FROM erasures WHERE organization_id = $1 LIMIT $4) marks) < $4
    ON CONFLICT (id, organization_id) DO UPDATE SET expires_at = excluded.expires_at
    RETURNING xmax = 0 AS is_new";

/// Transactions that write events now. An intake has this lock before it takes the snapshot that it writes by.
const INTAKES_UNDER_WAY: &str = "
    SELECT virtualtransaction AS under_way FROM pg_locks
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND relation = 'events'::regclass
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

const TO_LOOK_AT: &str = "
    SELECT organization_id, id FROM erasures WHERE looked_at < now() - make_interval(secs => $1)
    ORDER BY looked_at LIMIT $2";

impl Engine {
    /// The event that an id leads to, and its place.
    pub(super) async fn resolve(
        &self,
        organization: OrganizationId,
        id: EventId,
    ) -> Result<Option<(EventId, i64)>> {
        let of = |id: Uuid| query(RESOLVE).bind(organization.uuid()).bind(id);
        let mut found = self.row(of(id.uuid())).await?;
        if found.is_none() {
            let former = query(former::OF_FORMER).bind(organization.uuid()).bind(id.uuid());
            if let Some(row) = self.row(former).await? {
                found = self.row(of(row.value("event_id")?)).await?;
            }
        }
        found
            .map(|row| Ok((row.id("id")?, row.value("seq")?)))
            .transpose()
    }

    /// Erases what the id leads to, if it is stored: on behalf of somebody, or as somebody has asked for before.
    async fn erase_stored(
        &self,
        organization: OrganizationId,
        id: EventId,
        by: Option<By>,
    ) -> Result<Option<EventId>> {
        let Some((event, _)) = self.resolve(organization, id).await? else {
            return Ok(None);
        };
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let erased = erase(session.connection(), organization, event, id, by.as_ref()).await;
            session.settle_read(erased)
        }))
        .await?;
        Ok(Some(event))
    }

    async fn forget_mark(&self, organization: OrganizationId, id: EventId) -> Result<()> {
        let forget = query("DELETE FROM erasures WHERE organization_id = $1 AND id = $2");
        let forget = forget.bind(organization.uuid()).bind(id.uuid());
        self.rows(forget).await.map(drop)
    }

    async fn intakes_under_way(&self) -> Result<Vec<String>> {
        let rows = self.rows(query(INTAKES_UNDER_WAY)).await?;
        rows.iter().map(|row| row.value("under_way")).collect()
    }

    /// Waits until every intake is over that is under way now.
    pub(super) async fn outwait_intakes(&self) -> Result<()> {
        let until = Instant::now() + INTAKES;
        let mut before = self.intakes_under_way().await?;
        while !before.is_empty() {
            if Instant::now() > until {
                return Err(timed_out());
            }
            tokio::time::sleep(BETWEEN).await;
            let now = self.intakes_under_way().await?;
            before.retain(|one| now.contains(one));
        }
        Ok(())
    }
}

async fn erase(
    connection: &mut PgConnection,
    organization: OrganizationId,
    event: EventId,
    asked: EventId,
    by: Option<&By>,
) -> Result<()> {
    // Dropped on the way, it rolls back.
    let mut transaction = connection.begin().await.map_err(classify)?;
    if let Some(by) = by
        && query(IS_THERE)
            .bind(event.uuid())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(classify)?
            .is_some()
    {
        let erased = Change::of(organization, Action::EventErased, event);
        audit_log::write(&mut transaction, by, &erased).await?;
    }
    let ids = vec![event.uuid(), asked.uuid()];
    let statements: [Statement; 4] = [
        query(ERASE).bind(event.uuid()).bind(NO_PAYLOAD),
        query(CANCEL).bind(event.uuid()),
        query(ERASE_ANSWERS).bind(event.uuid()),
        query(FORGET_SET_ASIDE).bind(organization.uuid()).bind(ids),
    ];
    for statement in statements {
        statement.execute(&mut *transaction).await.map_err(classify)?;
    }
    transaction.commit().await.map_err(classify)
}

#[async_trait]
impl Erasures for Engine {
    async fn erase(&self, organization: OrganizationId, id: EventId) -> Result<Erased> {
        if let Some(event) = self.erase_stored(organization, id, Some(By::now())).await? {
            return Ok(Erased::Done { event });
        }
        let erased = || Change::of(organization, Action::EventErased, id);
        let forget = query(FORGET_SET_ASIDE)
            .bind(organization.uuid())
            .bind(vec![id.uuid()]);
        let was_set_aside = self.audited_as(forget, erased()).await?.is_some();
        if !was_set_aside && !may_come(id, Timestamp::now()) {
            return Ok(Erased::NotFound);
        }
        let mark = query(MARK)
            .bind(organization.uuid())
            .bind(id.uuid())
            .bind(rows::seconds(ERASURE_KEPT))
            .bind(i64::from(MAX_MARKS));
        let marked = self
            .audited(mark, |row| {
                let told = was_set_aside || !row.value::<bool>("is_new")?;
                Ok(if told { Vec::new() } else { vec![erased()] })
            })
            .await?;
        if marked.is_none() {
            return Ok(Erased::TooMany);
        }
        self.outwait_intakes().await?;
        match self.erase_stored(organization, id, None).await? {
            Some(event) => {
                self.forget_mark(organization, id).await?;
                Ok(Erased::Done { event })
            }
            None => Ok(Erased::Marked),
        }
    }

    async fn settle_erasures(&self, most: u32) -> Result<u32> {
        let statement = query(TO_LOOK_AT)
            .bind(rows::seconds(BETWEEN_LOOKS))
            .bind(i64::from(most));
        let (mut settled, mut left) = (0, (Vec::new(), Vec::new()));
        for row in &self.rows(statement).await? {
            let (organization, id): (OrganizationId, EventId) = (row.id("organization_id")?, row.id("id")?);
            if self.erase_stored(organization, id, None).await?.is_some() {
                self.forget_mark(organization, id).await?;
                settled += 1;
            } else {
                left.0.push(organization.uuid());
                left.1.push(id.uuid());
            }
        }
        if !left.0.is_empty() {
            // What was set aside meanwhile goes with the look.
            let looked = query(
                "WITH looked AS (
                    UPDATE erasures m SET looked_at = now()
                    FROM unnest($1::uuid[], $2::uuid[]) AS l (organization_id, id)
                    WHERE m.organization_id = l.organization_id AND m.id = l.id
                 )
                 DELETE FROM set_aside s USING unnest($1::uuid[], $2::uuid[]) AS l (organization_id, id)
                 WHERE s.organization_id = l.organization_id AND s.event_id = l.id",
            );
            self.rows(looked.bind(left.0).bind(left.1)).await?;
        }
        Ok(settled)
    }
}
