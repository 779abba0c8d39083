//! The ledger of a load: what was posted and answered, to be held against what arrived.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::{JoinHandle, JoinSet},
};

use crate::{Client, Received, Receiver, eventually};

/// How long a producer waits for an answer: longer than any may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a producer keeps trying to post an event that has a key.
const KEYED_PATIENCE: Duration = Duration::from_secs(40);
/// How long all may take to arrive once the faults are over: leases of the killed must run out first.
const SETTLING: Duration = Duration::from_secs(75);

/// One request of the load, and what came of it.
#[derive(Debug, Clone)]
pub struct Post {
    /// The event's number, which its payload holds.
    pub number: u64,
    /// When it was sent.
    pub at: Instant,
    /// The status of the answer; `None` where the connection was refused or broke, or no answer came.
    pub status: Option<u16>,
    /// The id that was answered.
    pub id: Option<String>,
    /// When to try again, as the answer said, in seconds.
    pub retry_after: Option<u64>,
    /// Whether the connection was refused or closed, rather than left without an answer.
    pub closed: bool,
    /// How long it took.
    pub took: Duration,
}

/// A producer that posts at a steady rate. Every other event has a key and is posted until it is accepted; the rest are
/// posted once. Where there are several nodes they take turns, and every fourth key is posted at all of them at once.
pub struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Post>>,
    posts: Arc<Mutex<Vec<Post>>>,
    gate: Gate,
}

/// What every post passes: closed, it lets none pass.
type Gate = Arc<RwLock<()>>;

impl Load {
    /// Starts posting so many events a second.
    pub fn start(client: &Client, per_second: u32) -> Self {
        Self::start_at(vec![client.clone()], per_second)
    }

    /// Starts posting so many events a second, at several nodes: clients of one organization.
    pub fn start_at(nodes: Vec<Client>, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let posts = Arc::new(Mutex::new(Vec::new()));
        let gate = Gate::default();
        let task = tokio::spawn(produce(
            nodes,
            per_second,
            Arc::clone(&stop),
            (Arc::clone(&posts), Arc::clone(&gate)),
        ));
        Self {
            stop,
            task,
            posts,
            gate,
        }
    }

    /// Waits until nothing is being posted, and lets nothing be posted while what it gives is held.
    pub async fn holds(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.gate).write_owned().await
    }

    /// Every request so far.
    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    /// How many have been accepted so far.
    pub fn accepted(&self) -> usize {
        let posts = self.posts.lock().unwrap();
        posts.iter().filter(|post| post.status == Some(202)).count()
    }

    /// Waits until so many more have been accepted.
    pub async fn accepts(&self, more: usize, within: Duration) {
        let goal = self.accepted() + more;
        eventually("events are accepted", within, async || match self.accepted() {
            accepted if accepted >= goal => Ok(()),
            accepted => Err(format!("{accepted} of {goal} have been: {}", self.tally())),
        })
        .await;
    }

    /// Waits until all that has been accepted so far has arrived.
    pub async fn has_arrived(&self, receiver: &Receiver, path: &str) {
        let posts = self.posts.lock().unwrap().clone();
        all_arrive(&accepted(&posts), receiver, path).await;
    }

    fn tally(&self) -> String {
        tally(&self.posts.lock().unwrap())
    }

    /// Stops posting, and waits until every event with a key is accepted.
    pub async fn stop(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let posts = self.task.await.expect("the producer does not panic");
        println!("posted: {}", tally(&posts));
        Ledger { posts }
    }
}

fn tally(posts: &[Post]) -> String {
    let mut statuses = BTreeMap::new();
    for post in posts {
        let status = match post.status {
            Some(status) => status.to_string(),
            None if post.closed => "closed".to_owned(),
            None => "no answer".to_owned(),
        };
        *statuses.entry(status).or_insert(0) += 1;
    }
    format!("{statuses:?}")
}

async fn produce(
    nodes: Vec<Client>,
    per_second: u32,
    stop: Arc<AtomicBool>,
    (posts, gate): (Arc<Mutex<Vec<Post>>>, Gate),
) -> Vec<Post> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let due = begun.elapsed().as_millis() * u128::from(per_second) / 1000;
        while u128::from(number) < due {
            number += 1;
            for client in nodes_of(number, &nodes) {
                tasks.spawn(produce_one(
                    client.clone(),
                    number,
                    Arc::clone(&posts),
                    Arc::clone(&gate),
                ));
            }
        }
        while let Some(done) = tasks.try_join_next() {
            done.expect("posting does not panic");
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("posting does not panic");
    }
    let posts = posts.lock().unwrap();
    posts.clone()
}

/// Where an event is posted.
fn nodes_of(number: u64, nodes: &[Client]) -> &[Client] {
    if is_keyed(number) && (number / 2).is_multiple_of(4) {
        return nodes;
    }
    let turn = usize::try_from(number / 2).expect("a small number") % nodes.len();
    &nodes[turn..=turn]
}

async fn produce_one(client: Client, number: u64, posts: Arc<Mutex<Vec<Post>>>, gate: Gate) {
    let keyed = is_keyed(number);
    let begun = Instant::now();
    loop {
        let post = {
            let _passing = gate.read().await;
            post_once(&client, number, keyed).await
        };
        let accepted = post.status == Some(202);
        let pause = match post.retry_after {
            Some(seconds) => Duration::from_secs(seconds),
            None => Duration::from_millis(100),
        };
        posts.lock().unwrap().push(post);
        if accepted || !keyed || begun.elapsed() > KEYED_PATIENCE {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Whether the event of this number has a key.
pub fn is_keyed(number: u64) -> bool {
    number.is_multiple_of(2)
}

async fn post_once(client: &Client, number: u64, keyed: bool) -> Post {
    let mut request = client
        .request(Method::POST, "/v1/events")
        .timeout(ANSWER_TIMEOUT)
        .json(&json!({
            "type": "load.posted",
            "payload": {"number": number, "organization": client.organization},
        }));
    if keyed {
        request = request.header("idempotency-key", format!("load-{number}"));
    }
    let begun = Instant::now();
    let mut post = Post {
        number,
        at: begun,
        status: None,
        id: None,
        retry_after: None,
        closed: false,
        took: Duration::ZERO,
    };
    match request.send().await {
        Ok(response) => {
            post.status = Some(response.status().as_u16());
            let retry_after = response.headers().get("retry-after");
            post.retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
            match response.json::<Value>().await {
                Ok(answer) => post.id = answer["id"].as_str().map(str::to_owned),
                // The head of the answer came, and not its body: nothing was promised.
                Err(error) => (post.status, post.closed) = (None, !error.is_timeout()),
            }
        }
        Err(error) => post.closed = !error.is_timeout(),
    }
    post.took = begun.elapsed();
    post
}

/// Everything that a load posted.
pub struct Ledger {
    posts: Vec<Post>,
}

impl Ledger {
    /// Every request.
    pub fn posts(&self) -> &[Post] {
        &self.posts
    }

    /// Fails the test for any answer but these, or where nothing was answered at all. Connections may be closed.
    pub fn allows(&self, statuses: &[u16]) {
        for post in &self.posts {
            match post.status {
                Some(status) => assert!(statuses.contains(&status), "{post:?}"),
                None => assert!(post.closed, "a request was left without an answer: {post:?}"),
            }
            if post.status == Some(503) {
                assert!(
                    post.retry_after.is_some(),
                    "a 503 says when to try again: {post:?}"
                );
            }
        }
    }

    /// Fails the test where an answer took longer than this.
    pub fn answers_within(&self, most: Duration) {
        for post in self.posts.iter().filter(|post| post.status.is_some()) {
            assert!(post.took <= most, "an answer took too long: {post:?}");
        }
    }

    /// Waits until every accepted event has arrived, and holds the ledger against what did:
    /// every event accepted has arrived, under the id that was answered or the one that it resolves to; one with a key
    /// has arrived as one event however often it was posted; each has one delivery, which is done.
    pub async fn settle(&self, client: &Client, receiver: &Receiver, path: &str) {
        let accepted = accepted(&self.posts);
        assert!(!accepted.is_empty(), "the load had no event accepted");
        let arrived = all_arrive(&accepted, receiver, path).await;
        for (number, ids) in &arrived {
            assert!(
                !is_keyed(*number) || ids.len() == 1,
                "one key became several events: {number}: {ids:?}"
            );
        }
        let answered = accepted
            .iter()
            .flat_map(|(number, ids)| ids.iter().map(|id| (*number, *id)));
        let arrived = &arrived;
        stream::iter(answered)
            .for_each_concurrent(16, async |(number, id)| {
                let event = client.event_becomes(id, "delivered").await;
                let deliveries = event["deliveries"].as_array().map_or(0, Vec::len);
                assert_eq!(deliveries, 1, "{event}");
                let first = event["id"].as_str().unwrap_or_default();
                assert!(
                    arrived[&number].contains(first),
                    "{id} resolves to {first}, but {:?} arrived",
                    arrived[&number]
                );
            })
            .await;
    }
}

/// The events that were accepted: their numbers, with every id answered.
fn accepted(posts: &[Post]) -> BTreeMap<u64, Vec<&str>> {
    let mut accepted = BTreeMap::<u64, Vec<&str>>::new();
    for post in posts.iter().filter(|post| post.status == Some(202)) {
        let id = post.id.as_deref().expect("what is accepted has an id");
        accepted.entry(post.number).or_default().push(id);
    }
    accepted
}

/// Waits until all of these have arrived, and gives what has.
async fn all_arrive(
    accepted: &BTreeMap<u64, Vec<&str>>,
    receiver: &Receiver,
    path: &str,
) -> HashMap<u64, BTreeSet<String>> {
    eventually("every accepted event arrives", SETTLING, async || {
        let arrived = by_number(&receiver.received(path));
        let missing: Vec<_> = accepted
            .iter()
            .filter(|(number, _)| !arrived.contains_key(number))
            .take(5)
            .collect();
        if missing.is_empty() {
            return Ok(arrived);
        }
        // Looking is costly while thousands are here.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Err(format!(
            "{} of {} have; missing: {missing:?}",
            arrived.len(),
            accepted.len()
        ))
    })
    .await
}

/// The webhook ids that arrived, by the number in the payload.
fn by_number(received: &[Received]) -> HashMap<u64, BTreeSet<String>> {
    let mut arrived = HashMap::<u64, BTreeSet<String>>::new();
    for webhook in received {
        let data: Value = serde_json::from_str(webhook.envelope().data.get()).expect("the payload is JSON");
        let number = data["number"].as_u64().expect("a payload of the load");
        arrived
            .entry(number)
            .or_default()
            .insert(webhook.webhook_id().to_owned());
    }
    arrived
}
