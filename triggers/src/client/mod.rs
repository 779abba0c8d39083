//! The commands that are clients of the HTTP API: tables for people, `--json` for programs.
//!
//! They end with 0, with 1 for a problem (told on standard error), with 2 for a wrong use. Nothing prints the API key.

mod confirm;
mod events;
mod failure;
mod keys;
mod listing;
mod output;
mod patience;
mod replay;
mod request;
mod subscriptions;
mod terms;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use self::request::Client;
pub use self::{failure::Failure, output::Output, request::Connection};

/// What every one of them takes.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    connection: Connection,
    /// Prints JSON, as the API answers it: an object, or where there are several, one a line.
    #[arg(long, global = true)]
    json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// API keys: lists, creates, rotates, revokes them. Needs a key with the scope admin.
    Keys {
        #[command(flatten)]
        options: Options,
        #[command(subcommand)]
        command: keys::Command,
    },
    /// Subscriptions: what they are, how they fare, and all that changes them.
    Subscriptions {
        #[command(flatten)]
        options: Options,
        #[command(subcommand)]
        command: subscriptions::Command,
    },
    /// Events: sends, follows, shows, finds them.
    Events {
        #[command(flatten)]
        options: Options,
        #[command(subcommand)]
        command: events::Command,
    },
    /// Opens deliveries of a subscription again that have ended, and waits until that is done.
    Replay {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        replay: replay::Replay,
    },
}

impl Command {
    const fn options(&self) -> &Options {
        match self {
            Self::Keys { options, .. }
            | Self::Subscriptions { options, .. }
            | Self::Events { options, .. }
            | Self::Replay { options, .. } => options,
        }
    }

    async fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::Keys { command, .. } => command.run(client, output).await,
            Self::Subscriptions { command, .. } => command.run(client, output).await,
            Self::Events { command, .. } => command.run(client, output).await,
            Self::Replay { replay, .. } => replay.run(client, output).await,
        }
    }
}

/// Runs one.
pub fn run(command: Command) -> ExitCode {
    let json = command.options().json;
    let ran = || {
        let mut output = Output::new(json);
        let client = Client::new(&command.options().connection)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let ran = runtime.block_on(command.run(&client, &mut output));
        // A thread that still reads standard input ends with the process.
        runtime.shutdown_background();
        ran
    };
    ended(ran(), json)
}

/// Prints something, for a command that asks no server.
pub fn print(what: impl FnOnce(&mut Output) -> Result<(), Failure>) -> ExitCode {
    ended(what(&mut Output::new(false)), false)
}

fn ended(ran: Result<(), Failure>, json: bool) -> ExitCode {
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(json),
    }
}
