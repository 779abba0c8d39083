//! What is known of subscribers to whom nothing is to be sent just now.
//!
//! A subscriber that gets an event a minute and hangs at each is to open its circuit as any other is, and not to be trusted
//! anew each time. What there is to know of one is small, and is kept for as long as it means something; of so many at most,
//! so that memory is bounded. One more than that begins anew with its next event.

use std::collections::HashMap;

use shared::{SubscriptionId, subscription::Subscriber};
use tokio::time::Instant;

use super::{OpenedCircuit, Terms, health::Health};

/// Of how many subscribers it is kept, at most; less than 200 bytes each.
pub(super) const MOST: usize = 50_000;

#[derive(Debug)]
struct Known {
    /// By which version of the subscription.
    version: i64,
    subscriber: Subscriber,
    health: Health,
    /// When it means nothing any more.
    until: Instant,
}

/// What is known, by subscription.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    known: HashMap<SubscriptionId, Known>,
    open: usize,
}

impl Remembered {
    /// Keeps what is worth it.
    pub(super) fn keep(&mut self, subscription: SubscriptionId, terms: Terms, health: Health) {
        if let Some(until) = health.matters_until()
            && self.known.len() < MOST
        {
            self.open += usize::from(health.is_open());
            let known = Known {
                version: terms.version,
                subscriber: terms.subscriber,
                health,
                until,
            };
            self.known.insert(subscription, known);
        }
    }

    /// Takes out what is known of a subscriber, which may be nothing, with the terms that it is known by: not those of before, or
    /// it would be forgotten as soon as the later ones are heard of.
    pub(super) fn recall(
        &mut self,
        subscription: SubscriptionId,
        terms: Terms,
        now: Instant,
    ) -> (Terms, Health) {
        match self.take_out(subscription).filter(|known| known.until > now) {
            Some(known) if known.version > terms.version => {
                let Known {
                    version, subscriber, ..
                } = known;
                let terms = Terms {
                    version,
                    subscriber,
                    ..terms
                };
                (terms, known.health)
            }
            Some(known) if known.subscriber == terms.subscriber => (terms, known.health),
            _ => (terms, Health::default()),
        }
    }

    /// Forgets what was known by earlier terms of another subscriber.
    pub(super) fn forget_others(&mut self, subscription: SubscriptionId, terms: Terms) {
        let Some(known) = self.known.get_mut(&subscription) else {
            return;
        };
        if known.version > terms.version {
            return;
        }
        known.version = terms.version;
        if known.subscriber != terms.subscriber {
            self.take_out(subscription);
        }
    }

    /// Forgets what means nothing any more.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.known.retain(|_, known| known.until > now);
        let open = self.known.values().filter(|known| known.health.is_open());
        self.open = open.count();
    }

    /// How many circuits are open among them.
    pub(super) fn open_circuits(&self) -> usize {
        self.open
    }

    /// Those circuits.
    pub(super) fn opened_circuits(&self) -> impl Iterator<Item = OpenedCircuit> {
        let of = |(subscription, known): (&SubscriptionId, &Known)| known.health.opened(*subscription);
        self.known.iter().filter_map(of)
    }

    fn take_out(&mut self, subscription: SubscriptionId) -> Option<Known> {
        let known = self.known.remove(&subscription)?;
        self.open -= usize::from(known.health.is_open());
        Some(known)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lane::{
        Ending,
        tests::{another, terms},
    };

    fn failing(now: Instant) -> Health {
        let mut health = Health::default();
        health.ended(Ending::Failed { timed_out: false }, false, false, now, 0.5);
        health
    }

    #[test]
    fn no_more_are_kept_than_there_is_memory_for() {
        let (mut remembered, now) = (Remembered::default(), Instant::now());
        for _ in 0..MOST + 10 {
            remembered.keep(SubscriptionId::new(), terms(1), failing(now));
        }
        assert_eq!(remembered.known.len(), MOST);
        assert!(size_of::<(SubscriptionId, Known)>() < 200);
        remembered.forget_old(now + Duration::from_hours(1));
        assert!(remembered.known.is_empty());
    }

    #[test]
    fn of_a_subscriber_that_is_well_nothing_is_kept() {
        let (mut remembered, now) = (Remembered::default(), Instant::now());
        let mut well = Health::default();
        well.ended(Ending::Delivered, false, false, now, 0.5);
        remembered.keep(SubscriptionId::new(), terms(1), well);
        assert!(remembered.known.is_empty());
    }

    #[test]
    fn what_is_known_is_of_a_subscriber_and_not_older() {
        let (mut remembered, now) = (Remembered::default(), Instant::now());
        let [changed, same, later] = [(); 3].map(|()| SubscriptionId::new());
        for subscription in [changed, same] {
            remembered.keep(subscription, terms(1), failing(now));
        }
        let others = another(terms(1), 2);
        assert!(remembered.recall(changed, others, now).1.is_trusted());
        // By another version it is the same yet.
        let same_later = Terms {
            version: 3,
            ..terms(1)
        };
        remembered.forget_others(same, same_later);
        let (by, health) = remembered.recall(same, terms(1), now);
        assert!(!health.is_trusted() && by == same_later);
        remembered.keep(later, others, failing(now));
        let (by, health) = remembered.recall(later, terms(1), now);
        assert!(
            !health.is_trusted() && by == others,
            "what is asked for is from before"
        );
        remembered.keep(same, terms(1), failing(now));
        let (_, health) = remembered.recall(same, terms(1), now + Duration::from_hours(1));
        assert!(health.is_trusted());
    }
}
