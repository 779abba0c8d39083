//! Being heard when a head is refused.
//!
//! A head past the bounds of heads is answered by hyper itself, with 431, and the connection is closed while its client may
//! still be sending. Closing then resets it, and the client may never see the answer. So what comes behind such an answer is
//! read and dropped, up to a size and for a while.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How the answer begins. No route answers with it.
const REFUSED: &[u8] = b"HTTP/1.1 431 ";
/// The most bytes that are read and dropped.
const MAX_BYTES: usize = 1024 * 1024;
/// How long they may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A stream that, once it is shut down behind such an answer, reads what is left.
pub(super) struct Heard<S> {
    stream: S,
    /// Whether the last answer was one.
    refused: bool,
    rest: Option<Rest>,
}

/// What may still be read.
struct Rest {
    bytes: usize,
    over: Pin<Box<Sleep>>,
}

impl<S> Heard<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self {
            stream,
            refused: false,
            rest: None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.refused |= bytes.starts_with(REFUSED);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.refused |= bytes.first().is_some_and(|first| first.starts_with(REFUSED));
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            stream,
            refused,
            rest,
        } = &mut *self;
        if rest.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
        }
        if !*refused {
            return Poll::Ready(Ok(()));
        }
        let rest = rest.get_or_insert_with(|| Rest {
            bytes: MAX_BYTES,
            over: Box::pin(sleep(TIMEOUT)),
        });
        let mut scratch = [0; 4 * 1024];
        while rest.bytes > 0 && rest.over.as_mut().poll(context).is_pending() {
            let mut into = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut *stream).poll_read(context, &mut into));
            match into.filled().len() {
                bytes if read.is_ok() && bytes > 0 => rest.bytes = rest.bytes.saturating_sub(bytes),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// How much of what a client sends behind an answer the other side takes.
    async fn taken_behind(answer: &[u8]) -> usize {
        const SENT: usize = 100_000;
        let (stream, mut client) = duplex(1_000);
        let mut stream = Heard::new(stream);
        stream.write_all(answer).await.unwrap();
        let sending = async {
            let mut sent = 0;
            while sent < SENT {
                match client.write(&[b'x'; 1_000]).await {
                    Ok(bytes) if bytes > 0 => sent += bytes,
                    _ => break,
                }
            }
            let mut got = Vec::new();
            client.shutdown().await.ok();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, answer);
            sent
        };
        let closing = async {
            stream.shutdown().await.unwrap();
            drop(stream);
        };
        tokio::join!(sending, closing).0
    }

    #[tokio::test]
    async fn what_comes_behind_a_refused_head_is_read() {
        let refused = b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n";
        assert_eq!(taken_behind(refused).await, 100_000);
        assert!(taken_behind(b"HTTP/1.1 200 OK\r\n\r\n").await < 10_000);
    }
}
