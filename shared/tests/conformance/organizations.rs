use std::time::Duration;

use futures_util::future::join_all;
use shared::{
    Key, KeyHash, KeyId, KeyText, OrganizationId, Scope, Scopes, Tier, Timestamp,
    store::{NewKey, OrganizationPatch, Rotated, Rotation, Store, StoreError},
    subscription::{Builtin, Target},
};

use super::world::{MINUTE, after, first, new_key, organization};

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

fn named(name: &str) -> OrganizationPatch {
    OrganizationPatch {
        name: Some(name.to_owned()),
        ..OrganizationPatch::default()
    }
}

pub(crate) async fn renamed(store: &Store) {
    let made = organization(store).await;
    let renamed = store
        .organizations
        .change(made.id, named("another name"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(renamed.name, "another name");
    assert_eq!(store.organizations.get(made.id).await.unwrap(), Some(renamed));
    assert_eq!(
        store
            .organizations
            .change(OrganizationId::new(), named("x"))
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

fn rotation(old: &NewKey, overlap: Duration) -> Rotation {
    let text = KeyText::generate();
    Rotation {
        old: old.id,
        organization: old.organization,
        id: KeyId::new(),
        hint: text.hint(),
        hash: text.hash(),
        overlap,
        within: None,
    }
}

async fn listed(store: &Store, key: &NewKey) -> Key {
    let page = store
        .organizations
        .keys(key.organization, first(100))
        .await
        .unwrap();
    page.items.into_iter().find(|one| one.id == key.id).unwrap()
}

async fn good(store: &Store, hash: KeyHash) -> bool {
    !store.organizations.grants(&[hash]).await.unwrap().is_empty()
}

pub(crate) async fn rotating_without_overlap_ends_the_old_key(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let old = NewKey {
        name: "deploys".to_owned(),
        scopes: [Scope::EventsWrite, Scope::Admin].into_iter().collect(),
        expires_at: Some(Timestamp::now().plus(MINUTE)),
        ..new_key(ours)
    };
    store.organizations.create_key(old.clone()).await.unwrap();
    let stolen = Rotation {
        organization: theirs,
        ..rotation(&old, Duration::ZERO)
    };
    let refused = store.organizations.rotate_key(stolen).await.unwrap();
    assert_eq!(refused, Rotated::NotFound);
    assert!(good(store, old.hash).await);

    let asked = rotation(&old, Duration::ZERO);
    let Rotated::Done { new, old_until } = store.organizations.rotate_key(asked.clone()).await.unwrap()
    else {
        panic!("it is rotated")
    };
    assert_eq!((new.id, new.organization, old_until), (asked.id, ours, None));
    assert_eq!(
        (&*new.name, new.scopes, &*new.hint),
        ("deploys", old.scopes, &*asked.hint)
    );
    assert_eq!(
        (new.expires_at, new.revoked_at, new.replaced_by),
        (old.expires_at, None, None)
    );
    assert!(!good(store, old.hash).await && good(store, asked.hash).await);
    let after = listed(store, &old).await;
    assert!(after.revoked_at.is_some());
    assert_eq!(
        (after.replaced_by, after.expires_at),
        (Some(new.id), old.expires_at)
    );
    let again = rotation(&old, Duration::ZERO);
    assert_eq!(
        store.organizations.rotate_key(again.clone()).await.unwrap(),
        Rotated::Ended
    );
    assert!(!good(store, again.hash).await);
}

pub(crate) async fn rotating_with_overlap_ends_the_old_key_later(store: &Store) {
    let ours = organization(store).await.id;
    let (old, ending) = (
        new_key(ours),
        NewKey {
            expires_at: Some(Timestamp::now().plus(Duration::from_secs(20))),
            ..new_key(ours)
        },
    );
    for key in [&old, &ending] {
        store.organizations.create_key(key.clone()).await.unwrap();
    }
    let overlap = Duration::from_millis(1_200);
    let begun = Timestamp::now();
    let asked = rotation(&old, overlap);
    let Rotated::Done { new, old_until } = store.organizations.rotate_key(asked.clone()).await.unwrap()
    else {
        panic!("it is rotated")
    };
    assert_eq!(new.expires_at, None, "as the old one had none");
    assert!(old_until.unwrap() >= begun.plus(overlap).minus(Duration::from_millis(100)));
    let after = listed(store, &old).await;
    assert_eq!(
        (after.expires_at, after.revoked_at, after.replaced_by),
        (old_until, None, Some(new.id))
    );
    assert!(
        good(store, old.hash).await && good(store, asked.hash).await,
        "both are good"
    );
    assert_eq!(
        store
            .organizations
            .rotate_key(rotation(&old, overlap))
            .await
            .unwrap(),
        Rotated::Replaced(new.id),
        "once"
    );
    // An overlap gives no key longer than it had.
    let asked = rotation(&ending, MINUTE);
    let Rotated::Done { new, old_until } = store.organizations.rotate_key(asked).await.unwrap() else {
        panic!("it is rotated")
    };
    assert_eq!(
        (new.expires_at, old_until),
        (ending.expires_at, ending.expires_at)
    );
    tokio::time::timeout(Duration::from_secs(20), async {
        while good(store, old.hash).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the old key ends");
    assert!(Timestamp::now() >= begun.plus(overlap), "it ended too soon");
    assert_eq!(
        store
            .organizations
            .rotate_key(rotation(&old, overlap))
            .await
            .unwrap(),
        Rotated::Ended
    );
}

pub(crate) async fn rotating_gives_no_scope_that_is_not_held(store: &Store) {
    let ours = organization(store).await.id;
    let old = NewKey {
        scopes: [Scope::EventsWrite, Scope::Admin].into_iter().collect(),
        ..new_key(ours)
    };
    store.organizations.create_key(old.clone()).await.unwrap();
    let within = |scopes: &[Scope]| Rotation {
        within: Some(scopes.iter().copied().collect()),
        ..rotation(&old, Duration::ZERO)
    };
    for lacking in [
        &[][..],
        &[Scope::Admin],
        &[Scope::Admin, Scope::EventsRead, Scope::SubscriptionsWrite],
    ] {
        let asked = within(lacking);
        let refused = store.organizations.rotate_key(asked.clone()).await.unwrap();
        assert_eq!(refused, Rotated::Beyond, "{lacking:?}");
        assert!(good(store, old.hash).await && !good(store, asked.hash).await);
    }
    assert_eq!(listed(store, &old).await.replaced_by, None);
    let asked = within(&[Scope::Admin, Scope::EventsRead, Scope::EventsWrite]);
    let rotated = store.organizations.rotate_key(asked).await.unwrap();
    let Rotated::Done { new, .. } = rotated else {
        panic!("it is rotated, not {rotated:?}")
    };
    assert_eq!(new.scopes, old.scopes, "as before, and no more");
}

pub(crate) async fn rotated_by_many_it_has_one_successor(store: &Store) {
    let old = new_key(organization(store).await.id);
    store.organizations.create_key(old.clone()).await.unwrap();
    let rotations: Vec<_> = (0..8).map(|_| rotation(&old, MINUTE)).collect();
    let rotate = |rotation: &Rotation| store.organizations.rotate_key(rotation.clone());
    let outcomes = join_all(rotations.iter().map(rotate)).await;
    let successor = listed(store, &old).await.replaced_by.unwrap();
    for (rotation, outcome) in rotations.iter().zip(outcomes) {
        match outcome.unwrap() {
            Rotated::Done { new, .. } => assert_eq!(new.id, successor),
            Rotated::Replaced(by) => assert_eq!(by, successor),
            other => panic!("{other:?}"),
        }
        assert_eq!(good(store, rotation.hash).await, rotation.id == successor);
    }
}

pub(crate) async fn the_last_use_is_noted_rarely(store: &Store) {
    let ours = organization(store).await.id;
    let (used, other) = (new_key(ours), new_key(ours));
    for key in [&used, &other] {
        store.organizations.create_key(key.clone()).await.unwrap();
    }
    assert_eq!(listed(store, &used).await.last_used_at, None);
    let note = async |ago: Duration| {
        let noted = [(used.id, ago), (KeyId::new(), ago)];
        store.organizations.note_used(&noted).await.unwrap();
        Timestamp::now().since(listed(store, &used).await.last_used_at.unwrap())
    };
    let within = |found: Duration, minutes: u64| {
        found.abs_diff(Duration::from_mins(minutes)) < Duration::from_secs(20)
    };
    assert!(within(note(Duration::from_mins(20)).await, 20));
    assert!(
        within(note(Duration::from_mins(16)).await, 20),
        "too little later"
    );
    assert!(
        within(note(Duration::from_mins(30)).await, 20),
        "it was used since"
    );
    assert!(within(note(Duration::from_mins(14)).await, 14));
    assert_eq!(listed(store, &other).await.last_used_at, None);
    store.organizations.note_used(&[]).await.unwrap();
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
