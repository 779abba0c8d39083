//! What is seen of deliveries beside each event's own.

use std::{collections::HashSet, slice::from_ref};

use shared::{
    DeliveryKey, DeliveryStatus, OrganizationId, SubscriptionId, Timestamp,
    delivery::Next,
    store::{DeliveryFilter, ListedDelivery, PageRequest, PullSource, Pulled, Store, SubscriptionPatch},
};

use super::{
    deliveries::lane,
    world::{MINUTE, event, failed, inbox, organization, push, succeeded, take_in, worker},
};

/// All that a filter shows, page by page.
async fn listed(
    store: &Store,
    organization: OrganizationId,
    filter: DeliveryFilter,
    limit: u32,
) -> Vec<ListedDelivery> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = PageRequest { after, limit };
        let page = store
            .insight
            .list_deliveries(organization, &filter, page)
            .await
            .unwrap();
        assert!(page.items.len() <= limit as usize);
        all.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => return all,
        }
    }
}

fn keys(listed: &[ListedDelivery]) -> Vec<DeliveryKey> {
    let key = |one: &ListedDelivery| DeliveryKey {
        event: one.event,
        subscription: one.subscription,
    };
    listed.iter().map(key).collect()
}

pub(crate) async fn deliveries_are_listed_newest_first(store: &Store) {
    let me = worker(store).await;
    let ours = organization(store).await.id;
    let (one, other) = (push(store, ours).await.id, push(store, ours).await.id);
    let inbox = inbox(store, ours).await;
    let mut expected = Vec::new();
    for _ in 0..4 {
        let events = [event(ours), event(ours)];
        let stored = take_in(store, me, &events, &[(one, true), (other, false), (inbox, false)]).await;
        expected.extend(stored);
    }
    lane(store, 3, None).await;
    expected.sort_unstable_by_key(|stored| std::cmp::Reverse(stored.seq));
    let mut subscriptions = [one, other, inbox];
    subscriptions.sort_unstable();
    let expected: Vec<DeliveryKey> = expected
        .iter()
        .flat_map(|stored| {
            subscriptions.map(|subscription| DeliveryKey {
                event: stored.id,
                subscription,
            })
        })
        .collect();
    for limit in [1, 5, 100] {
        let all = listed(store, ours, DeliveryFilter::default(), limit).await;
        assert_eq!(keys(&all), expected, "{limit} a page");
    }
    let all = listed(store, ours, DeliveryFilter::default(), 100).await;
    assert!(
        all.iter()
            .all(|one| one.event_type == "order.created" && one.attempts == 0)
    );
    let pulled = all.iter().find(|one| one.subscription == inbox).unwrap();
    assert_eq!(
        (pulled.status, pulled.next_attempt_at),
        (DeliveryStatus::Pending, None)
    );
}

pub(crate) async fn deliveries_are_filtered(store: &Store) {
    use DeliveryStatus as S;
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 8, Some(me)).await;
    let other = super::world::push(store, ours).await.id;
    let record = async |outcome| {
        assert_eq!(
            store
                .deliveries
                .record(me, from_ref(&outcome))
                .await
                .unwrap()
                .len(),
            1
        );
    };
    record(succeeded(&events[0], push, 1)).await;
    record(failed(&events[1], push, 1, Next::DeadLetter)).await;
    record(failed(&events[2], push, 1, Next::Retry { after: MINUTE })).await;
    store.deliveries.acknowledge(ours, &[events[3].id]).await.unwrap();
    let key = |at: usize| DeliveryKey {
        event: events[at].id,
        subscription: push,
    };
    store.replays.cancel(ours, key(4)).await.unwrap();
    store.deliveries.release(me, &[key(5)]).await.unwrap();
    // Of another subscription, and of one that is deleted.
    let elsewhere = [event(ours), event(ours)];
    take_in(store, me, &elsewhere, &[(other, false)]).await;
    let gone = super::world::push(store, ours).await.id;
    let of_gone = event(ours);
    take_in(store, me, from_ref(&of_gone), &[(gone, false)]).await;
    store.subscriptions.delete(ours, gone).await.unwrap();

    let show = async |subscription: Option<SubscriptionId>, status| {
        let filter = DeliveryFilter {
            subscription,
            status: Some(status),
            since: None,
        };
        let all = listed(store, ours, filter, 2).await;
        assert!(all.iter().all(|one| one.status == status));
        let events: HashSet<_> = keys(&all).into_iter().map(|key| key.event).collect();
        assert_eq!(events.len(), all.len());
        events
    };
    let these = |at: &[usize]| -> HashSet<_> { at.iter().map(|at| events[*at].id).collect() };
    for (status, at) in [
        (S::Delivered, &[0][..]),
        (S::DeadLetter, &[1]),
        (S::Retrying, &[2]),
        (S::Acknowledged, &[3]),
        (S::Cancelled, &[4]),
        (S::Pending, &[5]),
        (S::InFlight, &[6, 7]),
        (S::Parked, &[]),
        (S::Expired, &[]),
    ] {
        assert_eq!(show(Some(push), status).await, these(at), "{status:?}");
    }
    assert_eq!(show(None, S::Pending).await.len(), 3);
    assert_eq!(show(Some(other), S::Pending).await.len(), 2);
    assert_eq!(show(Some(gone), S::Cancelled).await, HashSet::from([of_gone.id]));
    assert!(show(Some(gone), S::Pending).await.is_empty());
    let all_of = async |subscription| {
        let filter = DeliveryFilter {
            subscription: Some(subscription),
            ..DeliveryFilter::default()
        };
        listed(store, ours, filter, 3).await
    };
    assert_eq!(all_of(push).await.len(), 8);
    assert_eq!(all_of(other).await.len(), 2);
    assert!(all_of(SubscriptionId::new()).await.is_empty());

    let disabled = SubscriptionPatch {
        enabled: Some(false),
        ..SubscriptionPatch::default()
    };
    store.subscriptions.patch(ours, push, 1, disabled).await.unwrap();
    assert_eq!(show(Some(push), S::Parked).await, these(&[2, 5]));
    let strangers = organization(store).await.id;
    assert!(
        listed(store, strangers, DeliveryFilter::default(), 10)
            .await
            .is_empty()
    );
    let theirs = DeliveryFilter {
        subscription: Some(push),
        ..DeliveryFilter::default()
    };
    assert!(listed(store, strangers, theirs, 10).await.is_empty());
}

pub(crate) async fn what_is_pulled_is_in_flight_while_it_is_leased(store: &Store) {
    let me = worker(store).await;
    let ours = organization(store).await.id;
    let subscription = inbox(store, ours).await;
    let events = [event(ours), event(ours)];
    take_in(store, me, &events, &[(subscription, false)]).await;
    let source = PullSource {
        organization: ours,
        subscription,
    };
    let pulled = store.pulls.pull(source, 1, MINUTE).await.unwrap();
    let Pulled::Events(pulled) = pulled else {
        panic!("there is something to pull: {pulled:?}")
    };
    for status in [DeliveryStatus::InFlight, DeliveryStatus::Pending] {
        let filter = DeliveryFilter {
            status: Some(status),
            ..DeliveryFilter::default()
        };
        let found = listed(store, ours, filter, 10).await;
        assert_eq!(found.len(), 1);
        let is_leased = found[0].event == pulled[0].id;
        assert_eq!(is_leased, status == DeliveryStatus::InFlight);
        assert_eq!(
            (found[0].attempts, found[0].next_attempt_at),
            (u32::from(is_leased), None)
        );
    }
}

pub(crate) async fn deliveries_since(store: &Store) {
    let me = worker(store).await;
    let ours = organization(store).await.id;
    let push = push(store, ours).await.id;
    let now = Timestamp::now();
    let at = |minutes: u32| shared::AcceptedEvent {
        received_at: now.minus(MINUTE * minutes),
        ..event(ours)
    };
    // The second was taken in late.
    let events = [at(10), at(30), at(5)];
    for event in &events {
        take_in(store, me, from_ref(event), &[(push, false)]).await;
    }
    for status in [None, Some(DeliveryStatus::Pending)] {
        let filter = DeliveryFilter {
            since: Some(now.minus(MINUTE * 10)),
            status,
            subscription: None,
        };
        let found: Vec<_> = listed(store, ours, filter, 10).await;
        assert_eq!(
            found.iter().map(|one| one.event).collect::<Vec<_>>(),
            [events[2].id, events[0].id],
            "{status:?}"
        );
        assert_eq!(found[1].received_at.millis(), events[0].received_at.millis());
    }
}

pub(crate) async fn a_rare_status_takes_pages(store: &Store) {
    let me = worker(store).await;
    let ours = organization(store).await.id;
    let push = push(store, ours).await.id;
    // More than a page looks at, and the oldest is the one.
    let events: Vec<_> = (0..2_100).map(|_| event(ours)).collect();
    let mut stored = take_in(store, me, &events, &[(push, true)]).await;
    stored.sort_unstable_by_key(|stored| stored.seq);
    let first = events.iter().find(|event| event.id == stored[0].id).unwrap();
    store
        .deliveries
        .record(me, &[succeeded(first, push, 1)])
        .await
        .unwrap();
    let filter = DeliveryFilter {
        status: Some(DeliveryStatus::Delivered),
        ..DeliveryFilter::default()
    };
    let page = |after| PageRequest { after, limit: 10 };
    let looked = store
        .insight
        .list_deliveries(ours, &filter, page(None))
        .await
        .unwrap();
    assert!(looked.items.is_empty(), "none among those that were looked at");
    let next = looked.next.expect("there is more");
    let looked = store
        .insight
        .list_deliveries(ours, &filter, page(Some(next)))
        .await
        .unwrap();
    assert_eq!((looked.items.len(), looked.next), (1, None));
    assert_eq!(looked.items[0].event, first.id);
}
