//! Notices: what one process tells all others of its deployment at once, beside the frames.
//!
//! A notice reaches whoever listens at that moment, and is kept nowhere. So it only ever makes quicker what the store tells
//! all the same, and nobody waits for one. An engine that lives in one process has nobody to tell.

use async_trait::async_trait;
use bytes::Bytes;

use super::Result;

/// The way to tell. One task owns it; an error breaks it: make a new one.
#[async_trait]
pub trait NoticeSink: Send {
    /// Tells everybody who listens now. Within seconds it is done, or it is an error.
    async fn send(&mut self, notice: Bytes) -> Result<()>;
}

/// The way to hear.
#[async_trait]
pub trait NoticeSource: Send {
    /// Waits for the next notice. An error (the end of the stream is one) breaks the source: make a new one. Cancel-safe.
    async fn receive(&mut self) -> Result<Bytes>;
}
