use shared::{
    OrganizationId, Scopes, Tier, Timestamp,
    store::{Store, StoreError},
    subscription::{Builtin, Target},
};

use super::world::{after, first, new_key, organization};

pub(crate) async fn created_with_inbox_and_key(store: &Store) {
    let id = OrganizationId::new();
    let key = new_key(id);
    let created = store
        .organizations
        .create(id, "Ünïcode & co", Tier::Pro, key.clone())
        .await
        .unwrap();
    assert_eq!(
        (created.id, created.name.as_str(), created.tier),
        (id, "Ünïcode & co", Tier::Pro)
    );
    assert!(Timestamp::now().since(created.created_at).as_secs() < 60);
    assert_eq!(store.organizations.get(id).await.unwrap(), Some(created));
    assert_eq!(
        store.organizations.get(OrganizationId::new()).await.unwrap(),
        None
    );

    let in_force = store.subscriptions.in_force(&[id]).await.unwrap();
    let [inbox] = in_force[0].subscriptions.as_slice() else {
        panic!("one subscription: {in_force:?}")
    };
    assert_eq!(
        (inbox.builtin, &inbox.target, inbox.enabled),
        (Some(Builtin::Inbox), &Target::Pull, true)
    );

    let grants = store.organizations.grants(&[key.hash]).await.unwrap();
    let [(hash, grant)] = grants.as_slice() else {
        panic!("one grant: {grants:?}")
    };
    assert_eq!((*hash, grant.key, grant.organization), (key.hash, key.id, id));
    assert_eq!(
        (grant.tier, grant.scopes, grant.expires_at),
        (Tier::Pro, Scopes::all(), None)
    );
}

pub(crate) async fn renamed(store: &Store) {
    let made = organization(store).await;
    let renamed = store
        .organizations
        .rename(made.id, "another name")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(renamed.name, "another name");
    assert_eq!(store.organizations.get(made.id).await.unwrap(), Some(renamed));
    assert_eq!(
        store
            .organizations
            .rename(OrganizationId::new(), "x")
            .await
            .unwrap(),
        None
    );
}

pub(crate) async fn keys_are_listed_newest_first(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let mut ids = Vec::new();
    for _ in 0..4 {
        let key = store.organizations.create_key(new_key(ours)).await.unwrap();
        assert_eq!((key.organization, key.revoked_at), (ours, None));
        ids.insert(0, key.id);
    }
    store.organizations.create_key(new_key(theirs)).await.unwrap();
    let page = store.organizations.keys(ours, first(3)).await.unwrap();
    assert_eq!(page.items.iter().map(|key| key.id).collect::<Vec<_>>(), ids[..3]);
    let rest = store
        .organizations
        .keys(ours, after(page.next.unwrap(), 3))
        .await
        .unwrap();
    assert_eq!(rest.items.len(), 2, "the last of four, and the first key of all");
    assert_eq!((rest.items[0].id, rest.next), (ids[3], None));
}

pub(crate) async fn keys_grant_until_they_end(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (revoked, good) = (new_key(ours), new_key(ours));
    let mut expired = new_key(ours);
    expired.expires_at = Some(Timestamp::now().minus(std::time::Duration::from_hours(1)));
    let mut ending = new_key(ours);
    ending.expires_at = Some(Timestamp::now().plus(std::time::Duration::from_hours(1)));
    for key in [&revoked, &good, &expired, &ending] {
        store.organizations.create_key(key.clone()).await.unwrap();
    }
    assert!(
        !store.organizations.revoke_key(theirs, revoked.id).await.unwrap(),
        "another organization's"
    );
    assert!(store.organizations.revoke_key(ours, revoked.id).await.unwrap());
    let revoked_at = |page: &shared::store::Page<shared::Key, _>| {
        page.items
            .iter()
            .find(|key| key.id == revoked.id)
            .unwrap()
            .revoked_at
    };
    let once = revoked_at(&store.organizations.keys(ours, first(10)).await.unwrap());
    assert!(once.is_some());
    assert!(store.organizations.revoke_key(ours, revoked.id).await.unwrap());
    assert_eq!(
        revoked_at(&store.organizations.keys(ours, first(10)).await.unwrap()),
        once
    );

    let unknown = new_key(ours);
    let asked = [revoked.hash, good.hash, expired.hash, ending.hash, unknown.hash];
    let mut granted: Vec<_> = store
        .organizations
        .grants(&asked)
        .await
        .unwrap()
        .into_iter()
        .map(|(_, grant)| grant.key)
        .collect();
    granted.sort_unstable();
    assert_eq!(granted, [good.id, ending.id]);
    assert!(store.organizations.grants(&[]).await.unwrap().is_empty());
}

pub(crate) async fn rotating_ends_the_old_key(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (old, new, late) = (new_key(ours), new_key(ours), new_key(ours));
    store.organizations.create_key(old.clone()).await.unwrap();
    assert_eq!(
        store
            .organizations
            .rotate_key(old.id, new_key(theirs))
            .await
            .unwrap(),
        None
    );
    let rotated = store
        .organizations
        .rotate_key(old.id, new.clone())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(rotated.id, new.id);
    let granted = store.organizations.grants(&[old.hash, new.hash]).await.unwrap();
    assert_eq!(
        granted.iter().map(|(_, grant)| grant.key).collect::<Vec<_>>(),
        [new.id]
    );
    assert_eq!(
        store
            .organizations
            .rotate_key(old.id, late.clone())
            .await
            .unwrap(),
        None,
        "it has ended"
    );
    assert!(store.organizations.grants(&[late.hash]).await.unwrap().is_empty());
}

pub(crate) async fn a_hash_belongs_to_one_key(store: &Store) {
    let ours = organization(store).await.id;
    let key = new_key(ours);
    store.organizations.create_key(key.clone()).await.unwrap();
    let mut same = new_key(ours);
    same.hash = key.hash;
    let refused = store.organizations.create_key(same).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused:?}");
    let orphan = store
        .organizations
        .create_key(new_key(OrganizationId::new()))
        .await
        .unwrap_err();
    assert!(matches!(orphan, StoreError::Refused(_)), "{orphan:?}");
}
