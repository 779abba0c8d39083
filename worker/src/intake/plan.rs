//! The plan of a batch: its deliveries, and the room that is reserved for some of them.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

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
        if self.deliveries.len() == before && !event.event_type.is_system() {
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

    /// The events that are to be stored; the plan is of these from now on. One of the system's own that nobody wants is not among
    /// them: without a delivery it would wait for ever.
    pub(super) fn leave_out_unwanted<'a>(&mut self, events: &'a [AcceptedEvent]) -> Cow<'a, [AcceptedEvent]> {
        let is_wanted = |at: usize| self.deliveries.iter().any(|delivery| delivery.event == at);
        let unwanted: Vec<usize> = events
            .iter()
            .enumerate()
            .filter(|(at, event)| event.event_type.is_system() && !is_wanted(*at))
            .map(|(at, _)| at)
            .collect();
        if unwanted.is_empty() {
            return Cow::Borrowed(events);
        }
        for delivery in &mut self.deliveries {
            delivery.event -= unwanted.partition_point(|at| *at < delivery.event);
        }
        let wanted = events.iter().enumerate();
        let wanted = wanted.filter(|(at, _)| unwanted.binary_search(at).is_err());
        Cow::Owned(wanted.map(|(_, event)| event.clone()).collect())
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

#[cfg(test)]
mod tests {
    use shared::OrganizationId;

    use super::*;
    use crate::real_store::accepted;

    #[test]
    fn what_is_left_out_leaves_the_others_their_deliveries() {
        let types = ["triggers.a", "order.a", "triggers.b", "triggers.c", "order.b"];
        let events = types.map(|event_type| accepted(OrganizationId::new(), event_type));
        let mut plan = Plan::default();
        for event in [1, 3, 3, 4] {
            plan.deliveries.push(PlannedDelivery {
                event,
                subscription: SubscriptionId::new(),
                held: false,
            });
        }
        let wanted = plan.leave_out_unwanted(&events);
        let planned = |delivery: &PlannedDelivery| wanted[delivery.event].event_type.to_string();
        let planned: Vec<String> = plan.deliveries.iter().map(planned).collect();
        assert_eq!(planned, ["order.a", "triggers.c", "triggers.c", "order.b"]);
        assert_eq!(wanted.len(), 3);
        assert!(matches!(plan.leave_out_unwanted(&wanted), Cow::Borrowed(_)));
    }
}
