//! Events of the system's own on their way, and which subscriptions fail.

use std::{slice::from_ref, time::Duration};

use shared::{
    EventPattern, OrganizationId, SubscriptionId,
    announcement::{Announcement, DEAD_LETTERED, DISABLED},
    delivery::{AttemptOutcome, AttemptResult, Next},
    store::{FailedAttempt, PatchOutcome, Store, SubscriptionPatch},
    subscription::Target,
};

use super::{
    deliveries::lane,
    world::{MINUTE, failed, new_push, worker},
};

/// Somebody who asks for the system's own events.
pub(super) async fn listener(store: &Store, organization: OrganizationId) {
    let mut subscription = new_push(organization);
    subscription.event_types = vec![EventPattern::parse("triggers.**").unwrap()];
    store.subscriptions.create(subscription).await.unwrap().unwrap();
}

async fn push_to(store: &Store, organization: OrganizationId) -> SubscriptionId {
    let made = store.subscriptions.create(new_push(organization)).await;
    made.unwrap().unwrap().id
}

/// An attempt at an event that is not the system's own.
pub(super) fn attempt(subscription: SubscriptionId, version: i64) -> FailedAttempt {
    FailedAttempt {
        subscription,
        version,
        begets: true,
    }
}

/// An attempt at an event of the system's own.
fn silent(subscription: SubscriptionId, version: i64) -> FailedAttempt {
    FailedAttempt {
        begets: false,
        ..attempt(subscription, version)
    }
}

pub(super) fn dead(outcome: AttemptOutcome) -> AttemptOutcome {
    let AttemptResult::Failed { failure, .. } = &outcome.result else {
        panic!("it failed")
    };
    let (delivery, number) = (outcome.delivery, outcome.number);
    AttemptOutcome {
        announcement: Announcement::dead_lettered(
            delivery.event,
            "a.b",
            delivery.subscription,
            number,
            failure,
        ),
        ..outcome
    }
}

pub(crate) async fn a_dead_letter_is_announced_with_its_outcome(store: &Store) {
    let me = worker(store).await;
    let (ours, push, events) = lane(store, 3, Some(me)).await;
    let record = async |outcome: AttemptOutcome| {
        store
            .deliveries
            .record(me, from_ref(&outcome))
            .await
            .unwrap()
            .len()
    };
    let outcome = |at: usize| dead(failed(&events[at], push, 1, Next::DeadLetter));
    assert_eq!(record(outcome(0)).await, 1);
    let announcements = &store.announcements;
    assert!(
        announcements.announcements(10).await.unwrap().is_empty(),
        "nobody asks for it"
    );
    listener(store, ours).await;
    let second = outcome(1);
    assert_eq!(record(second.clone()).await, 1);
    assert_eq!(record(second.clone()).await, 0, "it does not apply twice");
    let waiting = announcements.announcements(10).await.unwrap();
    let expected = second.announcement.unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!((waiting[0].id, waiting[0].organization), (expected.id, ours));
    assert_eq!(
        (waiting[0].event_type.as_str(), &waiting[0].payload),
        (DEAD_LETTERED, &expected.payload)
    );
    announcements.announced(&[expected.id]).await.unwrap();
    assert!(announcements.announcements(10).await.unwrap().is_empty());
    let of_its_own = Announcement::dead_lettered(
        events[2].id,
        "triggers.delivery.dead_lettered",
        push,
        1,
        &shared::delivery::Failure {
            kind: shared::FailureKind::Status,
            status_code: None,
            detail: String::new(),
        },
    );
    assert_eq!(of_its_own, None, "they beget no others");
}

pub(crate) async fn disabling_is_announced(store: &Store) {
    let (ours, push, _) = lane(store, 0, None).await;
    listener(store, ours).await;
    store.announcements.failed(&[attempt(push, 1)]).await.unwrap();
    assert!(
        store
            .subscriptions
            .disable(ours, push, 1, "gone", true)
            .await
            .unwrap()
    );
    assert!(
        !store
            .subscriptions
            .disable(ours, push, 1, "gone", true)
            .await
            .unwrap()
    );
    let waiting = store.announcements.announcements(10).await.unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].event_type, DISABLED);
    let payload: serde_json::Value = serde_json::from_str(&waiting[0].payload).unwrap();
    assert_eq!(
        (&payload["subscription"], &payload["reason"]),
        (&push.to_string().into(), &"gone".into())
    );
    // What is not to be announced is done all the same.
    let (other, failing) = (push_to(store, ours).await, push_to(store, ours).await);
    let silently = store.subscriptions.disable(ours, other, 1, "gone", false);
    assert!(silently.await.unwrap());
    let of_its_own = silent(failing, 1);
    store.announcements.failed(&[of_its_own]).await.unwrap();
    let silently = store
        .announcements
        .disable_failing(ours, failing, 1, Duration::ZERO, "it fails");
    assert!(silently.await.unwrap());
    for id in [other, failing] {
        let shown = store.subscriptions.get(ours, id).await.unwrap().unwrap();
        assert!(!shown.enabled && shown.disabled_reason.is_some());
    }
    assert_eq!(store.announcements.announcements(10).await.unwrap().len(), 1);
    // Once it is enabled again, its time begins anew.
    assert!(store.announcements.succeeded(&[push]).await.unwrap().is_empty());
    let off = SubscriptionPatch {
        enabled: Some(false),
        ..SubscriptionPatch::default()
    };
    store.subscriptions.patch(ours, push, 2, off).await.unwrap();
    assert_eq!(
        store.announcements.announcements(10).await.unwrap().len(),
        1,
        "what a client does is no news to it"
    );
}

pub(crate) async fn failing_is_timed_from_the_first(store: &Store) {
    let (_, ill, _) = lane(store, 0, None).await;
    let (_, well, _) = lane(store, 0, None).await;
    let announcements = &store.announcements;
    assert!(announcements.succeeded(&[ill, well]).await.unwrap().is_empty());
    let first = announcements.failed(&[attempt(ill, 1)]).await.unwrap();
    assert_eq!(first.len(), 1);
    assert!(first[0].0 == ill && first[0].1 < MINUTE);
    tokio::time::sleep(Duration::from_millis(60)).await;
    let later = announcements
        .failed(&[attempt(ill, 1), attempt(well, 1)])
        .await
        .unwrap();
    let age = |of| later.iter().find(|(id, _)| *id == of).unwrap().1;
    assert!(age(ill) >= Duration::from_millis(50), "{later:?}");
    assert!(age(well) < age(ill));
    let recovered = announcements.succeeded(&[ill]).await.unwrap();
    assert_eq!(recovered.len(), 1);
    assert!(recovered[0].failed_for >= Duration::from_millis(50));
    assert!(
        announcements.succeeded(&[ill]).await.unwrap().is_empty(),
        "said once"
    );
}

/// A change of what is sent to ends it, and so does being enabled or disabled; a change of a text does not. What was sent by a
/// version that is not in force, or is disabled, begins nothing.
pub(crate) async fn failing_ends_with_a_change(store: &Store) {
    let (ours, push, _) = lane(store, 0, None).await;
    let announcements = &store.announcements;
    let fails = async |version| announcements.failed(&[attempt(push, version)]).await.unwrap()[0].1;
    let change = async |version, patch| {
        let patched = store.subscriptions.patch(ours, push, version, patch).await;
        assert!(matches!(patched, Ok(PatchOutcome::Changed(_))), "{patched:?}");
    };
    let enabled = |enabled| SubscriptionPatch {
        enabled: Some(enabled),
        ..SubscriptionPatch::default()
    };
    let mut elsewhere = new_push(ours).target;
    let Target::Push(target) = &mut elsewhere else {
        panic!("it is pushed")
    };
    target.url = shared::SubscriptionUrl::parse("https://example.com/elsewhere").unwrap();
    let moved = SubscriptionPatch {
        target: Some(elsewhere),
        ..SubscriptionPatch::default()
    };
    let described = SubscriptionPatch {
        description: Some(None),
        ..SubscriptionPatch::default()
    };
    let pause = Duration::from_millis(30);
    for (version, patch, ends) in [
        (1, described, false),
        (2, moved.clone(), true),
        (3, moved, false),
        (4, enabled(true), false),
    ] {
        fails(version).await;
        tokio::time::sleep(pause).await;
        change(version, patch).await;
        assert_eq!(fails(version + 1).await < pause, ends, "version {version}");
    }

    fails(5).await;
    change(5, enabled(false)).await;
    fails(5).await;
    fails(6).await;
    assert!(announcements.succeeded(&[push]).await.unwrap().is_empty());
    change(6, enabled(true)).await;
    fails(6).await;
    assert!(announcements.succeeded(&[push]).await.unwrap().is_empty());
    fails(7).await;
    store.subscriptions.delete(ours, push).await.unwrap();
    fails(8).await;
    assert!(announcements.succeeded(&[push]).await.unwrap().is_empty());
}

pub(crate) async fn what_has_not_failed_for_long_is_not_disabled(store: &Store) {
    let (ours, push, _) = lane(store, 0, None).await;
    let announcements = &store.announcements;
    let disable = async |version, failed_for| {
        let reason = "it fails";
        let disabled = announcements.disable_failing(ours, push, version, failed_for, reason);
        disabled.await.unwrap()
    };
    assert!(!disable(1, Duration::ZERO).await, "it does not fail");
    announcements.failed(&[attempt(push, 1)]).await.unwrap();
    assert!(!disable(1, MINUTE).await, "not for so long");
    assert!(!disable(2, Duration::ZERO).await, "not this version");
    announcements.succeeded(&[push]).await.unwrap();
    assert!(!disable(1, Duration::ZERO).await, "not any more");
    announcements.failed(&[attempt(push, 1)]).await.unwrap();
    assert!(disable(1, Duration::ZERO).await);
    let shown = store.subscriptions.get(ours, push).await.unwrap().unwrap();
    assert_eq!((shown.enabled, shown.version), (false, 2));
    assert_eq!(shown.disabled_reason.as_deref(), Some("it fails"));
}

/// One attempt that begets is enough, whoever tells of it and in whatever order.
pub(crate) async fn whether_what_fails_begets_is_kept(store: &Store) {
    let (ours, push, _) = lane(store, 0, None).await;
    listener(store, ours).await;
    let announcements = &store.announcements;
    for (told, begets) in [
        (&[silent(push, 1)][..], false),
        (&[attempt(push, 1)], true),
        (&[attempt(push, 1), silent(push, 1)], true),
        (&[silent(push, 1), attempt(push, 1)], true),
        (&[silent(push, 1), silent(push, 1)], false),
    ] {
        for attempt in told {
            announcements.failed(&[*attempt]).await.unwrap();
        }
        let recovered = announcements.succeeded(&[push]).await.unwrap();
        assert_eq!((recovered.len(), recovered[0].begets), (1, begets), "{told:?}");
        // And so it is announced that it is disabled.
        let failing = push_to(store, ours).await;
        for attempt in told {
            let of_it = FailedAttempt {
                subscription: failing,
                ..*attempt
            };
            announcements.failed(&[of_it]).await.unwrap();
        }
        let disabled = announcements.disable_failing(ours, failing, 1, Duration::ZERO, "it fails");
        assert!(disabled.await.unwrap());
        let waiting = announcements.announcements(10).await.unwrap();
        assert_eq!(waiting.len(), usize::from(begets), "{told:?}");
        for one in waiting {
            announcements.announced(&[one.id]).await.unwrap();
        }
    }
}
