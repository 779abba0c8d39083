//! The plan of a batch: its deliveries, and the room that is reserved for some of them.

use std::collections::{HashMap, HashSet};

use shared::{
    AcceptedEvent, Builtin, SubscriptionId,
    store::{InForce, PlannedDelivery},
};
use tokio::time::Instant;

use super::judging::Judged;
use crate::{
    awaited::Awaited,
    dispatch::Dispatch,
    lane::{self, Terms},
    ownership::Ownership,
    scheduler::Wake,
};

/// The deliveries of a batch.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) deliveries: Vec<PlannedDelivery>,
    /// The subscriptions, as the plan saw them, of those deliveries that are held.
    held: HashMap<SubscriptionId, i64>,
    /// Lanes with one owner for which something is stored that nobody holds.
    solo: HashSet<SubscriptionId>,
    /// Subscriptions for which something is stored that is to be pulled.
    pulled: HashSet<SubscriptionId>,
}

impl Plan {
    /// Plans the deliveries of one event: to every subscription that wants it, or to the inbox if none does.
    pub(super) fn event(
        &mut self,
        index: usize,
        event: &AcceptedEvent,
        known: &InForce,
        judged: &Judged,
        dispatch: &Dispatch,
        ownership: &Ownership,
    ) {
        let before = self.deliveries.len();
        let weight = lane::weight_of(event.payload.as_bytes().len());
        for subscription in known.wanting(&event.event_type) {
            if subscription.filter.is_some() && !judged.matches(index, subscription.id) {
                continue;
            }
            let terms = subscription
                .push()
                .map(|push| Terms::of(subscription, push, ownership.workers()));
            let held = terms.is_some_and(|terms| {
                subscription.enabled
                    && !ownership.is_joining()
                    && !terms.in_order
                    && (!terms.solo || ownership.owns(subscription.id))
                    && dispatch
                        .lanes()
                        .reserve(subscription.id, terms, weight, Instant::now())
            });
            let solo = terms.is_some_and(|terms| terms.solo);
            if solo && !held && subscription.enabled {
                self.solo.insert(subscription.id);
            }
            if terms.is_none() {
                self.pulled.insert(subscription.id);
            }
            if held {
                self.held.insert(subscription.id, subscription.version);
            }
            self.deliveries.push(PlannedDelivery {
                event: index,
                subscription: subscription.id,
                held,
            });
        }
        // The system's own events are for those who ask for them alone.
        if self.deliveries.len() == before && !event.event_type.as_str().starts_with("triggers.") {
            let inbox = known
                .subscriptions
                .iter()
                .find(|subscription| subscription.builtin == Some(Builtin::Inbox));
            if let Some(inbox) = inbox {
                self.pulled.insert(inbox.id);
                self.deliveries.push(PlannedDelivery {
                    event: index,
                    subscription: inbox.id,
                    held: false,
                });
            }
        }
    }

    /// The subscriptions of the deliveries that are held, with their versions.
    pub(super) fn held(&self) -> impl Iterator<Item = (SubscriptionId, i64)> {
        self.held.iter().map(|(id, version)| (*id, *version))
    }

    /// Once it is stored: sees to it that owners, and those who wait to pull, come to know of what is theirs.
    pub(super) fn tell(&self, wake: &Wake, ownership: &Ownership, awaited: &Awaited) {
        for lane in awaited.among(self.pulled.iter().copied(), Instant::now()) {
            wake.ring(lane);
        }
        for lane in &self.solo {
            if ownership.is_anothers(*lane) {
                wake.tell(*lane);
            } else {
                if !ownership.owns(*lane) {
                    wake.tell(*lane);
                }
                wake.feed(*lane);
            }
        }
    }

    /// Gives the reserved room back: the plan came to nothing.
    pub(super) fn give_back(&self, dispatch: &Dispatch) {
        let mut lanes = dispatch.lanes();
        for delivery in self.deliveries.iter().filter(|delivery| delivery.held) {
            lanes.unreserve(delivery.subscription, 1);
        }
    }
}
