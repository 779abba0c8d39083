//! How deliveries end: outcomes of attempts, and acknowledgements.

use std::collections::HashSet;

use sqlx::AssertSqlSafe;

use super::{
    Engine,
    announcements::announce,
    deliveries::lives,
    events::resolve,
    many::{marks, portions, values},
    row::{Columns as _, failed},
    writer::Tx,
};
use crate::{
    DeliveryKey, DeliveryState, EventId, OrganizationId, WorkerId,
    delivery::{AttemptOutcome, AttemptResult, Failure, Next},
    store::{Acknowledged, Change, Result},
};

/// Writes the outcomes that still apply: to a delivery that is open, held by this worker, and has had exactly the
/// attempts before.
async fn record(tx: &mut Tx, worker: WorkerId, outcomes: Vec<AttemptOutcome>) -> Result<Vec<DeliveryKey>> {
    if !lives(&mut tx.connection, worker, tx.now).await? {
        return Ok(Vec::new());
    }
    let now = tx.now;
    let mut applied = Vec::with_capacity(outcomes.len());
    for portion in portions(&outcomes) {
        let sql = format!(
            "UPDATE deliveries SET state = v.column4, attempts = v.column3, due_at = v.column5, lease_owner = NULL, \
             updated_at = v.column6, started_at = v.column7, duration_ms = v.column8, status_code = v.column9 \
             FROM (VALUES {}) v WHERE deliveries.event_id = v.column1 AND deliveries.subscription_id = v.column2 \
             AND deliveries.due_at IS NOT NULL AND deliveries.lease_owner = ? \
             AND deliveries.attempts = v.column3 - 1 RETURNING event_id, subscription_id",
            values(portion.len(), 9)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for outcome in portion {
            let (state, due_at, status_code) = match &outcome.result {
                AttemptResult::Delivered { status_code } => {
                    (DeliveryState::Delivered, None, Some(*status_code))
                }
                AttemptResult::Failed { next, .. } => match next {
                    Next::Retry { after } => (DeliveryState::Retrying, Some(now.plus(*after).millis()), None),
                    Next::DeadLetter => (DeliveryState::DeadLetter, None, None),
                },
            };
            let succeeded = state == DeliveryState::Delivered;
            query = query
                .bind(outcome.delivery.event.uuid())
                .bind(outcome.delivery.subscription.uuid())
                .bind(outcome.number)
                .bind(state.as_str())
                .bind(due_at)
                .bind(now.millis())
                .bind(succeeded.then(|| outcome.started_at.millis()))
                .bind(succeeded.then(|| duration_ms(outcome)))
                .bind(status_code.map(i64::from));
        }
        let query = query.bind(worker.uuid());
        for row in query.fetch_all(&mut tx.connection).await.map_err(failed)? {
            applied.push(DeliveryKey {
                event: row.id(0)?,
                subscription: row.id(1)?,
            });
        }
    }
    insert_failures(tx, &outcomes, &applied).await?;
    for outcome in &outcomes {
        if let Some(announcement) = &outcome.announcement
            && applied.contains(&outcome.delivery)
        {
            announce(tx, outcome.organization, announcement).await?;
        }
    }
    Ok(applied)
}

fn duration_ms(outcome: &AttemptOutcome) -> i64 {
    i64::try_from(outcome.duration.as_millis()).unwrap_or(i64::MAX)
}

async fn insert_failures(tx: &mut Tx, outcomes: &[AttemptOutcome], applied: &[DeliveryKey]) -> Result<()> {
    let applied: HashSet<&DeliveryKey> = applied.iter().collect();
    let failures: Vec<(&AttemptOutcome, &Failure)> = outcomes
        .iter()
        .filter(|outcome| applied.contains(&outcome.delivery))
        .filter_map(|outcome| match &outcome.result {
            AttemptResult::Failed { failure, .. } => Some((outcome, failure)),
            AttemptResult::Delivered { .. } => None,
        })
        .collect();
    for portion in portions(&failures) {
        let sql = format!(
            "INSERT INTO attempts (event_id, subscription_id, number, started_at, duration_ms, status_code, failure, \
             detail) VALUES {}",
            values(portion.len(), 8)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (outcome, failure) in portion {
            query = query
                .bind(outcome.delivery.event.uuid())
                .bind(outcome.delivery.subscription.uuid())
                .bind(outcome.number)
                .bind(outcome.started_at.millis())
                .bind(duration_ms(outcome))
                .bind(failure.status_code.map(i64::from))
                .bind(failure.kind.as_str())
                .bind(failure.detail.clone());
        }
        query.execute(&mut tx.connection).await.map_err(failed)?;
    }
    Ok(())
}

async fn acknowledge(
    tx: &mut Tx,
    organization: OrganizationId,
    asked: Vec<EventId>,
) -> Result<Vec<Acknowledged>> {
    let firsts = resolve(&mut tx.connection, organization, &asked).await?;
    let events: HashSet<EventId> = firsts.values().copied().collect();
    let events: Vec<EventId> = events.into_iter().collect();
    for portion in portions(&events) {
        // Those of a deleted subscription are as good as cancelled already.
        let closed = format!(
            "event_id IN ({}) AND due_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM subscriptions s \
             WHERE s.id = deliveries.subscription_id AND s.deleted_at IS NOT NULL)",
            marks(portion.len())
        );
        let sql =
            format!("SELECT DISTINCT event_id FROM deliveries WHERE {closed} AND lease_owner IS NOT NULL");
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for event in portion {
            query = query.bind(event.uuid());
        }
        for row in query.fetch_all(&mut tx.connection).await.map_err(failed)? {
            tx.announce(Change::Closed(row.id(0)?));
        }
        let sql = format!(
            "UPDATE deliveries SET state = 'acknowledged', due_at = NULL, lease_owner = NULL, updated_at = ? \
             WHERE {closed}"
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(tx.now.millis());
        for event in portion {
            query = query.bind(event.uuid());
        }
        query.execute(&mut tx.connection).await.map_err(failed)?;
    }
    let at = tx.now;
    let answer = |id: &EventId| match firsts.get(id) {
        Some(&event) => Acknowledged::Done { event, at },
        None => Acknowledged::NotFound,
    };
    Ok(asked.iter().map(answer).collect())
}

impl Engine {
    pub(super) async fn write_outcomes(
        &self,
        worker: WorkerId,
        outcomes: &[AttemptOutcome],
    ) -> Result<Vec<DeliveryKey>> {
        let outcomes = outcomes.to_vec();
        self.writer
            .run(move |tx| Box::pin(record(tx, worker, outcomes)))
            .await
    }

    pub(super) async fn close_deliveries(
        &self,
        organization: OrganizationId,
        events: &[EventId],
    ) -> Result<Vec<Acknowledged>> {
        let events = events.to_vec();
        self.writer
            .run(move |tx| Box::pin(acknowledge(tx, organization, events)))
            .await
    }
}
