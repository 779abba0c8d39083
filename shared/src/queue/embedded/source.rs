//! The way out: from memory for a source that keeps up, from the file for one that lags.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row as _, SqlitePool};
use tokio::sync::watch;

use super::{State, closed, unavailable};
use crate::queue::{FrameSource, Received, Result};

/// The most bytes of frames that are kept in memory for a source.
const MAX_TAIL_BYTES: usize = 4 * 1024 * 1024;
/// The most frames that are looked at in the file at once.
const MAX_READ: i64 = 256;

/// The newest frames on disk, kept in memory until a source takes them.
pub(super) struct Tail(Mutex<Frames>);

struct Frames {
    /// Every frame on disk with a greater id is in `newest`.
    after: u64,
    newest: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Tail {
    /// Nothing yet, while `last` is the highest id on disk.
    pub(super) fn after(last: u64) -> Self {
        Self(Mutex::new(Frames {
            after: last,
            newest: VecDeque::new(),
            bytes: 0,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what was just committed; the oldest make room.
    pub(super) fn push(&self, first_id: u64, frames: Vec<Bytes>) {
        let mut tail = self.lock();
        for (id, frame) in (first_id..).zip(frames) {
            tail.bytes += frame.len();
            tail.newest.push_back((id, frame));
        }
        while tail.bytes > MAX_TAIL_BYTES {
            tail.pop();
        }
    }

    /// What comes after `last`, or `None` if it has to be read from the file.
    fn take(&self, last: u64, max_bytes: usize) -> Option<Vec<(u64, Bytes)>> {
        let mut tail = self.lock();
        if last < tail.after {
            return None;
        }
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < max_bytes {
            let Some((id, frame)) = tail.pop() else { break };
            if id > last {
                bytes += frame.len();
                taken.push((id, frame));
            }
        }
        Some(taken)
    }
}

impl Frames {
    fn pop(&mut self) -> Option<(u64, Bytes)> {
        let (id, frame) = self.newest.pop_front()?;
        self.after = id;
        self.bytes -= frame.len();
        Some((id, frame))
    }
}

/// The main way out. It begins with the first frame not acknowledged.
pub(super) struct Source {
    state: Arc<State>,
    readers: SqlitePool,
    committed: watch::Receiver<u64>,
    /// The last id that it gave.
    last: u64,
    /// Ids and sizes of what it gave and is not acknowledged.
    out: VecDeque<(u64, usize)>,
}

impl Source {
    pub(super) fn new(state: Arc<State>, readers: SqlitePool, committed: watch::Receiver<u64>) -> Self {
        Self {
            last: state.acknowledged.load(Ordering::Relaxed),
            state,
            readers,
            committed,
            out: VecDeque::new(),
        }
    }

    /// Reads what comes after `last` from the file. Sizes first: only what is asked for comes into memory.
    async fn read(&self, max_bytes: usize) -> sqlx::Result<Vec<(u64, Bytes)>> {
        let mut connection = self.readers.acquire().await?;
        let last = self.last.cast_signed();
        let sizes = sqlx::query("SELECT id, length(body) FROM frames WHERE id > ? ORDER BY id LIMIT ?")
            .bind(last)
            .bind(MAX_READ)
            .fetch_all(&mut *connection)
            .await?;
        let (mut up_to, mut bytes) = (last, 0);
        for row in &sizes {
            up_to = row.try_get(0)?;
            bytes += usize::try_from(row.try_get::<i64, _>(1)?).unwrap_or(usize::MAX);
            if bytes >= max_bytes {
                break;
            }
        }
        sqlx::query("SELECT id, body FROM frames WHERE id > ? AND id <= ? ORDER BY id")
            .bind(last)
            .bind(up_to)
            .fetch_all(&mut *connection)
            .await?
            .iter()
            .map(|row| {
                let id = row.try_get::<i64, _>(0)?.cast_unsigned();
                Ok((id, row.try_get::<Vec<u8>, _>(1)?.into()))
            })
            .collect()
    }
}

#[async_trait]
impl FrameSource for Source {
    async fn receive(&mut self, max_bytes: usize) -> Result<Vec<Received>> {
        let max_bytes = max_bytes.max(1);
        loop {
            if *self.committed.borrow_and_update() > self.last {
                let frames = match self.state.tail.take(self.last, max_bytes) {
                    Some(frames) => frames,
                    None => self.read(max_bytes).await.map_err(|error| unavailable(&error))?,
                };
                if let Some((last, _)) = frames.last() {
                    self.last = *last;
                    let before = self.state.out.fetch_max(*last, Ordering::Relaxed);
                    let out = frames.iter().map(|(id, body)| (*id, body.len()));
                    self.out.extend(out);
                    let received = frames.into_iter().map(|(tag, body)| Received {
                        body,
                        tag,
                        redelivered: tag <= before,
                    });
                    return Ok(received.collect());
                }
            }
            self.committed.changed().await.map_err(|_| closed())?;
        }
    }

    async fn acknowledge_up_to(&mut self, tag: u64) -> Result<()> {
        // What this source did not give it cannot acknowledge.
        let tag = tag.min(self.last);
        let before = self.state.acknowledged.fetch_max(tag, Ordering::Relaxed);
        let (mut frames, mut bytes) = (0, 0);
        while let Some((id, size)) = self.out.pop_front_if(|(id, _)| *id <= tag) {
            if id > before {
                frames += 1;
                bytes += size as u64;
            }
        }
        self.state.frames.fetch_sub(frames, Ordering::Relaxed);
        self.state.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.state.acknowledgement.notify_one();
        Ok(())
    }
}

/// The way out of the dead lane. Nothing returns frames to an embedded queue, so none ever comes.
pub(super) struct NoSource {
    pub(super) committed: watch::Receiver<u64>,
}

#[async_trait]
impl FrameSource for NoSource {
    async fn receive(&mut self, _max_bytes: usize) -> Result<Vec<Received>> {
        while self.committed.changed().await.is_ok() {}
        Err(closed())
    }

    async fn acknowledge_up_to(&mut self, _tag: u64) -> Result<()> {
        Ok(())
    }
}
