use std::{collections::HashSet, slice::from_ref, time::Duration};

use shared::{
    AcceptedEvent, DeliveryKey, DeliveryStatus, EventId, OrganizationId, SubscriptionId, WorkerId,
    delivery::Next,
    store::{DeliveryRecord, Lease, PatchOutcome, Store, SubscriptionPatch},
};
use tokio::task::JoinSet;

use super::world::{
    MINUTE, event, failed, get, inbox, key, organization, payload, push, succeeded, take_in, worker,
};

const LATER: Next = Next::Retry { after: MINUTE };

/// An organization with a subscription, and some events for it, held by a worker or not.
pub(super) async fn lane(
    store: &Store,
    events: usize,
    held: Option<WorkerId>,
) -> (OrganizationId, SubscriptionId, Vec<AcceptedEvent>) {
    let organization = organization(store).await.id;
    let push = push(store, organization).await.id;
    let events: Vec<_> = (0..events).map(|_| event(organization)).collect();
    let worker = held.unwrap_or_default();
    take_in(store, worker, &events, &[(push, held.is_some())]).await;
    (organization, push, events)
}

pub(super) async fn delivery(store: &Store, event: &AcceptedEvent) -> DeliveryRecord {
    get(store, event.organization, event.id)
        .await
        .deliveries
        .remove(0)
}

pub(super) async fn claim(store: &Store, worker: WorkerId, lane: SubscriptionId, most: u32) -> Vec<EventId> {
    let claimed = store.deliveries.claim(worker, &[(lane, most)]).await.unwrap();
    claimed.iter().map(|one| one.key.event).collect()
}

pub(crate) async fn held_from_intake(store: &Store) {
    let (me, other) = (worker(store).await, worker(store).await);
    let (_, push, events) = lane(store, 1, Some(me)).await;
    assert_eq!(delivery(store, &events[0]).await.status, DeliveryStatus::InFlight);
    assert!(claim(store, other, push, 10).await.is_empty());
    assert!(
        claim(store, me, push, 10).await.is_empty(),
        "not even by who holds it"
    );
    assert!(
        store
            .deliveries
            .lanes_due(WorkerId::new(), None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    let (_, push, events) = lane(store, 1, None).await;
    assert_eq!(delivery(store, &events[0]).await.status, DeliveryStatus::Pending);
    assert_eq!(
        store
            .deliveries
            .lanes_due(WorkerId::new(), None, 10)
            .await
            .unwrap(),
        [push]
    );
    assert_eq!(claim(store, other, push, 10).await, [events[0].id]);
    assert_eq!(delivery(store, &events[0]).await.status, DeliveryStatus::InFlight);
}

pub(crate) async fn leases_run_out(store: &Store) {
    let (me, other) = (worker(store).await, worker(store).await);
    let (_, push, events) = lane(store, 2, Some(me)).await;
    assert_eq!(store.deliveries.renew(me, MINUTE).await.unwrap(), Lease::Held);
    assert_eq!(
        store.deliveries.renew(me, Duration::ZERO).await.unwrap(),
        Lease::Held
    );
    assert_eq!(delivery(store, &events[0]).await.status, DeliveryStatus::Pending);
    assert_eq!(
        store
            .deliveries
            .lanes_due(WorkerId::new(), None, 10)
            .await
            .unwrap(),
        [push]
    );
    assert_eq!(claim(store, other, push, 1).await, [events[0].id]);
    let applied = store
        .deliveries
        .record(me, &[succeeded(&events[1], push, 1)])
        .await
        .unwrap();
    assert!(applied.is_empty(), "its lease has run out");
    let keys: Vec<_> = events.iter().map(|event| key(event, push)).collect();
    assert!(store.deliveries.still_held(me, &keys).await.unwrap().is_empty());
    assert!(claim(store, me, push, 10).await.is_empty());
    assert_eq!(claim(store, other, push, 10).await, [events[1].id]);
}

pub(crate) async fn an_ended_lease_does_not_come_back(store: &Store) {
    let me = WorkerId::new();
    store.deliveries.enlist(me, Duration::ZERO).await.unwrap();
    assert_eq!(store.deliveries.renew(me, MINUTE).await.unwrap(), Lease::Lost);
    let (_, push, _) = lane(store, 1, Some(me)).await;
    store.deliveries.enlist(me, MINUTE).await.unwrap();
    assert_eq!(
        store.deliveries.renew(me, MINUTE).await.unwrap(),
        Lease::Lost,
        "ids are not used again"
    );
    assert_eq!(
        store.deliveries.renew(WorkerId::new(), MINUTE).await.unwrap(),
        Lease::Lost
    );
    assert_eq!(claim(store, worker(store).await, push, 10).await.len(), 1);
}

pub(crate) async fn resigning_frees(store: &Store) {
    let me = worker(store).await;
    let (_, push, events) = lane(store, 1, Some(me)).await;
    store.deliveries.resign(me).await.unwrap();
    store.deliveries.resign(me).await.unwrap();
    assert_eq!(store.deliveries.renew(me, MINUTE).await.unwrap(), Lease::Lost);
    assert_eq!(claim(store, worker(store).await, push, 10).await, [events[0].id]);
}

pub(crate) async fn claimed_oldest_first(store: &Store) {
    let me = worker(store).await;
    let organization = organization(store).await.id;
    let (one, two) = (
        push(store, organization).await.id,
        push(store, organization).await.id,
    );
    let mut events = Vec::new();
    for _ in 0..5 {
        let event = event(organization);
        let stored = take_in(store, me, from_ref(&event), &[(one, false), (two, false)]).await;
        events.push((event, stored[0].seq));
    }
    let claimed = store.deliveries.claim(me, &[(one, 2), (two, 3)]).await.unwrap();
    let of = |lane| {
        claimed
            .iter()
            .filter(|one| one.key.subscription == lane)
            .collect::<Vec<_>>()
    };
    for (lane, most) in [(one, 2), (two, 3)] {
        let taken = of(lane);
        assert_eq!(taken.len(), most);
        for (taken, (event, seq)) in taken.iter().zip(&events) {
            assert_eq!((taken.key.event, taken.seq, taken.attempts), (event.id, *seq, 0));
            assert_eq!(
                (taken.organization, &*taken.event_type),
                (organization, event.event_type.as_str())
            );
            assert_eq!(
                (taken.received_at, &taken.payload[..]),
                (event.received_at, event.payload.as_bytes())
            );
        }
    }
    assert_eq!(
        claim(store, me, one, 10).await,
        [events[2].0.id, events[3].0.id, events[4].0.id]
    );
    assert!(store.deliveries.claim(me, &[]).await.unwrap().is_empty());
    assert!(
        claim(store, WorkerId::new(), two, 10).await.is_empty(),
        "a worker without a lease"
    );
    assert_eq!(claim(store, me, two, 10).await.len(), 2);
}

/// What is claimed comes into memory at once: of large payloads there are only so many in a claim.
pub(crate) async fn claims_are_bounded_by_bytes(store: &Store) {
    const LARGE: usize = 256 * 1024;
    let me = worker(store).await;
    let organization = organization(store).await.id;
    let lanes = [
        push(store, organization).await.id,
        push(store, organization).await.id,
    ];
    let large: &'static str = Box::leak(format!("\"{}\"", "x".repeat(LARGE - 2)).into_boxed_str());
    let events: Vec<_> = (0..24)
        .map(|_| AcceptedEvent {
            payload: payload(large),
            ..event(organization)
        })
        .collect();
    for some in events.chunks(8) {
        take_in(store, me, some, &lanes.map(|lane| (lane, false))).await;
    }
    let mut claimed = Vec::new();
    loop {
        let some = store
            .deliveries
            .claim(me, &lanes.map(|lane| (lane, 24)))
            .await
            .unwrap();
        if some.is_empty() {
            break;
        }
        let bytes: usize = some.iter().map(|one| one.payload.len()).sum();
        assert!(bytes <= 8 * 1024 * 1024 + LARGE, "{bytes} bytes at once");
        claimed.extend(some.into_iter().map(|one| one.key));
    }
    claimed.sort_unstable();
    let mut all: Vec<_> = events
        .iter()
        .flat_map(|event| lanes.map(|lane| key(event, lane)))
        .collect();
    all.sort_unstable();
    assert_eq!(claimed, all, "each once, and in the end all of them");
}

pub(crate) async fn only_served_lanes_are_claimed(store: &Store) {
    let me = worker(store).await;
    let organization = organization(store).await.id;
    let (disabled, deleted) = (
        push(store, organization).await.id,
        push(store, organization).await.id,
    );
    let (waiting, inbox) = (
        push(store, organization).await.id,
        inbox(store, organization).await,
    );
    let posted = event(organization);
    let lanes = [
        (disabled, false),
        (deleted, false),
        (inbox, false),
        (waiting, true),
    ];
    take_in(store, me, from_ref(&posted), &lanes).await;
    store
        .subscriptions
        .disable(organization, disabled, 1, "gone", true)
        .await
        .unwrap();
    store.subscriptions.delete(organization, deleted).await.unwrap();
    let applied = store
        .deliveries
        .record(me, &[failed(&posted, waiting, 1, LATER)])
        .await
        .unwrap();
    assert_eq!(applied, [key(&posted, waiting)]);
    assert!(
        store
            .deliveries
            .lanes_due(WorkerId::new(), None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    for lane in [disabled, deleted, inbox, waiting] {
        assert!(claim(store, me, lane, 10).await.is_empty());
    }
    let record = get(store, organization, posted.id).await;
    let status = |id| {
        record
            .deliveries
            .iter()
            .find(|one| one.subscription == id)
            .unwrap()
            .status
    };
    assert_eq!(status(disabled), DeliveryStatus::Parked);
    assert_eq!(status(deleted), DeliveryStatus::Cancelled);
    assert_eq!(status(inbox), DeliveryStatus::Pending);
    assert_eq!(status(waiting), DeliveryStatus::Retrying);
    assert!(
        record
            .deliveries
            .is_sorted_by_key(|delivery| delivery.subscription)
    );

    let on = SubscriptionPatch {
        enabled: Some(true),
        ..Default::default()
    };
    store
        .subscriptions
        .patch(organization, disabled, 2, on)
        .await
        .unwrap();
    assert_eq!(claim(store, me, disabled, 10).await, [posted.id]);
}

/// What was parked goes in order of `seq` once its subscription is enabled, whatever it was due by; what comes to be due later
/// follows by when it is due.
pub(crate) async fn what_was_parked_goes_in_order(store: &Store) {
    const SOON: Next = Next::Retry {
        after: Duration::from_millis(1),
    };
    let me = worker(store).await;
    let (organization, push, mut events) = lane(store, 6, Some(me)).await;
    // Tried in another order than they came in: the first is due last. One has long to wait.
    for event in events[..5].iter().rev() {
        let outcome = failed(event, push, 1, SOON);
        assert_eq!(store.deliveries.record(me, &[outcome]).await.unwrap().len(), 1);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    store
        .deliveries
        .record(me, &[failed(&events[5], push, 1, LATER)])
        .await
        .unwrap();
    let enable = async |version, enabled| {
        let patch = SubscriptionPatch {
            enabled: Some(enabled),
            ..Default::default()
        };
        let patched = store
            .subscriptions
            .patch(organization, push, version, patch)
            .await;
        assert!(matches!(patched, Ok(PatchOutcome::Changed(_))));
    };
    enable(1, false).await;
    let parked = event(organization);
    take_in(store, me, from_ref(&parked), &[(push, false)]).await;
    events.push(parked);
    enable(2, true).await;
    tokio::time::sleep(Duration::from_millis(3)).await;
    let later = event(organization);
    take_in(store, me, from_ref(&later), &[(push, false)]).await;
    events.push(later);

    let mut ids = Vec::new();
    for event in &events {
        ids.push((get(store, organization, event.id).await.seq, event.id));
    }
    let postponed = ids.remove(5);
    ids.sort_unstable();
    let ids: Vec<EventId> = ids.into_iter().map(|(_, id)| id).collect();
    assert_eq!(claim(store, me, push, 2).await, ids[..2]);
    // What fails now is due after what was parked, though its seq is lower; what is given back has its place again.
    let at = |id: EventId| events.iter().find(|event| event.id == id).unwrap();
    let outcome = failed(at(ids[0]), push, 2, SOON);
    assert_eq!(store.deliveries.record(me, &[outcome]).await.unwrap().len(), 1);
    let second = [key(at(ids[1]), push)];
    store.deliveries.release(me, &second).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut rest = ids[1..].to_vec();
    rest.push(ids[0]);
    assert_eq!(claim(store, me, push, 4).await, rest[..4]);
    assert_eq!(claim(store, me, push, 10).await, rest[4..]);
    assert!(!rest.contains(&postponed.1), "it is not due yet");

    // To be enabled while it is enabled changes nothing.
    let keys: Vec<DeliveryKey> = rest.iter().map(|id| key(at(*id), push)).collect();
    store.deliveries.release(me, &keys).await.unwrap();
    enable(3, true).await;
    assert_eq!(claim(store, me, push, 10).await, rest);
}

pub(crate) async fn claims_never_overlap(store: &Store) {
    let (_, push, events) = lane(store, 400, None).await;
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let store = store.clone();
        tasks.spawn(async move {
            let me = worker(&store).await;
            let mut mine = Vec::new();
            // Others may hold, for a moment, the rows that are next: empty hands twenty times over are the end.
            let mut empty = 0;
            while empty < 20 {
                let claimed = claim(&store, me, push, 17).await;
                empty = if claimed.is_empty() { empty + 1 } else { 0 };
                mine.extend(claimed);
            }
            mine
        });
    }
    let claimed: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), events.len());
    assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), events.len());
}

/// A worker that has just come is not among the living that a claim sees which began before. Some claim from many lanes, others,
/// meanwhile, from those that come last.
pub(crate) async fn claims_of_workers_that_just_came_never_overlap(store: &Store) {
    let mut lanes = Vec::new();
    for _ in 0..30 {
        lanes.push(lane(store, 100, None).await.1);
    }
    let wanted: Vec<_> = lanes.iter().map(|lane| (*lane, 40)).collect();
    let mut tasks = JoinSet::new();
    for at in 0..6 {
        let (store, few) = (store.clone(), [(lanes[29 - at], 3)]);
        let wanted = if at < 2 { wanted.clone() } else { few.to_vec() };
        tasks.spawn(async move {
            let mut mine = Vec::new();
            let mut empty = 0;
            while empty < 20 {
                let claimed = store
                    .deliveries
                    .claim(worker(&store).await, &wanted)
                    .await
                    .unwrap();
                empty = if claimed.is_empty() { empty + 1 } else { 0 };
                mine.extend(claimed.into_iter().map(|one| one.key));
            }
            mine
        });
    }
    let claimed: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let twice = claimed.len() - claimed.iter().collect::<HashSet<_>>().len();
    assert_eq!(twice, 0, "deliveries that two claimed");
    assert_eq!(claimed.len(), 3_000);
}

pub(crate) async fn lanes_go_round(store: &Store) {
    let mut lanes = Vec::new();
    for _ in 0..5 {
        lanes.push(lane(store, 2, None).await.1);
    }
    lanes.sort_unstable();
    let due = async |after, limit| {
        store
            .deliveries
            .lanes_due(WorkerId::new(), after, limit)
            .await
            .unwrap()
    };
    assert_eq!(due(None, 10).await, lanes);
    assert_eq!(due(None, 2).await, lanes[..2]);
    assert_eq!(due(Some(lanes[1]), 2).await, lanes[2..4]);
    assert_eq!(due(Some(lanes[3]), 3).await, [lanes[4], lanes[0], lanes[1]]);
    assert_eq!(due(Some(lanes[4]), 10).await, lanes);
    assert_eq!(
        due(Some(lanes[2]), 10).await,
        [lanes[3], lanes[4], lanes[0], lanes[1], lanes[2]]
    );
}

pub(crate) async fn released_and_still_held(store: &Store) {
    let (me, other) = (worker(store).await, worker(store).await);
    let (_, push, events) = lane(store, 3, Some(me)).await;
    let keys: Vec<DeliveryKey> = events.iter().map(|event| key(event, push)).collect();
    let unknown = DeliveryKey {
        event: EventId::new(),
        subscription: push,
    };
    let asked = [keys[2], keys[0], unknown, keys[1]];
    let held = |worker| {
        let (store, asked) = (store.clone(), asked);
        async move {
            let mut held = store.deliveries.still_held(worker, &asked).await.unwrap();
            held.sort_unstable();
            held
        }
    };
    assert_eq!(held(me).await, keys);
    assert!(held(other).await.is_empty());
    store.deliveries.release(other, &keys).await.unwrap();
    assert_eq!(held(me).await, keys, "another's to give back");
    store.deliveries.release(me, &keys[..2]).await.unwrap();
    assert_eq!(held(me).await, keys[2..]);
    assert_eq!(claim(store, other, push, 10).await, [events[0].id, events[1].id]);
    store
        .deliveries
        .acknowledge(events[2].organization, &[events[2].id])
        .await
        .unwrap();
    assert!(held(me).await.is_empty());
    store.deliveries.release(me, &[]).await.unwrap();
    assert!(store.deliveries.still_held(me, &[]).await.unwrap().is_empty());
}

pub(crate) async fn backlog_is_counted(store: &Store) {
    let me = worker(store).await;
    let empty = store.deliveries.backlog().await.unwrap();
    assert_eq!(
        (empty.pending, empty.retrying, empty.oldest_due),
        (0, 0, Duration::ZERO)
    );
    let (ours, push, events) = lane(store, 5, Some(me)).await;
    take_in(store, me, &[event(ours)], &[(inbox(store, ours).await, false)]).await;
    let outcomes = [
        succeeded(&events[0], push, 1),
        failed(&events[1], push, 1, LATER),
        failed(&events[2], push, 1, Next::DeadLetter),
    ];
    store.deliveries.record(me, &outcomes).await.unwrap();
    let backlog = store.deliveries.backlog().await.unwrap();
    assert_eq!((backlog.pending, backlog.retrying), (2, 1));
    assert!(backlog.oldest_due < MINUTE);
}
