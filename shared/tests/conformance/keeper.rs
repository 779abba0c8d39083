use std::time::Duration;

use shared::{
    AcceptedEvent, DeliveryStatus, EventId, EventStatus, EventType, Timestamp,
    announcement::EXPIRED,
    seal::Sealed,
    store::{Change, EventFilter, SetAside, Store},
};
use tokio::{sync::broadcast, task::JoinSet, time::timeout};
use uuid::{NoContext, Uuid};

use super::{
    announcements::listener,
    world::{MINUTE, event, first, get, inbox, keyed, new_push, organization, push, take_in, worker},
};

pub(crate) async fn migrating_again_changes_nothing(store: &Store) {
    let made = organization(store).await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        tasks.spawn(async move { store.keeper.migrate().await.unwrap() });
    }
    tasks.join_all().await;
    assert_eq!(store.organizations.get(made.id).await.unwrap(), Some(made));
    store.keeper.ping().await.unwrap();
}

async fn word(changes: &mut broadcast::Receiver<Change>) -> Change {
    timeout(MINUTE, changes.recv())
        .await
        .expect("word of it")
        .expect("the store lives")
}

pub(crate) async fn changes_are_announced(store: &Store) {
    let ours = organization(store).await.id;
    let (mut one, mut two) = (store.keeper.changes(), store.keeper.changes());
    while word(&mut one).await != Change::Everything {}
    let made = store.subscriptions.create(new_push(ours)).await.unwrap().unwrap();
    assert_eq!(word(&mut one).await, Change::Subscription(made.id));
    assert!(
        store
            .subscriptions
            .disable(ours, made.id, 1, "gone", true)
            .await
            .unwrap()
    );
    assert_eq!(word(&mut one).await, Change::Subscription(made.id));
    assert!(
        !store
            .subscriptions
            .disable(ours, made.id, 2, "gone", true)
            .await
            .unwrap()
    );
    let other = push(store, ours).await;
    assert_eq!(
        word(&mut one).await,
        Change::Subscription(other.id),
        "nothing changed in between"
    );
    store.subscriptions.delete(ours, made.id).await.unwrap();
    assert_eq!(word(&mut one).await, Change::Subscription(made.id));
    while word(&mut two).await != Change::Subscription(other.id) {}
}

pub(crate) async fn deleted_subscriptions_are_cancelled(store: &Store) {
    let (ours, me) = (organization(store).await.id, worker(store).await);
    let (gone, stays) = (push(store, ours).await.id, push(store, ours).await.id);
    let events: Vec<_> = (0..30).map(|_| event(ours)).collect();
    take_in(store, me, &events, &[(gone, true), (stays, true)]).await;
    assert!(!store.keeper.cancel_deleted().await.unwrap());
    store.subscriptions.delete(ours, gone).await.unwrap();
    let status = async |subscription| {
        let record = get(store, ours, events[7].id).await;
        record
            .deliveries
            .iter()
            .find(|one| one.subscription == subscription)
            .unwrap()
            .clone()
    };
    assert_eq!(status(gone).await.status, DeliveryStatus::Cancelled);
    assert_eq!(status(gone).await.next_attempt_at, None);
    while store.keeper.cancel_deleted().await.unwrap() {}
    assert_eq!(status(gone).await.status, DeliveryStatus::Cancelled);
    assert_eq!(status(stays).await.status, DeliveryStatus::InFlight);
    let keys: Vec<_> = events
        .iter()
        .map(|event| super::world::key(event, gone))
        .collect();
    assert!(store.deliveries.still_held(me, &keys).await.unwrap().is_empty());
    assert_eq!(store.deliveries.backlog().await.unwrap().pending, 30);
}

/// An id of yesterday's last minutes: it lies within what every engine keeps, and its day has ended.
pub(crate) fn yesterdays_id() -> EventId {
    const DAY: i64 = 24 * 3_600_000;
    let now = Timestamp::now().millis();
    let at = now - now.rem_euclid(DAY) - 60_000;
    let seconds = u64::try_from(at / 1_000).unwrap();
    EventId::from_uuid(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, 0)))
}

pub(crate) async fn what_retention_ends_is_expired(store: &Store) {
    let ours = organization(store).await.id;
    let (push, inbox, me) = (
        push(store, ours).await.id,
        inbox(store, ours).await,
        worker(store).await,
    );
    let old = AcceptedEvent {
        id: yesterdays_id(),
        ..event(ours)
    };
    let done = AcceptedEvent {
        id: yesterdays_id(),
        ..event(ours)
    };
    take_in(
        store,
        me,
        &[old.clone(), done.clone()],
        &[(push, true), (inbox, false)],
    )
    .await;
    store.deliveries.acknowledge(ours, &[done.id]).await.unwrap();
    let kept = store.keeper.keep(Duration::from_hours(30 * 24)).await.unwrap();
    assert_eq!((kept.expired, kept.removed), (0, 0));
    assert_eq!(get(store, ours, old.id).await.status(), EventStatus::Pending);

    let kept = store.keeper.keep(Duration::ZERO).await.unwrap();
    assert_eq!(kept.expired, 2);
    let record = get(store, ours, old.id).await;
    assert_eq!(record.status(), EventStatus::Expired, "it can still be seen");
    assert_eq!(
        get(store, ours, done.id).await.status(),
        EventStatus::Acknowledged
    );
    let expired = EventFilter {
        statuses: vec![EventStatus::Expired],
        ..EventFilter::default()
    };
    assert_eq!(store.events.count(ours, &expired, 10).await.unwrap(), 1);
    assert!(
        store
            .deliveries
            .claim(me, &[(push, 10)])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(store.keeper.keep(Duration::ZERO).await.unwrap().expired, 0);
}

pub(crate) async fn what_expires_is_announced_once_a_subscription(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (push, inbox, me) = (
        push(store, ours).await.id,
        inbox(store, ours).await,
        worker(store).await,
    );
    let others = super::world::push(store, theirs).await.id;
    let gone = super::world::push(store, ours).await.id;
    listener(store, ours).await;
    let old = |organization, event_type: &str| AcceptedEvent {
        id: yesterdays_id(),
        event_type: EventType::parse_any(event_type).unwrap(),
        ..event(organization)
    };
    let events: Vec<_> = (0..12).map(|_| old(ours, "order.created")).collect();
    take_in(store, me, &events, &[(push, true), (inbox, false), (gone, false)]).await;
    // They beget no others; and nobody there asks for them.
    take_in(
        store,
        me,
        &[old(ours, "triggers.delivery.expired")],
        &[(push, false)],
    )
    .await;
    take_in(store, me, &[old(theirs, "order.created")], &[(others, false)]).await;
    store.subscriptions.delete(ours, gone).await.unwrap();
    store.keeper.keep(Duration::ZERO).await.unwrap();
    let waiting = store.announcements.announcements(10).await.unwrap();
    assert!(
        waiting
            .iter()
            .all(|one| one.organization == ours && one.event_type == EXPIRED)
    );
    let mut told: Vec<(String, u64, usize)> = waiting
        .iter()
        .map(|one| {
            let payload: serde_json::Value = serde_json::from_str(&one.payload).unwrap();
            let examples = payload["events"].as_array().unwrap();
            let known: Vec<String> = events.iter().map(|event| event.id.to_string()).collect();
            assert!(examples.iter().all(|id| known.iter().any(|known| id == known)));
            let subscription = payload["subscription"].as_str().unwrap().to_owned();
            (subscription, payload["count"].as_u64().unwrap(), examples.len())
        })
        .collect();
    told.sort_unstable();
    let mut expected = [(push.to_string(), 12, 10), (inbox.to_string(), 12, 10)];
    expected.sort_unstable();
    assert_eq!(told, expected);
    store.keeper.keep(Duration::ZERO).await.unwrap();
    assert_eq!(store.announcements.announcements(10).await.unwrap().len(), 2);
}

pub(crate) async fn keeping_concurrently(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let store = store.clone();
        tasks.spawn(async move { store.keeper.keep(Duration::from_hours(30 * 24)).await.unwrap() });
    }
    for _ in 0..20 {
        take_in(store, me, &[keyed(ours, "k"), event(ours)], &[(inbox, false)]).await;
    }
    tasks.join_all().await;
    assert_eq!(
        store
            .events
            .count(ours, &EventFilter::default(), 100)
            .await
            .unwrap(),
        21
    );
}

pub(crate) async fn the_first_check_value_stays(store: &Store) {
    let values = [vec![1, 2, 3], vec![4]].map(Sealed);
    let (one, other) = tokio::join!(
        store.keeper.secret_check(values[0].clone()),
        store.keeper.secret_check(values[1].clone()),
    );
    let first = one.unwrap();
    assert!(values.contains(&first));
    assert_eq!(other.unwrap(), first);
    let later = store.keeper.secret_check(Sealed(vec![5])).await.unwrap();
    assert_eq!(later, first);
}

pub(crate) async fn what_was_set_aside_goes_with_retention(store: &Store) {
    const HOUR: Duration = Duration::from_hours(1);
    let aside = |n: u16, age: Duration| {
        let frame = n.to_be_bytes().to_vec();
        SetAside {
            id: SetAside::id_of(None, &frame),
            reason: "unreadable".to_owned(),
            detail: "why".to_owned(),
            organization: None,
            event: None,
            frame,
            at: Timestamp::now().minus(age),
            times: 1,
        }
    };
    // More than a step removes.
    let mut items: Vec<_> = (0..300).map(|n| aside(n, 3 * HOUR)).collect();
    let young = aside(300, HOUR);
    items.push(young.clone());
    store.events.set_aside(&items).await.unwrap();
    assert_eq!(store.keeper.keep(4 * HOUR).await.unwrap().set_aside_removed, 0);
    assert_eq!(store.keeper.keep(2 * HOUR).await.unwrap().set_aside_removed, 300);
    let left = store.events.list_set_aside(first(10)).await.unwrap();
    assert_eq!(
        left.items.iter().map(|item| item.id).collect::<Vec<_>>(),
        [young.id]
    );
}
