//! A TCP proxy of the test's own, on which the network between two processes fails as the test wants it.
//!
//! What it does can be changed at any time, for the connections that there are as well as for those that come. It counts
//! what it did, so that a test can tell that a fault was one.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// The most bytes carried at once.
const PIECE: usize = 16 * 1024;

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It carries what comes, both ways.
    Open,
    /// Nobody listens; connections that there are end with a FIN.
    Refusing,
    /// Every connection, old and new, ends with a FIN to both sides.
    Cut,
    /// Every connection, old and new, ends with an RST to both sides.
    Reset,
    /// Connections are taken and stay, and nothing is carried: neither side hears of the other.
    Silent,
    /// What clients send is carried, and nothing comes back.
    HalfOpen,
    /// Every piece is late by so long, and by up to so much more.
    Slow {
        /// At least so late.
        delay: Duration,
        /// At most so much later than that.
        jitter: Duration,
    },
    /// One byte at a time comes back, with this pause between two.
    Drip(Duration),
}

impl Link {
    fn ends_connections(self) -> bool {
        matches!(self, Self::Refusing | Self::Cut | Self::Reset)
    }

    /// Whether nothing is carried in this direction.
    fn holds(self, direction: Direction) -> bool {
        self == Self::Silent || (self == Self::HalfOpen && direction == Direction::Back)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    There,
    Back,
}

/// What a proxy has done.
#[derive(Debug, Default)]
struct Counts {
    taken: AtomicU64,
    ended: AtomicU64,
    carried: AtomicU64,
}

/// The proxy. It ends, with all its connections, when dropped.
pub struct Proxy {
    address: SocketAddr,
    link: watch::Sender<Link>,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one on a loopback port, before the server at `target`.
    pub async fn start(target: SocketAddr) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), target).await
    }

    /// Starts one at an address.
    pub async fn start_at(address: SocketAddr, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(address)
            .await
            .unwrap_or_else(|error| panic!("a proxy cannot listen at {address}: {error}"));
        let address = listener.local_addr().expect("a bound listener has an address");
        let (link, links) = watch::channel(Link::Open);
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn(serve(listener, address, target, links, Arc::clone(&counts)));
        Self {
            address,
            link,
            counts,
            task,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how the network is.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// How many connections it has taken.
    pub fn taken(&self) -> u64 {
        self.counts.taken.load(Ordering::Relaxed)
    }

    /// How many connections it has ended, or not let come to anything.
    pub fn ended(&self) -> u64 {
        self.counts.ended.load(Ordering::Relaxed)
    }

    /// How many bytes it has carried, both ways.
    pub fn carried(&self) -> u64 {
        self.counts.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections go with the task's set.
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    target: SocketAddr,
    mut links: watch::Receiver<Link>,
    counts: Arc<Counts>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let link = *links.borrow_and_update();
        if link == Link::Refusing {
            listener = None;
        } else if listener.is_none() {
            // Somebody may have its port for a moment, as that of a connection out.
            match TcpListener::bind(address).await {
                Ok(bound) => listener = Some(bound),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            continue;
        }
        let accepted = tokio::select! {
            accepted = accept(listener.as_ref()) => accepted,
            changed = links.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            Some(_) = connections.join_next() => continue,
        };
        let Ok((client, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        counts.taken.fetch_add(1, Ordering::Relaxed);
        connections.spawn(connection(client, target, links.clone(), Arc::clone(&counts)));
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Carries one connection until either side, or the network, ends it.
async fn connection(
    client: TcpStream,
    target: SocketAddr,
    mut links: watch::Receiver<Link>,
    counts: Arc<Counts>,
) {
    let carried = carry(client, target, &mut links, &counts).await;
    let link = *links.borrow();
    if carried.is_err() && link.ends_connections() {
        counts.ended.fetch_add(1, Ordering::Relaxed);
    }
}

async fn carry(
    mut client: TcpStream,
    target: SocketAddr,
    links: &mut watch::Receiver<Link>,
    counts: &Counts,
) -> io::Result<()> {
    let mut server = None;
    let carried = async {
        let link = links
            .wait_for(|link| *link != Link::Silent)
            .await
            .map_err(io::Error::other)
            .map(|link| *link)?;
        if link.ends_connections() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let server = server.insert(TcpStream::connect(target).await?);
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        tokio::try_join!(
            pump(
                Direction::There,
                &mut from_client,
                &mut to_server,
                links.clone(),
                counts
            ),
            pump(
                Direction::Back,
                &mut from_server,
                &mut to_client,
                links.clone(),
                counts
            ),
        )
        .map(drop)
    }
    .await;
    if carried.is_err() && *links.borrow() == Link::Reset {
        client.set_zero_linger()?;
        if let Some(server) = &server {
            server.set_zero_linger()?;
        }
    }
    carried
}

/// Carries one direction: to its end, which it passes on, or with an error to the end of the connection.
async fn pump(
    direction: Direction,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut links: watch::Receiver<Link>,
    counts: &Counts,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let link = *links.borrow_and_update();
        if link.ends_connections() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if link.holds(direction) {
            links.changed().await.map_err(io::Error::other)?;
            continue;
        }
        let most = match link {
            Link::Drip(_) if direction == Direction::Back => 1,
            _ => PIECE,
        };
        let read = tokio::select! {
            read = from.read(&mut buffer[..most]) => read?,
            changed = links.changed() => {
                changed.map_err(io::Error::other)?;
                continue;
            }
        };
        if read == 0 {
            return to.shutdown().await;
        }
        let late = match link {
            Link::Slow { delay, jitter } => delay + jitter.mul_f64(rand::random()),
            Link::Drip(pause) if direction == Direction::Back => pause,
            _ => Duration::ZERO,
        };
        tokio::time::sleep(late).await;
        // What was read before the network went silent is held as well.
        let link = *links
            .wait_for(|link| !link.holds(direction))
            .await
            .map_err(io::Error::other)?;
        if link.ends_connections() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        to.write_all(&buffer[..read]).await?;
        counts.carried.fetch_add(read as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it is sent, and a proxy before it.
    async fn echo() -> (Proxy, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        (Proxy::start(target).await, server)
    }

    async fn said(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await?;
        Ok(back)
    }

    #[tokio::test]
    async fn it_carries_and_resets() {
        let (proxy, _server) = echo().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(said(&mut stream, b"hello").await.unwrap(), b"hello");
        assert_eq!((proxy.taken(), proxy.carried()), (1, 10));
        proxy.set(Link::Reset);
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(proxy.ended(), 1);
    }

    #[tokio::test]
    async fn it_cuts_and_refuses() {
        let (proxy, _server) = echo().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        said(&mut stream, b"hello").await.unwrap();
        proxy.set(Link::Cut);
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        proxy.set(Link::Refusing);
        crate::eventually(
            "nobody listens",
            Duration::from_secs(5),
            async || match TcpStream::connect(proxy.address()).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                other => Err(format!("{other:?}")),
            },
        )
        .await;
        proxy.set(Link::Open);
        crate::eventually("it carries again", Duration::from_secs(5), async || {
            let stream = TcpStream::connect(proxy.address()).await;
            let mut stream = stream.map_err(|error| error.to_string())?;
            said(&mut stream, b"hello")
                .await
                .map_err(|error| error.to_string())
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_held_arrives_once_it_is_open() {
        for held in [Link::Silent, Link::HalfOpen] {
            let (proxy, _server) = echo().await;
            let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
            said(&mut stream, b"hello").await.unwrap();
            proxy.set(held);
            let nothing = tokio::time::timeout(Duration::from_millis(200), said(&mut stream, b"x"));
            assert!(nothing.await.is_err(), "{held:?}");
            proxy.set(Link::Open);
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
        }
    }

    #[tokio::test]
    async fn it_drips_and_is_late() {
        let (proxy, _server) = echo().await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        for link in [
            Link::Drip(Duration::from_millis(20)),
            Link::Slow {
                delay: Duration::from_millis(40),
                jitter: Duration::from_millis(10),
            },
        ] {
            proxy.set(link);
            let begun = std::time::Instant::now();
            assert_eq!(said(&mut stream, b"hello").await.unwrap(), b"hello");
            assert!(begun.elapsed() >= Duration::from_millis(80), "{link:?}");
        }
    }
}
