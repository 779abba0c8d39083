//! Which keys have ended, or are about to, as this process was told: here by a request, or by a notice.
//!
//! It is remembered for longer than a look-up is ever served, so that no look-up that began before brings a key back, nor one
//! of a store that was restored to a moment before. The number is bounded: past it the oldest are forgotten first, whose look-ups
//! are the most likely to be over.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::MAX_STALE;
use crate::{KeyId, Timestamp};

/// How long it is remembered that a key ends.
const REMEMBERED: Duration = MAX_STALE.saturating_add(Duration::from_mins(10));
/// The most keys of which it is.
const MAX_ENDINGS: usize = 50_000;

/// A key that was revoked, or that ends once another has taken its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The key.
    #[serde(rename = "id")]
    pub key: KeyId,
    /// When it ends; without it, it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Timestamp>,
}

/// What is left of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing is known to end it.
    All,
    /// It ends then, at the latest.
    Until(Timestamp),
    /// It was revoked.
    Nothing,
}

#[derive(Debug, Default)]
pub(super) struct Endings {
    by_key: HashMap<KeyId, Ending>,
    /// In the order in which they were told.
    told: VecDeque<(Instant, KeyId)>,
}

impl Endings {
    /// Remembers one. What ends earlier stands, in whatever order they are told.
    pub(super) fn insert(&mut self, ending: Ending, now: Instant) {
        while let Some((at, key)) = self.told.front()
            && (now.duration_since(*at) > REMEMBERED || self.told.len() >= MAX_ENDINGS)
        {
            self.by_key.remove(key);
            self.told.pop_front();
        }
        let known = self.by_key.entry(ending.key).or_insert_with(|| {
            self.told.push_back((now, ending.key));
            ending
        });
        known.ends_at = known.ends_at.min(ending.ends_at);
    }

    pub(super) fn left(&self, key: KeyId) -> Left {
        match self.by_key.get(&key).map(|ending| ending.ends_at) {
            None => Left::All,
            Some(None) => Left::Nothing,
            Some(Some(end)) => Left::Until(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_end_stands() {
        let (mut endings, now, key) = (Endings::default(), Instant::now(), KeyId::new());
        let at = |seconds: i64| Some(Timestamp::from_millis(seconds * 1_000));
        let mut told = |ends_at| {
            endings.insert(Ending { key, ends_at }, now);
            endings.left(key)
        };
        assert_eq!(told(at(20)), Left::Until(Timestamp::from_millis(20_000)));
        assert_eq!(told(at(10)), Left::Until(Timestamp::from_millis(10_000)));
        assert_eq!(told(at(30)), Left::Until(Timestamp::from_millis(10_000)));
        assert_eq!(told(None), Left::Nothing);
        assert_eq!(told(at(10)), Left::Nothing);
        assert_eq!(endings.left(KeyId::new()), Left::All);
    }

    #[test]
    fn what_is_remembered_is_bounded_in_time_and_number() {
        let (mut endings, now) = (Endings::default(), Instant::now());
        let revoke = |endings: &mut Endings, now| {
            let key = KeyId::new();
            endings.insert(Ending { key, ends_at: None }, now);
            key
        };
        let first = revoke(&mut endings, now);
        revoke(&mut endings, now + MAX_STALE);
        assert_eq!(
            endings.left(first),
            Left::Nothing,
            "as long as a look-up may be served"
        );
        for _ in 0..MAX_ENDINGS {
            revoke(&mut endings, now + MAX_STALE);
        }
        assert_eq!(endings.left(first), Left::All);
        assert_eq!(
            (endings.by_key.len(), endings.told.len()),
            (MAX_ENDINGS, MAX_ENDINGS)
        );
        revoke(
            &mut endings,
            now + MAX_STALE + REMEMBERED + Duration::from_secs(1),
        );
        assert_eq!((endings.by_key.len(), endings.told.len()), (1, 1));
    }
}
