//! Nothing crosses organizations, on any route: every operation of the served document is called with one organization's key
//! and another's ids, wherever it takes ids. The answer is 404, or shows nothing of the other's; and all that the other has is
//! what it was.
//!
//! What is called comes from the document. An operation that writes must say here what it is sent: one that does not fails the
//! test by its name, so that a new route cannot be forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use harness::{
    Access, Answer, Client, Engine, EventStream, Operation, Place, Receiver, World, eventually,
    on_both_engines,
};
use http::Method;
use serde_json::{Value, json};
use type_safe_id::{DynamicType, TypeSafeId};

on_both_engines!(no_operation_shows_or_changes_what_is_anothers);

const SOON: Duration = Duration::from_secs(20);

/// What is in all that the owner says, and in nothing that anybody else does.
const MARK: &str = "of-alpha-alone";

/// What an operation is sent. Ids are put in where the document says that there are some.
fn body_of(operation: &Operation) -> Option<Value> {
    let event = json!({"type": "pulled.by_stranger", "payload": {}, "dedup_id": MARK});
    Some(match operation.id.as_str() {
        "postEvent" | "compatPostEvent" => event,
        "postEvents" => json!([event]),
        "createKey" => json!({"name": "a stranger's key"}),
        "updateOrganization" => json!({"name": "a stranger's"}),
        "createSubscription" => json!({"url": "http://127.0.0.1:9/stranger"}),
        "updateSubscription" => json!({"description": "a stranger's", "event_types": ["stranger.*"]}),
        "extendPulled" => json!({"lease_seconds": 1}),
        "pullEvents" => json!({"max": 1_000, "lease_seconds": 1}),
        "rotateKey" | "rotateSecret" => json!({"overlap_seconds": 0}),
        "acknowledgeEvents" | "acknowledgePulled" | "releasePulled" | "createReplay" => json!({}),
        "createOrganization" => json!({"name": "a stranger's", "tier": "free"}),
        "compatGenerateKey" => json!({"organization_name": "a stranger's", "tier": "free"}),
        "compatConfigureWebhook" => json!({"webhook_url": "http://127.0.0.1:9/stranger"}),
        _ => return None,
    })
}

/// Whether it is known what to send to an operation: one that writes must be named here or in [`body_of`], unless it is all
/// said by the ids in its path.
fn is_known(operation: &Operation) -> bool {
    if operation.has_body {
        body_of(operation).is_some()
    } else {
        let is_said_by_ids = operation.ids_in(Place::Path).next().is_some();
        operation.method == Method::GET || is_said_by_ids || operation.id == "compatRotateKey"
    }
}

/// The UUID of an id.
fn uuid(id: &str) -> String {
    let id: TypeSafeId<DynamicType> = id.parse().expect("an id is a TypeID");
    id.uuid().to_string()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// An organization with something of everything.
struct Party {
    client: Client,
    /// Its ids, by their prefix.
    ids: BTreeMap<String, Vec<String>>,
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

    async fn event(&mut self, event_type: &str, mark: &str) -> String {
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

    fn new(client: Client) -> Self {
        let ids = BTreeMap::from([("org".to_owned(), vec![client.organization.clone()])]);
        Self { client, ids }
    }

    /// Events in every state: delivered, leased, parked, in the inbox; and whatever else there may be.
    async fn owner(world: &World, receiver: &Receiver) -> Self {
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
        let pulled = party
            .client
            .post(&path, &json!({"lease_seconds": 3_600, "wait_ms": 20_000}));
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
    async fn stranger(world: &World) -> Self {
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

    /// What must be in no answer to anybody else.
    fn marks(&self) -> BTreeSet<String> {
        let ids = self.ids.values().flatten();
        let mut marks: BTreeSet<_> = ids.flat_map(|id| [id.clone(), uuid(id)]).collect();
        marks.insert(MARK.to_owned());
        marks
    }

    /// All that its own key shows of it, by what was asked.
    async fn everything(&self, operations: &[Operation]) -> BTreeMap<String, String> {
        let mut everything = BTreeMap::new();
        let reads = operations.iter().filter(|operation| {
            // Statistics are of the last minutes, and a stream does not end.
            operation.method == Method::GET
                && operation.access == Access::Key
                && !operation.streams
                && operation.id != "getSubscriptionStats"
        });
        for operation in reads {
            for ids in choices(operation, |prefix| self.ids[prefix].clone()) {
                let call = Call::of(operation, &ids);
                let answer = call.send(&self.client).await;
                everything.insert(call.path, without_last_use(answer));
            }
        }
        everything
    }
}

/// An answer's text. When a key was used last is written down some time later, and reading uses the key.
fn without_last_use(answer: Answer) -> String {
    if !answer.text.contains("last_used_at") {
        return answer.text;
    }
    let mut list = answer.expect(200);
    for key in list["data"].as_array_mut().expect("a list") {
        key["last_used_at"] = Value::Null;
    }
    list.to_string()
}

/// Every choice of ids for an operation's path, from those that there are of each kind.
fn choices(operation: &Operation, there_are: impl Fn(&str) -> Vec<String>) -> Vec<Vec<String>> {
    let mut choices = vec![Vec::new()];
    for (_, prefix) in operation.ids_in(Place::Path) {
        let ids = there_are(prefix);
        let longer = choices.iter().flat_map(|choice| {
            ids.iter().map(move |id| {
                let mut longer: Vec<String> = choice.clone();
                longer.push(id.clone());
                longer
            })
        });
        choices = longer.collect();
    }
    choices
}

/// A request to be made.
struct Call<'a> {
    operation: &'a Operation,
    path: String,
    header: Option<(String, String)>,
    body: Option<Value>,
}

impl<'a> Call<'a> {
    fn of(operation: &'a Operation, ids: &[String]) -> Self {
        let mut path = operation.path.clone();
        for ((parameter, _), id) in operation.ids_in(Place::Path).zip(ids) {
            path = path.replace(&format!("{{{}}}", parameter.name), id);
        }
        assert!(
            !path.contains('{'),
            "{} has a parameter that is no id",
            operation.id
        );
        if operation.asks("wait_ms") {
            path.push_str("?wait_ms=0");
        }
        Self {
            operation,
            path,
            header: None,
            body: None,
        }
    }

    fn with_body(mut self, ids: &BTreeMap<String, Vec<String>>) -> Self {
        self.body = body_of(self.operation).map(|body| self.operation.body_with(body, ids));
        self
    }

    fn asking(mut self, name: &str, value: &str) -> Self {
        let sign = if self.path.contains('?') { '&' } else { '?' };
        self.path = format!("{}{sign}{name}={value}", self.path);
        self
    }

    fn request(&self, client: &Client) -> reqwest::RequestBuilder {
        let mut request = client.request(self.operation.method.clone(), &self.path);
        // It is in every problem, and is to be the same each time.
        request = request.header("x-request-id", "the-matrix");
        if let Some((name, value)) = &self.header {
            request = request.header(name, value);
        }
        if let Some(body) = &self.body {
            request = request.json(body);
        }
        request
    }

    async fn send(&self, client: &Client) -> Answer {
        client.send(self.request(client)).await
    }

    /// Sends it, and looks whether the answer shows anything that was not in the request.
    async fn shows_nothing_of(&self, marks: &BTreeSet<String>, client: &Client) -> Answer {
        let answer = self.send(client).await;
        let asked = format!("{} {:?} {:?}", self.path, self.header, self.body);
        // An id may be said back, in either form.
        let is_said =
            |mark: &str| asked.contains(mark) || (mark.contains('_') && asked.contains(&uuid(mark)));
        for mark in marks.iter().filter(|mark| *mark == MARK || !is_said(mark)) {
            assert!(
                !answer.text.contains(mark),
                "{} shows {mark}: {answer:?}",
                self.what()
            );
        }
        assert!(answer.status < 500, "{}: {answer:?}", self.what());
        answer
    }

    fn what(&self) -> String {
        format!("{} ({} {})", self.operation.id, self.operation.method, self.path)
    }
}

/// What is another's is not there, alone or beside what is the stranger's own.
async fn is_not_there(operation: &Operation, owner: &Party, stranger: &Party, unknown: &Party) {
    let marks = owner.marks();
    let all = |prefix: &str| {
        let mut all = owner.ids[prefix].clone();
        all.push(uuid(&all[0]));
        all.extend_from_slice(&stranger.ids[prefix]);
        all
    };
    for ids in choices(operation, all) {
        let is_own = |id: &String| stranger.ids.values().any(|own| own.contains(id));
        if ids.iter().all(is_own) {
            continue;
        }
        let call = Call::of(operation, &ids).with_body(&owner.ids);
        let answer = call.shows_nothing_of(&marks, &stranger.client).await;
        let what = call.what();
        if operation.id == "eraseEvent" {
            // An id that is not stored is erased when it comes. What is another's is as if it were not stored: what is told
            // of it is what is told of an id that is nobody's.
            let nobodys = Call::of(operation, &unknown.ids["evt"])
                .send(&stranger.client)
                .await;
            assert_eq!(
                (answer.status, &answer.text),
                (nobodys.status, &nobodys.text),
                "{what}"
            );
        } else {
            assert_eq!(answer.status, 404, "{what}: {answer:?}");
            answer.problem(404, "not_found");
        }
    }
    for ids in choices(operation, |prefix| stranger.ids[prefix].clone()) {
        let call = Call::of(operation, &ids).with_body(&owner.ids);
        let answer = call.shows_nothing_of(&marks, &stranger.client).await;
        none_is_found(operation, &answer);
    }
}

/// Of ids in a body, none is found.
fn none_is_found(operation: &Operation, answer: &Answer) {
    if !operation.ids_in_body.is_empty() && answer.status == 200 {
        let answer = answer.json();
        let results = answer["results"].as_array().expect("a result for each id");
        assert!(!results.is_empty(), "{}: {answer}", operation.id);
        for result in results {
            assert_eq!(result["status"], "not_found", "{}: {answer}", operation.id);
            assert_eq!(result["event_id"], Value::Null, "{}: {answer}", operation.id);
        }
    }
}

/// A list has what is its reader's own alone: asked for with another's ids, or where another's list goes on.
async fn shows_its_readers_own(operation: &Operation, owner: &Party, stranger: &Party) {
    let marks = owner.marks();
    if !operation.streams {
        let call = Call::of(operation, &[]).with_body(&owner.ids);
        let answer = call.shows_nothing_of(&marks, &stranger.client).await;
        assert!((200..300).contains(&answer.status), "{}: {answer:?}", call.what());
        none_is_found(operation, &answer);
    }
    let mut calls = Vec::new();
    for (parameter, prefix) in operation.ids_in(Place::Query) {
        for id in &owner.ids[prefix] {
            calls.push(Call::of(operation, &[]).asking(&parameter.name, id));
        }
    }
    for (parameter, prefix) in operation.ids_in(Place::Header) {
        for id in &owner.ids[prefix] {
            let mut call = Call::of(operation, &[]);
            call.header = Some((parameter.name.clone(), id.clone()));
            calls.push(call);
        }
    }
    if operation.asks("cursor") {
        let first = Call::of(operation, &[])
            .asking("limit", "1")
            .send(&owner.client)
            .await;
        if let Some(cursor) = first.expect(200)["next_cursor"].as_str() {
            calls.push(Call::of(operation, &[]).asking("cursor", cursor));
        }
    }
    for call in calls {
        // A stream that begins would not end: the harness gives up on it, and so does the test.
        let answer = call.shows_nothing_of(&marks, &stranger.client).await;
        assert!(
            matches!(answer.status, 200 | 404 | 422),
            "{}: {answer:?}",
            call.what()
        );
    }
}

/// Only the deployment's admin token may; and what may be open here is not.
async fn is_refused(operation: &Operation, stranger: &Party) {
    let ids = |_: &str| vec![uuid(&stranger.ids["evt"][0])];
    for ids in choices(operation, ids) {
        let call = Call::of(operation, &ids).with_body(&stranger.ids);
        let answer = call.send(&stranger.client).await;
        match answer.status {
            401 => answer.problem(401, "unauthorized"),
            403 => answer.problem(403, "forbidden"),
            _ => panic!("{}: {answer:?}", call.what()),
        };
    }
}

/// The control: with its owner's key, each of the operations finds something. It goes by the calls that strangers made.
async fn is_there_for_its_owner(operations: &[Operation], owner: &Party) {
    let by_ids = operations.iter().filter(|operation| {
        operation.access == Access::Key && operation.ids_in(Place::Path).next().is_some()
    });
    let (mut deletions, others): (Vec<_>, Vec<_>) =
        by_ids.partition(|operation| operation.method == Method::DELETE);
    // What is in a thing goes before the thing.
    deletions.sort_by_key(|operation| std::cmp::Reverse(operation.path.len()));
    for operation in others.into_iter().chain(deletions) {
        let mut found = false;
        for ids in choices(operation, |prefix| owner.ids[prefix].clone()) {
            let answer = Call::of(operation, &ids)
                .with_body(&owner.ids)
                .send(&owner.client)
                .await;
            assert!(answer.status < 500, "{}: {answer:?}", operation.id);
            found |= answer.status != 404;
        }
        assert!(found, "{} finds nothing of its owner's either", operation.id);
    }
}

async fn no_operation_shows_or_changes_what_is_anothers(engine: Engine) {
    let world = World::start(engine).await;
    let receiver = Receiver::start().await;
    let document = world.get(world.api(), "/openapi.json").await;
    for node in world.nodes() {
        let served = world.get(node, "/openapi.json").await;
        assert_eq!(
            served.text,
            document.text,
            "{} serves another document",
            node.program()
        );
    }
    let operations = Operation::all(&document.expect(200));
    let unknown = operations.iter().filter(|operation| !is_known(operation));
    let unknown: Vec<_> = unknown.map(|operation| &operation.id).collect();
    assert!(
        unknown.is_empty(),
        "the matrix does not know what to send to {unknown:?}"
    );

    // Whoever follows events gets what is its own: the owner's come first, and are not seen.
    let mut follower = Party::new(world.organization().await);
    let mut streams = Vec::new();
    for operation in operations.iter().filter(|operation| operation.streams) {
        streams.push(EventStream::open(Call::of(operation, &[]).request(&follower.client)).await);
    }
    let owner = Party::owner(&world, &receiver).await;
    let own = follower.event("own.one", "a follower's").await;
    assert!(!streams.is_empty());
    for stream in &mut streams {
        let first = stream.next(SOON).await.expect("an event");
        assert_eq!(first.id, own);
    }

    let before = owner.everything(&operations).await;
    let pushed = receiver.count("/alpha");
    for operation in &operations {
        let stranger = Party::stranger(&world).await;
        match operation.access {
            Access::Administration => is_refused(operation, &stranger).await,
            Access::Open => {
                for node in world.nodes() {
                    let client = stranger.client.at(node);
                    let call = Call::of(operation, &[]);
                    let answer = call.shows_nothing_of(&owner.marks(), &client).await;
                    assert_eq!(answer.status, 200, "{}", call.what());
                }
            }
            Access::Key if operation.ids_in(Place::Path).next().is_some() => {
                is_not_there(operation, &owner, &stranger, &follower).await;
            }
            Access::Key => shows_its_readers_own(operation, &owner, &stranger).await,
        }
    }
    let after = owner.everything(&operations).await;
    for (path, was) in &before {
        assert_eq!(&after[path], was, "{path} is not what it was");
    }
    assert_eq!(receiver.count("/alpha"), pushed, "nothing more was sent");
    is_there_for_its_owner(&operations, &owner).await;
}
