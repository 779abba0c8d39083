//! What can be said of a subscription, when it is created and later.

use std::{io::Read, path::PathBuf};

use clap::Args;
use serde_json::{Map, Value};

use super::Failure;

/// The options.
#[derive(Debug, Args)]
pub struct Terms {
    /// The URL that webhooks are sent to.
    #[arg(long, value_name = "URL")]
    target: Option<String>,
    /// Which types it gets, with commas between: user.created, user.*, user.**, * (all, unless set).
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    event_types: Option<Vec<String>>,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// What a webhook's body is: standard (unless set) or cloudevents.
    #[arg(long)]
    format: Option<String>,
    /// In which order events are sent: none (unless set) or fifo.
    #[arg(long)]
    ordering: Option<String>,
    /// How many attempts are under way at once, at most.
    #[arg(long, value_name = "NUMBER")]
    max_in_flight: Option<u64>,
    /// How many attempts begin within a second, at most.
    #[arg(long, value_name = "NUMBER")]
    rate_limit_per_second: Option<u64>,
    /// How long a whole attempt may take.
    #[arg(long, value_name = "MILLISECONDS")]
    timeout_ms: Option<u64>,
    /// How long to wait before each retry, with commas between.
    #[arg(long, value_name = "SECONDS", value_delimiter = ',')]
    retry_schedule_seconds: Option<Vec<u64>>,
    /// A header of your own for each webhook; may be said several times, and without a value takes the header away. On the
    /// command line others on this machine can see it: better in a file, by --from.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = member)]
    headers: Vec<(String, Value)>,
    /// A text of your own that is kept with it; may be said several times, and without a value takes the text away.
    #[arg(long, value_name = "NAME=VALUE", value_parser = member)]
    metadata: Vec<(String, Value)>,
    /// A file with all of this as the API takes it, a JSON object; - for standard input. Options count for more.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

impl Terms {
    /// The body of a request that says so.
    pub fn body(self) -> Result<Map<String, Value>, Failure> {
        let mut body = match &self.from {
            Some(file) => read(file)?,
            None => Map::new(),
        };
        let said = [
            ("url", self.target.map(Value::from)),
            ("event_types", self.event_types.map(Value::from)),
            ("description", self.description.map(Value::from)),
            ("format", self.format.map(Value::from)),
            ("ordering", self.ordering.map(Value::from)),
            ("max_in_flight", self.max_in_flight.map(Value::from)),
            (
                "rate_limit_per_second",
                self.rate_limit_per_second.map(Value::from),
            ),
            ("timeout_ms", self.timeout_ms.map(Value::from)),
            (
                "retry_schedule_seconds",
                self.retry_schedule_seconds.map(Value::from),
            ),
            ("headers", members(self.headers)),
            ("metadata", members(self.metadata)),
        ];
        for (name, value) in said {
            if let Some(value) = value {
                body.insert(name.to_owned(), value);
            }
        }
        Ok(body)
    }
}

/// Members of an object; `None` if nothing was said.
fn members(members: Vec<(String, Value)>) -> Option<Value> {
    (!members.is_empty()).then(|| Value::Object(members.into_iter().collect()))
}

/// `name=value`; `name=` takes the member away.
fn member(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    let value = match value {
        "" => Value::Null,
        value => value.into(),
    };
    Ok((name.to_owned(), value))
}

fn read(file: &PathBuf) -> Result<Map<String, Value>, Failure> {
    let name = file.display();
    let text = if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(file)
            .map_err(|error| Failure::Usage(format!("--from: {name} cannot be read: {error}")))?
    };
    serde_json::from_str(&text)
        .map_err(|error| Failure::Usage(format!("--from: {name} is no JSON object: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_said_and_taken_away() {
        assert_eq!(member("a=b=c"), Ok(("a".to_owned(), "b=c".into())));
        assert_eq!(member("a="), Ok(("a".to_owned(), Value::Null)));
        assert!(member("a").is_err());
    }
}
