//! A control plane to send requests to, and the hands of a worker to put events under it.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use api::{Api, Pullers, Signup, Targets};
use bytes::Bytes;
use http::Method;
use serde_json::Value;
use shared::{
    AcceptedEvent, Builtin, DedupId, DeliveryKey, EventId, EventType, FailureKind, OrganizationId, Payload,
    SubscriptionId, Timestamp, WorkerId,
    auth::{AddressRules, Auth},
    config::EngineArgs,
    delivery::{AttemptOutcome, AttemptResult, Failure, Next},
    engine::Engine,
    guard::TargetPolicy,
    http::server::{self, Bounds},
    lifecycle::Lifecycle,
    queue::Publisher,
    store::{IntakeBatch, IntakeOutcome, PlannedDelivery},
};

use crate::answer::Answer;

pub const ADMIN_TOKEN: &str = "the-operator-of-the-tests";
/// How long anything is waited for.
pub const LONG: Duration = Duration::from_secs(20);

/// A directory that goes with its owner.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running control plane.
pub struct Desk {
    pub engine: Engine,
    pub address: SocketAddr,
    client: reqwest::Client,
    lifecycle: Lifecycle,
    _directory: Directory,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.lifecycle.soft.cancel();
        self.lifecycle.hard.cancel();
    }
}

/// An organization, and a key of it that may do everything.
pub struct Tenant {
    pub id: OrganizationId,
    pub key: String,
}

impl Desk {
    /// One that has an admin token, and lets nobody else create organizations; webhooks may go to this machine when it is
    /// this machine that asks.
    pub async fn open() -> Self {
        Self::with(Signup::AdminOnly, Some(ADMIN_TOKEN)).await
    }

    pub async fn with(signup: Signup, admin_token: Option<&str>) -> Self {
        Self::within(Bounds::default(), signup, admin_token, None).await
    }

    /// One that [`Desk::open`] opens, whose clients may not read for this long.
    pub async fn with_stall(stall: Duration) -> Self {
        let bounds = Bounds {
            stall,
            ..Bounds::default()
        };
        Self::within(bounds, Signup::AdminOnly, Some(ADMIN_TOKEN), None).await
    }

    /// One whose answers wait where they are not read: the kernel takes little of them, which would count as sent.
    pub async fn with_small_buffers() -> Self {
        let (signup, token) = (Signup::AdminOnly, Some(ADMIN_TOKEN));
        Self::within(Bounds::default(), signup, token, Some(16 * 1024)).await
    }

    async fn within(
        bounds: Bounds,
        signup: Signup,
        admin_token: Option<&str>,
        send_buffer: Option<u32>,
    ) -> Self {
        let directory = std::env::temp_dir().join(format!("triggers-api-{}", uuid::Uuid::new_v4()));
        let args = EngineArgs {
            database_url: None,
            amqp_url: None,
            secret_key: None,
            former_secret_keys: None,
            database_connections: 10,
            migrate: true,
            queue_prefix: String::new(),
            queues: 1,
            queue_delivery_limit: 20,
            queue_max_bytes: 1 << 30,
        };
        let engine = Engine::open(&args, Some(&directory)).await.expect("an engine");
        engine.store.keeper.migrate().await.expect("a schema");
        let lifecycle = Lifecycle::new();
        let publisher = Publisher::start(Arc::clone(&engine.queue), &lifecycle);
        let loopback = TargetPolicy {
            this_machine: true,
            ..TargetPolicy::default()
        };
        let api = Api {
            store: engine.store.clone(),
            sealer: Arc::clone(&engine.sealer),
            auth: Auth::start(&engine, AddressRules::default(), &lifecycle),
            publisher: publisher.clone(),
            pullers: Pullers::start(&engine.store, &lifecycle),
            targets: Targets {
                policy: TargetPolicy::default(),
                from_this_machine: Some(loopback),
                ..Targets::default()
            },
            signup,
            admin_token: admin_token.map(Into::into),
            retention_days: 30,
            lifecycle: lifecycle.clone(),
        };
        let routes = server::with_fallbacks(api::routes(Arc::new(api)));
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        if let Some(bytes) = send_buffer {
            socket.set_send_buffer_size(bytes).unwrap();
        }
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1_024).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = server::serve_within(bounds, listener, routes, lifecycle.clone());
        lifecycle.critical("http", serving);
        tokio::time::timeout(LONG, async {
            while !publisher.is_open() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the queue opens");
        Self {
            engine,
            address,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            lifecycle,
            _directory: Directory(directory),
        }
    }

    /// A new organization of the tier `unlimited`.
    pub async fn tenant(&self) -> Tenant {
        let body = serde_json::json!({"name": "Tenant", "tier": "unlimited"});
        let answer = self.post("/v1/organizations", ADMIN_TOKEN, &body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        Tenant {
            id: answer.body["id"].as_str().unwrap().parse().unwrap(),
            key: answer.body["key"]["key"].as_str().unwrap().to_owned(),
        }
    }

    /// A key of the tenant's with these scopes alone.
    pub async fn key(&self, tenant: &Tenant, scopes: &[&str]) -> String {
        let body = serde_json::json!({"name": "narrow", "scopes": scopes});
        let answer = self.post("/v1/keys", &tenant.key, &body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.body["key"].as_str().unwrap().to_owned()
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        self.send(
            Method::GET,
            path,
            &[("authorization", &format!("Bearer {key}"))],
            None,
        )
        .await
    }

    pub async fn delete(&self, path: &str, key: &str) -> Answer {
        let headers = [("authorization", &*format!("Bearer {key}"))];
        self.send(Method::DELETE, path, &headers, None).await
    }

    pub async fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        let headers = [("authorization", &*format!("Bearer {key}"))];
        self.send(Method::POST, path, &headers, Some(body)).await
    }

    pub async fn patch(&self, path: &str, key: &str, body: &Value) -> Answer {
        let headers = [("authorization", &*format!("Bearer {key}"))];
        self.send(Method::PATCH, path, &headers, Some(body)).await
    }

    /// Any request.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Answer {
        let mut request = self
            .client
            .request(method, format!("http://{}{path}", self.address))
            .timeout(LONG);
        if let Some(body) = body {
            request = request.json(body);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.expect("a whole answer");
        Answer {
            status,
            headers,
            body: serde_json::from_str(&text).unwrap_or_default(),
            text,
        }
    }

    /// The tenant's built-in inbox.
    pub async fn inbox(&self, tenant: &Tenant) -> SubscriptionId {
        let in_force = self
            .engine
            .store
            .subscriptions
            .in_force(&[tenant.id])
            .await
            .unwrap();
        let mut subscriptions = in_force[0].subscriptions.iter();
        subscriptions
            .find(|subscription| subscription.builtin == Some(Builtin::Inbox))
            .expect("an inbox")
            .id
    }

    /// Subscribes a URL of this machine to everything.
    pub async fn subscribe(&self, tenant: &Tenant) -> SubscriptionId {
        let body = serde_json::json!({"url": "http://127.0.0.1:9/hook"});
        let answer = self.post("/v1/subscriptions", &tenant.key, &body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.body["id"].as_str().unwrap().parse().unwrap()
    }

    /// Takes an event in, as a worker does, for one subscription.
    pub async fn take_in(&self, event: &AcceptedEvent, subscription: SubscriptionId) {
        self.take_in_all(std::slice::from_ref(event), subscription).await;
    }

    /// Takes events of one organization in together, as a worker does, for one subscription.
    pub async fn take_in_all(&self, events: &[AcceptedEvent], subscription: SubscriptionId) {
        let organization = events[0].organization;
        let in_force = self
            .engine
            .store
            .subscriptions
            .in_force(&[organization])
            .await
            .unwrap();
        let planned = |event| PlannedDelivery {
            event,
            subscription,
            held: false,
        };
        let deliveries: Vec<_> = (0..events.len()).map(planned).collect();
        let batch = IntakeBatch {
            worker: WorkerId::new(),
            events,
            deliveries: &deliveries,
            versions: &[(organization, in_force[0].version)],
            repeats: &[],
        };
        let outcome = self.engine.store.events.intake(&batch).await.unwrap();
        assert!(matches!(outcome, IntakeOutcome::Stored(_)), "{outcome:?}");
    }

    /// Takes a new event in.
    pub async fn event(
        &self,
        tenant: &Tenant,
        event_type: &str,
        payload: &str,
        to: SubscriptionId,
    ) -> EventId {
        let event = event(tenant, event_type, payload);
        self.take_in(&event, to).await;
        event.id
    }

    /// Makes the next attempt at a push delivery, as a worker does, and writes down that it failed.
    pub async fn fail(&self, event: EventId, subscription: SubscriptionId, tenant: &Tenant, next: Next) {
        let failure = Failure {
            kind: FailureKind::Status,
            status_code: Some(503),
            detail: "come back later".into(),
        };
        let result = AttemptResult::Failed { failure, next };
        self.attempt(event, subscription, tenant, result).await;
    }

    /// Makes the next attempt at a push delivery, as a worker does.
    pub async fn attempt(
        &self,
        event: EventId,
        subscription: SubscriptionId,
        tenant: &Tenant,
        result: AttemptResult,
    ) {
        let (worker, deliveries) = (WorkerId::new(), &self.engine.store.deliveries);
        deliveries.enlist(worker, LONG).await.unwrap();
        let claimed = deliveries.claim(worker, &[(subscription, 100)]).await.unwrap();
        let delivery = DeliveryKey { event, subscription };
        let claimed = claimed
            .iter()
            .find(|claimed| claimed.key == delivery)
            .expect("it is due");
        let outcome = AttemptOutcome {
            delivery,
            organization: tenant.id,
            number: claimed.attempts + 1,
            started_at: Timestamp::now(),
            announcement: None,
            duration: Duration::from_millis(12),
            result,
        };
        assert_eq!(deliveries.record(worker, &[outcome]).await.unwrap(), [delivery]);
        deliveries.resign(worker).await.unwrap();
    }
}

/// An event that is not taken in yet.
pub fn event(tenant: &Tenant, event_type: &str, payload: &str) -> AcceptedEvent {
    AcceptedEvent {
        id: EventId::new(),
        former_ids: Vec::new(),
        organization: tenant.id,
        event_type: EventType::parse(event_type).unwrap(),
        dedup_id: None,
        received_at: Timestamp::now(),
        occurred_at: None,
        source: None,
        trace: None,
        payload: Payload::from_trusted(Bytes::copy_from_slice(payload.as_bytes())).unwrap(),
    }
}

/// The same, with a key for deduplication.
pub fn keyed(tenant: &Tenant, dedup_id: &str) -> AcceptedEvent {
    AcceptedEvent {
        dedup_id: Some(DedupId::parse(dedup_id).unwrap()),
        ..event(tenant, "user.created", "{\"n\":1}")
    }
}
