//! The least of HTTP/1.1 that a generator and a receiver need: whole messages with a `content-length`, kept alive.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// One side of a connection.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// How much of the buffer belongs to the message before.
    used: usize,
}

/// A message as it came.
pub struct Message<'a> {
    /// Request or status line.
    pub first_line: &'a str,
    /// The body.
    pub body: &'a [u8],
}

impl Wire {
    /// Over a connection.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(16 * 1024),
            used: 0,
        })
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Whether the other side has not closed it.
    pub fn is_open(&self) -> bool {
        let closed = matches!(self.stream.try_read(&mut [0]), Ok(0));
        !closed
    }

    /// The next message; `None` at the end of the connection.
    pub async fn receive(&mut self) -> io::Result<Option<Message<'_>>> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let mut head = None;
        loop {
            if head.is_none() {
                head = find(&self.buffer, b"\r\n\r\n").map(|end| (end, content_length(&self.buffer[..end])));
            }
            if let Some((end, length)) = head
                && self.buffer.len() >= end + 4 + length
            {
                self.used = end + 4 + length;
                let line = find(&self.buffer, b"\r\n").unwrap_or(end);
                let first_line = std::str::from_utf8(&self.buffer[..line]).unwrap_or_default();
                return Ok(Some(Message {
                    first_line,
                    body: &self.buffer[end + 4..self.used],
                }));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Where `needle` begins in `hay`.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

fn content_length(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).unwrap_or_default();
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}
