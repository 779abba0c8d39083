use std::slice::from_ref;

use shared::{
    AcceptedEvent, EventId, EventStatus, EventType, OrganizationId, Payload, Timestamp,
    delivery::Next,
    store::{EventFilter, Order, PageRequest, SetAside, Store},
};
use tokio::task::JoinSet;

use super::world::{
    MINUTE, after, event, failed, first, get, inbox, organization, push, succeeded, take_in, worker,
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
