//! Opening deliveries again.

use std::time::Duration;

use shared::{
    DeliveryState, DeliveryStatus, EventPattern, OrganizationId, ReplayId, SubscriptionId, Timestamp,
    delivery::Next,
    store::{ActedOn, Change, NewReplay, Replay, ReplayStatus, ReplayStep, Store},
};

use super::{
    deliveries::{claim, delivery, lane},
    world::{MINUTE, event, failed, key, organization, push, succeeded, take_in, worker},
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

/// A step over all that there is next.
async fn next(store: &Store, replay: &Replay, limit: u32) -> ReplayStep {
    let candidates = store.replays.replay_candidates(replay, limit).await.unwrap();
    assert!(candidates.is_sorted_by_key(|candidate| candidate.seq));
    ReplayStep {
        events: candidates.iter().map(|candidate| candidate.event).collect(),
        after_seq: candidates.last().map_or(replay.after_seq, |last| last.seq),
        looked_at: candidates.len() as u64,
        done: candidates.len() < limit as usize,
    }
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

    let first = next(store, &made, 3).await;
    assert_eq!(replays.replay_step(&made, &first).await.unwrap(), Some(2));
    assert_eq!(
        replays.replay_step(&made, &first).await.unwrap(),
        None,
        "another was ahead"
    );
    let (running, is_there) = replays.running_replays(10).await.unwrap().remove(0);
    assert!(is_there);
    assert_eq!(
        (running.after_seq, running.looked_at, running.opened),
        (first.after_seq, 3, 2)
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
    let made = replays.create_replay(new(ours, push), 5).await.unwrap().unwrap();
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
