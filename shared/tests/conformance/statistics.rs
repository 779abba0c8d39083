//! What workers tell of subscriptions, and what it comes to.

use std::{slice::from_ref, time::Duration};

use shared::{
    FailureKind, Timestamp, WorkerId,
    delivery::Next,
    statistics::Tally,
    store::{BacklogAge, Minute, OpenCircuit, Store, SubscriptionPatch, SuccessBand},
};

use super::{
    deliveries::lane,
    keeper::yesterdays_id,
    world::{MINUTE, event, failed, inbox, organization, push, take_in, worker},
};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn minute(subscription: shared::SubscriptionId, number: i64, well: u32, ill: u32) -> Minute {
    let mut tally = Tally::default();
    for _ in 0..well {
        tally.add(None, Duration::from_millis(4));
    }
    for _ in 0..ill {
        tally.add(Some(FailureKind::Timeout), 15 * SECOND);
    }
    Minute {
        subscription,
        number,
        tally,
        success_ago: (well > 0).then_some(2 * SECOND),
        failure_ago: (ill > 0).then_some(SECOND),
    }
}

pub(crate) async fn what_workers_count_is_added_up(store: &Store) {
    let ours = organization(store).await.id;
    let (one, other) = (push(store, ours).await.id, push(store, ours).await.id);
    let (me, another) = (WorkerId::new(), WorkerId::new());
    let write = async |counter, minutes: &[Minute]| {
        store.insight.write_minutes(counter, minutes).await.unwrap();
    };
    write(me, &[minute(one, 0, 1, 0), minute(other, 0, 0, 5)]).await;
    // It has gone on: the count is in place of the one before. And it may be written once more.
    for _ in 0..2 {
        write(me, &[minute(one, 0, 8, 0), minute(one, 1, 0, 1)]).await;
    }
    write(another, &[minute(one, 0, 0, 1)]).await;
    let before = Timestamp::now();
    let stats = store.insight.subscription_stats(one).await.unwrap();
    let tally = &stats.tally;
    assert_eq!((tally.attempts(), tally.succeeded(), tally.failed()), (10, 8, 2));
    assert_eq!(tally.success_rate(), Some(0.8));
    assert_eq!(tally.failures_text(), r#"{"timeout":2}"#);
    assert_eq!(tally.percentile_ms(50), Some(4));
    assert!(tally.percentile_ms(95).unwrap().abs_diff(15_000) <= 1_000);
    for (at, ago) in [
        (stats.last_success_at, 2 * SECOND),
        (stats.last_failure_at, SECOND),
    ] {
        let since = before.since(at.expect("a time"));
        assert!(
            since >= ago.saturating_sub(SECOND / 2) && since < ago + MINUTE,
            "{since:?}"
        );
    }
    let none = store
        .insight
        .subscription_stats(inbox(store, ours).await)
        .await
        .unwrap();
    assert_eq!(none, shared::store::SubscriptionStats::default());
}

pub(crate) async fn circuits_count_while_their_worker_lives(store: &Store) {
    let ours = organization(store).await.id;
    let (one, other) = (push(store, ours).await.id, push(store, ours).await.id);
    let (me, another, dead) = (worker(store).await, worker(store).await, WorkerId::new());
    let open = |subscription, next_probe_in| OpenCircuit {
        subscription,
        open_for: MINUTE,
        next_probe_in,
    };
    let write = async |worker, open: &[OpenCircuit], closed: &[shared::SubscriptionId]| {
        store.insight.write_circuits(worker, open, closed).await.unwrap();
    };
    let circuit = async |of| store.insight.subscription_stats(of).await.unwrap().circuit;
    write(dead, &[open(one, MINUTE)], &[]).await;
    assert_eq!(circuit(one).await, None, "whoever has it open is dead");
    write(me, &[open(one, 5 * MINUTE), open(other, Duration::ZERO)], &[]).await;
    let alone = circuit(one).await.expect("it is open");
    assert!(!alone.is_half_open);
    assert_eq!(alone.workers, 1);
    assert_eq!(alone.next_probe_at.since(alone.since), 6 * MINUTE);
    assert!(
        circuit(other).await.expect("it is open").is_half_open,
        "a probe may be sent"
    );
    let fleet = store.insight.fleet().await.unwrap();
    assert_eq!((fleet.subscriptions, fleet.open, fleet.half_open), (2, 1, 1));
    write(another, &[open(one, MINUTE)], &[]).await;
    let both = circuit(one).await.expect("it is open");
    assert_eq!(both.workers, 2);
    assert!(both.next_probe_at < alone.next_probe_at, "the first that comes");
    // Its next probe has failed, too.
    write(another, &[open(one, 20 * MINUTE)], &[]).await;
    assert_eq!(circuit(one).await.unwrap().next_probe_at, alone.next_probe_at);
    store.deliveries.resign(me).await.unwrap();
    assert_eq!(circuit(one).await.unwrap().workers, 1);
    write(another, &[], &[one, other]).await;
    assert_eq!(circuit(one).await, None);
    store.keeper.keep(Duration::from_hours(24)).await.unwrap();
    assert_eq!(circuit(other).await, None);
}

pub(crate) async fn a_backlog_is_counted_with_its_age(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 5, Some(me)).await;
    let old = shared::AcceptedEvent {
        id: yesterdays_id(),
        ..event(ours)
    };
    take_in(store, me, from_ref(&old), &[(push, true)]).await;
    store.deliveries.acknowledge(ours, &[events[0].id]).await.unwrap();
    let later = failed(&events[1], push, 1, Next::Retry { after: MINUTE });
    store.deliveries.record(me, &[later]).await.unwrap();
    let stats = store.insight.subscription_stats(push).await.unwrap();
    assert_eq!(stats.backlog, 5, "what is retried and what is in flight included");
    let age = stats.oldest_undelivered.expect("an age");
    let expected = Timestamp::now().since(old.id.created_at().unwrap());
    assert!(age <= expected && age + MINUTE > expected, "{age:?}");
    let inbox = inbox(store, ours).await;
    assert_eq!(store.insight.subscription_stats(inbox).await.unwrap().backlog, 0);
}

pub(crate) async fn a_backlog_is_counted_to_a_cap(store: &Store) {
    let me = worker(store).await;
    let ours = organization(store).await.id;
    let push = push(store, ours).await.id;
    for _ in 0..11 {
        let events: Vec<_> = (0..1_000).map(|_| event(ours)).collect();
        take_in(store, me, &events, &[(push, false)]).await;
    }
    let stats = store.insight.subscription_stats(push).await.unwrap();
    assert_eq!(stats.backlog, shared::store::BACKLOG_COUNTED + 1);
}

pub(crate) async fn the_fleet_is_counted_in_bands(store: &Store) {
    let me = worker(store).await;
    let (ours, one, _) = lane(store, 2, Some(me)).await;
    let old = shared::AcceptedEvent {
        id: yesterdays_id(),
        ..event(ours)
    };
    let slow = push(store, ours).await.id;
    take_in(
        store,
        me,
        from_ref(&old),
        &[(slow, false), (inbox(store, ours).await, false)],
    )
    .await;
    let mut minutes = Vec::new();
    for (well, ill) in [(3, 0), (9, 1), (5, 5), (1, 9), (0, 2), (0, 1)] {
        let subscription = push(store, ours).await.id;
        minutes.push(minute(subscription, 0, well, ill));
    }
    // Its two minutes are seen together.
    minutes.push(minute(one, 0, 9, 0));
    minutes.push(minute(one, 1, 0, 3));
    store.insight.write_minutes(me, &minutes).await.unwrap();
    let fleet = store.insight.fleet().await.unwrap();
    assert_eq!(fleet.subscriptions, 8);
    let band = |band: SuccessBand| fleet.by_success[band as usize];
    assert_eq!(SuccessBand::ALL.map(band), [1, 1, 2, 1, 2]);
    // It is of yesterday's last minute: whether that is an hour ago depends on the time of day.
    let age = Timestamp::now().since(old.id.created_at().unwrap());
    assert!(fleet.oldest_undelivered <= age && fleet.oldest_undelivered + MINUTE > age);
    let backlogged = |band: BacklogAge| fleet.backlogged[band as usize];
    assert_eq!(backlogged(BacklogAge::Minute), 1);
    assert!(backlogged(BacklogAge::Hour) <= backlogged(BacklogAge::TenMinutes));
    let disable = SubscriptionPatch {
        enabled: Some(false),
        ..SubscriptionPatch::default()
    };
    assert_eq!(store.deliveries.backlog().await.unwrap().parked, 0);
    store.subscriptions.patch(ours, slow, 1, disable).await.unwrap();
    let fleet = store.insight.fleet().await.unwrap();
    assert_eq!((fleet.subscriptions, fleet.backlogged), (7, [0, 0, 0]));
    let backlog = store.deliveries.backlog().await.unwrap();
    assert_eq!(
        (backlog.parked, backlog.pending),
        (1, 2),
        "what is pulled does not count"
    );
}
