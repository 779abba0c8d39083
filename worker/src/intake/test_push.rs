//! Test pushes: an event of the system's own for one subscription, whatever that asks for, sent at once.
//!
//! The api asks for one and waits for its delivery's first attempt; a worker takes it, so that only workers talk to
//! subscribers. It is stored as any event is, and its attempt recorded as any is. It does not wait in its lane: neither
//! behind a backlog nor for a circuit to close, since whoever tests wants to know how the subscriber is now. So that
//! this floods nobody, few are under way at once; one more than that goes by its lane, and so does one to a subscription
//! in order, where nothing may overtake. One attempt is all there is: a test that fails says so and is over.

use std::{sync::Arc, time::Duration};

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
/// How long it is tried to take in those that were taken. Whoever asked does not wait much longer.
const TRIED: Duration = Duration::from_secs(8);
/// How long until it is tried again after the store did not answer.
const PAUSE: Duration = Duration::from_millis(100);

/// What came of a try.
enum TakenIn {
    /// Nothing more is to be done.
    Done,
    /// Subscriptions changed meanwhile.
    Stale,
}

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
                        let until = Instant::now() + TRIED;
                        for test in taken {
                            self.take_in_test(test, until).await;
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

    /// Stores its event with its one delivery, and makes the attempt. Nobody else has it any more: a plan that is stale and a
    /// store that does not answer are tried again until then.
    async fn take_in_test(&self, test: TestPush, until: Instant) {
        let Some(event) = event(test) else { return };
        loop {
            match self.try_to_take_in_test(test, &event).await {
                Ok(TakenIn::Done) => return,
                Ok(TakenIn::Stale) if Instant::now() < until => {}
                Err(error) if error.is_transient() && Instant::now() < until => {
                    tracing::warn!(%error, event.id = %test.event, "a test push is tried again");
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(TakenIn::Stale) => {
                    let why = "subscriptions change faster than it can be planned";
                    tracing::warn!(why, event.id = %test.event, "a test push could not be taken in");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, event.id = %test.event, "a test push could not be taken in");
                    return;
                }
            }
        }
    }

    /// One whose subscription is gone or disabled meanwhile is dropped. What is remembered does not say whether it is: whoever
    /// tests a subscription has often just made it, or enabled it.
    async fn try_to_take_in_test(
        &self,
        test: TestPush,
        event: &AcceptedEvent,
    ) -> Result<TakenIn, StoreError> {
        let Some(known) = self.registry.in_force_now(test.organization).await? else {
            return Ok(TakenIn::Done);
        };
        let mut subscriptions = known.subscriptions.iter();
        let subscription = subscriptions.find(|one| one.id == test.subscription && one.enabled);
        let Some((subscription, push)) = subscription.and_then(|one| Some((one, one.push()?))) else {
            tracing::debug!(event.id = %test.event, "a test push to what is disabled or gone meanwhile is dropped");
            return Ok(TakenIn::Done);
        };
        let terms = Terms::of(subscription, push, self.ownership.workers());
        let room = self.dispatch.room_to_test().filter(|_| !terms.in_order);
        let planned = PlannedDelivery {
            event: 0,
            subscription: test.subscription,
            held: room.is_some(),
        };
        let holding = self.lease.current();
        let batch = IntakeBatch {
            worker: holding.worker(),
            events: std::slice::from_ref(event),
            deliveries: &[planned],
            versions: &[(known.organization, known.version)],
            repeats: &[],
        };
        match self.store.events.intake(&batch).await {
            Ok(IntakeOutcome::Stored(stored)) => {
                match room {
                    Some(room) if stored.iter().any(|stored| stored.id == event.id) => {
                        self.send_test(event, test, holding, room);
                    }
                    // By its lane; so does one that was stored by a try whose answer was lost.
                    _ => {
                        self.wake.tell(test.subscription);
                        self.wake.feed(test.subscription);
                    }
                }
                Ok(TakenIn::Done)
            }
            Ok(IntakeOutcome::Stale) => Ok(TakenIn::Stale),
            Err(error) => {
                if error.is_transient() {
                    // It may have been committed all the same.
                    self.lease.doubt();
                }
                Err(error)
            }
        }
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
