//! Replays: deliveries that ended are opened again, some events at a time.
//!
//! Any worker does a step of any replay. What was opened and how far it is are written in one transaction, so a crash loses and
//! repeats nothing. What is opened is due, and comes into the lanes as everything does that is due: fairly, and within
//! their bounds. Steps follow each other without haste: a replay of a million must not be felt by others. One that cannot get on
//! has its next turn later, and the others theirs meanwhile.

use std::time::Duration;

use shared::{
    EventType,
    store::{self, Candidate, Replay, ReplayStep, Store},
};
use tokio_util::sync::CancellationToken;

use crate::rounds::rounds;

/// How often it is asked whether there is a replay.
const LOOK: Duration = Duration::from_millis(500);
/// How long a pause there is after a step.
const PAUSE: Duration = Duration::from_millis(20);
/// The most events that one step looks at.
const STEP: u32 = 500;
/// The most replays of a round.
const ROUND: u32 = 10;
/// How much later one has its next turn that cannot get on.
const PUT_OFF: Duration = Duration::from_secs(10);

/// Gets replays on, until the soft signal.
pub async fn replay(store: Store, soft: CancellationToken) -> anyhow::Result<()> {
    rounds("replays", (LOOK, PAUSE), soft, || round(&store)).await;
    Ok(())
}

/// A step of each of some replays; whether one of them got on.
async fn round(store: &Store) -> store::Result<bool> {
    let mut some = false;
    for (replay, is_there) in &store.replays.running_replays(ROUND).await? {
        match get_on(store, replay, *is_there).await {
            Ok(true) => some = true,
            Ok(false) => store.replays.put_off_replay(replay, LOOK).await?,
            Err(error) => {
                tracing::warn!(
                    %error, replay.id = %replay.id, organization.id = %replay.organization, "a replay has to wait"
                );
                store.replays.put_off_replay(replay, PUT_OFF).await?;
            }
        }
    }
    Ok(some)
}

/// Whether it could.
async fn get_on(store: &Store, replay: &Replay, is_there: bool) -> store::Result<bool> {
    let replays = &store.replays;
    if !is_there {
        return replays.cancel_replay(replay.organization, replay.id).await;
    }
    if replay.way.is_some() {
        step(store, replay).await?;
        return Ok(true);
    }
    match replays.begin_replay(replay).await? {
        Some(begun) => {
            tracing::debug!(replay.id = %begun.id, way = ?begun.way, "replay begins");
            step(store, &begun).await?;
            Ok(true)
        }
        None => Ok(false),
    }
}

async fn step(store: &Store, replay: &Replay) -> store::Result<()> {
    let candidates = store.replays.replay_candidates(replay, STEP).await?;
    let events = candidates
        .events
        .iter()
        .filter(|event| is_asked_for(replay, event));
    let step = ReplayStep {
        events: events.map(|candidate| candidate.event).collect(),
        after_seq: candidates.after_seq,
        after_id: candidates.after_id,
        looked_at: candidates.events.len() as u64,
        done: candidates.last,
    };
    if let Some(opened) = store.replays.replay_step(replay, &step).await? {
        tracing::debug!(replay.id = %replay.id, opened, looked_at = step.looked_at, done = step.done, "replay");
    }
    Ok(())
}

fn is_asked_for(replay: &Replay, event: &Candidate) -> bool {
    replay.since.is_none_or(|since| event.received_at >= since)
        && event.received_at < replay.until
        && EventType::parse_any(&event.event_type).is_ok_and(|event_type| {
            replay
                .event_types
                .iter()
                .any(|pattern| pattern.matches(&event_type))
        })
}

#[cfg(test)]
mod tests;
