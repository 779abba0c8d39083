//! How attempts at a subscription go: counted as they end, and told as rates and quantiles.
//!
//! Durations are counted in buckets that grow with what they hold: exact below 8 ms, and above that eight to each doubling, so
//! that a quantile is off by at most a sixteenth of itself. However many attempts there are, a count has the same size.

use std::{collections::BTreeMap, time::Duration};

use crate::{FailureKind, Invalid};

/// One for each millisecond below 8, then eight for each doubling up to 32,768 ms; what takes longer is in the last.
const BUCKETS: usize = 8 + 12 * 8;
const KINDS: usize = FailureKind::ALL.len();

/// Attempts, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    succeeded: u64,
    failures: [u64; KINDS],
    durations: [u32; BUCKETS],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            succeeded: 0,
            failures: [0; KINDS],
            durations: [0; BUCKETS],
        }
    }
}

impl Tally {
    /// Counts an attempt; without a failure it succeeded.
    pub fn add(&mut self, failure: Option<FailureKind>, duration: Duration) {
        match failure {
            None => self.succeeded += 1,
            Some(kind) => self.failures[kind as usize] += 1,
        }
        let bucket = &mut self.durations[bucket(duration)];
        *bucket = bucket.saturating_add(1);
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        for (mine, theirs) in self.failures.iter_mut().zip(other.failures) {
            *mine += theirs;
        }
        for (mine, theirs) in self.durations.iter_mut().zip(other.durations) {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// How many succeeded.
    pub const fn succeeded(&self) -> u64 {
        self.succeeded
    }

    /// How many failed.
    pub fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// How many there were.
    pub fn attempts(&self) -> u64 {
        self.succeeded + self.failed()
    }

    /// How many failed in each way that any did.
    pub fn failures(&self) -> BTreeMap<&'static str, u64> {
        let kinds = FailureKind::ALL.into_iter().map(FailureKind::as_str);
        kinds.zip(self.failures).filter(|(_, count)| *count > 0).collect()
    }

    /// The share that succeeded, if there were any.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a share of what was counted within an hour"
    )]
    pub fn success_rate(&self) -> Option<f64> {
        let attempts = self.attempts();
        (attempts > 0).then(|| self.succeeded as f64 / attempts as f64)
    }

    /// How many milliseconds so many percent of the attempts took at most, within a sixteenth.
    pub fn percentile_ms(&self, percent: u64) -> Option<u64> {
        let total: u64 = self.durations.iter().copied().map(u64::from).sum();
        let rank = (total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.durations.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        });
        found.map(middle)
    }

    /// What failed in which way, as the store keeps it: JSON, by the names of the kinds.
    pub fn failures_text(&self) -> String {
        serde_json::json!(self.failures()).to_string()
    }

    /// The durations as the store keeps them: JSON, how many are in each bucket that is not empty.
    pub fn durations_text(&self) -> String {
        let counts = self.durations.iter().copied().enumerate();
        let filled: BTreeMap<usize, u32> = counts.filter(|(_, count)| *count > 0).collect();
        serde_json::json!(filled).to_string()
    }

    /// Reads what the store keeps. Kinds and buckets of a newer version are left out.
    pub fn from_texts(succeeded: u64, failures: &str, durations: &str) -> Result<Self, Invalid> {
        let unreadable = |_| Invalid::new("must be counts");
        let by_kind: BTreeMap<String, u64> = serde_json::from_str(failures).map_err(unreadable)?;
        let by_bucket: BTreeMap<usize, u32> = serde_json::from_str(durations).map_err(unreadable)?;
        let mut tally = Self {
            succeeded,
            ..Self::default()
        };
        for (kind, count) in by_kind {
            if let Ok(kind) = kind.parse::<FailureKind>() {
                tally.failures[kind as usize] = count;
            }
        }
        for (bucket, count) in by_bucket {
            if let Some(bucket) = tally.durations.get_mut(bucket) {
                *bucket = count;
            }
        }
        Ok(tally)
    }
}

fn bucket(duration: Duration) -> usize {
    let ms = usize::try_from(duration.as_millis()).unwrap_or(usize::MAX);
    if ms < 8 {
        return ms;
    }
    let doublings = ms.ilog2() as usize - 3;
    (8 + doublings * 8 + ((ms >> doublings) & 7)).min(BUCKETS - 1)
}

/// The milliseconds in the middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 8 {
        return bucket;
    }
    let doublings = (bucket - 8) / 8;
    ((8 + bucket % 8) << doublings) + ((1 << doublings) >> 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn kinds_are_counted_by_their_place() {
        for (place, kind) in FailureKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }

    #[test]
    fn rates_and_quantiles_of_what_was_counted() {
        let mut tally = Tally::default();
        assert_eq!((tally.success_rate(), tally.percentile_ms(50)), (None, None));
        for _ in 0..90 {
            tally.add(None, ms(4));
        }
        for _ in 0..9 {
            tally.add(Some(FailureKind::Status), ms(100));
        }
        tally.add(Some(FailureKind::Timeout), Duration::from_hours(1));
        assert_eq!(
            (tally.attempts(), tally.succeeded(), tally.failed()),
            (100, 90, 10)
        );
        assert_eq!(tally.success_rate(), Some(0.9));
        assert_eq!(tally.failures_text(), r#"{"status":9,"timeout":1}"#);
        assert_eq!(
            (tally.percentile_ms(50), tally.percentile_ms(90)),
            (Some(4), Some(4))
        );
        assert_eq!(tally.percentile_ms(91), Some(100));
        let longest = tally.percentile_ms(100).unwrap();
        assert!((30_720..=32_768).contains(&longest), "{longest}");
    }

    #[test]
    fn counts_of_a_newer_version_are_left_out() {
        let tally = Tally::from_texts(1, r#"{"dns":2,"quantum":3}"#, r#"{"4":3,"999":1}"#).unwrap();
        assert_eq!(
            (tally.attempts(), tally.durations_text()),
            (3, r#"{"4":3}"#.to_owned())
        );
        for bad in ["", "[]", r#"{"dns":-1}"#] {
            assert!(Tally::from_texts(1, bad, "{}").is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_told_is_within_a_sixteenth(took in 0..30_000u64) {
            let mut tally = Tally::default();
            tally.add(None, ms(took));
            let told = tally.percentile_ms(50).unwrap();
            prop_assert!(told.abs_diff(took) * 16 <= took, "{took} is told as {told}");
        }

        #[test]
        fn kept_apart_and_merged_is_as_counted_together(
            attempts in prop::collection::vec((prop::option::of(0..KINDS), 0..40_000u64, any::<bool>()), 0..200),
        ) {
            let (mut together, mut apart) = (Tally::default(), [Tally::default(), Tally::default()]);
            for (kind, took, which) in attempts {
                let kind = kind.map(|kind| FailureKind::ALL[kind]);
                together.add(kind, ms(took));
                apart[usize::from(which)].add(kind, ms(took));
            }
            let mut merged = Tally::default();
            for tally in &apart {
                let (failures, durations) = (tally.failures_text(), tally.durations_text());
                merged.merge(&Tally::from_texts(tally.succeeded(), &failures, &durations).unwrap());
            }
            prop_assert_eq!(merged, together);
        }
    }
}
