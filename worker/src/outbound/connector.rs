//! Connections: to nothing but what the guard has checked.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use shared::{
    FailureKind, OrganizationId, SubscriptionUrl,
    guard::{Blocked, TargetPolicy},
    lookup::{LookupError, Lookups},
};
use tokio::net::TcpStream;
use tower_service::Service;

use super::{
    progress::{Phase, Progress},
    racing::{self, Pace},
};

/// How long a peer may leave what it was sent unacknowledged, or say that it has no room for it: longer than an attempt takes. A
/// connection may outlive its attempt, to say over TLS that it ends.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: std::time::Duration = std::time::Duration::from_mins(1);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host's name does not resolve.
    #[error("{host} does not resolve: {cause}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver said.
        cause: LookupError,
    },
    /// The guard refuses.
    #[error("the URL {0}")]
    Blocked(Blocked),
    /// Nothing answers at the address.
    #[error("no connection: {0}")]
    Connect(io::Error),
}

impl ConnectError {
    /// As attempts record it.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Dns { .. } => FailureKind::Dns,
            Self::Blocked(_) => FailureKind::BlockedAddress,
            Self::Connect(_) => FailureKind::Connect,
        }
    }
}

/// Resolves, checks, connects.
#[derive(Debug, Clone)]
pub struct GuardedConnector {
    /// What may be reached.
    pub(super) policy: Arc<TargetPolicy>,
    /// By what hosts are looked up.
    pub(super) lookups: Lookups,
}

impl Service<Uri> for GuardedConnector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (policy, lookups) = (Arc::clone(&self.policy), self.lookups.clone());
        // The request that a connection is begun for says on whose behalf.
        let whose = Progress::whose();
        Box::pin(async move { connect(&policy, &lookups, whose, &uri).await.map(TokioIo::new) })
    }
}

async fn connect(
    policy: &TargetPolicy,
    lookups: &Lookups,
    whose: Option<OrganizationId>,
    uri: &Uri,
) -> Result<TcpStream, ConnectError> {
    let invalid =
        |why: &str| ConnectError::Connect(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
    let url = SubscriptionUrl::parse(&uri.to_string()).map_err(|error| invalid(error.rule()))?;
    let port = url
        .url()
        .port_or_known_default()
        .ok_or_else(|| invalid("the URL has no port"))?;
    let addresses: Vec<IpAddr> = match url.url().host() {
        Some(url::Host::Ipv4(address)) => vec![address.into()],
        Some(url::Host::Ipv6(address)) => vec![address.into()],
        Some(url::Host::Domain(host)) => {
            Progress::reached(Phase::Resolving);
            let found = lookups.addresses(whose, host).await;
            let found = found.map_err(|cause| ConnectError::Dns {
                host: host.to_owned(),
                cause,
            });
            found?.to_vec()
        }
        None => return Err(invalid("the URL has no host")),
    };
    for address in &addresses {
        policy.check(&url, *address).map_err(ConnectError::Blocked)?;
    }
    Progress::reached(Phase::Connecting);
    let stream = reach(&addresses, port).await.map_err(ConnectError::Connect)?;
    Progress::reached(Phase::Securing);
    Ok(stream)
}

/// Connects to whichever of these addresses answers.
async fn reach(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let connect = |address| TcpStream::connect(SocketAddr::new(address, port));
    let stream = racing::first(addresses, Pace::USUAL, connect).await?;
    prepare(&stream)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // A webhook is one write: it must not wait for the acknowledgement of an earlier one.
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use tokio::{
        net::{TcpListener, TcpSocket},
        time::timeout,
    };

    use super::*;

    /// One whose queue of connections is full: what comes beyond that is not answered.
    #[tokio::test]
    async fn an_address_that_does_not_answer_does_not_keep_another_from_being_reached() {
        let (silent, other) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2));
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((silent, 0).into()).unwrap();
        let full = socket.listen(0).unwrap();
        let at = full.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(at)).await {
            queue.push(connected.unwrap());
            assert!(queue.len() < 100, "it answers without end");
        }
        let listener = TcpListener::bind((other, at.port())).await.unwrap();
        let addresses = [silent.into(), other.into()];
        let reached = timeout(Duration::from_secs(5), reach(&addresses, at.port())).await;
        let reached = reached.expect("one of them answers").unwrap();
        assert_eq!(reached.peer_addr().unwrap(), listener.local_addr().unwrap());
    }
}
