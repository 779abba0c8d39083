//! What becomes of a delivery that is to be sent, and what its lane is told.

use bytes::Bytes;
use shared::{FailureKind, Subscription, Timestamp, delivery::AttemptResult, guard::TargetPolicy};

use super::*;
use crate::{
    lane::{Bounds, EventBody, Terms},
    outcome,
    real_store::RealStore,
    scheduler,
};

/// A worker that has what it takes to send, what comes of it, and a subscription.
struct Sending {
    real: RealStore,
    subscription: Subscription,
    dispatch: Arc<Dispatch>,
    outcomes: mpsc::Receiver<Ended>,
    _words: scheduler::Words,
}

impl Sending {
    async fn by(registry: impl Fn(&RealStore) -> Arc<Registry>) -> Self {
        let real = RealStore::open().await;
        let subscription = real.subscription().await;
        let lease = Arc::new(Lease::enlist(&*real.store.deliveries).await.unwrap());
        let ((ended, outcomes), (wake, words)) = (outcome::channel(), scheduler::wake());
        let dispatch = Dispatch::new(
            Lanes::new(Bounds::default()),
            lease,
            registry(&real),
            Outbound::new(TargetPolicy::default(), None).unwrap(),
            real.store.clone(),
            ended,
            wake,
        );
        Self {
            real,
            subscription,
            dispatch,
            outcomes,
            _words: words,
        }
    }

    /// Puts a delivery into its lane, which keeps to these terms; `None` if the lane has no room.
    async fn put(&self, terms: Terms) -> Option<DeliveryKey> {
        let (id, now) = (self.subscription.id, Instant::now());
        if self.dispatch.lanes().reserve_many(id, terms, 1, now) == 0 {
            return None;
        }
        let holding = self.dispatch.lease.current();
        let key = self.real.take_in(1, id, Some(holding.worker())).await[0];
        let event = EventBody {
            id: key.event,
            event_type: "order.placed".into(),
            received_at: Timestamp::now(),
            occurred_at: None,
            source: None,
            trace: None,
            payload: Bytes::from_static(b"{}"),
        };
        self.dispatch.push([Job {
            key,
            organization: self.subscription.organization,
            in_order: terms.in_order,
            attempts: 0,
            attempts_before: 0,
            event: Arc::new(event),
            holding,
            since: now,
        }]);
        Some(key)
    }
}

/// It is not in order, and its lane does not know that yet.
#[tokio::test]
async fn an_attempt_that_began_in_order_is_told_to_its_lane_whatever_its_order_is_by_then() {
    let mut sending = Sending::by(RealStore::registry).await;
    let subscription = &sending.subscription;
    let terms = Terms {
        organization: subscription.organization,
        max_in_flight: 1,
        rate_per_second: None,
        in_order: true,
        solo: true,
        version: subscription.version - 1,
        subscriber: Subscriber::of(subscription, subscription.push().unwrap()),
    };
    let version = subscription.version;
    sending.put(terms).await.expect("there is room");
    let ended = sending.outcomes.recv().await.unwrap();
    assert_eq!(ended.version, version);
    assert!(ended.in_order, "else the lane waits for ever");
}

#[tokio::test]
async fn a_secret_that_is_none_fails_and_one_that_does_not_open_is_not_held_against_the_subscription() {
    let mut opens = Sending::by(RealStore::registry).await;
    let terms = |subscription: &Subscription| Terms::of(subscription, subscription.push().unwrap(), 1);
    opens
        .put(terms(&opens.subscription))
        .await
        .expect("there is room");
    let ended = opens.outcomes.recv().await.unwrap();
    let AttemptResult::Failed { failure, .. } = ended.outcome.result else {
        panic!("{ended:?}");
    };
    assert_eq!(failure.kind, FailureKind::Unsendable);

    let mut does_not = Sending::by(RealStore::registry_of_another_key).await;
    let terms = terms(&does_not.subscription);
    let key = does_not.put(terms).await.expect("there is room");
    does_not.dispatch.attempts.close();
    does_not.dispatch.attempts.wait().await;
    assert!(does_not.outcomes.try_recv().is_err(), "no attempt is recorded");
    let other = Lease::enlist(&*does_not.real.store.deliveries).await.unwrap();
    let (deliveries, worker) = (&does_not.real.store.deliveries, other.current().worker());
    let claimed = deliveries.claim(worker, &[(key.subscription, 1)]).await.unwrap();
    assert!(
        claimed.len() == 1 && claimed[0].key == key && claimed[0].attempts == 0,
        "it is given back as it was"
    );
    assert!(does_not.put(terms).await.is_none(), "its lane is put off");
}
