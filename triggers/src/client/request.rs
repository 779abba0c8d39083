//! Asking the API. Every wait has an end, and an answer a largest size; redirects are not followed, and no proxy of the
//! environment is used.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytes::{Bytes, BytesMut};
use clap::Args;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::{Value, value::RawValue};
use shared::{Invalid, config::SettingError, tls};
use url::Url;

use super::{Failure, failure::Problem};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take to begin: those that wait, wait for half a minute.
const BEGIN: Duration = Duration::from_mins(1);
/// How long an answer may bring nothing once it has begun.
const SILENCE: Duration = Duration::from_mins(1);
/// A media type.
pub const JSON: &str = "application/json";
/// The largest answer: a page of a thousand events, with the largest payloads, is half as large.
const LARGEST: usize = 512 << 20;

/// Where the API is, and as whom to ask it.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// Where the API is.
    #[arg(long, env = "TRIGGERS_URL", default_value = "http://127.0.0.1:8080", value_name = "URL", global = true,
          value_parser = parse_url)]
    url: Url,

    /// The API key. On the command line others on this machine can see it: better in the environment.
    #[arg(
        long = "key",
        env = "TRIGGERS_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        global = true
    )]
    api_key: Option<SecretString>,

    /// A PEM file of certificate authorities that the API may be answering under, beside the public ones.
    #[arg(long, env = "TRIGGERS_CA_FILE", value_name = "FILE", global = true)]
    ca_file: Option<PathBuf>,
}

impl Connection {
    /// Says what is wrong with it, but for a key that is not set.
    pub fn check(&self) -> anyhow::Result<()> {
        self.authorization()?;
        tls::client("TRIGGERS_CA_FILE", self.ca_file.as_deref())?;
        Ok(())
    }

    fn authorization(&self) -> Result<Option<HeaderValue>, SettingError> {
        let key = self.api_key.as_ref().map(|key| key.expose_secret().trim());
        let Some(key) = key.filter(|key| !key.is_empty()) else {
            return Ok(None);
        };
        let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| SettingError::new("TRIGGERS_API_KEY", "must be an API key, as trg_live_…"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn parse_url(text: &str) -> Result<Url, Invalid> {
    let rule = || Invalid::new("must be an http:// or https:// URL without user, query and fragment");
    let url = Url::parse(text).map_err(|_| rule())?;
    let bare = url.username().is_empty() && url.password().is_none();
    let bare = bare && url.query().is_none() && url.fragment().is_none();
    if matches!(url.scheme(), "http" | "https") && url.has_host() && bare {
        Ok(url)
    } else {
        Err(rule())
    }
}

/// Where a request goes: the parts of its path behind `/v1`, and its query.
#[derive(Debug, Clone)]
pub struct To(Url);

impl To {
    /// With a parameter, if it has a value.
    #[must_use]
    pub fn with(mut self, name: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.0.query_pairs_mut().append_pair(name, &value.to_string());
        }
        self
    }
}

/// What the API answered, well.
#[derive(Debug)]
pub struct Answer {
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body, which is an object, for people.
    pub fn object(&self) -> Result<Value, Failure> {
        object(&self.text)
    }

    /// The body as this type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        read(&self.text)
    }
}

/// An answer, or a part of one, as this type.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::Unanswered(format!("the answer is none of the API's: {error}")))
}

/// An object of an answer, for people. A payload is kept as its text: whatever producers sent, its numbers may be larger
/// than any number here.
pub fn object(text: &str) -> Result<Value, Failure> {
    let members: BTreeMap<String, Box<RawValue>> = read(text)?;
    let members = members.into_iter().map(|(name, raw)| {
        let value = match name.as_str() {
            "payload" => Value::String(raw.get().to_owned()),
            _ => read(raw.get())?,
        };
        Ok((name, value))
    });
    members
        .collect::<Result<serde_json::Map<_, _>, _>>()
        .map(Value::Object)
}

/// A client of the API.
pub struct Client {
    base: Url,
    authorization: HeaderValue,
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    /// Connects to nothing yet.
    pub fn new(connection: &Connection) -> Result<Self, Failure> {
        let authorization = connection.authorization().map_err(Failure::from_start)?;
        let authorization = authorization.ok_or_else(|| {
            let rule = "must be set to an API key; that of triggers dev is in the file dev-key of its data directory";
            Failure::from_start(SettingError::new("TRIGGERS_API_KEY", rule))
        })?;
        let tls = tls::client("TRIGGERS_CA_FILE", connection.ca_file.as_deref());
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.map_err(Failure::from_start)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self {
            base: connection.url.clone(),
            authorization,
            http: legacy::Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// Where a request goes, by the parts of its path behind `/v1`.
    pub fn to(&self, parts: &[&str]) -> To {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(parts);
        }
        To(url)
    }

    /// `GET`.
    pub async fn get(&self, to: To) -> Result<Answer, Failure> {
        self.send(Method::GET, to, None).await
    }

    /// `POST` with a JSON body.
    pub async fn post(&self, to: To, body: &Value) -> Result<Answer, Failure> {
        self.send(Method::POST, to, Some((JSON, body.to_string().into())))
            .await
    }

    /// `PATCH` with a JSON body.
    pub async fn patch(&self, to: To, body: &Value) -> Result<Answer, Failure> {
        self.send(Method::PATCH, to, Some((JSON, body.to_string().into())))
            .await
    }

    /// `POST` without a body.
    pub async fn post_nothing(&self, to: To) -> Result<Answer, Failure> {
        self.send(Method::POST, to, None).await
    }

    /// `DELETE`.
    pub async fn delete(&self, to: To) -> Result<Answer, Failure> {
        self.send(Method::DELETE, to, None).await
    }

    /// A request with this body, of this media type.
    pub async fn send(
        &self,
        method: Method,
        to: To,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Answer, Failure> {
        let (media, body) = body.map_or((None, Bytes::new()), |(media, body)| (Some(media), body));
        let mut request = Request::builder().method(method).uri(to.0.as_str());
        if let Some(media) = media {
            request = request.header(header::CONTENT_TYPE, media);
        }
        let response = self.begin(request, body).await?;
        let text = whole(response.into_body()).await?;
        Ok(Answer { text })
    }

    /// An answer that goes on for as long as it likes, after the event `after`.
    pub async fn follow(&self, to: To, after: Option<&str>) -> Result<Incoming, Failure> {
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(to.0.as_str())
            .header(header::ACCEPT, "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        Ok(self.begin(request, Bytes::new()).await?.into_body())
    }

    /// Sends a request, and waits for the head of an answer that is no problem.
    async fn begin(
        &self,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<http::Response<Incoming>, Failure> {
        let request = request
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(
                header::USER_AGENT,
                concat!("triggers/", env!("CARGO_PKG_VERSION")),
            )
            .body(Full::new(body))
            .map_err(|_| Failure::Usage("what is asked for makes no URL".to_owned()))?;
        let unanswered = |what: String| Failure::Unanswered(format!("{} {what}", self.base));
        let answered = tokio::time::timeout(BEGIN, self.http.request(request)).await;
        let response = match answered {
            Err(_) => return Err(unanswered("does not answer".to_owned())),
            Ok(Err(error)) if error.is_connect() => {
                let why = causes(&error);
                return Err(Failure::Unreachable(format!(
                    "{} cannot be reached: {why}",
                    self.base
                )));
            }
            Ok(Err(error)) => return Err(unanswered(format!("did not answer: {}", causes(&error)))),
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        Err(self.problem(status, retry_after, response.into_body()).await)
    }

    async fn problem(&self, status: StatusCode, retry_after: Option<u64>, body: Incoming) -> Failure {
        let text = match whole(body).await {
            Ok(text) => text,
            Err(failure) => return failure,
        };
        match Problem::read(status.as_u16(), retry_after, text) {
            Some(problem) => Failure::Problem(Box::new(problem)),
            None => Failure::Unanswered(format!("{} answers {status}, and not as the API does", self.base)),
        }
    }
}

/// The body of an answer.
async fn whole(mut body: Incoming) -> Result<String, Failure> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = piece(&mut body, SILENCE).await? {
        if bytes.len() + piece.len() > LARGEST {
            return Err(Failure::Unanswered("the answer is too large".to_owned()));
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes.into()).map_err(|_| Failure::Unanswered("the answer is not text".to_owned()))
}

/// The next piece of a body; `None` at its end.
pub async fn piece(body: &mut Incoming, silence: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        let frame = tokio::time::timeout(silence, body.frame()).await;
        match frame {
            Err(_) => return Err(Failure::Unanswered("the answer does not go on".to_owned())),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                return Err(Failure::Unanswered(format!(
                    "the answer broke off: {}",
                    causes(&error)
                )));
            }
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// An error with all that caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for good in ["http://127.0.0.1:8080", "https://events.example/base/"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in [
            "127.0.0.1:8080",
            "ftp://x",
            "http://",
            "http://u@h",
            "http://:p@h",
            "http://h?q",
            "http://h#f",
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }
}
