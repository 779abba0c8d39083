//! The way out: an HTTP client that connects to nothing but what the guard has checked.
//!
//! A name is resolved once, inside the attempt's deadline; every address is checked, and the connection is made to the
//! very addresses that were checked. IP literals are checked too. TLS is always verified; there are no proxies from the
//! environment and no redirects. Connections are kept for a few seconds and used again.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use shared::{
    FailureKind, SubscriptionUrl,
    guard::{Blocked, TargetPolicy},
};
use tokio::net::TcpStream;
use tower_service::Service;

/// How long a connection is kept for the next request: less than the 5 seconds after which many servers close theirs,
/// so that a request seldom meets a connection that is being closed.
const IDLE: Duration = Duration::from_secs(4);
/// Connections kept to one host.
const IDLE_PER_HOST: usize = 64;

/// The most bytes of an answer that are read ahead, and of an answer's head: there are hundreds of connections.
const READ_AHEAD: usize = 32 * 1024;

/// The client of every attempt. Cheap to clone.
pub type Outbound = Client<HttpsConnector<GuardedConnector>, Full<Bytes>>;

/// Makes the client.
pub fn client(policy: Arc<TargetPolicy>) -> Result<Outbound, rustls::Error> {
    let roots = webpki_roots::TLS_SERVER_ROOTS
        .iter()
        .cloned()
        .collect::<rustls::RootCertStore>();
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(GuardedConnector { policy });
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .http1_max_buf_size(READ_AHEAD)
        .build(connector))
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host's name does not resolve.
    #[error("{host} does not resolve: {cause}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver said.
        cause: io::Error,
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
    policy: Arc<TargetPolicy>,
}

impl Service<Uri> for GuardedConnector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let policy = Arc::clone(&self.policy);
        Box::pin(async move { connect(&policy, &uri).await.map(TokioIo::new) })
    }
}

async fn connect(policy: &TargetPolicy, uri: &Uri) -> Result<TcpStream, ConnectError> {
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
            let found = tokio::net::lookup_host((host, port)).await;
            found
                .map_err(|cause| ConnectError::Dns {
                    host: host.to_owned(),
                    cause,
                })?
                .map(|found| found.ip())
                .collect()
        }
        None => return Err(invalid("the URL has no host")),
    };
    for address in &addresses {
        policy.check(&url, *address).map_err(ConnectError::Blocked)?;
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => {
                // A webhook is one write: it must not wait for the acknowledgement of an earlier one.
                stream.set_nodelay(true).map_err(ConnectError::Connect)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Connect(last))
}

/// What went wrong in a request, and a sentence about it.
pub fn failure(error: &hyper_util::client::legacy::Error) -> (FailureKind, String) {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut innermost = error.to_string();
    while let Some(error) = cause {
        if let Some(connect) = error.downcast_ref::<ConnectError>() {
            return (connect.kind(), connect.to_string());
        }
        if let Some(tls) = tls(error) {
            return (FailureKind::Tls, tls.to_string());
        }
        innermost = error.to_string();
        cause = error.source();
    }
    (FailureKind::Connect, innermost)
}

/// Whether a request failed for want of something of this process (file descriptors), which says nothing of the subscriber.
pub fn is_ours(error: &hyper_util::client::legacy::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(ConnectError::Connect(io) | ConnectError::Dns { cause: io, .. }) = error.downcast_ref() {
            return io
                .raw_os_error()
                .is_some_and(|code| TOO_MANY_OPEN_FILES.contains(&code));
        }
        cause = error.source();
    }
    false
}

/// `ENFILE` and `EMFILE`, which are these numbers on every Unix.
const TOO_MANY_OPEN_FILES: [i32; 2] = [23, 24];

/// The failure of TLS that an error is. The connector wraps it in an `io::Error`, and that in another, whose sources do
/// not show it.
fn tls<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    loop {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        error = error.downcast_ref::<io::Error>()?.get_ref()?;
    }
}
