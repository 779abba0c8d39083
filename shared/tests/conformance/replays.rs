//! Opening deliveries again.

use std::time::Duration;

use shared::{
    AcceptedEvent, DeliveryState, DeliveryStatus, EventId, EventPattern, OrganizationId, ReplayId,
    SubscriptionId, Timestamp, WorkerId,
    delivery::Next,
    store::{ActedOn, Change, NewReplay, Replay, ReplayStatus, ReplayStep, Store, Walk},
};

use super::{
    deliveries::{claim, delivery, lane},
    intake::put_back,
    world::{MINUTE, accepted_at, event, failed, key, organization, push, succeeded, take_in, worker},
};

const LATER: Next = Next::Retry { after: MINUTE };

pub(crate) async fn one_is_opened_again(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 2, Some(me)).await;
    let (theirs, one) = (organization(store).await.id, key(&events[0], push));
    let outcomes = [
        failed(&events[0], push, 1, Next::DeadLetter),
        succeeded(&events[1], push, 1),
    ];
    store.deliveries.record(me, &outcomes).await.unwrap();
    let replays = &store.replays;
    assert_eq!(replays.retry(theirs, one).await.unwrap(), ActedOn::Refused);
    assert_eq!(replays.retry(ours, one).await.unwrap(), ActedOn::Done);
    let opened = delivery(store, &events[0]).await;
    assert_eq!((opened.status, opened.attempts), (DeliveryStatus::Pending, 1));
    assert!(opened.next_attempt_at.is_some());
    let claimed = store.deliveries.claim(me, &[(push, 10)]).await.unwrap();
    assert_eq!(
        (claimed[0].key, claimed[0].attempts, claimed[0].attempts_before),
        (one, 1, 1)
    );
    // The numbers of its attempts go on, and so do its log and its fences.
    let applied = store
        .deliveries
        .record(me, &[failed(&events[0], push, 2, LATER)])
        .await
        .unwrap();
    assert_eq!(applied, [one]);
    assert_eq!(delivery(store, &events[0]).await.log.len(), 2);
    // One that waits is due now; what is delivered can be sent once more.
    assert!(claim(store, me, push, 10).await.is_empty());
    assert_eq!(replays.retry(ours, one).await.unwrap(), ActedOn::Done);
    assert_eq!(claim(store, me, push, 10).await, [events[0].id]);
    assert_eq!(
        replays.retry(ours, one).await.unwrap(),
        ActedOn::Done,
        "one that is under way"
    );
    assert!(claim(store, me, push, 10).await.is_empty(), "stays whose it is");
    assert_eq!(
        replays.retry(ours, key(&events[1], push)).await.unwrap(),
        ActedOn::Done
    );
    assert_eq!(claim(store, me, push, 10).await, [events[1].id]);
    store.subscriptions.delete(ours, push).await.unwrap();
    assert_eq!(
        replays.retry(ours, one).await.unwrap(),
        ActedOn::Refused,
        "there is nobody to send it to"
    );
}

pub(crate) async fn one_is_called_off(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 2, Some(me)).await;
    let theirs = organization(store).await.id;
    let one = key(&events[0], push);
    let replays = &store.replays;
    assert_eq!(replays.cancel(theirs, one).await.unwrap(), ActedOn::Refused);
    assert_eq!(replays.cancel(ours, one).await.unwrap(), ActedOn::Done);
    assert_eq!(
        delivery(store, &events[0]).await.status,
        DeliveryStatus::Cancelled
    );
    assert_eq!(
        replays.cancel(ours, one).await.unwrap(),
        ActedOn::Refused,
        "it has ended"
    );
    // What was under way changes nothing more, and what was called off can be opened again.
    let applied = store
        .deliveries
        .record(me, &[succeeded(&events[0], push, 1)])
        .await
        .unwrap();
    assert!(applied.is_empty());
    assert!(store.deliveries.still_held(me, &[one]).await.unwrap().is_empty());
    assert_eq!(replays.retry(ours, one).await.unwrap(), ActedOn::Done);
    assert_eq!(claim(store, me, push, 10).await, [events[0].id]);
}

fn new(organization: OrganizationId, subscription: SubscriptionId) -> NewReplay {
    NewReplay {
        id: ReplayId::new(),
        organization,
        subscription,
        since: None,
        until: None,
        statuses: vec![DeliveryState::DeadLetter, DeliveryState::Cancelled],
        event_types: vec![EventPattern::all(), EventPattern::parse("a.b").unwrap()],
    }
}

/// Makes one, which begins.
async fn begun(store: &Store, wanted: NewReplay) -> Replay {
    let made = store.replays.create_replay(wanted, 10).await.unwrap();
    let begun = store.replays.begin_replay(&made.expect("room for it")).await;
    begun.unwrap().expect("nothing is under way")
}

/// A step over all that there is next.
async fn next(store: &Store, replay: &Replay, limit: u32) -> ReplayStep {
    let candidates = store.replays.replay_candidates(replay, limit).await.unwrap();
    assert!(candidates.events.len() <= limit as usize);
    ReplayStep {
        events: candidates
            .events
            .iter()
            .map(|candidate| candidate.event)
            .collect(),
        after_seq: candidates.after_seq,
        after_id: candidates.after_id,
        looked_at: candidates.events.len() as u64,
        done: candidates.last,
    }
}

/// Takes a replay to its end, over events that were accepted in its time alone. Which it looked at, and in how many steps.
async fn whole(store: &Store, mut replay: Replay, limit: u32) -> (Vec<EventId>, u32) {
    let (mut seen, mut steps) = (Vec::new(), 0);
    while replay.status == ReplayStatus::Running {
        let candidates = store.replays.replay_candidates(&replay, limit).await.unwrap();
        let mut step = next(store, &replay, limit).await;
        seen.extend(&step.events);
        steps += 1;
        assert!(steps < 100, "it comes to an end");
        step.events = candidates
            .events
            .iter()
            .filter(|event| replay.since.is_none_or(|since| event.received_at >= since))
            .filter(|event| event.received_at < replay.until)
            .map(|event| event.event)
            .collect();
        store
            .replays
            .replay_step(&replay, &step)
            .await
            .unwrap()
            .expect("nobody else is at it");
        let before = replay.progress();
        replay = store
            .replays
            .get_replay(replay.organization, replay.id)
            .await
            .unwrap()
            .unwrap();
        assert!((before..=1.0).contains(&replay.progress()), "{replay:?}");
    }
    assert!((replay.progress() - 1.0).abs() < 1e-9);
    (seen, steps)
}

pub(crate) async fn a_replay_gets_on_step_by_step(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 5, Some(me)).await;
    let theirs = organization(store).await.id;
    let outcomes: Vec<_> = events
        .iter()
        .enumerate()
        .map(|(at, event)| match at {
            0 | 2 | 4 => failed(event, push, 1, Next::DeadLetter),
            1 => succeeded(event, push, 1),
            _ => failed(event, push, 1, LATER),
        })
        .collect();
    store.deliveries.record(me, &outcomes).await.unwrap();
    let replays = &store.replays;
    let wanted = new(ours, push);
    let made = replays
        .create_replay(wanted.clone(), 1)
        .await
        .unwrap()
        .expect("there is none yet");
    assert_eq!(
        (made.status, made.looked_at, made.opened),
        (ReplayStatus::Running, 0, 0)
    );
    assert_eq!(
        (made.statuses.clone(), made.event_types.clone()),
        (wanted.statuses, wanted.event_types)
    );
    assert!(made.until.since(Timestamp::now()) < MINUTE);
    assert!(
        replays.create_replay(new(ours, push), 1).await.unwrap().is_none(),
        "one at a time"
    );
    assert!(replays.get_replay(theirs, made.id).await.unwrap().is_none());

    assert!(made.way.is_none() && made.progress().abs() < 1e-9);
    let begun = replays
        .begin_replay(&made)
        .await
        .unwrap()
        .expect("nothing is under way");
    assert!(
        replays.begin_replay(&made).await.unwrap().is_none(),
        "another was ahead"
    );
    let first = next(store, &begun, 3).await;
    assert!(!first.done);
    assert_eq!(replays.replay_step(&begun, &first).await.unwrap(), Some(2));
    assert_eq!(
        replays.replay_step(&begun, &first).await.unwrap(),
        None,
        "another was ahead"
    );
    let (running, is_there) = replays.running_replays(10).await.unwrap().remove(0);
    assert!(is_there);
    assert_eq!(
        (running.after_seq, running.looked_at, running.opened),
        (first.after_seq, 3, 2)
    );
    assert_eq!(running.way, begun.way);
    assert!(
        running.progress() > 0.0 && running.progress() < 1.0,
        "{running:?}"
    );
    let last = next(store, &running, 3).await;
    assert_eq!(replays.replay_step(&running, &last).await.unwrap(), Some(1));
    let done = replays.get_replay(ours, made.id).await.unwrap().unwrap();
    assert_eq!(
        (done.status, done.looked_at, done.opened),
        (ReplayStatus::Done, 5, 3)
    );
    assert!(replays.running_replays(10).await.unwrap().is_empty());
    let opened = claim(store, me, push, 10).await;
    let mut expected = vec![events[0].id, events[2].id, events[4].id];
    expected.sort_by_key(|id| opened.iter().position(|opened| opened == id));
    assert_eq!(opened, expected, "the others are as they were");
}

pub(crate) async fn a_replay_is_called_off(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 1, Some(me)).await;
    store
        .deliveries
        .record(me, &[failed(&events[0], push, 1, Next::DeadLetter)])
        .await
        .unwrap();
    let theirs = organization(store).await.id;
    let replays = &store.replays;
    let made = begun(store, new(ours, push)).await;
    assert!(!replays.cancel_replay(theirs, made.id).await.unwrap());
    assert!(replays.cancel_replay(ours, made.id).await.unwrap());
    assert!(!replays.cancel_replay(ours, made.id).await.unwrap());
    let step = next(store, &made, 10).await;
    assert_eq!(replays.replay_step(&made, &step).await.unwrap(), None);
    assert_eq!(
        delivery(store, &events[0]).await.status,
        DeliveryStatus::DeadLetter
    );
    let other = replays.create_replay(new(ours, push), 1).await.unwrap().unwrap();
    let listed = replays.list_replays(ours, push, 10).await.unwrap();
    assert_eq!(
        listed.iter().map(|replay| replay.id).collect::<Vec<_>>(),
        [other.id, made.id]
    );
    store.subscriptions.delete(ours, push).await.unwrap();
    let running = replays.running_replays(10).await.unwrap();
    assert_eq!(
        running
            .iter()
            .map(|(replay, is_there)| (replay.id, *is_there))
            .collect::<Vec<_>>(),
        [(other.id, false)]
    );
}

/// One event a minute of each of two organizations, for so many minutes, taken in as they were accepted and held; the first's.
async fn history(
    store: &Store,
    me: WorkerId,
    minutes: u32,
    lanes: [(OrganizationId, SubscriptionId); 2],
) -> Vec<AcceptedEvent> {
    let now = Timestamp::now();
    let [ours, theirs] = lanes.map(|(organization, _)| -> Vec<_> {
        let ago = (1..=minutes).rev();
        ago.map(|ago| accepted_at(organization, now.minus(ago * MINUTE)))
            .collect()
    });
    for (some, others) in ours.chunks(50).zip(theirs.chunks(50)) {
        take_in(store, me, some, &[(lanes[0].1, true)]).await;
        take_in(store, me, others, &[(lanes[1].1, true)]).await;
    }
    ours
}

/// Ends deliveries: those as dead letters, and the others well.
async fn end(
    store: &Store,
    me: WorkerId,
    events: &[AcceptedEvent],
    push: SubscriptionId,
    is_dead: impl Fn(usize) -> bool,
) {
    let outcome = |(at, event)| {
        if is_dead(at) {
            failed(event, push, 1, Next::DeadLetter)
        } else {
            succeeded(event, push, 1)
        }
    };
    let outcomes: Vec<_> = events.iter().enumerate().map(outcome).collect();
    for outcomes in outcomes.chunks(500) {
        store.deliveries.record(me, outcomes).await.unwrap();
    }
}

/// What was opened ends as dead letters once more; how many that is.
async fn end_again(store: &Store, me: WorkerId, ours: OrganizationId, push: SubscriptionId) -> usize {
    let claimed = store.deliveries.claim(me, &[(push, 100)]).await.unwrap();
    let again = claimed.iter().map(|claimed| {
        let event = AcceptedEvent {
            id: claimed.key.event,
            ..event(ours)
        };
        failed(&event, push, claimed.attempts + 1, Next::DeadLetter)
    });
    let outcomes: Vec<_> = again.collect();
    store.deliveries.record(me, &outcomes).await.unwrap().len()
}

pub(crate) async fn a_window_in_a_long_history_is_found_at_once(store: &Store) {
    const MINUTES: u32 = 20 * 60;
    let me = worker(store).await;
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (mine, other) = (push(store, ours).await.id, push(store, theirs).await.id);
    let events = history(store, me, MINUTES, [(ours, mine), (theirs, other)]).await;
    let is_dead = |at: usize| [10, 602, 1_100].contains(&at);
    end(store, me, &events, mine, is_dead).await;
    // Ten minutes of the middle of it.
    let window = &events[600..610];
    let both = vec![DeliveryState::Delivered, DeliveryState::DeadLetter];
    let dead = vec![DeliveryState::DeadLetter];
    for (statuses, walk, looked_at, opened) in [
        (dead, Walk::DeadLetters, 1..=3, 1),
        // And for as long as a clock may be wrong.
        (both, Walk::Time, 10..=80, 9),
    ] {
        let wanted = NewReplay {
            since: Some(window[0].received_at),
            until: Some(events[610].received_at),
            statuses,
            ..new(ours, mine)
        };
        let replay = begun(store, wanted).await;
        assert_eq!(replay.way.unwrap().walk, walk);
        let (seen, steps) = whole(store, replay.clone(), 500).await;
        assert!(looked_at.contains(&seen.len()), "{} looked at", seen.len());
        assert_eq!(steps, 1, "{walk:?}");
        let done = store.replays.get_replay(ours, replay.id).await.unwrap().unwrap();
        assert_eq!((done.looked_at, done.opened), (seen.len() as u64, opened));
    }
    let mut opened = claim(store, me, mine, 100).await;
    opened.sort_unstable();
    let expected: Vec<_> = window.iter().map(|event| event.id).collect();
    assert_eq!(opened, expected);

    // However short its steps are, none is left out or comes twice.
    end(store, me, window, mine, |_| false).await;
    for (since, until, statuses) in [(600, 610, 0), (0, 1_200, 0), (600, 610, 1)] {
        let at = |at: usize| events.get(at).map_or(Timestamp::now(), |event| event.received_at);
        let wanted = NewReplay {
            since: Some(at(since)),
            until: Some(at(until)),
            statuses: [vec![DeliveryState::Delivered], vec![DeliveryState::DeadLetter]][statuses].clone(),
            ..new(ours, mine)
        };
        let replay = begun(store, wanted).await;
        let (mut seen, steps) = whole(store, replay, 17).await;
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count);
        assert!(
            steps as usize <= count / (17 / 2) + 1,
            "{steps} steps, {count} looked at"
        );
    }
}

pub(crate) async fn a_replay_looks_at_no_more_than_there_was(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 2, Some(me)).await;
    end(store, me, &events, push, |_| true).await;
    let minutes = |minutes: u32| Some(Timestamp::now().minus(minutes * MINUTE));
    let later = Some(Timestamp::now().plus(90 * 24 * 60 * MINUTE));
    let statuses = [vec![DeliveryState::DeadLetter], new(ours, push).statuses];
    for (since, statuses) in [
        (None, &statuses[0]),
        (None, &statuses[1]),
        (minutes(5), &statuses[1]),
    ] {
        let wanted = NewReplay {
            since,
            until: later,
            statuses: statuses.clone(),
            ..new(ours, push)
        };
        let made = store.replays.create_replay(wanted, 10).await.unwrap().unwrap();
        let more = event(ours);
        take_in(store, me, std::slice::from_ref(&more), &[(push, true)]).await;
        end(store, me, std::slice::from_ref(&more), push, |_| true).await;
        let begun = store.replays.begin_replay(&made).await.unwrap().unwrap();
        let (seen, _) = whole(store, begun, 100).await;
        assert!(
            seen.contains(&events[0].id) && !seen.contains(&more.id),
            "{seen:?}"
        );
        assert_eq!(end_again(store, me, ours, push).await, seen.len());
    }
}

pub(crate) async fn what_has_another_id_is_found_by_when_it_was_accepted(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 3, Some(me)).await;
    let now = Timestamp::now();
    let long_ago = accepted_at(ours, now.minus(90 * 24 * 60 * MINUTE));
    let put = put_back(&long_ago);
    take_in(store, me, std::slice::from_ref(&put), &[(push, true)]).await;
    end(store, me, &events, push, |_| true).await;
    end(store, me, std::slice::from_ref(&put), push, |_| true).await;
    for statuses in [
        vec![DeliveryState::DeadLetter],
        vec![DeliveryState::Delivered, DeliveryState::DeadLetter],
    ] {
        for (since, until, opened) in [
            (long_ago.received_at, long_ago.received_at.plus(MINUTE), 1),
            (now.minus(MINUTE), now.plus(MINUTE), 3),
            // Both its ids are in it.
            (long_ago.received_at, now.plus(MINUTE), 4),
        ] {
            let wanted = NewReplay {
                since: Some(since),
                until: Some(until),
                statuses: statuses.clone(),
                ..new(ours, push)
            };
            let replay = begun(store, wanted).await;
            let (seen, _) = whole(store, replay.clone(), 100).await;
            assert!(seen.iter().filter(|id| **id == put.id).count() < 2, "{seen:?}");
            let done = store.replays.get_replay(ours, replay.id).await.unwrap().unwrap();
            assert_eq!(done.opened, opened, "{:?} {statuses:?}", replay.way);
            assert_eq!(end_again(store, me, ours, push).await as u64, opened);
        }
    }
}

pub(crate) async fn whoever_cannot_get_on_lets_others_by(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 2, Some(me)).await;
    end(store, me, &events, push, |_| true).await;
    let replays = &store.replays;
    let (first, second) = (
        begun(store, new(ours, push)).await,
        begun(store, new(ours, push)).await,
    );
    let running = async || {
        let running = replays.running_replays(10).await.unwrap();
        running.iter().map(|(replay, _)| replay.id).collect::<Vec<_>>()
    };
    assert_eq!(running().await, [first.id, second.id]);
    let mut step = next(store, &first, 1).await;
    step.done = false;
    replays.replay_step(&first, &step).await.unwrap().unwrap();
    assert_eq!(running().await, [second.id, first.id], "it had its turn");
    replays.put_off_replay(&second, MINUTE).await.unwrap();
    assert_eq!(running().await, [first.id]);
    replays.put_off_replay(&second, Duration::ZERO).await.unwrap();
    assert_eq!(running().await, [first.id, second.id]);
    let after = replays.get_replay(ours, second.id).await.unwrap().unwrap();
    assert_eq!(
        (after.updated_at, after.status),
        (second.updated_at, ReplayStatus::Running)
    );
}

/// Where the rows that a statement reads end within an event's, those left of it come next.
pub(crate) async fn events_of_many_dead_letters_are_not_passed_over(store: &Store) {
    const LANES: usize = 90;
    const EVENTS: usize = 50;
    let (me, ours) = (worker(store).await, organization(store).await.id);
    let mut lanes = Vec::with_capacity(LANES);
    for _ in 0..LANES {
        lanes.push((push(store, ours).await.id, true));
    }
    let events: Vec<_> = (0..EVENTS).map(|_| event(ours)).collect();
    take_in(store, me, &events, &lanes).await;
    for (lane, _) in &lanes {
        end(store, me, &events, *lane, |_| true).await;
    }
    for (lane, _) in [lanes[0], lanes[LANES / 2], lanes[LANES - 1]] {
        let wanted = NewReplay {
            statuses: vec![DeliveryState::DeadLetter],
            ..new(ours, lane)
        };
        let replay = begun(store, wanted).await;
        assert_eq!(replay.way.unwrap().walk, Walk::DeadLetters);
        let (seen, steps) = whole(store, replay.clone(), 500).await;
        assert_eq!((seen.len(), steps), (EVENTS, 2));
        let done = store.replays.get_replay(ours, replay.id).await.unwrap().unwrap();
        assert_eq!(done.opened, EVENTS as u64);
    }
}

pub(crate) async fn opening_is_announced(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 1, Some(me)).await;
    store
        .deliveries
        .record(me, &[failed(&events[0], push, 1, LATER)])
        .await
        .unwrap();
    let mut changes = store.keeper.changes();
    let told = async {
        loop {
            if matches!(changes.recv().await, Ok(Change::Subscription(told)) if told == push) {
                return;
            }
        }
    };
    let ask = async {
        loop {
            store.replays.retry(ours, key(&events[0], push)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = told => {}
        () = async { tokio::time::timeout(MINUTE, ask).await.unwrap() } => {}
    }
}

/// Others of the event are held still: whoever is told lets go of the one alone.
pub(crate) async fn cancelling_what_a_worker_holds_is_announced(store: &Store) {
    let (ours, me) = (organization(store).await.id, worker(store).await);
    let (one, other) = (push(store, ours).await.id, push(store, ours).await.id);
    let (held, due) = (event(ours), event(ours));
    take_in(
        store,
        me,
        std::slice::from_ref(&held),
        &[(one, true), (other, true)],
    )
    .await;
    take_in(store, me, std::slice::from_ref(&due), &[(one, false)]).await;
    let mut changes = store.keeper.changes();
    let mut word = async || {
        let word = tokio::time::timeout(MINUTE, changes.recv()).await;
        word.expect("word of it").expect("the store lives")
    };
    while word().await != Change::Everything {}
    // Nobody holds the first: of that there is no word.
    for event in [&due, &held] {
        let cancelled = store.replays.cancel(ours, key(event, one)).await.unwrap();
        assert_eq!(cancelled, ActedOn::Done);
    }
    assert_eq!(word().await, Change::Cancelled(key(&held, one)));
    let keys = [key(&held, one), key(&held, other)];
    let held_still = store.deliveries.still_held(me, &keys).await.unwrap();
    assert_eq!(held_still, [key(&held, other)]);
    let again = store.replays.cancel(ours, key(&held, one)).await.unwrap();
    assert_eq!(again, ActedOn::Refused);
}

/// A lane that came to be in order takes what is opened again in its order, too.
pub(crate) async fn what_is_opened_again_is_in_order(store: &Store) {
    let me = worker(store).await;
    let ours = organization(store).await.id;
    let push = push(store, ours).await;
    let posted: Vec<_> = (0..2).map(|_| event(ours)).collect();
    for event in &posted {
        take_in(store, me, std::slice::from_ref(event), &[(push.id, true)]).await;
    }
    let outcomes: Vec<_> = posted
        .iter()
        .map(|event| failed(event, push.id, 1, Next::DeadLetter))
        .collect();
    store.deliveries.record(me, &outcomes).await.unwrap();
    let mut settings = push.push().unwrap().clone();
    settings.ordering = shared::subscription::Ordering::Fifo;
    let patch = shared::store::SubscriptionPatch {
        target: Some(shared::subscription::Target::Push(settings)),
        ..Default::default()
    };
    store.subscriptions.patch(ours, push.id, 1, patch).await.unwrap();
    store.deliveries.own(me, &[push.id]).await.unwrap();
    for event in posted.iter().rev() {
        assert_eq!(
            store.replays.retry(ours, key(event, push.id)).await.unwrap(),
            ActedOn::Done
        );
    }
    let taken = store.deliveries.claim_in_order(me, push.id, 10).await.unwrap();
    let taken: Vec<_> = taken.iter().map(|claimed| claimed.key.event).collect();
    assert_eq!(taken, [posted[0].id, posted[1].id]);
}
