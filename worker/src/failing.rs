//! Subscriptions that fail for days: for how long, the store knows; this is about asking it seldom.
//!
//! A row is written when a subscription's first attempt fails, and removed when one succeeds. In between, and while all is well,
//! nothing is written: each worker remembers for a minute what it has told the store of each subscription. A success that
//! was not told of, because the last one was, is owed: another worker may have written the row since. It is told before the
//! next failure, or when the minute is over.
//!
//! Events of the system's own count like others: whoever listens and fails for days is disabled. But they beget no others: what
//! nothing but attempts at those have led to is not announced. Whether others have failed too is in the store, for any worker.

use std::{collections::HashMap, time::Duration};

use shared::{
    OrganizationId, SubscriptionId,
    announcement::Announcement,
    store::{FailedAttempt, Store},
};
use tokio::time::Instant;

/// How long what the store was told holds.
const REMEMBERED: Duration = Duration::from_mins(1);
/// The most subscriptions that are remembered.
const MOST: usize = 50_000;
/// A subscription that had failed for so long has recovered when it succeeds; shorter is not worth a word.
const WORTH_A_WORD: Duration = Duration::from_hours(1);

/// How an attempt at a subscription went.
#[derive(Debug, Clone, Copy)]
pub struct Went {
    /// Whose it is.
    pub organization: OrganizationId,
    /// Which it is.
    pub subscription: SubscriptionId,
    /// Of which version.
    pub version: i64,
    /// Whether the subscriber took it.
    pub well: bool,
    /// Whether what follows from it may be announced: it was no event of the system's own.
    pub begets: bool,
}

/// What the store was told of a subscription, and is yet to be told.
#[derive(Debug)]
struct Told {
    /// How it went, the last time that the store was told.
    well: bool,
    /// When that was; never, if it could not be told.
    at: Option<Instant>,
    /// A success that the store was not told of.
    owed: Option<Went>,
    /// Where it went ill: whether the store was told that what follows from that may be announced.
    begets: bool,
}

impl Went {
    /// This one, of which may be announced what may be of either.
    fn and(self, before: Option<&Self>) -> Self {
        Self {
            begets: self.begets || before.is_some_and(|before| before.begets),
            ..self
        }
    }

    /// An attempt that failed, as the store is told of it.
    fn failed(&self) -> FailedAttempt {
        FailedAttempt {
            subscription: self.subscription,
            version: self.version,
            begets: self.begets,
        }
    }
}

impl Told {
    /// Whether the store was told within this time.
    fn is_fresh(&self, within: Duration) -> bool {
        self.at.is_some_and(|at| at.elapsed() < within)
    }
}

/// What the store was told.
#[derive(Debug)]
pub struct Failing {
    told: HashMap<SubscriptionId, Told>,
    /// When it was last looked for what is owed.
    looked: Instant,
    disable_after: Duration,
}

impl Failing {
    /// Subscriptions are disabled that have failed for so long.
    pub fn new(disable_after: Duration) -> Self {
        Self {
            told: HashMap::new(),
            looked: Instant::now(),
            disable_after,
        }
    }

    /// For how long what the store was told holds: a subscription that may be disabled soon is told of sooner.
    fn remembered(&self) -> Duration {
        REMEMBERED.min(self.disable_after / 4)
    }

    /// How often [`Failing::settle`] has something to do, at most.
    pub fn every(&self) -> Duration {
        (self.remembered() / 2).max(Duration::from_millis(100))
    }

    /// Tells the store what it does not know; those that have failed for too long are disabled.
    pub async fn note(&mut self, store: &Store, went: &[Went]) {
        let (well, ill) = self.news(went);
        // The successes first: what failed after them fails since then.
        self.succeeded(store, well).await;
        self.failed(store, ill).await;
        if self.looked.elapsed() >= self.every() || self.told.len() > MOST {
            self.settle(store, self.remembered()).await;
        }
    }

    /// Tells the store of the successes that it has not been told of for so long.
    pub async fn settle(&mut self, store: &Store, for_so_long: Duration) {
        self.looked = Instant::now();
        let too_many = self.told.len() > MOST;
        let owed = self
            .told
            .values()
            .filter(|told| too_many || !told.is_fresh(for_so_long));
        let owed: Vec<Went> = owed.filter_map(|told| told.owed).collect();
        self.succeeded(store, owed).await;
        if too_many {
            self.told.retain(|_, told| told.owed.is_some());
        }
    }

    /// What the store has to be told: of successes, and of failures that come after them.
    fn news(&mut self, went: &[Went]) -> (Vec<Went>, Vec<Went>) {
        let remembered = self.remembered();
        let mut last: HashMap<SubscriptionId, Went> = HashMap::new();
        let mut well: HashMap<SubscriptionId, Went> = HashMap::new();
        for &one in went {
            // What recovers has failed before.
            let before = last.get(&one.subscription).filter(|last| one.well || !last.well);
            let one = one.and(before);
            last.insert(one.subscription, one);
            if one.well {
                let before = well.get(&one.subscription);
                well.insert(one.subscription, one.and(before));
            }
        }
        let mut ill = Vec::new();
        for (subscription, one) in last {
            let told = self.told.get_mut(&subscription);
            let owed = told.as_ref().and_then(|told| told.owed);
            let known = told.filter(|told| told.is_fresh(remembered));
            match known {
                Some(told) if one.well && told.well => {
                    told.owed = Some(one.and(told.owed.as_ref()));
                    well.remove(&subscription);
                }
                // Nothing has succeeded since the store was told of a failure, and of no less.
                Some(told)
                    if !one.well
                        && !told.well
                        && (told.begets || !one.begets)
                        && !well.contains_key(&subscription) => {}
                _ if one.well => {}
                _ => {
                    if let Some(owed) = owed {
                        well.entry(subscription).or_insert(owed);
                    }
                    ill.push(one);
                }
            }
        }
        (well.into_values().collect(), ill)
    }

    async fn succeeded(&mut self, store: &Store, well: Vec<Went>) {
        if well.is_empty() {
            return;
        }
        let ids: Vec<SubscriptionId> = well.iter().map(|one| one.subscription).collect();
        let (now, told) = (Instant::now(), store.announcements.succeeded(&ids).await);
        if let Err(error) = &told {
            tracing::debug!(%error, "the store could not be told what succeeds");
        }
        let mut of = HashMap::with_capacity(well.len());
        for one in well {
            of.insert(one.subscription, one);
            // What the store could not be told is still owed.
            let entry = Told {
                well: true,
                at: told.is_ok().then_some(now),
                owed: told.is_err().then_some(one),
                begets: false,
            };
            self.told.insert(one.subscription, entry);
        }
        for had_failed in told.unwrap_or_default() {
            let (one, age) = (of[&had_failed.subscription], had_failed.failed_for);
            // What recovers has failed before.
            let begets = one.begets || had_failed.begets;
            if age >= WORTH_A_WORD.min(self.disable_after / 2) && begets {
                recovered(store, one, age).await;
            }
        }
    }

    async fn failed(&mut self, store: &Store, ill: Vec<Went>) {
        // Where the store does not know of a success, it must not be told of what failed after it.
        let owing = |one: &Went| {
            self.told
                .get(&one.subscription)
                .is_some_and(|told| told.owed.is_some())
        };
        let ill: Vec<Went> = ill.into_iter().filter(|one| !owing(one)).collect();
        if ill.is_empty() {
            return;
        }
        let attempts: Vec<FailedAttempt> = ill.iter().map(Went::failed).collect();
        let now = Instant::now();
        let ages = match store.announcements.failed(&attempts).await {
            Ok(ages) => ages,
            Err(error) => {
                // It is told with the next outcome.
                tracing::debug!(%error, "the store could not be told what fails");
                return;
            }
        };
        let mut of = HashMap::with_capacity(ill.len());
        for one in ill {
            of.insert(one.subscription, one);
            let entry = Told {
                well: false,
                at: Some(now),
                owed: None,
                begets: one.begets,
            };
            self.told.insert(one.subscription, entry);
        }
        for (subscription, age) in ages {
            if age >= self.disable_after {
                self.told.remove(&subscription);
                disable(store, of[&subscription], age, self.disable_after).await;
            }
        }
    }
}

async fn recovered(store: &Store, of: Went, age: Duration) {
    let announcement = Announcement::recovered(of.subscription, age.as_secs());
    tracing::info!(subscription.id = %of.subscription, failing_seconds = age.as_secs(), "a subscription has recovered");
    if let Err(error) = store.announcements.announce(of.organization, &announcement).await {
        tracing::warn!(%error, subscription.id = %of.subscription, "its recovery could not be announced");
    }
}

async fn disable(store: &Store, of: Went, age: Duration, after: Duration) {
    let reason = format!("every attempt has failed for {} hours", age.as_secs() / 3_600);
    let disabled = store
        .announcements
        .disable_failing(of.organization, of.subscription, of.version, after, &reason)
        .await;
    match disabled {
        Ok(true) => tracing::warn!(subscription.id = %of.subscription, reason, "a subscription is disabled"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, subscription.id = %of.subscription, "could not be disabled"),
    }
}

#[cfg(test)]
mod tests;
