//! When keys were last used, noted in memory and written down rarely: never while a request waits.
//!
//! A use counts when a refresh comes by, every few seconds. A key's first one is written down with the next batch, a later one
//! once it is [`USE_GRAIN`] after what was written. So a crash loses minutes of it, and nothing else does; the number of keys is
//! bounded, and beyond it a use is not noted.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{KeyId, store::USE_GRAIN};

/// The most keys whose use is noted.
const MAX_NOTED: usize = super::MAX_KEYS;

#[derive(Debug, Clone, Copy)]
struct Use {
    at: Instant,
    written: Option<Instant>,
}

impl Use {
    fn is_due(&self) -> bool {
        self.written
            .is_none_or(|written| self.at.duration_since(written) >= USE_GRAIN)
    }
}

#[derive(Debug, Default)]
pub(super) struct LastUse(HashMap<KeyId, Use>);

impl LastUse {
    pub(super) fn note(&mut self, key: KeyId, now: Instant) {
        if self.0.len() >= MAX_NOTED && !self.0.contains_key(&key) {
            return;
        }
        let fresh = Use {
            at: now,
            written: None,
        };
        self.0.entry(key).or_insert(fresh).at = now;
    }

    /// What is to be written down, as how long ago it was.
    pub(super) fn due(&self, now: Instant) -> Vec<(KeyId, Duration)> {
        let due = self.0.iter().filter(|(_, last)| last.is_due());
        due.map(|(key, last)| (*key, now.duration_since(last.at)))
            .collect()
    }

    /// What was due at `now` is written down; what is not needed any more is forgotten.
    pub(super) fn wrote(&mut self, now: Instant) {
        for last in self.0.values_mut().filter(|last| last.is_due()) {
            last.written = Some(last.at);
        }
        self.0
            .retain(|_, last| last.is_due() || now.duration_since(last.at) < USE_GRAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_written_at_once_and_then_rarely() {
        let (mut noted, begun, key) = (LastUse::default(), Instant::now(), KeyId::new());
        let second = Duration::from_secs(1);
        noted.note(key, begun);
        assert_eq!(noted.due(begun + second), [(key, second)]);
        assert_eq!(noted.due(begun + second).len(), 1, "it was not written");
        noted.wrote(begun + second);
        for tick in 1..USE_GRAIN.as_secs() {
            noted.note(key, begun + second * u32::try_from(tick).unwrap());
            assert!(noted.due(begun + USE_GRAIN).is_empty(), "after {tick} s");
        }
        noted.note(key, begun + USE_GRAIN);
        assert_eq!(noted.due(begun + USE_GRAIN), [(key, Duration::ZERO)]);
        noted.wrote(begun + USE_GRAIN);
        assert_eq!(noted.0.len(), 1);
        noted.wrote(begun + USE_GRAIN * 2);
        assert!(noted.0.is_empty(), "it is not used any more");
    }

    #[test]
    fn the_number_is_bounded() {
        let (mut noted, now) = (LastUse::default(), Instant::now());
        for _ in 0..=MAX_NOTED {
            noted.note(KeyId::new(), now);
        }
        assert_eq!(noted.due(now).len(), MAX_NOTED);
    }
}
