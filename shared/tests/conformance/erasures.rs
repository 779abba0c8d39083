//! Erasing what a producer sent, stored or not yet.

use std::{slice::from_ref, time::Duration};

use shared::{
    AcceptedEvent, DeliveryState, DeliveryStatus, EventId, EventPattern, EventStatus, OrganizationId,
    ReplayId, Source, SubscriptionId, Timestamp, TraceParent, WorkerId,
    delivery::Next,
    store::{
        ActedOn, Change, ERASURE_KEPT, Erased, EventFilter, IntakeOutcome, NewReplay, ReplayStep, SetAside,
        Store,
    },
};
use tokio::task::JoinSet;
use uuid::{NoContext, Uuid};

use super::{
    intake::put_back,
    world::{
        MINUTE, event, failed, first, get, key, keyed, organization, payload, push, repeat_of, succeeded,
        take_in, try_take_in, worker,
    },
};

const LATER: Next = Next::Retry { after: MINUTE };

/// With all that a producer can send.
fn full(organization: OrganizationId, dedup_id: &str) -> AcceptedEvent {
    AcceptedEvent {
        occurred_at: Some(Timestamp::from_millis(1_600_000_000_000)),
        source: Some(Source::parse("a person").unwrap()),
        trace: TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        payload: payload(r#"{"name":"a person"}"#),
        ..keyed(organization, dedup_id)
    }
}

async fn assert_erased(store: &Store, event: &AcceptedEvent) {
    let record = get(store, event.organization, event.id).await;
    assert_eq!(record.id, event.id);
    assert!(record.erased_at.is_some());
    assert_eq!(record.payload, "null");
    assert_eq!(
        (record.source, record.dedup_id, record.occurred_at),
        (None, None, None)
    );
    assert_eq!(record.event_type, event.event_type.as_str());
    let open = record.deliveries.iter().any(|delivery| delivery.status.is_open());
    assert!(!open, "{:?}", record.deliveries);
    let attempts = record.deliveries.iter().flat_map(|delivery| &delivery.log);
    let mut answers = attempts.filter_map(|attempt| attempt.detail.as_deref());
    assert!(answers.all(str::is_empty));
}

async fn erase(store: &Store, event: &AcceptedEvent) -> Erased {
    store.erasures.erase(event.organization, event.id).await.unwrap()
}

pub(crate) async fn what_is_stored_is_erased_in_place(store: &Store) {
    let (ours, me) = (organization(store).await.id, worker(store).await);
    let (one, other) = (push(store, ours).await.id, push(store, ours).await.id);
    let (gone, stays) = (full(ours, "k"), full(ours, "l"));
    take_in(
        store,
        me,
        &[gone.clone(), stays.clone()],
        &[(one, true), (other, true)],
    )
    .await;
    let outcomes = [failed(&gone, one, 1, LATER), succeeded(&gone, other, 1)];
    store.deliveries.record(me, &outcomes).await.unwrap();
    let before = get(store, ours, stays.id).await;
    assert_eq!(before.source.as_deref(), Some("a person"));

    assert_eq!(erase(store, &gone).await, Erased::Done { event: gone.id });
    assert_erased(store, &gone).await;
    let record = get(store, ours, gone.id).await;
    let status = |subscription| {
        let mut deliveries = record.deliveries.iter();
        let delivery = deliveries.find(|delivery| delivery.subscription == subscription);
        delivery.unwrap().status
    };
    assert_eq!(status(one), DeliveryStatus::Cancelled);
    assert_eq!(status(other), DeliveryStatus::Delivered, "what ended so stays so");
    let at = record.erased_at;
    assert_eq!(erase(store, &gone).await, Erased::Done { event: gone.id });
    assert_eq!(
        get(store, ours, gone.id).await.erased_at,
        at,
        "again changes nothing"
    );

    let after = get(store, ours, stays.id).await;
    assert_eq!((after.payload, after.erased_at), (before.payload, None));
    assert!(after.deliveries.iter().all(|delivery| delivery.status.is_open()));
    // Its frame comes again, and so does its key.
    let again = keyed(ours, "k");
    assert!(
        take_in(store, me, &[gone.clone(), again.clone()], &[(one, true)])
            .await
            .is_empty()
    );
    assert_erased(store, &gone).await;
    assert_eq!(get(store, ours, again.id).await.id, gone.id);
}

pub(crate) async fn what_a_worker_holds_is_called_off(store: &Store) {
    let (ours, me) = (organization(store).await.id, worker(store).await);
    let push = push(store, ours).await.id;
    let held = full(ours, "k");
    take_in(store, me, from_ref(&held), &[(push, true)]).await;
    let mut changes = store.keeper.changes();
    let mut word = async || {
        let word = tokio::time::timeout(MINUTE, changes.recv()).await;
        word.expect("word of it").expect("the store lives")
    };
    while word().await != Change::Everything {}
    erase(store, &held).await;
    assert_eq!(word().await, Change::Closed(held.id));
    let held_still = store.deliveries.still_held(me, &[key(&held, push)]).await;
    assert!(held_still.unwrap().is_empty());
    // The attempt that was under way ends, and leaves nothing behind.
    let late = failed(&held, push, 1, LATER);
    assert!(store.deliveries.record(me, &[late]).await.unwrap().is_empty());
    assert_erased(store, &held).await;
}

pub(crate) async fn erased_by_any_of_its_ids_and_by_no_one_else(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let first = full(ours, "k");
    let repeat = full(ours, "k");
    let note = repeat_of(&repeat, false);
    try_take_in(
        store,
        me,
        &[first.clone(), repeat.clone()],
        from_ref(&note),
        &[(push, false)],
    )
    .await
    .unwrap();
    let others = store.erasures.erase(theirs, first.id).await.unwrap();
    assert_eq!(
        others,
        Erased::Marked,
        "as an id that is nobody's: it may be on its way"
    );
    assert_eq!(get(store, ours, first.id).await.erased_at, None);
    let done = Erased::Done { event: first.id };
    assert_eq!(store.erasures.erase(ours, note.id).await.unwrap(), done);
    assert_erased(store, &first).await;

    let old = full(ours, "old");
    let late = put_back(&old);
    take_in(store, me, from_ref(&late), &[(push, false)]).await;
    assert_eq!(erase(store, &old).await, Erased::Done { event: late.id });
    assert_erased(store, &late).await;
}

fn id_at(at: Timestamp) -> EventId {
    let seconds = u64::try_from(at.millis() / 1_000).unwrap();
    EventId::from_uuid(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, 0)))
}

pub(crate) async fn ids_that_cannot_come_are_not_found(store: &Store) {
    let ours = organization(store).await.id;
    let now = Timestamp::now();
    let day = Duration::from_hours(24);
    for (id, expected) in [
        (EventId::from_uuid(Uuid::from_u128(7)), Erased::NotFound),
        (id_at(now.minus(ERASURE_KEPT + day)), Erased::NotFound),
        (id_at(now.plus(2 * day)), Erased::NotFound),
        (id_at(now.minus(ERASURE_KEPT).plus(day)), Erased::Marked),
        (EventId::new(), Erased::Marked),
    ] {
        assert_eq!(store.erasures.erase(ours, id).await.unwrap(), expected, "{id}");
    }
}

pub(crate) async fn what_is_on_its_way_is_stored_erased(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (push, theirs_push, me) = (
        push(store, ours).await.id,
        push(store, theirs).await.id,
        worker(store).await,
    );
    let plain = AcceptedEvent {
        dedup_id: None,
        ..full(ours, "x")
    };
    let keyed = full(ours, "k");
    let old = full(ours, "old");
    for event in [&plain, &keyed, &old] {
        assert_eq!(erase(store, event).await, Erased::Marked);
        assert_eq!(erase(store, event).await, Erased::Marked, "again");
    }
    let other = full(theirs, "k");
    store.erasures.erase(ours, other.id).await.unwrap();
    // Each form of intake by itself, and together.
    let beside = AcceptedEvent {
        dedup_id: None,
        ..full(ours, "x")
    };
    let put_back = put_back(&old);
    for batch in [
        vec![plain.clone(), beside.clone()],
        vec![keyed.clone()],
        vec![put_back.clone(), event(ours)],
    ] {
        let stored = take_in(store, me, &batch, &[(push, true)]).await;
        assert_eq!(stored.len(), batch.len());
        let erased = stored.iter().filter(|event| event.erased).map(|event| event.id);
        assert_eq!(erased.collect::<Vec<_>>(), [batch[0].id]);
    }
    for event in [&plain, &keyed, &put_back] {
        assert_erased(store, event).await;
        assert_eq!(get(store, ours, event.id).await.status(), EventStatus::Cancelled);
        assert!(
            store
                .deliveries
                .still_held(me, &[key(event, push)])
                .await
                .unwrap()
                .is_empty()
        );
    }
    assert_eq!(get(store, ours, beside.id).await.erased_at, None);
    take_in(store, me, from_ref(&other), &[(theirs_push, true)]).await;
    let theirs = get(store, theirs, other.id).await;
    assert_eq!(theirs.erased_at, None, "nobody erases what is another's");
    assert_eq!(theirs.status(), EventStatus::Pending);
}

pub(crate) async fn a_repeat_on_its_way_erases_the_first(store: &Store) {
    let ours = organization(store).await.id;
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let (first, repeat) = (full(ours, "k"), full(ours, "k"));
    take_in(store, me, from_ref(&first), &[(push, false)]).await;
    assert_eq!(erase(store, &repeat).await, Erased::Marked);
    take_in(store, me, from_ref(&repeat), &[(push, false)]).await;
    let until = tokio::time::Instant::now() + MINUTE;
    while store.erasures.settle_erasures(10).await.unwrap() == 0 {
        assert!(tokio::time::Instant::now() < until, "it is looked at again");
        tokio::task::yield_now().await;
    }
    assert_erased(store, &first).await;
    assert_eq!(
        store.erasures.settle_erasures(10).await.unwrap(),
        0,
        "the mark is gone"
    );
}

pub(crate) async fn what_is_erased_is_not_opened_again(store: &Store) {
    let (ours, me) = (organization(store).await.id, worker(store).await);
    let push = push(store, ours).await.id;
    let (gone, stays) = (full(ours, "k"), full(ours, "l"));
    take_in(store, me, &[gone.clone(), stays.clone()], &[(push, true)]).await;
    let dead = [&gone, &stays].map(|event| failed(event, push, 1, Next::DeadLetter));
    store.deliveries.record(me, &dead).await.unwrap();
    erase(store, &gone).await;
    assert_erased(store, &gone).await;
    let retried = store.replays.retry(ours, key(&gone, push)).await.unwrap();
    assert_eq!(retried, ActedOn::Refused);
    let new = NewReplay {
        id: ReplayId::new(),
        organization: ours,
        subscription: push,
        since: None,
        until: Some(Timestamp::now().plus(MINUTE)),
        statuses: vec![DeliveryState::DeadLetter],
        event_types: vec![EventPattern::all()],
    };
    let replay = store.replays.create_replay(new, 1).await.unwrap().unwrap();
    let replay = store.replays.begin_replay(&replay).await.unwrap().unwrap();
    let candidates = store.replays.replay_candidates(&replay, 10).await.unwrap();
    let step = ReplayStep {
        events: candidates
            .events
            .iter()
            .map(|candidate| candidate.event)
            .collect(),
        after_seq: candidates.after_seq,
        after_id: candidates.after_id,
        looked_at: 2,
        done: true,
    };
    let opened = store.replays.replay_step(&replay, &step).await.unwrap();
    assert_eq!((candidates.events.len(), opened), (2, Some(1)));
    let claimed = store.deliveries.claim(me, &[(push, 10)]).await.unwrap();
    let claimed: Vec<_> = claimed.iter().map(|claimed| claimed.key.event).collect();
    assert_eq!(claimed, [stays.id]);
}

pub(crate) async fn what_was_set_aside_is_forgotten(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let aside = |organization, event, n: u8| SetAside {
        id: SetAside::id_of(None, &[n]),
        reason: "repeatedly_failing".to_owned(),
        detail: "why".to_owned(),
        organization: Some(organization),
        event: Some(event),
        frame: vec![n],
        at: Timestamp::now(),
        times: 1,
    };
    // Whatever the time of its id: it may be put back.
    let (young, old) = (EventId::new(), EventId::from_uuid(Uuid::from_u128(9)));
    let items = [
        aside(ours, young, 1),
        aside(ours, old, 2),
        aside(theirs, young, 3),
        aside(ours, EventId::new(), 4),
    ];
    store.events.set_aside(&items).await.unwrap();
    for id in [young, old] {
        let erased = store.erasures.erase(ours, id).await.unwrap();
        assert_eq!(erased, Erased::Marked);
    }
    let left = store.events.list_set_aside(first(10)).await.unwrap();
    let mut left: Vec<_> = left.items.iter().map(|item| item.frame[0]).collect();
    left.sort_unstable();
    assert_eq!(left, [3, 4]);
    // A worker that was at it sets it aside all the same.
    store.events.set_aside(&items[..1]).await.unwrap();
    let until = tokio::time::Instant::now() + MINUTE;
    while store.events.count_set_aside().await.unwrap() > 2 {
        assert!(tokio::time::Instant::now() < until, "it goes with the next look");
        store.erasures.settle_erasures(10).await.unwrap();
    }
}

async fn take_in_some(
    store: Store,
    worker: WorkerId,
    events: Vec<AcceptedEvent>,
    subscription: SubscriptionId,
) {
    for batch in events.chunks(5) {
        let stored = try_take_in(&store, worker, batch, &[], &[(subscription, true)]).await;
        assert!(matches!(stored.unwrap(), IntakeOutcome::Stored(_)));
    }
}

/// Whichever comes first, intake or erasure, and however they cross: what was answered to be erased is.
pub(crate) async fn erasing_beside_intakes_misses_nothing(store: &Store) {
    let ours = organization(store).await.id;
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let mut tasks = JoinSet::new();
    let mut all = Vec::new();
    for _ in 0..4 {
        let events: Vec<_> = (0..50)
            .map(|n| AcceptedEvent {
                dedup_id: (n % 2 == 0)
                    .then(|| keyed(ours, &EventId::new().to_string()).dedup_id)
                    .flatten(),
                ..full(ours, "k")
            })
            .collect();
        all.extend(events.clone());
        tasks.spawn(take_in_some(store.clone(), me, events.clone(), push));
        let store = store.clone();
        tasks.spawn(async move {
            for event in &events {
                let erased = erase(&store, event).await;
                assert!(
                    matches!(erased, Erased::Done { .. } | Erased::Marked),
                    "{erased:?}"
                );
            }
        });
    }
    tasks.join_all().await;
    for event in &all {
        assert_erased(store, event).await;
    }
    let open = EventFilter {
        statuses: vec![EventStatus::Pending],
        ..EventFilter::default()
    };
    assert_eq!(store.events.count(ours, &open, 1_000).await.unwrap(), 0);
    assert_eq!(
        store
            .events
            .count(ours, &EventFilter::default(), 1_000)
            .await
            .unwrap(),
        200
    );
}
