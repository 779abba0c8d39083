//! Intake: frames come out of the queue, and events, deduplicated, with their deliveries, are in the store before the
//! frames are acknowledged.
//!
//! One transaction a [`batch`]. A frame that comes twice changes nothing. While the store is away frames are
//! [held](tries): no frame goes round and round. What fails though the store takes others is parted until the one event
//! at fault is alone; that one is [set aside](aside) with its reason, and the rest flows. Frames that were returned too
//! often all the same come by a lane of their own, one at a time, and are taken in like others.

mod aside;
mod batch;
mod judging;
mod plan;
mod test_push;
mod traced;
mod tries;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use shared::{
    AcceptedEvent, Entry, Repeat, Timestamp,
    filter::{self, Filters},
    queue::{DynQueue, FrameSource, QueueError, Received, SourceLane, frame},
    store::{SetAside, Store, StoreError, is_missing_partition},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::aside::{Reason, frame_aside};
use crate::{
    awaited::Awaited, dispatch::Dispatch, lease::Lease, ownership::Ownership, registry::Registry,
    scheduler::Wake,
};

/// The most events of one transaction.
const BATCH_EVENTS: usize = 500;
/// About how many deliveries one transaction stores, however many its events are wanted by: those of one event go together.
const BATCH_DELIVERIES: usize = 10_000;
/// The most bytes of frames that are taken in together.
const BATCH_BYTES: usize = 2 * 1024 * 1024;

/// Takes frames in.
#[derive(Clone)]
pub struct Intake {
    /// Where frames come from.
    pub queue: DynQueue,
    /// Where events go.
    pub store: Store,
    /// What deliveries are planned by.
    pub registry: Arc<Registry>,
    /// What filtered subscriptions want.
    pub filters: Arc<Filters>,
    /// Where deliveries go once they are stored.
    pub dispatch: Arc<Dispatch>,
    /// Which lanes are this worker's alone.
    pub ownership: Arc<Ownership>,
    /// For which subscriptions somebody waits.
    pub awaited: Arc<Awaited>,
    /// To give word of what is stored and not held.
    pub wake: Wake,
    /// As whom this worker holds them.
    pub lease: Arc<Lease>,
    /// How far intake has come.
    pub progress: Arc<Progress>,
    /// How long events are kept: an id from before that has no place in the store.
    pub retention: Duration,
}

/// How far intake has come: what still waits was accepted after the newest event that was taken in.
#[derive(Debug, Default)]
pub struct Progress(AtomicI64);

impl Progress {
    /// When the newest event that this worker took in was accepted.
    pub fn newest(&self) -> Option<Timestamp> {
        Some(self.0.load(Ordering::Relaxed))
            .filter(|millis| *millis > 0)
            .map(Timestamp::from_millis)
    }

    fn note(&self, events: &[AcceptedEvent]) {
        if let Some(newest) = events.iter().map(|event| event.received_at.millis()).max() {
            self.0.fetch_max(newest, Ordering::Relaxed);
        }
    }
}

/// Why something was not taken in.
#[derive(Debug, thiserror::Error)]
enum IntakeError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Filters(#[from] filter::NotNow),
    #[error("subscriptions change faster than deliveries can be planned")]
    NeverFresh,
    #[error("the worker is told to stop")]
    Stopped,
}

impl IntakeError {
    /// Whether the store refuses the content. A missing partition is not the content's fault.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Store(StoreError::Refused(error)) if !is_missing_partition(error))
    }

    /// Whether it is this machine that lacks something: whatever the content is, it is to be tried again until that is there.
    fn is_own(&self) -> bool {
        matches!(self, Self::Filters(_))
    }
}

impl Intake {
    /// Takes in events that come from no queue.
    pub async fn take_in_events(&self, events: &[AcceptedEvent]) -> Result<(), String> {
        let stored = self.store_batch(events, &[], Instant::now()).await;
        stored.map_err(|error| error.to_string())
    }

    /// Takes frames in until the soft signal.
    pub async fn run(self, lane: SourceLane, soft: CancellationToken) -> anyhow::Result<()> {
        let mut pauses = pauses();
        while !soft.is_cancelled() {
            let taken_in = tokio::select! {
                () = soft.cancelled() => return Ok(()),
                ready = self.ready(lane) => match ready {
                    Ok(mut source) => self.take_in(&mut *source, &soft, &mut pauses).await,
                    Err(error) => Err(error),
                },
            };
            if let Err(IntakeError::Stopped) = taken_in {
                return Ok(());
            }
            if let Err(error) = taken_in {
                tracing::warn!(%error, ?lane, "intake is interrupted; the queue holds what is not stored");
                tokio::select! {
                    () = soft.cancelled() => {}
                    () = tokio::time::sleep(pauses.next().unwrap_or(Duration::from_secs(2))) => {}
                }
            }
        }
        Ok(())
    }

    /// A way out of the queue, once the store takes events: a frame that cannot be stored is better left where it is.
    async fn ready(&self, lane: SourceLane) -> Result<Box<dyn FrameSource>, IntakeError> {
        self.store.events.rehearse().await?;
        Ok(self.queue.source(lane).await?)
    }

    async fn take_in(
        &self,
        source: &mut dyn FrameSource,
        soft: &CancellationToken,
        pauses: &mut backon::ExponentialBackoff,
    ) -> Result<(), IntakeError> {
        loop {
            let frames = tokio::select! {
                () = soft.cancelled() => return Ok(()),
                frames = source.receive(BATCH_BYTES) => frames?,
            };
            let last = frames.last().map(|frame| frame.tag);
            self.take_in_frames(frames, soft).await?;
            if let Some(tag) = last {
                source.acknowledge_up_to(tag).await?;
            }
            *pauses = self::pauses();
        }
    }

    async fn take_in_frames(
        &self,
        frames: Vec<Received>,
        soft: &CancellationToken,
    ) -> Result<(), IntakeError> {
        let mut events: Vec<AcceptedEvent> = Vec::new();
        let mut repeats: Vec<Repeat> = Vec::new();
        let mut unreadable: Vec<SetAside> = Vec::new();
        for Received { body, .. } in frames {
            match frame::decode(&body) {
                Ok(entries) => {
                    for entry in entries {
                        match entry {
                            Entry::Event(event) => events.push(event),
                            Entry::Repeat(repeat) => repeats.push(repeat),
                        }
                    }
                }
                Err(error) => unreadable.push(frame_aside(Reason::Unreadable, &error, body.to_vec())),
            }
        }
        self.settle_aside(&unreadable, soft).await?;
        self.settle(events, repeats, soft).await
    }
}

fn pauses() -> backon::ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter()
        .build()
}
