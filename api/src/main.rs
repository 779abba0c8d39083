//! `api`: serves every route: keys, subscriptions, inbox, deliveries, and posting events.

use std::{net::SocketAddr, process::ExitCode, sync::Arc};

use api::{Api, Signup, Targets};
use clap::Parser;
use ingest::{Ingest, QueueReady};
use shared::{
    auth::Auth,
    config::{self, ControlArgs, EngineArgs, OutboundArgs, ProcessArgs},
    engine::Engine,
    http::{ops, server},
    process,
    queue::Publisher,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves every route of the API: organizations, keys, subscriptions, events, inbox; and the posting of events too.
#[derive(Debug, Parser)]
#[command(name = "api", version)]
struct Args {
    /// Where to listen.
    #[arg(long, env = "TRIGGERS_LISTEN", default_value = "0.0.0.0:8081", value_name = "ADDRESS", value_parser = config::parse_listen)]
    listen: SocketAddr,
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    outbound: OutboundArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    process: ProcessArgs,
}

fn main() -> ExitCode {
    let args: Args = config::parse_or_exit();
    process::run(&args.process, async |lifecycle, metrics| {
        let targets = Targets {
            policy: args.outbound.policy()?,
            from_this_machine: None,
        };
        let admin_token = args.control.admin_token()?;
        let signup = if args.control.open_signup == Some(true) {
            Signup::Open
        } else {
            Signup::AdminOnly
        };
        let engine = Engine::open(&args.engine, None).await?;
        let (listener, _) = process::listen(args.listen).await?;
        if args.engine.migrate {
            let (engine, migrating) = (engine.clone(), lifecycle.clone());
            lifecycle.critical("migration", async move {
                process::migrate(&engine, &migrating).await.map(drop)
            });
        }
        let publisher = Publisher::start(Arc::clone(&engine.queue), &lifecycle);
        let auth = Auth::start(engine.store.clone(), &lifecycle);
        let ready = QueueReady(publisher.clone());
        let api = Api {
            store: engine.store.clone(),
            sealer: Arc::clone(&engine.sealer),
            auth: Arc::clone(&auth),
            publisher: publisher.clone(),
            targets,
            signup,
            admin_token,
        };
        let store = ops::StoreReady(engine.store.clone());
        let ops = ops::Ops {
            role: "api",
            checks: Arc::new([Box::new(ready), Box::new(store)]),
            metrics,
        };
        let routes = ingest::routes(Ingest::new(auth, publisher)).merge(api::routes(Arc::new(api)));
        let routes = server::with_fallbacks(routes.merge(ops::routes(ops)));
        lifecycle.critical("http", server::serve(listener, routes, lifecycle.clone()));
        Ok(Some(engine))
    })
}
