//! The way to the collector: OTLP over HTTP, in protobuf.
//!
//! By the [protocol](https://opentelemetry.io/docs/specs/otlp/#otlphttp), in as far as traces need it.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use rustls::ClientConfig;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a batch may take, whole.
const TAKES: Duration = Duration::from_secs(10);
/// The most bytes of an answer that are read: it says how many spans were refused, and why.
const LARGEST: usize = 64 * 1024;
const USER_AGENT: &str = concat!("Triggers/", env!("CARGO_PKG_VERSION"));

/// A collector. No proxy of the environment is used, and no redirect followed.
#[derive(Debug)]
pub(super) struct Collector {
    client: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
}

/// Why a batch was not taken.
#[derive(Debug)]
pub(super) struct NotTaken {
    /// Whether it may be another time.
    pub(super) may_be_later: bool,
    pub(super) why: String,
}

impl Collector {
    /// With the headers that it wants.
    pub(super) fn new(uri: Uri, mut headers: HeaderMap, tls: ClientConfig) -> Self {
        let protobuf = HeaderValue::from_static("application/x-protobuf");
        headers.insert(header::CONTENT_TYPE, protobuf);
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Self {
            client: legacy::Client::builder(TokioExecutor::new()).build(connector),
            uri,
            headers,
        }
    }

    /// Its URL, without what may be secret in it.
    pub(super) fn shown(&self) -> String {
        let (scheme, authority) = (self.uri.scheme_str(), self.uri.authority());
        let authority = authority.map_or("", |authority| authority.as_str());
        format!("{}://{authority}{}", scheme.unwrap_or_default(), self.uri.path())
    }

    /// Sends an encoded batch, and gives how many spans of it were refused.
    pub(super) async fn send(&self, batch: Bytes) -> Result<u64, NotTaken> {
        let sent = tokio::time::timeout(TAKES, self.post(batch)).await;
        sent.unwrap_or_else(|_| {
            Err(NotTaken {
                may_be_later: true,
                why: format!("no answer within {} seconds", TAKES.as_secs()),
            })
        })
    }

    async fn post(&self, batch: Bytes) -> Result<u64, NotTaken> {
        let mut request = Request::new(Full::new(batch));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let broken = |error: &(dyn Error + 'static)| NotTaken {
            may_be_later: true,
            why: innermost(error),
        };
        let answered = self.client.request(request).await;
        let (head, body) = answered.map_err(|error| broken(&error))?.into_parts();
        let body = Limited::new(body, LARGEST).collect().await;
        let body = body.map_err(|error| broken(&*error))?.to_bytes();
        if !head.status.is_success() {
            return Err(NotTaken {
                may_be_later: matches!(
                    head.status,
                    StatusCode::TOO_MANY_REQUESTS
                        | StatusCode::BAD_GATEWAY
                        | StatusCode::SERVICE_UNAVAILABLE
                        | StatusCode::GATEWAY_TIMEOUT
                ),
                why: format!("it answers {}", head.status.as_u16()),
            });
        }
        // One that answers something else has taken them all the same.
        let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
        let refused = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(refused).unwrap_or_default())
    }
}

/// What an error comes down to, without what may be in the outer ones' texts.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::post};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;
    use tokio::net::TcpListener;

    use super::*;
    use crate::tls;

    /// One that answers so, once.
    async fn sent(status: u16, body: Vec<u8>) -> Result<u64, NotTaken> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let answer = async move || (StatusCode::from_u16(status).unwrap(), body);
        let router = Router::new().route("/v1/traces", post(answer));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let sent = at(&uri).send(Bytes::new()).await;
        serving.abort();
        sent
    }

    fn at(uri: &str) -> Collector {
        Collector::new(
            uri.parse().unwrap(),
            HeaderMap::new(),
            tls::client("A_FILE", None).unwrap(),
        )
    }

    #[tokio::test]
    async fn what_is_refused_is_counted() {
        let answer = |rejected_spans| {
            let partial_success = Some(ExportTracePartialSuccess {
                rejected_spans,
                error_message: "too old".into(),
            });
            ExportTraceServiceResponse { partial_success }.encode_to_vec()
        };
        assert_eq!(sent(200, answer(3)).await.unwrap(), 3);
        assert_eq!(sent(200, answer(-1)).await.unwrap(), 0);
        for body in [Vec::new(), b"{}".to_vec()] {
            assert_eq!(sent(200, body).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn what_may_be_taken_later_is_told_from_what_may_not() {
        for status in [429, 502, 503, 504] {
            assert!(
                sent(status, Vec::new()).await.unwrap_err().may_be_later,
                "{status}"
            );
        }
        for status in [301, 400, 401, 404, 413, 500] {
            assert!(
                !sent(status, Vec::new()).await.unwrap_err().may_be_later,
                "{status}"
            );
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let error = at(&uri).send(Bytes::new()).await.unwrap_err();
        assert!(error.may_be_later && error.why.contains("refused"), "{error:?}");
    }
}
