//! A subscriber: a real HTTP server that records what is pushed to it, and answers as it is told.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use futures_util::StreamExt;
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use standardwebhooks::Webhook;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use crate::{Authority, eventually, tls::Flaw};

/// How long a webhook may take to arrive where nothing holds it up.
const SOON: Duration = Duration::from_secs(15);

/// A webhook as it arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// The request's method.
    pub method: http::Method,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as sent.
    pub body: Bytes,
    /// By which HTTP it came.
    pub version: http::Version,
    /// Over which connection, from 1.
    pub connection: usize,
    /// When it was here.
    pub at: Instant,
}

/// The envelope of a webhook, with its data as sent.
#[derive(Debug, Deserialize)]
pub struct Envelope<'a> {
    /// The event's id.
    pub id: &'a str,
    /// The event's type.
    pub r#type: &'a str,
    /// When the event was accepted.
    pub timestamp: &'a str,
    /// The payload.
    #[serde(borrow)]
    pub data: &'a RawValue,
}

impl Received {
    /// A header's value, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or_default())
    }

    /// The event's id, by the header.
    pub fn webhook_id(&self) -> &str {
        self.header("webhook-id")
    }

    /// The envelope.
    pub fn envelope(&self) -> Envelope<'_> {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("the webhook is not an envelope: {error}: {:?}", self.body))
    }

    /// Verifies the signature with a library that is not ours.
    pub fn verify(&self, secret: &str) -> Result<(), String> {
        let webhook = Webhook::new(secret).map_err(|error| error.to_string())?;
        webhook
            .verify(&self.body, &self.headers)
            .map_err(|error| error.to_string())
    }
}

/// What the receiver does with a webhook.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Answers with this status.
    Status(u16),
    /// Answers with a status, a header and a text.
    Full(u16, Vec<(&'static str, String)>, String),
    /// Answers with 200 after a while.
    Late(Duration),
    /// Answers with this status after a while.
    LateStatus(Duration, u16),
    /// Never answers.
    Hang,
    /// Answers with 200 and a body of so many bytes.
    Huge(usize),
    /// Answers with this status and a body that begins and does not end.
    Drips(u16),
    /// Answers with 200 and a body that breaks off.
    Cut,
}

#[derive(Default)]
struct Path {
    received: Vec<Received>,
    script: VecDeque<Reply>,
    otherwise: Option<Reply>,
    now: usize,
    most_at_once: usize,
}

type Paths = Arc<Mutex<HashMap<String, Path>>>;

/// The server. It ends when dropped.
pub struct Receiver {
    url: String,
    address: SocketAddr,
    paths: Paths,
    task: JoinHandle<()>,
}

impl Receiver {
    /// Starts one on a loopback port.
    pub async fn start() -> Self {
        Self::on("http://127.0.0.1", None).await
    }

    /// Starts one that speaks TLS, as `localhost`, with a certificate of the authority's, and offers these protocols by ALPN.
    pub async fn start_tls(authority: &Authority, flaw: Flaw, protocols: &[&str]) -> Self {
        Self::on("https://localhost", Some(authority.server(flaw, protocols))).await
    }

    async fn on(host: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("the loopback interface has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let paths = Paths::default();
        let router = Router::new().fallback(take).with_state(Arc::clone(&paths));
        let task = tokio::spawn(serve(listener, tls, router));
        Self {
            url: format!("{host}:{}", address.port()),
            address,
            paths,
            task,
        }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Answers the next requests of a path with these, in order, and what follows with 200.
    pub fn script(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        self.with(path, |path| path.script = replies.into_iter().collect());
    }

    /// Answers every request of a path that has no script (any more) with this.
    pub fn always(&self, path: &str, reply: Reply) {
        self.with(path, |path| path.otherwise = Some(reply));
    }

    /// What has arrived at a path.
    pub fn received(&self, path: &str) -> Vec<Received> {
        self.with(path, |path| path.received.clone())
    }

    /// How much has arrived at a path.
    pub fn count(&self, path: &str) -> usize {
        self.with(path, |path| path.received.len())
    }

    /// Whether a webhook of this event has arrived at a path.
    pub fn has(&self, path: &str, webhook_id: &str) -> bool {
        self.with(path, |path| {
            path.received
                .iter()
                .rev()
                .any(|webhook| webhook.webhook_id() == webhook_id)
        })
    }

    /// The ids of the events that have arrived at a path, in order, as often as they have.
    pub fn ids(&self, path: &str) -> Vec<String> {
        self.with(path, |path| {
            let ids = path
                .received
                .iter()
                .map(|webhook| webhook.webhook_id().to_owned());
            ids.collect()
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The most requests of a path that were being answered at the same time.
    pub fn most_at_once(&self, path: &str) -> usize {
        self.with(path, |path| path.most_at_once)
    }

    /// Waits until so many have arrived at a path, and gives what is there.
    pub async fn wait_for(&self, path: &str, count: usize) -> Vec<Received> {
        self.wait_for_within(path, count, SOON).await
    }

    /// As [`Receiver::wait_for`], with an end of the caller's.
    pub async fn wait_for_within(&self, path: &str, count: usize, within: Duration) -> Vec<Received> {
        eventually(
            &format!("{count} webhooks arrive at {path}"),
            within,
            async || match self.count(path) {
                here if here >= count => Ok(self.received(path)),
                here => Err(format!("{here} have")),
            },
        )
        .await
    }

    fn with<T>(&self, path: &str, act: impl FnOnce(&mut Path) -> T) -> T {
        act(self.paths.lock().unwrap().entry(path.to_owned()).or_default())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The number of a connection.
#[derive(Clone, Copy)]
struct Connection(usize);

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router) {
    let mut connections = JoinSet::new();
    for number in 1.. {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let (tls, router) = (tls.clone(), router.clone().layer(Extension(Connection(number))));
        connections.spawn(async move {
            match tls {
                None => speak(stream, router).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        speak(stream, router).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let server = auto::Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(router);
    // Whoever connects may break off.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn take(State(paths): State<Paths>, request: Request) -> Response {
    let name = request.uri().path().to_owned();
    let count = |change: fn(&mut Path)| change(paths.lock().unwrap().entry(name.clone()).or_default());
    count(|path| {
        path.now += 1;
        path.most_at_once = path.most_at_once.max(path.now);
    });
    let response = answer(&paths, request).await;
    count(|path| path.now -= 1);
    response
}

async fn answer(paths: &Paths, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return status(400);
    };
    let received = Received {
        method: parts.method,
        headers: parts.headers,
        body: body.to_bytes(),
        version: parts.version,
        connection: parts.extensions.get().map_or(0, |Connection(number)| *number),
        at: Instant::now(),
    };
    let reply = {
        let mut paths = paths.lock().unwrap();
        let path = paths.entry(parts.uri.path().to_owned()).or_default();
        path.received.push(received);
        path.script.pop_front().or_else(|| path.otherwise.clone())
    };
    match reply.unwrap_or(Reply::Status(200)) {
        Reply::Status(code) => status(code),
        Reply::Full(code, headers, text) => {
            let mut response = Response::builder().status(code);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(text.into()).expect("the test's reply is sound")
        }
        Reply::Late(delay) => {
            tokio::time::sleep(delay).await;
            status(200)
        }
        Reply::LateStatus(delay, code) => {
            tokio::time::sleep(delay).await;
            status(code)
        }
        Reply::Hang => std::future::pending().await,
        Reply::Drips(code) => {
            let begun = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"x"))]);
            let mut answer = Response::new(Body::from_stream(begun.chain(futures_util::stream::pending())));
            *answer.status_mut() = status(code).status();
            answer
        }
        Reply::Cut => {
            let begun = futures_util::stream::iter([Ok(Bytes::from_static(b"x"))]);
            // What is not sent when a stream of HTTP/2 is reset is not sent at all: the beginning has to get out before.
            let cut = futures_util::stream::once(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe))
            });
            Response::new(Body::from_stream(begun.chain(cut)))
        }
        Reply::Huge(bytes) => {
            const PIECE: usize = 64 * 1024;
            let piece = Bytes::from(vec![b'x'; PIECE]);
            let pieces = futures_util::stream::iter(0..bytes / PIECE)
                .map(move |_| Ok::<_, std::io::Error>(piece.clone()));
            Response::new(Body::from_stream(pieces))
        }
    }
}

fn status(code: u16) -> Response {
    Response::builder()
        .status(code)
        .body(Body::empty())
        .expect("the test's status is one")
}
