//! An organization with something of everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use harness::{Access, Answer, Client, Operation, Receiver, World, eventually};
use http::Method;
use serde_json::{Value, json};
use type_safe_id::{DynamicType, TypeSafeId};

use super::{
    MARK,
    call::{Call, choices},
};

const SOON: Duration = Duration::from_secs(20);

/// The UUID of an id.
pub(super) fn uuid(id: &str) -> String {
    let id: TypeSafeId<DynamicType> = id.parse().expect("an id is a TypeID");
    id.uuid().to_string()
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// An organization with something of everything.
pub(super) struct Party {
    pub(super) client: Client,
    /// Its ids, by their prefix.
    pub(super) ids: BTreeMap<String, Vec<String>>,
}

impl Party {
    fn add(&mut self, prefix: &str, id: &str) {
        self.ids.entry(prefix.to_owned()).or_default().push(id.to_owned());
    }

    async fn subscription(&mut self, body: Value) -> String {
        let made = self.client.post("/v1/subscriptions", &body).await.expect(201);
        let id = text(&made["id"]);
        self.add("sub", &id);
        id
    }

    pub(super) async fn event(&mut self, event_type: &str, mark: &str) -> String {
        let body = json!({"type": event_type, "payload": {"said": mark}, "source": mark});
        let id = self.client.accepted(&body).await;
        self.client.look_up(&id).await;
        self.add("evt", &id);
        id
    }

    async fn replay(&mut self, subscription: &str) {
        let path = format!("/v1/subscriptions/{subscription}/replay");
        let made = self.client.post(&path, &json!({"statuses": ["cancelled"]})).await;
        let id = text(&made.expect(202)["id"]);
        eventually("the replay is done", SOON, async || {
            let replay = self.client.get(&format!("{path}s/{id}")).await.expect(200);
            if replay["status"] == "done" {
                Ok(())
            } else {
                Err(replay.to_string())
            }
        })
        .await;
        self.add("rpl", &id);
    }

    async fn key(&mut self) {
        let made = self.client.post("/v1/keys", &json!({"name": "another"})).await;
        let id = text(&made.expect(201)["id"]);
        self.add("key", &id);
    }

    /// One of its ids of this kind; of what it has none, one that is nobody's.
    pub(super) fn one_of(&self, prefix: &str) -> String {
        let own = self.ids.get(prefix).map(|ids| ids[0].clone());
        own.unwrap_or_else(|| uuid(&self.client.organization))
    }

    pub(super) fn new(client: Client) -> Self {
        let ids = BTreeMap::from([("org".to_owned(), vec![client.organization.clone()])]);
        Self { client, ids }
    }

    /// Events in every state: delivered, leased, parked, in the inbox; and whatever else there may be.
    pub(super) async fn owner(world: &World, receiver: &Receiver) -> Self {
        let mut party = Self::new(world.organization().await);
        let renamed = party
            .client
            .patch("/v1/organization", &json!({"name": MARK}))
            .await;
        renamed.expect(200);
        let push = json!({"url": receiver.url("/alpha"), "event_types": ["pushed.*"], "description": MARK});
        let push = party.subscription(push).await;
        let pull = json!({"kind": "pull", "event_types": ["pulled.*"], "description": MARK});
        let pull = party.subscription(pull).await;
        let parked = json!({"url": receiver.url("/alpha"), "event_types": ["parked.*"], "enabled": false});
        party.subscription(parked).await;
        let delivered = party.event("pushed.one", MARK).await;
        party
            .client
            .delivery_becomes(&delivered, &push, "delivered")
            .await;
        let leased = party.event("pulled.one", MARK).await;
        let path = format!("/v1/subscriptions/{pull}/pull");
        let lease = json!({"lease_seconds": 3_600, "wait_ms": 20_000});
        let pulled = party.client.post(&path, &lease);
        assert_eq!(pulled.await.expect(200)["data"][0]["id"], leased);
        party.event("parked.one", MARK).await;
        party.event("kept.one", MARK).await;
        let keyed = json!({"type": "kept.two", "payload": MARK, "dedup_id": MARK});
        let keyed = party.client.accepted(&keyed).await;
        party.client.look_up(&keyed).await;
        party.add("evt", &keyed);
        party.replay(&push).await;
        party.key().await;
        party
    }

    /// Somebody else, who has enough to be asked for with it.
    pub(super) async fn stranger(world: &World) -> Self {
        let mut party = Self::new(world.organization().await);
        let push = json!({"url": "http://127.0.0.1:9/hook", "event_types": ["own.*"], "enabled": false});
        let push = party.subscription(push).await;
        party
            .subscription(json!({"kind": "pull", "event_types": ["pulled.*"]}))
            .await;
        party.event("own.one", "a stranger's").await;
        party.replay(&push).await;
        party.key().await;
        party
    }

    /// Waits until what is counted of it is written down: the events that it has posted, and attempts at a subscription.
    pub(super) async fn is_counted(&self, subscription: &str, attempts: u64) {
        self.usage_is_counted().await;
        let path = format!("/v1/subscriptions/{subscription}/stats");
        eventually("its attempts are counted", SOON, async || {
            let stats = self.client.get(&path).await.expect(200);
            if stats["last_hour"]["attempts"] == attempts {
                Ok(())
            } else {
                Err(stats.to_string())
            }
        })
        .await;
    }

    /// Waits until the events that it has posted are counted.
    pub(super) async fn usage_is_counted(&self) {
        eventually("its events are counted", SOON, async || {
            let usage = self.client.get("/v1/usage").await.expect(200);
            if usage["accepted"] == self.ids["evt"].len() {
                Ok(())
            } else {
                Err(usage.to_string())
            }
        })
        .await;
    }

    /// What must be in no answer to anybody else.
    pub(super) fn marks(&self) -> BTreeSet<String> {
        let ids = self.ids.values().flatten();
        let mut marks: BTreeSet<_> = ids.flat_map(|id| [id.clone(), uuid(id)]).collect();
        marks.insert(MARK.to_owned());
        marks
    }

    /// All that its own key shows of it, by what was asked.
    pub(super) async fn everything(&self, operations: &[Operation]) -> BTreeMap<String, String> {
        let mut everything = BTreeMap::new();
        let reads = operations.iter().filter(|operation| {
            // A stream does not end.
            operation.method == Method::GET && operation.access == Access::Key && !operation.streams
        });
        for operation in reads {
            for ids in choices(operation, |prefix| self.ids[prefix].clone()) {
                let call = Call::of(operation, &ids);
                let answer = call.send(&self.client).await;
                everything.insert(call.path, without_times(operation, answer));
            }
        }
        everything
    }
}

/// An answer's text, without what time alone changes: when a key was used last, which is written down some time later, and
/// reading uses the key; what the last day was, and how old something is.
pub(super) fn without_times(operation: &Operation, answer: Answer) -> String {
    let members: &[&str] = match operation.id.as_str() {
        "getUsage" => &["since", "until"],
        "getSubscriptionStats" => &["oldest_undelivered_age_seconds"],
        _ if answer.text.contains("last_used_at") => &[],
        _ => return answer.text,
    };
    let mut shown = answer.expect(200);
    for member in members {
        assert!(shown.get(*member).is_some(), "{}: {shown}", operation.id);
        shown[*member] = Value::Null;
    }
    for key in shown["data"].as_array_mut().into_iter().flatten() {
        key["last_used_at"] = Value::Null;
    }
    shown.to_string()
}
