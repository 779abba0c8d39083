//! Intake: one statement a batch, which deduplicates, stores and fans out in one transaction and one round trip.
//!
//! It has two forms: with the parts about keys and repeats, and without, where a batch has none. In both, `stale` is
//! read in the snapshot that everything is written by: if the subscriptions of an organization are others than those that
//! the plan was made by, nothing is written.
//!
//! Two workers that take in the same events, or events of the same keys, wait for each other at the rows of the keys and
//! then of the events, each in sorted order (a sort reads all of its input first, so that all keys come before all
//! events): they cannot deadlock, and the second finds what the first has written.

use sqlx::{
    postgres::{PgConnection, PgRow},
    query,
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Engine, Result, Statement, classify, rows, rows::Columns};
use crate::{
    EventId,
    event::Digest16,
    store::{DEDUPLICATION_WINDOW, IntakeBatch, IntakeOutcome, StoreError, StoredEvent},
};

/// `$1`, `$2`: the versions.
macro_rules! stale {
    () => {
        "stale AS MATERIALIZED (
            SELECT FROM unnest($1::uuid[], $2::bigint[]) AS planned (organization_id, version)
            LEFT JOIN organizations o ON o.id = planned.organization_id
            WHERE o.subscriptions_version IS DISTINCT FROM planned.version
            LIMIT 1
        )"
    };
}

/// The transaction's number and the event's place in the batch, in order of id (see the table `intake_order`).
macro_rules! seq {
    () => {
        "((SELECT pg_current_xact_id()::text::bigint + xid_offset FROM intake_order) << 18) + row_number() OVER (ORDER BY id)"
    };
}

/// `$7`: the ids of the batch; those that are to be erased (see the table `erasures`). There is hardly ever one.
macro_rules! marked {
    () => {
        "marked AS MATERIALIZED (
            SELECT id, organization_id, now() AS erased_at FROM erasures WHERE id = ANY ($7::uuid[])
        )"
    };
}

/// What is kept of an event: all of it, or, if it is `marked`, nothing that its producer sent but its type.
macro_rules! as_posted {
    () => {
        "CASE WHEN erased_at IS NULL THEN source END, CASE WHEN erased_at IS NULL THEN occurred_at END, received_at,
         CASE WHEN erased_at IS NULL THEN trace END, CASE WHEN erased_at IS NULL THEN payload ELSE 'null' END"
    };
}

/// `$3`, `$4`, `$5`: the planned deliveries, and whether each is to be held; `$6`: the worker.
macro_rules! fan_out_and_answer {
    () => {
        "fanned_out AS (
            INSERT INTO deliveries
                (event_id, subscription_id, organization_id, seq, state, due_at, lease_owner)
            SELECT stored.id, planned.subscription_id, stored.organization_id, stored.seq,
                   CASE WHEN stored.erased_at IS NULL THEN 'pending' ELSE 'cancelled' END,
                   CASE WHEN stored.erased_at IS NULL THEN now() END,
                   CASE WHEN stored.erased_at IS NULL AND planned.held THEN $6::uuid END
            FROM unnest($3::uuid[], $4::uuid[], $5::boolean[]) AS planned (event_id, subscription_id, held)
            JOIN stored ON stored.id = planned.event_id
        )
        SELECT EXISTS (SELECT FROM stale) AS stale, array_agg(id) AS ids, array_agg(seq) AS seqs,
            array_agg(id) FILTER (WHERE erased_at IS NOT NULL) AS erased
        FROM stored"
    };
}

/// Events without keys, and no repeats.
const PLAIN: &str = concat!(
    "WITH ",
    stale!(),
    ", ",
    marked!(),
    ", stored AS (
        INSERT INTO events (id, organization_id, type, source, occurred_at, received_at, trace, payload, seq, erased_at)
        SELECT id, organization_id, type, ",
    as_posted!(),
    ", ",
    seq!(),
    ", erased_at FROM unnest($7::uuid[], $8::uuid[], $9::text[], $10::text[], $11::timestamptz[],
            $12::timestamptz[], $13::text[], $14::text[])
            AS posted (id, organization_id, type, source, occurred_at, received_at, trace, payload)
        LEFT JOIN marked USING (id, organization_id)
        WHERE NOT EXISTS (SELECT FROM stale)
        ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING id, organization_id, seq, erased_at
    ), ",
    fan_out_and_answer!()
);

/// `wanted` are the keys of the batch, each for the first event that has it; an id that is an alias already (its frame has
/// come again, long after) does not want its key a second time. `keyed` adds who has the key by what this statement can
/// see; only a key that nobody has is written to, and there the row itself, locked, says who has it: whoever came first,
/// or, where the old owner's time is up, this event. (`$15`, `$16` bound the ids, so that few partitions are looked at.)
const KEYED: &str = concat!(
    "WITH ", stale!(), ", ", marked!(), ", posted AS MATERIALIZED (
        SELECT * FROM unnest($7::uuid[], $8::uuid[], $9::text[], $10::text[], $11::timestamptz[],
            $12::timestamptz[], $13::text[], $14::text[], $17::text[], $18::bytea[])
            AS posted (id, organization_id, type, source, occurred_at, received_at, trace, payload, dedup_id, digest)
        WHERE NOT EXISTS (SELECT FROM stale)
    ), wanted AS MATERIALIZED (
        SELECT DISTINCT ON (organization_id, dedup_id COLLATE \"C\") organization_id, dedup_id AS key, id, digest
        FROM posted
        WHERE dedup_id IS NOT NULL
          AND (SELECT true FROM event_aliases a WHERE a.id = posted.id AND a.id BETWEEN $15 AND $16) IS NULL
        ORDER BY organization_id, dedup_id COLLATE \"C\", id
    ), keyed AS MATERIALIZED (
        SELECT wanted.*, known.event_id AS owner, known.digest AS owner_digest
        FROM wanted LEFT JOIN LATERAL (
            SELECT event_id, digest FROM dedup_keys
            WHERE organization_id = wanted.organization_id AND key = wanted.key AND expires_at > now()
            LIMIT 1
        ) known ON true
    ), taken AS (
        INSERT INTO dedup_keys AS held (organization_id, key, event_id, digest, expires_at)
        SELECT organization_id, key, id, digest, now() + make_interval(secs => $19)
        FROM keyed WHERE owner IS NULL
        ORDER BY organization_id, key COLLATE \"C\"
        ON CONFLICT (organization_id, key) DO UPDATE SET
            event_id = CASE WHEN held.expires_at <= now() THEN excluded.event_id ELSE held.event_id END,
            digest = CASE WHEN held.expires_at <= now() THEN excluded.digest ELSE held.digest END,
            expires_at = CASE WHEN held.expires_at <= now() THEN excluded.expires_at ELSE held.expires_at END
        RETURNING organization_id, key, event_id, digest
    ), owners AS MATERIALIZED (
        SELECT organization_id, key, owner AS event_id, owner_digest AS digest FROM keyed WHERE owner IS NOT NULL
        UNION ALL
        SELECT organization_id, key, event_id, digest FROM taken
    ), stored AS (
        INSERT INTO events (id, organization_id, type, source, occurred_at, received_at, trace, payload, dedup_id,
            seq, erased_at)
        SELECT id, organization_id, type, ", as_posted!(), ", CASE WHEN erased_at IS NULL THEN dedup_id END,
            ", seq!(), ", erased_at
        FROM (
            SELECT p.* FROM posted p LEFT JOIN owners o ON o.organization_id = p.organization_id AND o.key = p.dedup_id
            WHERE p.dedup_id IS NULL OR o.event_id = p.id
        ) fresh LEFT JOIN marked USING (id, organization_id)
        ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING id, organization_id, seq, erased_at
    ), repeated AS (
        INSERT INTO event_aliases (id, organization_id, event_id, differs)
        SELECT p.id, p.organization_id, o.event_id, p.digest <> o.digest
        FROM posted p JOIN owners o ON o.organization_id = p.organization_id AND o.key = p.dedup_id
        WHERE o.event_id <> p.id
          AND (SELECT true FROM events e WHERE e.id = p.id AND e.id BETWEEN $15 AND $16) IS NULL
        UNION ALL
        SELECT * FROM unnest($20::uuid[], $21::uuid[], $22::uuid[], $23::boolean[])
        WHERE NOT EXISTS (SELECT FROM stale)
        ORDER BY 1
        ON CONFLICT DO NOTHING
    ), ", fan_out_and_answer!()
);

impl Engine {
    pub(super) async fn take_in(&self, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome> {
        if batch.events.iter().any(|event| !event.former_ids.is_empty()) {
            return self.take_in_with_formers(batch).await;
        }
        let plain = batch.repeats.is_empty() && batch.events.iter().all(|event| event.dedup_id.is_none());
        let answer = if plain {
            Self::rows_over(&self.lean, bind_plain(query(PLAIN), batch)).await?
        } else {
            self.rows(keyed(batch)).await?
        };
        answered(&answer)
    }
}

/// As a part of what the connection's transaction does.
pub(super) async fn within_transaction(
    connection: &mut PgConnection,
    batch: &IntakeBatch<'_>,
) -> Result<IntakeOutcome> {
    let answer = keyed(batch).fetch_all(connection).await.map_err(classify)?;
    answered(&answer)
}

fn keyed(batch: &IntakeBatch<'_>) -> Statement {
    bind_keyed(bind_plain(query(KEYED), batch), batch)
}

fn answered(answer: &[PgRow]) -> Result<IntakeOutcome> {
    match answer.first() {
        Some(row) => outcome(row),
        None => Err(StoreError::Corrupt(
            "intake answers one row, and answered none".to_owned(),
        )),
    }
}

fn bind_plain(statement: Statement, batch: &IntakeBatch<'_>) -> Statement {
    let (organizations, versions): (Vec<Uuid>, Vec<i64>) = batch
        .versions
        .iter()
        .map(|(organization, version)| (organization.uuid(), *version))
        .unzip();
    let events = batch.events;
    // An index that is out of range plans for no event of the batch, and so for none.
    let planned_event = |at: usize| events.get(at).map_or(Uuid::nil(), |event| event.id.uuid());
    statement
        .bind(organizations)
        .bind(versions)
        .bind(column(batch.deliveries, |delivery| planned_event(delivery.event)))
        .bind(column(batch.deliveries, |delivery| delivery.subscription.uuid()))
        .bind(column(batch.deliveries, |delivery| delivery.held))
        .bind(batch.worker.uuid())
        .bind(column(events, |event| event.id.uuid()))
        .bind(column(events, |event| event.organization.uuid()))
        .bind(column(events, |event| event.event_type.as_str()))
        .bind(column(events, |event| {
            event.source.as_ref().map(crate::Source::as_str)
        }))
        .bind(column(events, |event| {
            event.occurred_at.map(OffsetDateTime::from)
        }))
        .bind(column(events, |event| OffsetDateTime::from(event.received_at)))
        .bind(column(events, |event| {
            event.trace.as_ref().map(crate::TraceParent::as_str)
        }))
        .bind(column(events, |event| event.payload.as_str()))
}

fn bind_keyed(statement: Statement, batch: &IntakeBatch<'_>) -> Statement {
    let ids = || batch.events.iter().map(|event| event.id.uuid());
    let digest = |event: &crate::AcceptedEvent| {
        event
            .dedup_id
            .as_ref()
            .map(|_| Digest16::of(&event.event_type, &event.payload).0.to_vec())
    };
    statement
        .bind(ids().min())
        .bind(ids().max())
        .bind(column(batch.events, |event| {
            event.dedup_id.as_ref().map(crate::DedupId::as_str)
        }))
        .bind(column(batch.events, digest))
        .bind(rows::seconds(DEDUPLICATION_WINDOW))
        .bind(column(batch.repeats, |repeat| repeat.id.uuid()))
        .bind(column(batch.repeats, |repeat| repeat.organization.uuid()))
        .bind(column(batch.repeats, |repeat| repeat.first.uuid()))
        .bind(column(batch.repeats, |repeat| repeat.differs))
}

fn column<'a, T, C>(items: &'a [T], read: impl Fn(&'a T) -> C) -> Vec<C> {
    items.iter().map(read).collect()
}

fn outcome(row: &PgRow) -> Result<IntakeOutcome> {
    if row.value("stale")? {
        return Ok(IntakeOutcome::Stale);
    }
    let ids: Option<Vec<Uuid>> = row.value("ids")?;
    let seqs: Option<Vec<i64>> = row.value("seqs")?;
    let erased: Option<Vec<Uuid>> = row.value("erased")?;
    let erased = erased.unwrap_or_default();
    let stored = ids.unwrap_or_default().into_iter().zip(seqs.unwrap_or_default());
    Ok(IntakeOutcome::Stored(
        stored
            .map(|(id, seq)| StoredEvent {
                id: EventId::from_uuid(id),
                seq,
                erased: erased.contains(&id),
            })
            .collect(),
    ))
}
