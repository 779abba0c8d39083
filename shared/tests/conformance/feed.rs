//! Searching events, and following them as they come.

use std::{slice::from_ref, time::Duration};

use shared::{
    AcceptedEvent, EventId, EventPattern, EventStatus, EventType, OrganizationId, Payload, Timestamp,
    delivery::Next,
    store::{EventQuery, Store},
};
use tokio::task::JoinSet;

use super::{
    intake::put_back,
    world::{
        MINUTE, after, event, failed, first, inbox, keyed, organization, push, succeeded, take_in, worker,
    },
};

fn of_type(organization: OrganizationId, event_type: &str) -> AcceptedEvent {
    AcceptedEvent {
        event_type: EventType::parse_any(event_type).unwrap(),
        ..event(organization)
    }
}

fn pattern(text: &str) -> EventPattern {
    EventPattern::parse(text).unwrap()
}

/// All pages of a search, and how many there were.
async fn search(
    store: &Store,
    organization: OrganizationId,
    wanted: &EventQuery,
    limit: u32,
) -> (Vec<EventId>, usize) {
    let (mut found, mut pages, mut request) = (Vec::new(), 0, first(limit));
    loop {
        let page = store.events.browse(organization, wanted, request).await.unwrap();
        assert!(page.items.len() <= limit as usize);
        found.extend(page.items.iter().map(|event| event.id));
        pages += 1;
        match page.next {
            Some(next) => request = after(next, limit),
            None => return (found, pages),
        }
    }
}

pub(crate) async fn searched_by_type(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (push, theirs_push, me) = (
        push(store, ours).await.id,
        push(store, theirs).await.id,
        worker(store).await,
    );
    let types = [
        "user.created",
        "user.deleted",
        "order.created",
        "user.a.b",
        "triggers.x",
    ];
    let events: Vec<_> = types.iter().map(|kind| of_type(ours, kind)).collect();
    for event in &events {
        take_in(store, me, from_ref(event), &[(push, false)]).await;
    }
    let other = of_type(theirs, "user.created");
    take_in(store, me, from_ref(&other), &[(theirs_push, false)]).await;
    for (wanted, shown) in [
        ("user.created", vec![0]),
        ("user.*", vec![1, 0]),
        ("user.**", vec![3, 1, 0]),
        ("*.created", vec![2, 0]),
        ("*", vec![3, 2, 1, 0]),
        ("triggers.**", vec![4]),
        ("none", vec![]),
    ] {
        let query = EventQuery {
            event_type: Some(pattern(wanted)),
            ..EventQuery::default()
        };
        let expected: Vec<_> = shown.iter().map(|at: &usize| events[*at].id).collect();
        for limit in [1, 2, 100] {
            assert_eq!(search(store, ours, &query, limit).await.0, expected, "{wanted}");
        }
    }
    let all = search(store, ours, &EventQuery::default(), 2).await;
    let expected: Vec<_> = events.iter().rev().map(|event| event.id).collect();
    assert_eq!(all, (expected, 3), "newest first");
}

pub(crate) async fn searched_by_time(store: &Store) {
    let ours = organization(store).await.id;
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let now = Timestamp::now();
    let ago = |minutes: u32| now.minus(minutes * MINUTE);
    let events: Vec<_> = [30, 20, 10, 0]
        .map(|minutes| AcceptedEvent {
            received_at: ago(minutes),
            ..event(ours)
        })
        .to_vec();
    take_in(store, me, &events, &[(push, false)]).await;
    for (since, until, shown) in [
        (Some(ago(20)), None, vec![3, 2, 1]),
        (None, Some(ago(20)), vec![0]),
        (Some(ago(20)), Some(ago(0)), vec![2, 1]),
        (Some(ago(5)), Some(ago(10)), vec![]),
        (
            Some(now.minus(Duration::from_hours(24 * 4_000))),
            None,
            vec![3, 2, 1, 0],
        ),
        (None, Some(Timestamp::from_millis(0)), vec![]),
    ] {
        let query = EventQuery {
            since,
            until,
            ..EventQuery::default()
        };
        let expected: Vec<_> = shown.iter().map(|at: &usize| events[*at].id).collect();
        assert_eq!(search(store, ours, &query, 10).await.0, expected, "{query:?}");
    }
}

pub(crate) async fn searched_by_status(store: &Store) {
    let ours = organization(store).await.id;
    let (one, other, me) = (
        push(store, ours).await.id,
        push(store, ours).await.id,
        worker(store).await,
    );
    let events: Vec<_> = (0..5).map(|_| event(ours)).collect();
    for event in &events {
        take_in(store, me, from_ref(event), &[(one, true), (other, true)]).await;
    }
    let outcomes = [
        failed(&events[1], one, 1, Next::DeadLetter),
        succeeded(&events[1], other, 1),
        succeeded(&events[2], one, 1),
        succeeded(&events[2], other, 1),
    ];
    store.deliveries.record(me, &outcomes).await.unwrap();
    store.deliveries.acknowledge(ours, &[events[3].id]).await.unwrap();
    store.erasures.erase(ours, events[4].id).await.unwrap();
    for (status, at) in [
        (EventStatus::Pending, Some(0)),
        (EventStatus::DeadLetter, Some(1)),
        (EventStatus::Delivered, Some(2)),
        (EventStatus::Acknowledged, Some(3)),
        (EventStatus::Cancelled, Some(4)),
        (EventStatus::Expired, None),
    ] {
        let query = EventQuery {
            status: Some(status),
            ..EventQuery::default()
        };
        let expected: Vec<EventId> = at.iter().map(|at: &usize| events[*at].id).collect();
        assert_eq!(search(store, ours, &query, 10).await.0, expected, "{status:?}");
    }
    // What is open of a deleted subscription counts as cancelled.
    store.subscriptions.delete(ours, one).await.unwrap();
    store.subscriptions.delete(ours, other).await.unwrap();
    let pending = EventQuery {
        status: Some(EventStatus::Pending),
        ..EventQuery::default()
    };
    assert_eq!(search(store, ours, &pending, 10).await.0, []);
}

pub(crate) async fn a_search_is_bounded_in_work(store: &Store) {
    let ours = organization(store).await.id;
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let rare = of_type(ours, "rare.one");
    take_in(store, me, from_ref(&rare), &[(push, false)]).await;
    for _ in 0..9 {
        let events: Vec<_> = (0..500).map(|_| event(ours)).collect();
        take_in(store, me, &events, &[(push, false)]).await;
    }
    for status in [None, Some(EventStatus::Pending)] {
        let query = EventQuery {
            event_type: Some(pattern("rare.*")),
            status,
            ..EventQuery::default()
        };
        let begun = store.events.browse(ours, &query, first(10)).await.unwrap();
        assert!(
            begun.items.is_empty() && begun.next.is_some(),
            "it looks no further"
        );
        assert_eq!(search(store, ours, &query, 10).await, (vec![rare.id], 3));
    }
}

/// Follows from `after` on, and gives what comes up to what is settled, and where that is.
async fn follow(
    store: &Store,
    organization: OrganizationId,
    wanted: &EventQuery,
    mut after: i64,
) -> (Vec<EventId>, i64) {
    let settled = store.feed.settled().await.unwrap();
    let newest = store.feed.newest(&[organization], settled).await.unwrap();
    let Some((_, up_to)) = newest.first().copied() else {
        return (Vec::new(), after);
    };
    assert!(up_to <= settled);
    let mut events = Vec::new();
    while after < up_to {
        let page = store
            .feed
            .follow(organization, wanted, after, up_to)
            .await
            .unwrap();
        assert!(page.up_to > after, "it gets on");
        assert!(page.events.is_sorted_by(|one, next| one.seq < next.seq));
        assert!(
            page.events
                .iter()
                .all(|event| event.seq > after && event.seq <= page.up_to)
        );
        after = page.up_to;
        events.extend(page.events.into_iter().map(|event| event.id));
    }
    (events, after)
}

pub(crate) async fn followed_in_order(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (push, theirs_push, me) = (
        push(store, ours).await.id,
        push(store, theirs).await.id,
        worker(store).await,
    );
    let begin = store.feed.settled().await.unwrap();
    assert!(store.feed.newest(&[ours], begin).await.unwrap().is_empty());
    let large = Payload::from_trusted(format!("\"{}\"", "x".repeat(100_000)).into()).unwrap();
    let events: Vec<_> = (0..260)
        .map(|n| AcceptedEvent {
            payload: if n % 50 == 0 {
                large.clone()
            } else {
                event(ours).payload
            },
            ..of_type(ours, if n % 100 == 7 { "seven" } else { "other.type" })
        })
        .collect();
    for batch in events.chunks(40) {
        take_in(store, me, batch, &[(push, false)]).await;
        let beside = [event(theirs)];
        take_in(store, me, &beside, &[(theirs_push, false)]).await;
    }
    let mut ids: Vec<_> = events.iter().map(|event| event.id).collect();
    ids.sort_unstable();
    let (seen, end) = follow(store, ours, &EventQuery::default(), begin).await;
    assert_eq!(seen.len(), ids.len());
    let mut sorted = seen.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ids);
    let of_seven = EventQuery {
        event_type: Some(pattern("seven")),
        ..EventQuery::default()
    };
    let (sevens, sevens_end) = follow(store, ours, &of_seven, begin).await;
    assert_eq!(sevens.len(), 3);
    assert_eq!(sevens_end, end);
    assert!(
        follow(store, ours, &EventQuery::default(), end)
            .await
            .0
            .is_empty()
    );
    // From any event on there comes what came after it.
    for at in [0, 100, 259] {
        let place = store.feed.place(ours, seen[at]).await.unwrap().unwrap();
        assert_eq!(
            follow(store, ours, &EventQuery::default(), place).await.0,
            seen[at + 1..]
        );
        assert_eq!(store.feed.place(theirs, seen[at]).await.unwrap(), None);
    }
    assert_eq!(store.feed.place(ours, EventId::new()).await.unwrap(), None);

    let all = store
        .feed
        .newest(&[ours, theirs, OrganizationId::new()], i64::MAX)
        .await
        .unwrap();
    assert_eq!(all.len(), 2);
}

pub(crate) async fn followed_by_time_and_status(store: &Store) {
    let ours = organization(store).await.id;
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let begin = store.feed.settled().await.unwrap();
    let now = Timestamp::now();
    let ago = |minutes: u32| now.minus(minutes * MINUTE);
    let events: Vec<_> = [30, 10, 20, 0]
        .map(|minutes| AcceptedEvent {
            received_at: ago(minutes),
            ..event(ours)
        })
        .to_vec();
    for event in &events {
        take_in(store, me, from_ref(event), &[(push, true)]).await;
    }
    let of = async |since: Option<Timestamp>, until: Option<Timestamp>, status: Option<EventStatus>| {
        let query = EventQuery {
            since,
            until,
            status,
            event_type: None,
        };
        let place = match since {
            Some(since) => store.feed.place_before(ours, since).await.unwrap(),
            None => begin,
        };
        let followed = follow(store, ours, &query, place).await.0;
        let places = followed
            .iter()
            .map(|id| events.iter().position(|event| event.id == *id).unwrap());
        places.collect::<Vec<_>>()
    };
    for (since, until, shown) in [
        (Some(ago(60 * 24 * 365)), None, vec![0, 1, 2, 3]),
        (Some(ago(20)), None, vec![1, 2, 3]),
        (Some(ago(20)), Some(ago(0)), vec![1, 2]),
        (None, Some(ago(20)), vec![0]),
        (Some(ago(5)), Some(ago(10)), vec![]),
        (Some(now.plus(MINUTE)), None, vec![]),
    ] {
        assert_eq!(of(since, until, None).await, shown, "{since:?} {until:?}");
    }
    // Their status is what it is when they are read.
    let pending = Some(EventStatus::Pending);
    assert_eq!(of(None, None, pending).await, [0, 1, 2, 3]);
    let outcomes = [
        failed(&events[1], push, 1, Next::DeadLetter),
        succeeded(&events[2], push, 1),
    ];
    store.deliveries.record(me, &outcomes).await.unwrap();
    assert_eq!(of(None, None, pending).await, [0, 3]);
    assert_eq!(of(None, None, Some(EventStatus::DeadLetter)).await, [1]);
    assert_eq!(of(Some(ago(20)), None, pending).await, [3]);
    // Where nothing is stored since, it begins with what comes.
    let theirs = organization(store).await.id;
    let place = store.feed.place_before(theirs, ago(1)).await.unwrap();
    assert!(place <= store.feed.settled().await.unwrap());
}

pub(crate) async fn a_place_is_had_by_any_id(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let (one, repeat) = (keyed(ours, "k"), keyed(ours, "k"));
    let stored = take_in(store, me, &[one.clone(), repeat.clone()], &[(inbox, false)]).await;
    for id in [one.id, repeat.id] {
        assert_eq!(store.feed.place(ours, id).await.unwrap(), Some(stored[0].seq));
    }
    let old = event(ours);
    let late = put_back(&old);
    let stored = take_in(store, me, from_ref(&late), &[(inbox, false)]).await;
    assert_eq!(store.feed.place(ours, old.id).await.unwrap(), Some(stored[0].seq));
}

pub(crate) async fn who_follows_misses_nothing(store: &Store) {
    const TASKS: usize = 4;
    const BATCHES: usize = 30;
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let mut place = store.feed.settled().await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..BATCHES {
                // Batches of different sizes take different times.
                let events: Vec<_> = (0..=task * 20).map(|_| event(ours)).collect();
                take_in(&store, me, &events, &[(inbox, false)]).await;
            }
        });
    }
    let expected = BATCHES * (TASKS + 20 * (0..TASKS).sum::<usize>());
    let mut seen = 0;
    while seen < expected {
        let writing = !tasks.is_empty();
        let (events, next) = follow(store, ours, &EventQuery::default(), place).await;
        seen += events.len();
        place = next;
        while let Some(task) = tasks.try_join_next() {
            task.unwrap();
        }
        assert!(
            writing || !events.is_empty(),
            "{seen} of {expected} seen, the others were skipped"
        );
    }
    assert_eq!(seen, expected);
}
