use std::{collections::HashSet, slice::from_ref, time::Duration};

use shared::{
    DeliveryStatus, EventId, EventStatus, FailureKind, Timestamp,
    delivery::Next,
    store::{Acknowledged, Change, EventFilter, Order, PageRequest, Store},
};
use tokio::{sync::broadcast, task::JoinSet, time::timeout};

use super::{
    deliveries::{claim, delivery, lane},
    world::{
        MINUTE, event, failed, get, inbox, key, keyed, organization, push, succeeded, take_in, try_take_in,
        worker,
    },
};

const LATER: Next = Next::Retry { after: MINUTE };
const AT_ONCE: Next = Next::Retry {
    after: Duration::ZERO,
};

async fn closed(changes: &mut broadcast::Receiver<Change>) -> EventId {
    loop {
        let change = timeout(MINUTE, changes.recv())
            .await
            .expect("word of it")
            .expect("the store lives");
        if let Change::Closed(event) = change {
            return event;
        }
    }
}

pub(crate) async fn success_is_recorded(store: &Store) {
    let me = worker(store).await;
    let (_, push, events) = lane(store, 1, Some(me)).await;
    let applied = store
        .deliveries
        .record(me, &[succeeded(&events[0], push, 1)])
        .await
        .unwrap();
    assert_eq!(applied, [key(&events[0], push)]);
    let record = delivery(store, &events[0]).await;
    assert_eq!(
        (record.status, record.attempts, record.next_attempt_at),
        (DeliveryStatus::Delivered, 1, None)
    );
    let [attempt] = record.log.as_slice() else {
        panic!("one attempt: {record:?}")
    };
    assert_eq!(
        (attempt.number, attempt.started_at.millis()),
        (1, 1_700_000_000_123)
    );
    assert_eq!(
        (attempt.duration, attempt.status_code),
        (Duration::from_millis(42), Some(204))
    );
    assert_eq!((attempt.failure, &attempt.detail), (None, &None));
    assert!(claim(store, me, push, 10).await.is_empty());
}

pub(crate) async fn failures_are_logged(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 1, Some(me)).await;
    for number in 1..=3 {
        let outcome = failed(&events[0], push, number, AT_ONCE);
        assert_eq!(store.deliveries.record(me, &[outcome]).await.unwrap().len(), 1);
        let record = delivery(store, &events[0]).await;
        assert_eq!(
            (record.status, record.attempts),
            (DeliveryStatus::Retrying, number)
        );
        assert!(record.next_attempt_at.is_some());
        let claimed = store.deliveries.claim(me, &[(push, 1)]).await.unwrap();
        assert_eq!(
            (claimed[0].key, claimed[0].attempts),
            (key(&events[0], push), number)
        );
    }
    let outcome = failed(&events[0], push, 4, LATER);
    assert_eq!(store.deliveries.record(me, &[outcome]).await.unwrap().len(), 1);
    let record = delivery(store, &events[0]).await;
    let wait = record.next_attempt_at.unwrap().since(Timestamp::now());
    assert!(
        wait > Duration::from_secs(30) && wait <= MINUTE + Duration::from_secs(30),
        "{wait:?}"
    );
    assert!(claim(store, me, push, 1).await.is_empty(), "not yet due");
    let numbers: Vec<_> = record.log.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    let last = &record.log[3];
    assert_eq!(
        (last.failure, last.status_code),
        (Some(FailureKind::Status), Some(500))
    );
    assert_eq!(last.detail.as_deref(), Some("attempt 4 was refused: ü"));

    let page = shared::store::PageRequest {
        after: None,
        limit: 1,
    };
    let order = shared::store::Order::NewestFirst;
    let listed = store
        .events
        .list(ours, &EventFilter::default(), order, page, 0)
        .await
        .unwrap();
    let log = &listed.items[0].deliveries[0].log;
    assert_eq!(
        log.iter().map(|attempt| attempt.number).collect::<Vec<_>>(),
        [4],
        "a list has the last"
    );
}

pub(crate) async fn dead_letters(store: &Store) {
    let me = worker(store).await;
    let (_, push, events) = lane(store, 2, Some(me)).await;
    let outcomes = [
        failed(&events[0], push, 1, AT_ONCE),
        failed(&events[1], push, 1, Next::DeadLetter),
    ];
    assert_eq!(store.deliveries.record(me, &outcomes).await.unwrap().len(), 2);
    assert_eq!(
        claim(store, me, push, 10).await,
        [events[0].id],
        "the other is closed"
    );
    assert_eq!(
        delivery(store, &events[1]).await.status,
        DeliveryStatus::DeadLetter
    );
    assert_eq!(
        store
            .deliveries
            .record(me, &[succeeded(&events[0], push, 2)])
            .await
            .unwrap()
            .len(),
        1
    );
    let record = delivery(store, &events[0]).await;
    assert_eq!((record.status, record.attempts), (DeliveryStatus::Delivered, 2));
    let failures: Vec<_> = record
        .log
        .iter()
        .map(|attempt| (attempt.number, attempt.failure))
        .collect();
    assert_eq!(failures, [(1, Some(FailureKind::Status)), (2, None)]);
}

pub(crate) async fn outcomes_apply_once(store: &Store) {
    let me = worker(store).await;
    let (_, push, events) = lane(store, 2, Some(me)).await;
    let wrong = [succeeded(&events[0], push, 2), failed(&events[0], push, 0, LATER)];
    assert!(
        store.deliveries.record(me, &wrong).await.unwrap().is_empty(),
        "not the next in number"
    );
    let outcome = [failed(&events[0], push, 1, LATER)];
    assert_eq!(store.deliveries.record(me, &outcome).await.unwrap().len(), 1);
    assert!(
        store.deliveries.record(me, &outcome).await.unwrap().is_empty(),
        "it was written before"
    );
    let next = [succeeded(&events[0], push, 2)];
    assert!(
        store.deliveries.record(me, &next).await.unwrap().is_empty(),
        "it ended the hold"
    );
    assert_eq!(delivery(store, &events[0]).await.log.len(), 1);

    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (store, outcome) = (store.clone(), succeeded(&events[1], push, 1));
        tasks.spawn(async move { store.deliveries.record(me, &[outcome]).await.unwrap().len() });
    }
    assert_eq!(tasks.join_all().await.iter().sum::<usize>(), 1);
    assert!(store.deliveries.record(me, &[]).await.unwrap().is_empty());
}

pub(crate) async fn outcomes_of_the_stalled_do_not_apply(store: &Store) {
    let (stalled, other) = (worker(store).await, worker(store).await);
    let (_, push, events) = lane(store, 1, Some(stalled)).await;
    assert!(
        store
            .deliveries
            .record(other, &[succeeded(&events[0], push, 1)])
            .await
            .unwrap()
            .is_empty()
    );
    store.deliveries.renew(stalled, Duration::ZERO).await.unwrap();
    assert_eq!(claim(store, other, push, 1).await, [events[0].id]);
    assert!(
        store
            .deliveries
            .record(stalled, &[failed(&events[0], push, 1, LATER)])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        store
            .deliveries
            .record(other, &[succeeded(&events[0], push, 1)])
            .await
            .unwrap()
            .len(),
        1
    );
    let record = delivery(store, &events[0]).await;
    assert_eq!((record.status, record.log.len()), (DeliveryStatus::Delivered, 1));
}

pub(crate) async fn large_mixed_batches(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 999, Some(me)).await;
    let mut outcomes: Vec<_> = events
        .iter()
        .enumerate()
        .map(|(n, event)| match n % 3 {
            0 => succeeded(event, push, 1),
            1 => failed(event, push, 1, LATER),
            _ => failed(event, push, 1, Next::DeadLetter),
        })
        .collect();
    outcomes.reverse();
    let applied = store.deliveries.record(me, &outcomes).await.unwrap();
    assert_eq!(applied.into_iter().collect::<HashSet<_>>().len(), 999);
    for (n, expected) in [
        (0, DeliveryStatus::Delivered),
        (1, DeliveryStatus::Retrying),
        (2, DeliveryStatus::DeadLetter),
    ] {
        let record = get(store, ours, events[n].id).await;
        assert_eq!(
            (record.deliveries[0].status, record.deliveries[0].log.len()),
            (expected, 1)
        );
    }
    assert!(store.deliveries.record(me, &outcomes).await.unwrap().is_empty());
}

pub(crate) async fn acknowledged(store: &Store) {
    let me = worker(store).await;
    let ours = organization(store).await.id;
    let theirs = organization(store).await.id;
    let (push, inbox) = (push(store, ours).await.id, inbox(store, ours).await);
    let (original, again) = (keyed(ours, "k"), keyed(ours, "k"));
    let (free, unknown) = (event(ours), EventId::new());
    try_take_in(
        store,
        me,
        &[original.clone(), again.clone()],
        &[],
        &[(push, true), (inbox, false)],
    )
    .await
    .unwrap();
    take_in(store, me, from_ref(&free), &[(inbox, false)]).await;
    let mut changes = store.keeper.changes();
    while timeout(MINUTE, changes.recv())
        .await
        .expect("the start")
        .expect("the store lives")
        != Change::Everything
    {}

    let none = store
        .deliveries
        .acknowledge(theirs, &[original.id, free.id])
        .await
        .unwrap();
    assert_eq!(none, [Acknowledged::NotFound; 2]);
    let asked = [free.id, unknown, again.id, original.id];
    let done = store.deliveries.acknowledge(ours, &asked).await.unwrap();
    let events: Vec<_> = done
        .iter()
        .map(|one| match one {
            Acknowledged::Done { event, at } => {
                assert!(Timestamp::now().since(*at) < MINUTE);
                Some(*event)
            }
            Acknowledged::NotFound => None,
        })
        .collect();
    assert_eq!(
        events,
        [Some(free.id), None, Some(original.id), Some(original.id)]
    );
    // Nobody held the free one: the first word is of the other.
    assert_eq!(closed(&mut changes).await, original.id);
    for event in [&original, &free] {
        for delivery in get(store, ours, event.id).await.deliveries {
            assert_eq!(
                (delivery.status, delivery.next_attempt_at),
                (DeliveryStatus::Acknowledged, None)
            );
        }
    }
    let repeated = store.deliveries.acknowledge(ours, &[original.id]).await.unwrap();
    assert!(matches!(repeated[..], [Acknowledged::Done { event, .. }] if event == original.id));
    assert!(store.deliveries.acknowledge(ours, &[]).await.unwrap().is_empty());
}

pub(crate) async fn acknowledged_beats_outcome(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 2, Some(me)).await;
    assert_eq!(
        store
            .deliveries
            .record(me, &[succeeded(&events[0], push, 1)])
            .await
            .unwrap()
            .len(),
        1
    );
    let ids = [events[0].id, events[1].id];
    store.deliveries.acknowledge(ours, &ids).await.unwrap();
    assert!(
        store
            .deliveries
            .record(me, &[failed(&events[1], push, 1, AT_ONCE)])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        delivery(store, &events[0]).await.status,
        DeliveryStatus::Delivered,
        "closed before"
    );
    let acknowledged = delivery(store, &events[1]).await;
    assert_eq!(
        (acknowledged.status, acknowledged.log.len()),
        (DeliveryStatus::Acknowledged, 0)
    );
    assert!(claim(store, me, push, 10).await.is_empty());
}

pub(crate) async fn acknowledging_leaves_what_was_cancelled(store: &Store) {
    let ours = organization(store).await.id;
    let (kept, gone) = (push(store, ours).await.id, push(store, ours).await.id);
    let me = worker(store).await;
    let posted = [event(ours), event(ours)];
    take_in(store, me, &posted[..1], &[(kept, false), (gone, true)]).await;
    take_in(store, me, &posted[1..], &[(gone, false)]).await;
    store.subscriptions.delete(ours, gone).await.unwrap();
    for _ in 0..2 {
        let ids = posted.each_ref().map(|event| event.id);
        for outcome in store.deliveries.acknowledge(ours, &ids).await.unwrap() {
            assert!(matches!(outcome, Acknowledged::Done { .. }), "{outcome:?}");
        }
        let record = get(store, ours, posted[0].id).await;
        for delivery in &record.deliveries {
            let expected = if delivery.subscription == gone {
                DeliveryStatus::Cancelled
            } else {
                DeliveryStatus::Acknowledged
            };
            assert_eq!(delivery.status, expected);
        }
        assert_eq!(record.status(), EventStatus::Acknowledged);
        assert_eq!(
            get(store, ours, posted[1].id).await.status(),
            EventStatus::Cancelled
        );
        // Written down or not, it is the same.
        store.keeper.cancel_deleted().await.unwrap();
    }
}

pub(crate) async fn only_open_pushes_have_a_next_attempt(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, gone) = (inbox(store, ours).await, push(store, ours).await.id);
    let (waiting, retrying) = (push(store, ours).await.id, push(store, ours).await.id);
    let (dead, parked) = (push(store, ours).await.id, push(store, ours).await.id);
    let me = worker(store).await;
    let posted = event(ours);
    let lanes = [inbox, gone, waiting, retrying, dead, parked].map(|lane| (lane, true));
    take_in(store, me, from_ref(&posted), &lanes).await;
    let outcomes = [
        failed(&posted, retrying, 1, Next::Retry { after: MINUTE }),
        failed(&posted, dead, 1, Next::DeadLetter),
    ];
    assert_eq!(store.deliveries.record(me, &outcomes).await.unwrap().len(), 2);
    store.subscriptions.delete(ours, gone).await.unwrap();
    let disabled = store.subscriptions.disable(ours, parked, 1, "gone", true).await;
    assert!(disabled.unwrap());

    let shown = get(store, ours, posted.id).await;
    let page = PageRequest {
        after: None,
        limit: 10,
    };
    let listed = store
        .events
        .list(ours, &EventFilter::default(), Order::OldestFirst, page, 0)
        .await
        .unwrap();
    let mut expected = vec![waiting, retrying, parked];
    expected.sort_unstable();
    for record in [&shown, &listed.items[0]] {
        let due = record
            .deliveries
            .iter()
            .filter(|delivery| delivery.next_attempt_at.is_some());
        assert_eq!(
            due.map(|delivery| delivery.subscription).collect::<Vec<_>>(),
            expected
        );
    }
}
