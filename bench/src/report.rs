//! What a run came to, for people and as JSON.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::{
    Args, Engine,
    deployment::Memory,
    floor::Floor,
    load::{Post, Run},
    receiver::Arrivals,
};

/// Percentiles, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Half are at most this.
    pub p50: f64,
    p95: f64,
    /// All but one in a hundred are at most this.
    pub p99: f64,
    p999: f64,
    max: f64,
}

impl Times {
    /// Of these.
    pub fn of(times: impl Iterator<Item = Duration>) -> Self {
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

    /// As JSON.
    pub fn to_json(self) -> Value {
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

/// The floor, and right after it the load.
#[derive(Debug)]
pub struct Round {
    /// The floor.
    pub floor: Floor,
    /// The load.
    pub run: Run,
}

impl Round {
    fn accepted(&self) -> impl Iterator<Item = &Post> + Clone {
        self.run.posts.iter().filter(|post| post.status == 202)
    }

    fn accepted_per_second(&self) -> f64 {
        self.accepted().count() as f64 / self.run.took.as_secs_f64()
    }
}

/// How many times the floor something is: over all rounds taken together, and in each of them.
#[derive(Debug, Clone, Copy)]
struct Ratio {
    all: f64,
    least: f64,
    median: f64,
    most: f64,
}

impl Ratio {
    fn of(all: f64, mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        Self {
            all,
            least: rounds[0],
            median: f64::midpoint(rounds[(rounds.len() - 1) / 2], rounds[rounds.len() / 2]),
            most: rounds[rounds.len() - 1],
        }
    }

    fn to_json(self) -> Value {
        json!({"all": self.all, "rounds": {"least": self.least, "median": self.median, "most": self.most}})
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            all,
            least,
            median,
            most,
        } = self;
        write!(
            f,
            "× {median:.2} (median of the rounds; {least:.2} to {most:.2}; all together {all:.2})"
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
    ratios: Vec<(&'static str, Ratio)>,
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

impl Delivery {
    fn of(rounds: &[Round], arrivals: &Arrivals) -> Self {
        let accepted = || rounds.iter().flat_map(Round::accepted);
        let arrived = || accepted().filter_map(|post| Some((post, arrivals.get(&post.number)?)));
        // Each round's own time, from its first post to its last arrival; and how long that is after its last post.
        let spans = rounds.iter().filter_map(|round| {
            let of_round = round
                .accepted()
                .filter_map(|post| Some(arrivals.get(&post.number)?.0));
            let posts = || round.run.posts.iter().map(|post| post.due);
            let (first, last_post, last) = (posts().min()?, posts().max()?, of_round.max()?);
            Some((last - first, last.saturating_duration_since(last_post)))
        });
        let took: Duration = spans.clone().map(|(took, _)| took).sum();
        Self {
            arrived: arrived().count(),
            lost: accepted().count() - arrived().count(),
            more_than_once: arrived().filter(|(_, (_, times))| *times > 1).count(),
            per_second: arrived().count() as f64 / took.as_secs_f64(),
            after_the_last_post: spans.map(|(_, after)| after).max().unwrap_or_default(),
            times: Times::of(arrived().map(|(post, (at, _))| at.saturating_duration_since(post.due))),
        }
    }
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count() as f64
}

impl Report {
    /// From what was measured.
    pub fn new(
        args: &Args,
        rounds: &[Round],
        arrivals: Option<&Arrivals>,
        idle: &[Memory],
        memory: &[Memory],
    ) -> Self {
        let posting = |round: &Round| Times::of(round.accepted().map(|post| post.answered - post.due));
        let floor = |round: &Round| Times::of(round.floor.times.iter().copied());
        let all_floor = Times::of(rounds.iter().flat_map(|round| round.floor.times.iter().copied()));
        let all_posting = Times::of(
            rounds
                .iter()
                .flat_map(Round::accepted)
                .map(|post| post.answered - post.due),
        );
        let accepted_per_second = mean(rounds.iter().map(Round::accepted_per_second));
        let floor_per_second = mean(rounds.iter().filter_map(|round| round.floor.per_second));

        let each = |read: &dyn Fn(&Round) -> f64| rounds.iter().map(read).collect::<Vec<_>>();
        let mut ratios = vec![(
            "accepted p50",
            Ratio::of(
                all_posting.p50 / all_floor.p50,
                each(&|round| posting(round).p50 / floor(round).p50),
            ),
        )];
        if rounds[0].floor.per_second.is_some() {
            let per_second =
                each(&|round| round.accepted_per_second() / round.floor.per_second.unwrap_or(f64::NAN));
            ratios.push((
                "accepted/s",
                Ratio::of(accepted_per_second / floor_per_second, per_second),
            ));
        }
        let delivery = arrivals.map(|arrivals| {
            let arrival = |round: &Round| {
                let times = round.accepted().filter_map(|post| {
                    Some(arrivals.get(&post.number)?.0.saturating_duration_since(post.due))
                });
                Times::of(times.collect::<Vec<_>>().into_iter())
            };
            let delivery = Delivery::of(rounds, arrivals);
            ratios.push((
                "delivered p50",
                Ratio::of(
                    delivery.times.p50 / all_floor.p50,
                    each(&|round| arrival(round).p50 / floor(round).p50),
                ),
            ));
            ratios.push((
                "delivered p99",
                Ratio::of(
                    delivery.times.p99 / all_floor.p99,
                    each(&|round| arrival(round).p99 / floor(round).p99),
                ),
            ));
            delivery
        });
        let shape = match args.rate {
            Some(rate) => format!("open loop at {rate}/s"),
            None if args.batch > 1 => {
                format!(
                    "closed loop, {} connection(s), batches of {}",
                    args.connections, args.batch
                )
            }
            None => format!("closed loop, {} connection(s)", args.connections),
        };
        Self {
            title: format!(
                "{:?} on {:?}, {shape}, {} s in {} round(s), payloads of {} bytes, {}",
                args.scenario,
                args.engine,
                args.seconds,
                args.rounds,
                args.payload_bytes,
                match args.engine {
                    Engine::Servers => format!("{} worker(s)", args.workers()),
                    Engine::Embedded => "every role in one process".to_owned(),
                }
            ),
            accepted: rounds.iter().map(|round| round.accepted().count()).sum(),
            refused: rounds
                .iter()
                .map(|round| round.run.posts.len() - round.accepted().count())
                .sum(),
            accepted_per_second,
            posting: all_posting,
            floor: (
                rounds[0].floor.what,
                all_floor,
                rounds[0].floor.per_second.map(|_| floor_per_second),
            ),
            ratios,
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
            "to_the_floor": self.ratios.iter().map(|(what, ratio)| ((*what).to_owned(), ratio.to_json())).collect::<serde_json::Map<_, _>>(),
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
            ratios,
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
        for (what, ratio) in ratios {
            writeln!(f, "to the floor: {what:<14} {ratio}")?;
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
