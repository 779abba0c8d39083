//! A subscription that is pulled, whatever fails meanwhile: what is leased is nobody else's, what was acknowledged is never given
//! again, and nothing is lost.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use harness::Client;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::invariants::{Outcome, uuid_of};

/// How many pull at the same time.
const PULLERS: usize = 2;
/// For how long what they pull is theirs.
const LEASE: Duration = Duration::from_secs(5);
/// One in so many pulls is left as it is, as by somebody who ends before they are done: it comes again.
const LEFT: usize = 8;
const PAUSE: Duration = Duration::from_millis(250);
/// How long the api may take to answer.
const ANSWER: Duration = Duration::from_secs(15);

/// An event that a pull was answered with.
#[derive(Debug, Clone, Copy)]
struct Given {
    asked: Instant,
    answered: Instant,
}

#[derive(Default)]
struct Known {
    given: HashMap<Uuid, Vec<Given>>,
    /// When it was answered that an event is acknowledged.
    acknowledged: HashMap<Uuid, Instant>,
    left: usize,
}

/// Those who pull.
pub struct Pullers {
    settling: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    known: Arc<Mutex<Known>>,
    tasks: JoinSet<()>,
}

impl Pullers {
    pub fn start(client: &Client, subscription: &str) -> Self {
        let (settling, over, known) = (Arc::default(), Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        for _ in 0..PULLERS {
            let puller = Puller {
                client: client.clone(),
                path: format!("/v1/subscriptions/{subscription}"),
                settling: Arc::clone(&settling),
                over: Arc::clone(&over),
                known: Arc::clone(&known),
            };
            tasks.spawn(puller.pull());
        }
        Self {
            settling,
            over,
            known,
            tasks,
        }
    }

    /// Lets them leave nothing more.
    pub fn settle(&self) {
        self.settling.store(true, Ordering::Relaxed);
    }

    /// Ends them, after a last look for what must not come any more.
    pub async fn stop(self) -> Pulled {
        self.over.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        let known = std::mem::take(&mut *self.known.lock().unwrap());
        Pulled(known)
    }
}

struct Puller {
    client: Client,
    path: String,
    settling: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    known: Arc<Mutex<Known>>,
}

impl Puller {
    async fn pull(self) {
        for number in 1.. {
            let is_last = self.over.load(Ordering::Relaxed);
            let ids = self.pull_once().await;
            if !ids.is_empty() && !self.settling.load(Ordering::Relaxed) && number % LEFT == 0 {
                self.known.lock().unwrap().left += ids.len();
            } else if !ids.is_empty() {
                self.acknowledge(&ids).await;
            }
            if is_last {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn pull_once(&self) -> Vec<String> {
        let wanted = json!({"max": 20, "lease_seconds": LEASE.as_secs(), "wait_ms": 500});
        let asked = Instant::now();
        let Some(answer) = self.ask("pull", &wanted).await else {
            return Vec::new();
        };
        let answered = Instant::now();
        let mut ids = Vec::new();
        for event in answer["data"].as_array().expect("a list of events") {
            let own = event["payload"]["organization"] == *self.client.organization;
            assert!(own, "another organization's event was pulled: {event}");
            ids.push(event["id"].as_str().expect("an id").to_owned());
        }
        let mut known = self.known.lock().unwrap();
        for id in &ids {
            let given = known.given.entry(uuid_of(id)).or_default();
            given.push(Given { asked, answered });
        }
        ids
    }

    async fn acknowledge(&self, ids: &[String]) {
        let answer = loop {
            if let Some(answer) = self.ask("ack", &json!({"event_ids": ids})).await {
                break answer;
            }
            tokio::time::sleep(PAUSE).await;
        };
        let now = Instant::now();
        let results = answer["results"].as_array().expect("a list of results");
        assert_eq!(results.len(), ids.len(), "{answer}");
        let mut known = self.known.lock().unwrap();
        for (id, result) in ids.iter().zip(results) {
            let done = result["event_id"] == **id && result["status"] == "acknowledged";
            assert!(done, "{id} was acknowledged: {result}");
            known.acknowledged.entry(uuid_of(id)).or_insert(now);
        }
    }

    /// The answer, if there is one: the api may be away, or say that what it needs is.
    async fn ask(&self, what: &str, body: &Value) -> Option<Value> {
        let request = self
            .client
            .request(Method::POST, &format!("{}/{what}", self.path))
            .timeout(ANSWER)
            .json(body);
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        let text = answer.text().await.ok()?;
        assert!(matches!(status, 200 | 503), "{what}: {status} {text}");
        (status == 200).then(|| serde_json::from_str(&text).expect("the answer is JSON"))
    }
}

/// What came of it.
pub struct Pulled(Known);

impl Pulled {
    /// Each of these events was given and acknowledged: none while somebody else had it, and none once its acknowledgement was
    /// answered.
    pub fn hold(&self, events: &HashSet<Uuid>) -> Outcome {
        let Known {
            given,
            acknowledged,
            left,
        } = &self.0;
        let lost = events.iter().filter(|id| !acknowledged.contains_key(id)).count();
        if lost > 0 {
            return Err(format!(
                "{lost} of {} events were not pulled and acknowledged",
                events.len()
            ));
        }
        let mut times = 0;
        for (id, given) in given {
            times += given.len();
            let mut in_order = given.clone();
            in_order.sort_unstable_by_key(|given| given.answered);
            for (first, second) in in_order.iter().zip(in_order.iter().skip(1)) {
                // It began after it was asked for, and the store counts it from then on.
                let ends = first.asked + LEASE;
                if second.answered < ends {
                    let early = ends - second.answered;
                    return Err(format!(
                        "{id} was given again {early:?} before its lease had ended"
                    ));
                }
            }
            let done = acknowledged.get(id);
            if let Some(again) = given
                .iter()
                .find(|given| done.is_some_and(|done| given.asked > *done))
            {
                return Err(format!("{id} was acknowledged, and then given again: {again:?}"));
            }
        }
        Ok(format!(
            "{} events, given {times} times, {left} of them left to their leases; none again once acknowledged",
            events.len()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event that was given at these times, in seconds, and acknowledged at another.
    fn pulled(given: &[u64], acknowledged: u64) -> Outcome {
        let (begun, id) = (Instant::now(), Uuid::from_u128(1));
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut known = Known::default();
        let given = given.iter().map(|seconds| Given {
            asked: at(*seconds),
            answered: at(*seconds),
        });
        known.given.insert(id, given.collect());
        known.acknowledged.insert(id, at(acknowledged));
        Pulled(known).hold(&HashSet::from([id]))
    }

    #[test]
    fn what_must_not_be_is_seen() {
        pulled(&[0, 5], 6).unwrap();
        assert!(pulled(&[0, 4], 6).unwrap_err().contains("before its lease"));
        assert!(pulled(&[4, 0], 6).unwrap_err().contains("before its lease"));
        assert!(pulled(&[0, 20], 6).unwrap_err().contains("was acknowledged"));
        let lost = Pulled(Known::default()).hold(&HashSet::from([Uuid::from_u128(1)]));
        assert!(lost.unwrap_err().contains("not pulled"));
    }
}
