//! `triggers events tail`.

use std::time::Duration;

use clap::Args;
use hyper::body::Incoming;

use super::sse::Blocks;
use crate::client::{
    Failure, Output,
    output::cell,
    patience::Patience,
    request::{Client, object, piece},
};

/// How long the API says nothing, at most: it sends a comment every 15 seconds.
const SILENCE: Duration = Duration::from_secs(45);

/// The options of it.
#[derive(Debug, Args)]
pub struct Tail {
    /// Those of this type, or of these: user.*, user.**
    #[arg(long = "type", value_name = "PATTERN")]
    event_type: Option<String>,
    /// Those that have this status when they are shown: `pending`, `delivered`, `dead_letter`, `acknowledged`, `cancelled`, `expired`.
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Begins after this event, instead of now.
    #[arg(long, value_name = "EVENT")]
    after: Option<String>,
    /// Begins with what was accepted from then on (RFC 3339), instead of now.
    #[arg(long, value_name = "TIME", conflicts_with = "after")]
    since: Option<String>,
    /// Ends after so many.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How long to go on coming again while there is no way to the API.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    give_up_after: u64,
}

/// Where it is.
struct Place {
    after: Option<String>,
    left: Option<u64>,
}

impl Tail {
    /// Does it.
    pub async fn run(self, client: &Client, output: &mut Output) -> Result<(), Failure> {
        let mut patience = Patience::new(Duration::from_secs(self.give_up_after));
        let mut place = Place {
            after: self.after,
            left: self.count,
        };
        loop {
            let to = client.to(&["events", "stream"]);
            let to = to
                .with("type", self.event_type.as_deref())
                .with("status", self.status.as_deref())
                .with("since", self.since.as_deref());
            let failure = match client.follow(to, place.after.as_deref()).await {
                Ok(stream) => {
                    patience.progressed();
                    match follow(stream, output, &mut place, &mut patience).await {
                        Ok(()) => return Ok(()),
                        Err(failure) => failure,
                    }
                }
                Err(failure) => failure,
            };
            let why = failure.to_string();
            let wait = patience.after(failure)?;
            let from = match &place.after {
                Some(event) => format!("goes on after {event}"),
                None if self.since.is_some() => "begins again".to_owned(),
                None => "none had come, so what comes meanwhile is not shown".to_owned(),
            };
            output.note(&format!("{why}; comes again: {from}"));
            tokio::time::sleep(wait).await;
        }
    }
}

/// Shows what comes; ends well when it is enough.
async fn follow(
    mut stream: Incoming,
    output: &mut Output,
    place: &mut Place,
    patience: &mut Patience,
) -> Result<(), Failure> {
    let mut blocks = Blocks::default();
    while let Some(bytes) = piece(&mut stream, SILENCE).await? {
        if !blocks.push(&bytes) {
            return Err(Failure::Here("the stream is none of the API's".to_owned()));
        }
        while let Some(block) = blocks.next() {
            let (Some(id), Some(data)) = (block.id, block.data) else {
                continue;
            };
            show(output, &data)?;
            patience.progressed();
            place.after = Some(id);
            if let Some(left) = &mut place.left {
                *left -= 1;
                if *left == 0 {
                    return Ok(());
                }
            }
        }
    }
    Err(Failure::Unanswered("the stream has ended".to_owned()))
}

fn show(output: &mut Output, data: &str) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(data);
    }
    let event = object(data)?;
    let [received, id, event_type, payload] =
        ["/received_at", "/id", "/type", "/payload"].map(|pointer| cell(&event, pointer));
    output.line(&format!("{received}  {id}  {event_type}  {payload}"))
}
