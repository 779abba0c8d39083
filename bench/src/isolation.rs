//! What subscribers that hang cost the others.
//!
//! One load over many subscriptions, first with none of them hanging, then with more and more. Each run has a deployment of
//! its own and begins with healthy subscribers; what hangs hangs from one moment on, in which the measuring begins, so that
//! the time in which nothing is known of them yet is in it. The rounds take all runs in turn.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{
    Args,
    load::{OPEN_CONNECTIONS, Post, Shape},
    receiver::{self, Reply},
    report::Times,
    spread::Spread,
};

/// How long all are healthy at first.
const WARM_UP: Duration = Duration::from_secs(3);
/// Coprime to any usual number of subscriptions: those that hang are spread over all organizations.
const STRIDE: u64 = 7_919;

/// What one run came to, for the healthy.
struct Cell {
    times: Times,
    /// Without the attempt timeout that follows the first hanging.
    later: Times,
    lost: usize,
    worker_peak: f64,
}

/// Measures, and prints a table.
pub async fn run(args: &Args) -> anyhow::Result<Value> {
    if args.subscriptions.is_multiple_of(STRIDE) {
        bail!("--subscriptions must not be a multiple of {STRIDE}");
    }
    if args.hanging.iter().any(|hanging| *hanging >= args.subscriptions) {
        bail!("--hanging must leave at least one of the --subscriptions healthy");
    }
    let rate = args.rate.unwrap_or(300);
    let length = Duration::from_secs(args.seconds) / args.rounds;
    println!(
        "isolation on {:?}: {} subscriptions of {} organizations, {rate} events/s, timeout {} ms, {} round(s) of {:.0} s\n",
        args.engine,
        args.subscriptions,
        args.organizations(),
        args.timeout_ms,
        args.rounds,
        length.as_secs_f64()
    );
    let mut cells: Vec<Vec<Cell>> = args.hanging.iter().map(|_| Vec::new()).collect();
    for round in 1..=args.rounds {
        for (hanging, cells) in args.hanging.iter().zip(&mut cells) {
            eprintln!("round {round} of {}: {hanging} hanging …", args.rounds);
            cells.push(measure(args, *hanging, rate, length).await?);
        }
    }
    let mut rows = Vec::new();
    println!(
        "hanging        p50 ms        p99 ms   p99 to none hanging      later: p99 ms   ratio   lost  worker MB"
    );
    for (hanging, runs) in args.hanging.iter().zip(&cells) {
        let each = |read: &dyn Fn(&Cell) -> f64| median(runs.iter().map(read).collect());
        // Each to the run with none hanging of its own round.
        let ratios = |read: &dyn Fn(&Cell) -> f64| -> Vec<f64> {
            let pairs = runs.iter().zip(&cells[0]);
            pairs.map(|(run, none)| read(run) / read(none)).collect()
        };
        let (p50, p99) = (each(&|cell| cell.times.p50), each(&|cell| cell.times.p99));
        let all = ratios(&|cell| cell.times.p99);
        let later = ratios(&|cell| cell.later.p99);
        let (least, most) = (
            all.iter().copied().fold(f64::INFINITY, f64::min),
            all.iter().copied().fold(0.0, f64::max),
        );
        let lost: usize = runs.iter().map(|cell| cell.lost).sum();
        let peak = runs.iter().map(|cell| cell.worker_peak).fold(0.0, f64::max);
        let later_p99 = each(&|cell| cell.later.p99);
        let (ratio, later_ratio) = (median(all), median(later));
        println!(
            "{hanging:>7}  {p50:>12.2}  {p99:>12.2}   × {ratio:>5.2} ({least:.2} to {most:.2})   {later_p99:>14.2}   × {later_ratio:.2}  {lost:>5}  {peak:>9.1}"
        );
        rows.push(json!({
            "hanging": hanging, "p50_ms": p50, "p99_ms": p99, "p99_to_none_hanging": ratio, "least": least, "most": most,
            "later": {"p99_ms": later_p99, "p99_to_none_hanging": later_ratio},
            "lost": lost, "worker_peak_mb": peak,
            "rounds": runs.iter().map(|cell| cell.times.to_json()).collect::<Vec<_>>(),
        }));
    }
    Ok(json!({
        "scenario": "isolation", "engine": format!("{:?}", args.engine), "rate": rate, "timeout_ms": args.timeout_ms,
        "subscriptions": args.subscriptions, "organizations": args.organizations(), "runs": rows,
    }))
}

async fn measure(args: &Args, hanging: u64, rate: u32, length: Duration) -> anyhow::Result<Cell> {
    let subscriptions = args.subscriptions;
    let hangs = move |number: u64, hanging: u64| (number % subscriptions) * STRIDE % subscriptions < hanging;
    let now_hanging = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&now_hanging);
    let receiver = receiver::start_with(move |number| {
        if hangs(number, told.load(Ordering::Relaxed)) {
            Reply::Hang
        } else {
            Reply::Answer
        }
    })
    .await?;
    let settings = json!({"timeout_ms": args.timeout_ms});
    let Spread { deployment, load } =
        Spread::start(args, args.workers(), receiver.address, &settings).await?;
    let shape = Shape::Open {
        rate,
        connections: OPEN_CONNECTIONS,
    };
    let warmed = load.run(shape, WARM_UP, 0).await?.posted();
    receiver.settle(warmed).await;
    now_hanging.store(hanging, Ordering::Relaxed);
    let run = load.run(shape, length, warmed).await?;
    let healthy: Vec<&Post> = run
        .posts
        .iter()
        .filter(|post| !hangs(post.number, hanging))
        .collect();
    if let Some(refused) = healthy.iter().find(|post| post.status != 202) {
        bail!("an event was answered with {}", refused.status);
    }
    receiver.settle(warmed + healthy.len() as u64).await;
    let arrivals = receiver.arrivals();
    let begun = run
        .posts
        .iter()
        .map(|post| post.due)
        .min()
        .context("nothing was posted")?;
    let known = begun + Duration::from_millis(args.timeout_ms.into()).min(length / 2);
    let taken = |post: &Post| Some(arrivals.get(&post.number)?.0.saturating_duration_since(post.due));
    let cell = Cell {
        times: Times::of(healthy.iter().filter_map(|post| taken(post))),
        later: Times::of(
            healthy
                .iter()
                .filter(|post| post.due > known)
                .filter_map(|post| taken(post)),
        ),
        lost: healthy.iter().filter(|post| taken(post).is_none()).count(),
        worker_peak: deployment
            .worker_memory()?
            .iter()
            .map(|memory| memory.peak)
            .fold(0.0, f64::max),
    };
    deployment.end().await?;
    Ok(cell)
}

/// The one in the middle, or half-way between the two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}
