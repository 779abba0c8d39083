//! `triggers events`.

mod lines;
mod many;
mod send;
mod sse;
mod tail;

use clap::Subcommand;
use serde_json::Value;

use super::{
    Failure, Output,
    listing::{self, Paging},
    output::Column,
    request::Client,
};

const EVENTS: [Column; 5] = [
    ("RECEIVED", "/received_at"),
    ("ID", "/id"),
    ("TYPE", "/type"),
    ("STATUS", "/status"),
    ("PAYLOAD", "/payload"),
];
const DELIVERIES: [Column; 5] = [
    ("SUBSCRIPTION", "/subscription"),
    ("STATUS", "/status"),
    ("ATTEMPTS", "/attempts"),
    ("NEXT ATTEMPT", "/next_attempt_at"),
    ("UPDATED", "/updated_at"),
];
const ATTEMPTS: [Column; 7] = [
    ("SUBSCRIPTION", "/subscription"),
    ("ATTEMPT", "/number"),
    ("STARTED", "/started_at"),
    ("MS", "/duration_ms"),
    ("STATUS CODE", "/status_code"),
    ("ERROR", "/error"),
    ("DETAIL", "/detail"),
];
const NOT_MATCHED: [Column; 3] = [
    ("NO DELIVERY TO", "/subscription"),
    ("BECAUSE", "/reason"),
    ("DETAIL", "/detail"),
];

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sends one, or many from a file; each gets in once, however often it has to be tried.
    Send(send::Send),
    /// Shows them as they come, until you stop it. It comes again when the connection ends, and goes on where it was.
    Tail(tail::Tail),
    /// Shows one, with what became of it.
    Get {
        /// Its id, or one that was answered for a repeat of it.
        id: String,
        /// How long to wait for it if it is on its way; two seconds, unless set.
        #[arg(long, value_name = "MILLISECONDS")]
        wait_ms: Option<u64>,
    },
    /// Lists them, newest first.
    List {
        /// Those of this type, or of these: user.*, user.**
        #[arg(long = "type", value_name = "PATTERN")]
        event_type: Option<String>,
        /// Those accepted from then on (RFC 3339).
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Those accepted before then.
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Those of this status: `pending`, `delivered`, `dead_letter`, `acknowledged`, `cancelled`, `expired`.
        #[arg(long)]
        status: Option<String>,
        #[command(flatten)]
        paging: Paging,
    },
}

impl Command {
    /// Does it.
    pub async fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::Send(send) => send.run(client, output).await,
            Self::Tail(tail) => tail.run(client, output).await,
            Self::Get { id, wait_ms } => {
                let to = client.to(&["events", &id]).with("wait_ms", wait_ms);
                let answer = client.get(to).await?;
                if output.is_json() {
                    return output.json(&answer.text);
                }
                show(output, &answer.object()?)
            }
            Self::List {
                event_type,
                since,
                until,
                status,
                paging,
            } => {
                let list = client.to(&["events"]).with("type", event_type);
                let list = list.with("since", since).with("until", until);
                listing::show(client, output, list.with("status", status), paging, &EVENTS).await
            }
        }
    }
}

/// An event, and below it what became of it.
fn show(output: &mut Output, event: &Value) -> Result<(), Failure> {
    let first = ["id", "type", "status", "received_at", "payload"];
    output.object(&first, &["deliveries", "not_matched"], event)?;
    let deliveries = items(event, "deliveries");
    output.below(&DELIVERIES, &deliveries)?;
    let mut attempts = Vec::new();
    for delivery in &deliveries {
        for mut attempt in items(delivery, "log") {
            attempt["subscription"] = delivery["subscription"].clone();
            attempts.push(attempt);
        }
    }
    output.below(&ATTEMPTS, &attempts)?;
    output.below(&NOT_MATCHED, &items(event, "not_matched"))
}

fn items(value: &Value, name: &str) -> Vec<Value> {
    value[name].as_array().cloned().unwrap_or_default()
}
