//! The embedded queue: a SQLite file in which a row is a frame, and a commit is a confirm.
//!
//! One task owns the one connection that writes. A lone frame is one `INSERT` in autocommit: one trip to SQLite's
//! thread, one sync of the disk. Frames that arrive while it commits go together in the next statement. What was
//! acknowledged is deleted lazily, with a later frame or once nothing else is to do: a delete that is lost means that
//! frames come out again, which intake takes as it takes every repeat. A source that keeps up gets frames from memory,
//! one that lags reads them back.
//!
//! On a full or failing disk a frame is refused, never confirmed, and the connection is opened anew for the next one.
//! It works in one process only; the data directory's lock sees to that.

mod source;
mod writer;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row as _, SqlitePool};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::{
    source::{NoSource, Source, Tail},
    writer::{Insert, Writer},
};
use super::{Confirmation, Depth, FrameSink, FrameSource, Queue, QueueError, Result, SourceLane};
use crate::sqlite::{Database, Migrations};

/// The most bytes of frames that wait in the queue; beyond, frames are refused.
pub const MAX_QUEUE_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// The most frames that wait for the writer; beyond, whoever writes waits.
const MAX_WAITING: usize = 32;
const MIGRATIONS: Migrations = &[(
    1,
    "frames",
    include_str!("../../../../migrations/sqlite/queue/0001_frames.sql"),
)];

/// The embedded queue.
pub struct EmbeddedQueue {
    state: Arc<State>,
    inserts: mpsc::Sender<Insert>,
    committed: watch::Receiver<u64>,
    readers: SqlitePool,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
}

/// What the queue's parts know together.
struct State {
    max_bytes: u64,
    /// Frames not acknowledged.
    frames: AtomicU64,
    /// Their bytes, and those of frames about to be written.
    bytes: AtomicU64,
    /// Every frame up to this id is stored.
    acknowledged: AtomicU64,
    /// Says that `acknowledged` has grown.
    acknowledgement: Notify,
    /// The highest id that came out of the queue.
    out: AtomicU64,
    tail: Tail,
}

/// Opens the queue in `queue.db` of the directory, which must exist.
pub async fn open(dir: &Path) -> Result<EmbeddedQueue> {
    open_bounded(dir, MAX_QUEUE_BYTES).await
}

/// As [`open`], with another bound than [`MAX_QUEUE_BYTES`].
pub async fn open_bounded(dir: &Path, max_bytes: u64) -> Result<EmbeddedQueue> {
    let database = Database::new(dir.join("queue.db"), 2048);
    database
        .migrate(MIGRATIONS)
        .await
        .map_err(|error| QueueError::Misconfigured(format!("{}: {error}", database.path().display())))?;
    let mut connection = database.writer().await.map_err(|error| unavailable(&error))?;
    let row = sqlx::query(
        "SELECT count(*), coalesce(sum(length(body)), 0), coalesce(min(id), 1), coalesce(max(id), 0) FROM frames",
    )
    .fetch_one(&mut connection)
    .await
    .map_err(|error| unavailable(&error))?;
    let number = |column: usize| {
        row.try_get::<i64, _>(column)
            .map_err(|error| unavailable(&error))
            .map(i64::cast_unsigned)
    };
    let last = number(3)?;
    let state = Arc::new(State {
        max_bytes,
        frames: AtomicU64::new(number(0)?),
        bytes: AtomicU64::new(number(1)?),
        acknowledged: AtomicU64::new(number(2)?.saturating_sub(1)),
        acknowledgement: Notify::new(),
        // What the file holds may have come out before.
        out: AtomicU64::new(last),
        tail: Tail::after(last),
    });

    let (inserts, requests) = mpsc::channel(MAX_WAITING);
    let (commits, committed) = watch::channel(last);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let checkpoints_stop = CancellationToken::new();
    tasks.spawn(database.clone().keep_checkpointing(checkpoints_stop.clone()));
    let readers = database.readers(2);
    let writer = Writer {
        database,
        connection: Some(connection),
        state: Arc::clone(&state),
        commits,
        last,
        sweep_at: None,
        swept: 0,
        readers: readers.clone(),
        checkpoints: checkpoints_stop.drop_guard(),
    };
    tasks.spawn(writer.run(requests, stop.clone()));
    Ok(EmbeddedQueue {
        state,
        inserts,
        committed,
        readers,
        tasks,
        _stop_when_dropped: stop.clone().drop_guard(),
        stop,
    })
}

#[async_trait]
impl Queue for EmbeddedQueue {
    async fn sink(&self) -> Result<Box<dyn FrameSink>> {
        Ok(Box::new(Sink {
            state: Arc::clone(&self.state),
            inserts: self.inserts.clone(),
        }))
    }

    async fn source(&self, lane: SourceLane) -> Result<Box<dyn FrameSource>> {
        let committed = self.committed.clone();
        Ok(match lane {
            SourceLane::Main => Box::new(Source::new(
                Arc::clone(&self.state),
                self.readers.clone(),
                committed,
            )),
            SourceLane::Dead => Box::new(NoSource { committed }),
        })
    }

    async fn depth(&self) -> Result<Depth> {
        Ok(Depth {
            frames: self.state.frames.load(Ordering::Relaxed),
            dead: 0,
        })
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

struct Sink {
    state: Arc<State>,
    inserts: mpsc::Sender<Insert>,
}

#[async_trait]
impl FrameSink for Sink {
    async fn write(&mut self, _way: usize, frame: Bytes) -> Result<Confirmation> {
        let reserved = self.state.reserve(frame)?;
        let (answer, answered) = oneshot::channel();
        self.inserts
            .send(Insert { reserved, answer })
            .await
            .map_err(|_| closed())?;
        Ok(Box::pin(async {
            answered.await.unwrap_or_else(|_| Err(closed()))
        }))
    }

    fn healthy(&self) -> bool {
        !self.inserts.is_closed()
    }
}

impl State {
    /// Makes room for a frame, or refuses it.
    fn reserve(self: &Arc<Self>, frame: Bytes) -> Result<Reserved> {
        let size = frame.len() as u64;
        self.bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| {
                bytes.checked_add(size).filter(|bytes| *bytes <= self.max_bytes)
            })
            .map_err(|_| QueueError::Refused(format!("it is full ({} bytes)", self.max_bytes)))?;
        Ok(Reserved {
            frame,
            state: Some(Arc::clone(self)),
        })
    }
}

/// A frame with its room in the queue, which is given back unless the frame is [kept](Reserved::keep).
struct Reserved {
    frame: Bytes,
    state: Option<Arc<State>>,
}

impl Reserved {
    /// The frame is on disk.
    fn keep(mut self) -> Bytes {
        if let Some(state) = self.state.take() {
            state.frames.fetch_add(1, Ordering::Relaxed);
        }
        std::mem::take(&mut self.frame)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(state) = &self.state {
            state.bytes.fetch_sub(self.frame.len() as u64, Ordering::Relaxed);
        }
    }
}

fn unavailable(error: &sqlx::Error) -> QueueError {
    QueueError::Unavailable(error.to_string())
}

fn closed() -> QueueError {
    QueueError::Unavailable("it is closed".to_owned())
}
