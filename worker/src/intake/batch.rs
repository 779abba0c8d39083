//! One batch: planned, stored in one transaction, and handed to the lanes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use shared::{
    AcceptedEvent, DeliveryKey, EventId, OrganizationId, Repeat,
    store::{InForce, IntakeBatch, IntakeOutcome, StoredEvent},
    telemetry,
};
use tokio::time::Instant;

use super::{
    BATCH_DELIVERIES, Intake, IntakeError,
    aside::{Reason, event_aside},
    judging,
    plan::Plan,
    traced,
};
use crate::{
    lane::{EventBody, Job},
    lease::Holding,
};

/// How often a plan may turn out stale before the batch has failed: subscriptions do not change that fast.
const MAX_PLANS: usize = 20;

impl Intake {
    /// Stores a batch, whole, which is here since `since`: in one transaction, if it does not come to too many deliveries, and else
    /// in several, one after the other.
    pub(super) async fn store_batch(
        &self,
        events: &[AcceptedEvent],
        repeats: &[Repeat],
        since: Instant,
    ) -> Result<(), IntakeError> {
        let mut stored = self.store_some(events, repeats, since).await?;
        while stored < events.len() {
            stored += self.store_some(&events[stored..], &[], since).await?;
        }
        Ok(())
    }

    /// Stores the first events of a batch, and says how many they were. Events of organizations that do not exist are set aside, or dropped if
    /// those were removed; notes of repeats are dropped either way. Events of the system's own that nobody wants are dropped,
    /// once the store has said that nobody does.
    async fn store_some(
        &self,
        events: &[AcceptedEvent],
        repeats: &[Repeat],
        since: Instant,
    ) -> Result<usize, IntakeError> {
        let begun = Instant::now();
        let of_repeats = repeats.iter().map(|repeat| repeat.organization);
        let of_events = events.iter().map(|event| event.organization);
        let mut organizations: Vec<OrganizationId> = of_events.chain(of_repeats).collect();
        organizations.sort_unstable();
        organizations.dedup();
        for _ in 0..MAX_PLANS {
            let in_force = self.registry.in_force(&organizations).await?;
            if in_force.len() < organizations.len() {
                let (known, unknown): (Vec<_>, Vec<_>) = events
                    .iter()
                    .cloned()
                    .partition(|event| in_force.contains_key(&event.organization));
                let why = "there is no such organization";
                let items: Vec<_> = unknown
                    .iter()
                    .map(|event| event_aside(Reason::UnknownOrganization, &why, event))
                    .collect();
                self.set_aside(&items).await?;
                traced::not_stored(&unknown, Reason::UnknownOrganization, since);
                let repeats: Vec<Repeat> = repeats
                    .iter()
                    .filter(|repeat| in_force.contains_key(&repeat.organization))
                    .cloned()
                    .collect();
                if !known.is_empty() || !repeats.is_empty() {
                    Box::pin(self.store_batch(&known, &repeats, since)).await?;
                }
                return Ok(events.len());
            }
            let events = &events[..fitting(events, &in_force)];
            let count = events.len();
            let versions: Vec<_> = in_force
                .values()
                .map(|known| (known.organization, known.version))
                .collect();
            let judged = judging::judge(&self.filters, events, &in_force).await?;
            let holding = self.lease.current();
            let worker = holding.worker();
            let mut plan = Plan::default();
            for (index, event) in events.iter().enumerate() {
                if let Some(known) = in_force.get(&event.organization) {
                    plan.event(index, event, known, &judged, &self.dispatch, &self.ownership);
                }
            }
            let events = plan.leave_out_unwanted(events);
            let batch = IntakeBatch {
                worker,
                events: &events,
                deliveries: &plan.deliveries,
                versions: &versions,
                repeats,
            };
            let stored = match self.store.events.intake(&batch).await {
                Ok(IntakeOutcome::Stored(stored)) => stored,
                Ok(IntakeOutcome::Stale) => {
                    plan.give_back(&self.dispatch);
                    self.registry.forget_in_force(&organizations);
                    continue;
                }
                Err(error) => {
                    plan.give_back(&self.dispatch);
                    if error.is_transient() {
                        // It may have been committed all the same.
                        self.lease.doubt();
                    }
                    return Err(error.into());
                }
            };
            measure(begun, &events, &stored);
            traced::stored(&events, &stored, since);
            self.progress.note(&events);
            self.registry.confirm(plan.held());
            self.start(&plan, &events, &stored, &holding);
            plan.tell(&self.wake, &self.ownership, &self.awaited);
            return Ok(count);
        }
        Err(IntakeError::NeverFresh)
    }

    /// Hands what was stored, and is held, to the lanes.
    fn start(&self, plan: &Plan, events: &[AcceptedEvent], stored: &[StoredEvent], holding: &Arc<Holding>) {
        let to_send = stored.iter().filter(|event| !event.erased);
        let stored: HashSet<EventId> = to_send.map(|event| event.id).collect();
        let mut bodies: HashMap<EventId, Arc<EventBody>> = HashMap::with_capacity(stored.len());
        let mut jobs = Vec::with_capacity(plan.deliveries.len());
        let mut given_back = Vec::new();
        for delivery in plan.deliveries.iter().filter(|delivery| delivery.held) {
            let event = &events[delivery.event];
            if !stored.contains(&event.id) {
                given_back.push(delivery.subscription);
                continue;
            }
            let body = bodies.entry(event.id).or_insert_with(|| Arc::new(body(event)));
            jobs.push(Job {
                key: DeliveryKey {
                    event: event.id,
                    subscription: delivery.subscription,
                },
                organization: event.organization,
                attempts: 0,
                attempts_before: 0,
                in_order: false,
                event: Arc::clone(body),
                holding: Arc::clone(holding),
                since: Instant::now(),
            });
        }
        if !given_back.is_empty() {
            let mut lanes = self.dispatch.lanes();
            for subscription in given_back {
                lanes.unreserve(subscription, 1);
            }
        }
        self.dispatch.push(jobs);
    }
}

/// How many of the events, from the first on, go together: as many as come to no more than so many deliveries, and one in any case.
/// What filters say is not known yet: here each is taken to match.
fn fitting(events: &[AcceptedEvent], in_force: &HashMap<OrganizationId, Arc<InForce>>) -> usize {
    let most = in_force.values().map(|known| known.subscriptions.len()).max();
    if events.len() * most.unwrap_or(0) <= BATCH_DELIVERIES {
        return events.len();
    }
    let mut deliveries = 0;
    let too_many = events.iter().position(|event| {
        let known = in_force.get(&event.organization);
        deliveries += known.map_or(0, |known| known.wanting(&event.event_type).count());
        deliveries > BATCH_DELIVERIES
    });
    too_many.unwrap_or(events.len()).max(1).min(events.len())
}

pub(super) fn body(event: &AcceptedEvent) -> EventBody {
    EventBody {
        id: event.id,
        event_type: event.event_type.as_str().into(),
        received_at: event.received_at,
        occurred_at: event.occurred_at,
        source: event.source.as_ref().map(|source| source.as_str().to_owned()),
        trace: event.trace.as_ref().map(|trace| trace.as_str().to_owned()),
        // A copy, so that a small event that waits does not hold on to a large frame.
        payload: Bytes::copy_from_slice(event.payload.as_bytes()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "batches are of some hundreds")]
fn measure(begun: Instant, events: &[AcceptedEvent], stored: &[StoredEvent]) {
    telemetry::intake_events().record(events.len() as f64);
    telemetry::intake_seconds().record(begun.elapsed());
    telemetry::stored().increment(stored.len() as u64);
    telemetry::duplicates().increment((events.len() - stored.len()) as u64);
}

#[cfg(test)]
mod tests {
    use shared::Subscription;

    use super::*;
    use crate::real_store::{RealStore, accepted};

    fn in_force(organization: OrganizationId, one: &Arc<Subscription>, count: usize) -> Arc<InForce> {
        Arc::new(InForce {
            organization,
            version: 1,
            subscriptions: vec![Arc::clone(one); count],
        })
    }

    #[tokio::test]
    async fn a_transaction_stores_so_many_deliveries_or_one_event() {
        let one = Arc::new(RealStore::open().await.subscription().await);
        let (many, few) = (OrganizationId::new(), OrganizationId::new());
        let with =
            |count| HashMap::from([(many, in_force(many, &one, count)), (few, in_force(few, &one, 1))]);
        let events: Vec<_> = (0..500)
            .map(|at| accepted(if at % 2 == 0 { many } else { few }, "order.placed"))
            .collect();
        assert_eq!(fitting(&events, &with(20)), 500, "whatever they are");
        assert_eq!(fitting(&events, &with(39)), 500, "they are counted");
        // 23 of each come to 9,591, and one more of the first to 10,007.
        assert_eq!(fitting(&events, &with(416)), 46);
        assert_eq!(fitting(&events, &with(BATCH_DELIVERIES)), 1);
        assert_eq!(
            fitting(&events, &with(BATCH_DELIVERIES + 1)),
            1,
            "those of one event go together"
        );
        assert_eq!(fitting(&[], &with(416)), 0);
    }
}
