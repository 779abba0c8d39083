//! Replays: deliveries that ended are opened again, some events at a time.
//!
//! Any worker does a step of any replay. What was opened and how far it is are written in one transaction, so a crash loses and
//! repeats nothing. What is opened is due, and comes into the lanes as everything does that is due: fairly, and within
//! their bounds. Steps follow each other without haste: a replay of a million must not be felt by others.

use std::time::Duration;

use shared::{
    EventType,
    store::{self, Replay, ReplayStep, Store},
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

/// Gets replays on, until the soft signal.
pub async fn replay(store: Store, soft: CancellationToken) -> anyhow::Result<()> {
    rounds("replays", (LOOK, PAUSE), soft, || round(&store)).await;
    Ok(())
}

/// A step of each of some replays; whether there were any.
async fn round(store: &Store) -> store::Result<bool> {
    let running = store.replays.running_replays(ROUND).await?;
    for (replay, is_there) in &running {
        if *is_there {
            step(store, replay).await?;
        } else {
            store
                .replays
                .cancel_replay(replay.organization, replay.id)
                .await?;
        }
    }
    Ok(!running.is_empty())
}

async fn step(store: &Store, replay: &Replay) -> store::Result<()> {
    let candidates = store.replays.replay_candidates(replay, STEP).await?;
    let events = candidates.iter().filter(|candidate| {
        replay.since.is_none_or(|since| candidate.received_at >= since)
            && candidate.received_at < replay.until
            && EventType::parse_any(&candidate.event_type).is_ok_and(|event_type| {
                replay
                    .event_types
                    .iter()
                    .any(|pattern| pattern.matches(&event_type))
            })
    });
    let step = ReplayStep {
        events: events.map(|candidate| candidate.event).collect(),
        after_seq: candidates.last().map_or(replay.after_seq, |last| last.seq),
        looked_at: candidates.len() as u64,
        done: candidates.len() < STEP as usize,
    };
    if let Some(opened) = store.replays.replay_step(replay, &step).await? {
        tracing::debug!(replay.id = %replay.id, opened, looked_at = step.looked_at, done = step.done, "replay");
    }
    Ok(())
}
