//! `worker`: takes events out of the queue, stores them, and delivers them.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use clap::Parser;
use shared::{
    config::{self, EngineArgs, OutboundArgs, ProcessArgs, RetentionArgs, WorkerArgs},
    engine::Engine,
    http::{ops, server},
    process,
    trace::TraceArgs,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes events out of the queue, deduplicates and stores them, and pushes them to subscribers with retries. Any number
/// of workers run at once.
#[derive(Debug, Parser)]
#[command(name = "worker", version)]
struct Args {
    /// Where to listen, for health and metrics alone.
    #[arg(long, env = "TRIGGERS_LISTEN", default_value = "0.0.0.0:8082", value_name = "ADDRESS", value_parser = config::parse_listen)]
    listen: SocketAddr,
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    retention: RetentionArgs,
    #[command(flatten)]
    outbound: OutboundArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    process: ProcessArgs,
}

fn main() -> ExitCode {
    let args: Args = config::parse_or_exit();
    process::run(&args.process, Some(&args.traces), async |lifecycle, metrics| {
        let client = worker::Outbound::new(args.outbound.policy()?, args.worker.extra_ca_file.as_deref())?;
        let engine = Engine::open(&args.engine, None).await?;
        let (listener, _) = process::listen(args.listen).await?;
        let checks = Arc::new(worker::ready_checks(&engine));
        let ops = ops::routes(ops::Ops {
            role: "worker",
            checks,
            metrics,
        });
        lifecycle.critical(
            "http",
            server::serve(listener, server::with_fallbacks(ops), lifecycle.clone()),
        );
        let (working, starting) = (engine.clone(), lifecycle.clone());
        lifecycle.critical("start", async move {
            if process::prepare(&working, args.engine.migrate, &starting).await? {
                let retention = args.retention.retention();
                worker::start(&working, client, &args.worker, retention, &starting)?;
            }
            Ok(())
        });
        Ok(Some(engine))
    })
}
