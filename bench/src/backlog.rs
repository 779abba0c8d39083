//! What a backlog for one dead subscriber costs: the others, and a worker's memory; and how it drains once the subscriber
//! is back.
//!
//! The others get their events at one rate all the while: before it, while it grows (at a rate of its own, or as fast as
//! ingest takes it), while it lies there, while it drains, and after.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;
use serde_json::{Value, json};

use crate::{
    Args,
    deployment::Deployment,
    load::{Load, OPEN_CONNECTIONS, Post, Shape},
    receiver::{self, Receiver, Reply},
    report::Times,
    spread::Spread,
};

/// How often memory is read, and what is going on is asked.
const SLICE: Duration = Duration::from_secs(3);
/// Without any arrival for so long, a backlog is taken to drain no more.
const PATIENCE: Duration = Duration::from_mins(7);

struct Phase {
    name: &'static str,
    took: Duration,
    posts: Vec<Post>,
    /// The most that a worker had resident in it, in MB.
    resident: f64,
}

/// What goes on all the while.
struct Others<'a> {
    deployment: &'a Deployment,
    load: Load,
    shape: Shape,
    next: u64,
}

impl Others<'_> {
    /// Posts for the others until `done`, and at least for `least`.
    async fn phase(
        &mut self,
        name: &'static str,
        least: Duration,
        mut done: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Phase> {
        let begun = Instant::now();
        let mut phase = Phase {
            name,
            took: Duration::ZERO,
            posts: Vec::new(),
            resident: 0.0,
        };
        loop {
            let run = self.load.run(self.shape, SLICE, self.next).await?;
            self.next = run.posted();
            phase.posts.extend(run.posts);
            for memory in self.deployment.worker_memory()? {
                phase.resident = phase.resident.max(memory.resident);
            }
            phase.took = begun.elapsed();
            if phase.took >= least && done().await? {
                eprintln!("{name}: {:.0} s", phase.took.as_secs_f64());
                return Ok(phase);
            }
        }
    }
}

/// Measures, and prints a table.
pub async fn run(args: &Args) -> anyhow::Result<Value> {
    let rate = args.rate.unwrap_or(300);
    println!(
        "backlog on {:?}: {} events for a dead subscriber, beside {rate} events/s for {} subscriptions of {} organizations\n",
        args.engine,
        args.count,
        args.subscriptions,
        args.organizations()
    );
    let alive = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&alive);
    let dead = receiver::start_with(move |_| {
        if told.load(Ordering::Relaxed) {
            Reply::Answer
        } else {
            Reply::Close
        }
    })
    .await?;
    let healthy = receiver::start().await?;
    let Spread { deployment, load } =
        Spread::start(args, args.workers(), healthy.address, &json!({})).await?;
    // Retries often enough that what failed before the circuit opened is seen to arrive.
    let subscription = json!({
        "url": format!("http://{}/dead", dead.address), "max_in_flight": 256, "retry_schedule_seconds": vec![10; 20],
    });
    deployment.subscribe_as(&deployment.key, &subscription).await?;
    let backlog = Load {
        target: deployment.ingest,
        keys: vec![deployment.key.clone()],
        types: 1,
        payload: args.payload_bytes as usize,
        batch: 1,
    };
    let others = Others {
        deployment: &deployment,
        load,
        shape: Shape::Open {
            rate,
            connections: OPEN_CONNECTIONS,
        },
        next: 0,
    };
    let measured = phases(args, others, &backlog, &dead, &healthy, &alive).await;
    let memory = deployment.worker_memory()?;
    deployment.end().await?;
    let (phases, accepted) = measured?;

    let (arrivals, arrived) = (healthy.arrivals(), dead.count(|_| true) as u64);
    let before = times(&phases[0], &arrivals);
    let mut rows = Vec::new();
    println!("phase         took s   others' p50 ms   p99 ms   to before   lost   worker MB");
    for phase in &phases {
        let (these, lost) = (times(phase, &arrivals), lost(phase, &arrivals));
        let ratio = these.p99 / before.p99;
        println!(
            "{:<10}  {:>8.0}   {:>14.2}   {:>6.2}   × {ratio:>6.2}   {lost:>4}   {:>9.1}",
            phase.name,
            phase.took.as_secs_f64(),
            these.p50,
            these.p99,
            phase.resident
        );
        rows.push(json!({
            "phase": phase.name, "seconds": phase.took.as_secs_f64(), "others": these.to_json(), "p99_to_before": ratio,
            "lost": lost, "worker_resident_mb": phase.resident,
        }));
    }
    let drained = arrived as f64 / phases[3].took.as_secs_f64();
    println!(
        "\n{accepted} accepted for the dead subscriber, {arrived} arrived once it was back: {drained:.0}/s"
    );
    for memory in &memory {
        println!("{}: {:.1} MB at most", memory.process, memory.peak);
    }
    Ok(json!({
        "scenario": "backlog", "engine": format!("{:?}", args.engine), "accepted": accepted, "arrived": arrived,
        "drained_per_second": drained, "phases": rows,
        "worker_peak_mb": memory.iter().map(|memory| memory.peak).collect::<Vec<_>>(),
    }))
}

async fn phases(
    args: &Args,
    mut others: Others<'_>,
    backlog: &Load,
    dead: &Receiver,
    healthy: &Receiver,
    alive: &AtomicBool,
) -> anyhow::Result<(Vec<Phase>, u64)> {
    let deployment = others.deployment;
    let quiet = Duration::from_secs(15);
    let warmed = others.load.run(others.shape, SLICE, 0).await?.posted();
    others.next = warmed;
    healthy.settle(warmed).await;
    let before = others.phase("before", quiet, async || Ok(true)).await?;

    let stored = async || -> anyhow::Result<f64> {
        let stored = deployment.worker_metrics("triggers_events_stored_total").await?;
        Ok(stored.iter().sum())
    };
    let at_first = stored().await?;
    let accepted = Cell::new(None);
    let posting = async {
        let (shape, length) = if let Some(rate) = args.growth {
            let seconds = args.count as f64 / f64::from(rate);
            (
                Shape::Open {
                    rate,
                    connections: OPEN_CONNECTIONS,
                },
                Duration::from_secs_f64(seconds),
            )
        } else {
            let (connections, count) = (args.connections.max(64), args.count);
            (Shape::Counted { connections, count }, Duration::ZERO)
        };
        let run = backlog.run(shape, length, 0).await?;
        accepted.set(Some(
            run.posts.iter().filter(|post| post.status == 202).count() as u64
        ));
        anyhow::Ok(())
    };
    let all_stored = async || {
        let Some(accepted) = accepted.get() else {
            return Ok(false);
        };
        // The others' are counted, too: the queue must be empty as well.
        let waiting = deployment.worker_metrics("triggers_queue_frames").await?;
        Ok(stored().await? - at_first >= accepted as f64 && waiting.iter().all(|frames| *frames == 0.0))
    };
    let growing = others.phase("growing", quiet, all_stored);
    let ((), growing) = tokio::try_join!(posting, growing)?;
    let accepted = accepted.get().unwrap_or_default();
    let lying = others.phase("lying", quiet, async || Ok(true)).await?;

    alive.store(true, Ordering::Relaxed);
    let (mut seen, mut since) = (0, Instant::now());
    let all_arrived = async || {
        // What has arrived is noted here alone.
        dead.go_on(Duration::from_millis(1)).await;
        let now = dead.count(|_| true) as u64;
        if now > seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            bail!("the backlog drains no more: {now} of {accepted} have arrived");
        }
        Ok(now >= accepted)
    };
    let draining = others.phase("draining", Duration::ZERO, all_arrived).await?;
    let after = others.phase("after", quiet, async || Ok(true)).await?;
    healthy.settle(others.next).await;
    Ok((vec![before, growing, lying, draining, after], accepted))
}

fn times(phase: &Phase, arrivals: &receiver::Arrivals) -> Times {
    Times::of(phase.posts.iter().filter_map(|post| {
        let (at, _) = arrivals.get(&post.number)?;
        Some(at.saturating_duration_since(post.due))
    }))
}

/// How many were accepted and did not arrive.
fn lost(phase: &Phase, arrivals: &receiver::Arrivals) -> usize {
    let accepted = phase.posts.iter().filter(|post| post.status == 202);
    accepted
        .filter(|post| !arrivals.contains_key(&post.number))
        .count()
}
