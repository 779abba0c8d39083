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
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

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
    let mut every = tokio::time::interval(LOOK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = soft.cancelled() => return Ok(()),
            _ = every.tick() => {}
        }
        while !soft.is_cancelled() {
            match round(&store).await {
                Ok(0) => break,
                Ok(_) => tokio::time::sleep(PAUSE).await,
                Err(error) => {
                    tracing::debug!(%error, "replays have to wait");
                    break;
                }
            }
        }
    }
}

/// A step of each of some replays; how many there were.
async fn round(store: &Store) -> store::Result<usize> {
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
    Ok(running.len())
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
