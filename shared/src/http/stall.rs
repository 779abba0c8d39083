//! Writing to clients that do not read.
//!
//! An answer waits in memory for as long as its client does not take it, and its connection with it. A write that takes
//! nothing, or next to nothing, for a while fails, and so ends the connection; the while begins anew once enough was taken, or all
//! that there was. So what waits is gone at last, and nobody holds it by taking a byte now and then.

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

/// The least that is to be taken in a while, of more.
pub(super) const LEAST: usize = 16 * 1024;

/// A stream whose writes fail with [`io::ErrorKind::TimedOut`] once they make too little progress in a while.
pub(super) struct Stalling<S> {
    stream: S,
    /// How long that is.
    limit: Duration,
    /// How much that is.
    least: usize,
    /// There is one from when a write has to wait.
    waiting: Option<Waiting>,
}

struct Waiting {
    until: Pin<Box<Sleep>>,
    /// What was taken meanwhile.
    taken: usize,
}

impl<S: Unpin> Stalling<S> {
    pub(super) const fn new(stream: S, limit: Duration, least: usize) -> Self {
        Self {
            stream,
            limit,
            least,
            waiting: None,
        }
    }

    /// What a write of something comes to.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let written = write(Pin::new(&mut self.stream), context);
        if let (Poll::Ready(Ok(bytes)), Some(waiting)) = (&written, &mut self.waiting) {
            waiting.taken += bytes;
            if waiting.taken >= self.least {
                self.waiting = None;
            }
        }
        self.bound(context, written)
    }

    /// What a flush comes to, or the end: once it is done, nothing waits.
    fn done(
        &mut self,
        context: &mut Context<'_>,
        finish: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        let done = finish(Pin::new(&mut self.stream), context);
        if done.is_ready() {
            self.waiting = None;
        }
        self.bound(context, done)
    }

    fn bound<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            return result;
        }
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            until: Box::pin(sleep(self.limit)),
            taken: 0,
        });
        ready!(waiting.until.as_mut().poll(context));
        let why = "the client did not read its answer";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.written(context, |stream, context| {
            stream.poll_write_vectored(context, bytes)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.done(context, S::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.done(context, S::poll_shutdown)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(400);

    #[tokio::test]
    async fn a_write_that_nobody_takes_fails() {
        let (stream, _client) = duplex(8);
        let mut stream = Stalling::new(stream, SHORT, 1);
        stream.write_all(b"it fits").await.unwrap();
        let error = stream.write_all(b" no more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// Takes a byte four times in each while.
    async fn take_slowly(mut client: DuplexStream, bytes: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < bytes {
            tokio::time::sleep(SHORT / 4).await;
            match client.read_u8().await {
                Ok(byte) => read.push(byte),
                Err(_) => break,
            }
        }
        read
    }

    #[tokio::test]
    async fn a_slow_reader_is_waited_for() {
        let (stream, client) = duplex(1);
        let mut stream = Stalling::new(stream, SHORT, 1);
        // Longer in all than the limit, but never stalled for that long.
        let reading = tokio::spawn(take_slowly(client, 10));
        stream.write_all(b"0123456789").await.unwrap();
        assert_eq!(reading.await.unwrap(), b"0123456789");
    }

    #[tokio::test]
    async fn who_takes_next_to_nothing_is_not() {
        let (stream, client) = duplex(1);
        let mut stream = Stalling::new(stream, SHORT, 8);
        let reading = tokio::spawn(take_slowly(client, 100));
        let error = stream.write_all(&[b'.'; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(stream);
        assert!(reading.await.unwrap().len() < 8);
    }

    #[tokio::test]
    async fn what_was_taken_whole_is_no_stall() {
        let (stream, mut client) = duplex(1);
        let mut stream = Stalling::new(stream, SHORT, 8);
        for _ in 0..5 {
            let reading = async {
                tokio::time::sleep(SHORT / 2).await;
                client.read_exact(&mut [0; 2]).await.unwrap();
            };
            let writing = async {
                stream.write_all(b"ab").await.unwrap();
                stream.flush().await.unwrap();
            };
            tokio::join!(reading, writing);
        }
    }
}
