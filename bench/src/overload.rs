//! Twice as much as can be taken: what is accepted, how long that takes, and how soon the rest is refused.
//!
//! The capacity is throttled, so that the generator can double it: ingest reaches the broker over a way that is slow. Each
//! round looks for the capacity (a closed loop with more connections than fit into what is under way), then offers
//! nearly as much, then twice as much.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    Args,
    deployment::Deployment,
    isolation::median,
    load::{Load, Post, Run, Shape},
    report::Times,
};

/// Connections of the loop that looks for the capacity, and of those that offer.
const CLOSED: u16 = 2_048;
const OPEN: u16 = 4_096;
/// How much is offered, to the capacity.
const NEARLY: f64 = 0.95;
const TWICE: f64 = 2.0;
/// How long after its beginning a load is taken to have settled.
const ONSET: Duration = Duration::from_secs(2);

/// What came of a load.
struct Offered {
    name: &'static str,
    rate: f64,
    accepted: f64,
    /// Of what was accepted and of what was refused, once it had settled; and of what was accepted until then.
    times: Times,
    refusals: Times,
    onset: Times,
    refused: usize,
    /// Answers that are neither a 202 nor a 503.
    other: usize,
    /// The most of ingest that was resident until then, in MB.
    peak: f64,
}

/// Measures, and prints a table.
pub async fn run(args: &Args) -> anyhow::Result<Value> {
    let delay = Duration::from_millis(args.delay_ms);
    let deployment = Deployment::throttled(args, delay).await?;
    let measured = rounds(args, &deployment).await;
    deployment.end().await?;
    let rounds = measured?;
    println!(
        "overload: ingest is {} ms from the broker each way, payloads of {} bytes; medians of {} round(s)\n",
        args.delay_ms, args.payload_bytes, args.rounds
    );
    println!(
        "                offered/s  accepted/s  to capacity   p50 ms    p99 ms  p99 to nearly   503s: p50    p99 ms   first {} s: p99 ms  ingest MB",
        ONSET.as_secs()
    );
    let mut rows = Vec::new();
    for at in 0..rounds.first().map_or(0, Vec::len) {
        let of = |value: fn(&Offered) -> f64| median(rounds.iter().map(|round| value(&round[at])).collect());
        let to = |base: usize, value: fn(&Offered) -> f64| {
            median(
                rounds
                    .iter()
                    .map(|round| value(&round[at]) / value(&round[base]))
                    .collect(),
            )
        };
        println!(
            "{:<13} {:>11.0} {:>11.0}  ×{:>11.2} {:>8.1}  {:>8.1}  × {:>11.2}  {:>9.2}  {:>8.2}  {:>18.1}  {:>9.1}",
            rounds[0][at].name,
            of(|row| row.rate),
            of(|row| row.accepted),
            to(0, |row| row.accepted),
            of(|row| row.times.p50),
            of(|row| row.times.p99),
            to(1, |row| row.times.p99),
            of(|row| row.refusals.p50),
            of(|row| row.refusals.p99),
            of(|row| row.onset.p99),
            rounds.iter().map(|round| round[at].peak).fold(0.0, f64::max),
        );
        rows.push(json!({
            "name": rounds[0][at].name,
            "accepted_to_capacity": to(0, |row| row.accepted),
            "p99_to_nearly": to(1, |row| row.times.p99),
            "rounds": rounds.iter().map(|round| round[at].to_json()).collect::<Vec<_>>(),
        }));
    }
    let other: usize = rounds.iter().flatten().map(|row| row.other).sum();
    println!("\n{other} answers were neither a 202 nor a 503");
    Ok(json!({"scenario": "overload", "delay_ms": args.delay_ms, "other_answers": other, "rows": rows}))
}

async fn rounds(args: &Args, deployment: &Deployment) -> anyhow::Result<Vec<Vec<Offered>>> {
    let load = Load {
        target: deployment.ingest,
        types: 1,
        keys: vec![deployment.key.clone()],
        payload: args.payload_bytes as usize,
        batch: 1,
    };
    let length = Duration::from_secs(args.seconds) / args.rounds;
    anyhow::ensure!(
        length > 2 * ONSET,
        "a round of {length:?} is too short: more --seconds or fewer --rounds"
    );
    let peak = || -> anyhow::Result<f64> {
        let memory = deployment.memory()?;
        let ingest = memory.iter().find(|memory| memory.process == "ingest");
        Ok(ingest.context("there is no ingest")?.peak)
    };
    let mut next = 0;
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}: three times {length:?} …", args.rounds);
        let closed = Shape::Closed { connections: CLOSED };
        let run = load.run(closed, length, next).await?;
        next = run.posted();
        let capacity = Offered::of("capacity", None, &run, peak()?)?;
        let mut rows = vec![capacity];
        for (name, share) in [("nearly that", NEARLY), ("twice that", TWICE)] {
            let rate = rows[0].accepted * share;
            let shape = Shape::Open {
                rate: rate as u32,
                connections: OPEN,
            };
            let run = load.run(shape, length, next).await?;
            next = run.posted();
            rows.push(Offered::of(name, Some(rate), &run, peak()?)?);
        }
        rounds.push(rows);
    }
    Ok(rounds)
}

impl Offered {
    /// `rate` is what was offered; in a closed loop, all that was posted.
    fn of(name: &'static str, rate: Option<f64>, run: &Run, peak: f64) -> anyhow::Result<Self> {
        let first = run
            .posts
            .iter()
            .map(|post| post.due)
            .min()
            .context("nothing was posted")?;
        let settled = |post: &Post| post.due >= first + ONSET;
        let took = |post: &Post| post.answered - post.due;
        let of = |status: u16, wanted: bool| {
            let posts = run.posts.iter();
            let chosen = posts.filter(move |post| post.status == status && settled(post) == wanted);
            Times::of(chosen.map(took))
        };
        let last = run
            .posts
            .iter()
            .map(|post| post.due)
            .max()
            .context("nothing was posted")?;
        let seconds = (last - (first + ONSET)).as_secs_f64();
        let count = |status: u16| {
            let posts = run.posts.iter();
            posts
                .filter(|post| post.status == status && settled(post))
                .count()
        };
        let known = |post: &&Post| matches!(post.status, 202 | 503);
        Ok(Self {
            name,
            rate: rate.unwrap_or_else(|| (count(202) + count(503)) as f64 / seconds),
            accepted: count(202) as f64 / seconds,
            times: of(202, true),
            refusals: of(503, true),
            onset: of(202, false),
            refused: count(503),
            other: run.posts.len() - run.posts.iter().filter(known).count(),
            peak,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "offered_per_second": self.rate, "accepted_per_second": self.accepted, "refused": self.refused,
            "accepted": self.times.to_json(), "refusals": self.refusals.to_json(), "accepted_at_onset": self.onset.to_json(),
            "ingest_peak_mb": self.peak,
        })
    }
}
