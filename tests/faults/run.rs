//! A run: faults are injected, one round after another, while events flow; after each all works again without a hand, and
//! at the end every invariant is held against what was answered, stored and delivered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use harness::Post;

use crate::{
    catalogue::{Fault, Row, Seen},
    cpu::{self, MOST_BESIDE, Reading, Shares},
    deployment::Deployment,
    invariants::{self, Outcome},
    memory::{MOST_FILES, MOST_MEBIBYTES, Peak, Sampler},
    plan::{self, Lengths, Round},
    report::Report,
    subscriber,
};

/// How long a producer may wait for an answer: two seconds, and half a second for a busy test machine.
pub const ANSWER: Duration = Duration::from_millis(2_500);
/// How long faults last where each is injected once, briefly.
const SHORT: Lengths = Lengths {
    least: 1_000,
    most: 2_500,
};
/// How long they last in a run of minutes.
const LONG: Lengths = Lengths {
    least: 1_000,
    most: 15_000,
};

/// What a run is to do.
#[derive(Debug)]
pub struct Wanted {
    pub seed: u64,
    /// Begins anew until so much time is over; without, each fault is injected once, briefly.
    pub at_least: Option<Duration>,
    pub faults: Vec<Fault>,
}

/// When a fault was there.
#[derive(Debug, Clone)]
pub struct Window {
    pub fault: Fault,
    pub begun: Instant,
    pub healed: Instant,
    pub recovered: Instant,
}

impl Window {
    /// Whether a request was under way while the fault, or what came of it, was.
    pub fn has(&self, post: &Post) -> bool {
        post.at <= self.recovered && post.at + post.took >= self.begun
    }
}

/// Runs it, writes the report, and fails if anything did not hold.
pub async fn run(wanted: Wanted) {
    println!("seed {}: {} faults", wanted.seed, wanted.faults.len());
    let mut report = Report::new(wanted.seed);
    let mut deployment = Deployment::start(wanted.seed).await;
    deployment.works().await;
    let nodes = deployment.nodes().map(|(name, node)| (name, Arc::clone(node)));
    let sampler = Sampler::start(nodes.to_vec());
    let usual = cpu::usual(&deployment).await;
    let begun = Instant::now();
    let mut pass = 0;
    loop {
        let lengths = if wanted.at_least.is_some() { LONG } else { SHORT };
        for round in plan::rounds(wanted.seed.wrapping_add(pass), &wanted.faults, lengths) {
            report.begins(&round, begun.elapsed());
            inject(&mut deployment, &round, &mut report).await;
            if wanted.at_least.is_some_and(|time| begun.elapsed() > time) {
                break;
            }
        }
        pass += 1;
        if wanted.at_least.is_none_or(|time| begun.elapsed() > time) {
            break;
        }
    }
    report.settles(begun.elapsed());
    let (mut outcomes, posts) = invariants::settle(&mut deployment).await;
    let peaks = sampler.peaks();
    outcomes.push((
        "7. memory and files are bounded",
        bounded(&peaks.values().copied().collect::<Vec<_>>()),
    ));
    outcomes.push((
        "who waits for a server does not spin",
        waited(&usual, &report.outages),
    ));
    outcomes.push(("8. whatever the fault, it ends", ended(&report.windows)));
    outcomes.push((
        "producers: 202, or 503 in time",
        producers(&report.windows, &posts),
    ));
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|(what, outcome)| Some(format!("{what}: {}", outcome.as_ref().err()?)))
        .chain(report.broken.clone())
        .collect();
    report.end(&outcomes, &posts, &peaks, begun.elapsed());
    assert!(failed.is_empty(), "seed {}: {}", wanted.seed, failed.join("\n"));
}

async fn inject(deployment: &mut Deployment, round: &Round, report: &mut Report) {
    let mut faults = round.faults.clone();
    let of_subscriber = |fault: &Fault| fault.about().row == Row::Subscriber;
    // Subscribers first: how they fail shows only in attempts, and that they hold up nobody else only where others get theirs, for
    // which the rest has to work.
    faults.sort_by_key(|fault| (!of_subscriber(fault), fault.is_busy()));
    let (mut first, mut reading) = (Instant::now(), Reading::take(deployment));
    let mut begun = Vec::new();
    for fault in &faults {
        begun.push(Instant::now());
        fault.inject(deployment, round.hold).await;
        if of_subscriber(fault) {
            subscriber::shows(*fault, deployment).await;
            deployment.flows_at_once().await;
            (first, reading) = (Instant::now(), Reading::take(deployment));
        }
    }
    if faults.contains(&Fault::WorkerOutOfDescriptors) {
        crate::resources::open_target(deployment);
    }
    // The length of the fault.
    tokio::time::sleep(round.hold.saturating_sub(first.elapsed())).await;
    for fault in &faults {
        fault.holds(deployment).await;
    }
    if faults.iter().any(|fault| fault.takes_a_server()) {
        report.outage(&faults, reading.until_now(deployment));
    }
    if faults.contains(&Fault::WorkerStalls) {
        // What is closed while it hangs must be as it is once it is awake.
        look(deployment, round, report).await;
    }
    // Subscribers last: they fail all the while.
    let mut healed = vec![first; faults.len()];
    for subscribers in [false, true] {
        for (at, fault) in faults.iter().enumerate() {
            if of_subscriber(fault) == subscribers {
                fault.heal(deployment).await;
                healed[at] = Instant::now();
            }
        }
    }
    deployment.works().await;
    let recovered = Instant::now();
    for (at, fault) in faults.iter().enumerate() {
        report.windows.push(Window {
            fault: *fault,
            begun: begun[at],
            healed: healed[at],
            recovered,
        });
    }
    for fault in &faults {
        fault.confirm(deployment).await;
    }
    look(deployment, round, report).await;
    report.recovered(&round.faults);
}

async fn look(deployment: &Deployment, round: &Round, report: &mut Report) {
    for broken in invariants::look(deployment).await {
        report.breaks(format!("in {round:?}: {broken}"));
    }
}

/// In no outage did a process take much more of the processor than the load takes of it.
fn waited(usual: &Shares, outages: &[(String, Shares)]) -> Outcome {
    let beside = outages.iter().flat_map(|(faults, shares)| {
        shares
            .iter()
            .map(move |(name, share)| (share - usual.get(name).unwrap_or(&0.0), name, faults))
    });
    let Some((most, name, faults)) = beside.max_by(|one, other| one.0.total_cmp(&other.0)) else {
        return Ok("no server was away".into());
    };
    let seen = format!(
        "at most {:.0} % of a core beside what the load takes, in {} outages ({name}, {faults})",
        100.0 * most,
        outages.len()
    );
    if most <= MOST_BESIDE { Ok(seen) } else { Err(seen) }
}

fn bounded(peaks: &[Peak]) -> Outcome {
    let most = |of: fn(&Peak) -> u64| peaks.iter().map(of).max().unwrap_or_default();
    let (mebibytes, files) = (most(|peak| peak.mebibytes), most(|peak| peak.files));
    let seen = format!(
        "at most {mebibytes} of {MOST_MEBIBYTES} MiB and {files} of {MOST_FILES} files in one process"
    );
    if mebibytes <= MOST_MEBIBYTES && files <= MOST_FILES {
        Ok(seen)
    } else {
        Err(seen)
    }
}

/// A run in which something does not work again has ended before this is asked.
fn ended(windows: &[Window]) -> Outcome {
    let longest = windows
        .iter()
        .max_by_key(|window| window.recovered - window.healed);
    longest.map_or_else(
        || Err("no fault was injected".into()),
        |window| {
            Ok(format!(
                "{} times, at most {:.1} s later (after {})",
                windows.len(),
                (window.recovered - window.healed).as_secs_f64(),
                window.fault.name()
            ))
        },
    )
}

/// Producers saw a 202; a 503 that says when to try again, or a closed connection, only where a fault that was there may
/// let them; each within two seconds; never silence, and never anything else.
fn producers(windows: &[Window], posts: &[Post]) -> Outcome {
    let mut wrong = Vec::new();
    for post in posts {
        let seen: Vec<Seen> = windows
            .iter()
            .filter(|window| window.has(post))
            .map(|window| window.fault.about().seen)
            .collect();
        let allowed = match post.status {
            Some(202) => true,
            Some(503) => post.retry_after.is_some() && seen.iter().any(|seen| seen.refusals),
            Some(_) => false,
            None => post.closed && seen.iter().any(|seen| seen.closed),
        };
        if !allowed || post.took > ANSWER {
            let during: Vec<_> = windows
                .iter()
                .filter(|window| window.has(post))
                .map(|window| window.fault.name())
                .collect();
            wrong.push(format!("during {during:?}: {post:?}"));
        }
    }
    if wrong.is_empty() {
        return Ok(format!("{} requests", posts.len()));
    }
    wrong.truncate(wrong.len().min(5));
    Err(wrong.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_spins_in_one_outage_is_seen() {
        let usual = Shares::from([("api", 0.1), ("worker 1", 0.3)]);
        let outage = |share| {
            (
                "broker-cut".to_owned(),
                Shares::from([("api", 0.05), ("worker 1", share)]),
            )
        };
        waited(&usual, &[outage(0.2), outage(0.5)]).unwrap();
        let spun = waited(&usual, &[outage(0.2), outage(1.2), outage(0.2)]).unwrap_err();
        assert!(spun.contains("worker 1"), "{spun}");
    }
}
