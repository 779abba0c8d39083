//! Telling the store what was taken and used here, and hearing how buckets stand.
//!
//! Once a second, for all organizations that are in use, in one statement for up to a thousand; and sooner, but never more
//! than ten times a second, for those where a node begins to take from a bucket, empties it fast, or refuses much more than
//! it did.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, atomic::Ordering},
    time::Duration,
};

use rand::RngExt;
use shared::{
    OrganizationId, Timestamp,
    store::{self, LIMIT_WORD_COUNTS, LimitNode, LimitReport, UsageCounts, UsageReport},
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Account, Limits, bucket::Bucket};

/// How often the store is told, in milliseconds: at some time between, so that nodes do not fall into step.
const EVERY: std::ops::RangeInclusive<u64> = 900..=1_100;
/// How often at most.
const GAP: Duration = Duration::from_millis(100);
/// How often a node that has nothing to tell says that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// How often usage is written down.
const WRITE_USAGE: Duration = Duration::from_secs(2);
/// The most organizations of one statement.
const TOGETHER: usize = 1_000;
/// How long the store is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a store that answers now and then counts as one that was away, with all that it had heard of before.
const COMES_AND_GOES: Duration = Duration::from_mins(1);
/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The most hours of organizations that wait to be written down. Beyond, while the store is away, nothing is counted.
const MAX_HOURS: usize = 100_000;

/// Until the soft signal; then once more.
pub(super) async fn share(
    limits: Arc<Limits>,
    store: Arc<dyn store::Limits>,
    soft: CancellationToken,
) -> anyhow::Result<()> {
    let mut sharing = Sharing {
        limits,
        store,
        busy: Vec::new(),
        used: HashMap::new(),
        clock: (Timestamp::now(), Instant::now()),
        spoke_at: None,
        away: None,
        wrote_at: Instant::now(),
        failing: false,
    };
    let (mut soonest, mut latest) = (Instant::now(), Instant::now());
    loop {
        let whom = tokio::select! {
            () = soft.cancelled() => break,
            () = sleep_until(latest) => Whom::All,
            () = async {
                sharing.limits.hurry.notified().await;
                sleep_until(soonest).await;
            } => Whom::Hurried,
        };
        let round = soft.run_until_cancelled(sharing.round(whom)).await;
        let now = Instant::now();
        if whom == Whom::All || round != Some(true) {
            latest = now + Duration::from_millis(rand::rng().random_range(EVERY));
        }
        // Whoever is away is not asked more often for being wanted.
        soonest = if round == Some(true) { now + GAP } else { latest };
    }
    if sharing.spoke_at.is_none() {
        // The store has never answered: it knows nothing of this node.
        return Ok(());
    }
    let last = async {
        sharing.round(Whom::All).await;
        sharing.write_used().await;
        let _ = sharing.store.leave_limits(sharing.limits.node).await;
    };
    let _ = timeout(LAST_WORDS, last).await;
    Ok(())
}

/// Of which organizations the store is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    All,
    Hurried,
}

struct Sharing {
    limits: Arc<Limits>,
    store: Arc<dyn store::Limits>,
    /// Those that are in use. Also while a round is under way, which may be broken off.
    busy: Vec<Arc<Account>>,
    /// By organization and hour; and whether the store knows.
    used: HashMap<(OrganizationId, i64), Used>,
    /// The store's time as last heard, and when it was asked for.
    clock: (Timestamp, Instant),
    spoke_at: Option<Instant>,
    away: Option<Away>,
    wrote_at: Instant,
    failing: bool,
}

/// The store is away, or was until just now.
#[derive(Debug, Clone, Copy)]
struct Away {
    /// Its time when it last answered before.
    since: Timestamp,
    /// When it first answered again.
    answered: Option<Instant>,
    /// Since when it has answered each time.
    back: Option<Instant>,
}

impl Away {
    /// It does not answer, or not again; it last did at `clock`, its time. Where it has come and gone for long, others have had the time
    /// to speak: those that have not since then are gone, and not to be counted for ever.
    fn again(before: Option<Self>, clock: Timestamp, now: Instant) -> Self {
        let before = before.filter(|away| away.answered.is_none_or(|at| now - at < COMES_AND_GOES));
        Self {
            since: before.map_or(clock, |away| away.since),
            answered: before.and_then(|away| away.answered),
            back: None,
        }
    }

    fn answers(&mut self, now: Instant) {
        self.answered.get_or_insert(now);
        self.back.get_or_insert(now);
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Used {
    counts: UsageCounts,
    written: UsageCounts,
}

impl Sharing {
    /// Tells and hears; whether all went well.
    async fn round(&mut self, whom: Whom) -> bool {
        self.busy.append(&mut self.limits.busy());
        self.count();
        let told = self.tell(whom).await;
        self.forget_idle();
        if self.wrote_at.elapsed() >= WRITE_USAGE {
            self.write_used().await;
        }
        match told {
            Ok(()) => {
                self.failing = false;
                // Until others have had the time to come back as well.
                let known = |away: &Away| away.back.is_some_and(|back| back.elapsed() > LIMIT_WORD_COUNTS);
                self.away = self.away.filter(|away| !known(away));
            }
            Err(error) if self.failing => {
                tracing::debug!(%error, "limits are not agreed with other nodes");
                return false;
            }
            Err(error) => {
                self.failing = true;
                tracing::info!(%error, "limits are not agreed with other nodes; this one goes on with its share");
                return false;
            }
        }
        true
    }

    async fn tell(&mut self, whom: Whom) -> anyhow::Result<()> {
        let now = self.limits.now();
        let mut accounts: Vec<&Arc<Account>> = Vec::new();
        for account in &self.busy {
            let told = |bucket: MutexGuard<'_, Bucket>| {
                bucket.is_in_use() && (whom == Whom::All || bucket.hurries())
            };
            if account.bucket().is_some_and(told) {
                accounts.push(account);
            }
        }
        accounts.sort_by_key(|account| account.organization);
        let mut groups: Vec<Vec<(LimitReport, Arc<Account>)>> = vec![Vec::new()];
        for account in accounts {
            // Where the tier has changed there are two of an organization for a while. A statement has one.
            let last = groups.last_mut().filter(|group| {
                let former = group.last().map(|(report, _)| report.organization);
                group.len() < TOGETHER && former != Some(account.organization)
            });
            if let Some(mut bucket) = account.bucket() {
                let told = (bucket.report(account.organization, now), Arc::clone(account));
                match last {
                    Some(group) => group.push(told),
                    None => groups.push(vec![told]),
                }
            }
        }
        if groups[0].is_empty() && self.spoke_at.is_some_and(|at| at.elapsed() < SIGN_OF_LIFE) {
            return Ok(());
        }
        let node = LimitNode {
            id: self.limits.node,
            at: self.spoke_at.map(|_| self.store_time()),
            away_since: self.away.map(|away| away.since),
        };
        for group in &groups {
            if let Err(error) = self.tell_some(node, group).await {
                self.is_away();
                return Err(error);
            }
        }
        Ok(())
    }

    fn is_away(&mut self) {
        if self.spoke_at.is_some() {
            self.away = Some(Away::again(self.away, self.clock.0, Instant::now()));
        }
    }

    /// The store's time as far as it is known, or a little later. From one word to the next it goes on, whatever an answer takes.
    fn store_time(&self) -> Timestamp {
        let (heard, at) = self.clock;
        heard.plus(at.elapsed())
    }

    async fn tell_some(
        &mut self,
        node: LimitNode,
        some: &[(LimitReport, Arc<Account>)],
    ) -> anyhow::Result<()> {
        let reports: Vec<LimitReport> = some.iter().map(|(report, _)| *report).collect();
        let asked_at = Instant::now();
        let call = self.store.share_limits(node, &reports);
        let heard = timeout(PATIENCE, call).await??;
        let (now, nodes) = (self.limits.now(), heard.nodes.max(1));
        self.clock = (heard.now, asked_at);
        self.spoke_at = Some(Instant::now());
        if let Some(away) = &mut self.away {
            away.answers(Instant::now());
        }
        self.limits.nodes.store(nodes, Ordering::Relaxed);
        for standing in &heard.standings {
            let found = some.binary_search_by_key(&standing.organization, |(report, _)| report.organization);
            if let Ok(place) = found
                && let Some(mut bucket) = some[place].1.bucket()
            {
                bucket.heard(standing, nodes, now);
            }
        }
        Ok(())
    }

    /// Those that are still in use stay; of the others nothing is told until they are used again.
    fn forget_idle(&mut self) {
        self.busy.retain(|account| {
            account.busy.store(false, Ordering::SeqCst);
            let in_use = account.bucket().is_some_and(|bucket| bucket.is_in_use());
            let counted = account.accepted.load(Ordering::SeqCst) + account.refused.load(Ordering::SeqCst);
            // Who uses it just now may have put it among the new ones.
            (in_use || counted > 0) && !account.busy.swap(true, Ordering::SeqCst)
        });
    }

    /// Which hour it is, by the store's clock as last heard.
    fn hour(&self) -> i64 {
        self.store_time().seconds().div_euclid(3_600)
    }

    /// Takes over what was counted since the last time.
    fn count(&mut self) {
        let hour = self.hour();
        for account in &self.busy {
            let accepted = account.accepted.swap(0, Ordering::Relaxed);
            let refused = account.refused.swap(0, Ordering::Relaxed);
            let key = (account.organization, hour);
            if accepted + refused == 0 || (self.used.len() >= MAX_HOURS && !self.used.contains_key(&key)) {
                continue;
            }
            let counts = &mut self.used.entry(key).or_default().counts;
            counts.accepted += accepted;
            counts.refused += refused;
        }
    }

    /// Writes down what was used and the store does not know yet.
    async fn write_used(&mut self) {
        self.wrote_at = Instant::now();
        let news = self.used.iter().filter(|(_, used)| used.counts != used.written);
        let mut news: Vec<UsageReport> = news
            .map(|((organization, hour), used)| UsageReport {
                organization: *organization,
                hour: *hour,
                counts: used.counts,
            })
            .collect();
        news.sort_unstable_by_key(|report| (report.organization, report.hour));
        for some in news.chunks(TOGETHER) {
            let written = timeout(PATIENCE, self.store.write_usage(self.limits.node, some)).await;
            if !matches!(written, Ok(Ok(()))) {
                tracing::debug!("usage is written down later");
                return;
            }
            for report in some {
                if let Some(used) = self.used.get_mut(&(report.organization, report.hour)) {
                    used.written = report.counts;
                }
            }
        }
        let now = self.hour();
        self.used
            .retain(|(_, hour), used| *hour == now || used.counts != used.written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_comes_and_goes_is_not_away_since_long_ago() {
        let (first, later) = (Timestamp::from_millis(1_000), Timestamp::from_millis(600_000));
        let mut now = Instant::now();
        let mut away = Away::again(None, first, now);
        now += Duration::from_mins(10);
        away = Away::again(Some(away), later, now);
        assert_eq!(away.since, first, "it has not answered since");
        for _ in 0..5 {
            away.answers(now);
            now += Duration::from_secs(5);
            away = Away::again(Some(away), later, now);
            assert_eq!(
                (away.since, away.back),
                (first, None),
                "others may not have spoken yet"
            );
            now += Duration::from_secs(6);
        }
        now += Duration::from_secs(5);
        away = Away::again(Some(away), later, now);
        assert_eq!((away.since, away.answered), (later, None));
    }
}
