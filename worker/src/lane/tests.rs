//! What lanes do whatever happens.

use proptest::prelude::*;

use super::*;

fn job(subscription: SubscriptionId, worker: WorkerId) -> Job {
    job_of(subscription, worker, Bytes::from_static(b"{}"))
}

fn job_of(subscription: SubscriptionId, worker: WorkerId, payload: Bytes) -> Job {
    let event = EventBody {
        id: EventId::new(),
        event_type: "a".into(),
        received_at: Timestamp::now(),
        occurred_at: None,
        trace: None,
        payload,
    };
    Job {
        key: DeliveryKey {
            event: event.id,
            subscription,
        },
        organization: OrganizationId::new(),
        attempts: 0,
        event: Arc::new(event),
        holding: Holding::new(worker, Instant::now()),
        since: Instant::now(),
    }
}

fn lanes(in_flight: usize, lane: usize, total: usize) -> Lanes {
    Lanes::new(Bounds {
        in_flight,
        in_flight_bytes: usize::MAX,
        lane,
        total,
        bytes: usize::MAX,
    })
}

#[test]
fn lanes_take_turns_within_their_limits() {
    let (slow, other, me) = (SubscriptionId::new(), SubscriptionId::new(), WorkerId::new());
    let mut lanes = lanes(3, 100, 100);
    for subscription in [slow, slow, slow, slow, other] {
        assert!(lanes.reserve(subscription, 2));
        lanes.push(job(subscription, me));
    }
    let sent: Vec<_> = std::iter::from_fn(|| lanes.next()).collect();
    let order: Vec<_> = sent.iter().map(|job| job.key.subscription).collect();
    let weight = sent[0].weight();
    assert_eq!(
        order,
        [slow, other, slow],
        "the pool holds three, and the slow lane two"
    );
    lanes.finished(other, weight);
    assert!(lanes.next().is_none(), "the slow lane is at its limit");
    lanes.finished(slow, weight);
    assert_eq!(lanes.next().map(|job| job.key.subscription), Some(slow));
}

#[test]
fn what_finds_no_room_makes_the_lane_hungry_until_it_is_fed() {
    let (subscription, me) = (SubscriptionId::new(), WorkerId::new());
    let mut lanes = lanes(10, 2, 100);
    assert!(lanes.reserve(subscription, 1) && lanes.reserve(subscription, 1));
    assert!(!lanes.reserve(subscription, 1));
    lanes.push(job(subscription, me));
    lanes.push(job(subscription, me));
    let weight = lanes.next().unwrap().weight();
    assert!(lanes.next().is_none(), "one at a time");
    assert!(
        !lanes.reserve(subscription, 1),
        "what waits in the store goes first"
    );
    assert!(lanes.finished(subscription, weight), "half is free: feed it");
    assert_eq!(lanes.reserve_many(subscription, 1, 50), 1);
    lanes.unreserve(subscription, 1);
    lanes.set_hungry(subscription, false);
    assert!(lanes.reserve(subscription, 1));
}

#[test]
fn attempts_under_way_are_bounded_by_bytes() {
    let (large, small, me) = (SubscriptionId::new(), SubscriptionId::new(), WorkerId::new());
    let mut lanes = Lanes::new(Bounds {
        in_flight_bytes: 2_000,
        ..lanes(100, 100, 100).bounds
    });
    for _ in 0..3 {
        assert!(lanes.reserve(large, 50) && lanes.reserve(small, 50));
        lanes.push(job_of(large, me, Bytes::from(vec![b'1'; 2_000])));
        lanes.push(job(small, me));
    }
    let first = lanes.next().unwrap();
    assert_eq!(
        first.key.subscription, large,
        "one that is larger than the bound can be sent"
    );
    assert!(lanes.next().is_none(), "and nothing beside it");
    lanes.finished(large, first.weight());
    let sent: Vec<_> = std::iter::from_fn(|| lanes.next()).collect();
    let order: Vec<_> = sent.iter().map(|job| job.key.subscription).collect();
    assert_eq!(order, [small, large], "a small one leaves room for one more");
    for job in sent {
        lanes.finished(job.key.subscription, job.weight());
    }
    let left = std::iter::from_fn(|| {
        let job = lanes.next()?;
        lanes.finished(job.key.subscription, job.weight());
        Some(job)
    });
    assert_eq!(left.count(), 3, "what had to wait is sent");
    assert_eq!((lanes.load(), lanes.in_flight_bytes), ((0, 0, 0), 0));
}

proptest! {
    /// Whatever happens in whatever order, the counts are those of what is there, the bounds hold, and all room that was
    /// promised, one by one or many at once, is given back.
    #[test]
    fn counts_add_up(steps in prop::collection::vec((0usize..11, 0usize..4), 1..400)) {
        let subscriptions: Vec<_> = (0..4).map(|_| SubscriptionId::new()).collect();
        let (me, old) = (WorkerId::new(), WorkerId::new());
        let one = job(subscriptions[0], me).weight();
        let mut lanes = Lanes::new(Bounds { in_flight_bytes: 3 * one + 1, ..lanes(5, 6, 12).bounds });
        let mut reserved: Vec<SubscriptionId> = Vec::new();
        let mut sending: Vec<(SubscriptionId, usize)> = Vec::new();
        for (step, which) in steps {
            let subscription = subscriptions[which];
            match step {
                0 | 1 => if lanes.reserve(subscription, 2) { reserved.push(subscription) },
                2 | 3 => if let Some(subscription) = reserved.pop() {
                    lanes.push(job(subscription, if which == 0 { old } else { me }));
                },
                4 => if let Some(job) = lanes.next() { sending.push((job.key.subscription, job.weight())) },
                5 => if let Some((subscription, weight)) = sending.pop() { lanes.finished(subscription, weight); },
                6 => if let Some(subscription) = reserved.pop() { lanes.unreserve(subscription, 1) },
                7 => { lanes.drain(subscription); lanes.set_hungry(subscription, false); }
                8 => {
                    let most = which * 3;
                    let room = lanes.reserve_many(subscription, 2, most);
                    prop_assert!(room <= most);
                    reserved.extend(std::iter::repeat_n(subscription, room));
                }
                9 => {
                    // What a claim did not need is given back at once.
                    let (kept, unneeded): (Vec<_>, Vec<_>) = reserved.drain(..).partition(|of| *of != subscription);
                    reserved = kept;
                    lanes.set_hungry(subscription, which % 2 == 0);
                    lanes.unreserve(subscription, unneeded.len());
                }
                _ => drop(lanes.keep_held_by(me)),
            }
            let waiting: usize = lanes.by_subscription.values().map(|lane| lane.waiting.len()).sum();
            let weight: usize = lanes.by_subscription.values().flat_map(|lane| &lane.waiting).map(Job::weight).sum();
            prop_assert_eq!(lanes.held, waiting + reserved.len());
            prop_assert_eq!(lanes.bytes, weight);
            prop_assert_eq!(lanes.in_flight, sending.len());
            prop_assert_eq!(lanes.in_flight_bytes, sending.iter().map(|(_, weight)| weight).sum::<usize>());
            prop_assert!(lanes.in_flight <= 4 && lanes.held <= 24);
            for (id, lane) in &lanes.by_subscription {
                prop_assert!(lane.in_flight <= 2);
                prop_assert!(lane.held() <= 6);
                prop_assert_eq!(lane.reserved, reserved.iter().filter(|of| *of == id).count());
                prop_assert_eq!(lane.in_flight, sending.iter().filter(|(of, _)| of == id).count());
                if lane.can_send() {
                    prop_assert!(lane.queued, "a lane that can send is never forgotten");
                }
            }
        }
        while let Some((subscription, weight)) = sending.pop() { lanes.finished(subscription, weight); }
        while let Some(subscription) = reserved.pop() { lanes.unreserve(subscription, 1) }
        while let Some(job) = lanes.next() { lanes.finished(job.key.subscription, job.weight()); }
        prop_assert_eq!(lanes.load(), (lanes.by_subscription.values().filter(|lane| lane.hungry).count(), 0, 0));
        prop_assert_eq!((lanes.bytes, lanes.in_flight_bytes), (0, 0));
    }
}
