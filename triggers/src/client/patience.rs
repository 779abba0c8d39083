//! Trying again what may get in later.

use std::time::{Duration, Instant};

use super::{Failure, failure::Again};

/// How long to wait where no answer said so: the first time, and at most.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// How long to go on trying, counted from the last progress.
pub struct Patience {
    /// For how long without any progress.
    limit: Duration,
    since: Instant,
    /// Tries without an answer, one after another.
    unanswered: u32,
    /// Whether the API has answered at all: until then its address may be wrong.
    answered: bool,
}

impl Patience {
    /// Begins now.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: Instant::now(),
            unanswered: 0,
            answered: false,
        }
    }

    /// Something got in.
    pub fn progressed(&mut self) {
        self.since = Instant::now();
        self.unanswered = 0;
        self.answered = true;
    }

    /// How long to wait before trying again; the failure itself where that is no use, or was tried for long enough.
    pub fn after(&mut self, failure: Failure) -> Result<Duration, Failure> {
        self.after_at(failure, Instant::now())
    }

    fn after_at(&mut self, failure: Failure, now: Instant) -> Result<Duration, Failure> {
        let again = failure.again();
        if again == Again::Never {
            return Err(failure);
        }
        if matches!(failure, Failure::Unreachable(_)) && !self.answered {
            return Err(failure);
        }
        let wait = if let Again::After(said) = again {
            said
        } else {
            let doubled = FIRST.saturating_mul(2_u32.saturating_pow(self.unanswered));
            self.unanswered += 1;
            doubled.min(LONGEST)
        };
        self.answered = true;
        if now.duration_since(self.since) + wait > self.limit {
            return Err(failure);
        }
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::failure::Problem;

    fn problem(status: u16, retry_after: Option<u64>) -> Failure {
        let text = r#"{"code":"a_code","detail":"a detail"}"#.to_owned();
        Failure::Problem(Box::new(
            Problem::read(status, retry_after, text).expect("a problem"),
        ))
    }

    #[test]
    fn waits_as_it_is_told_and_gives_up() {
        let mut patience = Patience::new(Duration::from_secs(10));
        let begun = patience.since;
        let mut waits = |failure, passed| {
            let now = begun + Duration::from_secs(passed);
            patience.after_at(failure, now).ok().map(|wait| wait.as_millis())
        };
        let away = || Failure::Unreachable(String::new());
        let silent = || Failure::Unanswered(String::new());
        assert_eq!(waits(away(), 0), None, "the address may be wrong");
        assert_eq!(waits(problem(422, None), 0), None, "no use");
        assert_eq!(waits(problem(429, Some(3)), 0), Some(3_000));
        let doubled: Vec<_> = (0..4).map(|_| waits(silent(), 0)).collect();
        assert_eq!(doubled, [Some(500), Some(1_000), Some(2_000), Some(4_000)]);
        assert_eq!(waits(problem(503, Some(11)), 0), None, "too long");
        assert_eq!(waits(problem(503, Some(2)), 9), None, "no progress for long");
        patience.progressed();
        let now = patience.since;
        let wait = patience.after_at(away(), now).ok();
        assert_eq!(wait, Some(FIRST), "it was there before");
    }
}
