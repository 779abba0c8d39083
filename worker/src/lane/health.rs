//! How a lane's subscriber fares, as this worker has seen it: whether to trust it, and whether to send to it at all.
//!
//! A circuit: closed, everything is sent; after failures in a row it opens, and one delivery at a time is sent as a probe,
//! at an interval that doubles while probes fail. A success closes it, and what has gathered is then sent at a rate that
//! grows with each success (a slow start), so that a subscriber that has just come back is not run over.

use std::time::Duration;

use shared::SubscriptionId;
use tokio::time::Instant;

use super::OpenedCircuit;

/// How much failing in a row opens the circuit.
const OPENS_AT: u32 = 10;
/// How much a failure weighs that took all of its time: a subscriber that hangs costs more than one that refuses.
const TIMEOUT_WEIGHS: u32 = 4;
/// The interval of the first probe.
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// The longest interval between probes.
const LAST_PROBE: Duration = Duration::from_mins(5);
/// Attempts under way at once after the circuit has closed, to begin with.
const FIRST_WINDOW: usize = 2;
/// The attempts under way at once that a subscriber may have whose last attempt failed.
const WHILE_FAILING: usize = 2;
/// How long a lane waits for what this process lacks.
const STARVED: Duration = Duration::from_secs(1);
/// How long a lane waits whose subscription's secret or headers do not open: until the process is another, or they are.
const SEALED: Duration = Duration::from_secs(30);
/// How long what attempts have shown is remembered: from the last of them, or from when the next probe was due.
pub(super) const REMEMBERED: Duration = Duration::from_mins(10);
/// The longest a subscriber may ask to be left alone.
pub const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// How an attempt went, as far as its lane is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The subscriber took it.
    Delivered,
    /// It did not.
    Failed {
        /// It let the deadline pass.
        timed_out: bool,
    },
    /// It is there, and asked to be left alone for this long: for a slower pace.
    AskedToWait(Duration),
    /// It did not take it, and asked to be left alone for this long.
    Unavailable {
        /// It let the deadline pass.
        timed_out: bool,
        /// What it asked for.
        pause: Duration,
    },
    /// There was none: it says nothing of the subscriber.
    NotMade,
    /// There was none, for want of something of our own (file descriptors): none is made for a moment.
    Starved,
    /// There was none, for what the subscription has sealed does not open here: none is made for a while.
    Sealed,
}

impl Ending {
    /// Whether no attempt was made.
    pub fn is_of_none(self) -> bool {
        matches!(self, Self::NotMade | Self::Starved | Self::Sealed)
    }

    /// For how long the subscriber asked to be left alone, if it did.
    pub fn asked_to_wait(self) -> Option<Duration> {
        match self {
            Self::AskedToWait(pause) | Self::Unavailable { pause, .. } => Some(pause.min(LONGEST_PAUSE)),
            _ => None,
        }
    }

    /// What the end of an attempt at another subscriber says: nothing, but of what this process lacks.
    pub(super) fn of_another(self) -> Self {
        match self {
            Self::Starved => self,
            _ => Self::NotMade,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circuit {
    /// With the attempts that may be under way at once, while it starts slowly.
    Closed(Option<usize>),
    Open {
        /// When the next probe may be sent.
        until: Instant,
        /// When it opened.
        since: Instant,
        interval: Duration,
        probing: bool,
    },
}

/// How a lane's subscriber fares.
#[derive(Debug, Clone)]
pub struct Health {
    circuit: Circuit,
    failing: u32,
    slow: bool,
    paused_until: Option<Instant>,
    /// When the last attempt ended.
    last: Option<Instant>,
}

/// What a circuit is to those who look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    /// Everything is sent.
    Closed,
    /// Nothing but probes is.
    Open {
        /// When the next may be.
        next_probe: Instant,
        /// When it opened.
        since: Instant,
    },
}

impl Default for Health {
    fn default() -> Self {
        Self {
            circuit: Circuit::Closed(None),
            failing: 0,
            slow: false,
            paused_until: None,
            last: None,
        }
    }
}

impl Health {
    /// Whether its attempts go into the pool of the trusted: it neither hangs nor fails.
    pub fn is_trusted(&self) -> bool {
        !self.slow && self.failing == 0 && matches!(self.circuit, Circuit::Closed(_))
    }

    /// Until when what is known means something; `None` if there is nothing to remember.
    pub fn matters_until(&self) -> Option<Instant> {
        let since = match self.circuit {
            Circuit::Open { .. } => self.next_probe(),
            Circuit::Closed(None) if self.is_trusted() => None,
            Circuit::Closed(_) => self.last,
        };
        since.map(|since| since + REMEMBERED).max(self.paused_until)
    }

    /// Until when nothing may be sent, if that is after `now`.
    pub fn put_off(&self, now: Instant) -> Option<Instant> {
        self.next_probe()
            .max(self.paused_until)
            .filter(|until| *until > now)
    }

    /// When the next probe may be sent, if the circuit is open: not before its time, nor while it asked to be left alone.
    fn next_probe(&self) -> Option<Instant> {
        match self.circuit {
            Circuit::Open { until, .. } => Some(until).max(self.paused_until),
            Circuit::Closed(_) => None,
        }
    }

    /// How many attempts may be under way at once, of `most`, with `in_flight` of them under way now.
    pub fn allowed(&self, most: usize, in_flight: usize) -> usize {
        match self.circuit {
            Circuit::Closed(window) => {
                let most = window.map_or(most, |window| window.min(most));
                if self.failing > 0 {
                    most.min(WHILE_FAILING)
                } else {
                    most
                }
            }
            Circuit::Open { probing: true, .. } => 0,
            // Beside what was begun before it opened.
            Circuit::Open { probing: false, .. } => in_flight + 1,
        }
    }

    /// How many deliveries are worth holding for it, of `most`.
    pub fn worth_holding(&self, most: usize) -> usize {
        match self.circuit {
            Circuit::Open { .. } => most.min(1),
            Circuit::Closed(_) => most,
        }
    }

    /// An attempt begins; `true` if it is a probe.
    pub fn begins(&mut self) -> bool {
        match &mut self.circuit {
            Circuit::Open { probing, .. } => {
                *probing = true;
                true
            }
            Circuit::Closed(_) => false,
        }
    }

    /// An attempt takes long.
    pub fn turned_slow(&mut self) {
        self.slow = true;
    }

    /// An attempt ended; `random`, in [0, 1), spreads probes. Says whether the circuit has opened or closed by it.
    pub fn ended(
        &mut self,
        ending: Ending,
        was_probe: bool,
        was_slow: bool,
        now: Instant,
        random: f64,
    ) -> bool {
        let was_open = self.is_open();
        self.paused_until = self.paused_until.filter(|until| *until > now);
        if !ending.is_of_none() {
            self.last = Some(now);
        }
        match ending {
            Ending::Delivered => {
                self.failing = 0;
                self.slow = was_slow;
                self.circuit = match self.circuit {
                    Circuit::Open { .. } => Circuit::Closed(Some(FIRST_WINDOW)),
                    Circuit::Closed(window) => Circuit::Closed(
                        window
                            .map(|window| window + 1)
                            .filter(|window| *window < MAX_WINDOW),
                    ),
                };
            }
            Ending::Failed { timed_out } => self.failed(timed_out, was_probe, now, random),
            Ending::Unavailable { timed_out, pause } => {
                self.pause(now + pause.min(LONGEST_PAUSE));
                self.failed(timed_out, was_probe, now, random);
            }
            Ending::AskedToWait(pause) => {
                self.pause(now + pause.min(LONGEST_PAUSE));
                self.probe_failed(was_probe, now, random);
            }
            Ending::Starved => {
                self.pause(now + STARVED);
                self.probe_came_to_nothing(was_probe);
            }
            Ending::Sealed => {
                self.pause(now + SEALED);
                self.probe_came_to_nothing(was_probe);
            }
            Ending::NotMade => self.probe_came_to_nothing(was_probe),
        }
        self.is_open() != was_open
    }

    fn failed(&mut self, timed_out: bool, was_probe: bool, now: Instant, random: f64) {
        let weight = if timed_out { TIMEOUT_WEIGHS } else { 1 };
        self.failing = self.failing.saturating_add(weight);
        if matches!(self.circuit, Circuit::Closed(_)) && self.failing >= OPENS_AT {
            self.circuit = open(FIRST_PROBE, now, now, random);
        } else {
            self.probe_failed(was_probe, now, random);
        }
    }

    fn probe_failed(&mut self, was_probe: bool, now: Instant, random: f64) {
        if let Circuit::Open { interval, since, .. } = self.circuit
            && was_probe
        {
            self.circuit = open((interval * 2).min(LAST_PROBE), since, now, random);
        }
    }

    /// Its subscriber asked, of whatever worker, to be left alone until then.
    pub fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// For those who look at open circuits, if this is one.
    pub fn opened(&self, subscription: SubscriptionId) -> Option<OpenedCircuit> {
        match self.circuit() {
            CircuitState::Open { next_probe, since } => Some(OpenedCircuit {
                subscription,
                since,
                next_probe,
            }),
            CircuitState::Closed => None,
        }
    }

    /// For those who look at it.
    pub fn circuit(&self) -> CircuitState {
        match (self.circuit, self.next_probe()) {
            (Circuit::Open { since, .. }, Some(next_probe)) => CircuitState::Open { next_probe, since },
            _ => CircuitState::Closed,
        }
    }

    /// Whether the circuit is open.
    pub fn is_open(&self) -> bool {
        matches!(self.circuit, Circuit::Open { .. })
    }

    fn probe_came_to_nothing(&mut self, was_probe: bool) {
        if let Circuit::Open { probing, .. } = &mut self.circuit
            && was_probe
        {
            *probing = false;
        }
    }
}

/// Beyond any limit of a lane a window means nothing.
const MAX_WINDOW: usize = 256;

fn open(interval: Duration, since: Instant, now: Instant, random: f64) -> Circuit {
    Circuit::Open {
        until: now + interval.mul_f64(0.8 + 0.4 * random),
        since,
        interval,
        probing: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAILED: Ending = Ending::Failed { timed_out: false };
    const HUNG: Ending = Ending::Failed { timed_out: true };

    #[test]
    fn failures_in_a_row_open_it_and_probes_come_ever_less_often() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        for _ in 0..9 {
            assert!(!health.ended(FAILED, false, false, now, 0.5));
        }
        assert!(health.ended(FAILED, false, false, now, 0.5), "the tenth opens it");
        let (opened, mut waits) = (now, Vec::new());
        for _ in 0..12 {
            let until = health.put_off(now).expect("it waits for its probe");
            assert_eq!(health.worth_holding(100), 1);
            waits.push(until.duration_since(now).as_secs());
            let shown = CircuitState::Open {
                next_probe: until,
                since: opened,
            };
            assert_eq!(health.circuit(), shown);
            now = until;
            assert_eq!((health.put_off(now), health.allowed(16, 3)), (None, 4));
            assert!(health.begins(), "a probe");
            assert_eq!(health.allowed(16, 1), 0, "one at a time");
            assert!(!health.ended(FAILED, true, false, now, 0.5));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    }

    #[test]
    fn one_that_hangs_opens_it_sooner() {
        let (mut health, now) = (Health::default(), Instant::now());
        assert!(!health.ended(HUNG, false, true, now, 0.5) && !health.ended(HUNG, false, true, now, 0.5));
        assert_eq!(health.allowed(16, 0), 2, "while it fails");
        assert!(health.ended(HUNG, false, true, now, 0.5));
    }

    #[test]
    fn a_success_closes_it_and_it_starts_slowly() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..10 {
            health.ended(FAILED, false, false, now, 0.0);
        }
        assert!(!health.is_trusted());
        health.begins();
        assert!(health.ended(Ending::Delivered, true, false, now, 0.0));
        assert!(health.is_trusted() && health.matters_until() == Some(now + REMEMBERED));
        let mut windows = Vec::new();
        for _ in 0..4 {
            windows.push(health.allowed(4, 0));
            health.ended(Ending::Delivered, false, false, now, 0.0);
        }
        assert_eq!(windows, [2, 3, 4, 4]);
        for _ in 0..MAX_WINDOW {
            health.ended(Ending::Delivered, false, false, now, 0.0);
        }
        assert_eq!(health.matters_until(), None);
    }

    #[test]
    fn what_was_begun_before_it_opened_does_not_stretch_its_interval() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..30 {
            health.ended(FAILED, false, false, now, 0.5);
        }
        assert_eq!(health.put_off(now), Some(now + FIRST_PROBE));
    }

    #[test]
    fn a_subscriber_that_asks_for_time_gets_it_and_no_more_than_an_hour() {
        let (mut health, now) = (Health::default(), Instant::now());
        let asked = |seconds| Ending::AskedToWait(Duration::from_secs(seconds));
        health.ended(asked(30), false, false, now, 0.5);
        health.ended(asked(5), false, false, now, 0.5);
        assert_eq!(
            health.put_off(now),
            Some(now + Duration::from_secs(30)),
            "the longest counts"
        );
        health.ended(asked(86_400), false, false, now, 0.5);
        assert_eq!(health.put_off(now), Some(now + LONGEST_PAUSE));
        assert!(health.is_trusted(), "to say so is no failure");
    }

    /// The waits of a subscriber that answers everything so, from attempt to attempt, once its circuit has opened.
    fn waits(ending: Ending) -> Vec<u64> {
        let (mut health, mut now) = (Health::default(), Instant::now());
        for _ in 0..10 {
            health.ended(FAILED, false, false, now, 0.5);
        }
        let mut waits = Vec::new();
        for _ in 0..12 {
            let until = health.put_off(now).expect("it waits for its probe");
            let shown = health.opened(SubscriptionId::new()).expect("it is open");
            assert_eq!(shown.next_probe, until);
            waits.push(until.duration_since(now).as_secs());
            now = until;
            assert!(health.begins());
            assert!(!health.ended(ending, true, false, now, 0.5));
            assert_eq!(health.allowed(16, 0), 1, "the next is one of its own");
        }
        waits
    }

    #[test]
    fn probes_come_ever_less_often_whatever_time_is_asked_for() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        let unavailable = |pause| Ending::Unavailable {
            timed_out: false,
            pause,
        };
        let doubled = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300];
        for ending in [FAILED, Ending::AskedToWait(second), unavailable(second)] {
            assert_eq!(waits(ending), doubled, "{ending:?}");
        }
        let at_least = [1, 60, 60, 60, 60, 60, 64, 128, 256, 300, 300, 300];
        for ending in [Ending::AskedToWait(minute), unavailable(minute)] {
            assert_eq!(waits(ending), at_least, "{ending:?}: the later of the two");
        }
    }

    #[test]
    fn one_that_is_never_available_opens_its_circuit_and_one_that_asks_for_a_slower_pace_does_not() {
        let (now, pause) = (Instant::now(), Duration::from_secs(1));
        let opens_after = |ending: Ending| {
            let mut health = Health::default();
            (1..100).find(|_| health.ended(ending, false, false, now, 0.5))
        };
        let unavailable = |timed_out| Ending::Unavailable { timed_out, pause };
        assert_eq!(opens_after(unavailable(false)), Some(10));
        assert_eq!(opens_after(unavailable(true)), Some(3), "as any that hangs");
        assert_eq!(opens_after(Ending::AskedToWait(pause)), None);
    }

    #[test]
    fn an_open_circuit_that_asked_for_an_hour_is_remembered_for_longer() {
        let (mut health, now) = (Health::default(), Instant::now());
        let unavailable = Ending::Unavailable {
            timed_out: false,
            pause: LONGEST_PAUSE,
        };
        for _ in 0..10 {
            health.ended(unavailable, false, false, now, 0.5);
        }
        let next = now + LONGEST_PAUSE;
        assert_eq!(health.put_off(now), Some(next));
        assert_eq!(
            health.matters_until(),
            Some(next + REMEMBERED),
            "until it is probed"
        );
    }

    proptest! {
        /// Whatever came before and comes after within that time: nothing is sent for as long as was asked for.
        #[test]
        fn what_is_asked_for_is_kept_to(endings in prop::collection::vec((0u8..6, 0u64..100), 1..60)) {
            let (mut health, mut now, mut asked) = (Health::default(), Instant::now(), None);
            for (which, seconds) in endings {
                let pause = Duration::from_secs(seconds);
                let was_probe = health.is_open() && health.begins();
                let ending = match which {
                    0 => Ending::Delivered,
                    1 => FAILED,
                    2 => HUNG,
                    3 => Ending::AskedToWait(pause),
                    4 => Ending::Unavailable { timed_out: seconds % 2 == 0, pause },
                    _ => Ending::NotMade,
                };
                health.ended(ending, was_probe, false, now, 0.5);
                asked = asked.max(ending.asked_to_wait().map(|pause| now + pause));
                prop_assert!(health.put_off(now) >= asked.filter(|until| *until > now));
                now += Duration::from_secs(seconds / 3);
            }
        }
    }

    #[test]
    fn a_probe_that_was_not_made_can_be_made_again() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..10 {
            health.ended(FAILED, false, false, now, 0.5);
        }
        health.begins();
        health.ended(Ending::NotMade, true, false, now, 0.5);
        assert_eq!(health.allowed(16, 0), 1);
    }
}
