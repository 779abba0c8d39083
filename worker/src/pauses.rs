//! Subscribers that asked to be left alone: what one worker was told, all of them keep to, and those that are started later.
//!
//! The store is told once the outcome is written down, and tells the others; behind its notice there is a look each second. It is a
//! hint: where the store cannot be told, each worker learns for itself, as it does of failures.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use shared::{
    SubscriptionId,
    store::{Pause, Store},
};
use tokio::time::Instant;

use crate::dispatch::{Dispatch, Ended};

/// The most pauses that are looked at, the longest. Of others, each worker learns for itself.
const MOST: u32 = 10_000;

/// What these attempts were told, the longest of each subscriber; of a subscription that has changed, of the later one. A test push says nothing to its lane.
pub fn of(ended: &[Ended]) -> Vec<Pause> {
    let mut longest: HashMap<SubscriptionId, (i64, Pause)> = HashMap::new();
    for ended in ended.iter().filter(|ended| !ended.is_test) {
        let Some(lasts) = ended.asked_to_wait else {
            continue;
        };
        let pause = Pause {
            subscription: ended.outcome.delivery.subscription,
            subscriber: ended.subscriber,
            lasts,
        };
        match longest.entry(pause.subscription) {
            Entry::Vacant(none) => drop(none.insert((ended.version, pause))),
            Entry::Occupied(mut known) => {
                let (version, before) = *known.get();
                let takes_its_place = if before.subscriber == pause.subscriber {
                    before.lasts < pause.lasts
                } else {
                    version < ended.version
                };
                if takes_its_place {
                    known.insert((ended.version, pause));
                }
            }
        }
    }
    longest.into_values().map(|(_, pause)| pause).collect()
}

/// Tells the store.
pub async fn tell(store: &Store, pauses: &[Pause]) {
    if pauses.is_empty() {
        return;
    }
    if let Err(error) = store.pauses.note_pauses(pauses).await {
        tracing::debug!(%error, "other workers could not be told to wait");
    }
}

/// Keeps to all that the store knows of.
pub async fn heed(store: &Store, dispatch: &Arc<Dispatch>) {
    // Reckoned from before it was asked: none lasts longer for that.
    let as_of = Instant::now();
    match store.pauses.pauses(MOST).await {
        Ok(pauses) => dispatch.put_off(&pauses, as_of),
        Err(error) => tracing::debug!(%error, "the store cannot say who asked to be left alone"),
    }
}
