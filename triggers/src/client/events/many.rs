//! Sending the lines of a file, in their order: part after part, each until all of it has got in or has been refused for
//! good.
//!
//! Every event has a key for deduplication, so that one whose answer was lost does not get in twice.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path, time::Duration};

use http::Method;
use indicatif::ProgressBar;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::lines::{Line, Part, Parts};
use crate::client::{
    Failure, Output,
    failure::{Problem, may_pass},
    output::plain,
    patience::Patience,
    request::{Client, read},
};

const NDJSON: &str = "application/x-ndjson";

/// Sends what is in a file (`-`: on standard input).
pub async fn send(
    client: &Client,
    output: &mut Output,
    file: &Path,
    prefix: &str,
    patience: Patience,
) -> Result<(), Failure> {
    let (reader, length): (Box<dyn Read + Send>, _) = if file == Path::new("-") {
        (Box::new(std::io::stdin()), None)
    } else {
        let name = file.display();
        let unreadable =
            |error: std::io::Error| Failure::Usage(format!("--from: {name} cannot be read: {error}"));
        let file = File::open(file).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let length = metadata.is_file().then_some(metadata.len());
        (Box::new(file), length)
    };
    let progress = output.progress(length);
    let mut sending = Sending {
        client,
        output,
        progress,
        prefix,
        patience,
        accepted: 0,
        refused: 0,
        noted: None,
    };
    let sent = sending.all(reader).await;
    sending.progress.finish_and_clear();
    let (accepted, refused) = (sending.accepted, sending.refused);
    if let Err(failure) = sent {
        if accepted > 0 && !matches!(failure, Failure::Unread) {
            let again = format!("--dedup-prefix {prefix}");
            output.note(&format!(
                "{accepted} were accepted before this; the same with {again} sends the rest, and none twice"
            ));
        }
        return Err(failure);
    }
    if !output.is_json() {
        output.line(&format!("{accepted} accepted, {refused} refused"))?;
    }
    if refused > 0 {
        return Err(Failure::Partly(format!("{refused} were refused")));
    }
    Ok(())
}

/// Reads in a thread of its own, since a pipe may bring nothing for long; it is two parts ahead at most.
fn parts(reader: Box<dyn Read + Send>) -> mpsc::Receiver<std::io::Result<Part>> {
    let (sender, receiver) = mpsc::channel(2);
    std::thread::spawn(move || {
        let mut parts = Parts::new(reader);
        while let Some(part) = parts.next().transpose() {
            let broken = part.is_err();
            if sender.blocking_send(part).is_err() || broken {
                break;
            }
        }
    });
    receiver
}

#[derive(Deserialize)]
struct Answered {
    results: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    problem: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Refusal {
    status: u16,
    retry_after_seconds: Option<u64>,
}

struct Sending<'a> {
    client: &'a Client,
    output: &'a mut Output,
    progress: ProgressBar,
    prefix: &'a str,
    patience: Patience,
    accepted: u64,
    refused: u64,
    /// Why there was a wait last: that is told once, not a thousand times.
    noted: Option<String>,
}

impl Sending<'_> {
    async fn all(&mut self, reader: Box<dyn Read + Send>) -> Result<(), Failure> {
        let mut parts = parts(reader);
        while let Some(part) = parts.recv().await {
            let part = part.map_err(|error| Failure::Here(format!("reading: {error}")))?;
            let read = part.read;
            self.part(part).await?;
            self.progress.set_position(read);
        }
        Ok(())
    }

    /// Sends a part, until nothing of it is left.
    async fn part(&mut self, part: Part) -> Result<(), Failure> {
        let mut left = Vec::new();
        for Line { number, text } in part.lines {
            match text {
                Ok(text) => left.push((number, keyed(&text, self.prefix, number))),
                Err(wrong) => {
                    let problem = serde_json::json!({"code": "invalid_request", "detail": wrong});
                    let result = serde_json::json!({"status": "refused", "problem": problem});
                    self.refuse(number, &result.to_string(), &format!("it {wrong}"))?;
                }
            }
        }
        while !left.is_empty() {
            match self.post(&mut left).await {
                Ok(()) => {}
                Err(failure) => self.wait(failure).await?,
            }
            self.progress
                .set_message(format!("{} accepted, {} refused", self.accepted, self.refused));
        }
        Ok(())
    }

    /// Posts what is left, and leaves of it what may get in later; fails if anything is.
    async fn post(&mut self, left: &mut Vec<(u64, String)>) -> Result<(), Failure> {
        let lines: Vec<_> = left.iter().map(|(_, text)| text.as_str()).collect();
        let body = lines.join("\n");
        let to = self.client.to(&["events", "batch"]);
        let answer = self
            .client
            .send(Method::POST, to, Some((NDJSON, body.into())))
            .await?;
        let Answered { results } = answer.read()?;
        if results.len() != left.len() {
            return Err(Failure::Unanswered("the answer is none of the API's".to_owned()));
        }
        let mut later = None;
        let mut kept = Vec::new();
        for ((number, text), result) in left.drain(..).zip(results) {
            let Outcome { problem } = read(result.get())?;
            let Some(problem) = problem else {
                self.patience.progressed();
                self.noted = None;
                self.accepted += 1;
                self.tell(number, result.get())?;
                continue;
            };
            let Refusal {
                status,
                retry_after_seconds,
            } = read(problem.get())?;
            let whole = Problem::read(status, retry_after_seconds, problem.get().to_owned());
            let Some(whole) = whole else {
                return Err(Failure::Unanswered("the answer is none of the API's".to_owned()));
            };
            if may_pass(status) {
                kept.push((number, text));
                later.get_or_insert(whole);
            } else {
                self.patience.progressed();
                self.refuse(number, result.get(), &whole.line())?;
            }
        }
        *left = kept;
        later.map_or(Ok(()), |problem| Err(Failure::Problem(Box::new(problem))))
    }

    async fn wait(&mut self, failure: Failure) -> Result<(), Failure> {
        let why = failure.to_string();
        let wait: Duration = self.patience.after(failure)?;
        let waits = format!("{why}; waits");
        if self.progress.is_hidden() && self.noted.as_ref() != Some(&why) {
            self.output.note(&waits);
            self.noted = Some(why);
        }
        self.progress.set_message(plain(&waits));
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn refuse(&mut self, number: u64, result: &str, why: &str) -> Result<(), Failure> {
        self.refused += 1;
        self.progress
            .suspend(|| self.output.note(&format!("line {number}: {why}")));
        self.tell(number, result)
    }

    /// What became of a line, for programs.
    fn tell(&mut self, number: u64, result: &str) -> Result<(), Failure> {
        if !self.output.is_json() {
            return Ok(());
        }
        let members = result.trim_start().strip_prefix('{').unwrap_or_default();
        self.output.json(&format!(r#"{{"line":{number},{members}"#))
    }
}

/// An event with a key for deduplication, which is made up if it has none. All else stays as it is, mistakes included: the
/// API names them.
fn keyed(text: &str, prefix: &str, number: u64) -> String {
    let text = text.trim();
    let members: Option<BTreeMap<String, &RawValue>> = serde_json::from_str(text).ok();
    let unkeyed = members.filter(|members| !members.contains_key("dedup_id"));
    match (unkeyed, text.strip_prefix('{')) {
        (Some(members), Some(rest)) => {
            let key = serde_json::Value::from(format!("{prefix}:{number}"));
            let comma = if members.is_empty() { "" } else { "," };
            format!(r#"{{"dedup_id":{key}{comma}{rest}"#)
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_added_and_nothing_else_is_changed() {
        for (text, sent) in [
            (
                r#" { "type":"a", "payload": 1.0e999 } "#,
                r#"{"dedup_id":"p\":7", "type":"a", "payload": 1.0e999 }"#,
            ),
            (r#"{"dedup_id":"mine"}"#, r#"{"dedup_id":"mine"}"#),
            ("{}", r#"{"dedup_id":"p\":7"}"#),
            ("[1]", "[1]"),
            ("{broken", "{broken"),
        ] {
            assert_eq!(keyed(text, "p\"", 7), sent);
        }
    }
}
