//! The way out: an HTTP client that connects to nothing but what the guard has checked.
//!
//! A name is resolved once, inside the attempt's deadline and [within bounds](shared::lookup); every address is checked, and the connection is made to the
//! very addresses that were checked, [whichever answers](racing). IP literals are checked too. TLS is always verified; there are no proxies from the
//! environment and no redirects. Connections are kept for a few seconds and used again. Over TLS a host that offers HTTP/2
//! gets it: one connection for all that goes there at once. What takes long, or fails, goes [over connections of its
//! own](Way), so that it takes no stream from what is answered quickly.

mod connector;
mod failure;
mod progress;
mod racing;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{self, Client},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use shared::{
    guard::TargetPolicy,
    lookup::{Bounds, Lookups},
    tls,
};
use tokio::net::TcpStream;
use tower::{BoxError, timeout::Timeout, util::BoxCloneSyncService};

use self::connector::GuardedConnector;
pub use self::{
    failure::{failure, is_ours},
    progress::Progress,
};

/// How long a connection is kept for the next request: less than the 5 seconds after which many servers close theirs,
/// so that a request seldom meets a connection that is being closed.
const IDLE: Duration = Duration::from_secs(4);
/// How long it may take to resolve, connect and secure, a second longer than an attempt: a connection that another was quicker than
/// is made to its end by nobody's deadline.
const CONNECTED_WITHIN: Duration = Duration::from_secs(31);
/// Connections kept to one host.
const IDLE_PER_HOST: usize = 64;

/// The most bytes of an answer that are read ahead, and of an answer's head: there are hundreds of connections.
const READ_AHEAD: u32 = 32 * 1024;
/// As much may be under way on a connection of HTTP/2, over all its streams: the least that the protocol knows.
const CONNECTION_WINDOW: u32 = 65_535;
/// A connection of HTTP/2 with requests under way is asked so often whether it lives, and has as long to answer.
const PING: Duration = Duration::from_secs(5);
/// Streams that were reset and may still get frames of what was on its way.
const RESET_STREAMS: usize = 64;
/// How often a request is sent again that the subscriber says it has not looked at.
const MAX_REFUSED: usize = 2;

type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;
type HttpClient = Client<Connector, Full<Bytes>>;

/// Over which connections a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Those of subscribers that answer quickly.
    Quick,
    /// Those of all others. A peer has a limit of streams on a connection of HTTP/2: whoever hangs would fill it.
    Apart,
}

/// The client of every attempt. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbound {
    quick: HttpClient,
    apart: HttpClient,
}

impl Outbound {
    /// Makes the client, which trusts the authorities of a PEM file, too; a wrong file is named.
    pub fn new(policy: TargetPolicy, extra_ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let connector = connector(policy, extra_ca_file, CONNECTED_WITHIN)?;
        Ok(Self {
            quick: client(connector.clone()),
            apart: client(connector),
        })
    }

    /// Sends a request, again if the subscriber says that it has not looked at it.
    pub async fn send(
        &self,
        way: Way,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, legacy::Error> {
        let client = match way {
            Way::Quick => &self.quick,
            Way::Apart => &self.apart,
        };
        let mut refused = 0;
        loop {
            match client.request(request.clone()).await {
                Err(error) if refused < MAX_REFUSED && failure::not_processed(&error) => refused += 1,
                ended => return ended,
            }
        }
    }
}

fn connector(
    policy: TargetPolicy,
    extra_ca_file: Option<&Path>,
    within: Duration,
) -> anyhow::Result<Connector> {
    let tls = tls::client("TRIGGERS_EXTRA_CA_FILE", extra_ca_file)?;
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(GuardedConnector {
            policy: Arc::new(policy),
            lookups: Lookups::new(Bounds::ATTEMPTS),
        });
    Ok(BoxCloneSyncService::new(Timeout::new(connector, within)))
}

fn client(connector: Connector) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .http1_max_buf_size(READ_AHEAD as usize)
        .http2_initial_stream_window_size(READ_AHEAD)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(READ_AHEAD)
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING)
        .http2_max_concurrent_reset_streams(RESET_STREAMS)
        .build(connector)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};
    use tower::{ServiceExt, timeout::error::Elapsed};

    use super::*;

    /// Whoever asked for it may have been served by another connection meanwhile: its own deadline does not end this one.
    #[tokio::test]
    async fn a_handshake_that_is_never_answered_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("https://{}/", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let policy = TargetPolicy {
            this_machine: true,
            ports: vec![listener.local_addr().unwrap().port()],
            ..TargetPolicy::default()
        };
        let connector = connector(policy, None, Duration::from_millis(200)).unwrap();
        let peer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = Vec::new();
            stream.read_to_end(&mut hello).await.unwrap();
            hello
        };
        let (ended, hello) = tokio::join!(connector.oneshot(uri), peer);
        let error = ended.expect_err("nobody answered");
        assert!(error.is::<Elapsed>(), "{error}");
        assert!(!hello.is_empty(), "it was TLS that was waited for");
    }
}
