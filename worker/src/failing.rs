//! Subscriptions that fail for days: for how long, the store knows; this is about asking it seldom.
//!
//! A row is written when a subscription's first attempt fails, and removed when one succeeds. In between, and while all is well,
//! nothing is written: each worker remembers for a minute what it has told the store of each subscription.

use std::{collections::HashMap, time::Duration};

use shared::{OrganizationId, SubscriptionId, announcement::Announcement, store::Store};
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
}

/// What the store was told.
#[derive(Debug)]
pub struct Failing {
    told: HashMap<SubscriptionId, (bool, Instant)>,
    disable_after: Duration,
}

impl Failing {
    /// Subscriptions are disabled that have failed for so long.
    pub fn new(disable_after: Duration) -> Self {
        Self {
            told: HashMap::new(),
            disable_after,
        }
    }

    /// Tells the store what it does not know; those that have failed for too long are disabled.
    pub async fn note(&mut self, store: &Store, went: &[Went]) {
        let now = Instant::now();
        // A subscription that is told of often need not be told of again; one that may be disabled soon is asked for sooner.
        let remembered = REMEMBERED.min(self.disable_after / 4);
        let mut news: HashMap<SubscriptionId, Went> = HashMap::new();
        for one in went {
            match self.told.get(&one.subscription) {
                Some((well, at)) if *well == one.well && now.duration_since(*at) < remembered => {}
                _ => drop(news.insert(one.subscription, *one)),
            }
        }
        if news.is_empty() {
            return;
        }
        if self.told.len() > MOST {
            self.told.clear();
        }
        let of = |well: bool| -> Vec<SubscriptionId> {
            news.values()
                .filter(|one| one.well == well)
                .map(|one| one.subscription)
                .collect()
        };
        let (well, ill) = (of(true), of(false));
        let recovered = async {
            if well.is_empty() {
                Ok(Vec::new())
            } else {
                store.announcements.succeeded(&well).await
            }
        };
        let failing = async {
            if ill.is_empty() {
                Ok(Vec::new())
            } else {
                store.announcements.failed(&ill).await
            }
        };
        // What the store could not be told is told with the next outcome.
        match recovered.await {
            Ok(ages) => {
                for (subscription, age) in ages {
                    if age >= WORTH_A_WORD.min(self.disable_after / 2) {
                        self.recovered(store, news[&subscription], age).await;
                    }
                }
                self.told
                    .extend(well.iter().map(|subscription| (*subscription, (true, now))));
            }
            Err(error) => tracing::debug!(%error, "the store could not be told what succeeds"),
        }
        match failing.await {
            Ok(ages) => {
                self.told
                    .extend(ill.iter().map(|subscription| (*subscription, (false, now))));
                for (subscription, age) in ages {
                    if age >= self.disable_after {
                        self.told.remove(&subscription);
                        disable(store, news[&subscription], age).await;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "the store could not be told what fails"),
        }
    }

    async fn recovered(&self, store: &Store, of: Went, age: Duration) {
        let announcement = Announcement::recovered(of.subscription, age.as_secs());
        tracing::info!(subscription.id = %of.subscription, failing_seconds = age.as_secs(), "a subscription has recovered");
        if let Err(error) = store.announcements.announce(of.organization, &announcement).await {
            tracing::warn!(%error, subscription.id = %of.subscription, "its recovery could not be announced");
        }
    }
}

async fn disable(store: &Store, of: Went, age: Duration) {
    let reason = format!("every attempt has failed for {} hours", age.as_secs() / 3_600);
    let disabled = store
        .subscriptions
        .disable(of.organization, of.subscription, of.version, &reason)
        .await;
    match disabled {
        Ok(true) => tracing::warn!(subscription.id = %of.subscription, reason, "a subscription is disabled"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, subscription.id = %of.subscription, "could not be disabled"),
    }
}
