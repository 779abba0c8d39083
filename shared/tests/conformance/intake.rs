use std::{collections::HashSet, slice::from_ref, time::Duration};

use shared::{
    AcceptedEvent, EventId, EventStatus, EventType, OrganizationId, Source, Timestamp, TraceParent, WorkerId,
    store::{EventFilter, IntakeBatch, IntakeOutcome, PlannedDelivery, Store},
};
use tokio::task::JoinSet;
use uuid::{NoContext, Uuid};

use super::world::{
    event, first, get, inbox, keyed, organization, payload, push, repeat_of, take_in, try_take_in, worker,
};

pub(crate) async fn payloads_are_kept_byte_for_byte(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let full = AcceptedEvent {
        source: Some(Source::parse("søurce").unwrap()),
        occurred_at: Some(Timestamp::from_millis(-62_167_219_200_000)),
        trace: TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        event_type: EventType::parse("a.b.c").unwrap(),
        payload: payload("{ \"b\":1.00,\n\t\"a\" : \"\\u0000 ü \u{1f980}\", \"b\":12345678901234567890123 }"),
        ..keyed(ours, "kéy 'with\" \\ \u{1f980}")
    };
    let bare = event(ours);
    let stored = take_in(store, me, &[full.clone(), bare.clone()], &[(inbox, false)]).await;
    assert_eq!(
        stored.iter().map(|one| one.id).collect::<Vec<_>>(),
        [full.id, bare.id]
    );
    for (posted, stored) in [(&full, stored[0]), (&bare, stored[1])] {
        let record = get(store, ours, posted.id).await;
        assert_eq!((record.id, record.seq), (posted.id, stored.seq));
        assert_eq!(record.payload, posted.payload.as_str());
        assert_eq!(record.event_type, posted.event_type.as_str());
        assert_eq!(
            record.dedup_id.as_deref(),
            posted.dedup_id.as_ref().map(shared::DedupId::as_str)
        );
        assert_eq!(
            record.source.as_deref(),
            posted.source.as_ref().map(Source::as_str)
        );
        assert_eq!(
            (record.occurred_at, record.received_at),
            (posted.occurred_at, posted.received_at)
        );
        assert_eq!((record.repeats, record.deliveries.len()), (0, 1));
    }
}

pub(crate) async fn a_frame_delivered_twice_changes_nothing(store: &Store) {
    let ours = organization(store).await.id;
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let frame = [event(ours), keyed(ours, "k")];
    let stored = take_in(store, me, &frame, &[(push, false)]).await;
    assert_eq!(stored.len(), 2);
    // Another subscription by now; and more events with the frame this time.
    let later = super::world::push(store, ours).await.id;
    let more = [frame[0].clone(), frame[1].clone(), event(ours)];
    let again = take_in(store, me, &more, &[(push, false), (later, false)]).await;
    assert_eq!(again.iter().map(|one| one.id).collect::<Vec<_>>(), [more[2].id]);
    for (event, stored) in frame.iter().zip(&stored) {
        let record = get(store, ours, event.id).await;
        assert_eq!(
            (record.seq, record.repeats, record.deliveries.len()),
            (stored.seq, 0, 1)
        );
    }
    assert_eq!(
        store
            .events
            .count(ours, &EventFilter::default(), 100)
            .await
            .unwrap(),
        3
    );
}

pub(crate) async fn a_stale_plan_writes_nothing(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let version = store.subscriptions.in_force(&[ours]).await.unwrap()[0].version;
    push(store, ours).await;
    for posted in [event(ours), keyed(ours, "k")] {
        let batch = IntakeBatch {
            worker: me,
            events: from_ref(&posted),
            deliveries: &[PlannedDelivery {
                event: 0,
                subscription: inbox,
                held: false,
            }],
            versions: &[(ours, version)],
            repeats: &[],
        };
        assert_eq!(store.events.intake(&batch).await.unwrap(), IntakeOutcome::Stale);
        assert!(store.events.get(ours, posted.id).await.unwrap().is_none());
    }
    let free = keyed(ours, "k");
    assert_eq!(
        take_in(store, me, &[free], &[(inbox, false)]).await.len(),
        1,
        "the key was not taken"
    );
    // A plan by which nothing is to be stored is stale like any other.
    for (version, expected) in [
        (version, IntakeOutcome::Stale),
        (version + 1, IntakeOutcome::Stored(Vec::new())),
    ] {
        let nothing = IntakeBatch {
            worker: me,
            events: &[],
            deliveries: &[],
            versions: &[(ours, version)],
            repeats: &[],
        };
        assert_eq!(store.events.intake(&nothing).await.unwrap(), expected);
    }
}

pub(crate) async fn an_unknown_organization_is_stale(store: &Store) {
    let (ours, nobody) = (organization(store).await.id, OrganizationId::new());
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let batch = IntakeBatch {
        worker: me,
        events: &[event(nobody)],
        deliveries: &[PlannedDelivery {
            event: 0,
            subscription: inbox,
            held: false,
        }],
        versions: &[(nobody, 1)],
        repeats: &[],
    };
    assert_eq!(store.events.intake(&batch).await.unwrap(), IntakeOutcome::Stale);
}

pub(crate) async fn duplicates_become_aliases(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let original = keyed(ours, "k");
    let same = keyed(ours, "k");
    let other_payload = AcceptedEvent {
        payload: payload("{}"),
        ..keyed(ours, "k")
    };
    let other_type = AcceptedEvent {
        event_type: EventType::parse("x").unwrap(),
        ..keyed(ours, "k")
    };
    assert_eq!(
        take_in(store, me, from_ref(&original), &[(inbox, false)])
            .await
            .len(),
        1
    );
    let later = [same.clone(), other_payload.clone(), event(ours)];
    let stored = take_in(store, me, &later, &[(inbox, false)]).await;
    assert_eq!(stored.iter().map(|one| one.id).collect::<Vec<_>>(), [later[2].id]);
    for _twice in 0..2 {
        assert!(
            take_in(store, me, from_ref(&other_type), &[(inbox, false)])
                .await
                .is_empty()
        );
    }
    for id in [original.id, same.id, other_payload.id, other_type.id] {
        let record = get(store, ours, id).await;
        assert_eq!(
            (record.id, record.payload.as_str()),
            (original.id, original.payload.as_str())
        );
        assert_eq!(
            (record.repeats, record.differing_repeats, record.deliveries.len()),
            (3, 2, 1)
        );
    }
    let listed = store
        .events
        .list(
            ours,
            &EventFilter::default(),
            shared::store::Order::NewestFirst,
            first(10),
            0,
        )
        .await
        .unwrap();
    assert_eq!(
        listed.items.iter().map(|one| one.repeats).collect::<Vec<_>>(),
        [0, 3]
    );
}

pub(crate) async fn duplicates_within_a_batch(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let mut events: Vec<_> = (0..20)
        .map(|n| keyed(ours, if n % 2 == 0 { "even" } else { "odd" }))
        .collect();
    let firsts = [events[0].id, events[1].id];
    events.rotate_left(7);
    let stored = take_in(store, me, &events, &[(inbox, false)]).await;
    let mut ids: Vec<_> = stored.iter().map(|one| one.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, firsts, "the first by id of each key");
    for id in firsts {
        let record = get(store, ours, id).await;
        assert_eq!(
            (record.repeats, record.differing_repeats, record.deliveries.len()),
            (9, 0, 1)
        );
    }
}

pub(crate) async fn keys_belong_to_an_organization(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let me = worker(store).await;
    let (mine, yours) = (keyed(ours, "k"), keyed(theirs, "k"));
    assert_eq!(
        take_in(store, me, from_ref(&mine), &[(inbox(store, ours).await, false)])
            .await
            .len(),
        1
    );
    assert_eq!(
        take_in(
            store,
            me,
            from_ref(&yours),
            &[(inbox(store, theirs).await, false)]
        )
        .await
        .len(),
        1
    );
    assert!(store.events.get(ours, yours.id).await.unwrap().is_none());
    assert!(store.events.get(theirs, mine.id).await.unwrap().is_none());
    assert_eq!(get(store, ours, mine.id).await.repeats, 0);
}

pub(crate) async fn repeats_count_once(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let original = keyed(ours, "k");
    take_in(store, me, from_ref(&original), &[(inbox, false)]).await;
    let foreign = shared::Repeat {
        organization: theirs,
        ..repeat_of(&original, true)
    };
    let notes = [
        repeat_of(&original, false),
        repeat_of(&original, true),
        foreign.clone(),
    ];
    for _twice in 0..2 {
        let outcome = try_take_in(store, me, &[], &notes, &[]).await.unwrap();
        assert_eq!(outcome, IntakeOutcome::Stored(Vec::new()));
    }
    let with_an_event = [event(ours)];
    let more = [repeat_of(&original, false), notes[0].clone()];
    let outcome = try_take_in(store, me, &with_an_event, &more, &[(inbox, false)])
        .await
        .unwrap();
    assert!(matches!(outcome, IntakeOutcome::Stored(stored) if stored.len() == 1));
    let record = get(store, ours, original.id).await;
    assert_eq!((record.repeats, record.differing_repeats), (3, 1));
    assert_eq!(get(store, ours, notes[0].id).await.id, original.id);
    assert!(store.events.get(theirs, foreign.id).await.unwrap().is_none());
}

pub(crate) async fn repeats_of_aliases_count_for_the_first(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let (original, elsewhere) = (keyed(ours, "k"), keyed(ours, "k"));
    let note = repeat_of(&elsewhere, false);
    // The note overtakes what it is a note of.
    try_take_in(store, me, &[], from_ref(&note), &[]).await.unwrap();
    take_in(store, me, from_ref(&original), &[(inbox, false)]).await;
    assert!(
        take_in(store, me, &[elsewhere], &[(inbox, false)])
            .await
            .is_empty()
    );
    let record = get(store, ours, note.id).await;
    assert_eq!(
        (record.id, record.repeats, record.differing_repeats),
        (original.id, 2, 0)
    );
}

pub(crate) async fn order_follows_intake(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let early = event(ours);
    let mut seqs = Vec::new();
    for _ in 0..3 {
        let events: Vec<_> = (0..50).map(|_| event(ours)).collect();
        let stored = take_in(store, me, &events, &[(inbox, false)]).await;
        assert!(stored.is_sorted_by_key(|one| one.id));
        seqs.extend(stored.iter().map(|one| one.seq));
    }
    seqs.extend(
        take_in(store, me, &[early], &[(inbox, false)])
            .await
            .iter()
            .map(|one| one.seq),
    );
    assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
}

/// Takes in until the store takes it: a conflict between two at once may be given up by the store.
async fn persist(
    store: &Store,
    worker: WorkerId,
    events: &[AcceptedEvent],
    subscription: shared::SubscriptionId,
) -> usize {
    for _ in 0..50 {
        match try_take_in(store, worker, events, &[], &[(subscription, true)]).await {
            Ok(IntakeOutcome::Stored(stored)) => return stored.len(),
            Ok(IntakeOutcome::Stale) => panic!("nobody changed a subscription"),
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
    panic!("the store never took it")
}

pub(crate) async fn one_event_a_key_under_concurrency(store: &Store) {
    const TASKS: usize = 8;
    const ROUNDS: usize = 12;
    const KEYS: usize = 30;
    let ours = organization(store).await.id;
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            let (mut stored, mut posted) = (0, Vec::new());
            for round in 0..ROUNDS {
                // Each task has the keys in another order, each round has keys of its own and the round's before.
                let batch: Vec<_> = (0..KEYS)
                    .map(|n| (n * (2 * task + 1)) % KEYS)
                    .map(|n| keyed(ours, &format!("{}-{n}", round.saturating_sub(n % 2))))
                    .chain([event(ours)])
                    .collect();
                stored += persist(&store, me, &batch, push).await;
                posted.extend(batch);
            }
            (stored, posted)
        });
    }
    let outcomes = tasks.join_all().await;
    let posted: Vec<_> = outcomes.iter().flat_map(|(_, posted)| posted).collect();
    let keys: HashSet<_> = posted
        .iter()
        .filter_map(|event| event.dedup_id.as_ref())
        .collect();
    let stored: usize = outcomes.iter().map(|(stored, _)| stored).sum();
    assert_eq!(
        stored,
        keys.len() + TASKS * ROUNDS,
        "one a key, and those without"
    );
    let shown = store
        .events
        .count(ours, &EventFilter::default(), 1_000_000)
        .await
        .unwrap();
    assert_eq!(shown, stored as u64);

    let mut firsts = HashSet::new();
    let mut repeats = 0;
    for event in &posted {
        let record = get(store, ours, event.id).await;
        assert_eq!(
            record.dedup_id.as_deref(),
            event.dedup_id.as_ref().map(shared::DedupId::as_str)
        );
        assert_eq!(record.deliveries.len(), 1);
        if firsts.insert(record.id) {
            repeats += record.repeats;
        }
    }
    assert_eq!(firsts.len(), stored);
    assert_eq!(
        repeats,
        (posted.len() - stored) as u64,
        "every other id is a repeat"
    );
}

pub(crate) async fn frames_repeated_under_concurrency(store: &Store) {
    let ours = organization(store).await.id;
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    for round in 0..10 {
        let frame: Vec<_> = (0..40)
            .map(|n| {
                if n % 3 == 0 {
                    event(ours)
                } else {
                    keyed(ours, &format!("{round}-{}", n % 7))
                }
            })
            .collect();
        let mut tasks = JoinSet::new();
        for task in 0..6 {
            let (store, mut frame) = (store.clone(), frame.clone());
            frame.rotate_left(task * 5);
            tasks.spawn(async move { persist(&store, me, &frame, push).await });
        }
        let stored: usize = tasks.join_all().await.iter().sum();
        let shown = store
            .events
            .count(ours, &EventFilter::default(), 100_000)
            .await
            .unwrap();
        // 14 of 40 have no key; the others have 7 keys, which the events without were not counted for.
        let keys: HashSet<_> = frame.iter().filter_map(|event| event.dedup_id.as_ref()).collect();
        assert_eq!(stored, 14 + keys.len());
        assert_eq!(shown, (stored * (round + 1)) as u64);
        for event in &frame {
            assert_eq!(get(store, ours, event.id).await.deliveries.len(), 1);
        }
    }
    // All that intake held is its worker's still.
    let claimed = store
        .deliveries
        .claim(worker(store).await, &[(push, 1_000)])
        .await
        .unwrap();
    assert!(claimed.is_empty(), "{}", claimed.len());
    assert!(store.deliveries.backlog().await.unwrap().oldest_due < Duration::from_mins(1));
}

/// An event whose time is so far from now.
fn of_another_time(ours: OrganizationId, at: Timestamp) -> AcceptedEvent {
    let seconds = u64::try_from(at.seconds()).unwrap();
    AcceptedEvent {
        id: EventId::from_uuid(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, 0))),
        ..event(ours)
    }
}

/// As it is put back: another id, and the same event otherwise.
pub(crate) fn put_back(event: &AcceptedEvent) -> AcceptedEvent {
    let mut former_ids = event.former_ids.clone();
    former_ids.push(event.id);
    AcceptedEvent {
        id: EventId::new(),
        former_ids,
        ..event.clone()
    }
}

pub(crate) async fn a_former_id_leads_to_the_event(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let old = AcceptedEvent {
        dedup_id: keyed(ours, "k").dedup_id,
        ..of_another_time(ours, Timestamp::from_millis(7_000))
    };
    let once = put_back(&old);
    let beside = event(ours);
    let batch = [once.clone(), beside.clone()];
    for stored in [2, 0] {
        // The frame comes twice, too.
        assert_eq!(take_in(store, me, &batch, &[(push, false)]).await.len(), stored);
    }
    // Put back twice, once more from what had come of the first, and as another than it was.
    let (twice, thrice) = (put_back(&old), put_back(&once));
    for again in [&twice, &thrice] {
        let with_another = [again.clone(), event(ours)];
        assert_eq!(
            take_in(store, me, &with_another, &[(push, true)]).await[0].id,
            with_another[1].id
        );
    }
    for id in [old.id, once.id, twice.id, thrice.id] {
        let record = get(store, ours, id).await;
        assert_eq!(
            (record.id, record.repeats, record.deliveries.len()),
            (once.id, 0, 1)
        );
        assert!(store.events.get(theirs, id).await.unwrap().is_none());
    }
    // The key is the new id's: what has it is a repeat.
    let repeat = keyed(ours, "k");
    assert!(
        take_in(store, me, from_ref(&repeat), &[(push, false)])
            .await
            .is_empty()
    );
    assert_eq!(get(store, ours, repeat.id).await.id, once.id);
    assert_eq!(get(store, ours, old.id).await.repeats, 1);
    let closed = store.deliveries.acknowledge(ours, &[old.id]).await.unwrap();
    assert_eq!(closed.len(), 1);
    assert_eq!(
        get(store, ours, once.id).await.status(),
        EventStatus::Acknowledged
    );
}

pub(crate) async fn a_former_id_of_a_repeat_leads_to_the_first(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let first = keyed(ours, "k");
    take_in(store, me, from_ref(&first), &[(inbox, false)]).await;
    let old = AcceptedEvent {
        dedup_id: first.dedup_id.clone(),
        ..of_another_time(ours, Timestamp::from_millis(7_000))
    };
    let late = put_back(&old);
    assert!(
        take_in(store, me, from_ref(&late), &[(inbox, false)])
            .await
            .is_empty()
    );
    for id in [old.id, late.id] {
        assert_eq!(get(store, ours, id).await.id, first.id);
    }
    // What was stored under its id all along, and is put back for a frame that came late.
    let again = put_back(&first);
    assert!(
        take_in(store, me, from_ref(&again), &[(inbox, false)])
            .await
            .is_empty()
    );
    for id in [first.id, again.id] {
        assert_eq!(get(store, ours, id).await.id, first.id);
    }
}

pub(crate) async fn a_former_id_is_stored_with_its_event_or_not_at_all(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let old = of_another_time(ours, Timestamp::from_millis(7_000));
    let once = put_back(&old);
    let batch = IntakeBatch {
        worker: me,
        events: from_ref(&once),
        deliveries: &[],
        versions: &[(ours, 1_000)],
        repeats: &[],
    };
    assert_eq!(store.events.intake(&batch).await.unwrap(), IntakeOutcome::Stale);
    let twice = put_back(&old);
    assert_eq!(
        take_in(store, me, from_ref(&twice), &[(inbox, false)])
            .await
            .len(),
        1
    );
    assert_eq!(get(store, ours, old.id).await.id, twice.id);
}

pub(crate) async fn put_back_by_many_it_is_stored_once(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let olds: Vec<_> = (1..6)
        .map(|n| of_another_time(ours, Timestamp::from_millis(n * 7_000)))
        .collect();
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (store, mut events) = (store.clone(), olds.iter().map(put_back).collect::<Vec<_>>());
        events.sort_unstable_by_key(|event| event.id);
        tasks.spawn(async move { take_in(&store, me, &events, &[(inbox, false)]).await.len() });
    }
    assert_eq!(tasks.join_all().await.iter().sum::<usize>(), olds.len());
    for old in olds {
        get(store, ours, old.id).await;
    }
}

pub(crate) async fn room_is_made_for_what_is_kept(store: &Store) {
    const DAY: Duration = Duration::from_hours(24);
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let now = Timestamp::now();
    let kept = [19 * DAY, 10 * DAY, Duration::ZERO].map(|age| of_another_time(ours, now.minus(age)));
    let out = [
        of_another_time(ours, now.minus(21 * DAY)),
        of_another_time(ours, now.plus(2 * DAY)),
        of_another_time(ours, Timestamp::from_millis(7_000)),
        AcceptedEvent {
            id: EventId::from_uuid(Uuid::new_v4()),
            ..event(ours)
        },
    ];
    let ids: Vec<_> = kept.iter().chain(&out).map(|event| event.id).collect();
    for _twice in 0..2 {
        let refused = store.events.admit(&ids, 20 * DAY).await.unwrap();
        assert_eq!(refused, out.iter().map(|event| event.id).collect());
    }
    assert_eq!(
        take_in(store, me, &kept, &[(inbox, false)]).await.len(),
        kept.len()
    );
    for event in &kept {
        get(store, ours, event.id).await;
    }
}

pub(crate) async fn a_rehearsal_leaves_nothing(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let mut seqs = Vec::new();
    for _ in 0..3 {
        store.events.rehearse().await.unwrap();
        seqs.push(take_in(store, me, &[event(ours)], &[(inbox, false)]).await[0].seq);
    }
    assert!(seqs.is_sorted());
    let all = EventFilter::default();
    assert_eq!(store.events.count(ours, &all, 100).await.unwrap(), 3);
    assert_eq!(
        store.deliveries.backlog().await.unwrap(),
        shared::store::Backlog::default()
    );
}
