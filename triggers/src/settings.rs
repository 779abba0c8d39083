//! `triggers config`: the settings that are in force.

use std::process::ExitCode;

use clap::ArgMatches;
use serde_json::json;
use shared::config::{self, Setting};

use crate::{
    client::{self, Connection, Failure, Output},
    serve,
};

/// Its own options, and every setting of the server's and of the client's commands.
#[derive(Debug, clap::Args)]
// The server's are a group of the same name.
#[group(skip)]
pub struct Args {
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: serve::Args,
    #[command(flatten)]
    client: Connection,
}

/// Prints them, or names the one that is wrong.
pub fn run(args: &Args, program: &clap::Command, matches: &ArgMatches) -> ExitCode {
    client::print(|output| {
        args.server.check().map_err(Failure::from_start)?;
        args.client.check().map_err(Failure::from_start)?;
        let found = program.find_subcommand("config").zip(matches.subcommand());
        let settings = found.map(|(command, (_, matches))| config::in_force(command, matches));
        let settings = settings.unwrap_or_default();
        let environment = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let unknown = config::unknown(&settings, environment);
        show(output, args.json, &settings, &unknown)
    })
}

fn show(output: &mut Output, json: bool, settings: &[Setting], unknown: &[String]) -> Result<(), Failure> {
    if json {
        let settings: Vec<_> = settings
            .iter()
            .map(|setting| {
                json!({
                    "name": setting.name,
                    "flag": setting.flag,
                    "value": setting.value,
                    "from": setting.origin.as_str(),
                })
            })
            .collect();
        let document = json!({"settings": settings, "unknown": unknown});
        return output.line(&document.to_string());
    }
    let rows = settings.iter().map(|setting| {
        let value = setting.value.as_deref().unwrap_or("-");
        vec![
            setting.name.clone(),
            value.to_owned(),
            setting.origin.as_str().to_owned(),
        ]
    });
    output.rows(&["SETTING", "VALUE", "FROM"], rows.collect())?;
    for name in unknown {
        output.note(&format!("{name} is set, and is no setting: misspelt?"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command};

    use super::*;

    #[test]
    fn whatever_is_named_like_a_secret_is_hidden() {
        let command = Args::augment_args(Command::new("config"));
        let hidden: Vec<_> = command
            .get_arguments()
            .filter(|arg| arg.is_hide_env_values_set())
            .filter_map(|arg| arg.get_env()?.to_str())
            .collect();
        for arg in command.get_arguments() {
            let Some(name) = arg.get_env().and_then(|name| name.to_str()) else {
                continue;
            };
            let secret = [
                "KEY",
                "TOKEN",
                "SECRET",
                "PASSWORD",
                "DATABASE_URL",
                "AMQP_URL",
                "HEADERS",
                "ENDPOINT",
            ]
            .iter()
            .any(|word| name.replace("KEYLESS", "").contains(word));
            assert_eq!(secret, hidden.contains(&name), "{name}");
        }
        assert_eq!(hidden.len(), 9, "{hidden:?}");
    }
}
