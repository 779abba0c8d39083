//! `triggers replay`.

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};

use super::{
    Failure, Output,
    patience::Patience,
    request::{Answer, Client},
};

/// How often it is asked how far it is.
const POLL: Duration = Duration::from_millis(500);
/// How long its bar is: of a thousand parts.
const BAR: u32 = 1_000;
/// How long to go on asking while there is no answer.
const GIVE_UP_AFTER: Duration = Duration::from_mins(1);

/// The options of it.
#[derive(Debug, Args)]
// The command is a group of the same name.
#[group(skip)]
pub struct Replay {
    /// The id of the subscription.
    subscription: String,
    /// Of events accepted from then on (RFC 3339).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Of events accepted before then; until now, unless set.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Deliveries that have ended so, with commas between: `dead_letter` (unless set), `delivered`, `acknowledged`,
    /// `cancelled`, `expired`.
    #[arg(long, value_name = "STATUSES", value_delimiter = ',')]
    statuses: Option<Vec<String>>,
    /// Of events of these types, with commas between: user.*, user.**
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    event_types: Option<Vec<String>>,
    /// Does not wait for its end. It goes on by itself, and so it does if you stop this command.
    #[arg(long)]
    no_wait: bool,
}

impl Replay {
    /// Does it.
    pub async fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let said = [
            ("since", self.since.map(Value::from)),
            ("until", self.until.map(Value::from)),
            ("statuses", self.statuses.map(Value::from)),
            ("event_types", self.event_types.map(Value::from)),
        ];
        let said = said
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let body = Value::Object(said.collect::<Map<_, _>>());
        let to = client.to(&["subscriptions", &self.subscription, "replay"]);
        let begun = client.post(to, &body).await?;
        let answer = if self.no_wait {
            begun
        } else {
            wait(client, output, &self.subscription, begun).await?
        };
        output.answer(
            &["id", "subscription", "status", "progress", "looked_at", "opened"],
            &answer,
        )?;
        match answer.object()?["status"].as_str() {
            Some("cancelled") => Err(Failure::Partly("it was called off".to_owned())),
            _ => Ok(()),
        }
    }
}

/// Waits until it is over, and gives it as it is then.
async fn wait(
    client: &Client,
    output: &mut Output,
    subscription: &str,
    begun: Answer,
) -> Result<Answer, Failure> {
    let mut replay = begun;
    let id = replay.object()?["id"].as_str().unwrap_or_default().to_owned();
    // An older API does not say how far it is.
    let length = replay.object()?["progress"].as_f64().map(|_| u64::from(BAR));
    let progress = output.progress(length);
    let mut patience = Patience::new(GIVE_UP_AFTER);
    patience.progressed();
    loop {
        let shown = replay.object()?;
        if shown["status"] != "running" {
            progress.finish_and_clear();
            return Ok(replay);
        }
        if let Some(part) = shown["progress"].as_f64() {
            progress.set_position(position(part));
        }
        progress.set_message(format!(
            "{} looked at, {} opened",
            shown["looked_at"], shown["opened"]
        ));
        tokio::time::sleep(POLL).await;
        let to = client.to(&["subscriptions", subscription, "replays", &id]);
        match client.get(to).await {
            Ok(answer) => {
                patience.progressed();
                replay = answer;
            }
            Err(failure) => match patience.after(failure) {
                Ok(wait) => tokio::time::sleep(wait).await,
                Err(failure) => {
                    progress.finish_and_clear();
                    output.note(&format!("{id} goes on by itself"));
                    return Err(failure);
                }
            },
        }
    }
}

/// How much of the bar that is.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is from 0 to the length of the bar"
)]
fn position(part: f64) -> u64 {
    (part.clamp(0.0, 1.0) * f64::from(BAR)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_it_is_far() {
        let positions: Vec<_> = [-1.0, 0.0, 0.25, 0.9999, 1.0, 7.0].map(position).into();
        assert_eq!(positions, [0, 0, 250, 999, 1_000, 1_000]);
    }
}
