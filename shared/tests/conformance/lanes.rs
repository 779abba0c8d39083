//! Lanes that must act as one: who owns them, and in which order their deliveries are taken.

use shared::{
    AcceptedEvent, EventId, SubscriptionId, WorkerId,
    delivery::{AttemptOutcome, Next},
    store::{CLAIM_IN_ORDER_BYTES, Change, IntakeBatch, IntakeOutcome, PlannedDelivery, Standing, Store},
};

use super::{
    deliveries::{claim, lane},
    world::{MINUTE, event, failed, key, organization, payload, push, succeeded, worker},
};

/// Takes events in, one after the other.
async fn take_in(store: &Store, lane: SubscriptionId, events: &[AcceptedEvent]) {
    for event in events {
        let in_force = store.subscriptions.in_force(&[event.organization]).await.unwrap();
        let batch = IntakeBatch {
            worker: WorkerId::new(),
            events: std::slice::from_ref(event),
            deliveries: &[PlannedDelivery {
                event: 0,
                subscription: lane,
                held: false,
            }],
            versions: &[(event.organization, in_force[0].version)],
            repeats: &[],
        };
        let stored = store.events.intake(&batch).await.unwrap();
        assert!(matches!(stored, IntakeOutcome::Stored(stored) if stored.len() == 1));
    }
}

/// A lane in order with so many events, and a worker that owns it.
async fn in_order(store: &Store, events: usize) -> (SubscriptionId, Vec<AcceptedEvent>, WorkerId) {
    let organization = organization(store).await.id;
    let lane = push(store, organization).await.id;
    let events: Vec<_> = (0..events).map(|_| event(organization)).collect();
    take_in(store, lane, &events).await;
    let me = worker(store).await;
    assert_eq!(store.deliveries.own(me, &[lane]).await.unwrap(), [lane]);
    (lane, events, me)
}

async fn next(store: &Store, worker: WorkerId, lane: SubscriptionId, most: u32) -> Vec<EventId> {
    let claimed = store.deliveries.claim_in_order(worker, lane, most).await.unwrap();
    assert!(claimed.is_sorted_by_key(|claimed| claimed.seq));
    claimed.iter().map(|claimed| claimed.key.event).collect()
}

fn ids(events: &[AcceptedEvent]) -> Vec<EventId> {
    events.iter().map(|event| event.id).collect()
}

pub(crate) async fn a_lane_has_one_owner(store: &Store) {
    let (me, other) = (worker(store).await, worker(store).await);
    let (_, contested, events) = lane(store, 2, None).await;
    let (_, free, _) = lane(store, 1, None).await;
    let deliveries = &store.deliveries;
    assert_eq!(deliveries.own(me, &[contested]).await.unwrap(), [contested]);
    assert_eq!(
        deliveries.own(me, &[contested]).await.unwrap(),
        [contested],
        "again"
    );
    assert_eq!(deliveries.own(other, &[contested, free]).await.unwrap(), [free]);
    let standing = deliveries.standing(me).await.unwrap();
    assert_eq!(
        standing,
        Standing {
            workers: 2,
            mine: 1,
            all: 2
        }
    );
    // A worker that has taken a new id is one yet, whoever asks.
    let again = me.successor();
    deliveries.enlist(again, MINUTE).await.unwrap();
    for worker in [me, again, other] {
        assert_eq!(deliveries.standing(worker).await.unwrap().workers, 2);
    }
    deliveries.resign(again).await.unwrap();

    // Nobody else takes from it, or is told that there is something in it.
    assert_eq!(deliveries.lanes_due(me, None, 10).await.unwrap(), [contested]);
    assert_eq!(deliveries.lanes_due(other, None, 10).await.unwrap(), [free]);
    assert!(claim(store, other, contested, 10).await.is_empty());
    assert_eq!(claim(store, me, contested, 1).await, [events[0].id]);

    // Until it is given up, or its owner is gone.
    deliveries.disown(other, &[contested]).await.unwrap();
    assert!(
        deliveries.own(other, &[contested]).await.unwrap().is_empty(),
        "it is not the other's to give"
    );
    deliveries.disown(me, &[contested]).await.unwrap();
    assert_eq!(deliveries.own(other, &[contested]).await.unwrap(), [contested]);
    assert!(claim(store, me, contested, 10).await.is_empty());
    deliveries.resign(other).await.unwrap();
    assert_eq!(deliveries.own(me, &[contested, free]).await.unwrap().len(), 2);
    deliveries.renew(me, std::time::Duration::ZERO).await.unwrap();
    assert!(
        deliveries.own(me, &[contested]).await.unwrap().is_empty(),
        "it is not one any more"
    );
    let third = worker(store).await;
    assert_eq!(deliveries.own(third, &[contested]).await.unwrap(), [contested]);
    assert_eq!(
        claim(store, third, contested, 10).await.len(),
        2,
        "what its owner held is free with it"
    );
}

pub(crate) async fn many_want_a_lane_and_one_has_it(store: &Store) {
    let (_, contested, _) = lane(store, 1, None).await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        asking.spawn(async move {
            let me = worker(&store).await;
            store.deliveries.own(me, &[contested]).await.unwrap().len()
        });
    }
    assert_eq!(asking.join_all().await.iter().sum::<usize>(), 1);
}

pub(crate) async fn taken_in_order_up_to_what_waits(store: &Store) {
    let (lane, events, me) = in_order(store, 6).await;
    let ids = ids(&events);
    assert_eq!(next(store, me, lane, 2).await, ids[..2]);
    assert!(
        next(store, me, lane, 10).await.is_empty(),
        "the first is held, if only by who asks"
    );
    store
        .deliveries
        .release(me, &[key(&events[0], lane), key(&events[1], lane)])
        .await
        .unwrap();
    assert_eq!(next(store, me, lane, 10).await, ids);
    let later = failed(&events[0], lane, 1, Next::Retry { after: MINUTE });
    let given_up = failed(&events[1], lane, 1, Next::DeadLetter);
    let record =
        async |outcomes: Vec<AttemptOutcome>| store.deliveries.record(me, &outcomes).await.unwrap().len();
    assert_eq!(record(vec![later]).await, 1);
    let rest: Vec<_> = events[1..].iter().map(|event| key(event, lane)).collect();
    store.deliveries.release(me, &rest).await.unwrap();
    assert!(
        next(store, me, lane, 10).await.is_empty(),
        "one that is not due holds the rest"
    );
    store
        .deliveries
        .acknowledge(events[0].organization, &ids[..1])
        .await
        .unwrap();
    assert_eq!(next(store, me, lane, 1).await, ids[1..2], "until it is closed");
    assert_eq!(record(vec![given_up]).await, 1);
    assert_eq!(
        next(store, me, lane, 1).await,
        ids[2..3],
        "a dead letter lets the next go"
    );
    assert_eq!(record(vec![succeeded(&events[2], lane, 1)]).await, 1);
    store
        .deliveries
        .acknowledge(events[0].organization, &ids[4..5])
        .await
        .unwrap();
    assert_eq!(next(store, me, lane, 10).await, [ids[3], ids[5]]);
}

pub(crate) async fn only_its_owner_takes_in_order(store: &Store) {
    let (lane, events, me) = in_order(store, 2).await;
    let other = worker(store).await;
    assert!(next(store, other, lane, 10).await.is_empty());
    assert_eq!(next(store, me, lane, 1).await, [events[0].id]);
    store.deliveries.disown(me, &[lane]).await.unwrap();
    assert!(next(store, me, lane, 10).await.is_empty(), "not any more");
    assert_eq!(store.deliveries.own(other, &[lane]).await.unwrap(), [lane]);
    assert!(
        next(store, other, lane, 10).await.is_empty(),
        "the first is still held"
    );
    store.deliveries.resign(me).await.unwrap();
    assert_eq!(next(store, other, lane, 10).await, ids(&events));
}

pub(crate) async fn what_was_tried_before_is_in_order_too(store: &Store) {
    let me = worker(store).await;
    let (organization, lane, before) = lane(store, 5, Some(me)).await;
    let later = failed(
        &before[1],
        lane,
        1,
        Next::Retry {
            after: std::time::Duration::ZERO,
        },
    );
    assert_eq!(store.deliveries.record(me, &[later]).await.unwrap().len(), 1);
    let after = event(organization);
    take_in(store, lane, std::slice::from_ref(&after)).await;
    store.deliveries.own(me, &[lane]).await.unwrap();
    let held: Vec<_> = before[2..].iter().map(|event| key(event, lane)).collect();
    assert!(
        next(store, me, lane, 10).await.is_empty(),
        "the first is held as it was taken, and is to be over first"
    );
    store
        .deliveries
        .release(me, &[key(&before[0], lane)])
        .await
        .unwrap();
    assert_eq!(
        next(store, me, lane, 10).await,
        ids(&before[..2]),
        "up to what is held"
    );
    store.deliveries.release(me, &held).await.unwrap();
    store
        .deliveries
        .release(me, &[key(&before[0], lane), key(&before[1], lane)])
        .await
        .unwrap();
    let taken = next(store, me, lane, 10).await;
    assert_eq!(taken, [ids(&before), vec![after.id]].concat());
}

/// Intakes that go on beside it put nothing before what was taken.
pub(crate) async fn order_holds_beside_intakes(store: &Store) {
    let (lane, events, me) = in_order(store, 1).await;
    let organization = events[0].organization;
    let mut posting = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        posting.spawn(async move {
            let events: Vec<_> = (0..25).map(|_| event(organization)).collect();
            take_in(&store, lane, &events).await;
        });
    }
    let (mut last, mut count) = (i64::MIN, 0);
    while count < 101 {
        let claimed = store.deliveries.claim_in_order(me, lane, 7).await.unwrap();
        for claimed in &claimed {
            assert!(claimed.seq > last, "{} after {last}", claimed.seq);
            last = claimed.seq;
            count += 1;
        }
        let outcomes: Vec<_> = claimed
            .iter()
            .map(|claimed| {
                let event = AcceptedEvent {
                    id: claimed.key.event,
                    ..event(organization)
                };
                succeeded(&event, lane, 1)
            })
            .collect();
        assert_eq!(
            store.deliveries.record(me, &outcomes).await.unwrap().len(),
            claimed.len()
        );
    }
    posting.join_all().await;
}

pub(crate) async fn lanes_are_handed_over(store: &Store) {
    let (lane, events, old) = in_order(store, 3).await;
    let ids = ids(&events);
    assert_eq!(next(store, old, lane, 1).await, ids[..1]);
    let (new, other) = (worker(store).await, worker(store).await);
    let deliveries = &store.deliveries;
    let hand_over = async |from, to| deliveries.hand_over(from, to).await.unwrap();
    assert_eq!(hand_over(old, new).await, [lane]);
    assert!(hand_over(old, new).await.is_empty(), "there is nothing left");
    for not_the_owner in [old, other] {
        assert!(deliveries.own(not_the_owner, &[lane]).await.unwrap().is_empty());
        assert!(next(store, not_the_owner, lane, 10).await.is_empty());
    }
    assert!(
        next(store, new, lane, 10).await.is_empty(),
        "what was taken before is held until it is over"
    );
    let delivered = succeeded(&events[0], lane, 1);
    assert_eq!(deliveries.record(old, &[delivered]).await.unwrap().len(), 1);
    assert_eq!(next(store, new, lane, 1).await, ids[1..2]);
    deliveries.resign(old).await.unwrap();
    assert!(
        deliveries.own(other, &[lane]).await.unwrap().is_empty(),
        "it went along, and is not given up with the old lease"
    );
    let gone = WorkerId::new();
    assert!(hand_over(new, gone).await.is_empty(), "to nobody");
    assert_eq!(deliveries.own(new, &[lane]).await.unwrap(), [lane]);
}

pub(crate) async fn claims_in_order_are_bounded_by_bytes(store: &Store) {
    const LARGE: usize = 256 * 1024;
    let (lane, _, me) = in_order(store, 0).await;
    let organization = store.subscriptions.by_ids(&[lane]).await.unwrap()[0].organization;
    let large: &'static str = Box::leak(format!("\"{}\"", "x".repeat(LARGE - 2)).into_boxed_str());
    let events: Vec<_> = (0..20)
        .map(|_| AcceptedEvent {
            payload: payload(large),
            ..event(organization)
        })
        .collect();
    take_in(store, lane, &events).await;
    let mut taken = Vec::new();
    while taken.len() < events.len() {
        let claimed = store.deliveries.claim_in_order(me, lane, 20).await.unwrap();
        let bytes: usize = claimed.iter().map(|one| one.payload.len()).sum();
        assert!(
            bytes > 0 && bytes <= CLAIM_IN_ORDER_BYTES + LARGE,
            "{bytes} bytes at once"
        );
        let of = |event: EventId| events.iter().find(|one| one.id == event).unwrap();
        let outcomes: Vec<_> = claimed
            .iter()
            .map(|one| succeeded(of(one.key.event), lane, 1))
            .collect();
        assert_eq!(
            store.deliveries.record(me, &outcomes).await.unwrap().len(),
            claimed.len()
        );
        taken.extend(claimed.into_iter().map(|one| one.key.event));
    }
    assert_eq!(taken, ids(&events));
}

pub(crate) async fn owners_are_told(store: &Store) {
    let (_, lane, _) = lane(store, 1, None).await;
    let mut changes = store.keeper.changes();
    let told = async {
        loop {
            if matches!(changes.recv().await, Ok(Change::Lane(told)) if told == lane) {
                return;
            }
        }
    };
    let tell = async {
        loop {
            // Until the listener listens.
            store.deliveries.tell_owners(&[lane]).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = told => {}
        () = async { tokio::time::timeout(MINUTE, tell).await.unwrap() } => {}
    }
}
