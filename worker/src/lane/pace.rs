//! A lane's rate: attempts a second, spread evenly.
//!
//! The generic cell rate algorithm: an attempt may begin once the time that it stands for has come; a few may come
//! together where the rate is so high that a timer could not tell them apart. No second sees more than the rate.

use std::time::Duration;

use tokio::time::Instant;

/// What timers can tell apart.
const RESOLUTION: f64 = 0.01;

/// When the next attempt is in its time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace(Option<Instant>);

impl Pace {
    /// When an attempt may begin; `now` or before it is now.
    pub fn ready_at(self, rate_per_second: u32) -> Option<Instant> {
        let (_, tolerance) = spread(rate_per_second);
        self.0.and_then(|next| next.checked_sub(tolerance))
    }

    /// How many attempts, `most` at most, may begin from now on within a time.
    pub fn begins_within(mut self, time: Duration, now: Instant, rate_per_second: u32, most: usize) -> usize {
        let begins = |_: &usize| {
            let at = self.ready_at(rate_per_second).map_or(now, |at| at.max(now));
            let is_within = at <= now + time;
            if is_within {
                self.take(at, rate_per_second);
            }
            is_within
        };
        (0..most).take_while(begins).count()
    }

    /// An attempt begins.
    pub fn take(&mut self, now: Instant, rate_per_second: u32) {
        let (interval, _) = spread(rate_per_second);
        self.0 = Some(self.0.map_or(now, |next| next.max(now)) + interval);
    }
}

/// The time between two attempts, and by how much one may come early. With `together` at once and an interval of
/// `1 / (rate - together + 1)`, no second sees more than `rate`.
fn spread(rate_per_second: u32) -> (Duration, Duration) {
    let rate = f64::from(rate_per_second.max(1));
    let together = (rate * RESOLUTION).floor().max(1.0);
    let interval = 1.0 / (rate - together + 1.0);
    (
        Duration::from_secs_f64(interval),
        Duration::from_secs_f64(interval * (together - 1.0)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However attempts come, no second sees more than the rate; and one that comes all the time gets nearly all of it.
        #[test]
        fn no_second_sees_more_than_the_rate(rate in 1u32..=2_000, pauses in prop::collection::vec(0u64..40_000, 1..60)) {
            let (start, mut pace) = (Instant::now(), Pace::default());
            let mut now = start;
            let mut begun: Vec<Instant> = Vec::new();
            for micros in pauses {
                now += Duration::from_micros(micros);
                while pace.ready_at(rate).is_none_or(|at| at <= now) {
                    pace.take(now, rate);
                    begun.push(now);
                }
            }
            for (at, first) in begun.iter().enumerate() {
                let within = begun[at..].iter().take_while(|other| other.duration_since(*first) < Duration::from_millis(999));
                prop_assert!(within.count() <= rate as usize);
            }
        }
    }

    #[test]
    fn what_may_begin_soon_is_what_the_rate_says() {
        let (now, soon) = (Instant::now(), Duration::from_millis(100));
        let mut pace = Pace::default();
        let within = [1, 20, 1_000].map(|rate| pace.begins_within(soon, now, rate, 200));
        assert_eq!(within, [1, 3, 109]);
        assert_eq!(pace.begins_within(soon, now, 1_000, 16), 16);
        assert_eq!(pace.begins_within(Duration::ZERO, now, 200, 16), 2, "together");
        pace.take(now, 1);
        assert_eq!(pace.begins_within(soon, now, 1, 16), 0);
        let next = now + Duration::from_secs(1);
        assert_eq!(pace.begins_within(soon, next, 1, 16), 1);
    }

    #[test]
    fn nearly_all_of_the_rate_is_used() {
        for rate in [1, 3, 50, 100, 1_000, 10_000] {
            let (start, mut pace) = (Instant::now(), Pace::default());
            let mut begun = 0;
            for step in 0..4_000 {
                let now = start + Duration::from_micros(2_500 * step);
                while pace.ready_at(rate).is_none_or(|at| at <= now) {
                    pace.take(now, rate);
                    begun += 1;
                }
            }
            let most = 10 * rate;
            assert!(
                (most * 95 / 100..=most + rate / 50 + 1).contains(&begun),
                "{begun} at {rate}"
            );
        }
    }
}
