//! To come.
use super::*;
/// To come.
pub struct EmbeddedQueue;
/// To come.
#[allow(clippy::unused_async)]
pub async fn open(_: &std::path::Path) -> Result<EmbeddedQueue> {
    Err(QueueError::Misconfigured("to come".into()))
}
#[async_trait]
impl Queue for EmbeddedQueue {
    async fn sink(&self) -> Result<Box<dyn FrameSink>> {
        Err(QueueError::Misconfigured("to come".into()))
    }
    async fn source(&self, _: SourceLane) -> Result<Box<dyn FrameSource>> {
        Err(QueueError::Misconfigured("to come".into()))
    }
    async fn depth(&self) -> Result<Depth> {
        Ok(Depth::default())
    }
    async fn close(&self) {}
}
