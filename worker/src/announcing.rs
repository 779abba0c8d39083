//! Events of the system's own: taken in as any event is, for whoever subscribes to them.
//!
//! What they tell of writes them into the store in its own transaction; here they are taken in and forgotten. An id is
//! taken in once, however often that is tried, so a crash between the two repeats nothing. Whether anybody wants one, its
//! plan says, which the store holds against the subscriptions as they are: what is remembered of those may be from before
//! whoever listens began to.

use std::time::Duration;

use shared::{
    AcceptedEvent, EventType, Payload, Source,
    store::{Announced, StoreError},
};
use tokio_util::sync::CancellationToken;

use crate::{intake::Intake, rounds::rounds};

/// How often it is looked whether there are any.
const LOOK: Duration = Duration::from_millis(500);
/// The most that are taken in at once.
const BATCH: u32 = 100;

/// Takes them in until the soft signal.
pub async fn take_in(intake: Intake, soft: CancellationToken) -> anyhow::Result<()> {
    let round = || batch(&intake);
    rounds("announcements", (LOOK, Duration::ZERO), soft, round).await;
    Ok(())
}

/// Takes some in; whether there may be more.
async fn batch(intake: &Intake) -> Result<bool, String> {
    let failed = |error: StoreError| error.to_string();
    let store = &intake.store.announcements;
    let waiting = store.announcements(BATCH).await.map_err(failed)?;
    if waiting.is_empty() {
        return Ok(false);
    }
    let ids: Vec<_> = waiting.iter().map(|waiting| waiting.id).collect();
    let count = waiting.len();
    let events: Vec<AcceptedEvent> = waiting.into_iter().filter_map(event).collect();
    if !events.is_empty() {
        intake.take_in_events(&events).await?;
    }
    store.announced(&ids).await.map_err(failed)?;
    Ok(count == BATCH as usize)
}

fn event(waiting: Announced) -> Option<AcceptedEvent> {
    Some(AcceptedEvent {
        id: waiting.id,
        former_ids: Vec::new(),
        organization: waiting.organization,
        event_type: EventType::parse_any(&waiting.event_type).ok()?,
        dedup_id: None,
        received_at: waiting.at,
        occurred_at: None,
        source: Source::parse("triggers").ok(),
        trace: None,
        payload: Payload::from_trusted(waiting.payload.into_bytes().into()).ok()?,
    })
}
