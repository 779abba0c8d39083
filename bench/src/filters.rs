//! What filters cost: evaluating and compiling them, measured here by the code that intake runs; and how events arrive of
//! organizations that have none, and many, side by side in one deployment.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use shared::filter::{Filter, Filters, MAX_CHARACTERS, MAX_FILTER, Ready, Subject, Verdict, steps_each};

use crate::{
    Args,
    deployment::Deployment,
    isolation::median,
    load::{self, Load, OPEN_CONNECTIONS, Shape},
    receiver,
    report::Times,
};

/// How many filters an organization has, one number a row.
const HAVE: [usize; 4] = [0, 5, 100, 999];
/// How often each is measured that is measured here.
const TIMES: usize = 7;
/// Events a second.
const RATE: u32 = 300;

/// As people write them, over the payload of this bench.
const USUAL: [&str; 3] = [
    "payload.n.startsWith('1') && payload.pad != ''",
    "has(payload.customer) && payload.customer.plan in ['pro', 'team']",
    "type == 'bench.event' && payload.n > '5000000000'",
];

/// What takes all of its steps over a payload of the largest size, by what it does.
const HOSTILE: [(&str, &str); 5] = [
    (
        "lists in lists",
        "payload.a.all(x, payload.a.all(y, x == y || true))",
    ),
    ("copies", "payload.a.map(x, payload.a).size() > 0"),
    ("joining", "payload.a.map(x, payload.t + payload.t).size() > 0"),
    ("searching", "payload.a.all(x, !payload.t.contains('aab'))"),
    ("patterns", "payload.a.all(x, !payload.t.matches('(a|aa)+$b'))"),
];

/// Measures, and prints two tables.
pub async fn run(args: &Args) -> anyhow::Result<Value> {
    let here = tokio::task::spawn_blocking(evaluating).await??;
    let arriving = arriving(args).await?;
    Ok(json!({"scenario": "filters", "here": here, "arriving": arriving}))
}

/// The median time of something.
fn timed<T>(mut what: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let begun = Instant::now();
        what()?;
        times.push(begun.elapsed().as_secs_f64());
    }
    Ok(Duration::from_secs_f64(median(times)))
}

fn parse(text: &str) -> anyhow::Result<Filter> {
    Filter::parse(text).with_context(|| text.to_owned())
}

/// Asks all of them about an event, as intake does; how many failed.
fn judge(ready: &Ready, count: usize, payload: &str) -> usize {
    let subject = Subject::new("bench.event", None, None, payload);
    let verdicts = (0..count).map(|place| ready.judge(place, &subject, steps_each(count)));
    verdicts
        .filter(|verdict| matches!(verdict, Verdict::Failed(_)))
        .count()
}

fn evaluating() -> anyhow::Result<Value> {
    let filters = Filters::default();
    let small = load::payload(42, 500);
    let usual = USUAL.map(parse).into_iter().collect::<Result<Vec<_>, _>>()?;
    let ready = filters.ready(&usual)?;
    ensure!(
        judge(&ready, usual.len(), &small) == 0,
        "the usual ones can be evaluated"
    );
    let each = timed(|| {
        let failed: usize = (0..1_000).map(|_| judge(&ready, usual.len(), &small)).sum();
        ensure!(failed == 0);
        Ok(())
    })? / 1_000;
    println!(
        "{} usual filters, about an event of 500 bytes: {each:.1?}, its payload read",
        usual.len()
    );

    // Numbers and a text, of 250 KiB together.
    let numbers = (0..20_000).map(|at| at.to_string()).collect::<Vec<_>>().join(",");
    let large = format!(r#"{{"a":[{numbers}],"t":"{}"}}"#, "a".repeat(140_000));
    let reading = timed(|| {
        Ok(judge(
            &filters.ready(&[parse("payload.a.size() == 0")?])?,
            1,
            &large,
        ))
    })?;
    println!("a payload of {} KiB read: {reading:.1?}", large.len() / 1024);
    let mut hostile = Vec::new();
    for (name, text) in HOSTILE {
        // Five, so that they have all steps of an event.
        let five = (0..5).map(|at| parse(&format!("{text} || payload.a[{at}] == -1")));
        let five = five.collect::<Result<Vec<_>, _>>()?;
        let ready = filters.ready(&five)?;
        let failed = judge(&ready, 5, &large);
        let took = timed(|| Ok(judge(&ready, 5, &large)))?;
        println!("50,000 steps of an event, {name}: {took:.1?}, {failed} of 5 end for want of steps");
        hostile.push(json!({"what": name, "ms": took.as_secs_f64() * 1e3, "failed": failed}));
    }

    let mut number = 0;
    let mut another = |room: usize| {
        number += 1;
        let one = "payload.b == 1||";
        let text = format!("{}payload.a == {number:09}", one.repeat((room - 23) / one.len()));
        Filter::from_trusted(&text)
    };
    let one = timed(|| {
        let ready = Filters::default().ready(&[another(60)])?;
        ensure!(ready.compiled() == 1);
        Ok(())
    })?;
    let set = timed(|| {
        let set: Vec<_> = (0..MAX_CHARACTERS as usize / MAX_FILTER)
            .map(|_| another(MAX_FILTER))
            .collect();
        let ready = Filters::default().ready(&set)?;
        ensure!(ready.compiled() == set.len());
        Ok(())
    })?;
    println!("compiling: one usual filter {one:.1?}; the longest set of an organization {set:.1?}");

    let many: Vec<_> = (0..100_000).map(|_| another(60)).collect();
    for some in many.chunks(1_000) {
        filters.ready(some)?;
    }
    let mut gone = 0;
    // From the last on: what is compiled anew pushes out what has been counted.
    for some in many.chunks(1_000).rev() {
        gone += filters.ready(some)?.compiled();
    }
    let kept = many.len() - gone;
    println!("kept compiled, of 100,000 usual ones: {kept}\n");
    Ok(json!({
        "usual": {"filters": usual.len(), "us": each.as_secs_f64() * 1e6}, "reading_ms": reading.as_secs_f64() * 1e3,
        "hostile": hostile, "compiling": {"one_us": one.as_secs_f64() * 1e6, "set_ms": set.as_secs_f64() * 1e3}, "kept": kept,
    }))
}

async fn arriving(args: &Args) -> anyhow::Result<Value> {
    let receiver = receiver::start().await?;
    let deployment = Deployment::of(args, args.workers()).await?;
    let measured = async {
        let mut loads = Vec::new();
        for have in HAVE {
            let key = deployment.organization().await?;
            let all = json!({"url": format!("http://{}/hook", receiver.address), "max_in_flight": 256});
            deployment.subscribe_as(&key, &all).await?;
            // Each is asked about each event, and none matches. With the receiver's own there are a thousand at most.
            for number in 0..have {
                let filter = format!("payload.n == 'none {number}' && payload.pad != ''");
                deployment
                    .subscribe_as(&key, &json!({"kind": "pull", "filter": filter}))
                    .await?;
            }
            loads.push(Load {
                target: deployment.ingest,
                keys: vec![key],
                types: 1,
                payload: args.payload_bytes as usize,
                batch: 1,
            });
        }
        let length = Duration::from_secs(args.seconds) / args.rounds / HAVE.len() as u32;
        let shape = Shape::Open {
            rate: RATE,
            connections: OPEN_CONNECTIONS,
        };
        let mut posted = 0;
        for load in &loads {
            posted = load.run(shape, Duration::from_secs(1), posted).await?.posted();
        }
        receiver.settle(posted).await;
        let mut cells: Vec<Vec<Times>> = HAVE.iter().map(|_| Vec::new()).collect();
        for round in 1..=args.rounds {
            for ((have, load), cells) in HAVE.iter().zip(&loads).zip(&mut cells) {
                eprintln!("round {round} of {}: {have} filters …", args.rounds);
                let run = load.run(shape, length, posted).await?;
                posted = run.posted();
                receiver.settle(posted).await;
                let arrivals = receiver.arrivals();
                let taken = run.posts.iter().map(|post| {
                    let arrived = arrivals.get(&post.number).context("an event did not arrive")?.0;
                    Ok(arrived.saturating_duration_since(post.due))
                });
                let taken: Vec<Duration> = taken.collect::<anyhow::Result<_>>()?;
                cells.push(Times::of(taken.into_iter()));
            }
        }
        let memory = deployment.worker_memory()?;
        anyhow::Ok((cells, memory.iter().map(|memory| memory.peak).fold(0.0, f64::max)))
    }
    .await;
    let left = deployment.end().await;
    let (cells, peak) = measured?;
    println!(
        "filters   p50 ms   to none   p99 ms   to none   ({RATE} events/s, {} rounds)",
        args.rounds
    );
    let mut rows = Vec::new();
    for (have, runs) in HAVE.iter().zip(&cells) {
        let of = |read: &dyn Fn(&Times) -> f64| {
            let ratios = runs
                .iter()
                .zip(&cells[0])
                .map(|(run, none)| read(run) / read(none));
            (median(runs.iter().map(read).collect()), median(ratios.collect()))
        };
        let (p50, p50_ratio) = of(&|times| times.p50);
        let (p99, p99_ratio) = of(&|times| times.p99);
        println!("{have:>7}   {p50:>6.2}   × {p50_ratio:>5.2}   {p99:>6.2}   × {p99_ratio:>5.2}");
        rows.push(json!({"filters": have, "p50_ms": p50, "p50_to_none": p50_ratio, "p99_ms": p99, "p99_to_none": p99_ratio}));
    }
    println!("the worker took {peak:.1} MB at most");
    left?;
    Ok(json!({"runs": rows, "worker_peak_mb": peak}))
}
