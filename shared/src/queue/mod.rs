//! The queue between the fronts and intake: frames of accepted events, confirmed whole once they are on disk.
//!
//! Two engines: RabbitMQ quorum queues in production ([`rabbit`]), SQLite embedded ([`embedded`]). An engine is a
//! [`FrameSink`] on the fronts' side, behind the one [`Publisher`] that gathers events into frames, and a
//! [`FrameSource`] on the workers'.

pub mod embedded;
pub mod frame;
pub mod publisher;
pub mod rabbit;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::event::MAX_PAYLOAD_BYTES;

pub use publisher::{PublishError, Publisher};

/// The most bytes of a frame, unless a single event is larger. Room for hundreds of small events, and no more than one of
/// the largest payload: AMQP lets a consumer bound what it is sent by frames alone, so that the size of a frame bounds
/// what a worker holds unacknowledged.
pub const MAX_FRAME_BYTES: usize = MAX_PAYLOAD_BYTES;

/// Why a frame was not confirmed. Whether it is in the queue all the same is unknown, unless the error says so.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The queue cannot be reached.
    #[error("the queue is unavailable: {0}")]
    Unavailable(String),
    /// The queue took the frame and gave it back: it is full, or it is gone.
    #[error("the queue refuses the frame: {0}")]
    Refused(String),
    /// It exists, but not as it should.
    #[error("{0}")]
    Misconfigured(String),
}

/// What a queue call answers.
pub type Result<T, E = QueueError> = std::result::Result<T, E>;

/// How full the queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Frames that wait or are being taken in.
    pub frames: u64,
    /// Frames that were returned too often and wait to be taken in one at a time.
    pub dead: u64,
}

/// A queue: where frames go in and where they come out.
#[async_trait]
pub trait Queue: Send + Sync {
    /// A new way in, for one publishing task.
    async fn sink(&self) -> Result<Box<dyn FrameSink>>;
    /// A new way out.
    async fn source(&self, lane: SourceLane) -> Result<Box<dyn FrameSource>>;
    /// How full it is, at this moment.
    async fn depth(&self) -> Result<Depth>;
    /// Ends connections after what is under way.
    async fn close(&self);
}

/// A queue behind which an engine is.
pub type DynQueue = Arc<dyn Queue>;

/// Which frames a source gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceLane {
    /// Those that were posted.
    Main,
    /// Those that were returned too often: one at a time.
    Dead,
}

/// The way in of one publishing task.
#[async_trait]
pub trait FrameSink: Send {
    /// Writes a frame. The confirmation comes later, so that more can be written meanwhile; a sink keeps the order. An
    /// error here breaks the sink: make a new one.
    async fn write(&mut self, frame: Bytes) -> Result<Confirmation>;
    /// Whether the other side has asked to write no more for now, or is gone.
    fn healthy(&self) -> bool;
}

/// Resolves when a frame is on disk (`Ok`), or is known not to be, or nothing can be known any more.
pub type Confirmation = futures_util::future::BoxFuture<'static, Result<()>>;

/// A frame as it comes out of the queue.
#[derive(Debug, Clone)]
pub struct Received {
    /// The frame.
    pub body: Bytes,
    /// To acknowledge it by.
    pub tag: u64,
    /// Whether it came out before and went back.
    pub redelivered: bool,
}

/// The way out. Frames not acknowledged when a source is dropped come out again, of this or another source.
#[async_trait]
pub trait FrameSource: Send {
    /// Waits for frames, then takes those that are already here as well, until they add up to `max_bytes` or more. An
    /// error (the end of the stream is one) breaks the source: make a new one. Cancel-safe.
    async fn receive(&mut self, max_bytes: usize) -> Result<Vec<Received>>;
    /// Acknowledges every frame of this source up to and with `tag`: they are stored.
    async fn acknowledge_up_to(&mut self, tag: u64) -> Result<()>;
}
