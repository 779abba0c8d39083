//! Test pushes: an event of the system's own for one subscription, whatever that asks for, sent at once.
//!
//! The api asks for one and waits for its delivery's first attempt; a worker takes it, so that only workers talk to
//! subscribers. It is stored as any event is, and its attempt recorded as any is. It does not wait in its lane: neither
//! behind a backlog nor for a circuit to close, since whoever tests wants to know how the subscriber is now. So that
//! this floods nobody, few are under way at once; one more than that goes by its lane, and so does one to a subscription
//! in order, where nothing may overtake. One attempt is all there is: a test that fails says so and is over.

use std::{collections::HashSet, sync::Arc, time::Duration};

use shared::{
    AcceptedEvent, DeliveryKey, EventType, Payload, Source, announcement,
    store::{Change, IntakeBatch, IntakeOutcome, PlannedDelivery, StoreError, TestPush},
};
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast::error::RecvError},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{Intake, batch};
use crate::lane::{Job, Terms};

/// How often it is looked whether there are any, whatever word has come.
const LOOK: Duration = Duration::from_secs(1);
/// The most that are taken at once.
const TAKEN: u32 = 16;
/// How often a plan may turn out stale.
const MAX_PLANS: usize = 20;

impl Intake {
    /// Takes test pushes until the soft signal.
    pub async fn take_tests(self, soft: CancellationToken) -> anyhow::Result<()> {
        let mut changes = self.store.keeper.changes();
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                _ = every.tick() => {}
                change = changes.recv() => match change {
                    Ok(Change::TestPush) | Err(RecvError::Lagged(_)) => {}
                    Ok(_) => continue,
                    // The store is being closed.
                    Err(RecvError::Closed) => return Ok(()),
                },
            }
            while !soft.is_cancelled() {
                match self.store.tests.take_tests(TAKEN).await {
                    Ok(taken) if taken.is_empty() => break,
                    Ok(taken) => {
                        for test in taken {
                            if let Err(error) = self.take_in_test(test).await {
                                tracing::warn!(%error, event.id = %test.event, "a test push could not be taken in");
                            }
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "test pushes have to wait");
                        break;
                    }
                }
            }
        }
    }

    /// Stores its event with its one delivery, and makes the attempt. One whose subscription is gone or disabled meanwhile
    /// is dropped.
    async fn take_in_test(&self, test: TestPush) -> Result<(), StoreError> {
        let Some(event) = event(test) else { return Ok(()) };
        for _ in 0..MAX_PLANS {
            let in_force = self.registry.in_force(&[test.organization]).await?;
            let Some(known) = in_force.get(&test.organization) else {
                return Ok(());
            };
            let mut subscriptions = known.subscriptions.iter();
            let subscription = subscriptions.find(|one| one.id == test.subscription && one.enabled);
            let Some((subscription, push)) = subscription.and_then(|one| Some((one, one.push()?))) else {
                return Ok(());
            };
            let terms = Terms::of(subscription, push, self.ownership.workers());
            let room = self.dispatch.room_to_test().filter(|_| !terms.in_order);
            let planned = PlannedDelivery {
                event: 0,
                subscription: test.subscription,
                held: room.is_some(),
                in_order: terms.in_order,
            };
            let holding = self.lease.current();
            let batch = IntakeBatch {
                worker: holding.worker(),
                events: std::slice::from_ref(&event),
                deliveries: &[planned],
                versions: &[(known.organization, known.version)],
                repeats: &[],
            };
            match self.store.events.intake(&batch).await {
                Ok(IntakeOutcome::Stored(stored)) => {
                    let stored: HashSet<_> = stored.iter().map(|stored| stored.id).collect();
                    match room {
                        Some(room) if stored.contains(&event.id) => {
                            self.send_test(&event, test, holding, room);
                        }
                        _ => {
                            self.wake.tell(test.subscription);
                            self.wake.feed(test.subscription);
                        }
                    }
                    return Ok(());
                }
                Ok(IntakeOutcome::Stale) => self.registry.forget_in_force(&[test.organization]),
                Err(error) => {
                    if error.is_transient() {
                        // It may have been committed all the same.
                        self.lease.doubt();
                    }
                    return Err(error);
                }
            }
        }
        tracing::debug!(event.id = %test.event, "subscriptions change faster than a test can be planned");
        Ok(())
    }

    fn send_test(
        &self,
        event: &AcceptedEvent,
        test: TestPush,
        holding: Arc<crate::lease::Holding>,
        room: OwnedSemaphorePermit,
    ) {
        let job = Job {
            key: DeliveryKey {
                event: test.event,
                subscription: test.subscription,
            },
            organization: test.organization,
            attempts: 0,
            attempts_before: 0,
            in_order: false,
            event: Arc::new(batch::body(event)),
            holding,
            since: Instant::now(),
        };
        self.dispatch.test(job, room);
    }
}

fn event(test: TestPush) -> Option<AcceptedEvent> {
    Some(AcceptedEvent {
        id: test.event,
        former_ids: Vec::new(),
        organization: test.organization,
        event_type: EventType::parse_any(announcement::TEST).ok()?,
        dedup_id: None,
        received_at: test.at,
        occurred_at: None,
        source: Source::parse("triggers").ok(),
        trace: None,
        payload: Payload::from_trusted(announcement::test_payload(test.subscription).into()).ok()?,
    })
}
