//! `triggers`: every role in one process, and the command line.

mod dev;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shared::{
    config::{self, DataDirArgs, EngineArgs, ProcessArgs},
    engine::Engine,
    process,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Events in over HTTP; out as signed webhooks with retries, or into an inbox. Without a command: triggers dev.
#[derive(Debug, Parser)]
#[command(name = "triggers", version)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All of it in one process on this machine, with conveniences for one person: a ready-made API key, open signup and
    /// webhooks to loopback.
    Dev(serve::Args),
    /// All of it in one process, on the servers that the two URLs name, or embedded; none of dev's conveniences unless
    /// set.
    Serve(serve::Args),
    /// Brings the schema up to date, and ends.
    Migrate {
        #[command(flatten)]
        engine: EngineArgs,
        #[command(flatten)]
        data_dir: DataDirArgs,
        #[command(flatten)]
        process: ProcessArgs,
    },
}

fn main() -> ExitCode {
    let args: Args = config::parse_or_exit();
    match args.command.unwrap_or_else(serve::Args::dev_by_default) {
        Command::Dev(args) => serve::run(&args, serve::Mode::Dev),
        Command::Serve(args) => serve::run(&args, serve::Mode::Serve),
        Command::Migrate {
            engine,
            data_dir,
            process,
        } => process::run(&process, async |lifecycle, _| {
            let engine = Engine::open(&engine, Some(&data_dir.data_dir)).await?;
            if process::migrate(&engine, &lifecycle).await? {
                println!("the schema is up to date");
            }
            lifecycle.soft.cancel();
            Ok(Some(engine))
        }),
    }
}
