//! `triggers subscriptions`.

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::{
    Failure, Output,
    confirm::Confirm,
    listing::{self, Paging},
    output::Column,
    request::{Answer, Client},
    terms::Terms,
};

const COLUMNS: [Column; 6] = [
    ("ID", "/id"),
    ("KIND", "/kind"),
    ("ENABLED", "/enabled"),
    ("EVENT TYPES", "/event_types"),
    ("TARGET", "/url"),
    ("DESCRIPTION", "/description"),
];
const FIRST: [&str; 6] = ["id", "kind", "enabled", "url", "event_types", "secret"];

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists them.
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Shows one.
    Show(One),
    /// Shows how one fares: success rate, durations, backlog, circuit.
    Stats(One),
    /// Creates one. Its secret is shown this once.
    Create {
        /// Whether it is sent to a URL (push), or fetched (pull); push, unless set.
        #[arg(long)]
        kind: Option<String>,
        /// How its webhooks are signed: hmac (unless set) or ed25519.
        #[arg(long, value_name = "SCHEME")]
        signature_scheme: Option<String>,
        #[command(flatten)]
        terms: Terms,
    },
    /// Changes what is said, and nothing else.
    Update {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        terms: Terms,
    },
    /// Sends it what comes, and what was parked.
    Enable(One),
    /// Parks what comes, until it is enabled.
    Disable(One),
    /// Sends it a test event now, and shows what came back.
    Test(One),
    /// Makes a new secret, which is shown this once.
    RotateSecret {
        #[command(flatten)]
        one: One,
        /// How long the old one signs beside it; a day unless set, and 0 ends it at once.
        #[arg(long, value_name = "SECONDS")]
        overlap_seconds: Option<u64>,
        /// How webhooks are signed from then on; as before, unless set.
        #[arg(long, value_name = "SCHEME")]
        signature_scheme: Option<String>,
    },
    /// Deletes it; what was not delivered is called off.
    Delete {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// Which one.
#[derive(Debug, Args)]
pub struct One {
    /// Its id.
    id: String,
}

impl Command {
    /// Does it.
    pub async fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let of = |id: &str| client.to(&["subscriptions", id]);
        match self {
            Self::List { paging } => {
                listing::show(client, output, client.to(&["subscriptions"]), paging, &COLUMNS).await
            }
            Self::Show(One { id }) => output.answer(&FIRST, &client.get(of(&id)).await?),
            Self::Stats(One { id }) => {
                let answer = client.get(client.to(&["subscriptions", &id, "stats"])).await?;
                output.answer(&["subscription", "last_hour"], &answer)
            }
            Self::Create {
                kind,
                signature_scheme,
                terms,
            } => {
                let mut body = terms.body()?;
                put(&mut body, "kind", kind);
                put(&mut body, "signature_scheme", signature_scheme);
                let to = client.to(&["subscriptions"]);
                shown_once(output, &client.post(to, &Value::Object(body)).await?)
            }
            Self::Update {
                one: One { id },
                terms,
            } => {
                let body = terms.body()?;
                if body.is_empty() {
                    return Err(Failure::Usage("nothing to change was said".to_owned()));
                }
                output.answer(&FIRST, &client.patch(of(&id), &Value::Object(body)).await?)
            }
            Self::Enable(One { id }) => act(client, output, &id, "enable").await,
            Self::Disable(One { id }) => act(client, output, &id, "disable").await,
            Self::Test(One { id }) => test(client, output, &id).await,
            Self::RotateSecret {
                one: One { id },
                overlap_seconds,
                signature_scheme,
            } => {
                let mut body = Map::new();
                put(&mut body, "overlap_seconds", overlap_seconds);
                put(&mut body, "signature_scheme", signature_scheme);
                let to = client.to(&["subscriptions", &id, "rotate-secret"]);
                shown_once(output, &client.post(to, &Value::Object(body)).await?)
            }
            Self::Delete {
                one: One { id },
                confirm,
            } => {
                confirm.ask(&format!("delete {id}"))?;
                client.delete(of(&id)).await?;
                output.done(&format!("deleted {id}"))
            }
        }
    }
}

async fn act(client: &Client, output: &mut Output, id: &str, action: &str) -> Result<(), Failure> {
    let to = client.to(&["subscriptions", id, action]);
    output.answer(&FIRST, &client.post_nothing(to).await?)
}

async fn test(client: &Client, output: &mut Output, id: &str) -> Result<(), Failure> {
    let progress = output.progress(None);
    progress.set_message("waits for what comes back");
    let answered = client
        .post_nothing(client.to(&["subscriptions", id, "test"]))
        .await;
    progress.finish_and_clear();
    let answer = answered?;
    output.answer(&["event", "subscription", "status", "attempt"], &answer)?;
    let shown = answer.object()?;
    match shown["status"].as_str() {
        Some("delivered") => Ok(()),
        _ if shown["attempt"].is_null() => Err(Failure::Partly(
            "the attempt has not ended yet: look the event up".to_owned(),
        )),
        _ => Err(Failure::Partly("the attempt failed".to_owned())),
    }
}

/// A subscription with its secret, if it is signed by one.
fn shown_once(output: &mut Output, answer: &Answer) -> Result<(), Failure> {
    output.answer(&FIRST, answer)?;
    if answer.object()?["secret"].is_string() {
        output.note("the secret is shown this once: keep it now");
    }
    Ok(())
}

fn put(body: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        body.insert(name.to_owned(), value.into());
    }
}
