//! Which subscriptions somebody waits to pull from. A worker gives word of what it stores for these, and of no others: where
//! nobody pulls, a notice for each intake would be for nothing.
//!
//! Whoever waits says so again and again through the store; what is not said again is forgotten. What gets lost costs
//! time: those who wait look by themselves.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use shared::SubscriptionId;
use tokio::time::Instant;

/// How long it counts that somebody waits.
const HEEDED: Duration = Duration::from_mins(1);
/// The most subscriptions that are remembered.
const MOST: usize = 10_000;

/// The subscriptions that somebody waits for, and when that was last said.
#[derive(Debug, Default)]
pub struct Awaited(Mutex<HashMap<SubscriptionId, Instant>>);

impl Awaited {
    /// Somebody waits.
    pub fn note(&self, subscription: SubscriptionId, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, said| now - *said < HEEDED);
        }
        if known.len() < MOST || known.contains_key(&subscription) {
            known.insert(subscription, now);
        }
    }

    /// Those of these that somebody waits for.
    pub fn among(
        &self,
        subscriptions: impl IntoIterator<Item = SubscriptionId>,
        now: Instant,
    ) -> Vec<SubscriptionId> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_empty() {
            return Vec::new();
        }
        let awaited =
            |subscription: &SubscriptionId| known.get(subscription).is_some_and(|said| now - *said < HEEDED);
        subscriptions.into_iter().filter(awaited).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_again_is_forgotten() {
        let awaited = Awaited::default();
        let (one, other, now) = (SubscriptionId::new(), SubscriptionId::new(), Instant::now());
        awaited.note(one, now);
        awaited.note(other, now + HEEDED / 2);
        assert_eq!(awaited.among([one, other], now + HEEDED / 2), [one, other]);
        assert_eq!(awaited.among([one, other], now + HEEDED), [other]);
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let (awaited, now) = (Awaited::default(), Instant::now());
        let some: Vec<_> = (0..MOST).map(|_| SubscriptionId::new()).collect();
        for one in &some {
            awaited.note(*one, now);
        }
        let late = SubscriptionId::new();
        awaited.note(late, now);
        assert_eq!(awaited.among([late], now), []);
        assert_eq!(awaited.among(some, now).len(), MOST);
        awaited.note(late, now + HEEDED);
        assert_eq!(awaited.among([late], now + HEEDED), [late]);
        assert_eq!(awaited.0.lock().unwrap().len(), 1);
    }
}
