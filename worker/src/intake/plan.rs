//! The plan of a batch: its deliveries, and the room that is reserved for some of them.

use std::{collections::HashMap, sync::Arc};

use shared::{AcceptedEvent, Builtin, Subscription, SubscriptionId, store::PlannedDelivery};

use crate::dispatch::Dispatch;

/// The deliveries of a batch.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) deliveries: Vec<PlannedDelivery>,
    /// The subscriptions, as the plan saw them, of those deliveries that are held.
    held: HashMap<SubscriptionId, i64>,
}

impl Plan {
    /// Plans the deliveries of one event: to every subscription that wants it, or to the inbox if none does.
    pub(super) fn event(
        &mut self,
        index: usize,
        event: &AcceptedEvent,
        subscriptions: &[Arc<Subscription>],
        dispatch: &Dispatch,
    ) {
        let before = self.deliveries.len();
        for subscription in subscriptions
            .iter()
            .filter(|subscription| subscription.wants(&event.event_type))
        {
            let held = match subscription.push() {
                Some(push) if subscription.enabled => dispatch
                    .lanes()
                    .reserve(subscription.id, usize::from(push.max_in_flight.get())),
                _ => false,
            };
            if held {
                self.held.insert(subscription.id, subscription.version);
            }
            self.deliveries.push(PlannedDelivery {
                event: index,
                subscription: subscription.id,
                held,
            });
        }
        if self.deliveries.len() == before {
            let inbox = subscriptions
                .iter()
                .find(|subscription| subscription.builtin == Some(Builtin::Inbox));
            if let Some(inbox) = inbox {
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

    /// Gives the reserved room back: the plan came to nothing.
    pub(super) fn give_back(&self, dispatch: &Dispatch) {
        let mut lanes = dispatch.lanes();
        for delivery in self.deliveries.iter().filter(|delivery| delivery.held) {
            lanes.unreserve(delivery.subscription, 1);
        }
    }
}
