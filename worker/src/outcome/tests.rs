//! What follows from outcomes, in a real store.

use shared::{
    FailureKind,
    delivery::{Failure, Next},
    store::SubscriptionPatch,
};

use super::*;
use crate::{real_store::RealStore, scheduler};

/// The outcomes of attempts at these, each of which the subscriber answered with 410.
fn gone(real: &RealStore, lease: &Lease, deliveries: &[DeliveryKey], version: i64) -> Vec<Ended> {
    let ended = |delivery: &DeliveryKey| Ended {
        outcome: AttemptOutcome {
            delivery: *delivery,
            organization: real.organization(),
            number: 1,
            started_at: Timestamp::now(),
            announcement: None,
            duration: Duration::from_millis(1),
            result: AttemptResult::Failed {
                failure: Failure {
                    kind: FailureKind::Status,
                    status_code: Some(410),
                    detail: String::new(),
                },
                next: Next::DeadLetter,
            },
        },
        version,
        subscriber: shared::subscription::Subscriber::numbered(version),
        holding: lease.current(),
        in_order: false,
        asked_to_wait: None,
        is_test: false,
        begets: true,
        received_at: Timestamp::now(),
    };
    deliveries.iter().map(ended).collect()
}

#[tokio::test]
async fn a_subscription_is_disabled_once_a_batch_and_not_if_it_has_changed() {
    let real = RealStore::open().await;
    let lease = Lease::enlist(&*real.store.deliveries).await.unwrap();
    let (wake, _words) = scheduler::wake();
    let held_by = Some(lease.current().worker());
    let (one, other, moved) = (
        real.subscription().await,
        real.subscription().await,
        real.subscription().await,
    );
    let mut batch = Vec::new();
    for subscription in [&one, &other, &moved] {
        let deliveries = real.take_in(20, subscription.id, held_by).await;
        batch.extend(gone(&real, &lease, &deliveries, subscription.version));
    }
    let change = SubscriptionPatch {
        description: Some(Some("it points elsewhere".to_owned())),
        ..SubscriptionPatch::default()
    };
    let subscriptions = &real.store.subscriptions;
    subscriptions
        .patch(moved.organization, moved.id, moved.version, change)
        .await
        .unwrap();

    write(&real.store, &wake, &lease, batch).await;
    for (subscription, enabled) in [(&one, false), (&other, false), (&moved, true)] {
        let now = subscriptions
            .get(subscription.organization, subscription.id)
            .await;
        assert_eq!(now.unwrap().unwrap().enabled, enabled);
    }
    assert_eq!(real.watched.disabling(), 3, "once for each, of 60 answers");
}

/// They beget no others: whoever listens and is gone is disabled without a word, unless another event was answered so, too.
#[tokio::test]
async fn gone_for_the_systems_own_events_is_not_announced() {
    let real = RealStore::open().await;
    let lease = Lease::enlist(&*real.store.deliveries).await.unwrap();
    let (wake, _words) = scheduler::wake();
    let held_by = Some(lease.current().worker());
    real.listener().await;
    for (begets, expected) in [([false, false], 0), ([false, true], 1)] {
        let of = real.subscription().await;
        let deliveries = real.take_in(2, of.id, held_by).await;
        let mut batch = gone(&real, &lease, &deliveries, of.version);
        for (ended, begets) in batch.iter_mut().zip(begets) {
            ended.begets = begets;
        }
        write(&real.store, &wake, &lease, batch).await;
        let now = real.store.subscriptions.get(of.organization, of.id).await;
        assert!(!now.unwrap().unwrap().enabled);
        let announced = real.store.announcements.announcements(10).await.unwrap();
        assert_eq!(announced.len(), expected, "{begets:?}");
    }
}
