//! What connections that do nothing cost those that do something: one load without them and with them, in turn.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    Args,
    deployment::Deployment,
    http::Wire,
    isolation::median,
    load::{Load, Run, Shape},
    report::Times,
};

/// An idle connection is closed after ten seconds: what is measured ends before that.
const MOST: Duration = Duration::from_secs(8);
/// How many idle connections are opened at once.
const AT_ONCE: usize = 256;
/// How often a round is measured again in which an idle connection came to be too old.
const AGAIN: usize = 5;

struct Row {
    per_second: f64,
    times: Times,
    refused: usize,
    /// What ingest has resident, in MB.
    resident: f64,
}

/// Measures, and prints a table.
pub async fn run(args: &Args) -> anyhow::Result<Value> {
    let length = Duration::from_secs(args.seconds) / args.rounds;
    if length > MOST {
        bail!("a round of {length:?} is longer than an idle connection lives: at most {MOST:?}");
    }
    let deployment = Deployment::of(args, 0).await?;
    let measured = rounds(args, &deployment, length).await;
    deployment.end().await?;
    let rounds = measured?;
    println!(
        "idle: {} busy connections, without and beside {} idle ones; medians of {} round(s) of {:.0} s each\n",
        args.connections,
        args.idle,
        args.rounds,
        length.as_secs_f64()
    );
    println!("  idle   accepted/s   to none    p50 ms    p99 ms   p99 to none   refused   ingest MB");
    let mut rows = Vec::new();
    for at in 0..2 {
        let of = |value: fn(&Row) -> f64| median(rounds.iter().map(|round| value(&round[at])).collect());
        let to = |value: fn(&Row) -> f64| {
            let ratios = rounds.iter().map(|round| value(&round[at]) / value(&round[0]));
            median(ratios.collect())
        };
        let idle = [0, args.idle][at];
        let refused: usize = rounds.iter().map(|round| round[at].refused).sum();
        let resident = rounds.iter().map(|round| round[at].resident).fold(0.0, f64::max);
        println!(
            "{idle:>6}  {:>11.0}   × {:>5.2}  {:>8.2}  {:>8.2}   × {:>9.2}  {refused:>8}  {resident:>10.1}",
            of(|row| row.per_second),
            to(|row| row.per_second),
            of(|row| row.times.p50),
            of(|row| row.times.p99),
            to(|row| row.times.p99),
        );
        rows.push(json!({
            "idle": idle, "accepted_to_none": to(|row| row.per_second), "p99_to_none": to(|row| row.times.p99),
            "refused": refused, "ingest_mb": resident,
            "rounds": rounds.iter().map(|round| json!({
                "accepted_per_second": round[at].per_second, "accepted": round[at].times.to_json(),
            })).collect::<Vec<_>>(),
        }));
    }
    Ok(json!({"scenario": "idle", "busy": args.connections, "rows": rows}))
}

async fn rounds(args: &Args, deployment: &Deployment, length: Duration) -> anyhow::Result<Vec<[Row; 2]>> {
    let load = Load {
        target: deployment.ingest,
        types: 1,
        keys: vec![deployment.key.clone()],
        payload: args.payload_bytes as usize,
        batch: 1,
    };
    let shape = Shape::Closed {
        connections: args.connections,
    };
    let mut next = load.run(shape, Duration::from_secs(2), 0).await?.posted();
    let (mut rounds, mut again) = (Vec::new(), 0);
    while rounds.len() < args.rounds as usize {
        eprintln!("round {} of {} …", rounds.len() + 1, args.rounds);
        let run = load.run(shape, length, next).await?;
        next = run.posted();
        let without = Row::of(&run, deployment)?;
        let opened = Instant::now();
        let idle = idle(args, deployment).await?;
        let run = load.run(shape, length, next).await?;
        next = run.posted();
        let with = Row::of(&run, deployment)?;
        let open = idle.iter().filter(|wire| wire.is_open()).count();
        if open == idle.len() {
            rounds.push([without, with]);
            continue;
        }
        eprintln!(
            "only {open} of {} idle connections are open after {:?}: the round does not count",
            idle.len(),
            opened.elapsed()
        );
        again += 1;
        if again > AGAIN {
            bail!("this machine is too slow to keep so many connections open: fewer --seconds or --idle");
        }
    }
    Ok(rounds)
}

/// Connections that have asked once, and then do nothing.
async fn idle(args: &Args, deployment: &Deployment) -> anyhow::Result<Vec<Wire>> {
    let mut idle = Vec::with_capacity(args.idle);
    while idle.len() < args.idle {
        let some = (idle.len()..args.idle).take(AT_ONCE).map(|number| async move {
            let stream = TcpStream::connect(deployment.ingest).await.with_context(|| {
                format!(
                    "connection {number} cannot be opened; are there enough file descriptors (ulimit -n)?"
                )
            })?;
            let mut wire = Wire::new(stream)?;
            wire.send(b"GET /health/live HTTP/1.1\r\nhost: bench\r\n\r\n")
                .await?;
            wire.receive().await?.context("an idle connection was closed")?;
            anyhow::Ok(wire)
        });
        idle.extend(try_join_all(some).await?);
    }
    Ok(idle)
}

impl Row {
    fn of(run: &Run, deployment: &Deployment) -> anyhow::Result<Self> {
        let accepted = || run.posts.iter().filter(|post| post.status == 202);
        let memory = deployment.memory()?;
        let ingest = memory
            .iter()
            .find(|memory| matches!(memory.process.as_str(), "ingest" | "triggers"));
        Ok(Self {
            per_second: accepted().count() as f64 / run.took.as_secs_f64(),
            times: Times::of(accepted().map(|post| post.answered - post.due)),
            refused: run.posts.len() - accepted().count(),
            resident: ingest.context("there is no ingest")?.resident,
        })
    }
}
