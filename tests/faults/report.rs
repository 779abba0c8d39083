//! The report: what was injected, what producers saw, how long it took until all worked again, and what held.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use harness::Post;

use crate::{
    catalogue::{Fault, Row},
    cpu::Shares,
    invariants::Outcome,
    memory::Peak,
    plan::Round,
    run::Window,
};

/// Written to `target/faults/report.md` when the run ends, however it ends.
pub struct Report {
    seed: u64,
    pub windows: Vec<Window>,
    /// What each process took of the processor while a server was away, by what let it be.
    pub outages: Vec<(String, Shares)>,
    /// What did not hold in the middle of it.
    pub broken: Vec<String>,
    /// The rounds in their order.
    rounds: Vec<String>,
    round_begun: Instant,
    written: bool,
}

impl Report {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            windows: Vec::new(),
            outages: Vec::new(),
            broken: Vec::new(),
            rounds: Vec::new(),
            round_begun: Instant::now(),
            written: false,
        }
    }

    pub fn begins(&mut self, round: &Round, at: Duration) {
        self.round_begun = Instant::now();
        let line = format!(
            "{:>6.1} s  {} for {:.1} s",
            at.as_secs_f64(),
            names(&round.faults),
            round.hold.as_secs_f64()
        );
        println!("{line}");
        self.rounds.push(line);
    }

    pub fn recovered(&mut self, faults: &[Fault]) {
        let of_round = self.windows.iter().rev().take(faults.len());
        let last = of_round.map(|window| window.recovered - window.healed).min();
        println!(
            "          works again after {:.1} s, looked at for {:.1} s",
            last.unwrap_or_default().as_secs_f64(),
            self.round_begun.elapsed().as_secs_f64()
        );
    }

    pub fn outage(&mut self, faults: &[Fault], shares: Shares) {
        let of_each: Vec<String> = shares
            .iter()
            .map(|(name, share)| format!("{name} {:.0} %", 100.0 * share))
            .collect();
        println!("          of a core: {}", of_each.join(", "));
        self.outages.push((names(faults), shares));
    }

    pub fn settles(&mut self, at: Duration) {
        let line = format!("{:>6.1} s  settles", at.as_secs_f64());
        println!("{line}");
        self.rounds.push(line);
    }

    pub fn breaks(&mut self, what: String) {
        println!("          does not hold: {what}");
        self.broken.push(what);
    }

    /// Writes and prints it.
    pub fn end(
        &mut self,
        outcomes: &[(&'static str, Outcome)],
        posts: &[Post],
        peaks: &BTreeMap<&'static str, Peak>,
        took: Duration,
    ) {
        let held = self.broken.is_empty() && outcomes.iter().all(|(_, outcome)| outcome.is_ok());
        let mut text = self.head(if held {
            "everything held"
        } else {
            "not everything held"
        });
        let _ = writeln!(
            text,
            "{} faults in {:.0} s; {}.\n",
            self.windows.len(),
            took.as_secs_f64(),
            saw(posts.iter())
        );
        self.faults(&mut text, posts);
        text.push_str("\n## What held\n\n| invariant | held | |\n| --- | --- | --- |\n");
        for (what, outcome) in outcomes {
            let (held, seen) = match outcome {
                Ok(seen) => ("yes", seen),
                Err(seen) => ("**no**", seen),
            };
            let _ = writeln!(text, "| {what} | {held} | {} |", seen.replace('|', "/"));
        }
        text.push_str("\n## Processes, at their peak\n\n| process | MiB | files | threads |\n| --- | --: | --: | --: |\n");
        for (name, peak) in peaks {
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {} |",
                peak.mebibytes, peak.files, peak.threads
            );
        }
        self.write(text);
    }

    fn head(&self, verdict: &str) -> String {
        format!(
            "# Fault suite: {verdict}\n\nSeed {}; again with `scripts/faults.sh --seed {}`. ",
            self.seed, self.seed
        )
    }

    fn faults(&self, text: &mut String, posts: &[Post]) {
        text.push_str(
            "Answers are those to requests under way from the beginning of the fault until all worked again; faults that \
             overlapped share them.\n\n| row | fault | times | longest | 202 | 503 | closed | slowest answer | works again after |\n\
             | --- | --- | --: | --: | --: | --: | --: | --: | --: |\n",
        );
        for row in Row::ALL {
            for fault in Fault::all().filter(|fault| fault.about().row == row) {
                let windows: Vec<&Window> = self
                    .windows
                    .iter()
                    .filter(|window| window.fault == fault)
                    .collect();
                if windows.is_empty() {
                    continue;
                }
                let longest = |of: fn(&Window) -> Duration| {
                    windows
                        .iter()
                        .map(|window| of(window))
                        .max()
                        .unwrap_or_default()
                        .as_secs_f64()
                };
                let during: Vec<&Post> = posts
                    .iter()
                    .filter(|post| windows.iter().any(|window| window.has(post)))
                    .collect();
                let count = |status| during.iter().filter(|post| post.status == status).count();
                let slowest = during.iter().map(|post| post.took).max().unwrap_or_default();
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {:.1} s | {} | {} | {} | {} ms | {:.1} s |",
                    row.title(),
                    fault.name(),
                    windows.len(),
                    longest(|window| window.healed - window.begun),
                    count(Some(202)),
                    count(Some(503)),
                    count(None),
                    slowest.as_millis(),
                    longest(|window| window.recovered - window.healed),
                );
            }
        }
    }

    fn write(&mut self, mut text: String) {
        text.push_str("\n## In their order\n\n");
        for round in &self.rounds {
            let _ = writeln!(text, "    {round}");
        }
        if !self.broken.is_empty() {
            text.push_str("\n## What did not hold in the middle of it\n\n");
            for broken in &self.broken {
                let _ = writeln!(text, "- {broken}");
            }
        }
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/faults"));
        let written =
            std::fs::create_dir_all(&path).and_then(|()| std::fs::write(path.join("report.md"), &text));
        println!("{text}");
        if let Err(error) = written {
            println!("the report cannot be written to {}: {error}", path.display());
        }
        self.written = true;
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.written {
            let last = self.rounds.last().cloned().unwrap_or_default();
            let mut text = self.head("it ended in the middle");
            let _ = writeln!(text, "\n\nThe last round was: {last}. The ledger was not read.\n");
            self.faults(&mut text, &[]);
            self.write(text);
        }
    }
}

/// What producers saw, in one line.
fn saw<'a>(posts: impl Iterator<Item = &'a Post>) -> String {
    let (mut accepted, mut refused, mut closed, mut slowest) = (0, 0, 0, Duration::ZERO);
    for post in posts {
        match post.status {
            Some(202) => accepted += 1,
            Some(_) => refused += 1,
            None => closed += 1,
        }
        slowest = slowest.max(post.took);
    }
    format!(
        "producers saw {accepted} times 202, {refused} refusals, {closed} closed connections; the slowest answer took {} ms",
        slowest.as_millis()
    )
}

fn names(faults: &[Fault]) -> String {
    let names: Vec<_> = faults.iter().map(|fault| fault.name()).collect();
    names.join(" + ")
}
