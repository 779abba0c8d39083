//! Room that is promised for a claim is given back, however the claim goes.

use shared::{DeliveryKey, WorkerId, guard::TargetPolicy};

use super::*;
use crate::{
    awaited::Awaited,
    changes::Changes,
    lane::{Bounds, Lanes},
    outbound::Outbound,
    outcome,
    real_store::RealStore,
};

/// A scheduler over lanes from which nothing is sent, so that what is held can be counted.
async fn scheduler(real: &RealStore) -> Scheduler {
    let bounds = Bounds {
        in_flight: 0,
        ..Bounds::default()
    };
    let lease = Arc::new(Lease::enlist(&*real.store.deliveries).await.unwrap());
    let registry = real.registry();
    let ownership = Ownership::begin(real.store.clone(), Arc::clone(&lease));
    let ownership = Arc::new(ownership.await.unwrap());
    let (wake, words) = wake();
    let (ended, _) = outcome::channel();
    let dispatch = Dispatch::new(
        Lanes::new(bounds),
        Arc::clone(&lease),
        Arc::clone(&registry),
        Outbound::new(TargetPolicy::default(), None).unwrap(),
        real.store.clone(),
        ended,
        wake,
    );
    Scheduler {
        dispatch,
        lease,
        registry,
        ownership,
        store: real.store.clone(),
        words,
    }
}

impl Scheduler {
    /// Feeds these lanes, those in order to the end of their claims.
    async fn feed_all(&self, lanes: Vec<SubscriptionId>) -> store::Result<()> {
        let mut in_order = self.in_order();
        let fed = self.feed(lanes, &mut in_order).await;
        in_order.drained().await;
        fed
    }

    /// Deliveries that wait in lanes, and room that is promised.
    fn held(&self) -> usize {
        self.dispatch.lanes().load().held
    }

    /// The lease's next renewal, with all that follows from it.
    async fn renew(&self) {
        let renewed = crate::renew(&self.lease, &self.ownership, &self.dispatch, &self.store);
        let renewed = tokio::time::timeout(Duration::from_secs(30), renewed).await;
        renewed.expect("it waits for nothing but the lease and the lanes");
    }

    /// Waits until the lane is to be fed.
    async fn told_to_feed(&mut self, lane: SubscriptionId) {
        let word = tokio::time::timeout(Duration::from_secs(30), self.words.0.recv()).await;
        let word = word.expect("there is word").unwrap();
        assert!(matches!(word, Word::Feed(fed) if fed == lane), "{word:?}");
    }
}

#[tokio::test]
async fn a_route_that_cannot_be_looked_up_keeps_no_room() {
    let real = RealStore::open().await;
    let lanes = [real.subscription().await.id, real.subscription().await.id];
    for lane in lanes {
        real.take_in(3, lane, None).await;
    }
    let scheduler = scheduler(&real).await;
    real.watched.fail_look_up(2);
    let fed = scheduler.feed_all(lanes.to_vec()).await;
    assert!(fed.is_err(), "the second look-up fails");
    assert_eq!(scheduler.held(), 0, "the first lane's room is given back");
    scheduler.feed_all(lanes.to_vec()).await.unwrap();
    assert_eq!(scheduler.held(), 6);
}

#[tokio::test]
async fn a_claim_that_fails_gives_its_room_back() {
    let real = RealStore::open().await;
    let lane = real.subscription().await.id;
    let scheduler = scheduler(&real).await;
    // From here on the route is known.
    scheduler.feed_all(vec![lane]).await.unwrap();
    real.take_in(3, lane, None).await;
    real.store.keeper.close().await;
    let fed = scheduler.feed_all(vec![lane]).await;
    assert!(
        fed.is_err_and(|error| error.is_transient()),
        "the store is closed"
    );
    assert_eq!(scheduler.held(), 0);
    assert_eq!(
        scheduler.dispatch.lanes().rouse(Instant::now()),
        [lane],
        "it is looked at again: what was to be claimed is still due"
    );
}

#[tokio::test]
async fn a_claim_keeps_no_more_room_than_it_needs() {
    let real = RealStore::open().await;
    let (some, none) = (real.subscription().await.id, real.subscription().await.id);
    real.take_in(3, some, None).await;
    let scheduler = scheduler(&real).await;
    for _ in 0..2 {
        scheduler.feed_all(vec![some, none]).await.unwrap();
        assert_eq!(scheduler.held(), 3, "what is due, and nothing beside it");
    }
    let drained = scheduler.dispatch.lanes().drain(some);
    assert_eq!((drained.len(), scheduler.held()), (3, 0));
}

#[tokio::test]
async fn a_claim_in_order_that_fails_gives_its_room_back() {
    let real = RealStore::open().await;
    let lane = real.subscription_in_order().await.id;
    let scheduler = scheduler(&real).await;
    // From here on the route is known, and the lane its own.
    scheduler.feed_all(vec![lane]).await.unwrap();
    real.take_in(3, lane, None).await;
    real.store.keeper.close().await;
    scheduler.feed_all(vec![lane]).await.unwrap();
    assert_eq!(scheduler.held(), 0);
    assert_eq!(scheduler.dispatch.lanes().rouse(Instant::now()), [lane]);
}

/// A store that refuses connections does it in no time: while it starts, or behind a proxy.
#[tokio::test]
async fn a_store_that_refuses_at_once_is_not_asked_in_a_spin() {
    let real = RealStore::open().await;
    let lane = real.subscription_in_order().await.id;
    let scheduler = scheduler(&real).await;
    // From here on the route is known, and the lane its own.
    scheduler.feed_all(vec![lane]).await.unwrap();
    real.take_in(3, lane, None).await;
    real.store.keeper.close().await;
    let (dispatch, soft) = (Arc::clone(&scheduler.dispatch), CancellationToken::new());
    let (running, begun) = (tokio::spawn(scheduler.run(soft.clone())), Instant::now());
    dispatch.feed([lane]);
    tokio::time::sleep(10 * TICK).await;
    soft.cancel();
    running.await.unwrap().unwrap();
    // The first is of the time before.
    let asked = u32::try_from(real.releases.claims_in_order() - 1).unwrap();
    let within = begun.elapsed();
    assert!(asked > 1, "it is asked again for what is still due");
    assert!(
        asked * TICK <= within + 2 * TICK,
        "{asked} times within {within:?}"
    );
}

/// Claims in order wait for whoever has locked the beginning of their lane.
#[tokio::test]
async fn however_many_lanes_in_order_have_to_wait_the_others_do_not_wait_for_them() {
    let real = RealStore::open().await;
    let (before, after) = (real.subscription().await.id, real.subscription().await.id);
    let (mut in_order, mut first) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let lane = real.subscription_in_order().await.id;
        first.extend(real.take_in(1, lane, None).await);
        in_order.push(lane);
    }
    let scheduler = scheduler(&real).await;
    let (dispatch, me) = (Arc::clone(&scheduler.dispatch), scheduler.lease.current());
    let deliveries = Arc::clone(&real.store.deliveries);
    let held = async |what: &str, due: &[DeliveryKey]| {
        let are_held = async {
            while deliveries.still_held(me.worker(), due).await.unwrap().len() < due.len() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let within = tokio::time::timeout(Duration::from_secs(30), are_held).await;
        within.unwrap_or_else(|_| panic!("{what}"));
    };
    let stalled = real.releases.stall_in_order().await;
    let soft = CancellationToken::new();
    let running = tokio::spawn(scheduler.run(soft.clone()));
    dispatch.feed(in_order.clone());
    let due = real.take_in(3, before, None).await;
    dispatch.feed([before]);
    held("what is told in the same round", &due).await;
    let due = real.take_in(3, after, None).await;
    dispatch.feed([after]);
    held("what is told while they wait", &due).await;
    let late = real.take_in(1, in_order[0], None).await;
    dispatch.feed(in_order);
    drop(stalled);
    held("what comes to a lane that waits", &late).await;
    held("those in order", &first).await;
    soft.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(dispatch.lanes().load().held, 6 + 11);
}

/// A delivery is cancelled, opened again and taken anew before word of the cancellation is heard.
#[tokio::test]
async fn late_word_of_a_cancellation_strands_nothing() {
    let real = RealStore::open().await;
    let lane = real.subscription().await.id;
    let scheduler = scheduler(&real).await;
    let key = real.take_in(1, lane, None).await[0];
    let word = real.store.keeper.changes();
    scheduler.feed_all(vec![lane]).await.unwrap();
    let replays = &real.store.replays;
    replays.cancel(real.organization(), key).await.unwrap();
    replays.retry(real.organization(), key).await.unwrap();
    scheduler.feed_all(vec![lane]).await.unwrap();
    let me = scheduler.lease.current();
    let held = real
        .store
        .deliveries
        .still_held(me.worker(), &[key])
        .await
        .unwrap();
    assert_eq!(held, [key], "it was taken anew");
    let (wake, _words) = wake();
    let changes = Changes {
        registry: Arc::clone(&scheduler.registry),
        ownership: Arc::clone(&scheduler.ownership),
        awaited: Arc::new(Awaited::default()),
        dispatch: Arc::clone(&scheduler.dispatch),
        wake,
        store: real.store.clone(),
    };
    let other = WorkerId::new();
    real.store
        .deliveries
        .enlist(other, Duration::from_mins(5))
        .await
        .unwrap();
    let is_free = async {
        while real
            .store
            .deliveries
            .claim(other, &[(lane, 1)])
            .await
            .unwrap()
            .is_empty()
        {
            // Else it would be free once this ends.
            scheduler.lease.renew(&*real.store.deliveries).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = changes.heed(word, CancellationToken::new()) => unreachable!("it is not told to stop"),
        is_free = tokio::time::timeout(Duration::from_secs(30), is_free) => {
            is_free.expect("what is out of its lane is anybody's");
        }
    }
    assert_eq!(scheduler.held(), 0);
}

#[tokio::test]
async fn a_lease_is_renewed_while_deliveries_are_given_back() {
    let real = RealStore::open().await;
    let lane = real.subscription().await.id;
    let mut scheduler = scheduler(&real).await;
    scheduler.ownership.acquire(&[lane]).await.unwrap();
    real.take_in(3, lane, None).await;
    scheduler.feed_all(vec![lane]).await.unwrap();
    assert_eq!(scheduler.held(), 3);
    let old = scheduler.lease.current().worker();
    let stalled = real.releases.stall().await;
    scheduler.lease.doubt();
    scheduler.renew().await;
    assert_eq!(scheduler.lease.retiring(), [old]);
    assert!(scheduler.ownership.owns(lane), "it was taken along");
    scheduler.told_to_feed(lane).await;
    scheduler.renew().await;
    assert_eq!(
        scheduler.lease.retiring(),
        [old],
        "what is to be given back is held by it"
    );
    drop(stalled);
    scheduler.told_to_feed(lane).await;
    scheduler.feed_all(vec![lane]).await.unwrap();
    assert_eq!(scheduler.held(), 3, "they are free while the old lease lives");
}

#[tokio::test]
async fn what_cannot_be_given_back_is_no_new_doubt_each_time() {
    let real = RealStore::open().await;
    let lane = real.subscription().await.id;
    let mut scheduler = scheduler(&real).await;
    real.take_in(3, lane, None).await;
    scheduler.feed_all(vec![lane]).await.unwrap();
    real.releases.fail();
    scheduler.lease.doubt();
    scheduler.renew().await;
    let new = scheduler.lease.current().worker();
    // It was tried.
    scheduler.told_to_feed(lane).await;
    for _ in 0..2 {
        scheduler.renew().await;
        assert_eq!(scheduler.lease.current().worker(), new);
    }
    assert!(scheduler.lease.retiring().is_empty(), "it ends, and frees them");
    scheduler.feed_all(vec![lane]).await.unwrap();
    assert_eq!(scheduler.held(), 3);
}
