//! Settings: flags, or environment variables named `TRIGGERS_…`, each documented with its default on its field.
//!
//! A wrong setting stops the start with one line that names it and the fix.

mod in_force;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};

pub use self::in_force::{Origin, Setting, in_force, unknown};
use crate::{Invalid, auth::AddressRules, guard::TargetPolicy};

/// A setting that is wrong, and how to put it right.
#[derive(Debug, thiserror::Error)]
#[error("{name} {rule}")]
pub struct SettingError {
    name: &'static str,
    rule: String,
}

impl SettingError {
    /// For the setting of this name.
    pub fn new(name: &'static str, rule: impl Into<String>) -> Self {
        Self {
            name,
            rule: rule.into(),
        }
    }

    /// Gives an [`Invalid`] the setting's name.
    pub fn of(name: &'static str) -> impl FnOnce(Invalid) -> Self {
        move |invalid| Self::new(name, invalid.rule())
    }
}

/// Reads the process's settings; on a wrong one prints one line and exits with 2. `--help` and `--version` print and
/// exit with 0.
pub fn parse_or_exit<P: CommandFactory + FromArgMatches>() -> P {
    parse_or_exit_from(std::env::args_os())
}

/// As [`parse_or_exit`], from these arguments; the first is the command's name.
pub fn parse_or_exit_from<P: CommandFactory + FromArgMatches>(
    arguments: impl IntoIterator<Item = OsString>,
) -> P {
    parse_or_exit_with_matches(arguments).0
}

/// As [`parse_or_exit_from`], with where each value is from.
pub fn parse_or_exit_with_matches<P: CommandFactory + FromArgMatches>(
    arguments: impl IntoIterator<Item = OsString>,
) -> (P, ArgMatches) {
    parse(arguments).unwrap_or_else(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        _ => {
            eprintln!("{}", one_line::<P>(&error));
            std::process::exit(2);
        }
    })
}

fn parse<P: CommandFactory + FromArgMatches>(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(P, ArgMatches), clap::Error> {
    let matches = P::command().try_get_matches_from(arguments)?;
    Ok((P::from_arg_matches(&matches)?, matches))
}

/// clap's message in one line, with the environment variable that the option may have come from.
fn one_line<P: CommandFactory>(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut line = text
        .lines()
        .next()
        .unwrap_or("error: wrong settings")
        .trim_end()
        .to_owned();
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) => {
            let long = option
                .trim_start_matches('-')
                .split([' ', '='])
                .next()
                .unwrap_or_default();
            if let Some(variable) = variable_of(&P::command(), long) {
                line = format!("{line} (or the environment variable {variable})");
            }
        }
        // What is missing is on lines of its own.
        Some(ContextValue::Strings(missing)) => {
            line = format!("{line} {}", missing.join(" "));
        }
        _ => {}
    }
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue) {
        line = format!("{line}: must be {}", values.join(" or "));
    }
    line.push_str("; see --help");
    line
}

/// The environment variable beside an option, of the command or of one below it.
fn variable_of(command: &clap::Command, long: &str) -> Option<String> {
    let known = command.get_arguments().find(|arg| arg.get_long() == Some(long));
    match known.and_then(clap::Arg::get_env) {
        Some(variable) => Some(variable.display().to_string()),
        None => command
            .get_subcommands()
            .find_map(|command| variable_of(command, long)),
    }
}

/// What every process has.
#[derive(Debug, Clone, Args)]
pub struct ProcessArgs {
    /// Which log lines to show: a level, or levels by module, as info,worker=debug.
    #[arg(long, env = "TRIGGERS_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    /// How long to finish what is under way once asked to stop.
    #[arg(long, env = "TRIGGERS_SHUTDOWN_SECONDS", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub shutdown_seconds: u64,
}

impl ProcessArgs {
    /// [`ProcessArgs::shutdown_seconds`] as a duration.
    pub const fn shutdown_deadline(&self) -> Duration {
        Duration::from_secs(self.shutdown_seconds)
    }
}

/// Where events are queued and stored.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// PostgreSQL (14 or later), as `postgres://user:password@host:5432/database`.
    #[arg(
        long,
        env = "TRIGGERS_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub database_url: Option<String>,

    /// RabbitMQ (3.10 or later), as `amqp://user:password@host:5672/%2f`; amqps:// for TLS.
    #[arg(long, env = "TRIGGERS_AMQP_URL", value_name = "URL", hide_env_values = true)]
    pub amqp_url: Option<String>,

    /// Seals secrets at rest: the base64 of 32 bytes, the same for every process of a deployment. Make one with:
    /// openssl rand -base64 32
    #[arg(
        long,
        env = "TRIGGERS_SECRET_KEY",
        value_name = "BASE64",
        hide_env_values = true
    )]
    pub secret_key: Option<String>,

    /// Keys that secrets may still be sealed under, with commas between: they open and do not seal. Needed while the
    /// secret key is changed; see triggers reseal
    #[arg(
        long,
        env = "TRIGGERS_FORMER_SECRET_KEYS",
        value_name = "BASE64,…",
        hide_env_values = true
    )]
    pub former_secret_keys: Option<String>,

    /// The most connections to PostgreSQL of this process.
    #[arg(long, env = "TRIGGERS_DATABASE_CONNECTIONS", default_value_t = 10, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(2..=1_000))]
    pub database_connections: u32,

    /// Whether to bring the schema up to date at the start.
    #[arg(long, env = "TRIGGERS_MIGRATE", default_value_t = true, value_name = "BOOL", action = ArgAction::Set)]
    pub migrate: bool,

    /// What the names of the RabbitMQ queues begin with.
    #[arg(
        long,
        env = "TRIGGERS_QUEUE_PREFIX",
        default_value = "triggers.",
        value_name = "TEXT"
    )]
    pub queue_prefix: String,

    /// How many RabbitMQ queues events are spread over, by organization; workers take from all of them. One suits all but
    /// deployments that a single queue holds up.
    #[arg(long, env = "TRIGGERS_QUEUES", default_value_t = 1, value_name = "NUMBER",
          value_parser = clap::value_parser!(u8).range(1..=i64::from(crate::queue::MAX_QUEUES)))]
    pub queues: u8,

    /// How often RabbitMQ may return a frame before it is taken in alone, apart from the rest. Fixed once the queue
    /// exists.
    #[arg(long, env = "TRIGGERS_QUEUE_DELIVERY_LIMIT", default_value_t = 20, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue_delivery_limit: u32,

    /// The most bytes of frames that wait in each RabbitMQ queue before posts are answered with 503. Fixed once the queue exists.
    #[arg(long, env = "TRIGGERS_QUEUE_MAX_BYTES", default_value_t = 8 << 30, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub queue_max_bytes: u64,
}

/// Where the embedded engine keeps its files.
#[derive(Debug, Clone, Args)]
pub struct DataDirArgs {
    /// Where the embedded engine keeps its files, where no URLs name servers.
    #[arg(
        long,
        env = "TRIGGERS_DATA_DIR",
        default_value = "./triggers-data",
        value_name = "DIRECTORY"
    )]
    pub data_dir: PathBuf,
}

/// What pushes may reach.
#[derive(Debug, Clone, Args)]
pub struct OutboundArgs {
    /// Networks that webhooks may reach though they are not public, separated by commas, as `10.0.0.0/8,::1/128`. Any
    /// port and plain http are open in them.
    #[arg(long, env = "TRIGGERS_ALLOW_PRIVATE_TARGETS", value_name = "NETWORKS")]
    pub allow_private_targets: Option<String>,

    /// Ports that webhooks may use besides 80 and 443, separated by commas.
    #[arg(long, env = "TRIGGERS_ALLOW_TARGET_PORTS", value_name = "PORTS")]
    pub allow_target_ports: Option<String>,

    /// Whether webhooks may be sent over plain http.
    #[arg(long, env = "TRIGGERS_ALLOW_HTTP_TARGETS", default_value_t = false, value_name = "BOOL",
          action = ArgAction::Set)]
    pub allow_http_targets: bool,
}

impl OutboundArgs {
    /// The policy that they make.
    pub fn policy(&self) -> Result<TargetPolicy, SettingError> {
        let networks = self.allow_private_targets.as_deref().unwrap_or_default();
        let ports = self.allow_target_ports.as_deref().unwrap_or_default();
        let ports = ports
            .split(',')
            .map(str::trim)
            .filter(|port| !port.is_empty())
            .map(str::parse);
        Ok(TargetPolicy {
            private: TargetPolicy::parse_networks(networks)
                .map_err(SettingError::of("TRIGGERS_ALLOW_PRIVATE_TARGETS"))?,
            ports: ports.collect::<Result<_, _>>().map_err(|_| {
                SettingError::new(
                    "TRIGGERS_ALLOW_TARGET_PORTS",
                    "must be port numbers separated by commas",
                )
            })?,
            http: self.allow_http_targets,
            ..TargetPolicy::default()
        })
    }
}

/// What one address may do.
#[derive(Debug, Clone, Args)]
pub struct AddressArgs {
    /// How many requests without a valid API key an address may make in a minute, at each process; 0 is no limit. A minute's
    /// worth may come at once.
    #[arg(long, env = "TRIGGERS_KEYLESS_PER_MINUTE", default_value_t = 600, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub keyless_per_minute: u32,

    /// How many connections an address may have at once, at each process; 0 is no limit but that of all, which is 16,384.
    /// Trusted proxies have as many as they like.
    #[arg(long, env = "TRIGGERS_CONNECTIONS_PER_ADDRESS", default_value_t = 1_024, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub connections_per_address: u32,

    /// Networks of proxies in front of this process that add to X-Forwarded-For from whom they have a request, separated by commas, as
    /// `10.0.0.0/8`. Unless set, whoever connects is whom a request is from.
    #[arg(long, env = "TRIGGERS_TRUSTED_PROXIES", value_name = "NETWORKS")]
    pub trusted_proxies: Option<String>,
}

impl AddressArgs {
    /// The rules that they make.
    pub fn rules(&self) -> Result<AddressRules, SettingError> {
        let networks = self.trusted_proxies.as_deref().unwrap_or_default();
        Ok(AddressRules {
            per_minute: Some(self.keyless_per_minute).filter(|limit| *limit > 0),
            connections: Some(self.connections_per_address as usize).filter(|most| *most > 0),
            trusted_proxies: TargetPolicy::parse_networks(networks)
                .map_err(SettingError::of("TRIGGERS_TRUSTED_PROXIES"))?,
        })
    }
}

/// Who may do what no API key can.
#[derive(Debug, Clone, Args)]
pub struct ControlArgs {
    /// The token that creates organizations and handles what was set aside: at least 16 characters. Without it, and
    /// without open signup, nobody can.
    #[arg(
        long,
        env = "TRIGGERS_ADMIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub admin_token: Option<String>,

    /// Whether anybody may create an organization [default: false; under triggers dev: from this machine only]
    #[arg(long, env = "TRIGGERS_OPEN_SIGNUP", value_name = "BOOL", action = ArgAction::Set)]
    pub open_signup: Option<bool>,
}

impl ControlArgs {
    /// The token, if one is set and long enough.
    pub fn admin_token(&self) -> Result<Option<secrecy::SecretString>, SettingError> {
        match self.admin_token.as_deref() {
            None | Some("") => Ok(None),
            Some(token) if token.len() >= 16 => Ok(Some(token.to_owned().into())),
            Some(_) => Err(SettingError::new(
                "TRIGGERS_ADMIN_TOKEN",
                "must be at least 16 characters",
            )),
        }
    }
}

/// How long events are kept.
#[derive(Debug, Clone, Args)]
pub struct RetentionArgs {
    /// How many days events and their deliveries are kept.
    #[arg(long, env = "TRIGGERS_RETENTION_DAYS", default_value_t = 30, value_name = "DAYS",
          value_parser = clap::value_parser!(u16).range(1..=3_650))]
    pub retention_days: u16,
}

impl RetentionArgs {
    /// [`RetentionArgs::retention_days`] as a duration.
    pub const fn retention(&self) -> Duration {
        Duration::from_hours(24 * self.retention_days as u64)
    }
}

/// How events are delivered.
#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    /// How many days entries of the audit log are kept.
    #[arg(long, env = "TRIGGERS_AUDIT_LOG_DAYS", default_value_t = 400, value_name = "DAYS",
          value_parser = clap::value_parser!(u16).range(1..=3_650))]
    pub audit_log_days: u16,

    /// The most attempts under way at once, over all subscriptions.
    #[arg(long, env = "TRIGGERS_MAX_ATTEMPTS", default_value_t = 512, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_attempts: u32,

    /// How many seconds a subscription may fail without one success before it is disabled: five days unless set.
    #[arg(long, env = "TRIGGERS_DISABLE_AFTER_SECONDS", default_value_t = 432_000, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..=31_536_000))]
    pub disable_after_seconds: u32,

    /// A PEM file of certificate authorities that webhooks over TLS may be answered under, beside the public ones: those of a
    /// private network, as a rule.
    #[arg(long, env = "TRIGGERS_EXTRA_CA_FILE", value_name = "FILE")]
    pub extra_ca_file: Option<PathBuf>,
}

/// Reads an address to listen on.
pub fn parse_listen(text: &str) -> Result<SocketAddr, Invalid> {
    text.parse()
        .map_err(|_| Invalid::new("must be an address and a port, as 127.0.0.1:8080 or [::]:8080"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Whole {
        #[command(flatten)]
        worker: WorkerArgs,
        #[command(flatten)]
        retention: RetentionArgs,
        #[command(flatten)]
        outbound: OutboundArgs,
        #[arg(long, env = "TRIGGERS_LISTEN", default_value = "0.0.0.0:8080", value_parser = parse_listen)]
        listen: SocketAddr,
    }

    fn wrong(arguments: &[&str]) -> String {
        let arguments = std::iter::once("worker")
            .chain(arguments.iter().copied())
            .map(OsString::from);
        one_line::<Whole>(&parse::<Whole>(arguments).map(drop).unwrap_err())
    }

    #[test]
    fn a_wrong_setting_is_one_line_that_names_it_and_the_fix() {
        insta::assert_snapshot!(wrong(&["--listen", "localhost"]));
        insta::assert_snapshot!(wrong(&["--retention-days", "0"]));
        insta::assert_snapshot!(wrong(&["--bogus"]));
        let outbound = OutboundArgs {
            allow_private_targets: Some("localhost".into()),
            allow_target_ports: None,
            allow_http_targets: false,
        };
        insta::assert_snapshot!(outbound.policy().unwrap_err().to_string());
    }
}
