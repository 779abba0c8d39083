//! Which settings are in force, and where each is from: read from the declaration that parses them, so that none can be
//! left out.

use std::ffi::OsStr;

use clap::{ArgMatches, Command, parser::ValueSource};
use url::Url;

/// What is shown of a secret.
const MASK: &str = "********";
/// Settings of the tests, which no program reads.
const OF_TESTS: &str = "TRIGGERS_TEST_";

/// A setting as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its environment variable.
    pub name: String,
    /// Its flag, with the dashes.
    pub flag: Option<String>,
    /// Its value; `None` if it has none. Of a secret what may be shown.
    pub value: Option<String>,
    /// Where that is from.
    pub origin: Origin,
}

/// Where a value is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

impl Origin {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Environment => "environment",
            Self::Flag => "flag",
        }
    }
}

/// Every setting of a command that has an environment variable, in the order of their declaration. Those whose values
/// `--help` hides are secrets: of a URL all but the password and the query is shown, of anything else nothing.
pub fn in_force(command: &Command, matches: &ArgMatches) -> Vec<Setting> {
    let declared = command.get_arguments();
    let settings = declared.filter_map(|arg| {
        let id = arg.get_id().as_str();
        let values = matches.get_raw(id).map(|values| {
            let values: Vec<_> = values.map(OsStr::to_string_lossy).collect();
            values.join(",")
        });
        let origin = match matches.value_source(id) {
            Some(ValueSource::EnvVariable) => Origin::Environment,
            Some(ValueSource::CommandLine) => Origin::Flag,
            _ => Origin::Default,
        };
        Some(Setting {
            name: arg.get_env()?.to_string_lossy().into_owned(),
            flag: arg.get_long().map(|long| format!("--{long}")),
            value: values.map(|value| {
                if arg.is_hide_env_values_set() {
                    masked(&value)
                } else {
                    value
                }
            }),
            origin,
        })
    });
    settings.collect()
}

/// Variables that are named like settings and are none: misspelt ones, as a rule.
pub fn unknown(settings: &[Setting], environment: impl Iterator<Item = String>) -> Vec<String> {
    let mut unknown: Vec<_> = environment
        .filter(|name| name.starts_with("TRIGGERS_") && !name.starts_with(OF_TESTS))
        .filter(|name| settings.iter().all(|setting| setting.name != *name))
        .collect();
    unknown.sort();
    unknown
}

/// What may be shown of a secret value.
fn masked(value: &str) -> String {
    if value.is_empty() {
        return String::new();
    }
    let Some(mut url) = Url::parse(value).ok().filter(Url::has_host) else {
        return MASK.to_owned();
    };
    if url.password().is_some() && url.set_password(Some(MASK)).is_err() {
        return MASK.to_owned();
    }
    // Both kinds of servers take passwords there, too.
    if url.query().is_some() {
        url.set_query(Some(MASK));
    }
    url.set_fragment(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked() {
        for (value, shown) in [
            ("", ""),
            ("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", MASK),
            (
                "postgres://ada:word@db:5432/events",
                "postgres://ada:********@db:5432/events",
            ),
            (
                "postgres://db/events?password=word",
                "postgres://db/events?********",
            ),
            ("postgres://ada@db/events#word", "postgres://ada@db/events"),
            ("amqp://guest@broker:5672/%2f", "amqp://guest@broker:5672/%2f"),
            ("user:word", MASK),
            ("postgres://ada:wo/rd@db/events", MASK),
        ] {
            assert_eq!(masked(value), shown);
        }
    }

    #[test]
    fn misspelt_settings_are_seen() {
        let known = Setting {
            name: "TRIGGERS_LOG".into(),
            flag: None,
            value: None,
            origin: Origin::Default,
        };
        let names = ["TRIGGERS_LOGS", "TRIGGERS_LOG", "PATH", "TRIGGERS_TEST_AMQP_URL"];
        let unknown = unknown(&[known], names.into_iter().map(str::to_owned));
        assert_eq!(unknown, ["TRIGGERS_LOGS"]);
    }
}
