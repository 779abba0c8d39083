//! `ingest`: takes events over HTTP, and puts them into the queue.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use clap::Parser;
use ingest::{Ingest, QueueReady};
use shared::{
    auth::Auth,
    config::{self, AddressArgs, EngineArgs, ProcessArgs},
    engine::Engine,
    http::{ops, reference, server},
    process,
    queue::Publisher,
    trace::TraceArgs,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes events over HTTP: authenticates, validates, puts them into the queue, and answers 202 once they are on disk.
#[derive(Debug, Parser)]
#[command(name = "ingest", version)]
struct Args {
    /// Where to listen.
    #[arg(long, env = "TRIGGERS_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS", value_parser = config::parse_listen)]
    listen: SocketAddr,
    #[command(flatten)]
    addresses: AddressArgs,
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
        let addresses = args.addresses.rules()?;
        let bounds = addresses.bounds();
        let engine = Engine::open(&args.engine, None).await?;
        let (listener, _) = process::listen(args.listen).await?;
        if args.engine.migrate {
            // Beside the work: the front needs the store for keys that it does not know yet, and for nothing else.
            let (engine, migrating) = (engine.clone(), lifecycle.clone());
            lifecycle.critical("migration", async move {
                process::migrate(&engine, &migrating).await.map(drop)
            });
        }
        let publisher = Publisher::start(Arc::clone(&engine.queue), &lifecycle);
        let auth = Auth::start(&engine, addresses, &lifecycle);
        let ready = QueueReady(publisher.clone());
        let routes = ingest::routes(Ingest::start(&engine, auth, publisher, &lifecycle));
        let ops = ops::Ops {
            role: "ingest",
            checks: Arc::new([Box::new(ready)]),
            metrics,
        };
        let routes = server::with_fallbacks(routes.merge(ops::routes(ops)).merge(reference::routes()));
        lifecycle.critical(
            "http",
            server::serve_within(bounds, listener, routes, lifecycle.clone()),
        );
        Ok(Some(engine))
    })
}
