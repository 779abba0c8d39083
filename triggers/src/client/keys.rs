//! `triggers keys`.

use clap::Subcommand;
use serde_json::{Map, Value};

use super::{
    Failure, Output,
    confirm::Confirm,
    listing::{self, Paging},
    output::Column,
    request::{Answer, Client},
};

const COLUMNS: [Column; 7] = [
    ("ID", "/id"),
    ("NAME", "/name"),
    ("HINT", "/hint"),
    ("SCOPES", "/scopes"),
    ("LAST USED", "/last_used_at"),
    ("EXPIRES", "/expires_at"),
    ("REVOKED", "/revoked_at"),
];

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists them, ended ones included; never their text.
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Creates one. Its text is shown this once.
    Create {
        /// What it is called.
        name: String,
        /// What it may do, with commas between; what the API says, unless set.
        #[arg(long, value_delimiter = ',', value_name = "SCOPES")]
        scopes: Vec<String>,
        /// When it ends by itself (RFC 3339); never, unless set.
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
    },
    /// Puts a new one in its place. The new one's text is shown this once.
    Rotate {
        /// Its id.
        id: String,
        /// How long the old one is good beside it; a day unless set, and 0 ends it at once.
        #[arg(long, value_name = "SECONDS")]
        overlap_seconds: Option<u64>,
    },
    /// Ends it everywhere, within seconds.
    Revoke {
        /// Its id.
        id: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

impl Command {
    /// Does it.
    pub async fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        match self {
            Self::List { paging } => {
                listing::show(client, output, client.to(&["keys"]), paging, &COLUMNS).await
            }
            Self::Create {
                name,
                scopes,
                expires_at,
            } => {
                let mut body = Map::new();
                body.insert("name".to_owned(), name.into());
                if !scopes.is_empty() {
                    body.insert("scopes".to_owned(), scopes.into());
                }
                if let Some(expires_at) = expires_at {
                    body.insert("expires_at".to_owned(), expires_at.into());
                }
                let answer = client.post(client.to(&["keys"]), &Value::Object(body)).await?;
                shown_once(output, &answer)
            }
            Self::Rotate { id, overlap_seconds } => {
                let mut body = Map::new();
                if let Some(seconds) = overlap_seconds {
                    body.insert("overlap_seconds".to_owned(), seconds.into());
                }
                let to = client.to(&["keys", &id, "rotate"]);
                let answer = client.post(to, &Value::Object(body)).await?;
                shown_once(output, &answer)
            }
            Self::Revoke { id, confirm } => {
                confirm.ask(&format!("revoke {id}"))?;
                client.delete(client.to(&["keys", &id])).await?;
                output.done(&format!("revoked {id}"))
            }
        }
    }
}

/// A key with its text.
fn shown_once(output: &mut Output, answer: &Answer) -> Result<(), Failure> {
    output.answer(&["id", "name", "key", "scopes"], answer)?;
    output.note("the key is shown this once: keep it now");
    Ok(())
}
