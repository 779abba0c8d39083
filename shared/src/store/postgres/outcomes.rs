//! Outcomes of attempts, written in batches: one statement each.
//!
//! An outcome applies only where the delivery is open, the worker still holds it, by a lease that still lives, and the
//! attempt is the next one in number. A worker that stalled cannot overwrite what others have done meanwhile.

use sqlx::query;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Engine, Result, announcements::wanted, rows, rows::Columns};
use crate::{
    DeliveryKey, DeliveryState, WorkerId,
    delivery::{AttemptOutcome, AttemptResult, Failure, Next},
};

/// `$2` to `$9` are the outcomes' columns; `$10`, `$11` bound the events, so that few partitions are looked at. The arrays go
/// through `(SELECT …)` so that the planner does not see how long they are: it then takes each row by its key, and never
/// reads a table through for the sake of a long batch.
macro_rules! apply {
    ($returning:literal) => {
        concat!(
            "UPDATE deliveries d SET
                state = o.state,
                attempts = o.number,
                due_at = now() + make_interval(secs => o.after_seconds),
                lease_owner = NULL,
                updated_at = now(),
                started_at = CASE WHEN o.state = 'delivered' THEN o.started_at END,
                duration_ms = CASE WHEN o.state = 'delivered' THEN o.duration_ms END,
                status_code = CASE WHEN o.state = 'delivered' THEN o.status_code END
            FROM unnest((SELECT $2::uuid[]), (SELECT $3::uuid[]), (SELECT $4::integer[]), (SELECT $5::text[]),
                (SELECT $6::double precision[]), (SELECT $7::timestamptz[]), (SELECT $8::bigint[]),
                (SELECT $9::integer[]) ",
            $returning
        )
    };
}

macro_rules! applies {
    () => {
        "WHERE d.event_id = o.event_id AND d.subscription_id = o.subscription_id
           AND d.event_id BETWEEN $10 AND $11
           AND d.due_at IS NOT NULL AND d.lease_owner = $1 AND d.attempts = o.number - 1
           AND EXISTS (SELECT FROM workers WHERE id = $1 AND lease_until > now())"
    };
}

const SUCCESSES: &str = concat!(
    apply!(
        ") AS o (event_id, subscription_id, number, state, after_seconds, started_at, duration_ms, status_code) "
    ),
    applies!(),
    " RETURNING d.event_id, d.subscription_id"
);

const MIXED: &str = concat!(
    "WITH applied AS (",
    apply!(
        ", (SELECT $12::text[]), (SELECT $13::text[]), (SELECT $14::uuid[]), (SELECT $15::text[]))
        AS o (event_id, subscription_id, number, state, after_seconds, started_at, duration_ms, status_code, failure,
              detail, announcement, announced) "
    ),
    applies!(),
    " RETURNING o.*, d.organization_id
    ), told AS (
        INSERT INTO announcements (id, organization_id, type, payload)
        SELECT announcement, organization_id, 'triggers.delivery.dead_lettered', announced FROM applied
        WHERE announcement IS NOT NULL AND ",
    wanted!("applied.organization_id"),
    "   ORDER BY announcement ON CONFLICT DO NOTHING
    ), logged AS (
        INSERT INTO attempts (event_id, subscription_id, number, started_at, duration_ms, status_code, failure, detail)
        SELECT event_id, subscription_id, number, started_at, duration_ms, status_code, failure, detail
        FROM applied WHERE failure IS NOT NULL
        ORDER BY event_id, subscription_id
    )
    SELECT event_id, subscription_id FROM applied"
);

impl Engine {
    pub(super) async fn write_outcomes(
        &self,
        worker: WorkerId,
        outcomes: &[AttemptOutcome],
    ) -> Result<Vec<DeliveryKey>> {
        if outcomes.is_empty() {
            return Ok(Vec::new());
        }
        let mut sorted: Vec<&AttemptOutcome> = outcomes.iter().collect();
        sorted.sort_by_key(|outcome| (outcome.delivery, outcome.number));
        let failed = sorted.iter().any(|outcome| failure(outcome).is_some());
        let events = || sorted.iter().map(|outcome| outcome.delivery.event.uuid());
        let statement = query(if failed { MIXED } else { SUCCESSES })
            .bind(worker.uuid())
            .bind(events().collect::<Vec<Uuid>>())
            .bind(column(&sorted, |outcome| outcome.delivery.subscription.uuid()))
            .bind(column(&sorted, |outcome| {
                i32::try_from(outcome.number).unwrap_or(i32::MAX)
            }))
            .bind(column(&sorted, |outcome| state(outcome).as_str()))
            .bind(column(&sorted, after))
            .bind(column(&sorted, |outcome| {
                OffsetDateTime::from(outcome.started_at)
            }))
            .bind(column(&sorted, |outcome| {
                i64::try_from(outcome.duration.as_millis()).unwrap_or(i64::MAX)
            }))
            .bind(column(&sorted, |outcome| status_code(outcome).map(i32::from)))
            .bind(events().min())
            .bind(events().max());
        let statement = if failed {
            statement
                .bind(column(&sorted, |outcome| {
                    failure(outcome).map(|failure| failure.kind.as_str())
                }))
                .bind(column(&sorted, |outcome| {
                    failure(outcome).map(|failure| failure.detail.as_str())
                }))
                .bind(column(&sorted, |outcome| {
                    outcome
                        .announcement
                        .as_ref()
                        .map(|announcement| announcement.id.uuid())
                }))
                .bind(column(&sorted, |outcome| {
                    outcome
                        .announcement
                        .as_ref()
                        .map(|announcement| announcement.payload.as_str())
                }))
        } else {
            statement
        };
        self.rows(statement)
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
}

fn column<'a, C>(outcomes: &[&'a AttemptOutcome], read: impl Fn(&'a AttemptOutcome) -> C) -> Vec<C> {
    outcomes.iter().copied().map(read).collect()
}

const fn state(outcome: &AttemptOutcome) -> DeliveryState {
    match outcome.result {
        AttemptResult::Delivered { .. } => DeliveryState::Delivered,
        AttemptResult::Failed {
            next: Next::Retry { .. },
            ..
        } => DeliveryState::Retrying,
        AttemptResult::Failed {
            next: Next::DeadLetter,
            ..
        } => DeliveryState::DeadLetter,
    }
}

fn after(outcome: &AttemptOutcome) -> Option<f64> {
    match outcome.result {
        AttemptResult::Failed {
            next: Next::Retry { after },
            ..
        } => Some(rows::seconds(after)),
        AttemptResult::Failed {
            next: Next::DeadLetter,
            ..
        }
        | AttemptResult::Delivered { .. } => None,
    }
}

const fn failure(outcome: &AttemptOutcome) -> Option<&Failure> {
    match &outcome.result {
        AttemptResult::Failed { failure, .. } => Some(failure),
        AttemptResult::Delivered { .. } => None,
    }
}

fn status_code(outcome: &AttemptOutcome) -> Option<u16> {
    match &outcome.result {
        AttemptResult::Delivered { status_code } => Some(*status_code),
        AttemptResult::Failed { failure, .. } => failure.status_code,
    }
}
