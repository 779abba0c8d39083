//! Gathering accepted events into frames, and waiting for the queue to confirm them.
//!
//! One task owns the way into the queue. While the queue confirms one frame, events that arrive meanwhile gather in
//! the next: no timer, no added wait; alone, an event is a frame of one. Where there are several queues, each has frames
//! of its own, and none waits for another's. What is under way is bounded twice, by events and by bytes; past that, and while
//! [more comes than the queue takes](standing), callers are told at once. A caller never waits longer than
//! [`CONFIRM_TIMEOUT`], or than the deadline that it gives.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::standing::{Standing, Taking};
use super::{Confirmation, DynQueue, FrameSink, MAX_FRAME_BYTES, QueueError, frame::Encoded, way_of};
use crate::{lifecycle::Lifecycle, telemetry};

/// How long a caller waits for a confirmation: a 503 must come within two seconds.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_millis(1_800);
/// The most events, or parts of batches, that wait for a frame.
const MAX_EVENTS: usize = 8_192;
/// The most bytes of events that wait for their confirmation.
const MAX_BYTES: usize = 32 * 1024 * 1024;
/// Frames on their way at once, to each queue. More than one, so that an event alone need not wait for the frame before it; few, so
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

/// What hangs on whether entries get into the queue. It goes with them, so that it is settled by what becomes of them, and not by
/// whether their caller is still there. Dropped, it knows that they did not get in, or that nobody can tell.
pub trait Stake: Send {
    /// They are on disk.
    fn confirmed(self: Box<Self>);
}

/// Whom to tell what came of entries.
struct Answer {
    caller: oneshot::Sender<Result<(), PublishError>>,
    stake: Option<Box<dyn Stake>>,
}

impl Answer {
    /// Settles what hangs on it, and then tells the caller.
    fn give(self, result: Result<(), PublishError>) {
        match self.stake {
            Some(stake) if result.is_ok() => stake.confirmed(),
            stake => drop(stake),
        }
        let _ = self.caller.send(result);
    }
}

struct Waiting {
    bytes: Bytes,
    /// How many entries they are.
    entries: usize,
    /// Who waits for what comes of it, if anybody does.
    answer: Option<Answer>,
    /// Freed when the answer is given, not when the caller stops waiting for it.
    permit: Permit,
}

/// The room of one event, or of a part of a batch.
struct Permit {
    _bytes: OwnedSemaphorePermit,
    /// Among all that wait, if there are several queues. One queue's channel is bound enough.
    _event: Option<OwnedSemaphorePermit>,
}

/// The way into the queue. Cheap to clone; the task behind it ends when the last clone is dropped and all is confirmed.
#[derive(Clone)]
pub struct Publisher {
    /// One a queue, with what is known of those that wait in it.
    ways: Arc<[(mpsc::Sender<Waiting>, Arc<Standing>)]>,
    bytes: Arc<Semaphore>,
    events: Arc<Semaphore>,
    open: Arc<AtomicBool>,
}

impl Publisher {
    /// Starts the task.
    pub fn start(queue: DynQueue, lifecycle: &Lifecycle) -> Self {
        let (senders, ways) = (0..queue.ways().max(1))
            .map(|_| {
                let (sender, receiver) = mpsc::channel(MAX_EVENTS);
                let taking = Taking::new(Instant::now());
                ((sender, taking.standing()), Way::new(receiver, taking))
            })
            .unzip::<_, _, Vec<_>, Vec<_>>();
        let publisher = Self {
            ways: senders.into(),
            bytes: Arc::new(Semaphore::new(MAX_BYTES)),
            events: Arc::new(Semaphore::new(MAX_EVENTS)),
            open: Arc::new(AtomicBool::new(false)),
        };
        let task = Task {
            queue,
            inlet: Inlet { ways, turn: 0 },
            open: Arc::clone(&publisher.open),
        };
        lifecycle.critical("publisher", task.run());
        publisher
    }

    /// Puts encoded entries into the queue, all into one frame and in their order. `Ok` means that they are on disk.
    ///
    /// If the caller goes away, the event is left out if its frame is not written yet; else it goes on.
    pub async fn publish(&self, entry: Encoded) -> Result<(), PublishError> {
        self.publish_by(entry, tokio::time::Instant::now() + CONFIRM_TIMEOUT)
            .await
    }

    /// As [`Publisher::publish`], and waits until `deadline` at most.
    pub async fn publish_by(
        &self,
        entry: Encoded,
        deadline: tokio::time::Instant,
    ) -> Result<(), PublishError> {
        self.publish_with(entry, None, deadline).await
    }

    /// As [`Publisher::publish_by`]. What becomes of the entries settles `stake`, by the time that the caller is told of it, or if
    /// the caller is not there any more.
    pub async fn publish_for(
        &self,
        entry: Encoded,
        stake: Box<dyn Stake>,
        deadline: tokio::time::Instant,
    ) -> Result<(), PublishError> {
        self.publish_with(entry, Some(stake), deadline).await
    }

    async fn publish_with(
        &self,
        entry: Encoded,
        stake: Option<Box<dyn Stake>>,
        deadline: tokio::time::Instant,
    ) -> Result<(), PublishError> {
        if !self.is_open() {
            return Err(PublishError::Unavailable);
        }
        let (caller, answered) = oneshot::channel();
        if let Err(error) = self.enqueue(entry, Some(Answer { caller, stake })) {
            if error == PublishError::Overloaded {
                telemetry::shed().increment(1);
            }
            return Err(error);
        }
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(PublishError::Unavailable),
            Err(_) => Err(PublishError::TimedOut),
        }
    }

    /// Puts one entry into the queue without waiting, and tells nobody what came of it: for what may be lost.
    pub fn publish_unconfirmed(&self, entry: Encoded) {
        let _ = self.enqueue(entry, None);
    }

    /// Whether the queue could be written to a moment ago.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn enqueue(&self, entry: Encoded, answer: Option<Answer>) -> Result<(), PublishError> {
        let Encoded {
            organization,
            bytes,
            entries,
        } = entry;
        let size = u32::try_from(bytes.len()).map_err(|_| PublishError::Overloaded)?;
        let room = |semaphore: &Arc<Semaphore>, size| {
            let permit = Arc::clone(semaphore).try_acquire_many_owned(size);
            permit.map_err(|_| PublishError::Overloaded)
        };
        let permit = Permit {
            _bytes: room(&self.bytes, size)?,
            _event: match self.ways.len() {
                1 => None,
                _ => Some(room(&self.events, 1)?),
            },
        };
        let (way, standing) = &self.ways[way_of(organization, self.ways.len())];
        let size = bytes.len();
        if !standing.admits(size, Instant::now()) {
            return Err(PublishError::Overloaded);
        }
        let waiting = Waiting {
            bytes,
            entries,
            answer,
            permit,
        };
        way.try_send(waiting).map_err(|error| {
            standing.back(size);
            match error {
                mpsc::error::TrySendError::Full(_) => PublishError::Overloaded,
                mpsc::error::TrySendError::Closed(_) => PublishError::Unavailable,
            }
        })
    }
}

/// Whose entries are in one frame.
#[derive(Default)]
struct Callers {
    /// Who waits for theirs, if anybody does, and their room.
    waiting: Vec<(Option<Answer>, Permit)>,
    /// How many entries they are.
    entries: usize,
}

/// What is on its way to one queue.
struct Way {
    receiver: mpsc::Receiver<Waiting>,
    /// An event that did not fit into the frame before.
    carry: Option<Waiting>,
    /// Frames written and not confirmed.
    unconfirmed: usize,
    taking: Taking,
}

/// Where events come from: the queues take turns.
struct Inlet {
    ways: Vec<Way>,
    /// Whose turn it is.
    turn: usize,
}

struct Task {
    queue: DynQueue,
    inlet: Inlet,
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
                () = self.inlet.refuse() => return Ok(()),
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
                () = self.inlet.refuse() => return Ok(()),
            }
        }
    }

    async fn publish_through(&mut self, mut sink: Box<dyn FrameSink>) -> Left {
        let mut unconfirmed = FuturesUnordered::new();
        self.inlet.ways.iter_mut().for_each(|way| way.unconfirmed = 0);
        let mut broken = false;
        // Noticed here even if nobody posts, so that readiness tells the truth.
        let mut look = tokio::time::interval(Duration::from_millis(250));
        let left = loop {
            if broken {
                break Left::Broken;
            }
            tokio::select! {
                biased;
                Some((way, result, callers, written)) = unconfirmed.next(), if !unconfirmed.is_empty() => {
                    self.inlet.ended(way);
                    broken = settle(result, callers, written);
                }
                waiting = self.inlet.next(MAX_FRAMES) => {
                    let Some((way, first)) = waiting else { break Left::Done };
                    let (frame, callers) = self.inlet.ways[way].gather(first);
                    if callers.waiting.is_empty() {
                        continue;
                    }
                    let written = Instant::now();
                    match sink.write(way, frame).await {
                        Ok(confirmation) => {
                            self.inlet.ways[way].unconfirmed += 1;
                            unconfirmed.push(confirmed(way, confirmation, callers, written));
                        }
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
            while let Some((_, result, callers, written)) = unconfirmed.next().await {
                settle(result, callers, written);
            }
        };
        let _ = tokio::time::timeout(CONFIRM_TIMEOUT, rest).await;
        left
    }
}

impl Inlet {
    /// The next event for a queue that has fewer than `unconfirmed` frames on their way; `None` once no caller is left.
    /// Pends while there is none, or every queue has as many. Cancel-safe.
    async fn next(&mut self, unconfirmed: usize) -> Option<(usize, Waiting)> {
        poll_fn(|context| self.poll_next(unconfirmed, context)).await
    }

    /// A frame of this queue is on its way no more.
    fn ended(&mut self, way: usize) {
        self.ways[way].unconfirmed -= 1;
    }

    fn poll_next(&mut self, unconfirmed: usize, context: &mut Context<'_>) -> Poll<Option<(usize, Waiting)>> {
        let count = self.ways.len();
        let mut closed = 0;
        for index in (self.turn..count).chain(0..self.turn) {
            let way = &mut self.ways[index];
            if way.unconfirmed >= unconfirmed {
                continue;
            }
            let next = match way.carry.take() {
                Some(carried) => Poll::Ready(Some(carried)),
                None => way.receiver.poll_recv(context),
            };
            match next {
                Poll::Ready(Some(waiting)) => {
                    self.turn = (index + 1) % count;
                    return Poll::Ready(Some((index, waiting)));
                }
                Poll::Ready(None) => closed += 1,
                Poll::Pending => {}
            }
        }
        if closed == count {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }

    /// Refuses all that comes, until no caller is left.
    async fn refuse(&mut self) {
        while let Some((way, waiting)) = self.next(usize::MAX).await {
            // Nobody waits where all are refused.
            let size = waiting.bytes.len();
            self.ways[way].taking.took(size, false, Instant::now());
            if let Some(answer) = waiting.answer {
                answer.give(Err(PublishError::Unavailable));
            }
        }
    }
}

impl Way {
    fn new(receiver: mpsc::Receiver<Waiting>, taking: Taking) -> Self {
        Self {
            receiver,
            carry: None,
            unconfirmed: 0,
            taking,
        }
    }

    /// A frame of `first` and of what else is here already, without those whose callers have gone.
    fn gather(&mut self, first: Waiting) -> (Bytes, Callers) {
        let mut callers = Callers::default();
        let mut single = Bytes::new();
        let mut gathered = BytesMut::new();
        let mut taken = 0;
        let mut next = Some(first);
        while let Some(Waiting {
            bytes,
            entries,
            answer,
            permit,
        }) = next
        {
            taken += bytes.len();
            if answer.as_ref().is_none_or(|answer| !answer.caller.is_closed()) {
                if callers.waiting.is_empty() {
                    single = bytes;
                } else {
                    if gathered.is_empty() {
                        gathered.extend_from_slice(&single);
                    }
                    gathered.extend_from_slice(&bytes);
                }
                callers.waiting.push((answer, permit));
                callers.entries += entries;
            }
            let size = single.len().max(gathered.len());
            next = self.receiver.try_recv().ok();
            if let Some(waiting) = next.take_if(|waiting| size + waiting.bytes.len() > MAX_FRAME_BYTES) {
                self.carry = Some(waiting);
            }
        }
        self.taking.took(taken, self.carry.is_some(), Instant::now());
        (
            if callers.waiting.len() > 1 {
                gathered.freeze()
            } else {
                single
            },
            callers,
        )
    }
}

async fn confirmed(
    way: usize,
    confirmation: Confirmation,
    callers: Callers,
    written: Instant,
) -> (usize, Result<(), QueueError>, Callers, Instant) {
    // Longer than any caller waits: a queue that has not answered by then has stalled.
    let result = tokio::time::timeout(CONFIRM_TIMEOUT + Duration::from_secs(8), confirmation).await;
    (
        way,
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
            telemetry::frame_events().record(callers.entries as f64);
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
    for (caller, _permit) in callers.waiting {
        if let Some(caller) = caller {
            caller.give(answer);
        }
    }
    broken
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter()
        .build()
}

mod standing;
#[cfg(test)]
mod tests;
