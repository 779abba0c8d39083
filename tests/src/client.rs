//! A client of the API, as anybody could write one.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method};
use serde_json::{Value, json};

use crate::{Node, eventually};

/// How long anything may take that nothing holds up.
const SOON: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub text: String,
}

impl Answer {
    /// Takes an answer in, whole.
    pub async fn of(response: reqwest::Response) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: response.text().await.expect("the answer's body comes whole"),
        }
    }

    /// A header's value, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or_default())
    }

    /// The body, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("the answer is not JSON: {error}: {self:?}"))
    }

    /// The body, of an answer with this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }

    /// The body, of an answer that must be a whole problem with this status and code.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        let problem = self.expect(status);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["request_id"], self.header("x-request-id"), "{problem}");
        for member in ["type", "title", "detail"] {
            let text = problem[member].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{member} is missing: {problem}");
        }
        if matches!(status, 429 | 503) {
            let seconds: u64 = self.header("retry-after").parse().expect("a number of seconds");
            assert!(seconds > 0);
        }
        problem
    }

    /// The pointers of a problem's errors, in order.
    #[track_caller]
    pub fn pointers(&self) -> Vec<String> {
        let problem = self.json();
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        let mut pointers: Vec<String> = errors
            .iter()
            .filter_map(|error| Some(error["pointer"].as_str()?.to_owned()))
            .collect();
        pointers.sort();
        pointers
    }
}

/// A push subscription that the test made.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Its id.
    pub id: String,
    /// Its signing secret, shown once.
    pub secret: String,
}

/// Somebody with an API key.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    ingest: Arc<Node>,
    api: Arc<Node>,
    /// The organization's id.
    pub organization: String,
    /// The API key.
    pub key: String,
}

impl Client {
    pub(crate) fn new(ingest: Arc<Node>, api: Arc<Node>, organization: String, key: String) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(35))
            .build()
            .expect("a client can be built");
        Self {
            http,
            ingest,
            api,
            organization,
            key,
        }
    }

    /// The same, with another key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..self.clone()
        }
    }

    /// The same, posting events to another node.
    #[must_use]
    pub fn posting_to(&self, node: &Arc<Node>) -> Self {
        Self {
            ingest: Arc::clone(node),
            ..self.clone()
        }
    }

    /// The same, asking everything of another node.
    #[must_use]
    pub fn at(&self, node: &Arc<Node>) -> Self {
        Self {
            api: Arc::clone(node),
            ..self.posting_to(node)
        }
    }

    /// A request without a key: events are posted to the node for that, all else goes to the api.
    pub fn anonymous(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let posts =
            method == Method::POST && matches!(path, "/v1/events" | "/v1/events/batch" | "/api/events");
        let node = if posts { &self.ingest } else { &self.api };
        self.http.request(method, format!("{}{path}", node.url()))
    }

    /// A request with the key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.anonymous(method, path).bearer_auth(&self.key)
    }

    /// Sends a request that must be answered.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        Answer::of(request.send().await.expect("the request is answered")).await
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// `POST` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// `POST` with this very body, as JSON.
    pub async fn post_text(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self
            .request(Method::POST, path)
            .header("content-type", "application/json")
            .body(body);
        self.send(request).await
    }

    /// `PATCH` with a JSON body.
    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Posts an event that must be accepted, and gives its id.
    pub async fn accepted(&self, event: &Value) -> String {
        let answer = self.post("/v1/events", event).await.expect(202);
        answer["id"].as_str().expect("an id").to_owned()
    }

    /// Posts an event of a type, with a small payload.
    pub async fn event(&self, event_type: &str) -> String {
        self.accepted(&json!({"type": event_type, "payload": {"of": event_type}}))
            .await
    }

    /// Looks an event up, which must be there.
    pub async fn look_up(&self, event: &str) -> Value {
        self.get(&format!("/v1/events/{event}")).await.expect(200)
    }

    /// Waits until an event has this status, and gives it.
    pub async fn event_becomes(&self, event: &str, status: &str) -> Value {
        eventually(&format!("{event} becomes {status}"), SOON, async || {
            let event = self.look_up(event).await;
            if event["status"] == status {
                Ok(event)
            } else {
                Err(event.to_string())
            }
        })
        .await
    }

    /// Waits until the delivery of an event to a subscription has this status, and gives it.
    pub async fn delivery_becomes(&self, event: &str, subscription: &str, status: &str) -> Value {
        let what = format!("the delivery of {event} to {subscription} becomes {status}");
        eventually(&what, SOON, async || {
            let event = self.look_up(event).await;
            let deliveries = event["deliveries"].as_array().cloned().unwrap_or_default();
            let found = deliveries
                .into_iter()
                .find(|delivery| delivery["subscription"] == subscription && delivery["status"] == status);
            found.ok_or_else(|| event.to_string())
        })
        .await
    }

    /// Waits until a subscription is disabled, and gives it.
    pub async fn becomes_disabled(&self, subscription: &str) -> Value {
        let path = format!("/v1/subscriptions/{subscription}");
        let what = format!("{subscription} becomes disabled");
        eventually(&what, Duration::from_secs(30), async || {
            let shown = self.get(&path).await.expect(200);
            if shown["enabled"] == false {
                Ok(shown)
            } else {
                Err(shown.to_string())
            }
        })
        .await
    }

    /// Subscribes.
    pub async fn subscribe(&self, subscription: &Value) -> Subscription {
        let answer = self.post("/v1/subscriptions", subscription).await.expect(201);
        let text = |name: &str| {
            answer[name]
                .as_str()
                .unwrap_or_else(|| panic!("{name} is missing: {answer}"))
                .to_owned()
        };
        Subscription {
            id: text("id"),
            secret: text("secret"),
        }
    }

    /// Subscribes a URL to everything.
    pub async fn subscribe_url(&self, url: &str) -> Subscription {
        self.subscribe(&json!({"url": url})).await
    }
}
