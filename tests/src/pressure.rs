//! Producers that post on and on, more than their organization may, and count what becomes of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{task::JoinSet, time::MissedTickBehavior};

use crate::{Client, Node};

/// What became of what was posted to one node.
#[derive(Debug, Default)]
struct Counted {
    accepted: AtomicU64,
    limited: AtomicU64,
}

/// Producers at some nodes. They end when this is dropped.
pub struct Pressure {
    nodes: Vec<Arc<Counted>>,
    stopping: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Pressure {
    /// Posts so many events a second to each of these nodes, one after another. Whatever is answered but 202 and 429 fails the
    /// test when it is stopped.
    pub fn start(client: &Client, nodes: &[(&Arc<Node>, u32)]) -> Self {
        let mut pressure = Self {
            nodes: Vec::new(),
            stopping: Arc::default(),
            tasks: JoinSet::new(),
        };
        for (node, per_second) in nodes {
            let counted = Arc::new(Counted::default());
            pressure.nodes.push(Arc::clone(&counted));
            let (client, stopping) = (client.posting_to(node), Arc::clone(&pressure.stopping));
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / *per_second);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pressure.tasks.spawn(async move {
                while !stopping.load(Ordering::SeqCst) {
                    ticks.tick().await;
                    let event = json!({"type": "order.placed", "payload": 1});
                    let answer = client.post("/v1/events", &event).await;
                    match answer.status {
                        202 => counted.accepted.fetch_add(1, Ordering::SeqCst),
                        429 => counted.limited.fetch_add(1, Ordering::SeqCst),
                        _ => panic!("{answer:?}"),
                    };
                }
            });
        }
        pressure
    }

    /// Accepted by each node until now.
    pub fn accepted(&self) -> Vec<u64> {
        let accepted = |counted: &Arc<Counted>| counted.accepted.load(Ordering::SeqCst);
        self.nodes.iter().map(accepted).collect()
    }

    /// Lets it go on for a while; gives how many more were accepted, in all, and in how long.
    pub async fn go_on(&self, duration: Duration) -> (u64, Duration) {
        let (begun, before) = (Instant::now(), self.accepted());
        tokio::time::sleep(duration).await;
        let after = self.accepted();
        (
            after.iter().sum::<u64>() - before.iter().sum::<u64>(),
            begun.elapsed(),
        )
    }

    /// Stops, once what is under way is answered; gives how many were accepted and how many refused.
    pub async fn stop(mut self) -> (u64, u64) {
        self.stopping.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(failed) = ended {
                std::panic::resume_unwind(failed.into_panic());
            }
        }
        let limited = |counted: &Arc<Counted>| counted.limited.load(Ordering::SeqCst);
        (self.accepted().iter().sum(), self.nodes.iter().map(limited).sum())
    }
}
