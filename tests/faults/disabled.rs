//! A subscription in order that is disabled for a while and enabled again, over and over, whatever fails meanwhile: what comes is
//! parked, and arrives once it is enabled.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{Client, Receiver};
use http::Method;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::{sync::Notify, task::JoinHandle};

use crate::invariants::Outcome;

/// For how long it is enabled, and for how long it is not, in milliseconds.
const ENABLED: std::ops::Range<u64> = 30_000..40_000;
const DISABLED: std::ops::Range<u64> = 8_000..10_000;
/// How long it is enabled at first: a run of one fault sees it disabled as well.
const AT_FIRST: Duration = Duration::from_secs(2);
/// How long workers may go on with what they have: word of it may be lost, and they look again every three seconds.
const NOTICED: Duration = Duration::from_secs(6);
/// How many may come later than that: what each worker was about to send when it was made to hang comes when it wakes.
const BELATED: usize = 2;
/// How long the api may take to answer.
const ANSWER: Duration = Duration::from_secs(15);

/// A time in which it was disabled.
#[derive(Debug)]
struct Spell {
    /// When that was answered.
    since: Instant,
    /// When it was first asked to enable it.
    until: Instant,
    /// How many of its deliveries were parked by then: as many as a page shows, at most.
    parked: usize,
}

/// What disables it and enables it.
pub struct Switch {
    over: Arc<Notify>,
    task: JoinHandle<Vec<Spell>>,
}

impl Switch {
    pub fn start(seed: u64, client: Client, subscription: String) -> Self {
        let over = Arc::new(Notify::new());
        let task = tokio::spawn(switch(seed, client, subscription, Arc::clone(&over)));
        Self { over, task }
    }

    /// Leaves it enabled; it has been disabled once at least.
    pub async fn stop(self) -> Spells {
        self.over.notify_one();
        Spells(
            self.task
                .await
                .expect("what is asked of the api is answered as it should be"),
        )
    }
}

async fn switch(seed: u64, client: Client, subscription: String, over: Arc<Notify>) -> Vec<Spell> {
    let mut rng = StdRng::seed_from_u64(seed);
    let path = format!("/v1/subscriptions/{subscription}");
    let parked = format!("/v1/deliveries?subscription={subscription}&status=parked&limit=1000");
    let mut spells = Vec::new();
    let mut enabled = AT_FIRST;
    loop {
        let mut is_over = tokio::time::timeout(enabled, over.notified()).await.is_ok();
        if is_over && !spells.is_empty() {
            return spells;
        }
        insist(&client, Method::POST, &format!("{path}/disable")).await;
        let since = Instant::now();
        let disabled = Duration::from_millis(rng.random_range(DISABLED));
        if spells.is_empty() {
            tokio::time::sleep(disabled).await;
        } else {
            is_over = tokio::time::timeout(disabled, over.notified()).await.is_ok();
        }
        let page = insist(&client, Method::GET, &parked).await;
        let parked = page["data"].as_array().map_or(0, Vec::len);
        let until = Instant::now();
        insist(&client, Method::POST, &format!("{path}/enable")).await;
        spells.push(Spell { since, until, parked });
        if is_over {
            return spells;
        }
        enabled = Duration::from_millis(rng.random_range(ENABLED));
    }
}

/// Asks again until it is answered with a 200. Until then the api may be away, or say that what it needs is.
async fn insist(client: &Client, method: Method, path: &str) -> Value {
    loop {
        let request = client.request(method.clone(), path).timeout(ANSWER);
        if let Ok(answer) = request.send().await {
            let status = answer.status().as_u16();
            let text = answer.text().await.unwrap_or_default();
            assert!(matches!(status, 200 | 503), "{method} {path}: {status} {text}");
            if let (200, Ok(body)) = (status, serde_json::from_str(&text)) {
                return body;
            }
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// The times in which it was disabled.
pub struct Spells(Vec<Spell>);

impl Spells {
    /// Something was parked, and none of it came until it was enabled. That all came in the end, and in order, is held by the
    /// ledger.
    pub fn hold(&self, receiver: &Receiver, path: &str) -> Outcome {
        let webhooks = receiver.received(path);
        for spell in &self.0 {
            let (from, until) = (spell.since + NOTICED, spell.until);
            let came = webhooks
                .iter()
                .filter(|webhook| (from..until).contains(&webhook.at));
            let came = came.count();
            if came > BELATED {
                return Err(format!(
                    "{came} arrived at {path} while it was disabled, of {spell:?}"
                ));
            }
        }
        let parked: usize = self.0.iter().map(|spell| spell.parked).sum();
        let seen = format!(
            "{} times disabled, with {parked} or more parked, none of which came",
            self.0.len()
        );
        if parked == 0 { Err(seen) } else { Ok(seen) }
    }
}
