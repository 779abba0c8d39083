//! Acting on word of changes, and looking by itself every second, whatever word has come.
//!
//! Word may be late: what it says was called off may have been opened again since, and taken anew by this very worker. So
//! what is taken out of a lane goes back to the store, which knows; for what is closed that changes nothing.

use std::{sync::Arc, time::Duration};

use shared::{
    SubscriptionId,
    store::{Change, Store},
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    awaited::Awaited,
    dispatch::Dispatch,
    lane::Job,
    ownership::Ownership,
    pauses,
    registry::{Found, Registry},
    scheduler::Wake,
};

/// How often the subscriptions that have a lane are read anew, whatever word has come.
const POLL: Duration = Duration::from_secs(1);
/// How many deliveries that were called off are given back at once, at most.
const AT_ONCE: usize = 500;

/// Those who have to know of changes.
pub struct Changes {
    /// What is known of subscriptions.
    pub registry: Arc<Registry>,
    /// Which lanes are this worker's alone.
    pub ownership: Arc<Ownership>,
    /// For which subscriptions somebody waits.
    pub awaited: Arc<Awaited>,
    /// The lanes.
    pub dispatch: Arc<Dispatch>,
    /// Who feeds them.
    pub wake: Wake,
    /// Who knows.
    pub store: Store,
}

impl Changes {
    /// Heeds what comes until the soft signal.
    pub async fn heed(self, mut changes: Receiver<Change>, soft: CancellationToken) -> anyhow::Result<()> {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut called_off: Vec<Job> = Vec::new();
        loop {
            let change = tokio::select! {
                biased;
                () = soft.cancelled() => break,
                _ = poll.tick() => Change::Everything,
                change = changes.recv(), if called_off.len() < AT_ONCE => match change {
                    Ok(change) => change,
                    Err(RecvError::Lagged(_)) => Change::Everything,
                    // The store is being closed.
                    Err(RecvError::Closed) => break,
                },
                // There is no more word for now: many are given back in one call.
                () = std::future::ready(()), if !called_off.is_empty() => {
                    self.dispatch.give_back(std::mem::take(&mut called_off)).await;
                    continue;
                }
            };
            match change {
                Change::Closed(event) => called_off.extend(self.dispatch.lanes().call_off_event(event)),
                Change::Cancelled(delivery) => {
                    called_off.extend(self.dispatch.lanes().call_off(delivery));
                }
                Change::Pause(pause) => self.dispatch.put_off(&[pause], Instant::now()),
                Change::Lane(lane) if self.ownership.owns(lane) => self.wake.feed(lane),
                Change::Awaited(lane) => self.awaited.note(lane, Instant::now()),
                // Whoever takes test pushes listens, too.
                Change::Lane(_) | Change::TestPush => {}
                Change::Subscription(subscription) => {
                    if self.refresh(&[subscription]).await {
                        self.wake.feed(subscription);
                    }
                }
                Change::Everything => {
                    pauses::heed(&self.store, &self.dispatch).await;
                    let awake = self.dispatch.lanes().subscriptions();
                    self.refresh(&awake).await;
                }
            }
        }
        self.dispatch.give_back(called_off).await;
        Ok(())
    }

    /// Reads these anew, and sees to it that their lanes keep to what is read. Whether any of them is to be served.
    async fn refresh(&self, subscriptions: &[SubscriptionId]) -> bool {
        if let Err(error) = self.registry.refresh(subscriptions).await {
            tracing::debug!(%error, "subscriptions could not be read anew");
            return false;
        }
        let mut serves = false;
        for subscription in subscriptions.iter().copied() {
            match self.registry.route(subscription).await {
                Ok(Found::Enabled(route)) => {
                    let terms = route.terms(self.ownership.workers());
                    self.dispatch
                        .lanes()
                        .set_terms(subscription, terms, Instant::now());
                    if terms.solo && !self.ownership.owns(subscription) {
                        // It has come to have one owner, who is another or is yet to be.
                        let others = self.dispatch.lanes().drain(subscription);
                        self.dispatch.give_back(others).await;
                    }
                    serves = true;
                }
                Ok(Found::Disabled | Found::Gone) => {
                    let parked = self.dispatch.lanes().drain(subscription);
                    self.dispatch.give_back(parked).await;
                }
                Err(_) => {}
            }
        }
        self.dispatch.pump();
        serves
    }
}
