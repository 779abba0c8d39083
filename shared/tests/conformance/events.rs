use std::{slice::from_ref, time::Duration};

use shared::{
    AcceptedEvent, DeliveryState, EventId, EventStatus, EventType, OrganizationId, Payload, ReplayId,
    Subscription, SubscriptionId, Timestamp,
    delivery::Next,
    store::{
        ActedOn, EventFilter, EventQuery, EventRecord, LeaseChange, NewReplay, Order, PageRequest,
        PullSource, Pulled, ReplayStep, SetAside, Store,
    },
    subscription::Target,
};
use tokio::task::JoinSet;

use super::world::{
    MINUTE, after, event, failed, first, get, inbox, key, new_push, organization, push, succeeded, take_in,
    worker,
};

async fn ids(
    store: &Store,
    organization: OrganizationId,
    filter: &EventFilter,
    order: Order,
) -> Vec<EventId> {
    let page = store
        .events
        .list(organization, filter, order, first(100), 0)
        .await
        .unwrap();
    page.items.iter().map(|event| event.id).collect()
}

fn of_status(statuses: &[EventStatus]) -> EventFilter {
    EventFilter {
        statuses: statuses.to_vec(),
        ..EventFilter::default()
    }
}

pub(crate) async fn another_organizations_are_not_found(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let posted = event(ours);
    take_in(store, me, from_ref(&posted), &[(inbox, false)]).await;
    assert!(store.events.get(theirs, posted.id).await.unwrap().is_none());
    assert!(store.events.get(ours, EventId::new()).await.unwrap().is_none());
    assert!(
        ids(store, theirs, &EventFilter::default(), Order::NewestFirst)
            .await
            .is_empty()
    );
    assert_eq!(
        store
            .events
            .count(theirs, &EventFilter::default(), 10)
            .await
            .unwrap(),
        0
    );
}

pub(crate) async fn listed_both_ways(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (mine, yours) = (inbox(store, ours).await, inbox(store, theirs).await);
    let me = worker(store).await;
    let mut posted = Vec::new();
    for _ in 0..7 {
        let events = [event(ours)];
        take_in(store, me, &events, &[(mine, false)]).await;
        take_in(store, me, &[event(theirs)], &[(yours, false)]).await;
        posted.push(events[0].id);
    }
    let newest: Vec<_> = posted.iter().rev().copied().collect();
    for filter in [EventFilter::default(), of_status(&[EventStatus::Pending])] {
        for (order, expected) in [(Order::OldestFirst, &posted), (Order::NewestFirst, &newest)] {
            assert_eq!(&ids(store, ours, &filter, order).await, expected);
            let mut seen = Vec::new();
            let mut request = first(3);
            loop {
                let page = store
                    .events
                    .list(ours, &filter, order, request.clone(), 0)
                    .await
                    .unwrap();
                seen.extend(page.items.iter().map(|event| event.id));
                match page.next {
                    Some(cursor) => request = after(cursor, 3),
                    None => break,
                }
            }
            assert_eq!(&seen, expected);
            let skipped = store
                .events
                .list(ours, &filter, order, first(3), 5)
                .await
                .unwrap();
            assert_eq!(
                skipped.items.iter().map(|event| event.id).collect::<Vec<_>>(),
                expected[5..]
            );
            assert_eq!(skipped.next, None);
            assert_eq!(skipped.items[0].deliveries.len(), 1);
        }
    }
}

/// One event of each status, in the order of [`EventStatus`].
async fn one_of_each(store: &Store, organization: OrganizationId) -> Vec<AcceptedEvent> {
    let (one, two) = (
        push(store, organization).await.id,
        push(store, organization).await.id,
    );
    let gone = push(store, organization).await.id;
    let me = worker(store).await;
    let events: Vec<_> = (0..5).map(|_| event(organization)).collect();
    let [pending, dead, delivered, acknowledged, cancelled] = events.as_slice() else {
        unreachable!("five")
    };
    let both = [(one, true), (two, true)];
    for event in [pending, dead, delivered] {
        take_in(store, me, from_ref(event), &both).await;
    }
    take_in(store, me, from_ref(acknowledged), &[(one, true), (gone, false)]).await;
    take_in(store, me, from_ref(cancelled), &[(gone, false)]).await;
    let outcomes = [
        succeeded(pending, one, 1),
        failed(dead, one, 1, Next::DeadLetter),
        succeeded(dead, two, 1),
        succeeded(delivered, one, 1),
    ];
    assert_eq!(store.deliveries.record(me, &outcomes).await.unwrap().len(), 4);
    store
        .deliveries
        .acknowledge(organization, &[delivered.id, acknowledged.id])
        .await
        .unwrap();
    store.subscriptions.delete(organization, gone).await.unwrap();
    events
}

pub(crate) async fn filtered_by_status(store: &Store) {
    let ours = organization(store).await.id;
    let events = one_of_each(store, ours).await;
    let statuses = [
        EventStatus::Pending,
        EventStatus::DeadLetter,
        EventStatus::Delivered,
        EventStatus::Acknowledged,
        EventStatus::Cancelled,
    ];
    for order in [Order::OldestFirst, Order::NewestFirst] {
        for (status, event) in statuses.iter().zip(&events) {
            assert_eq!(get(store, ours, event.id).await.status(), *status);
            assert_eq!(
                ids(store, ours, &of_status(&[*status]), order).await,
                [event.id],
                "{status:?}"
            );
            assert_eq!(
                store
                    .events
                    .count(ours, &of_status(&[*status]), 10)
                    .await
                    .unwrap(),
                1
            );
        }
        assert!(
            ids(store, ours, &of_status(&[EventStatus::Expired]), order)
                .await
                .is_empty()
        );
    }
    let some = of_status(&[
        EventStatus::Cancelled,
        EventStatus::Pending,
        EventStatus::DeadLetter,
    ]);
    let listed = ids(store, ours, &some, Order::OldestFirst).await;
    assert_eq!(listed, [events[0].id, events[1].id, events[4].id]);
    assert_eq!(store.events.count(ours, &some, 10).await.unwrap(), 3);
    assert_eq!(
        ids(store, ours, &EventFilter::default(), Order::OldestFirst)
            .await
            .len(),
        5
    );
}

pub(crate) async fn filtered_by_failure(store: &Store) {
    let ours = organization(store).await.id;
    let (one, two) = (push(store, ours).await.id, push(store, ours).await.id);
    let me = worker(store).await;
    let events: Vec<_> = (0..3).map(|_| event(ours)).collect();
    take_in(store, me, &events, &[(one, true), (two, true)]).await;
    let retry = Next::Retry { after: MINUTE };
    let outcomes = [
        failed(&events[0], one, 1, retry),
        // Failed as well, but not open any more: another delivery of it is.
        failed(&events[1], one, 1, Next::DeadLetter),
    ];
    assert_eq!(store.deliveries.record(me, &outcomes).await.unwrap().len(), 2);
    for order in [Order::OldestFirst, Order::NewestFirst] {
        for statuses in [
            vec![EventStatus::Pending],
            vec![EventStatus::Pending, EventStatus::Expired],
        ] {
            let filter = |failed| EventFilter {
                statuses: statuses.clone(),
                failed,
                event_type: None,
            };
            assert_eq!(ids(store, ours, &filter(Some(true)), order).await, [events[0].id]);
            let mut not_failed = ids(store, ours, &filter(Some(false)), order).await;
            not_failed.sort_unstable();
            assert_eq!(not_failed, [events[1].id, events[2].id]);
            assert_eq!(ids(store, ours, &filter(None), order).await.len(), 3);
            assert_eq!(
                store.events.count(ours, &filter(Some(false)), 10).await.unwrap(),
                2
            );
        }
    }
    let listed = store
        .events
        .list(
            ours,
            &of_status(&[EventStatus::Pending]),
            Order::OldestFirst,
            first(1),
            0,
        )
        .await
        .unwrap();
    let delivery = listed.items[0]
        .deliveries
        .iter()
        .find(|delivery| delivery.subscription == one)
        .unwrap();
    assert_eq!(delivery.log.len(), 1);
}

/// Whether lists show of every status just those events that are shown to have it, as [`EventFilter::shows`] says.
async fn is_found_as_it_is_shown(store: &Store, organization: OrganizationId, after: &str) {
    let page = store
        .events
        .list(
            organization,
            &EventFilter::default(),
            Order::OldestFirst,
            first(100),
            0,
        )
        .await
        .unwrap();
    let mut filters = vec![(EventStatus::ALL.to_vec(), Some(true)), (vec![], Some(false))];
    for status in EventStatus::ALL {
        filters.extend([None, Some(true), Some(false)].map(|failed| (vec![status], failed)));
    }
    for (statuses, failed) in filters {
        let filter = EventFilter {
            statuses,
            failed,
            event_type: None,
        };
        let shown = page.items.iter().filter(|event| filter.shows(event));
        let shown: Vec<_> = shown.map(|event| event.id).collect();
        let found = ids(store, organization, &filter, Order::OldestFirst).await;
        assert_eq!(found, shown, "after {after}: {filter:?}");
        let count = store.events.count(organization, &filter, 100).await.unwrap();
        assert_eq!(count, shown.len() as u64, "after {after}: {filter:?}");
    }
    for event in &page.items {
        let alone = get(store, organization, event.id).await;
        assert_eq!(
            (alone.status(), alone.has_failed()),
            (event.status(), event.has_failed())
        );
    }
}

pub(crate) async fn found_as_they_are_shown(store: &Store) {
    let ours = organization(store).await.id;
    let (one, two, me) = (
        push(store, ours).await.id,
        push(store, ours).await.id,
        worker(store).await,
    );
    let events: Vec<_> = (0..6).map(|_| event(ours)).collect();
    for event in &events {
        take_in(store, me, from_ref(event), &[(one, true), (two, true)]).await;
    }
    let failing = async |event: &AcceptedEvent| {
        let shown = get(store, ours, event.id).await;
        (shown.status(), shown.has_failed())
    };
    let agree = async |after: &str| is_found_as_it_is_shown(store, ours, after).await;
    agree("intake, held").await;

    let retry = Next::Retry { after: MINUTE };
    let outcomes = [
        failed(&events[0], one, 1, retry),
        failed(&events[1], one, 1, Next::DeadLetter),
        failed(&events[2], one, 1, Next::DeadLetter),
        succeeded(&events[1], two, 1),
        failed(&events[2], two, 1, retry),
        succeeded(&events[3], one, 1),
        succeeded(&events[3], two, 1),
    ];
    assert_eq!(
        store.deliveries.record(me, &outcomes).await.unwrap().len(),
        outcomes.len()
    );
    agree("outcomes").await;
    assert_eq!(failing(&events[0]).await, (EventStatus::Pending, true));
    assert_eq!(failing(&events[1]).await, (EventStatus::DeadLetter, false));
    assert_eq!(failing(&events[2]).await, (EventStatus::Pending, true));

    // What waits is due now, and has failed as before; what has ended begins anew.
    for event in &events[..4] {
        let retried = store.replays.retry(ours, key(event, one)).await.unwrap();
        assert_eq!(retried, ActedOn::Done);
    }
    agree("a retry").await;
    assert_eq!(failing(&events[0]).await, (EventStatus::Pending, true));
    assert_eq!(failing(&events[1]).await, (EventStatus::Pending, false));
    assert_eq!(failing(&events[3]).await, (EventStatus::Pending, false));
    assert_eq!(store.deliveries.claim(me, &[(one, 10)]).await.unwrap().len(), 4);
    agree("a claim").await;
    let keys: Vec<_> = events[..4].iter().map(|event| key(event, one)).collect();
    store.deliveries.release(me, &keys).await.unwrap();
    agree("a release").await;
    assert_eq!(store.deliveries.claim(me, &[(one, 10)]).await.unwrap().len(), 4);
    let again = [
        failed(&events[1], one, 2, retry),
        failed(&events[3], one, 2, Next::DeadLetter),
    ];
    assert_eq!(store.deliveries.record(me, &again).await.unwrap().len(), 2);
    agree("another failure").await;
    assert_eq!(failing(&events[1]).await, (EventStatus::Pending, true));

    assert_eq!(replayed(store, one, ours, &events[3]).await, Some(1));
    agree("a replay").await;
    assert_eq!(failing(&events[3]).await, (EventStatus::Pending, false));

    for event in &events[..2] {
        for subscription in [one, two] {
            store
                .replays
                .cancel(ours, key(event, subscription))
                .await
                .unwrap();
        }
    }
    agree("a cancellation").await;
    store.deliveries.acknowledge(ours, &[events[2].id]).await.unwrap();
    agree("an acknowledgement").await;
    store.erasures.erase(ours, events[4].id).await.unwrap();
    agree("an erasure").await;

    let version = store.subscriptions.get(ours, two).await.unwrap().unwrap().version;
    store
        .subscriptions
        .disable(ours, two, version, "gone", false)
        .await
        .unwrap();
    agree("a subscription is disabled").await;
    store.subscriptions.delete(ours, one).await.unwrap();
    agree("a subscription is deleted").await;
    store.deliveries.resign(me).await.unwrap();
    agree("a lease that is over").await;
}

/// Opens the dead letter of an event again by a replay.
async fn replayed(
    store: &Store,
    subscription: SubscriptionId,
    organization: OrganizationId,
    event: &AcceptedEvent,
) -> Option<u64> {
    let replay = NewReplay {
        id: ReplayId::new(),
        organization,
        subscription,
        since: None,
        until: None,
        statuses: vec![DeliveryState::DeadLetter],
        event_types: vec![],
    };
    let replay = store.replays.create_replay(replay, 1).await.unwrap().unwrap();
    let step = ReplayStep {
        events: vec![event.id],
        after_seq: get(store, organization, event.id).await.seq,
        after_id: None,
        looked_at: 1,
        done: true,
    };
    store.replays.replay_step(&replay, &step).await.unwrap()
}

pub(crate) async fn pulled_ones_are_found_as_they_are_shown(store: &Store) {
    let ours = organization(store).await.id;
    let pull = Subscription {
        target: Target::Pull,
        ..new_push(ours)
    };
    let source = PullSource {
        organization: ours,
        subscription: store.subscriptions.create(pull).await.unwrap().unwrap().id,
    };
    let me = worker(store).await;
    let events = [event(ours), event(ours)];
    for event in &events {
        take_in(store, me, from_ref(event), &[(source.subscription, false)]).await;
    }
    let failing = async || {
        let shown = get(store, ours, events[0].id).await;
        (shown.status(), shown.has_failed())
    };
    let agree = async |after: &str| is_found_as_it_is_shown(store, ours, after).await;
    let Pulled::Events(pulled) = store.pulls.pull(source, 2, MINUTE).await.unwrap() else {
        panic!("there is something to pull");
    };
    let pulled: Vec<_> = pulled.iter().map(|event| event.id).collect();
    assert_eq!(pulled.len(), 2);
    agree("a pull").await;
    assert_eq!(failing().await, (EventStatus::Pending, false));
    let release = LeaseChange::Release {
        due_in: Duration::ZERO,
    };
    store
        .pulls
        .change_leases(source, &pulled[..1], release)
        .await
        .unwrap();
    agree("a lease given back").await;
    assert_eq!(failing().await, (EventStatus::Pending, false));
    store
        .pulls
        .acknowledge_pulled(source, &pulled[1..])
        .await
        .unwrap();
    agree("what was pulled is acknowledged").await;
}

pub(crate) async fn pages_are_bounded_in_deliveries(store: &Store) {
    const EACH: usize = 150;
    let ours = organization(store).await.id;
    let mut to = Vec::new();
    for _ in 0..EACH {
        to.push((push(store, ours).await.id, false));
    }
    let me = worker(store).await;
    let events: Vec<_> = (0..10).map(|_| event(ours)).collect();
    for event in &events {
        take_in(store, me, from_ref(event), &to).await;
    }
    let newest: Vec<_> = events.iter().rev().map(|event| event.id).collect();
    for searched in [false, true] {
        let (mut seen, mut sizes, mut request) = (Vec::new(), Vec::new(), first(100));
        loop {
            let page = if searched {
                let all = EventQuery::default();
                store.events.browse(ours, &all, request).await
            } else {
                let all = EventFilter::default();
                store
                    .events
                    .list(ours, &all, Order::NewestFirst, request, 0)
                    .await
            };
            let page = page.unwrap();
            sizes.push(page.items.len());
            assert!(page.items.iter().all(|event| event.deliveries.len() == EACH));
            seen.extend(page.items.iter().map(|event| event.id));
            match page.next {
                Some(next) => request = after(next, 100),
                None => break,
            }
        }
        assert_eq!(seen, newest);
        assert_eq!(sizes, [4, 4, 2], "about 680 deliveries are shown at once");
    }
}

pub(crate) async fn the_last_attempts_are_shown(store: &Store) {
    let ours = organization(store).await.id;
    let me = worker(store).await;
    let failing = push(store, ours).await.id;
    let mut to = vec![(failing, true)];
    for _ in 1..250 {
        to.push((push(store, ours).await.id, false));
    }
    let event = event(ours);
    take_in(store, me, from_ref(&event), &to).await;
    let at_once = Next::Retry {
        after: Duration::ZERO,
    };
    for number in 1..=9 {
        let outcome = [failed(&event, failing, number, at_once)];
        assert_eq!(store.deliveries.record(me, &outcome).await.unwrap().len(), 1);
        let claimed = store.deliveries.claim(me, &[(failing, 1)]).await.unwrap();
        assert_eq!(claimed.len(), 1);
    }
    let numbers = |event: &EventRecord| {
        let mut deliveries = event.deliveries.iter();
        let one = deliveries
            .find(|delivery| delivery.subscription == failing)
            .unwrap();
        one.log.iter().map(|attempt| attempt.number).collect::<Vec<_>>()
    };
    // As many of each as there is room for of all.
    let shown = get(store, ours, event.id).await;
    assert_eq!(shown.deliveries.len(), 250);
    assert_eq!(numbers(&shown), [6, 7, 8, 9]);
    // Alone, it shows them all.
    let shown = store
        .events
        .get_delivery(ours, event.id, failing)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(shown.deliveries.len(), 1);
    assert_eq!(numbers(&shown), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let none = inbox(store, ours).await;
    let shown = store
        .events
        .get_delivery(ours, event.id, none)
        .await
        .unwrap()
        .unwrap();
    assert!(shown.deliveries.is_empty());
}

pub(crate) async fn filtered_by_type(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let other = AcceptedEvent {
        event_type: EventType::parse("x.y").unwrap(),
        ..event(ours)
    };
    take_in(
        store,
        me,
        &[event(ours), other.clone(), event(ours)],
        &[(inbox, false)],
    )
    .await;
    for statuses in [vec![], vec![EventStatus::Pending]] {
        let filter = EventFilter {
            statuses,
            failed: None,
            event_type: Some("x.y".to_owned()),
        };
        assert_eq!(ids(store, ours, &filter, Order::NewestFirst).await, [other.id]);
        assert_eq!(store.events.count(ours, &filter, 10).await.unwrap(), 1);
    }
}

pub(crate) async fn pages_are_bounded_in_bytes(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let sizes = [400_000, 400_000, 400_000, 2, 200_000, 600_000];
    let events: Vec<_> = sizes
        .iter()
        .map(|size| AcceptedEvent {
            payload: Payload::from_trusted(format!("\"{}\"", "x".repeat(size - 2)).into()).unwrap(),
            ..event(ours)
        })
        .collect();
    for event in &events {
        take_in(store, me, from_ref(event), &[(inbox, false)]).await;
    }
    for filter in [
        EventFilter::default(),
        of_status(&[EventStatus::Pending]),
        of_status(&[EventStatus::Pending, EventStatus::Expired]),
    ] {
        for (order, lengths) in [
            (Order::OldestFirst, &[2, 3, 1][..]),
            (Order::NewestFirst, &[3, 2, 1]),
        ] {
            let (mut seen, mut pages, mut cursor) = (Vec::new(), Vec::new(), None);
            loop {
                let request = PageRequest {
                    after: cursor,
                    limit: 5,
                };
                let page = store.events.list(ours, &filter, order, request, 0).await.unwrap();
                pages.push(page.items.len());
                seen.extend(page.items.into_iter().map(|event| (event.id, event.payload)));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(pages, lengths, "{order:?}");
            if order == Order::NewestFirst {
                seen.reverse();
            }
            let expected = events
                .iter()
                .map(|event| (event.id, event.payload.as_str().to_owned()));
            assert!(seen.into_iter().eq(expected), "{order:?}");
        }
    }
}

pub(crate) async fn counted_no_further_than_asked(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let events: Vec<_> = (0..20).map(|_| event(ours)).collect();
    take_in(store, me, &events, &[(inbox, false)]).await;
    for filter in [EventFilter::default(), of_status(&[EventStatus::Pending])] {
        assert_eq!(store.events.count(ours, &filter, 7).await.unwrap(), 7);
        assert_eq!(store.events.count(ours, &filter, 100).await.unwrap(), 20);
    }
}

/// Goes through a list page by page, and gives what it shows and in how many pages.
async fn paged(
    store: &Store,
    organization: OrganizationId,
    filter: &EventFilter,
    order: Order,
) -> (Vec<EventId>, usize) {
    let (mut seen, mut pages, mut request) = (Vec::new(), 0, first(10));
    loop {
        let page = store
            .events
            .list(organization, filter, order, request, 0)
            .await
            .unwrap();
        seen.extend(page.items.iter().map(|event| event.id));
        pages += 1;
        match page.next {
            Some(cursor) => request = after(cursor, 10),
            None => return (seen, pages),
        }
    }
}

pub(crate) async fn a_rare_status_takes_pages_and_none_looks_far(store: &Store) {
    let ours = organization(store).await.id;
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let (dead, failing, odd) = (
        event(ours),
        event(ours),
        AcceptedEvent {
            event_type: EventType::parse("x.y").unwrap(),
            ..event(ours)
        },
    );
    take_in(store, me, from_ref(&dead), &[(push, true)]).await;
    take_in(store, me, from_ref(&failing), &[(push, true)]).await;
    take_in(store, me, from_ref(&odd), &[(push, false)]).await;
    let outcomes = [
        failed(&dead, push, 1, Next::DeadLetter),
        failed(&failing, push, 1, Next::Retry { after: MINUTE }),
    ];
    assert_eq!(store.deliveries.record(me, &outcomes).await.unwrap().len(), 2);
    for _ in 0..9 {
        let events: Vec<_> = (0..500).map(|_| event(ours)).collect();
        take_in(store, me, &events, &[(push, false)]).await;
    }
    let pending = of_status(&[EventStatus::Pending]);
    let of_type = EventFilter {
        event_type: Some("x.y".to_owned()),
        ..EventFilter::default()
    };
    for (filter, wanted) in [
        (
            of_status(&[
                EventStatus::DeadLetter,
                EventStatus::Expired,
                EventStatus::Cancelled,
            ]),
            dead.id,
        ),
        (
            EventFilter {
                failed: Some(true),
                ..pending.clone()
            },
            failing.id,
        ),
        (
            EventFilter {
                event_type: Some("x.y".to_owned()),
                ..pending
            },
            odd.id,
        ),
        (of_type, odd.id),
    ] {
        let (newest, oldest) = (Order::NewestFirst, Order::OldestFirst);
        let page = store.events.list(ours, &filter, newest, first(10), 0);
        let page = page.await.unwrap();
        assert!(
            page.items.is_empty() && page.next.is_some(),
            "it looks no further"
        );
        // Passing over looks no further, either, and goes on from there.
        let pass = async |after, count| {
            let passed = store.events.pass_over(ours, &filter, newest, after, count);
            passed.await.unwrap()
        };
        let passed = pass(None, 4_000).await;
        assert_eq!((passed.count, passed.next), (0, page.next));
        let passed = pass(pass(passed.next, 4_000).await.next, 4_000).await;
        assert_eq!((passed.count, passed.next), (1, None));
        assert_eq!(paged(store, ours, &filter, newest).await, (vec![wanted], 3));
        assert_eq!(paged(store, ours, &filter, oldest).await, (vec![wanted], 3));
        assert_eq!(store.events.count(ours, &filter, 10).await.unwrap(), 0);
        assert_eq!(store.events.count(ours, &filter, 10_000).await.unwrap(), 1);
    }
    // There is an index of these.
    let alone = of_status(&[EventStatus::DeadLetter]);
    assert_eq!(
        paged(store, ours, &alone, Order::NewestFirst).await,
        (vec![dead.id], 1)
    );
    assert_eq!(store.events.count(ours, &alone, 10).await.unwrap(), 1);
    // Of all, and of what is pending, nothing is left out.
    let page = store
        .events
        .list(
            ours,
            &EventFilter::default(),
            Order::NewestFirst,
            first(10),
            4_500,
        )
        .await;
    assert_eq!(page.unwrap().items.len(), 3);
}

pub(crate) async fn readers_skip_nothing(store: &Store) {
    const TASKS: usize = 4;
    const BATCHES: usize = 30;
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..BATCHES {
                // Batches of different sizes take different times.
                let events: Vec<_> = (0..=task * 40).map(|_| event(ours)).collect();
                take_in(&store, me, &events, &[(inbox, false)]).await;
            }
        });
    }
    let expected = BATCHES * (TASKS + 40 * (0..TASKS).sum::<usize>());
    let pending = of_status(&[EventStatus::Pending]);
    let (mut seen, mut cursor) = (0, None);
    while seen < expected {
        let writing = !tasks.is_empty();
        let request = PageRequest {
            after: cursor,
            limit: 1_000,
        };
        let page = store
            .events
            .list(ours, &pending, Order::OldestFirst, request, 0)
            .await
            .unwrap();
        assert!(page.items.is_sorted_by(|one, next| one.seq < next.seq));
        assert!(page.items.iter().all(|event| Some(event.seq) > cursor));
        seen += page.items.len();
        cursor = page.items.last().map(|event| event.seq).or(cursor);
        while let Some(task) = tasks.try_join_next() {
            task.unwrap();
        }
        assert!(
            writing || !page.items.is_empty(),
            "{seen} of {expected} seen, the others were skipped"
        );
    }
    assert_eq!(seen, expected);
}

fn aside(n: u8, at: i64) -> SetAside {
    let frame = vec![0, n, 255];
    SetAside {
        id: SetAside::id_of(None, &frame),
        reason: "unreadable".to_owned(),
        detail: format!("why {n}: ü"),
        organization: None,
        event: None,
        frame,
        at: Timestamp::from_millis(at),
        times: 1,
    }
}

pub(crate) async fn set_aside_and_forgotten(store: &Store) {
    let organization = organization(store).await.id;
    let now = Timestamp::now().millis();
    let of_an_event = |n: u8, at: i64| {
        let (event, item) = (EventId::new(), aside(n, at));
        SetAside {
            id: SetAside::id_of(Some(event), &item.frame),
            organization: Some(organization),
            event: Some(event),
            ..item
        }
    };
    // Two of the same time, and one that was handed in later but is of before.
    let mut items = [of_an_event(1, now), aside(2, now), of_an_event(3, now - 1)];
    store.events.set_aside(&items).await.unwrap();
    assert_eq!(store.events.count_set_aside().await.unwrap(), 3);
    items.sort_by_key(|item| (item.at, item.id));
    let page = store.events.list_set_aside(first(2)).await.unwrap();
    let rest = store
        .events
        .list_set_aside(after(page.next.unwrap(), 2))
        .await
        .unwrap();
    assert_eq!((page.items.len(), rest.items.len(), rest.next), (2, 1, None));
    for (kept, given) in page.items.iter().chain(&rest.items).zip(&items) {
        assert_eq!(
            (kept.id, &kept.reason, &kept.detail),
            (given.id, &given.reason, &given.detail)
        );
        assert_eq!(
            (kept.organization, kept.event, kept.at),
            (given.organization, given.event, given.at)
        );
        assert_eq!((&kept.frame, kept.times), (&given.frame, 1));
    }
    let kept = store.events.get_set_aside(items[1].id).await.unwrap().unwrap();
    assert_eq!(kept.frame, items[1].frame);
    assert!(store.events.forget_set_aside(items[1].id, None).await.unwrap());
    assert!(!store.events.forget_set_aside(items[1].id, None).await.unwrap());
    assert!(store.events.get_set_aside(items[1].id).await.unwrap().is_none());
    assert_eq!(store.events.count_set_aside().await.unwrap(), 2);
    let odd = SetAside {
        detail: "a\0b".to_owned(),
        ..aside(4, now)
    };
    store.events.set_aside(&[odd]).await.unwrap();
    store.events.set_aside(&[]).await.unwrap();
}

pub(crate) async fn set_aside_again_is_counted(store: &Store) {
    let now = Timestamp::now().millis();
    let item = aside(1, now);
    let again = SetAside {
        reason: "refused".to_owned(),
        detail: "another reason".to_owned(),
        at: Timestamp::from_millis(now + 5),
        ..item.clone()
    };
    let id = item.id;
    store.events.set_aside(&[item.clone(), item]).await.unwrap();
    store.events.set_aside(&[again]).await.unwrap();
    assert_eq!(store.events.count_set_aside().await.unwrap(), 1);
    let kept = store.events.get_set_aside(id).await.unwrap().unwrap();
    assert_eq!(
        (
            kept.reason.as_str(),
            kept.detail.as_str(),
            kept.at.millis(),
            kept.times
        ),
        ("refused", "another reason", now + 5, 3)
    );
    // Whoever has seen it come less often does not know it any more.
    assert!(!store.events.forget_set_aside(id, Some(2)).await.unwrap());
    assert!(store.events.forget_set_aside(id, Some(3)).await.unwrap());
    assert_eq!(store.events.count_set_aside().await.unwrap(), 0);
}
