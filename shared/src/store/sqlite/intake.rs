//! Intake: deduplicates, persists and fans out a batch, in one transaction.

use std::collections::{HashMap, HashSet};

use sqlx::{AssertSqlSafe, SqliteConnection};
use uuid::Uuid;

use super::{
    Engine,
    erasures::marked,
    former::Formers,
    many::{marks, portions, values},
    row::{Columns as _, corrupt, failed},
    writer::Tx,
};
use crate::{
    AcceptedEvent, DedupId, EventId, OrganizationId, Repeat, Source, SubscriptionId, Timestamp, TraceParent,
    WorkerId,
    event::Digest16,
    store::{
        DEDUPLICATION_WINDOW, IntakeBatch, IntakeOutcome, PlannedDelivery, Result, StoreError, StoredEvent,
        erasures::NO_PAYLOAD, range::is_ahead, rehearsal,
    },
};

/// A batch that can wait for the writer.
struct Batch {
    worker: WorkerId,
    events: Vec<AcceptedEvent>,
    deliveries: Vec<PlannedDelivery>,
    versions: Vec<(OrganizationId, i64)>,
    repeats: Vec<Repeat>,
}

/// An event that is not stored, but an id of another.
struct Alias {
    id: EventId,
    organization: OrganizationId,
    first: EventId,
    differs: bool,
}

/// Which event a deduplication key belongs to.
struct Holder {
    event: EventId,
    digest: Digest16,
}

impl Engine {
    pub(super) async fn take_in(&self, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome> {
        let batch = Batch::of(batch);
        self.writer
            .run(move |tx| Box::pin(async move { batch.take_in(tx).await }))
            .await
    }

    /// Committed, so that it is written; without the event.
    pub(super) async fn rehearse_intake(&self) -> Result<()> {
        self.writer
            .run(|tx| {
                Box::pin(async move {
                    let (event, delivery) = (rehearsal::event(tx.now), rehearsal::delivery());
                    Batch::of(&rehearsal::batch(&event, &delivery))
                        .take_in(tx)
                        .await?;
                    for delete in [
                        "DELETE FROM deliveries WHERE event_id = ?",
                        "DELETE FROM events WHERE id = ?",
                    ] {
                        sqlx::query(delete)
                            .bind(event.id.uuid())
                            .execute(&mut tx.connection)
                            .await
                            .map_err(failed)?;
                    }
                    sqlx::query("DELETE FROM dedup_keys WHERE organization_id = ?")
                        .bind(event.organization.uuid())
                        .execute(&mut tx.connection)
                        .await
                        .map(drop)
                        .map_err(failed)
                })
            })
            .await
    }
}

impl Batch {
    fn of(batch: &IntakeBatch<'_>) -> Self {
        Self {
            worker: batch.worker,
            events: batch.events.to_vec(),
            deliveries: batch.deliveries.to_vec(),
            versions: batch.versions.to_vec(),
            repeats: batch.repeats.to_vec(),
        }
    }

    async fn take_in(&self, tx: &mut Tx) -> Result<IntakeOutcome> {
        let now = tx.now;
        if let Some(event) = self.events.iter().find(|event| is_ahead(event.id, now)) {
            return Err(refused(format!(
                "id_out_of_range: {} is ahead of its time",
                event.id
            )));
        }
        if !self.is_current(&mut tx.connection).await? {
            return Ok(IntakeOutcome::Stale);
        }
        let known = known(&mut tx.connection, &self.events).await?;
        let mut holders = holders(&mut tx.connection, &self.events, now).await?;

        let mut formers = Formers::of(&mut tx.connection, &self.events).await?;
        let mut in_order: Vec<(usize, &AcceptedEvent)> = self.events.iter().enumerate().collect();
        in_order.sort_unstable_by_key(|(_, event)| event.id);
        let mut fresh = Vec::with_capacity(self.events.len());
        let mut keyed = Vec::new();
        let mut aliases = Vec::new();
        for (at, event) in in_order {
            if known.contains(&event.id) || formers.claim(event) {
                continue;
            }
            if let Some(key) = &event.dedup_id {
                let digest = Digest16::of(&event.event_type, &event.payload);
                let address = (event.organization, key.as_str());
                if let Some(holder) = holders.get(&address).filter(|holder| holder.event != event.id) {
                    aliases.push(Alias {
                        id: event.id,
                        organization: event.organization,
                        first: holder.event,
                        differs: holder.digest != digest,
                    });
                    continue;
                }
                let event = event.id;
                holders.insert(address, Holder { event, digest });
                keyed.push((address, event, digest));
            }
            fresh.push(at);
        }
        aliases.extend(self.repeats.iter().map(|repeat| Alias {
            id: repeat.id,
            organization: repeat.organization,
            first: repeat.first,
            differs: repeat.differs,
        }));

        let erased = self.erased(&mut tx.connection).await?;
        let seqs = self
            .insert_events(&mut tx.connection, &fresh, &erased, now)
            .await?;
        insert_keys(&mut tx.connection, &keyed, now).await?;
        insert_aliases(&mut tx.connection, &aliases).await?;
        formers.insert(&mut tx.connection).await?;
        self.insert_deliveries(&mut tx.connection, &seqs, &erased, now)
            .await?;
        let stored = fresh.iter().filter_map(|&at| {
            let id = self.events.get(at)?.id;
            Some(StoredEvent {
                id,
                seq: *seqs.get(&at)?,
                erased: erased.contains(&id),
            })
        });
        Ok(IntakeOutcome::Stored(stored.collect()))
    }

    /// Which of the events are to be stored erased: their ids, or former ones, are marked.
    async fn erased(&self, connection: &mut SqliteConnection) -> Result<HashSet<EventId>> {
        let ids = |event: &AcceptedEvent| {
            let ids = std::iter::once(event.id).chain(event.former_ids.iter().copied());
            let organization = event.organization;
            ids.map(move |id| (organization, id)).collect::<Vec<_>>()
        };
        let all: Vec<_> = self.events.iter().flat_map(ids).collect();
        let marked = marked(connection, &all).await?;
        let erased = self
            .events
            .iter()
            .filter(|event| ids(event).iter().any(|id| marked.contains(id)));
        Ok(erased.map(|event| event.id).collect())
    }

    /// Whether the plan was made by the subscriptions that are in force.
    async fn is_current(&self, connection: &mut SqliteConnection) -> Result<bool> {
        let mut now = HashMap::with_capacity(self.versions.len());
        for portion in portions(&self.versions) {
            let sql = format!(
                "SELECT id, subscriptions_version FROM organizations WHERE id IN ({})",
                marks(portion.len())
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (organization, _) in portion {
                query = query.bind(organization.uuid());
            }
            for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
                now.insert(row.id(0)?, row.value::<i64>(1)?);
            }
        }
        Ok(self
            .versions
            .iter()
            .all(|(organization, version)| now.get(organization) == Some(version)))
    }

    /// Inserts the events at these places of the batch; their `seq` by place.
    async fn insert_events(
        &self,
        connection: &mut SqliteConnection,
        places: &[usize],
        erased: &HashSet<EventId>,
        now: Timestamp,
    ) -> Result<HashMap<usize, i64>> {
        let mut seqs = HashMap::with_capacity(places.len());
        for portion in portions(places) {
            let sql = format!(
                "INSERT INTO events (id, organization_id, type, dedup_id, source, occurred_at, received_at, trace, \
                 payload, erased_at) VALUES {}",
                values(portion.len(), 10)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for event in portion.iter().filter_map(|&at| self.events.get(at)) {
                // Of an erased one nothing is kept that its producer sent, but its type.
                let kept = (!erased.contains(&event.id)).then_some(event);
                let text = |of: fn(&AcceptedEvent) -> Option<&str>| kept.and_then(of).map(str::to_owned);
                query = query
                    .bind(event.id.uuid())
                    .bind(event.organization.uuid())
                    .bind(event.event_type.as_str())
                    .bind(text(|event| event.dedup_id.as_ref().map(DedupId::as_str)))
                    .bind(text(|event| event.source.as_ref().map(Source::as_str)))
                    .bind(kept.and_then(|event| event.occurred_at).map(Timestamp::millis))
                    .bind(event.received_at.millis())
                    .bind(text(|event| event.trace.as_ref().map(TraceParent::as_str)))
                    .bind(kept.map_or(NO_PAYLOAD, |event| event.payload.as_str()).to_owned())
                    .bind(kept.is_none().then_some(now.millis()));
            }
            let done = query.execute(&mut *connection).await.map_err(failed)?;
            // One statement of the one writer gives numbers without gaps, in the order of its rows.
            let places = portion.iter().rev().copied();
            seqs.extend(places.zip((1..=done.last_insert_rowid()).rev()));
        }
        Ok(seqs)
    }

    async fn insert_deliveries(
        &self,
        connection: &mut SqliteConnection,
        seqs: &HashMap<usize, i64>,
        erased: &HashSet<EventId>,
        now: Timestamp,
    ) -> Result<()> {
        struct Row {
            event: EventId,
            organization: OrganizationId,
            seq: i64,
            subscription: SubscriptionId,
            owner: Option<Uuid>,
            open: bool,
        }
        let rows: Vec<Row> = self
            .deliveries
            .iter()
            .filter_map(|planned| {
                let event = self.events.get(planned.event)?;
                let seq = *seqs.get(&planned.event)?;
                let open = !erased.contains(&event.id);
                Some(Row {
                    event: event.id,
                    organization: event.organization,
                    seq,
                    subscription: planned.subscription,
                    owner: (open && planned.held).then_some(self.worker.uuid()),
                    open,
                })
            })
            .collect();
        for portion in portions(&rows) {
            let sql = format!(
                "INSERT INTO deliveries (event_id, subscription_id, organization_id, seq, state, attempts, due_at, \
                 lease_owner, updated_at) VALUES {}",
                values(portion.len(), 9)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for row in portion {
                query = query
                    .bind(row.event.uuid())
                    .bind(row.subscription.uuid())
                    .bind(row.organization.uuid())
                    .bind(row.seq)
                    .bind(if row.open { "pending" } else { "cancelled" })
                    .bind(0)
                    .bind(row.open.then_some(now.millis()))
                    .bind(row.owner)
                    .bind(now.millis());
            }
            query.execute(&mut *connection).await.map_err(failed)?;
        }
        Ok(())
    }
}

fn refused(why: String) -> StoreError {
    StoreError::Refused(sqlx::Error::Protocol(why))
}

/// Which of the events are stored already, or are ids of others.
async fn known(connection: &mut SqliteConnection, events: &[AcceptedEvent]) -> Result<HashSet<EventId>> {
    let mut known = HashSet::new();
    for portion in portions(events) {
        let marks = marks(portion.len());
        let sql = format!(
            "SELECT id FROM events WHERE id IN ({marks}) UNION ALL SELECT id FROM event_aliases WHERE id IN ({marks})"
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for event in portion.iter().chain(portion) {
            query = query.bind(event.id.uuid());
        }
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            known.insert(row.id(0)?);
        }
    }
    Ok(known)
}

/// Who holds the events' keys now.
async fn holders<'a>(
    connection: &mut SqliteConnection,
    events: &'a [AcceptedEvent],
    now: Timestamp,
) -> Result<HashMap<(OrganizationId, &'a str), Holder>> {
    let mut keys: HashMap<(Uuid, &str), (OrganizationId, &str)> = HashMap::new();
    for event in events {
        if let Some(key) = &event.dedup_id {
            keys.insert(
                (event.organization.uuid(), key.as_str()),
                (event.organization, key.as_str()),
            );
        }
    }
    let addresses: Vec<(OrganizationId, &str)> = keys.values().copied().collect();
    let mut holders = HashMap::with_capacity(addresses.len());
    for portion in portions(&addresses) {
        let sql = format!(
            "SELECT k.organization_id, k.key, k.event_id, k.digest FROM (VALUES {}) v CROSS JOIN dedup_keys k \
             ON k.organization_id = v.column1 AND k.key = v.column2 WHERE k.expires_at > ?",
            values(portion.len(), 2)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (organization, key) in portion {
            query = query.bind(organization.uuid()).bind((*key).to_owned());
        }
        let query = query.bind(now.millis());
        for row in query.fetch_all(&mut *connection).await.map_err(failed)? {
            let digest = <[u8; 16]>::try_from(row.value::<&[u8]>(3)?)
                .map_err(|_| corrupt("a digest is not 16 bytes"))?;
            let address = (row.value::<Uuid>(0)?, row.value::<&str>(1)?);
            if let Some(address) = keys.get(&address) {
                let holder = Holder {
                    event: row.id(2)?,
                    digest: Digest16(digest),
                };
                holders.insert(*address, holder);
            }
        }
    }
    Ok(holders)
}

async fn insert_keys(
    connection: &mut SqliteConnection,
    keyed: &[((OrganizationId, &str), EventId, Digest16)],
    now: Timestamp,
) -> Result<()> {
    let expires_at = now.plus(DEDUPLICATION_WINDOW).millis();
    for portion in portions(keyed) {
        let sql = format!(
            "INSERT INTO dedup_keys (organization_id, key, event_id, digest, expires_at) VALUES {} \
             ON CONFLICT (organization_id, key) DO UPDATE SET event_id = excluded.event_id, \
             digest = excluded.digest, expires_at = excluded.expires_at",
            values(portion.len(), 5)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for ((organization, key), event, digest) in portion {
            query = query
                .bind(organization.uuid())
                .bind((*key).to_owned())
                .bind(event.uuid())
                .bind(digest.0.to_vec())
                .bind(expires_at);
        }
        query.execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

async fn insert_aliases(connection: &mut SqliteConnection, aliases: &[Alias]) -> Result<()> {
    for portion in portions(aliases) {
        let sql = format!(
            "INSERT INTO event_aliases (id, organization_id, event_id, differs) VALUES {} ON CONFLICT (id) DO NOTHING",
            values(portion.len(), 4)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for alias in portion {
            query = query
                .bind(alias.id.uuid())
                .bind(alias.organization.uuid())
                .bind(alias.first.uuid())
                .bind(alias.differs);
        }
        query.execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}
