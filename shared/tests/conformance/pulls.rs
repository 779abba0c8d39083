//! Pulling. A lease that is to run out in a check is one of no time at all: it has run out as soon as it is there.

use std::{
    collections::{BTreeMap, HashSet},
    slice::from_ref,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use shared::{
    AcceptedEvent, DeliveryState, DeliveryStatus, EventId, EventPattern, OrganizationId, ReplayId,
    Subscription, SubscriptionId,
    store::{
        Change, DeliveryFilter, DeliveryRecord, EventFilter, LeaseChange, NewReplay, Order, PAGE_BYTES,
        PullSource, Pulled, PulledEvent, ReplayStep, Settled, Store, SubscriptionPatch,
    },
    subscription::Target,
};
use tokio::task::JoinSet;

use super::{
    keeper::yesterdays_id,
    world::{
        MINUTE, event, first, get, inbox, key, keyed, new_push, organization, payload, push, take_in, worker,
    },
};

/// A new organization's pull subscription, and events for it.
async fn filled(store: &Store, count: usize) -> (PullSource, Vec<AcceptedEvent>) {
    let source = source(store, organization(store).await.id).await;
    let events: Vec<_> = (0..count).map(|_| event(source.organization)).collect();
    put(store, source, &events).await;
    (source, events)
}

async fn source(store: &Store, organization: OrganizationId) -> PullSource {
    let pull = Subscription {
        target: Target::Pull,
        ..new_push(organization)
    };
    PullSource {
        organization,
        subscription: store.subscriptions.create(pull).await.unwrap().unwrap().id,
    }
}

async fn put(store: &Store, source: PullSource, events: &[AcceptedEvent]) {
    if !events.is_empty() {
        let worker = worker(store).await;
        take_in(store, worker, events, &[(source.subscription, false)]).await;
    }
}

async fn pull(store: &Store, source: PullSource, most: u32, lease: Duration) -> Vec<PulledEvent> {
    match store.pulls.pull(source, most, lease).await.unwrap() {
        Pulled::Events(events) => events,
        Pulled::Nothing { .. } => Vec::new(),
        other => panic!("{other:?}"),
    }
}

async fn pulled(store: &Store, source: PullSource, most: u32, lease: Duration) -> Vec<EventId> {
    let events = pull(store, source, most, lease).await;
    events.iter().map(|event| event.id).collect()
}

fn ids(events: &[AcceptedEvent]) -> Vec<EventId> {
    events.iter().map(|event| event.id).collect()
}

async fn delivery(store: &Store, source: PullSource, event: EventId) -> DeliveryRecord {
    let record = get(store, source.organization, event).await;
    let mut deliveries = record.deliveries.into_iter();
    deliveries
        .find(|delivery| delivery.subscription == source.subscription)
        .expect("it has a delivery")
}

async fn acknowledge(store: &Store, source: PullSource, events: &[EventId]) -> Vec<Option<DeliveryStatus>> {
    statuses(store.pulls.acknowledge_pulled(source, events).await.unwrap())
}

async fn change(
    store: &Store,
    source: PullSource,
    events: &[EventId],
    change: LeaseChange,
) -> Vec<Option<DeliveryStatus>> {
    statuses(store.pulls.change_leases(source, events, change).await.unwrap())
}

fn statuses(settled: Vec<Settled>) -> Vec<Option<DeliveryStatus>> {
    let status = |settled| match settled {
        Settled::Delivery { status, .. } => Some(status),
        Settled::NotFound => None,
    };
    settled.into_iter().map(status).collect()
}

const NOW: LeaseChange = LeaseChange::Release {
    due_in: Duration::ZERO,
};
const LONGER: LeaseChange = LeaseChange::Extend { lease: MINUTE };

pub(crate) async fn leased_oldest_first(store: &Store) {
    let (source, mut events) = filled(store, 3).await;
    let last = [event(source.organization)];
    put(store, source, &last).await;
    events.extend(last);
    let leased = pull(store, source, 2, MINUTE).await;
    assert_eq!(
        leased.iter().map(|event| event.id).collect::<Vec<_>>(),
        ids(&events[..2])
    );
    let one = &leased[0];
    assert_eq!(
        (&*one.event_type, &*one.payload, one.pulls),
        ("order.created", r#"{"n":1}"#, 1)
    );
    assert_eq!(one.received_at, events[0].received_at);
    let shown = delivery(store, source, one.id).await;
    assert_eq!((shown.status, shown.attempts), (DeliveryStatus::InFlight, 1));
    assert_eq!(
        (shown.lease_until, shown.next_attempt_at),
        (Some(one.lease_until), None)
    );
    let waiting = delivery(store, source, events[2].id).await;
    assert_eq!(
        (waiting.status, waiting.lease_until),
        (DeliveryStatus::Pending, None)
    );
    assert_eq!(pulled(store, source, 10, MINUTE).await, ids(&events[2..]));
    let Pulled::Nothing { due_in: Some(due_in) } = store.pulls.pull(source, 10, MINUTE).await.unwrap() else {
        panic!("everything is leased");
    };
    assert!(due_in <= MINUTE && due_in > MINUTE / 2, "{due_in:?}");
    // What is leased is not what workers or their lists of lanes know.
    let worker = worker(store).await;
    assert!(
        store
            .deliveries
            .claim(worker, &[(source.subscription, 10)])
            .await
            .unwrap()
            .is_empty()
    );
}

pub(crate) async fn only_pull_subscriptions_are_pulled_from(store: &Store) {
    let ours = organization(store).await.id;
    let (source, theirs) = (source(store, ours).await, organization(store).await.id);
    let push = push(store, ours).await.id;
    let me = worker(store).await;
    let one = event(ours);
    take_in(
        store,
        me,
        from_ref(&one),
        &[(source.subscription, false), (push, false)],
    )
    .await;
    let at = |organization, subscription| PullSource {
        organization,
        subscription,
    };
    let try_pull = async |source| store.pulls.pull(source, 10, MINUTE).await.unwrap();
    assert!(matches!(try_pull(at(ours, push)).await, Pulled::Pushed));
    assert!(matches!(
        try_pull(at(theirs, source.subscription)).await,
        Pulled::NotFound
    ));
    assert!(matches!(
        try_pull(at(ours, SubscriptionId::new())).await,
        Pulled::NotFound
    ));
    let nobody = at(theirs, source.subscription);
    assert_eq!(acknowledge(store, nobody, &[one.id]).await, [None]);
    assert_eq!(
        acknowledge(store, at(ours, push), &[one.id]).await,
        [Some(DeliveryStatus::Pending)],
        "what is pushed is not acknowledged here"
    );
    let disable = async |enabled| {
        let lane = store
            .subscriptions
            .get(ours, source.subscription)
            .await
            .unwrap()
            .unwrap();
        let patch = SubscriptionPatch {
            enabled: Some(enabled),
            ..SubscriptionPatch::default()
        };
        store
            .subscriptions
            .patch(ours, lane.id, lane.version, patch)
            .await
            .unwrap();
    };
    disable(false).await;
    assert!(matches!(try_pull(source).await, Pulled::Disabled));
    assert_eq!(
        delivery(store, source, one.id).await.status,
        DeliveryStatus::Parked
    );
    disable(true).await;
    assert_eq!(pulled(store, source, 10, MINUTE).await, [one.id]);
    // What is leased when the subscription is disabled can still be finished, and is parked if it is given back.
    disable(false).await;
    assert_eq!(
        delivery(store, source, one.id).await.status,
        DeliveryStatus::InFlight
    );
    assert_eq!(
        change(store, source, &[one.id], NOW).await,
        [Some(DeliveryStatus::Parked)]
    );
    assert_eq!(
        acknowledge(store, source, &[one.id]).await,
        [Some(DeliveryStatus::Acknowledged)]
    );
    // The inbox is a pull subscription like others.
    let inbox = at(ours, inbox(store, ours).await);
    let unwanted = event(ours);
    put(store, inbox, from_ref(&unwanted)).await;
    assert_eq!(pulled(store, inbox, 10, MINUTE).await, [unwanted.id]);
}

pub(crate) async fn a_lease_runs_out(store: &Store) {
    let (source, events) = filled(store, 2).await;
    assert_eq!(
        pulled(store, source, 10, Duration::ZERO).await,
        ids(&events),
        "for no time at all"
    );
    let shown = delivery(store, source, events[0].id).await;
    assert_eq!((shown.status, shown.lease_until), (DeliveryStatus::Pending, None));
    // It cannot be made longer any more, and giving it back changes nothing.
    for late in [LONGER, NOW] {
        assert_eq!(
            change(store, source, &[events[0].id], late).await,
            [Some(DeliveryStatus::Pending)]
        );
    }
    let again = pull(store, source, 10, MINUTE).await;
    assert_eq!(again.iter().map(|event| event.pulls).collect::<Vec<_>>(), [2, 2]);
    assert!(pulled(store, source, 10, MINUTE).await.is_empty());
    // Whoever was late may still acknowledge.
    let (source, events) = filled(store, 1).await;
    pull(store, source, 10, Duration::ZERO).await;
    assert_eq!(
        acknowledge(store, source, &ids(&events)).await,
        [Some(DeliveryStatus::Acknowledged)]
    );
    assert!(pulled(store, source, 10, MINUTE).await.is_empty());
}

pub(crate) async fn what_ran_out_comes_after_what_was_due(store: &Store) {
    let (source, events) = filled(store, 3).await;
    let poison = pulled(store, source, 1, Duration::ZERO).await;
    assert_eq!(poison, ids(&events[..1]));
    let mut order = Vec::new();
    for _ in 0..3 {
        order.extend(pulled(store, source, 1, MINUTE).await);
    }
    assert_eq!(order, [events[1].id, events[2].id, events[0].id]);
}

pub(crate) async fn acknowledged_alone(store: &Store) {
    let ours = organization(store).await.id;
    let (one, other) = (source(store, ours).await, source(store, ours).await);
    let (push, me) = (push(store, ours).await.id, worker(store).await);
    let (first, repeat) = (keyed(ours, "k"), keyed(ours, "k"));
    let to_all = [
        (one.subscription, false),
        (other.subscription, false),
        (push, false),
    ];
    take_in(store, me, from_ref(&first), &to_all).await;
    take_in(store, me, from_ref(&repeat), &to_all).await;
    assert_eq!(pulled(store, one, 10, MINUTE).await, [first.id]);
    let unknown = EventId::new();
    let asked = [repeat.id, unknown, first.id, first.id];
    for _twice in 0..2 {
        let settled = store.pulls.acknowledge_pulled(one, &asked).await.unwrap();
        assert_eq!(settled[1], Settled::NotFound);
        for at in [0, 2, 3] {
            let Settled::Delivery {
                event,
                status,
                lease_until,
                ..
            } = settled[at]
            else {
                panic!("{settled:?}");
            };
            assert_eq!(
                (event, status, lease_until),
                (first.id, DeliveryStatus::Acknowledged, None)
            );
        }
    }
    assert_eq!(
        delivery(store, other, first.id).await.status,
        DeliveryStatus::Pending
    );
    let pushed = PullSource {
        subscription: push,
        ..one
    };
    assert_eq!(
        delivery(store, pushed, first.id).await.status,
        DeliveryStatus::Pending
    );
    assert_eq!(
        pulled(store, other, 10, MINUTE).await,
        [first.id],
        "each has its own"
    );
}

pub(crate) async fn leases_are_released_and_extended(store: &Store) {
    let (source, events) = filled(store, 3).await;
    let [one, two, three] = [events[0].id, events[1].id, events[2].id];
    assert_eq!(
        change(store, source, &[one], LONGER).await,
        [Some(DeliveryStatus::Pending)],
        "there is no lease to make longer"
    );
    pull(store, source, 10, 2 * MINUTE).await;
    assert_eq!(
        change(store, source, &[one, EventId::new()], NOW).await,
        [Some(DeliveryStatus::Pending), None]
    );
    assert_eq!(pulled(store, source, 10, MINUTE).await, [one]);
    let later = LeaseChange::Release { due_in: MINUTE };
    assert_eq!(
        change(store, source, &[two], later).await,
        [Some(DeliveryStatus::Pending)]
    );
    assert!(
        pulled(store, source, 10, MINUTE).await.is_empty(),
        "it is not due yet"
    );
    assert_eq!(
        change(store, source, &[two], NOW).await,
        [Some(DeliveryStatus::Pending)]
    );
    assert!(
        pulled(store, source, 10, MINUTE).await.is_empty(),
        "and nobody has a lease of it to give back"
    );
    let before = delivery(store, source, three).await.lease_until.unwrap();
    let settled = store
        .pulls
        .change_leases(source, &[three], LeaseChange::Extend { lease: 10 * MINUTE })
        .await
        .unwrap();
    let Settled::Delivery {
        lease_until: Some(until),
        ..
    } = settled[0]
    else {
        panic!("{settled:?}");
    };
    assert!(until.since(before) > 7 * MINUTE, "{:?}", until.since(before));
    assert_eq!(delivery(store, source, three).await.lease_until, Some(until));
}

pub(crate) async fn whatever_else_ends_a_delivery_ends_its_lease(store: &Store) {
    let (source, events) = filled(store, 4).await;
    let organization = source.organization;
    pull(store, source, 10, MINUTE).await;
    let [one, two, three, four] = [0, 1, 2, 3].map(|at: usize| &events[at]);
    // The event as a whole is acknowledged, called off, or made due now.
    store
        .deliveries
        .acknowledge(organization, &[one.id])
        .await
        .unwrap();
    store
        .replays
        .cancel(organization, key(two, source.subscription))
        .await
        .unwrap();
    let wanted = [
        Some(DeliveryStatus::Acknowledged),
        Some(DeliveryStatus::Cancelled),
        Some(DeliveryStatus::InFlight),
    ];
    assert_eq!(
        change(store, source, &[one.id, two.id, three.id], LONGER).await,
        wanted
    );
    assert_eq!(change(store, source, &[one.id, two.id], NOW).await, wanted[..2]);
    assert_eq!(
        acknowledge(store, source, &[one.id, two.id]).await,
        wanted[..2],
        "nothing is left to acknowledge"
    );
    store
        .replays
        .retry(organization, key(three, source.subscription))
        .await
        .unwrap();
    assert_eq!(pulled(store, source, 10, MINUTE).await, [three.id]);
    // What has ended is opened again.
    store
        .replays
        .retry(organization, key(two, source.subscription))
        .await
        .unwrap();
    let again = pull(store, source, 10, MINUTE).await;
    assert_eq!((again[0].id, again[0].pulls, again.len()), (two.id, 2, 1));
    assert_eq!(
        acknowledge(store, source, &[two.id]).await,
        [Some(DeliveryStatus::Acknowledged)]
    );
    let replay = NewReplay {
        id: ReplayId::new(),
        organization,
        subscription: source.subscription,
        since: None,
        until: None,
        statuses: vec![DeliveryState::Acknowledged],
        event_types: vec![EventPattern::all()],
    };
    let replay = store.replays.create_replay(replay, 10).await.unwrap().unwrap();
    let step = ReplayStep {
        events: ids(&events),
        after_seq: i64::MAX,
        after_id: None,
        looked_at: 4,
        done: true,
    };
    assert_eq!(store.replays.replay_step(&replay, &step).await.unwrap(), Some(2));
    let reopened: HashSet<_> = pulled(store, source, 10, MINUTE).await.into_iter().collect();
    assert_eq!(reopened, HashSet::from([one.id, two.id]));
    // The subscription goes, with what is leased.
    store
        .subscriptions
        .delete(organization, source.subscription)
        .await
        .unwrap();
    assert!(matches!(
        store.pulls.pull(source, 10, MINUTE).await.unwrap(),
        Pulled::NotFound
    ));
    assert_eq!(
        acknowledge(store, source, &[four.id]).await,
        [Some(DeliveryStatus::Cancelled)]
    );
    while store.keeper.cancel_deleted().await.unwrap() {}
    assert_eq!(
        delivery(store, source, four.id).await.status,
        DeliveryStatus::Cancelled
    );
}

pub(crate) async fn retention_ends_what_is_leased(store: &Store) {
    let source = source(store, organization(store).await.id).await;
    let old = AcceptedEvent {
        id: yesterdays_id(),
        ..event(source.organization)
    };
    store
        .events
        .admit(&[old.id], 30 * 24 * 60 * MINUTE)
        .await
        .unwrap();
    put(store, source, from_ref(&old)).await;
    assert_eq!(pulled(store, source, 10, MINUTE).await, [old.id]);
    assert_eq!(store.keeper.keep(Duration::ZERO).await.unwrap().expired, 1);
    let expired = [Some(DeliveryStatus::Expired)];
    assert_eq!(change(store, source, &[old.id], NOW).await, expired);
    assert_eq!(acknowledge(store, source, &[old.id]).await, expired);
    assert!(pulled(store, source, 10, MINUTE).await.is_empty());
}

pub(crate) async fn pulls_are_bounded_by_bytes(store: &Store) {
    let source = source(store, organization(store).await.id).await;
    let third = usize::try_from(PAGE_BYTES).unwrap() / 3;
    let text: &'static str = String::leak(format!("\"{}\"", "x".repeat(third)));
    let large: Vec<_> = (0..5)
        .map(|_| AcceptedEvent {
            payload: payload(text),
            ..event(source.organization)
        })
        .collect();
    for event in &large {
        put(store, source, from_ref(event)).await;
    }
    assert_eq!(pulled(store, source, 100, MINUTE).await, ids(&large[..2]));
    assert_eq!(pulled(store, source, 100, MINUTE).await, ids(&large[2..4]));
    assert_eq!(pulled(store, source, 100, MINUTE).await, ids(&large[4..]));
}

pub(crate) async fn pulls_never_overlap(store: &Store) {
    let (source, events) = filled(store, 400).await;
    let mut pullers = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        pullers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let some = pulled(&store, source, 7, MINUTE).await;
                if some.is_empty() {
                    return mine;
                }
                acknowledge(&store, source, &some[..some.len() / 2]).await;
                mine.extend(some);
            }
        });
    }
    let mut all = pullers.join_all().await.concat();
    // A puller may have found nothing only because others were looking at the last.
    all.extend(pulled(store, source, 1_000, MINUTE).await);
    let different: HashSet<_> = all.iter().copied().collect();
    assert_eq!((all.len(), different.len()), (events.len(), events.len()));
}

pub(crate) async fn who_waits_is_told(store: &Store) {
    let (source, events) = filled(store, 1).await;
    let (lane, mut changes) = (source.subscription, store.keeper.changes());
    let heard = async {
        let (mut awaited, mut released) = (false, false);
        while !(awaited && released) {
            match changes.recv().await.unwrap() {
                Change::Awaited(told) => awaited |= told == lane,
                Change::Lane(told) => released |= told == lane,
                _ => {}
            }
        }
    };
    let tell = async {
        loop {
            // Until the listener listens.
            store.pulls.tell_awaited(lane).await.unwrap();
            pull(store, source, 1, MINUTE).await;
            change(store, source, &ids(&events), NOW).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = heard => {}
        () = async { tokio::time::timeout(MINUTE, tell).await.unwrap() } => {}
    }
}

pub(crate) async fn lists_show_what_is_leased(store: &Store) {
    let (source, events) = filled(store, 3).await;
    let leased = pull(store, source, 2, MINUTE).await;
    let shown = async |status| {
        let filter = DeliveryFilter {
            status: Some(status),
            ..DeliveryFilter::default()
        };
        let listed = store
            .insight
            .list_deliveries(source.organization, &filter, first(10))
            .await
            .unwrap();
        let shown = listed.items.iter().map(|one| (one.event, one.lease_until));
        shown.collect::<Vec<_>>()
    };
    let until = |at: usize| (leased[at].id, Some(leased[at].lease_until));
    assert_eq!(shown(DeliveryStatus::InFlight).await, [until(1), until(0)]);
    assert_eq!(shown(DeliveryStatus::Pending).await, [(events[2].id, None)]);
    // Erased events are called off, leased or not.
    store
        .erasures
        .erase(source.organization, events[0].id)
        .await
        .unwrap();
    assert_eq!(shown(DeliveryStatus::InFlight).await, [until(1)]);
    assert_eq!(
        acknowledge(store, source, &[events[0].id]).await,
        [Some(DeliveryStatus::Cancelled)]
    );
}

/// What a delivery is to the model: the lease of no time leaves it due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Due,
    Leased,
    Closed(DeliveryStatus),
}

impl Model {
    fn status(self) -> DeliveryStatus {
        match self {
            Self::Due => DeliveryStatus::Pending,
            Self::Leased => DeliveryStatus::InFlight,
            Self::Closed(status) => status,
        }
    }
}

/// Hundreds of operations in an order that a seed gives, each held against what a few lines say of it.
pub(crate) async fn any_order_of_operations(store: &Store) {
    let seed: u64 = rand::rng().random();
    let mut random = StdRng::seed_from_u64(seed);
    let (source, events) = filled(store, 12).await;
    let mut model: BTreeMap<EventId, Model> = events.iter().map(|event| (event.id, Model::Due)).collect();
    for step in 0..120 {
        let told = format!("seed {seed}, step {step}");
        let some: Vec<EventId> = ids(&events).sample(&mut random, 3).copied().collect();
        let one = shared::DeliveryKey {
            event: some[0],
            subscription: source.subscription,
        };
        match random.random_range(0..7) {
            what @ 0..=2 => {
                let most = random.random_range(1..5);
                let lease = if what == 2 { Duration::ZERO } else { MINUTE };
                let due = model.values().filter(|state| **state == Model::Due).count();
                let pulled = pulled(store, source, most, lease).await;
                assert_eq!(pulled.len(), due.min(most as usize), "{told}");
                for event in pulled {
                    let state = model.get_mut(&event).unwrap();
                    assert_eq!(*state, Model::Due, "{told}");
                    *state = if what == 2 { Model::Due } else { Model::Leased };
                }
            }
            3 => {
                acknowledge(store, source, &some).await;
                for event in &some {
                    let state = model.get_mut(event).unwrap();
                    if !matches!(state, Model::Closed(_)) {
                        *state = Model::Closed(DeliveryStatus::Acknowledged);
                    }
                }
            }
            what @ 4..=5 => {
                change(store, source, &some, if what == 4 { NOW } else { LONGER }).await;
                for event in some.iter().filter(|_| what == 4) {
                    let state = model.get_mut(event).unwrap();
                    if *state == Model::Leased {
                        *state = Model::Due;
                    }
                }
            }
            _ if model[&some[0]] == Model::Due => {
                store.replays.cancel(source.organization, one).await.unwrap();
                model.insert(some[0], Model::Closed(DeliveryStatus::Cancelled));
            }
            _ => {
                store.replays.retry(source.organization, one).await.unwrap();
                model.insert(some[0], Model::Due);
            }
        }
        let every = EventFilter::default();
        let shown = store
            .events
            .list(source.organization, &every, Order::OldestFirst, first(100), 0)
            .await
            .unwrap();
        for event in shown.items {
            assert_eq!(event.deliveries[0].status, model[&event.id].status(), "{told}");
        }
    }
}
