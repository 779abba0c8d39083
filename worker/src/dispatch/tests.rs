//! A lane that is in order goes on by what it is told here.

use bytes::Bytes;
use shared::{Timestamp, guard::TargetPolicy};

use super::*;
use crate::{
    lane::{Bounds, EventBody, Terms},
    outcome,
    real_store::RealStore,
    scheduler,
};

#[tokio::test]
async fn an_attempt_that_began_in_order_is_told_to_its_lane_whatever_its_order_is_by_then() {
    let real = RealStore::open().await;
    // It is not in order, and its lane does not know that yet.
    let subscription = real.subscription().await;
    let lease = Arc::new(Lease::enlist(&*real.store.deliveries).await.unwrap());
    let ((ended, mut outcomes), (wake, _words)) = (outcome::channel(), scheduler::wake());
    let dispatch = Dispatch::new(
        Lanes::new(Bounds::default()),
        Arc::clone(&lease),
        real.registry(),
        Outbound::new(TargetPolicy::default(), None).unwrap(),
        real.store.clone(),
        ended,
        wake,
    );
    let terms = Terms {
        organization: subscription.organization,
        max_in_flight: 1,
        rate_per_second: None,
        in_order: true,
        solo: true,
        version: subscription.version - 1,
    };
    let holding = lease.current();
    let keys = real.take_in(1, subscription.id, Some(holding.worker())).await;
    let now = Instant::now();
    assert_eq!(dispatch.lanes().reserve_many(subscription.id, terms, 1, now), 1);
    let event = EventBody {
        id: keys[0].event,
        event_type: "order.placed".into(),
        received_at: Timestamp::now(),
        occurred_at: None,
        source: None,
        trace: None,
        payload: Bytes::from_static(b"{}"),
    };
    dispatch.push([Job {
        key: keys[0],
        organization: subscription.organization,
        in_order: true,
        attempts: 0,
        attempts_before: 0,
        event: Arc::new(event),
        holding,
        since: now,
    }]);
    let ended = outcomes.recv().await.unwrap();
    assert_eq!(ended.version, subscription.version);
    assert!(ended.in_order, "else the lane waits for ever");
}
