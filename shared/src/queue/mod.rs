//! The queue between the fronts and intake: frames of accepted events, confirmed whole once they are on disk.
//!
//! Two engines: RabbitMQ quorum queues in production ([`rabbit`]), SQLite embedded ([`embedded`]). An engine is a
//! [`FrameSink`] on the fronts' side, behind the one [`Publisher`] that gathers events into frames, and a
//! [`FrameSource`] on the workers'.
//!
//! A deployment may have several queues, each of which is one way that frames go: what an organization posts goes by
//! one of them ([`way_of`]). Where this module says queue, it means all of them together, unless it says which.

pub mod embedded;
pub mod frame;
mod notice;
pub mod publisher;
pub mod rabbit;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{OrganizationId, event::MAX_PAYLOAD_BYTES};

pub use notice::{NoticeSink, NoticeSource};
pub use publisher::{PublishError, Publisher, Stake};

/// The most bytes of a frame, unless a single event is larger. Room for hundreds of small events, and no more than one of
/// the largest payload: AMQP lets a consumer bound what it is sent by frames alone, so that the size of a frame bounds
/// what a worker holds unacknowledged.
pub const MAX_FRAME_BYTES: usize = MAX_PAYLOAD_BYTES;

/// The most queues that frames are spread over.
pub const MAX_QUEUES: u8 = 64;

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

/// By which of `ways` an organization's events go: the same one on every node that has as many, so that they keep their
/// order. Other versions must give the same answer.
pub fn way_of(organization: OrganizationId, ways: usize) -> usize {
    if ways <= 1 {
        return 0;
    }
    let (high, low) = organization.uuid().as_u64_pair();
    // SplitMix64's finalizer: every bit of the id tells, whoever chose it.
    let mut mixed = high ^ low;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the remainder is less than a usize"
    )]
    let way = (mixed % ways as u64) as usize;
    way
}

/// A queue: where frames go in and where they come out.
#[async_trait]
pub trait Queue: Send + Sync {
    /// How many ways in it has: at least one.
    fn ways(&self) -> usize {
        1
    }
    /// A new way in, for one publishing task.
    async fn sink(&self) -> Result<Box<dyn FrameSink>>;
    /// A new way out.
    async fn source(&self, lane: SourceLane) -> Result<Box<dyn FrameSource>>;
    /// How full it is, at this moment.
    async fn depth(&self) -> Result<Depth>;
    /// The way to tell every process of the deployment; `None` if there is no other.
    async fn notice_sink(&self) -> Result<Option<Box<dyn NoticeSink>>> {
        Ok(None)
    }
    /// The way to hear what is told; `None` if there is no other process.
    async fn notice_source(&self) -> Result<Option<Box<dyn NoticeSource>>> {
        Ok(None)
    }
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
    /// Writes a frame, to go by this way (one of [`Queue::ways`]). The confirmation comes later, so that more can be written
    /// meanwhile; a sink keeps the order of each way. An error here breaks the sink: make a new one.
    async fn write(&mut self, way: usize, frame: Bytes) -> Result<Confirmation>;
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_way_of_an_organization_is_the_same_in_every_version() {
        let ways = |id: u128| {
            let organization = OrganizationId::from_uuid(Uuid::from_u128(id));
            [1, 2, 3, 4, 64].map(|ways| way_of(organization, ways))
        };
        insta::assert_debug_snapshot!([
            ways(0),
            ways(1),
            ways(u128::MAX),
            ways(0x0190_163d_8694_739b_aea5_966c_26f8_ad91),
        ]);
    }

    #[test]
    fn organizations_spread_over_all_ways() {
        for ways in [2, 3, 7, 64] {
            let mut counts = vec![0_usize; ways];
            for _ in 0..ways * 1_000 {
                counts[way_of(OrganizationId::new(), ways)] += 1;
            }
            // 1,000 each, give or take six standard deviations.
            assert!(
                counts.iter().all(|count| (800..1_200).contains(count)),
                "{counts:?}"
            );
        }
    }
}
