//! `api`: serves every route: keys, subscriptions, inbox, deliveries, and posting events.

use std::{net::SocketAddr, process::ExitCode};

use api::{Signup, Targets};
use clap::Parser;
use shared::{
    config::{self, AddressArgs, ControlArgs, EngineArgs, OutboundArgs, ProcessArgs, RetentionArgs},
    engine::Engine,
    http::server,
    lookup::Lookups,
    process,
    trace::TraceArgs,
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
    retention: RetentionArgs,
    #[command(flatten)]
    addresses: AddressArgs,
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
        let targets = Targets {
            policy: args.outbound.policy()?,
            from_this_machine: None,
            lookups: Lookups::default(),
        };
        let admin_token = args.control.admin_token()?;
        let signup = if args.control.open_signup == Some(true) {
            Signup::Open
        } else {
            Signup::AdminOnly
        };
        let addresses = args.addresses.rules()?;
        let bounds = addresses.bounds();
        let engine = Engine::open(&args.engine, None).await?;
        let (listener, _) = process::listen(args.listen).await?;
        let (preparing, until) = (engine.clone(), lifecycle.clone());
        // Beside the work: what needs no store is answered without it.
        lifecycle.critical("start", async move {
            process::prepare(&preparing, args.engine.migrate, &until)
                .await
                .map(drop)
        });
        let settings = api::process::Settings {
            role: "api",
            targets,
            signup,
            admin_token,
            retention_days: args.retention.retention_days,
            addresses,
        };
        let routes = api::process::routes(&engine, settings, metrics, &lifecycle);
        lifecycle.critical(
            "http",
            server::serve_within(bounds, listener, routes, lifecycle.clone()),
        );
        Ok(Some(engine))
    })
}
