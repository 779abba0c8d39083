//! Removing organizations, and keeping events for shorter than the deployment does.

use std::{slice::from_ref, time::Duration};

use shared::{
    AcceptedEvent, DeliveryState, EventId, EventPattern, EventStatus, OrganizationId, ReplayId,
    SubscriptionId, Tier, Timestamp,
    delivery::Next,
    store::{
        EventFilter, IntakeBatch, IntakeOutcome, LimitNode, LimitReport, NewReplay, OpenCircuit,
        OrganizationPatch, Pause, PlannedDelivery, Removal, Removed, SetAside, Store, UsageCounts,
        UsageReport,
    },
};
use tokio::{task::JoinSet, time::Instant};
use uuid::{NoContext, Uuid};

use super::{
    announcements::{attempt, dead, listener},
    intake::put_back,
    keeper::yesterdays_id,
    statistics::minute,
    world::{
        MINUTE, after, event, failed, first, get, inbox, keyed, new_key, organization, push, take_in,
        try_take_in, worker,
    },
};

async fn remove(store: &Store, organization: OrganizationId) {
    let until = Instant::now() + MINUTE;
    while store.removals.remove_some(organization).await.unwrap() != Removed::All {
        assert!(Instant::now() < until, "it ends");
    }
}

async fn count(store: &Store, organization: OrganizationId) -> u64 {
    let all = EventFilter::default();
    store.events.count(organization, &all, 10_000).await.unwrap()
}

/// An organization with something in every table; whoever adds a table that names organizations or subscriptions adds to this.
pub(crate) async fn full(store: &Store, events: usize) -> (OrganizationId, SubscriptionId) {
    let ours = organization(store).await.id;
    let (subscription, me) = (push(store, ours).await, worker(store).await);
    let push = subscription.id;
    listener(store, ours).await;
    let all: Vec<_> = (0..events).map(|n| keyed(ours, &n.to_string())).collect();
    for some in all.chunks(100) {
        take_in(store, me, some, &[(push, true)]).await;
    }
    let again = [keyed(ours, "0"), put_back(&event(ours))];
    take_in(store, me, &again, &[(push, true)]).await;
    let outcomes = [
        dead(failed(&all[0], push, 1, Next::DeadLetter)),
        failed(&all[1], push, 1, Next::Retry { after: MINUTE }),
    ];
    assert_eq!(store.deliveries.record(me, &outcomes).await.unwrap().len(), 2);
    assert_eq!(store.deliveries.own(me, &[push]).await.unwrap(), [push]);
    store.erasures.erase(ours, event(ours).id).await.unwrap();
    let failing = [attempt(push, subscription.version)];
    assert_eq!(store.announcements.failed(&failing).await.unwrap().len(), 1);
    assert!(
        store
            .tests
            .ask_test(ours, push, EventId::new(), 10)
            .await
            .unwrap()
    );
    store
        .insight
        .write_minutes(me, &[minute(push, 0, 1, 1)])
        .await
        .unwrap();
    let open = OpenCircuit {
        subscription: push,
        open_for: MINUTE,
        next_probe_in: MINUTE,
    };
    store.insight.write_circuits(me, &[open], &[]).await.unwrap();
    let pause = Pause {
        subscription: push,
        subscriber: shared::subscription::Subscriber::of(&subscription, subscription.push().unwrap()),
        lasts: MINUTE,
    };
    store.pauses.note_pauses(&[pause]).await.unwrap();
    let (node, counter) = (Uuid::new_v4(), Uuid::new_v4());
    let report = LimitReport {
        organization: ours,
        counter,
        spent: 1_000,
        within: 0,
        wanted: 1.0,
        took: 1.0,
    };
    store
        .limits
        .share_limits(LimitNode::new(node), &[report])
        .await
        .unwrap();
    let usage = UsageReport {
        organization: ours,
        hour: Timestamp::now().millis() / 3_600_000,
        counts: UsageCounts {
            accepted: 1,
            refused: 0,
        },
    };
    store.limits.write_usage(node, &[usage]).await.unwrap();
    let replay = NewReplay {
        id: ReplayId::new(),
        organization: ours,
        subscription: push,
        since: None,
        until: None,
        statuses: vec![DeliveryState::DeadLetter],
        event_types: vec![EventPattern::all()],
    };
    store.replays.create_replay(replay, 10).await.unwrap().unwrap();
    let aside = SetAside {
        id: SetAside::id_of(Some(all[0].id), b"x"),
        reason: "refused".to_owned(),
        detail: "why".to_owned(),
        organization: Some(ours),
        event: Some(all[0].id),
        frame: b"x".to_vec(),
        at: Timestamp::now(),
        times: 1,
    };
    store.events.set_aside(&[aside]).await.unwrap();
    (ours, push)
}

async fn removal(store: &Store, organization: OrganizationId) -> Removal {
    let standing = store.removals.standing(organization).await.unwrap().unwrap();
    standing.removal.unwrap()
}

pub(crate) async fn an_organization_goes_with_everything(store: &Store) {
    const EVENTS: u64 = 701;
    let ((ours, _), (theirs, _)) = (full(store, 700).await, full(store, 5).await);
    let standing = store.removals.standing(ours).await.unwrap().unwrap();
    assert_eq!(standing.removal, None);
    assert!(store.removals.removed(&[ours, theirs]).await.unwrap().is_empty());

    let ended = store.removals.begin_removal(ours).await.unwrap().unwrap();
    assert_eq!(ended.len(), 1, "its keys");
    let begun = removal(store, ours).await;
    assert_eq!(
        store.removals.begin_removal(ours).await.unwrap(),
        Some(ended),
        "whoever asks again is to tell of them again"
    );
    assert_eq!(removal(store, ours).await, begun, "and changes nothing");
    assert_eq!(u64::from(begun.remaining), EVENTS);
    assert_eq!((begun.events, begun.rows, begun.finished_at), (0, 0, None));
    assert_eq!(store.organizations.get(ours).await.unwrap(), None);
    assert!(store.subscriptions.in_force(&[ours]).await.unwrap().is_empty());
    assert_eq!(store.removals.under_removal(10).await.unwrap(), [ours]);
    assert_eq!(
        store.removals.removed(&[ours, theirs]).await.unwrap(),
        [ours].into()
    );

    assert_eq!(store.removals.remove_some(ours).await.unwrap(), Removed::Some);
    let some = removal(store, ours).await;
    assert!((1..EVENTS).contains(&some.events), "a step is bounded: {some:?}");
    assert!(some.rows > 2 * some.events, "with what belongs to them: {some:?}");
    assert_eq!(u64::from(some.remaining), EVENTS - some.events);
    remove(store, ours).await;

    let standing = store.removals.standing(ours).await.unwrap().unwrap();
    assert_eq!(standing.organization, None);
    let done = removal(store, ours).await;
    assert_eq!((done.events, done.remaining), (EVENTS, 0));
    assert!(done.finished_at.is_some());
    assert_eq!(
        store.removals.begin_removal(ours).await.unwrap(),
        Some(vec![]),
        "it is remembered"
    );
    assert_eq!(removal(store, ours).await, done);
    assert!(store.removals.under_removal(10).await.unwrap().is_empty());
    assert_eq!(store.removals.removed(&[ours]).await.unwrap(), [ours].into());
    assert_eq!(count(store, ours).await, 0);
    let unknown = OrganizationId::new();
    assert_eq!(store.removals.begin_removal(unknown).await.unwrap(), None);
    assert_eq!(store.removals.standing(unknown).await.unwrap(), None);

    assert_eq!(count(store, theirs).await, 6);
    assert_eq!(store.events.count_set_aside().await.unwrap(), 1);
    let listed = store.removals.organizations(first(10)).await.unwrap();
    let listed: Vec<_> = listed.items.iter().map(|one| one.id).collect();
    assert_eq!(listed, [theirs]);
}

/// Many do it at once: each row is counted once.
pub(crate) async fn removed_by_many_it_is_counted_once(store: &Store) {
    let (ours, _) = full(store, 700).await;
    store.removals.begin_removal(ours).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        tasks.spawn(async move { remove(&store, ours).await });
    }
    tasks.join_all().await;
    assert_eq!(removal(store, ours).await.events, 701);
    assert_eq!(count(store, ours).await, 0);
}

pub(crate) async fn organizations_are_listed_newest_first(store: &Store) {
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(organization(store).await);
    }
    store.removals.begin_removal(made[1].id).await.unwrap();
    let page = store.removals.organizations(first(2)).await.unwrap();
    let rest = store
        .removals
        .organizations(after(page.next.unwrap(), 2))
        .await
        .unwrap();
    assert_eq!(rest.next, None);
    let mut listed: Vec<_> = page.items.into_iter().chain(rest.items).collect();
    listed.reverse();
    let being_removed: Vec<_> = listed.iter().map(|one| one.removal.is_some()).collect();
    assert_eq!(being_removed, [false, true, false]);
    let listed: Vec<_> = listed.into_iter().filter_map(|one| one.organization).collect();
    assert_eq!(listed, made);
}

pub(crate) async fn keys_end_with_their_organization(store: &Store) {
    let id = OrganizationId::new();
    let key = new_key(id);
    let hash = key.hash;
    store
        .organizations
        .create(id, "an organization", Tier::Free, key)
        .await
        .unwrap();
    assert_eq!(store.organizations.grants(&[hash]).await.unwrap().len(), 1);
    store.removals.begin_removal(id).await.unwrap();
    assert!(store.organizations.grants(&[hash]).await.unwrap().is_empty());
    // Nor does one that somebody was just making.
    let late = new_key(id);
    let late_hash = late.hash;
    store.organizations.create_key(late).await.unwrap();
    assert!(store.organizations.grants(&[late_hash]).await.unwrap().is_empty());
    let renamed = OrganizationPatch {
        name: Some("other".to_owned()),
        ..OrganizationPatch::default()
    };
    assert_eq!(store.organizations.change(id, renamed).await.unwrap(), None);
    remove(store, id).await;
}

/// Many take events in while the organization is removed: in the end nothing is left, and nothing comes any more.
pub(crate) async fn nothing_is_stored_after_all(store: &Store) {
    let ours = organization(store).await.id;
    let (inbox, me) = (inbox(store, ours).await, worker(store).await);
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let store = store.clone();
        tasks.spawn(async move {
            loop {
                let batch: Vec<_> = (0..20).map(|_| event(ours)).collect();
                let in_force = store.subscriptions.in_force(&[ours]).await.unwrap();
                if in_force.is_empty() {
                    return;
                }
                match try_take_in(&store, me, &batch, &[], &[(inbox, false)]).await {
                    Ok(IntakeOutcome::Stored(_) | IntakeOutcome::Stale) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    while count(store, ours).await < 100 {
        tokio::task::yield_now().await;
    }
    let version = store.subscriptions.in_force(&[ours]).await.unwrap()[0].version;
    store.removals.begin_removal(ours).await.unwrap();
    remove(store, ours).await;
    tasks.join_all().await;
    assert_eq!(count(store, ours).await, 0);
    // By what somebody remembers of before.
    let late = IntakeBatch {
        worker: me,
        events: &[event(ours)],
        deliveries: &[PlannedDelivery {
            event: 0,
            subscription: inbox,
            held: false,
        }],
        versions: &[(ours, version)],
        repeats: &[],
    };
    assert_eq!(store.events.intake(&late).await.unwrap(), IntakeOutcome::Stale);
}

pub(crate) async fn an_organization_keeps_its_events_for_shorter(store: &Store) {
    const DAYS: Duration = Duration::from_hours(24);
    let (ours, theirs) = (organization(store).await, organization(store).await.id);
    assert_eq!(ours.retention_days, None);
    let ours = ours.id;
    let (push, theirs_push, me) = (
        push(store, ours).await.id,
        push(store, theirs).await.id,
        worker(store).await,
    );
    let old = |organization| AcceptedEvent {
        id: days_before(1),
        ..event(organization)
    };
    let (gone, stays, young) = (old(ours), old(theirs), event(ours));
    let (done, theirs_done) = (
        AcceptedEvent {
            id: days_before(5),
            ..event(ours)
        },
        AcceptedEvent {
            id: days_before(5),
            ..event(theirs)
        },
    );
    let overdue = AcceptedEvent {
        id: days_before(5),
        ..event(ours)
    };
    let ids = [done.id, theirs_done.id, overdue.id];
    assert!(store.events.admit(&ids, 30 * DAYS).await.unwrap().is_empty());
    take_in(
        store,
        me,
        &[done.clone(), overdue.clone(), gone.clone(), young.clone()],
        &[(push, false)],
    )
    .await;
    take_in(store, me, from_ref(&theirs_done), &[(theirs_push, false)]).await;
    for event in [&done, &theirs_done] {
        let closed = store
            .deliveries
            .acknowledge(event.organization, &[event.id])
            .await;
        assert_eq!(closed.unwrap().len(), 1);
    }
    take_in(store, me, from_ref(&stays), &[(theirs_push, false)]).await;
    let kept = store.keeper.keep(30 * DAYS).await.unwrap();
    assert_eq!((kept.expired, kept.removed_early), (0, 0));
    let shorter = OrganizationPatch {
        retention_days: Some(Some(1)),
        ..OrganizationPatch::default()
    };
    let changed = store.organizations.change(ours, shorter).await.unwrap().unwrap();
    assert_eq!(changed.retention_days, Some(1));
    let kept = store.keeper.keep(30 * DAYS).await.unwrap();
    assert_eq!((kept.expired, kept.removed_early), (2, 1));
    assert!(store.events.get(ours, done.id).await.unwrap().is_none());
    for expired in [gone.id, overdue.id] {
        assert_eq!(
            get(store, ours, expired).await.status(),
            EventStatus::Expired,
            "it can still be seen, for it has expired only now"
        );
    }
    assert_eq!(
        get(store, theirs, theirs_done.id).await.status(),
        EventStatus::Acknowledged
    );
    assert_eq!(get(store, ours, young.id).await.status(), EventStatus::Pending);
    assert_eq!(get(store, theirs, stays.id).await.status(), EventStatus::Pending);
    let again = store.keeper.keep(30 * DAYS).await.unwrap();
    assert_eq!((again.expired, again.removed_early), (0, 0));
    let longer = OrganizationPatch {
        retention_days: Some(None),
        ..OrganizationPatch::default()
    };
    let changed = store.organizations.change(ours, longer).await.unwrap().unwrap();
    assert_eq!(changed.retention_days, None);
}

/// An id of so many days before yesterday's last minutes.
fn days_before(days: u32) -> EventId {
    let yesterday = yesterdays_id().created_at().unwrap();
    let at = yesterday.minus(days * Duration::from_hours(24)).millis();
    let seconds = u64::try_from(at / 1_000).unwrap();
    let at = uuid::Timestamp::from_unix(NoContext, seconds, 0);
    EventId::from_uuid(Uuid::new_v7(at))
}
