//! What each process takes of the processor while a server is away: it waits, and does not spin.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::deployment::Deployment;

/// How much of one core a process may take, on average over an outage, beside what the load takes of it while all is well. A
/// loop that does not wait takes three quarters of one or more, and as much less as the outage refused at once for a part of its
/// time alone. Usual are some hundredths.
pub const MOST_BESIDE: f64 = 0.25;
/// What `/proc/<id>/stat` counts in, on every Linux: hundredths of a second.
const TICK: Duration = Duration::from_millis(10);
/// For how long it is looked at what the load takes.
const USUALLY: Duration = Duration::from_secs(3);

/// The share of one core that each process took.
pub type Shares = BTreeMap<&'static str, f64>;

/// What each process that runs has taken since it began.
pub struct Reading {
    at: Instant,
    taken: BTreeMap<&'static str, (u32, Duration)>,
}

impl Reading {
    pub fn take(deployment: &Deployment) -> Self {
        let taken = deployment.nodes().into_iter().filter_map(|(name, node)| {
            let id = node.id()?;
            Some((name, (id, taken(id)?)))
        });
        Self {
            at: Instant::now(),
            taken: taken.collect(),
        }
    }

    /// What those took since then that have run all the while.
    pub fn until_now(&self, deployment: &Deployment) -> Shares {
        let now = Self::take(deployment);
        let length = now.at - self.at;
        let share = |(name, (id, taken)): (&&'static str, &(u32, Duration))| {
            let (before, earlier) = self.taken.get(name)?;
            let more = taken.saturating_sub(*earlier);
            (before == id).then(|| (*name, more.as_secs_f64() / length.as_secs_f64()))
        };
        now.taken.iter().filter_map(share).collect()
    }
}

/// What the load takes of each while nothing fails.
pub async fn usual(deployment: &Deployment) -> Shares {
    let reading = Reading::take(deployment);
    tokio::time::sleep(USUALLY).await;
    reading.until_now(deployment)
}

/// The time of the processor that a process has taken, for itself and in the kernel.
fn taken(id: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Its name, in brackets, may have anything in it; from behind it on, these are the twelfth and the thirteenth.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u32>);
    let (user, kernel) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some(TICK * (user + kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_spins_takes_more_and_more() {
        let before = taken(std::process::id()).unwrap();
        let begun = Instant::now();
        while taken(std::process::id()).unwrap() < before + 3 * TICK {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing was counted");
        }
    }
}
