//! `triggers events send`.

use std::{io::Read, path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::many;
use crate::client::{
    Failure, Output,
    patience::Patience,
    request::{Client, JSON},
};

/// The options of it.
#[derive(Debug, Args)]
pub struct Send {
    /// Its type.
    #[arg(value_name = "TYPE", required_unless_present = "from")]
    event_type: Option<String>,
    /// Its payload, a JSON text; @FILE for what is in a file, and - for standard input.
    #[arg(long, value_name = "JSON", required_unless_present = "from")]
    payload: Option<String>,
    /// Its key for deduplication: a second event with it is none. One is made up, unless set.
    #[arg(long, value_name = "TEXT")]
    dedup_id: Option<String>,
    /// Where it is from.
    #[arg(long, value_name = "TEXT")]
    source: Option<String>,
    /// When it happened (RFC 3339).
    #[arg(long, value_name = "TIME")]
    occurred_at: Option<String>,
    /// Many instead: a file with an event a line, as the API takes them; - for standard input.
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["event_type", "payload", "dedup_id", "source", "occurred_at"])]
    from: Option<PathBuf>,
    /// Of many, what the keys for deduplication of those begin with that have none; their line's number is the rest. With
    /// the one of a former run of the same file, what got in then does not get in again.
    #[arg(long, value_name = "TEXT", requires = "from")]
    dedup_prefix: Option<String>,
    /// How long to go on trying while nothing gets in.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    give_up_after: u64,
}

#[derive(Serialize)]
struct NewEvent<'a> {
    r#type: &'a str,
    payload: &'a RawValue,
    dedup_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    occurred_at: Option<&'a str>,
}

impl Send {
    /// Does it.
    pub async fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let patience = Patience::new(Duration::from_secs(self.give_up_after));
        match &self.from {
            Some(file) => {
                let prefix = self.dedup_prefix.clone();
                let prefix = prefix.unwrap_or_else(|| Uuid::new_v4().to_string());
                many::send(client, output, file, &prefix, patience).await
            }
            None => self.one(client, output, patience).await,
        }
    }

    async fn one(&self, client: &Client, output: &mut Output, mut patience: Patience) -> Result<(), Failure> {
        let payload = payload(self.payload.as_deref().unwrap_or_default())?;
        let made_up = Uuid::new_v4().to_string();
        let event = NewEvent {
            r#type: self.event_type.as_deref().unwrap_or_default(),
            payload: &payload,
            dedup_id: self.dedup_id.as_deref().unwrap_or(&made_up),
            source: self.source.as_deref(),
            occurred_at: self.occurred_at.as_deref(),
        };
        let body = serde_json::to_string(&event).map_err(|error| Failure::Here(error.to_string()))?;
        loop {
            let to = client.to(&["events"]);
            let sent = client
                .send(http::Method::POST, to, Some((JSON, body.clone().into())))
                .await;
            match sent {
                Ok(answer) => return output.answer(&["id", "type", "status"], &answer),
                Err(failure) => {
                    let why = failure.to_string();
                    let wait = patience.after(failure)?;
                    output.note(&format!("{why}; trying again in {:.1} s", wait.as_secs_f64()));
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
}

/// A payload, from where it is said to be; it is sent as it is there.
fn payload(said: &str) -> Result<Box<RawValue>, Failure> {
    let text = match said.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| Failure::Usage(format!("--payload: {file} cannot be read: {error}")))?,
        None if said == "-" => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            text
        }
        None => said.to_owned(),
    };
    RawValue::from_string(text.trim().to_owned())
        .map_err(|error| Failure::Usage(format!("--payload must be JSON: {error}")))
}
