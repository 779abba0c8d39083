//! Shares: how much of something each of many may take, none of whom is known before, or worth remembering after.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::Semaphore;

/// A semaphore for each, with as many permits. It is there for as long as somebody has it, a permit of it, or waits for one.
#[derive(Debug)]
pub struct Shares<K> {
    permits: usize,
    known: Mutex<HashMap<K, Weak<Semaphore>>>,
}

impl<K: Eq + Hash> Shares<K> {
    /// So many permits for each.
    pub fn of_each(permits: usize) -> Self {
        Self {
            permits,
            known: Mutex::default(),
        }
    }

    /// The share of this one.
    pub fn of(&self, key: K) -> Arc<Semaphore> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = known.get(&key).and_then(Weak::upgrade) {
            return share;
        }
        // Seldom enough, and often enough.
        if known.len().is_power_of_two() {
            known.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new(self.permits));
        known.insert(key, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_there_for_as_long_as_somebody_has_it() {
        let shares = Shares::of_each(2);
        let held = shares.of(0).try_acquire_owned().unwrap();
        for other in 1..1_000 {
            assert_eq!(shares.of(other).available_permits(), 2);
        }
        let kept = shares.known.lock().unwrap().len();
        assert!(kept <= 4, "{kept} are kept that nobody has");
        assert_eq!(shares.of(0).available_permits(), 1);
        drop(held);
        assert_eq!(shares.of(0).available_permits(), 2);
    }
}
