//! A way to the broker that is slow: what goes over it arrives a while later, each way. With what a publisher may have on its
//! way at once, that is its capacity.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};

/// What is under way, in pieces of [`PIECE`] bytes at most.
const PIECES: usize = 512;
const PIECE: usize = 64 * 1024;

/// Starts it, and gives where it listens. It has a thread of its own, so that a busy generator makes the way no slower than it
/// is meant to be, and ends with the process.
pub fn start(target: SocketAddr, delay: Duration) -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || runtime.block_on(pass_on(listener, target, delay)));
    Ok(address)
}

async fn pass_on(
    listener: std::net::TcpListener,
    target: SocketAddr,
    delay: Duration,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (from, _) = listener.accept().await?;
        tokio::spawn(async move {
            let Ok(to) = TcpStream::connect(target).await else {
                return;
            };
            let _ = (from.set_nodelay(true), to.set_nodelay(true));
            let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
            tokio::join!(
                later(from_read, to_write, delay),
                later(to_read, from_write, delay)
            );
        });
    }
}

async fn later(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let read = async move {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            match from.read_buf(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if sender.send((Instant::now() + delay, piece)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
