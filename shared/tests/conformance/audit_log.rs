//! The audit log as the store keeps it.

use std::time::Duration;

use shared::{
    EventId, OrganizationId, Subscription, SubscriptionId,
    audit::{Actor, AuditEntry, Origin, made_by, on_behalf},
    seal::Sealed,
    store::{AuditFilter, OrganizationPatch, PatchOutcome, Store, SubscriptionPatch},
};

use super::world::{MINUTE, event, first, inbox, new_key, organization, push, take_in, worker};

pub(crate) async fn entries(store: &Store, organization: Option<OrganizationId>) -> Vec<AuditEntry> {
    let filter = AuditFilter {
        organization,
        ..AuditFilter::default()
    };
    let page = store.audit_log.audit_entries(&filter, first(1_000)).await;
    page.unwrap().items
}

async fn actions(store: &Store, organization: OrganizationId) -> Vec<String> {
    let entries = entries(store, Some(organization)).await;
    entries.into_iter().rev().map(|entry| entry.action).collect()
}

pub(crate) async fn a_change_is_by_whoever_makes_it(store: &Store) {
    let ours = organization(store).await.id;
    let key = new_key(ours);
    let made = key.id;
    let address = Some([192, 0, 2, 7].into());
    let origin = Origin::request(Some("a-request".to_owned()), address);
    on_behalf(origin, async {
        made_by(Actor::Key(made));
        store.organizations.create_key(key).await.unwrap();
    })
    .await;
    let entries = entries(store, Some(ours)).await;
    let by_key = &entries[0];
    assert_eq!(
        (by_key.action.as_str(), &by_key.target),
        ("key.created", &made.to_string())
    );
    assert_eq!((by_key.actor, by_key.address), (Actor::Key(made), address));
    assert_eq!(by_key.request_id.as_deref(), Some("a-request"));
    assert!(
        entries[1..]
            .iter()
            .all(|entry| entry.actor == Actor::System && entry.address.is_none())
    );
}

pub(crate) async fn what_changes_nothing_is_not_in_the_log(store: &Store) {
    let ours = organization(store).await.id;
    let (push, inbox) = (push(store, ours).await, inbox(store, ours).await);
    let before = actions(store, ours).await;
    let patch = |enabled| SubscriptionPatch {
        enabled: Some(enabled),
        ..SubscriptionPatch::default()
    };
    let subscriptions = &store.subscriptions;
    let stale = subscriptions
        .patch(ours, push.id, push.version + 1, patch(false))
        .await
        .unwrap();
    assert!(matches!(stale, PatchOutcome::Conflict));
    let same = subscriptions
        .patch(ours, push.id, push.version, patch(true))
        .await
        .unwrap();
    assert!(matches!(same, PatchOutcome::Changed(_)));
    assert!(!subscriptions.delete(ours, SubscriptionId::new()).await.unwrap());
    assert!(
        !subscriptions
            .disable(ours, push.id, 1_000, "gone", true)
            .await
            .unwrap()
    );
    let nothing = Sealed(b"no such".to_vec());
    assert!(
        !subscriptions
            .reseal(push.id, &nothing, nothing.clone())
            .await
            .unwrap()
    );
    assert!(
        !store
            .keeper
            .replace_secret_check(&nothing, nothing.clone())
            .await
            .unwrap()
    );
    let me = worker(store).await;
    let event = event(ours);
    take_in(store, me, std::slice::from_ref(&event), &[(inbox, false)]).await;
    assert_eq!(actions(store, ours).await, before);
    // Twice, and in the log once.
    for _ in 0..2 {
        store.erasures.erase(ours, event.id).await.unwrap();
    }
    let coming = EventId::new();
    for _ in 0..2 {
        store.erasures.erase(ours, coming).await.unwrap();
    }
    while store.erasures.settle_erasures(100).await.unwrap() > 0 {}
    let left = actions(store, ours).await;
    assert_eq!(left[before.len()..], ["event.erased", "event.erased"]);
}

pub(crate) async fn it_is_kept_for_a_while(store: &Store) {
    let ours = organization(store).await.id;
    let kept = actions(store, ours).await;
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(!store.audit_log.forget_audit_entries(MINUTE).await.unwrap());
    assert_eq!(actions(store, ours).await, kept);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(
        !store
            .audit_log
            .forget_audit_entries(Duration::ZERO)
            .await
            .unwrap()
    );
    assert!(actions(store, ours).await.is_empty());
}

/// The log is away: whatever is tried, nothing has changed.
pub(crate) async fn not_changed(store: &Store, ours: OrganizationId, push: &Subscription) {
    let (organizations, subscriptions) = (&store.organizations, &store.subscriptions);
    let disabled = SubscriptionPatch {
        enabled: Some(false),
        ..SubscriptionPatch::default()
    };
    assert!(
        subscriptions
            .patch(ours, push.id, push.version, disabled)
            .await
            .is_err()
    );
    assert!(
        subscriptions
            .disable(ours, push.id, push.version, "gone", true)
            .await
            .is_err()
    );
    assert!(subscriptions.delete(ours, push.id).await.is_err());
    assert!(organizations.create_key(new_key(ours)).await.is_err());
    assert!(store.removals.begin_removal(ours).await.is_err());
    let patch = OrganizationPatch {
        name: Some("other".to_owned()),
        ..OrganizationPatch::default()
    };
    assert!(organizations.change(ours, patch).await.is_err());
    let found = subscriptions.get(ours, push.id).await.unwrap().unwrap();
    assert_eq!(&found, push);
    let organization = organizations.get(ours).await.unwrap().unwrap();
    assert_ne!(organization.name, "other");
    assert_eq!(organizations.keys(ours, first(10)).await.unwrap().items.len(), 1);
}
