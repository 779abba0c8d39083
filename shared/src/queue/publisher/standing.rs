//! Shedding: while a queue of events stands, who comes is told at once.
//!
//! A queue that empties now and then does its work, however long it was for a moment: a disk that stalls for a fifth of a
//! second must cost nobody a 503. One that has not been empty for [`INTERVAL`] is as long as callers make it, and all that
//! more of them would get is a longer wait. From then on there may wait only what is taken in [`TARGET`], by the rate of
//! the last second; and nobody, where nothing is taken at all. So what is accepted under overload waits about that
//! long, as much is accepted as the queue takes, and the rest is refused in no time. (That a standing queue is told from a burst by
//! whether it empties is from `CoDel`, RFC 8289.)

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a queue is given to become empty.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long an event may have to wait in a queue that stands.
const TARGET: Duration = Duration::from_millis(100);

/// What is known of one queue of events that wait for a frame, by whoever comes. Written by both sides; a race of the two
/// is of one event, and over with the next.
#[derive(Debug)]
pub(super) struct Standing {
    began: Instant,
    /// When the first event came after the queue was last found empty; [`EMPTY`] if none has.
    since: AtomicU64,
    /// When events were taken last.
    taken: AtomicU64,
    /// Bytes that wait.
    waiting: AtomicU64,
    /// Bytes that may wait.
    most: AtomicU64,
}

const EMPTY: u64 = 0;
const ANY: u64 = u64::MAX;

impl Standing {
    /// Whether an event that comes now is let in. One that is has to be put into the queue, or [taken back](Self::back): it is
    /// known of until it is taken.
    pub(super) fn admits(&self, bytes: usize, now: Instant) -> bool {
        let time = self.time(now);
        let since = self.since.load(Ordering::Relaxed);
        if since == EMPTY {
            self.since.store(time, Ordering::Relaxed);
        } else {
            let still = time.saturating_sub(since.max(self.taken.load(Ordering::Relaxed)));
            if Duration::from_micros(still) > INTERVAL
                || self.waiting.load(Ordering::Relaxed) > self.most.load(Ordering::Relaxed)
            {
                return false;
            }
        }
        self.waiting.fetch_add(bytes as u64, Ordering::Relaxed);
        true
    }

    /// An event that was let in does not come.
    pub(super) fn back(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// In microseconds, and never [`EMPTY`].
    fn time(&self, at: Instant) -> u64 {
        let micros = at.saturating_duration_since(self.began).as_micros();
        u64::try_from(micros).unwrap_or(ANY).saturating_add(1)
    }
}

/// The side of the task that takes from it.
#[derive(Debug)]
pub(super) struct Taking {
    standing: Arc<Standing>,
    /// What was taken in the last second or so, as long as the queue has stood, and since when.
    recently: Option<(Instant, u64)>,
}

impl Taking {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            standing: Arc::new(Standing {
                began: now,
                since: AtomicU64::new(EMPTY),
                taken: AtomicU64::new(EMPTY),
                waiting: AtomicU64::new(0),
                most: AtomicU64::new(ANY),
            }),
            recently: None,
        }
    }

    pub(super) fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing)
    }

    /// So many bytes were taken; nothing is left, or `more` waits.
    pub(super) fn took(&mut self, bytes: usize, more: bool, now: Instant) {
        let standing = &self.standing;
        standing.back(bytes);
        standing.taken.store(standing.time(now), Ordering::Relaxed);
        if !more {
            standing.since.store(EMPTY, Ordering::Relaxed);
            standing.most.store(ANY, Ordering::Relaxed);
            self.recently = None;
            return;
        }
        let (mut since, mut taken) = self.recently.unwrap_or((now, 0));
        if self.recently.is_some() {
            taken += bytes as u64;
        }
        let elapsed = now - since;
        let stands = standing
            .time(now)
            .saturating_sub(standing.since.load(Ordering::Relaxed));
        if Duration::from_micros(stands) > INTERVAL && !elapsed.is_zero() {
            let most = u128::from(taken) * TARGET.as_micros() / elapsed.as_micros().max(1);
            standing
                .most
                .store(u64::try_from(most).unwrap_or(ANY), Ordering::Relaxed);
        }
        if elapsed > 2 * INTERVAL {
            since += elapsed / 2;
            taken /= 2;
        }
        self.recently = Some((since, taken));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_is_let_in_and_what_stands_is_not() {
        let start = Instant::now();
        let mut taking = Taking::new(start);
        let standing = taking.standing();
        assert!(standing.admits(1, start));
        // A stall: nothing is taken, and nobody is refused yet.
        assert!(standing.admits(1, start + INTERVAL));
        assert!(!standing.admits(1, start + INTERVAL + MS));
        // It is over.
        taking.took(2, false, start + 2 * INTERVAL);
        let later = start + 10 * INTERVAL;
        assert!(standing.admits(1, later));
        assert!(standing.admits(1, later + INTERVAL));
        assert!(!standing.admits(1, later + INTERVAL + MS));
    }

    /// More than a queue can take: what is let in is what it takes, and waits about the target; and when less comes
    /// nobody is refused any more.
    #[test]
    fn under_overload_as_much_is_let_in_as_is_taken() {
        for times in [2, 5] {
            let start = Instant::now();
            let mut taking = Taking::new(start);
            let standing = taking.standing();
            let mut waiting = VecDeque::new();
            let (mut taken, mut refused, mut longest) = (0_u32, 0_u32, Duration::ZERO);
            // In a millisecond as many come as are taken, times `times`; they are taken each 10 ms.
            for step in 0..12_000 {
                let now = start + step * MS;
                let over = step < 10_000;
                for _ in 0..if over { times } else { u32::from(step % 2 == 0) } {
                    if standing.admits(100, now) {
                        waiting.push_back(now);
                    } else {
                        refused += 1;
                        assert!(step < 10_500, "somebody is refused at {step} ms");
                    }
                }
                if step % 10 == 0 {
                    let mut bytes = 0;
                    for came in waiting.drain(..waiting.len().min(10)) {
                        bytes += 100;
                        taken += u32::from(over);
                        // The burst at the beginning is let in.
                        if step > 2_000 + 500 * times {
                            longest = longest.max(now - came);
                        }
                    }
                    taking.took(bytes, !waiting.is_empty(), now);
                }
            }
            assert!(taken >= 9_900, "{taken} of 10,000 were taken");
            assert!(refused > 9_000 * (times - 1), "{refused} were refused");
            assert!(longest < TARGET * 3 / 2, "{times}: {longest:?}");
        }
    }
}
