//! Events that have another id than they had: taken in together with their former ids, in one transaction.
//!
//! A former id belongs to whoever names it first. Who names it later is the same event once more, put back twice: it is not
//! stored, and its own id becomes one of the first's. Two workers wait for each other at the former ids, in sorted order.

use std::collections::HashMap;

use sqlx::{Connection as _, postgres::PgConnection, query};
use uuid::Uuid;

use super::{CALL, Engine, Result, Session, Statement, classify, intake, rows::Columns, within};
use crate::{
    AcceptedEvent, EventId,
    store::{IntakeBatch, IntakeOutcome, PlannedDelivery},
};

/// The rows of `$1`, `$2`, `$3`: organizations, ids, and the events that they are to lead to.
const CLAIM: &str = "
    INSERT INTO former_ids (organization_id, id, event_id)
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[])
    ORDER BY 1, 2
    ON CONFLICT DO NOTHING";

/// Of the same rows: events that are there already. One that is stored under the former id itself comes last, and counts.
const OWNERS: &str = "
    SELECT asked.event_id AS id, f.event_id AS owner, 1 AS rank
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS asked (organization_id, id, event_id)
    JOIN former_ids f ON f.organization_id = asked.organization_id AND f.id = asked.id
    WHERE f.event_id <> asked.event_id
    UNION ALL
    SELECT asked.event_id, e.id, 2
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS asked (organization_id, id, event_id)
    JOIN events e ON e.id = asked.id AND e.organization_id = asked.organization_id
    ORDER BY rank";

/// Marks of former ids (see the table `erasures`) hold for the ids that their events have now. Of the same rows.
const MARK: &str = "
    INSERT INTO erasures (organization_id, id, expires_at)
    SELECT m.organization_id, asked.event_id, m.expires_at
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS asked (organization_id, id, event_id)
    JOIN erasures m ON m.organization_id = asked.organization_id AND m.id = asked.id
    ON CONFLICT DO NOTHING";

pub(super) const OF_FORMER: &str = "SELECT event_id FROM former_ids WHERE organization_id = $1 AND id = $2";

impl Engine {
    pub(super) async fn take_in_with_formers(&self, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome> {
        Box::pin(within(CALL, async {
            let mut session = Session::of(&self.pool).await?;
            let done = take_in(session.connection(), batch).await;
            session.settle_read(done)
        }))
        .await
    }
}

async fn take_in(connection: &mut PgConnection, batch: &IntakeBatch<'_>) -> Result<IntakeOutcome> {
    // Dropped on the way, it rolls back.
    let mut transaction = connection.begin().await.map_err(classify)?;
    let formers: Vec<(&AcceptedEvent, EventId)> = batch
        .events
        .iter()
        .flat_map(|event| event.former_ids.iter().map(move |former| (event, *former)))
        .collect();
    // As an intake does that has nothing to do before it: whoever erases waits for those that have this lock.
    run(&mut transaction, query("LOCK TABLE events IN ROW EXCLUSIVE MODE")).await?;
    run(&mut transaction, bind(query(MARK), formers.iter().copied())).await?;
    run(&mut transaction, bind(query(CLAIM), formers.iter().copied())).await?;
    let owners: HashMap<EventId, EventId> = bind(query(OWNERS), formers.iter().copied())
        .fetch_all(&mut *transaction)
        .await
        .map_err(classify)?
        .iter()
        .map(|row| Ok((row.id("id")?, row.id("owner")?)))
        .collect::<Result<_>>()?;
    let again = batch
        .events
        .iter()
        .filter_map(|event| Some((event, *owners.get(&event.id)?)));
    let (organizations, ids, firsts) = columns(again.map(|(event, owner)| (event, event.id, owner)));
    run(
        &mut transaction,
        query(CLAIM).bind(organizations).bind(ids).bind(firsts),
    )
    .await?;

    let (events, deliveries) = without(batch, &owners);
    let left = IntakeBatch {
        events: &events,
        deliveries: &deliveries,
        ..*batch
    };
    let outcome = intake::within_transaction(&mut transaction, &left).await?;
    match outcome {
        IntakeOutcome::Stored(_) => transaction.commit().await,
        IntakeOutcome::Stale => transaction.rollback().await,
    }
    .map_err(classify)?;
    Ok(outcome)
}

/// The batch's events that are not there already, and their deliveries.
fn without(
    batch: &IntakeBatch<'_>,
    owners: &HashMap<EventId, EventId>,
) -> (Vec<AcceptedEvent>, Vec<PlannedDelivery>) {
    let mut events = Vec::with_capacity(batch.events.len());
    let mut places = HashMap::with_capacity(batch.events.len());
    for (place, event) in batch.events.iter().enumerate() {
        if !owners.contains_key(&event.id) {
            places.insert(place, events.len());
            events.push(event.clone());
        }
    }
    let deliveries = batch.deliveries.iter().filter_map(|planned| {
        Some(PlannedDelivery {
            event: *places.get(&planned.event)?,
            ..*planned
        })
    });
    (events, deliveries.collect())
}

fn bind<'a>(statement: Statement, formers: impl Iterator<Item = (&'a AcceptedEvent, EventId)>) -> Statement {
    let (organizations, ids, events) = columns(formers.map(|(event, former)| (event, former, event.id)));
    statement.bind(organizations).bind(ids).bind(events)
}

fn columns<'a>(
    rows: impl Iterator<Item = (&'a AcceptedEvent, EventId, EventId)>,
) -> (Vec<Uuid>, Vec<Uuid>, Vec<Uuid>) {
    rows.map(|(event, id, leads_to)| (event.organization.uuid(), id.uuid(), leads_to.uuid()))
        .collect()
}

async fn run(connection: &mut PgConnection, statement: Statement) -> Result<()> {
    statement.execute(connection).await.map(drop).map_err(classify)
}
