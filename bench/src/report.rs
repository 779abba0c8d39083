//! What a run came to, for people and as JSON.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::{Args, deployment::Memory, floor::Floor, load::Run, receiver::Arrivals};

/// Percentiles, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Times {
    p50: f64,
    p95: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Times {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        // Up to ten minutes, to three digits.
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 600_000_000_000, 3)
            .unwrap_or_else(|error| unreachable!("the bounds are sound: {error}"));
        for time in times {
            histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Self {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1e6,
        }
    }

    fn to_json(self) -> Value {
        json!({"p50_ms": self.p50, "p95_ms": self.p95, "p99_ms": self.p99, "p99_9_ms": self.p999, "max_ms": self.max})
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            p50,
            p95,
            p99,
            p999,
            max,
        } = self;
        write!(
            f,
            "p50 {p50:>8.3}  p95 {p95:>8.3}  p99 {p99:>8.3}  p99.9 {p999:>8.3}  max {max:>8.3} ms"
        )
    }
}

/// A report.
#[derive(Debug)]
pub struct Report {
    title: String,
    accepted: usize,
    refused: usize,
    accepted_per_second: f64,
    posting: Times,
    floor: (&'static str, Times, Option<f64>),
    delivery: Option<Delivery>,
    memory: Vec<(Memory, f64)>,
}

#[derive(Debug)]
struct Delivery {
    arrived: usize,
    lost: usize,
    more_than_once: usize,
    per_second: f64,
    after_the_last_post: Duration,
    times: Times,
}

impl Report {
    /// From what was measured.
    pub fn new(
        args: &Args,
        run: &Run,
        arrivals: Option<&Arrivals>,
        floor: &Floor,
        idle: &[Memory],
        memory: &[Memory],
    ) -> Self {
        let accepted: Vec<_> = run.posts.iter().filter(|post| post.status == 202).collect();
        let delivery = arrivals.map(|arrivals| {
            let arrived = || {
                accepted
                    .iter()
                    .filter_map(|post| Some((*post, arrivals.get(&post.number)?)))
            };
            let first = run.posts.iter().map(|post| post.due).min();
            let last = arrived().map(|(_, (at, _))| *at).max();
            let last_post = run.posts.iter().map(|post| post.due).max();
            let took = first
                .zip(last)
                .map_or(Duration::ZERO, |(first, last)| last - first);
            Delivery {
                arrived: arrived().count(),
                lost: accepted.len() - arrived().count(),
                more_than_once: arrived().filter(|(_, (_, times))| *times > 1).count(),
                per_second: arrived().count() as f64 / took.as_secs_f64(),
                after_the_last_post: last_post.zip(last).map_or(Duration::ZERO, |(post, last)| {
                    last.saturating_duration_since(post)
                }),
                times: Times::of(arrived().map(|(post, (at, _))| at.saturating_duration_since(post.due))),
            }
        });
        let shape = match args.rate {
            Some(rate) => format!("open loop at {rate}/s"),
            None => format!("closed loop, {} connection(s)", args.connections),
        };
        Self {
            title: format!(
                "{:?} on {:?}, {shape}, {} s, payloads of {} bytes, {} worker(s)",
                args.scenario, args.engine, args.seconds, args.payload_bytes, args.workers
            ),
            accepted: accepted.len(),
            refused: run.posts.len() - accepted.len(),
            accepted_per_second: accepted.len() as f64 / run.took.as_secs_f64(),
            posting: Times::of(accepted.iter().map(|post| post.answered - post.due)),
            floor: (
                floor.what,
                Times::of(floor.times.iter().copied()),
                floor.per_second,
            ),
            delivery,
            memory: memory
                .iter()
                .cloned()
                .zip(idle.iter().map(|idle| idle.resident))
                .collect(),
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "title": self.title,
            "accepted": self.accepted,
            "refused": self.refused,
            "accepted_per_second": self.accepted_per_second,
            "posting": self.posting.to_json(),
            "floor": {"what": self.floor.0, "times": self.floor.1.to_json(), "per_second": self.floor.2},
            "delivery": self.delivery.as_ref().map(|delivery| json!({
                "arrived": delivery.arrived,
                "lost": delivery.lost,
                "more_than_once": delivery.more_than_once,
                "per_second": delivery.per_second,
                "last_arrival_after_last_post_ms": delivery.after_the_last_post.as_secs_f64() * 1e3,
                "times": delivery.times.to_json(),
            })),
            "memory_mb": self.memory.iter().map(|(memory, idle)| json!({
                "process": memory.process, "idle": idle, "resident": memory.resident, "peak": memory.peak,
            })).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            title,
            accepted,
            refused,
            accepted_per_second,
            posting,
            floor,
            delivery,
            memory,
        } = self;
        writeln!(f, "{title}\n")?;
        writeln!(f, "floor      {}   ({})", floor.1, floor.0)?;
        writeln!(f, "accepted   {posting}")?;
        if let Some(delivery) = delivery {
            writeln!(f, "delivered  {}", delivery.times)?;
        }
        writeln!(f)?;
        if let Some(per_second) = floor.2 {
            writeln!(f, "floor      {per_second:>9.0}/s")?;
        }
        writeln!(
            f,
            "accepted   {accepted_per_second:>9.0}/s   {accepted} in all, {refused} refused"
        )?;
        if let Some(delivery) = delivery {
            let Delivery {
                arrived,
                lost,
                more_than_once,
                per_second,
                after_the_last_post,
                ..
            } = delivery;
            writeln!(
                f,
                "delivered  {per_second:>9.0}/s   {arrived} in all, {lost} lost, {more_than_once} more than once; the \
                 last {:.3} s after the last post",
                after_the_last_post.as_secs_f64()
            )?;
        }
        writeln!(f)?;
        writeln!(f, "to the floor: accepted p50 × {:.2}", posting.p50 / floor.1.p50)?;
        if let Some(per_second) = floor.2 {
            writeln!(
                f,
                "              accepted/s × {:.2}",
                accepted_per_second / per_second
            )?;
        }
        if let Some(delivery) = delivery {
            let (p50, p99) = (delivery.times.p50 / floor.1.p50, delivery.times.p99 / floor.1.p99);
            writeln!(f, "              delivered p50 × {p50:.2}, p99 × {p99:.2}")?;
        }
        writeln!(f)?;
        for (memory, idle) in memory {
            let Memory {
                process,
                resident,
                peak,
            } = memory;
            writeln!(
                f,
                "{process:<10} {idle:>6.1} MB idle, {resident:>6.1} MB now, {peak:>6.1} MB at most"
            )?;
        }
        Ok(())
    }
}
