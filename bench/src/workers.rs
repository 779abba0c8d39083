//! One load on one, two and four workers: the rate from the first post to the last arrival, and the share of each worker.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::{Args, isolation::median, load::Shape, receiver, spread::Spread};

/// How many workers, one number a run.
const WORKERS: [u8; 3] = [1, 2, 4];

struct Cell {
    per_second: f64,
    lost: u64,
    /// Of all deliveries, by worker.
    shares: Vec<f64>,
    /// Of all events taken in, by worker.
    intake: Vec<f64>,
    peak: f64,
}

/// Measures, and prints a table.
pub async fn run(args: &Args) -> anyhow::Result<Value> {
    let length = Duration::from_secs(args.seconds) / args.rounds;
    // A connection each would be no load.
    let connections = args.connections.max(64);
    println!(
        "workers: {} subscriptions of {} organizations, {connections} connections, {} round(s) of {:.0} s\n",
        args.subscriptions,
        args.organizations(),
        args.rounds,
        length.as_secs_f64()
    );
    let mut cells: Vec<Vec<Cell>> = WORKERS.iter().map(|_| Vec::new()).collect();
    for round in 1..=args.rounds {
        for (workers, cells) in WORKERS.iter().zip(&mut cells) {
            eprintln!("round {round} of {}: {workers} worker(s) …", args.rounds);
            cells.push(measure(args, *workers, connections, length).await?);
        }
    }
    println!(
        "workers   delivered/s   to one worker   lost   MB each   shares of deliveries; of intake (last round)"
    );
    let mut rows = Vec::new();
    for (workers, runs) in WORKERS.iter().zip(&cells) {
        let per_second = median(runs.iter().map(|cell| cell.per_second).collect());
        let pairs = runs.iter().zip(&cells[0]);
        let ratio = median(pairs.map(|(run, one)| run.per_second / one.per_second).collect());
        let lost: u64 = runs.iter().map(|cell| cell.lost).sum();
        let peak = runs.iter().map(|cell| cell.peak).fold(0.0, f64::max);
        let latest = runs.last().context("no round was run")?;
        let percent = |shares: &[f64]| {
            let percents = shares.iter().map(|share| format!("{:.0} %", share * 100.0));
            percents.collect::<Vec<_>>().join(", ")
        };
        println!(
            "{workers:>7}   {per_second:>11.0}   × {ratio:>11.2}   {lost:>4}   {peak:>7.1}   {}; {}",
            percent(&latest.shares),
            percent(&latest.intake)
        );
        rows.push(json!({
            "workers": workers, "delivered_per_second": per_second, "to_one_worker": ratio, "lost": lost,
            "worker_peak_mb": peak,
            "rounds": runs.iter().map(|cell| json!({
                "delivered_per_second": cell.per_second, "shares": cell.shares, "intake": cell.intake,
            })).collect::<Vec<_>>(),
        }));
    }
    Ok(json!({"scenario": "workers", "subscriptions": args.subscriptions, "runs": rows}))
}

async fn measure(args: &Args, workers: u8, connections: u16, length: Duration) -> anyhow::Result<Cell> {
    let receiver = receiver::start().await?;
    let Spread { deployment, load } = Spread::start(args, workers, receiver.address, &json!({})).await?;
    let shape = Shape::Closed { connections };
    let warmed = load.run(shape, Duration::from_secs(2), 0).await?.posted();
    receiver.settle(warmed).await;
    let counted = async |name: &str| deployment.worker_metrics(name).await;
    let (delivered, stored) = (
        r#"triggers_deliveries_total{outcome="delivered"}"#,
        "triggers_events_stored_total",
    );
    let before = (counted(delivered).await?, counted(stored).await?);
    let run = load.run(shape, length, warmed).await?;
    receiver.settle(run.posted()).await;
    // Outcomes are written a moment after the answers.
    receiver.go_on(Duration::from_secs(1)).await;
    let after = (counted(delivered).await?, counted(stored).await?);
    let arrivals = receiver.arrivals();
    let arrived = || {
        let posts = run.posts.iter().filter(|post| post.status == 202);
        posts.filter_map(|post| arrivals.get(&post.number))
    };
    let first = run
        .posts
        .iter()
        .map(|post| post.due)
        .min()
        .context("nothing was posted")?;
    let last = arrived().map(|(at, _)| *at).max().context("nothing arrived")?;
    let accepted = run.posts.iter().filter(|post| post.status == 202).count();
    let cell = Cell {
        per_second: arrived().count() as f64 / (last - first).as_secs_f64(),
        lost: (accepted - arrived().count()) as u64,
        shares: shares(&before.0, &after.0),
        intake: shares(&before.1, &after.1),
        peak: deployment
            .worker_memory()?
            .iter()
            .map(|memory| memory.peak)
            .fold(0.0, f64::max),
    };
    deployment.end().await?;
    Ok(cell)
}

fn shares(before: &[f64], after: &[f64]) -> Vec<f64> {
    let grown: Vec<f64> = after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect();
    let all: f64 = grown.iter().sum();
    grown.iter().map(|grown| grown / all).collect()
}
