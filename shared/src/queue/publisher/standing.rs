//! Shedding: while a queue of events stands, who comes is told at once.
//!
//! A queue that empties now and then does its work, however long it was for a moment: a disk that stalls for a fifth of a
//! second must cost nobody a 503. One that has not been empty for [`INTERVAL`] is as long as callers make it, and all that
//! more of them would get is a longer wait. From then on an event is let in only while the one that has waited longest has
//! waited less than [`TARGET`]. So what is accepted under overload waits about that long, as much is accepted as
//! the queue takes, and the rest is refused in no time. (How a standing queue is told from a burst is from `CoDel`, RFC 8289.)

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How long a queue is given to become empty.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long an event may have to wait in a queue that stands.
const TARGET: Duration = Duration::from_millis(100);

/// What is known of one queue of events that wait for a frame. Written by the task that empties it and by whoever comes;
/// a race of the two costs the knowledge of one event, and the next brings it again.
#[derive(Debug)]
pub(super) struct Standing {
    began: Instant,
    /// When the first event came after the queue was last found empty; [`EMPTY`] if none has.
    since: AtomicU64,
    /// When the event came that has waited longest, or one before it.
    oldest: AtomicU64,
}

const EMPTY: u64 = 0;

impl Standing {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            since: AtomicU64::new(EMPTY),
            oldest: AtomicU64::new(EMPTY),
        }
    }

    /// Whether an event that comes now is let in. One that is has to be put into the queue: the first is known of until it is
    /// taken.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let time = self.time(now);
        let since = self.since.load(Ordering::Relaxed);
        if since == EMPTY {
            self.oldest.store(time, Ordering::Relaxed);
            self.since.store(time, Ordering::Relaxed);
            return true;
        }
        let waited = |since: u64| Duration::from_micros(time.saturating_sub(since));
        waited(since) <= INTERVAL || waited(self.oldest.load(Ordering::Relaxed)) <= TARGET
    }

    /// All that waited has been taken.
    pub(super) fn emptied(&self) {
        self.since.store(EMPTY, Ordering::Relaxed);
    }

    /// More wait; the last that was taken came then.
    pub(super) fn taken(&self, came: Instant) {
        self.oldest.store(self.time(came), Ordering::Relaxed);
    }

    /// In microseconds, and never [`EMPTY`].
    fn time(&self, at: Instant) -> u64 {
        let micros = at.saturating_duration_since(self.began).as_micros();
        u64::try_from(micros).unwrap_or(u64::MAX).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_is_let_in_and_what_stands_is_not() {
        let start = Instant::now();
        let standing = Standing::new(start);
        assert!(standing.admits(start));
        // A stall: nothing is taken, and nobody is refused yet.
        assert!(standing.admits(start + INTERVAL));
        assert!(!standing.admits(start + INTERVAL + MS));
        // Some are taken, and those that wait have not waited long.
        standing.taken(start + INTERVAL);
        assert!(standing.admits(start + INTERVAL + TARGET));
        assert!(!standing.admits(start + INTERVAL + TARGET + MS));
        // It becomes empty, and begins anew.
        standing.emptied();
        let later = start + 10 * INTERVAL;
        assert!(standing.admits(later));
        assert!(standing.admits(later + INTERVAL));
        assert!(!standing.admits(later + INTERVAL + MS));
    }

    /// Twice what a queue can take: what is let in is what it takes, and waits about the target.
    #[test]
    fn under_overload_as_much_is_let_in_as_is_taken() {
        let start = Instant::now();
        let standing = Standing::new(start);
        let mut waiting = std::collections::VecDeque::new();
        let (mut taken, mut refused, mut longest) = (0_u32, 0_u32, Duration::ZERO);
        // 2,000 events come in a second, and 10 are taken each 10 ms.
        for step in 0..20_000_u32 {
            let now = start + step * MS / 2;
            if standing.admits(now) {
                waiting.push_back(now);
            } else {
                refused += 1;
            }
            if step % 20 == 0 {
                let settled = step > 4_000;
                let mut last = None;
                for _ in 0..10 {
                    let Some(came) = waiting.pop_front() else { break };
                    taken += 1;
                    if settled {
                        longest = longest.max(now - came);
                    }
                    last = Some(came);
                }
                match last {
                    Some(came) if !waiting.is_empty() => standing.taken(came),
                    _ => standing.emptied(),
                }
            }
        }
        assert!(taken >= 9_900, "{taken} of 10,000 were taken");
        assert!(refused > 9_000, "{refused} were refused");
        assert!(longest < 2 * TARGET, "{longest:?}");
    }
}
