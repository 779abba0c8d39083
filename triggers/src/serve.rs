//! Every role in one process: `triggers serve` and `triggers dev`.

use std::{net::SocketAddr, process::ExitCode};

use api::{Signup, Targets};
use clap::Parser;
use shared::{
    config::{
        self, AddressArgs, ControlArgs, DataDirArgs, EngineArgs, OutboundArgs, ProcessArgs, RetentionArgs,
        SettingError, WorkerArgs,
    },
    engine::Engine,
    guard::TargetPolicy,
    http::server,
    lookup::Lookups,
    process, telemetry,
    trace::TraceArgs,
};

use crate::dev;

/// Settings of `triggers serve` and `triggers dev`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Where to listen.
    #[arg(long, env = "TRIGGERS_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS", value_parser = config::parse_listen)]
    listen: SocketAddr,
    #[command(flatten)]
    data_dir: DataDirArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    addresses: AddressArgs,
    #[command(flatten)]
    outbound: OutboundArgs,
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    retention: RetentionArgs,
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    process: ProcessArgs,
}

impl Args {
    /// Says what is wrong with the settings, as far as that can be told without starting.
    pub fn check(&self) -> anyhow::Result<()> {
        telemetry::log_filter(&self.process.log).map_err(SettingError::of("TRIGGERS_LOG"))?;
        self.traces.check()?;
        self.control.admin_token()?;
        worker::Outbound::new(self.outbound.policy()?, self.worker.extra_ca_file.as_deref())?;
        Engine::check(&self.engine, Some(&self.data_dir.data_dir))?;
        Ok(())
    }
}

/// How much is made easy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For one person on one machine.
    Dev,
    /// Nothing that is not set.
    Serve,
}

/// Runs until asked to stop.
pub fn run(args: &Args, mode: Mode) -> ExitCode {
    process::run(&args.process, Some(&args.traces), async |lifecycle, metrics| {
        let admin_token = args.control.admin_token()?;
        // Conveniences are for whoever sits at this machine: they need a listener that only this machine reaches.
        let near = mode == Mode::Dev && args.listen.ip().is_loopback();
        let signup = match args.control.open_signup {
            Some(true) => Signup::Open,
            None if near => Signup::FromThisMachine,
            _ => Signup::AdminOnly,
        };
        let addresses = args.addresses.rules()?;
        let bounds = addresses.bounds();
        let policy = args.outbound.policy()?;
        let opened = TargetPolicy {
            this_machine: near && args.outbound.allow_private_targets.is_none(),
            ..policy.clone()
        };
        let client = worker::Outbound::new(opened.clone(), args.worker.extra_ca_file.as_deref())?;
        let targets = Targets {
            policy,
            from_this_machine: opened.this_machine.then(|| opened.clone()),
            lookups: Lookups::default(),
        };
        let engine = Engine::open(&args.engine, Some(&args.data_dir.data_dir)).await?;
        if !process::prepare(&engine, args.engine.migrate, &lifecycle).await? {
            return Ok(Some(engine));
        }
        let (listener, address) = process::listen(args.listen).await?;
        let retention = args.retention.retention();
        worker::start(&engine, client, &args.worker, retention, &lifecycle)?;
        let settings = api::process::Settings {
            role: "all",
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
        if mode == Mode::Dev {
            let key_file = dev::ready_made_key(&engine, &args.data_dir.data_dir).await?;
            dev::greet(address, &key_file);
        }
        Ok(Some(engine))
    })
}
