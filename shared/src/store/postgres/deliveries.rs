//! Deliveries: the leases of workers, what is due, and acknowledgements.
//!
//! A lease is one row of `workers`: renewing it costs the same however many deliveries a worker holds. A delivery is
//! free where its `lease_owner` names no worker whose lease lives. Statements that act for a worker look at its lease in
//! the same snapshot as at the deliveries.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{postgres::PgRow, query};

use super::{Engine, Result, StoreError, lists::SETTLED_BELOW, organizations::uuids, rows, rows::Columns};
use crate::{
    DeliveryKey, EventId, OrganizationId, SubscriptionId, WorkerId,
    delivery::AttemptOutcome,
    store::{Acknowledged, Backlog, CLAIM_BYTES, CLAIM_IN_ORDER_BYTES, Claimed, Deliveries, Lease, Standing},
};

/// How far [`Backlog`] counts.
const BACKLOG_COUNTED: i64 = 100_000;

/// Whether nobody holds `d`.
macro_rules! free {
    () => {
        "(d.lease_owner IS NULL
          OR d.lease_owner <> ALL (ARRAY(SELECT id FROM workers WHERE lease_until > now())))"
    };
}

/// Locks what was found as `f` of a lane of `served`, unless it has changed since, or somebody holds it locked.
macro_rules! as_found {
    () => {
        " CROSS JOIN LATERAL (
                SELECT FROM deliveries d
                WHERE d.event_id = f.event_id AND d.subscription_id = served.subscription_id
                  AND d.due_at <= now() AND d.lease_owner IS NOT DISTINCT FROM f.lease_owner
                LIMIT 1 FOR UPDATE SKIP LOCKED
            ) held "
    };
}

/// Whether the worker `$1` has a lease.
macro_rules! enlisted {
    () => {
        "EXISTS (SELECT FROM workers WHERE id = $1 AND lease_until > now())"
    };
}

/// Whether a worker other than the one given, that lives, owns the lane given.
macro_rules! owned_by_another {
    ($lane:literal, $worker:literal) => {
        concat!(
            "EXISTS (SELECT FROM lanes l WHERE l.subscription_id = ",
            $lane,
            " AND l.owner <> ",
            $worker,
            " AND l.owner = ANY (ARRAY(SELECT id FROM workers WHERE lease_until > now())))"
        )
    };
}

/// What each of the ids `$2` stands for within the organization `$1`: the event's own, an alias of it, or an id that it had
/// formerly.
macro_rules! asked {
    () => {
        "asked AS MATERIALIZED (
        SELECT asked.place, e.id
        FROM (
            SELECT coalesce(f.event_id, named.id) AS id, named.place
            FROM unnest($2::uuid[]) WITH ORDINALITY AS named (id, place)
            LEFT JOIN former_ids f ON f.organization_id = $1 AND f.id = named.id
        ) asked
        LEFT JOIN LATERAL (
            SELECT a.event_id FROM event_aliases a WHERE a.id = asked.id AND a.organization_id = $1 LIMIT 1
        ) first ON true
        LEFT JOIN LATERAL (
            SELECT a.event_id FROM event_aliases a WHERE a.id = first.event_id AND a.organization_id = $1 LIMIT 1
        ) first_of_first ON true
        LEFT JOIN LATERAL (
            SELECT e.id FROM events e
            WHERE e.id = coalesce(first_of_first.event_id, first.event_id, asked.id) AND e.organization_id = $1 LIMIT 1
        ) e ON true
    )"
    };
}
pub(super) use asked;

/// `enlist` may be repeated, but does not revive a lease that ran out.
const ENLIST: &str = "
    INSERT INTO workers (id, lease_until) VALUES ($1, now() + make_interval(secs => $2))
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until WHERE workers.lease_until > now()";

const RENEW: &str = "
    WITH forgotten AS (
        DELETE FROM workers WHERE lease_until < now() - interval '1 hour' RETURNING id
    ), given_up AS (
        DELETE FROM lanes WHERE owner IN (SELECT id FROM forgotten)
    )
    UPDATE workers SET lease_until = now() + make_interval(secs => $2)
    WHERE id = $1 AND lease_until > now() RETURNING id";

const RESIGN: &str = "
    WITH given_up AS (DELETE FROM lanes WHERE owner = $1)
    DELETE FROM workers WHERE id = $1";

/// Hops from one subscription that has open deliveries to the next, and looks at the due ones of each alone.
const LANES_DUE: &str = concat!(
    "WITH RECURSIVE hops AS (
        (SELECT subscription_id FROM deliveries
         WHERE due_at IS NOT NULL AND ($1::uuid IS NULL OR subscription_id > $1)
         ORDER BY subscription_id LIMIT 1)
        UNION ALL
        SELECT next.subscription_id FROM hops CROSS JOIN LATERAL (
            SELECT subscription_id FROM deliveries
            WHERE due_at IS NOT NULL AND subscription_id > hops.subscription_id AND ($2::uuid IS NULL OR subscription_id <= $2)
            ORDER BY subscription_id LIMIT 1
        ) next
    )
    SELECT s.id FROM hops JOIN LATERAL (
        SELECT s.id FROM subscriptions s
        WHERE s.id = hops.subscription_id AND ($2::uuid IS NULL OR s.id <= $2)
          AND s.kind = 'push' AND s.enabled AND s.deleted_at IS NULL LIMIT 1
    ) s ON true
    WHERE EXISTS (
        SELECT FROM deliveries d WHERE d.subscription_id = hops.subscription_id AND d.due_at <= now() AND ",
    free!(),
    " OFFSET 0) AND NOT ",
    owned_by_another!("hops.subscription_id", "$4"),
    " LIMIT $3"
);

/// The ids of one worker end in the same 64 bits, which are the last two groups of their text.
const STANDING: &str = "
    WITH living AS MATERIALIZED (SELECT id FROM workers WHERE lease_until > now())
    SELECT (SELECT count(DISTINCT right(id::text, 17)) FROM living) AS workers,
           (SELECT count(*) FROM lanes WHERE owner = $1) AS mine,
           (SELECT count(*) FROM lanes WHERE owner = ANY (ARRAY(SELECT id FROM living))) AS all_owned";

/// Whoever loses the race for a lane sees that in the row itself. A lane is taken over from those alone that are seen to be gone:
/// who has come to own it since this began may be a worker that is not seen among the living.
const OWN: &str = concat!(
    "INSERT INTO lanes AS l (subscription_id, owner)
     SELECT wanted.id, $1 FROM unnest($2::uuid[]) AS wanted (id) WHERE ",
    enlisted!(),
    " ORDER BY wanted.id
     ON CONFLICT (subscription_id) DO UPDATE SET owner = excluded.owner
     WHERE l.owner = excluded.owner
        OR l.owner = ANY (ARRAY(
            SELECT gone.owner FROM lanes gone
            WHERE gone.subscription_id = ANY ($2)
              AND gone.owner <> ALL (ARRAY(SELECT id FROM workers WHERE lease_until > now()))))
     RETURNING subscription_id"
);

/// Locked in the order in which [`OWN`] does it.
const HAND_OVER: &str = "
    WITH theirs AS MATERIALIZED (
        SELECT subscription_id FROM lanes
        WHERE owner = $1 AND EXISTS (SELECT FROM workers WHERE id = $2 AND lease_until > now())
        ORDER BY subscription_id FOR UPDATE
    )
    UPDATE lanes l SET owner = $2 FROM theirs
    WHERE l.subscription_id = theirs.subscription_id AND l.owner = $1
    RETURNING l.subscription_id";

const DISOWN: &str = "DELETE FROM lanes WHERE owner = $1 AND subscription_id = ANY($2)";

const TELL_OWNERS: &str =
    "SELECT count(pg_notify('triggers_changes', 'l:' || id)) FROM unnest($1::uuid[]) AS lane (id)";

/// The beginning of the lane, as far as nothing in it keeps the rest waiting; `$4` is where intakes that are still under way
/// may yet put something. It was asked for by a statement of its own, before: what lies below is seen by this one. A claim that
/// began before the lane had its owner may take from it meanwhile: what is not free any more, or not due, once it is locked is left
/// out, and with it what comes after it; what is closed by then holds nothing up.
const CLAIM_IN_ORDER: &str = concat!(
    "WITH head AS MATERIALIZED (
        SELECT d.event_id, d.seq, d.lease_owner, d.due_at <= now() AND ",
    free!(),
    " AS ready
        FROM deliveries d
        WHERE d.subscription_id = $2 AND d.due_at IS NOT NULL AND d.seq < $4
          AND EXISTS (SELECT FROM lanes WHERE subscription_id = $2 AND owner = $1) AND ",
    enlisted!(),
    "     AND EXISTS (SELECT FROM subscriptions s WHERE s.id = $2 AND s.kind = 'push' AND s.enabled AND s.deleted_at IS NULL)
        ORDER BY d.seq LIMIT $3
    ), weighed AS (
        SELECT head.event_id, head.lease_owner, row_number() OVER (ORDER BY head.seq) AS place, e.bytes,
               bool_and(head.ready) OVER (ORDER BY head.seq) AS ready, sum(e.bytes) OVER (ORDER BY head.seq) AS total
        FROM head CROSS JOIN LATERAL (
            SELECT octet_length(payload) AS bytes FROM events WHERE id = head.event_id LIMIT 1
        ) e
    ), fitting AS MATERIALIZED (
        SELECT event_id, lease_owner, place FROM weighed WHERE ready AND total - bytes < $5
    ), held AS MATERIALIZED (
        SELECT f.event_id, f.place
        FROM unnest((SELECT array_agg(event_id ORDER BY event_id) FROM fitting),
                    (SELECT array_agg(lease_owner ORDER BY event_id) FROM fitting),
                    (SELECT array_agg(place ORDER BY event_id) FROM fitting))
            AS f (event_id, lease_owner, place)
        CROSS JOIN LATERAL (
            SELECT FROM deliveries d
            WHERE d.event_id = f.event_id AND d.subscription_id = $2
              AND (d.due_at IS NULL OR d.due_at <= now() AND d.lease_owner IS NOT DISTINCT FROM f.lease_owner)
            LIMIT 1 FOR UPDATE
        ) d
    ), unbroken AS (
        SELECT event_id FROM (SELECT event_id, place, row_number() OVER (ORDER BY place) AS nth FROM held) held
        WHERE place = nth
    ), claimed AS (
        UPDATE deliveries d SET lease_owner = $1
        FROM unnest((SELECT array_agg(event_id ORDER BY event_id) FROM unbroken)) AS f (event_id)
        WHERE d.event_id = f.event_id AND d.subscription_id = $2 AND d.due_at IS NOT NULL
        RETURNING d.event_id, d.subscription_id, d.organization_id, d.seq, d.attempts, d.attempts_before
    )
    SELECT c.*, e.type, e.received_at, e.occurred_at, e.source, e.trace, e.payload
    FROM claimed c CROSS JOIN LATERAL (
        SELECT type, received_at, occurred_at, source, trace, payload FROM events WHERE id = c.event_id LIMIT 1
    ) e
    ORDER BY c.seq"
);

/// Lane by lane, by the indexes of each: first, in order of `seq`, what was parked when the subscription was last enabled, if
/// there is any of it left, then what has come to be due since. No more than fit the bytes, the first of each lane before
/// the second of any; then, by their keys, taken. What another has taken since this began, it took as a worker that may not be seen
/// among the living here: so each row is locked as it was found, by its owner, or passed over.
const CLAIM: &str = concat!(
    "WITH served AS MATERIALIZED (
        SELECT wanted.subscription_id, wanted.most, s.enabled_at, (
            SELECT true FROM deliveries d
            WHERE d.subscription_id = wanted.subscription_id AND d.due_at <= s.enabled_at AND ",
    free!(),
    "       ORDER BY d.due_at LIMIT 1
        ) AS was_parked
        FROM unnest($2::uuid[], $3::bigint[]) AS wanted (subscription_id, most)
        JOIN LATERAL (
            SELECT s.enabled_at FROM subscriptions s
            WHERE s.id = wanted.subscription_id AND s.kind = 'push' AND s.enabled AND s.deleted_at IS NULL AND NOT ",
    owned_by_another!("wanted.subscription_id", "$1"),
    "       LIMIT 1
        ) s ON true
        WHERE ",
    enlisted!(),
    "), parked AS MATERIALIZED (
        SELECT d.event_id, served.subscription_id, d.due_at, d.seq
        FROM served CROSS JOIN LATERAL (
            SELECT f.event_id, f.due_at, f.seq FROM (
                SELECT d.event_id, d.due_at, d.seq, d.lease_owner FROM deliveries d
                WHERE d.subscription_id = served.subscription_id AND d.due_at <= served.enabled_at AND ",
    free!(),
    "           ORDER BY d.seq
            ) f",
    as_found!(),
    "       LIMIT served.most
        ) d
        WHERE served.was_parked
    ), due AS MATERIALIZED (
        SELECT d.event_id, served.subscription_id, d.due_at
        FROM served CROSS JOIN LATERAL (
            SELECT f.event_id, f.due_at FROM (
                SELECT d.event_id, d.due_at, d.lease_owner FROM deliveries d
                WHERE d.subscription_id = served.subscription_id AND d.due_at <= now()
                  AND d.due_at > coalesce(served.enabled_at, '-infinity') AND ",
    free!(),
    "           ORDER BY d.due_at
            ) f",
    as_found!(),
    "       LIMIT served.most - (SELECT count(*) FROM parked p WHERE p.subscription_id = served.subscription_id)
        ) d
    ), placed AS (
        SELECT picked.event_id, picked.subscription_id,
               row_number() OVER (PARTITION BY subscription_id ORDER BY seq NULLS LAST, due_at, event_id) AS place
        FROM (SELECT * FROM parked UNION ALL SELECT due.*, NULL FROM due) picked
    ), weighed AS (
        SELECT placed.*, e.bytes, sum(e.bytes) OVER (ORDER BY placed.place, placed.subscription_id) AS total
        FROM placed CROSS JOIN LATERAL (
            SELECT octet_length(payload) AS bytes FROM events WHERE id = placed.event_id LIMIT 1
        ) e
    ), fitting AS MATERIALIZED (
        SELECT event_id, subscription_id, place FROM weighed WHERE total - bytes < $4
    ), claimed AS (
        UPDATE deliveries d SET lease_owner = $1
        FROM unnest((SELECT array_agg(event_id ORDER BY event_id, subscription_id) FROM fitting),
                    (SELECT array_agg(subscription_id ORDER BY event_id, subscription_id) FROM fitting),
                    (SELECT array_agg(place ORDER BY event_id, subscription_id) FROM fitting))
            AS f (event_id, subscription_id, place)
        WHERE d.event_id = f.event_id AND d.subscription_id = f.subscription_id
        RETURNING d.event_id, d.subscription_id, d.organization_id, d.seq, d.attempts, d.attempts_before, f.place
    )
    SELECT c.*, e.type, e.received_at, e.occurred_at, e.source, e.trace, e.payload
    FROM claimed c CROSS JOIN LATERAL (
        SELECT type, received_at, occurred_at, source, trace, payload FROM events WHERE id = c.event_id LIMIT 1
    ) e
    ORDER BY c.place, c.seq"
);

const RELEASE: &str = "
    UPDATE deliveries d SET lease_owner = NULL
    FROM unnest((SELECT $2::uuid[]), (SELECT $3::uuid[])) AS k (event_id, subscription_id)
    WHERE d.event_id = k.event_id AND d.subscription_id = k.subscription_id AND d.event_id BETWEEN $4 AND $5
      AND d.due_at IS NOT NULL AND d.lease_owner = $1";

const STILL_HELD: &str = concat!(
    "SELECT d.event_id, d.subscription_id
    FROM unnest((SELECT $2::uuid[]), (SELECT $3::uuid[])) AS k (event_id, subscription_id)
    JOIN deliveries d ON d.event_id = k.event_id AND d.subscription_id = k.subscription_id
    WHERE d.event_id BETWEEN $4 AND $5 AND d.due_at IS NOT NULL AND d.lease_owner = $1 AND ",
    enlisted!()
);

/// A closed delivery keeps the name of its owner, who is told by notice. What a deleted subscription leaves open is as good
/// as cancelled already.
const ACKNOWLEDGE: &str = concat!(
    "WITH ",
    asked!(),
    ", closed AS (
        UPDATE deliveries d SET state = 'acknowledged', due_at = NULL, updated_at = now()
        FROM unnest((SELECT array_agg(DISTINCT id) FROM asked WHERE id IS NOT NULL)) AS e (id)
        WHERE d.event_id = e.id AND d.due_at IS NOT NULL
          AND (SELECT true FROM subscriptions s WHERE s.id = d.subscription_id AND s.deleted_at IS NULL)
        RETURNING d.event_id, d.lease_owner
    ), told AS (
        SELECT count(pg_notify('triggers_changes', 'c:' || event_id)) AS times
        FROM (SELECT DISTINCT event_id FROM closed
              WHERE lease_owner = ANY (ARRAY(SELECT id FROM workers WHERE lease_until > now()))) held
    )
    SELECT asked.id, now() AS at FROM asked CROSS JOIN told ORDER BY asked.place"
);

/// Of the first so many open push deliveries, as the index has them.
const BACKLOG: &str = "
    WITH RECURSIVE lanes AS (
        (SELECT subscription_id FROM deliveries WHERE due_at IS NOT NULL ORDER BY subscription_id LIMIT 1)
        UNION ALL
        SELECT next.subscription_id FROM lanes CROSS JOIN LATERAL (
            SELECT subscription_id FROM deliveries
            WHERE due_at IS NOT NULL AND subscription_id > lanes.subscription_id
            ORDER BY subscription_id LIMIT 1
        ) next
    ), pushed AS MATERIALIZED (
        SELECT s.id, s.enabled FROM lanes CROSS JOIN LATERAL (
            SELECT s.id, s.enabled FROM subscriptions s
            WHERE s.id = lanes.subscription_id AND s.kind = 'push' AND s.deleted_at IS NULL LIMIT 1
        ) s
    ), served AS (
        SELECT id FROM pushed WHERE enabled
    ), parked AS (
        SELECT FROM pushed CROSS JOIN LATERAL (
            SELECT FROM deliveries WHERE subscription_id = pushed.id AND due_at IS NOT NULL LIMIT $1
        ) d WHERE NOT pushed.enabled LIMIT $1
    ), sample AS (
        SELECT d.state FROM served CROSS JOIN LATERAL (
            SELECT state FROM deliveries WHERE subscription_id = served.id AND due_at IS NOT NULL
            ORDER BY due_at LIMIT $1
        ) d LIMIT $1
    ), oldest AS (
        SELECT min(d.due_at) AS due_at FROM served CROSS JOIN LATERAL (
            SELECT due_at FROM deliveries WHERE subscription_id = served.id AND due_at IS NOT NULL
            ORDER BY due_at LIMIT 1
        ) d
    )
    SELECT count(*) FILTER (WHERE state = 'pending') AS pending, count(*) FILTER (WHERE state = 'retrying') AS retrying,
           (SELECT count(*) FROM parked) AS parked,
           (SELECT greatest(0, (extract(epoch FROM now() - due_at) * 1000)::bigint) FROM oldest) AS oldest_due_ms
    FROM sample";

#[async_trait]
impl Deliveries for Engine {
    async fn enlist(&self, worker: WorkerId, ttl: Duration) -> Result<()> {
        self.rows(query(ENLIST).bind(worker.uuid()).bind(rows::seconds(ttl)))
            .await
            .map(drop)
    }

    async fn renew(&self, worker: WorkerId, ttl: Duration) -> Result<Lease> {
        let renewed = self
            .row(query(RENEW).bind(worker.uuid()).bind(rows::seconds(ttl)))
            .await?;
        Ok(if renewed.is_some() {
            Lease::Held
        } else {
            Lease::Lost
        })
    }

    async fn resign(&self, worker: WorkerId) -> Result<()> {
        self.rows(query(RESIGN).bind(worker.uuid())).await.map(drop)
    }

    async fn lanes_due(
        &self,
        worker: WorkerId,
        after: Option<SubscriptionId>,
        limit: u32,
    ) -> Result<Vec<SubscriptionId>> {
        let mut lanes = self.lanes_between(worker, after, None, i64::from(limit)).await?;
        let missing = i64::from(limit) - i64::try_from(lanes.len()).unwrap_or(i64::MAX);
        if after.is_some() && missing > 0 {
            lanes.extend(self.lanes_between(worker, None, after, missing).await?);
        }
        Ok(lanes)
    }

    async fn claim(&self, worker: WorkerId, wanted: &[(SubscriptionId, u32)]) -> Result<Vec<Claimed>> {
        let (lanes, most): (Vec<_>, Vec<_>) = wanted
            .iter()
            .map(|(lane, most)| (lane.uuid(), i64::from(*most)))
            .unzip();
        let statement = query(CLAIM)
            .bind(worker.uuid())
            .bind(lanes)
            .bind(most)
            .bind(i64::try_from(CLAIM_BYTES).unwrap_or(i64::MAX));
        self.rows(statement).await?.iter().map(claimed).collect()
    }

    async fn standing(&self, worker: WorkerId) -> Result<Standing> {
        let row = self.one(query(STANDING).bind(worker.uuid())).await?;
        Ok(Standing {
            workers: row.number("workers")?,
            mine: row.number("mine")?,
            all: row.number("all_owned")?,
        })
    }

    async fn own(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<Vec<SubscriptionId>> {
        let statement = query(OWN).bind(worker.uuid()).bind(uuids(lanes));
        let owned = self.rows(statement).await?;
        owned.iter().map(|row| row.id("subscription_id")).collect()
    }

    async fn hand_over(&self, from: WorkerId, to: WorkerId) -> Result<Vec<SubscriptionId>> {
        let statement = query(HAND_OVER).bind(from.uuid()).bind(to.uuid());
        let handed_over = self.rows(statement).await?;
        handed_over.iter().map(|row| row.id("subscription_id")).collect()
    }

    async fn disown(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<()> {
        let statement = query(DISOWN).bind(worker.uuid()).bind(uuids(lanes));
        self.rows(statement).await.map(drop)
    }

    async fn tell_owners(&self, lanes: &[SubscriptionId]) -> Result<()> {
        self.rows(query(TELL_OWNERS).bind(uuids(lanes))).await.map(drop)
    }

    async fn claim_in_order(
        &self,
        worker: WorkerId,
        lane: SubscriptionId,
        most: u32,
    ) -> Result<Vec<Claimed>> {
        let settled: i64 = self.one(query(SETTLED_BELOW)).await?.value("seq")?;
        let statement = query(CLAIM_IN_ORDER)
            .bind(worker.uuid())
            .bind(lane.uuid())
            .bind(i64::from(most))
            .bind(settled)
            .bind(i64::try_from(CLAIM_IN_ORDER_BYTES).unwrap_or(i64::MAX));
        self.rows(statement).await?.iter().map(claimed).collect()
    }

    async fn release(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<()> {
        self.rows(bind_keys(RELEASE, worker, keys)).await.map(drop)
    }

    async fn still_held(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<Vec<DeliveryKey>> {
        self.rows(bind_keys(STILL_HELD, worker, keys))
            .await?
            .iter()
            .map(|row| {
                Ok(DeliveryKey {
                    event: row.id("event_id")?,
                    subscription: row.id("subscription_id")?,
                })
            })
            .collect()
    }

    async fn record(&self, worker: WorkerId, outcomes: &[AttemptOutcome]) -> Result<Vec<DeliveryKey>> {
        self.write_outcomes(worker, outcomes).await
    }

    async fn acknowledge(
        &self,
        organization: OrganizationId,
        events: &[EventId],
    ) -> Result<Vec<Acknowledged>> {
        let statement = query(ACKNOWLEDGE).bind(organization.uuid()).bind(uuids(events));
        self.rows(statement)
            .await?
            .iter()
            .map(|row| {
                Ok(match row.optional_id("id")? {
                    Some(event) => Acknowledged::Done {
                        event,
                        at: row.at("at")?,
                    },
                    None => Acknowledged::NotFound,
                })
            })
            .collect()
    }

    async fn backlog(&self) -> Result<Backlog> {
        let row = self.one(query(BACKLOG).bind(BACKLOG_COUNTED)).await?;
        Ok(Backlog {
            pending: row.number("pending")?,
            retrying: row.number("retrying")?,
            parked: row.number("parked")?,
            oldest_due: Duration::from_millis(row.optional_number("oldest_due_ms")?.unwrap_or(0)),
        })
    }
}

fn claimed(row: &PgRow) -> Result<Claimed> {
    Ok(Claimed {
        key: DeliveryKey {
            event: row.id("event_id")?,
            subscription: row.id("subscription_id")?,
        },
        organization: row.id("organization_id")?,
        seq: row.value("seq")?,
        attempts: row.count("attempts")?,
        attempts_before: row.count("attempts_before")?,
        event_type: Arc::from(row.value::<&str>("type")?),
        received_at: row.at("received_at")?,
        occurred_at: row.optional_at("occurred_at")?,
        source: row.value("source")?,
        trace: row.value("trace")?,
        payload: row.value::<String>("payload")?.into(),
    })
}

impl Engine {
    async fn lanes_between(
        &self,
        worker: WorkerId,
        after: Option<SubscriptionId>,
        until: Option<SubscriptionId>,
        limit: i64,
    ) -> Result<Vec<SubscriptionId>, StoreError> {
        let statement = query(LANES_DUE)
            .bind(after.map(SubscriptionId::uuid))
            .bind(until.map(SubscriptionId::uuid))
            .bind(limit)
            .bind(worker.uuid());
        self.rows(statement)
            .await?
            .iter()
            .map(|row| row.id("id"))
            .collect()
    }
}

fn bind_keys(sql: &'static str, worker: WorkerId, keys: &[DeliveryKey]) -> super::Statement {
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    let events: Vec<EventId> = sorted.iter().map(|key| key.event).collect();
    let subscriptions: Vec<SubscriptionId> = sorted.iter().map(|key| key.subscription).collect();
    query(sql)
        .bind(worker.uuid())
        .bind(uuids(&events))
        .bind(uuids(&subscriptions))
        .bind(events.first().map(|id| id.uuid()))
        .bind(events.last().map(|id| id.uuid()))
}
