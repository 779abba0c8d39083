//! Load generator and reports.
//!
//! `ingest` measures how fast events are accepted, `e2e` how fast they arrive; both beside the floor of the same run, so
//! that a noisy machine shows in both. `isolation`, `backlog`, `workers`, `overload`, `idle`, `park` and `filters` each compare one load
//! under several conditions. Everything runs on this machine, over loopback, and ends by itself.

mod backlog;
mod crowd;
mod deployment;
mod filters;
mod floor;
mod http;
mod isolation;
mod load;
mod overload;
mod park;
mod receiver;
mod report;
mod spread;
mod throttle;
mod workers;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};

use crate::{
    deployment::Deployment,
    load::Load,
    report::{Report, Round},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// From posting to the 202.
    Ingest,
    /// From posting to the arrival of the webhook, with one subscription and the receiver on this machine.
    E2e,
    /// What subscribers that hang cost the others: one load, and more and more of its subscriptions hanging.
    Isolation,
    /// What a backlog for one dead subscriber costs the others, and a worker's memory; and how it drains.
    Backlog,
    /// One load on one, two and four workers: the rate, and the share of each.
    Workers,
    /// Twice as much as ingest can take, its way to the broker being slow: what is accepted, and how soon the rest is refused.
    Overload,
    /// What connections that do nothing cost those that do something.
    Idle,
    /// What it costs to disable and enable a subscription, with few deliveries parked and with many (servers only).
    Park,
    /// What filters cost: evaluating, compiling, and an event's way where an organization has many.
    Filters,
}

/// What the deployment runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// `ingest`, `worker` and `api` on RabbitMQ and PostgreSQL.
    Servers,
    /// `triggers serve` on SQLite.
    Embedded,
}

/// Measures Triggers on this machine, beside the floor: the bare confirm of the queue.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Args {
    /// What to measure.
    scenario: Scenario,
    /// What to run on.
    #[arg(long, default_value = "servers")]
    engine: Engine,
    /// Closed loop: this many connections, each posting as soon as it is answered.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,
    /// Open loop: this many events a second, whatever the answers (over 64 connections).
    #[arg(long, conflicts_with = "connections", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// ingest: post events in batches of so many, over as many connections; the floor is a message a batch.
    #[arg(long, default_value_t = 1, conflicts_with = "rate", value_parser = clap::value_parser!(u64).range(1..=1_000))]
    batch: u64,
    /// How long to post, over all rounds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// In how many rounds: each measures the floor and then the load, so that both meet the same moments of a noisy
    /// machine.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How large a payload is.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(64..=262_144))]
    payload_bytes: u32,
    /// How many workers to start (servers only) [default: 0 for ingest, whose floor has no store to share the disk with;
    /// 1 for e2e].
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=8))]
    workers: Option<u8>,
    /// Over how many queues events are spread (servers only).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    queues: u8,
    /// isolation, backlog, workers: how many subscriptions there are, each with a type of its own.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    subscriptions: u64,
    /// Of how many organizations they are, in turn; ingest: how many organizations post, in turn [default: 1 for ingest, and
    /// 100 for the others].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    organizations: Option<u64>,
    /// isolation: how many of the subscriptions hang, one number a run; the first is what the others are compared to.
    #[arg(long, default_value = "0,1,100,500", value_delimiter = ',')]
    hanging: Vec<u64>,
    /// isolation: how long an attempt may take.
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(1_000..=30_000))]
    timeout_ms: u32,
    /// backlog: how many events to post for the dead subscriber.
    #[arg(long, default_value_t = 1_000_000)]
    count: u64,
    /// backlog: how many of those a second [default: as fast as ingest takes them, over 64 connections or --connections].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    growth: Option<u32>,
    /// overload: how long what ingest and the broker say to each other takes to arrive.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..=500))]
    delay_ms: u64,
    /// idle: how many connections do nothing.
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// park: how many deliveries are parked, of one subscription each.
    #[arg(long, default_value = "1000,1000000", value_delimiter = ',')]
    parked: Vec<u64>,
    /// Where to write the report as JSON.
    #[arg(long, default_value = "bench-report.json")]
    json: PathBuf,
    /// PostgreSQL, with the right to create a database; the bench makes one of its own and drops it.
    #[arg(
        long,
        env = "TRIGGERS_BENCH_DATABASE_URL",
        default_value = "postgres://postgres@127.0.0.1:5432/postgres"
    )]
    database_url: String,
    /// RabbitMQ; the bench uses queues of its own and deletes them.
    #[arg(
        long,
        env = "TRIGGERS_BENCH_AMQP_URL",
        default_value = "amqp://guest:guest@127.0.0.1:5672/%2f"
    )]
    amqp_url: String,
}

impl Args {
    fn organizations(&self) -> u64 {
        self.organizations.unwrap_or(match self.scenario {
            Scenario::Ingest | Scenario::E2e => 1,
            _ => 100,
        })
    }

    fn workers(&self) -> u8 {
        self.workers.unwrap_or(match self.scenario {
            Scenario::Ingest => 0,
            _ => 1,
        })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // One thread for the generator and the receiver: they are to take as little as they can from what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(args)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let report = match args.scenario {
        Scenario::Ingest | Scenario::E2e => return measure(args).await,
        Scenario::Isolation => isolation::run(&args).await?,
        Scenario::Backlog => backlog::run(&args).await?,
        Scenario::Workers => workers::run(&args).await?,
        Scenario::Overload => overload::run(&args).await?,
        Scenario::Idle => crowd::run(&args).await?,
        Scenario::Park => park::run(&args).await?,
        Scenario::Filters => filters::run(&args).await?,
    };
    std::fs::write(&args.json, serde_json::to_string_pretty(&report)?)?;
    eprintln!("the report is in {}", args.json.display());
    Ok(())
}

async fn measure(args: Args) -> anyhow::Result<()> {
    let shape = match args.rate {
        Some(rate) => load::Shape::Open {
            rate,
            connections: load::OPEN_CONNECTIONS,
        },
        None => load::Shape::Closed {
            connections: args.connections,
        },
    };
    let length = Duration::from_secs(args.seconds) / args.rounds;
    let payload = args.payload_bytes as usize;
    anyhow::ensure!(
        args.batch == 1 || args.scenario == Scenario::Ingest,
        "--batch is for ingest"
    );

    eprintln!("starting {:?} …", args.engine);
    let deployment = Deployment::of(&args, args.workers()).await?;
    let idle = deployment.memory()?;
    let measured = async {
        let receiver = match args.scenario {
            Scenario::E2e => {
                let receiver = receiver::start().await?;
                deployment.subscribe(receiver.address).await?;
                Some(receiver)
            }
            _ => None,
        };
        let mut keys = vec![deployment.key.clone()];
        if args.scenario == Scenario::Ingest {
            for _ in 1..args.organizations() {
                keys.push(deployment.organization().await?);
            }
        }
        let load = Load {
            target: deployment.ingest,
            types: keys.len() as u64,
            keys,
            payload,
            batch: args.batch,
        };
        // What is around each payload is in the floor, too.
        let bytes = (payload + floor::AROUND) * args.batch as usize;
        eprintln!("warming up …");
        let mut posted = load.run(shape, Duration::from_secs(2), 0).await?.posted();
        let mut rounds = Vec::new();
        for round in 1..=args.rounds {
            if let Some(receiver) = &receiver {
                receiver.settle(posted).await;
            }
            eprintln!(
                "round {round} of {}: the floor, then {:.1} s …",
                args.rounds,
                length.as_secs_f64()
            );
            let floor = match args.engine {
                Engine::Servers => {
                    floor::rabbit(&args.amqp_url, shape, bytes, length.min(Duration::from_secs(10))).await?
                }
                Engine::Embedded => floor::sqlite(bytes).await?,
            }
            .of_events(args.batch);
            let run = load.run(shape, length, posted).await?;
            posted = run.posted();
            rounds.push(Round { floor, run });
        }
        let arrivals = match &receiver {
            Some(receiver) => {
                receiver.settle(posted).await;
                Some(receiver.arrivals())
            }
            None => None,
        };
        anyhow::Ok((rounds, arrivals, deployment.memory()?))
    }
    .await;
    let left = deployment.end().await;
    let (rounds, arrivals, memory) = measured?;
    let report = Report::new(&args, &rounds, arrivals.as_ref(), &idle, &memory);
    println!("{report}");
    std::fs::write(&args.json, serde_json::to_string_pretty(&report.to_json())?)?;
    eprintln!("the report is in {}", args.json.display());
    left
}
