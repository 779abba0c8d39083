//! One lane: what waits in it, and whether it may be sent.

use std::{collections::VecDeque, time::Duration};

use shared::subscription::Subscriber;
use tokio::time::Instant;

use super::{Job, Place, Terms, health::Health, pace::Pace, pool::In};

/// What waits in a lane that is put off for longer than this is given back to the store.
const KEPT_WHILE_PUT_OFF: Duration = Duration::from_millis(1_500);

/// A subscriber asked to be left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) subscriber: Subscriber,
    pub(super) until: Instant,
}

impl Pause {
    /// What is known once this is heard, too: the longer one of one subscriber, and nothing more of the one before.
    pub(super) fn and(self, heard: Self) -> Self {
        if self.subscriber == heard.subscriber && self.until > heard.until {
            self
        } else {
            heard
        }
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) waiting: VecDeque<Job>,
    /// What those weigh that wait.
    waiting_weighs: usize,
    /// Room that is promised to deliveries on their way here, and what they are taken to weigh.
    pub(super) reserved: usize,
    reserved_weighs: usize,
    /// What one of its deliveries weighs, on the average of the last ones; `None` before there was any.
    pub(super) weighs: Option<usize>,
    pub(super) in_flight: usize,
    /// An attempt was begun in order whose outcome is not written down yet: nothing is sent before it is.
    pub(super) unsettled: bool,
    pub(super) terms: Terms,
    pub(super) health: Health,
    /// How many subscribers it had before this one: the same may come back, and is another then.
    pub(super) subscribers: u64,
    pub(super) pace: Pace,
    /// In which pool's queue of lanes that take turns it is.
    pub(super) queued: Option<In>,
    /// When it is looked at again.
    pub(super) alarm: Option<Instant>,
}

impl Lane {
    pub(super) fn new(terms: Terms, health: Health) -> Self {
        Self {
            waiting: VecDeque::new(),
            waiting_weighs: 0,
            reserved: 0,
            reserved_weighs: 0,
            weighs: None,
            in_flight: 0,
            unsettled: false,
            terms,
            health,
            subscribers: 0,
            pace: Pace::default(),
            queued: None,
            alarm: None,
        }
    }

    /// Keeps to what its subscriber asked of whatever worker, unless it is sent to another.
    pub(super) fn heed(&mut self, pause: Option<&Pause>, now: Instant) {
        if let Some(pause) =
            pause.filter(|pause| pause.subscriber == self.terms.subscriber && pause.until > now)
        {
            self.health.pause(pause.until);
        }
    }

    /// Keeps to other terms from now on. What is known of a subscriber is forgotten where they are another's; gives that.
    pub(super) fn agree(&mut self, terms: Terms) -> Option<Health> {
        let is_anothers = terms.subscriber != self.terms.subscriber;
        self.terms = terms;
        is_anothers.then(|| {
            self.subscribers += 1;
            std::mem::take(&mut self.health)
        })
    }

    /// Whether an attempt says anything of its subscriber: not if that is another since it began.
    pub(super) fn is_spoken_of_by(&self, place: &Place) -> bool {
        place.of == self.subscribers
    }

    pub(super) fn held(&self) -> usize {
        self.waiting.len() + self.reserved
    }

    /// What it holds weighs so much, with what was promised.
    pub(super) fn bytes(&self) -> usize {
        self.waiting_weighs + self.reserved_weighs
    }

    /// Promises room to so many more that weigh so much each; gives what they weigh together.
    pub(super) fn promise(&mut self, count: usize, weight: usize) -> usize {
        self.reserved += count;
        self.reserved_weighs += count * weight;
        count * weight
    }

    /// Takes promises back; gives what they were taken to weigh. With the last of them nothing is left of it.
    pub(super) fn redeem(&mut self, count: usize) -> usize {
        let weight = if count >= self.reserved {
            self.reserved_weighs
        } else {
            self.reserved_weighs / self.reserved * count
        };
        self.reserved = self.reserved.saturating_sub(count);
        self.reserved_weighs -= weight;
        weight
    }

    /// Puts a delivery at the end.
    pub(super) fn put(&mut self, job: Job, weight: usize) {
        self.weighs = Some(self.weighs.map_or(weight, |weighs| (3 * weighs + weight) / 4));
        self.waiting_weighs += weight;
        self.waiting.push_back(job);
    }

    /// Takes the first, with what it weighs.
    pub(super) fn take(&mut self) -> Option<(Job, usize)> {
        let job = self.waiting.pop_front()?;
        let weight = job.weight();
        self.waiting_weighs -= weight;
        Some((job, weight))
    }

    /// Takes those out that are to go; gives what they weigh together.
    pub(super) fn take_out(&mut self, goes: impl Fn(&Job) -> bool) -> (Vec<Job>, usize) {
        let (gone, kept): (Vec<Job>, Vec<Job>) = self.waiting.drain(..).partition(goes);
        self.waiting = kept.into();
        let weight = gone.iter().map(Job::weight).sum();
        self.waiting_weighs -= weight;
        (gone, weight)
    }

    pub(super) fn pool(&self) -> In {
        if self.health.is_trusted() {
            In::Trusted
        } else {
            In::Suspect
        }
    }

    /// Until when nothing may be sent, if that is after `now`.
    pub(super) fn put_off(&self, now: Instant) -> Option<Instant> {
        self.health.put_off(now).max(self.paced(now))
    }

    /// When its rate allows another attempt, if that is after `now`.
    pub(super) fn paced(&self, now: Instant) -> Option<Instant> {
        let rate = self.terms.rate_per_second?;
        self.pace.ready_at(rate).filter(|at| *at > now)
    }

    pub(super) fn can_send(&self, now: Instant) -> bool {
        !self.waiting.is_empty()
            && !self.unsettled
            && self.in_flight < self.health.allowed(self.terms.max_in_flight, self.in_flight)
            && self.put_off(now).is_none()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.held() > 0 || self.in_flight > 0 || self.unsettled
    }

    /// Whether it is put off by its subscriber for so long that nothing is kept for it meanwhile.
    pub(super) fn is_put_off_for_long(&self, now: Instant) -> bool {
        self.health
            .put_off(now)
            .is_some_and(|until| until > now + KEPT_WHILE_PUT_OFF)
    }
}
