//! Gathering accepted events into frames, and waiting for the queue to confirm them.
//!
//! One task owns the way into the queue. While the queue confirms one frame, events that arrive meanwhile gather in
//! the next: no timer, no added wait; alone, an event is a frame of one. What is under way is bounded twice, by events
//! and by bytes; past that callers are told at once. A caller never waits longer than [`CONFIRM_TIMEOUT`], or than the
//! deadline that it gives.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{Confirmation, DynQueue, FrameSink, MAX_FRAME_BYTES, QueueError};
use crate::{lifecycle::Lifecycle, telemetry};

/// How long a caller waits for a confirmation: a 503 must come within two seconds.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_millis(1_800);
/// The most events that wait for their confirmation.
const MAX_EVENTS: usize = 8_192;
/// The most bytes of events that wait for their confirmation.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Frames on their way at once. More than one, so that an event alone need not wait for the frame before it; few, so
/// that frames grow under load. See `docs/benchmarks.md`.
const MAX_FRAMES: usize = 4;

/// Why an event is not known to be in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Too much is under way: this event was not tried.
    #[error("too much is under way")]
    Overloaded,
    /// The queue cannot be reached, or the connection broke before it confirmed.
    #[error("the queue is unavailable")]
    Unavailable,
    /// The queue is full: this event is not in it.
    #[error("the queue is full")]
    Full,
    /// No confirmation came in time; it may come yet.
    #[error("the queue did not confirm in time")]
    TimedOut,
}

type Answer = oneshot::Sender<Result<(), PublishError>>;

struct Waiting {
    bytes: Bytes,
    /// Who waits for what comes of it, if anybody does.
    answer: Option<Answer>,
    /// Freed when the answer is given, not when the caller stops waiting for it.
    permit: OwnedSemaphorePermit,
}

/// The way into the queue. Cheap to clone; the task behind it ends when the last clone is dropped and all is confirmed.
#[derive(Clone)]
pub struct Publisher {
    events: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
    open: Arc<AtomicBool>,
}

impl Publisher {
    /// Starts the task.
    pub fn start(queue: DynQueue, lifecycle: &Lifecycle) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        let publisher = Self {
            events: sender,
            bytes: Arc::new(Semaphore::new(MAX_BYTES)),
            open: Arc::new(AtomicBool::new(false)),
        };
        let task = Task {
            queue,
            receiver,
            carry: None,
            open: Arc::clone(&publisher.open),
        };
        lifecycle.critical("publisher", task.run());
        publisher
    }

    /// Puts one encoded entry into the queue. `Ok` means that it is on disk.
    ///
    /// If the caller goes away, the event is left out if its frame is not written yet; else it goes on.
    pub async fn publish(&self, entry: Bytes) -> Result<(), PublishError> {
        self.publish_by(entry, tokio::time::Instant::now() + CONFIRM_TIMEOUT)
            .await
    }

    /// As [`Publisher::publish`], and waits until `deadline` at most.
    pub async fn publish_by(&self, entry: Bytes, deadline: tokio::time::Instant) -> Result<(), PublishError> {
        if !self.is_open() {
            return Err(PublishError::Unavailable);
        }
        let (answer, answered) = oneshot::channel();
        self.enqueue(entry, Some(answer))?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(PublishError::Unavailable),
            Err(_) => Err(PublishError::TimedOut),
        }
    }

    /// Puts one entry into the queue without waiting, and tells nobody what came of it: for what may be lost.
    pub fn publish_unconfirmed(&self, entry: Bytes) {
        let _ = self.enqueue(entry, None);
    }

    /// Whether the queue could be written to a moment ago.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn enqueue(&self, bytes: Bytes, answer: Option<Answer>) -> Result<(), PublishError> {
        let size = u32::try_from(bytes.len()).map_err(|_| PublishError::Overloaded)?;
        let permit = Arc::clone(&self.bytes)
            .try_acquire_many_owned(size)
            .map_err(|_| PublishError::Overloaded)?;
        self.events
            .try_send(Waiting {
                bytes,
                answer,
                permit,
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => PublishError::Overloaded,
                mpsc::error::TrySendError::Closed(_) => PublishError::Unavailable,
            })
    }
}

/// Of each entry in one frame: who waits for it, and its room.
type Callers = Vec<(Option<Answer>, OwnedSemaphorePermit)>;

struct Task {
    queue: DynQueue,
    receiver: mpsc::Receiver<Waiting>,
    /// An event that did not fit into the frame before.
    carry: Option<Waiting>,
    open: Arc<AtomicBool>,
}

/// Why a sink is left.
enum Left {
    /// No caller is left.
    Done,
    /// It broke.
    Broken,
}

impl Task {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut backoff = backoff();
        loop {
            let sink = tokio::select! {
                sink = self.queue.sink() => sink,
                // While there is no sink, nobody is kept waiting; and the task ends with its callers.
                () = refuse(&mut self.receiver) => return Ok(()),
            };
            match sink {
                Ok(sink) => {
                    backoff = self::backoff();
                    self.open.store(true, Ordering::Release);
                    let left = self.publish_through(sink).await;
                    self.open.store(false, Ordering::Release);
                    if matches!(left, Left::Done) {
                        return Ok(());
                    }
                }
                Err(error) => tracing::warn!(%error, "the queue cannot be written to; trying again"),
            }
            let pause = backoff.next().unwrap_or(Duration::from_secs(2));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = refuse(&mut self.receiver) => return Ok(()),
            }
        }
    }

    async fn publish_through(&mut self, mut sink: Box<dyn FrameSink>) -> Left {
        let mut unconfirmed = FuturesUnordered::new();
        let mut broken = false;
        // Noticed here even if nobody posts, so that readiness tells the truth.
        let mut look = tokio::time::interval(Duration::from_millis(250));
        let left = loop {
            if broken {
                break Left::Broken;
            }
            tokio::select! {
                biased;
                Some((result, callers, written)) = unconfirmed.next(), if !unconfirmed.is_empty() => {
                    broken = settle(result, callers, written);
                }
                waiting = self.next(), if unconfirmed.len() < MAX_FRAMES => {
                    let Some(first) = waiting else { break Left::Done };
                    let (frame, callers) = self.gather(first);
                    if callers.is_empty() {
                        continue;
                    }
                    let written = Instant::now();
                    match sink.write(frame).await {
                        Ok(confirmation) => unconfirmed.push(confirmed(confirmation, callers, written)),
                        Err(error) => broken = settle(Err(error), callers, written),
                    }
                }
                _ = look.tick() => broken = !sink.healthy(),
            }
        };
        if matches!(left, Left::Broken) {
            tracing::warn!(
                frames.unconfirmed = unconfirmed.len(),
                "the way into the queue broke"
            );
            self.open.store(false, Ordering::Release);
        }
        // What was written may be confirmed yet; a broken sink's confirmations fail by themselves or run out of time.
        let rest = async {
            while let Some((result, callers, written)) = unconfirmed.next().await {
                settle(result, callers, written);
            }
        };
        let _ = tokio::time::timeout(CONFIRM_TIMEOUT, rest).await;
        left
    }

    async fn next(&mut self) -> Option<Waiting> {
        match self.carry.take() {
            Some(waiting) => Some(waiting),
            None => self.receiver.recv().await,
        }
    }

    /// A frame of `first` and of what else is here already, without those whose callers have gone.
    fn gather(&mut self, first: Waiting) -> (Bytes, Callers) {
        let mut callers = Callers::new();
        let mut single = Bytes::new();
        let mut gathered = BytesMut::new();
        let mut next = Some(first);
        while let Some(Waiting {
            bytes,
            answer,
            permit,
        }) = next
        {
            if answer.as_ref().is_none_or(|answer| !answer.is_closed()) {
                if callers.is_empty() {
                    single = bytes;
                } else {
                    if gathered.is_empty() {
                        gathered.extend_from_slice(&single);
                    }
                    gathered.extend_from_slice(&bytes);
                }
                callers.push((answer, permit));
            }
            let size = single.len().max(gathered.len());
            next = self.receiver.try_recv().ok();
            if let Some(waiting) = next.take_if(|waiting| size + waiting.bytes.len() > MAX_FRAME_BYTES) {
                self.carry = Some(waiting);
            }
        }
        (
            if callers.len() > 1 {
                gathered.freeze()
            } else {
                single
            },
            callers,
        )
    }
}

async fn confirmed(
    confirmation: Confirmation,
    callers: Callers,
    written: Instant,
) -> (Result<(), QueueError>, Callers, Instant) {
    // Longer than any caller waits: a queue that has not answered by then has stalled.
    let result = tokio::time::timeout(CONFIRM_TIMEOUT + Duration::from_secs(8), confirmation).await;
    (
        result.unwrap_or_else(|_| Err(QueueError::Unavailable("no confirmation came".into()))),
        callers,
        written,
    )
}

/// Answers the callers of a frame; `true` if the sink is to be left.
fn settle(result: Result<(), QueueError>, callers: Callers, written: Instant) -> bool {
    let (answer, broken) = match result {
        Ok(()) => {
            telemetry::frames().increment(1);
            #[expect(
                clippy::cast_precision_loss,
                reason = "a frame holds a few thousand events at most"
            )]
            telemetry::frame_events().record(callers.len() as f64);
            telemetry::publish_seconds().record(written.elapsed());
            (Ok(()), false)
        }
        Err(QueueError::Refused(why)) => {
            tracing::warn!(%why, "the queue refused a frame");
            (Err(PublishError::Full), false)
        }
        Err(error) => {
            tracing::warn!(%error, "a frame was not confirmed");
            (Err(PublishError::Unavailable), true)
        }
    };
    for (caller, _permit) in callers {
        if let Some(caller) = caller {
            let _ = caller.send(answer);
        }
    }
    broken
}

/// Refuses all that comes, until no caller is left.
async fn refuse(receiver: &mut mpsc::Receiver<Waiting>) {
    while let Some(waiting) = receiver.recv().await {
        if let Some(answer) = waiting.answer {
            let _ = answer.send(Err(PublishError::Unavailable));
        }
    }
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests;
