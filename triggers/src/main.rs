//! `triggers`: every role in one process, and the command line.

mod client;
mod dev;
mod serve;
mod settings;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use shared::{
    audit::{self, Origin},
    config::{self, DataDirArgs, EngineArgs, ProcessArgs},
    engine::Engine,
    process,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Events in over HTTP; out as signed webhooks with retries, or into an inbox. Without a command: triggers dev, with the
/// options of that.
#[derive(Debug, Parser)]
#[command(name = "triggers", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
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
    /// Seals every secret at rest anew under the current secret key, and ends. What was sealed under another opens by the
    /// former secret keys, which are not needed any more afterwards.
    Reseal {
        #[command(flatten)]
        engine: EngineArgs,
        #[command(flatten)]
        data_dir: DataDirArgs,
        #[command(flatten)]
        process: ProcessArgs,
    },
    /// Prints the description of the API as its routes give it: an OpenAPI 3.1 document.
    Openapi,
    /// Prints the settings that are in force, with where each is from; of secrets that they are set. A wrong one is named.
    Config(settings::Args),
    #[command(flatten)]
    Client(client::Command),
}

fn main() -> ExitCode {
    let arguments = dev_by_default(std::env::args_os().collect());
    let (args, matches): (Args, _) = config::parse_or_exit_with_matches(arguments);
    match args.command {
        Command::Dev(args) => serve::run(&args, serve::Mode::Dev),
        Command::Serve(args) => serve::run(&args, serve::Mode::Serve),
        Command::Openapi => client::print(|output| output.line(&format!("{:#}", api::document()))),
        Command::Config(args) => settings::run(&args, &Args::command(), &matches),
        Command::Client(command) => client::run(command),
        Command::Migrate {
            engine,
            data_dir,
            process,
        } => process::run(&process, None, async |lifecycle, _| {
            let engine = Engine::open(&engine, Some(&data_dir.data_dir)).await?;
            if process::migrate(&engine, &lifecycle).await? {
                println!("the schema is up to date");
            }
            lifecycle.soft.cancel();
            Ok(Some(engine))
        }),
        Command::Reseal {
            engine,
            data_dir,
            process,
        } => process::run(&process, None, async |lifecycle, _| {
            let engine = Engine::open(&engine, Some(&data_dir.data_dir)).await?;
            if process::migrate(&engine, &lifecycle).await?
                && let Some(done) =
                    audit::on_behalf(Origin::command(), process::reseal(&engine, &lifecycle)).await?
            {
                println!("every secret is sealed under the current key; {done} were not");
            }
            lifecycle.soft.cancel();
            Ok(Some(engine))
        }),
    }
}

/// Puts in the command `dev` where there is none: `triggers`, `triggers --data-dir elsewhere`.
fn dev_by_default(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let of_the_program = ["-h", "--help", "-V", "--version"];
    let has_none = arguments.get(1).is_none_or(|first| {
        first
            .to_str()
            .is_some_and(|first| first.starts_with('-') && !of_the_program.contains(&first))
    });
    if has_none {
        arguments.insert(arguments.len().min(1), "dev".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_is_dev() {
        let made = |arguments: &[&str]| dev_by_default(arguments.iter().map(OsString::from).collect());
        assert_eq!(made(&["triggers"]), ["triggers", "dev"]);
        assert_eq!(
            made(&["triggers", "--data-dir", "x"]),
            ["triggers", "dev", "--data-dir", "x"]
        );
        assert_eq!(made(&["triggers", "serve"]), ["triggers", "serve"]);
        assert_eq!(made(&["triggers", "--help"]), ["triggers", "--help"]);
    }
}
