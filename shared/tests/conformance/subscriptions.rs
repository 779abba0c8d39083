use std::time::Duration;

use futures_util::future::join_all;
use shared::{
    Builtin, EventPattern, Filter, OrganizationId, RetrySchedule, Subscription, SubscriptionId, Timestamp,
    filter::{FiltersFull, MAX_CHARACTERS, MAX_FILTER, MAX_PATTERNS_TOGETHER},
    seal::Sealed,
    signature::SignatureScheme,
    store::{NewSecret, PAGE_BYTES, PatchOutcome, Store, StoreError, SubscriptionPatch},
    subscription::{
        AttemptTimeout, Format, Full, HeaderName, MAX_SUBSCRIPTIONS, MaxInFlight, Metadata, Ordering, Push,
        RateLimit, SealedHeaders, Subscriber, Target,
    },
};

use super::world::{MINUTE, after, first, inbox, new_push, organization, push};

/// As it is read by what serves it: without what is for people.
fn as_served(subscription: Subscription) -> Subscription {
    Subscription {
        description: None,
        metadata: Metadata::default(),
        ..subscription
    }
}

async fn version(store: &Store, organization: OrganizationId) -> i64 {
    store.subscriptions.in_force(&[organization]).await.unwrap()[0].version
}

fn changed(outcome: PatchOutcome) -> Subscription {
    match outcome {
        PatchOutcome::Changed(subscription) => *subscription,
        other => panic!("changed, not {other:?}"),
    }
}

fn sealed_headers(names: &[&str], values: Vec<u8>) -> SealedHeaders {
    SealedHeaders {
        names: names
            .iter()
            .map(|name| HeaderName::parse(name).unwrap())
            .collect(),
        values: Sealed(values),
    }
}

fn metadata(key: &str, value: &str) -> Metadata {
    let mut metadata = Metadata::default();
    metadata
        .merge([(key.to_owned(), Some(value.to_owned()))])
        .unwrap();
    metadata
}

pub(crate) async fn created_and_read_back(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let mut new = new_push(ours);
    new.metadata = metadata("team \"ü\"", "");
    new.filter = Some(Filter::from_trusted("payload.a"));
    if let Target::Push(push) = &mut new.target {
        push.format = Format::CloudEvents;
        push.headers = Some(sealed_headers(&["authorization", "x-a"], vec![0, 255, 10]));
    }
    new.event_types = vec![
        EventPattern::parse("user.*").unwrap(),
        EventPattern::parse("a.**").unwrap(),
    ];
    new.enabled = false;
    new.disabled_reason = Some("gone".to_owned());
    let made = store.subscriptions.create(new.clone()).await.unwrap().unwrap();
    assert_eq!(made.version, 1);
    assert!(Timestamp::now().since(made.created_at).as_secs() < 60);
    new.created_at = made.created_at;
    new.updated_at = made.updated_at;
    assert_eq!(made, new);
    assert_eq!(
        store.subscriptions.get(ours, made.id).await.unwrap(),
        Some(made.clone())
    );
    assert_eq!(store.subscriptions.get(theirs, made.id).await.unwrap(), None);
    assert_eq!(
        store
            .subscriptions
            .get(ours, SubscriptionId::new())
            .await
            .unwrap(),
        None
    );
    assert_eq!(
        *store
            .subscriptions
            .by_ids(&[made.id, SubscriptionId::new()])
            .await
            .unwrap()[0],
        as_served(made)
    );
    let orphan = store
        .subscriptions
        .create(new_push(OrganizationId::new()))
        .await
        .unwrap_err();
    assert!(matches!(orphan, StoreError::Refused(_)), "{orphan:?}");
}

pub(crate) async fn listed_in_pages(store: &Store) {
    let ours = organization(store).await.id;
    let mut ids = vec![inbox(store, ours).await];
    for _ in 0..3 {
        ids.push(push(store, ours).await.id);
    }
    ids.sort_unstable();
    let page = store.subscriptions.list(ours, first(3)).await.unwrap();
    let rest = store
        .subscriptions
        .list(ours, after(page.next.unwrap(), 3))
        .await
        .unwrap();
    assert_eq!((page.items.len(), rest.items.len(), rest.next), (3, 1, None));
    let listed: Vec<_> = page.items.iter().chain(&rest.items).map(|one| one.id).collect();
    assert_eq!(listed, ids);
    assert!(
        store
            .subscriptions
            .list(ours, first(4))
            .await
            .unwrap()
            .next
            .is_none()
    );
}

pub(crate) async fn pages_have_a_weight(store: &Store) {
    let ours = organization(store).await.id;
    let mut ids = vec![inbox(store, ours).await];
    for _ in 0..40 {
        let patterns =
            (0..100).map(|n| EventPattern::parse(&format!("{}.{n:0245}", "x".repeat(10))).unwrap());
        let heavy = Subscription {
            event_types: patterns.collect(),
            metadata: metadata("note", &"y".repeat(490)),
            ..new_push(ours)
        };
        ids.push(store.subscriptions.create(heavy).await.unwrap().unwrap().id);
    }
    ids.sort_unstable();
    let (mut listed, mut pages, mut request) = (Vec::new(), 0, first(1_000));
    loop {
        let page = store.subscriptions.list(ours, request).await.unwrap();
        let weigh = |one: &Subscription| {
            one.event_types
                .iter()
                .map(|one| one.as_str().len())
                .sum::<usize>()
        };
        let weight: usize = page.items.iter().map(weigh).sum();
        assert!(weight <= usize::try_from(PAGE_BYTES).unwrap(), "{weight}");
        listed.extend(page.items.iter().map(|one| one.id));
        pages += 1;
        match page.next {
            Some(next) => request = after(next, 1_000),
            None => break,
        }
    }
    assert_eq!(listed, ids);
    assert_eq!(pages, 2, "1 MiB of about 1.03 in the first");
}

pub(crate) async fn patched_by_version(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let made = push(store, ours).await;
    let target = Target::Push(Push {
        url: "https://example.org/other".parse_url(),
        scheme: SignatureScheme::Hmac,
        secret: Sealed(vec![9]),
        public_key: None,
        former: None,
        retry_schedule: RetrySchedule::new(vec![1, 2]).unwrap(),
        timeout: AttemptTimeout::new(1_000).unwrap(),
        max_in_flight: MaxInFlight::new(1).unwrap(),
        rate_limit: Some(RateLimit::new(7).unwrap()),
        ordering: Ordering::Fifo,
        format: Format::CloudEvents,
        headers: Some(sealed_headers(&["x-b"], vec![7])),
    });
    let patch = SubscriptionPatch {
        target: Some(target.clone()),
        event_types: Some(vec![EventPattern::parse("x.y").unwrap()]),
        filter: Some(Some(Filter::from_trusted("payload.ü == '\"'"))),
        enabled: Some(false),
        description: Some(None),
        metadata: Some(metadata("a", "b")),
    };
    let outcome = store
        .subscriptions
        .patch(ours, made.id, 1, patch.clone())
        .await
        .unwrap();
    let patched = changed(outcome);
    assert_eq!(
        (patched.version, patched.enabled, &patched.description),
        (2, false, &None)
    );
    assert_eq!(patched.target, target);
    assert_eq!(patched.event_types, [EventPattern::parse("x.y").unwrap()]);
    assert_eq!(patched.metadata, metadata("a", "b"));
    assert_eq!(patched.filter, patch.filter.clone().flatten());
    assert_eq!(
        store.subscriptions.get(ours, made.id).await.unwrap(),
        Some(patched)
    );

    let outcome = store
        .subscriptions
        .patch(ours, made.id, 1, patch.clone())
        .await
        .unwrap();
    assert!(matches!(outcome, PatchOutcome::Conflict), "{outcome:?}");
    let outcome = store
        .subscriptions
        .patch(theirs, made.id, 2, patch.clone())
        .await
        .unwrap();
    assert!(matches!(outcome, PatchOutcome::NotFound), "{outcome:?}");
    let outcome = store
        .subscriptions
        .patch(ours, SubscriptionId::new(), 2, patch)
        .await
        .unwrap();
    assert!(matches!(outcome, PatchOutcome::NotFound), "{outcome:?}");

    let nothing = SubscriptionPatch::default();
    let same = changed(
        store
            .subscriptions
            .patch(ours, made.id, 2, nothing)
            .await
            .unwrap(),
    );
    assert_eq!(
        (same.target, same.enabled, same.description, same.metadata),
        (target, false, None, metadata("a", "b"))
    );
    assert!(same.filter.is_some());
    let described = SubscriptionPatch {
        description: Some(Some("new".to_owned())),
        filter: Some(None),
        ..Default::default()
    };
    let described = changed(
        store
            .subscriptions
            .patch(ours, made.id, 3, described)
            .await
            .unwrap(),
    );
    assert_eq!(
        (described.description.as_deref(), described.filter),
        (Some("new"), None)
    );
}

/// A filter of the most characters, none of which is a byte alone, but for those of so many patterns.
fn long_filter(patterns: u64) -> Filter {
    let mut text = "x.matches('ü') || ".repeat(usize::try_from(patterns).unwrap());
    text.extend(std::iter::repeat_n('ü', MAX_FILTER - text.chars().count()));
    Filter::from_trusted(&text)
}

fn with_filter(organization: shared::OrganizationId, filter: Filter) -> Subscription {
    Subscription {
        filter: Some(filter),
        ..new_push(organization)
    }
}

fn to_filter(filter: Option<Filter>) -> SubscriptionPatch {
    SubscriptionPatch {
        filter: Some(filter),
        ..SubscriptionPatch::default()
    }
}

pub(crate) async fn filters_have_bounds_together(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let make = async |filter| {
        let outcome = store.subscriptions.create(with_filter(ours, filter)).await;
        outcome.unwrap()
    };
    let most = MAX_PATTERNS_TOGETHER;
    let first = make(long_filter(most - 3)).await.unwrap();
    let before = version(store, ours).await;
    assert_eq!(
        make(long_filter(4)).await,
        Err(Full::Filters(FiltersFull::Patterns))
    );
    assert_eq!(version(store, ours).await, before, "nothing was changed");
    let last = make(long_filter(3)).await.unwrap();
    assert_eq!(
        make(long_filter(1)).await,
        Err(Full::Filters(FiltersFull::Patterns))
    );
    make(long_filter(0)).await.unwrap();
    let other = store
        .subscriptions
        .create(with_filter(theirs, long_filter(most)))
        .await;
    other.unwrap().expect("another organization has its own");
    // What a subscription has does not count against what it is to have instead.
    let patch = async |patterns| {
        let patch = to_filter(Some(long_filter(patterns)));
        let current = store.subscriptions.get(ours, first.id).await.unwrap().unwrap();
        let patched = store.subscriptions.patch(ours, first.id, current.version, patch);
        patched.await.unwrap()
    };
    changed(patch(most - 3).await);
    let full = patch(most - 2).await;
    assert!(
        matches!(full, PatchOutcome::FiltersFull(FiltersFull::Patterns)),
        "{full:?}"
    );
    // Neither does one that is deleted.
    assert!(store.subscriptions.delete(ours, last.id).await.unwrap());
    changed(patch(most).await);
    for at in 3..=MAX_CHARACTERS / MAX_FILTER as u64 {
        make(long_filter(0))
            .await
            .unwrap_or_else(|full| panic!("{at}: {full}"));
    }
    assert_eq!(
        make(Filter::from_trusted("a")).await,
        Err(Full::Filters(FiltersFull::Characters))
    );
}

pub(crate) async fn an_organization_has_so_many_subscriptions(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let short = || with_filter(ours, Filter::from_trusted("payload.a"));
    let mut made = Vec::new();
    for _ in 0..MAX_SUBSCRIPTIONS / 50 - 1 {
        let together = (0..50).map(|_| store.subscriptions.create(short()));
        made.extend(
            join_all(together)
                .await
                .into_iter()
                .map(|made| made.unwrap().unwrap()),
        );
    }
    // However many are made at once, there are never more.
    let at_once = join_all((0..70).map(|_| store.subscriptions.create(short()))).await;
    let (taken, refused): (Vec<_>, Vec<_>) = at_once.into_iter().map(Result::unwrap).partition(Result::is_ok);
    assert_eq!((taken.len(), refused.len()), (50, 20));
    assert!(refused.iter().all(|one| *one == Err(Full::Subscriptions)));
    // Others have their own, a filter that one has changes nothing, and what is deleted does not count.
    push(store, theirs).await;
    let first = &made[0];
    let patched = store
        .subscriptions
        .patch(ours, first.id, first.version, to_filter(None));
    changed(patched.await.unwrap());
    assert_eq!(
        store.subscriptions.create(short()).await.unwrap(),
        Err(Full::Subscriptions)
    );
    assert!(store.subscriptions.delete(ours, first.id).await.unwrap());
    push(store, ours).await;
    assert_eq!(
        store.subscriptions.create(short()).await.unwrap(),
        Err(Full::Subscriptions)
    );
}

pub(crate) async fn filters_made_at_once_keep_the_bound(store: &Store) {
    let ours = organization(store).await.id;
    let room = MAX_CHARACTERS / MAX_FILTER as u64;
    let create = || store.subscriptions.create(with_filter(ours, long_filter(0)));
    let mut made = Vec::new();
    for _ in 0..room - 3 {
        made.push(create().await.unwrap().unwrap().id);
    }
    let outcomes = join_all((0..12).map(|_| create())).await;
    let (taken, refused): (Vec<_>, Vec<_>) =
        outcomes.into_iter().map(Result::unwrap).partition(Result::is_ok);
    assert_eq!((taken.len(), refused.len()), (3, 9));
    assert!(
        refused
            .iter()
            .all(|one| *one == Err(FiltersFull::Characters.into()))
    );
    // So are those that subscriptions get later.
    for id in &made[..2] {
        store.subscriptions.delete(ours, *id).await.unwrap();
    }
    let mut plain = Vec::new();
    for _ in 0..8 {
        plain.push(push(store, ours).await);
    }
    let patched = plain.iter().map(|one| {
        let patch = to_filter(Some(long_filter(0)));
        store.subscriptions.patch(ours, one.id, one.version, patch)
    });
    let (mut changed, mut full) = (0, 0);
    for outcome in join_all(patched).await {
        match outcome.unwrap() {
            PatchOutcome::Changed(_) => changed += 1,
            PatchOutcome::FiltersFull(FiltersFull::Characters) => full += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((changed, full), (2, 6));
}

trait ParseUrl {
    fn parse_url(&self) -> shared::SubscriptionUrl;
}
impl ParseUrl for str {
    fn parse_url(&self) -> shared::SubscriptionUrl {
        shared::SubscriptionUrl::parse(self).unwrap()
    }
}

pub(crate) async fn changes_raise_the_version(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let others = version(store, theirs).await;
    let mut last = version(store, ours).await;
    let mut raised = async |what: &str| {
        let now = version(store, ours).await;
        assert!(now > last, "{what}: from {last} to {now}");
        last = now;
    };
    let made = push(store, ours).await;
    raised("create").await;
    let off = SubscriptionPatch {
        enabled: Some(false),
        ..Default::default()
    };
    changed(store.subscriptions.patch(ours, made.id, 1, off).await.unwrap());
    raised("patch").await;
    let on = SubscriptionPatch {
        enabled: Some(true),
        ..Default::default()
    };
    changed(store.subscriptions.patch(ours, made.id, 2, on).await.unwrap());
    raised("enable").await;
    assert!(
        store
            .subscriptions
            .disable(ours, made.id, 3, "gone", true)
            .await
            .unwrap()
    );
    raised("disable").await;
    assert!(store.subscriptions.delete(ours, made.id).await.unwrap());
    raised("delete").await;
    assert_eq!(version(store, theirs).await, others);
}

pub(crate) async fn enabling_clears_the_reason(store: &Store) {
    let ours = organization(store).await.id;
    let made = push(store, ours).await;
    store
        .subscriptions
        .disable(ours, made.id, 1, "410", true)
        .await
        .unwrap();
    let disabled = store.subscriptions.get(ours, made.id).await.unwrap().unwrap();
    assert_eq!(
        (disabled.enabled, disabled.disabled_reason.as_deref()),
        (false, Some("410"))
    );
    let described = SubscriptionPatch {
        description: Some(None),
        ..Default::default()
    };
    let described = changed(
        store
            .subscriptions
            .patch(ours, made.id, disabled.version, described)
            .await
            .unwrap(),
    );
    assert_eq!(described.disabled_reason.as_deref(), Some("410"));
    let on = SubscriptionPatch {
        enabled: Some(true),
        ..Default::default()
    };
    let enabled = changed(
        store
            .subscriptions
            .patch(ours, made.id, described.version, on)
            .await
            .unwrap(),
    );
    assert_eq!((enabled.enabled, enabled.disabled_reason), (true, None));
}

pub(crate) async fn disabled_by_version(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let made = push(store, ours).await;
    let elsewhere = SubscriptionPatch {
        target: Some(Target::Push(Push {
            url: "https://example.org/other".parse_url(),
            ..made.push().unwrap().clone()
        })),
        ..Default::default()
    };
    let moved = changed(
        store
            .subscriptions
            .patch(ours, made.id, made.version, elsewhere)
            .await
            .unwrap(),
    );
    let before = version(store, ours).await;
    let disable = async |organization, id, version| {
        let disabled = store
            .subscriptions
            .disable(organization, id, version, "410", true)
            .await;
        disabled.unwrap()
    };
    assert!(
        !disable(ours, made.id, made.version).await,
        "what was learnt of the old URL says nothing of the new one"
    );
    assert!(!disable(theirs, made.id, moved.version).await);
    assert!(!disable(ours, SubscriptionId::new(), 1).await);
    let now = store.subscriptions.get(ours, made.id).await.unwrap();
    assert_eq!(now.as_ref(), Some(&moved));
    assert_eq!(version(store, ours).await, before, "nothing changed");

    assert!(disable(ours, made.id, moved.version).await);
    let disabled = store.subscriptions.get(ours, made.id).await.unwrap().unwrap();
    assert_eq!(
        (disabled.enabled, disabled.disabled_reason.as_deref()),
        (false, Some("410"))
    );
    assert!(!disable(ours, made.id, moved.version).await);
    assert!(
        !disable(ours, made.id, disabled.version).await,
        "it is disabled already"
    );
    let again = store.subscriptions.get(ours, made.id).await.unwrap().unwrap();
    assert_eq!(again, disabled);
}

pub(crate) async fn deleted_ones_are_gone(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let (made, inbox) = (push(store, ours).await, inbox(store, ours).await);
    assert!(
        !store.subscriptions.delete(ours, inbox).await.unwrap(),
        "the inbox stays"
    );
    assert!(!store.subscriptions.delete(theirs, made.id).await.unwrap());
    assert!(store.subscriptions.delete(ours, made.id).await.unwrap());
    assert!(!store.subscriptions.delete(ours, made.id).await.unwrap());
    assert_eq!(store.subscriptions.get(ours, made.id).await.unwrap(), None);
    assert!(store.subscriptions.by_ids(&[made.id]).await.unwrap().is_empty());
    assert_eq!(
        store
            .subscriptions
            .list(ours, first(10))
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    assert_eq!(
        store.subscriptions.in_force(&[ours]).await.unwrap()[0]
            .subscriptions
            .len(),
        1
    );
    let patch = store
        .subscriptions
        .patch(ours, made.id, 2, SubscriptionPatch::default())
        .await
        .unwrap();
    assert!(matches!(patch, PatchOutcome::NotFound), "{patch:?}");
}

pub(crate) async fn one_webhook_an_organization(store: &Store) {
    let ours = organization(store).await.id;
    assert_eq!(store.subscriptions.webhook(ours).await.unwrap(), None);
    let webhook = || Subscription {
        builtin: Some(Builtin::Webhook),
        ..new_push(ours)
    };
    let made = store.subscriptions.create(webhook()).await.unwrap().unwrap();
    assert_eq!(
        store.subscriptions.webhook(ours).await.unwrap(),
        Some(made.clone())
    );
    let second = store.subscriptions.create(webhook()).await.unwrap_err();
    assert!(matches!(second, StoreError::Refused(_)), "{second:?}");
    assert!(store.subscriptions.delete(ours, made.id).await.unwrap());
    assert_eq!(store.subscriptions.webhook(ours).await.unwrap(), None);
    store.subscriptions.create(webhook()).await.unwrap().unwrap();
}

pub(crate) async fn in_force_leaves_out_unknown_organizations(store: &Store) {
    let (first, second) = (organization(store).await.id, organization(store).await.id);
    let disabled = push(store, first).await;
    store
        .subscriptions
        .disable(first, disabled.id, 1, "gone", true)
        .await
        .unwrap();
    let asked = [first, OrganizationId::new(), second];
    let mut in_force = store.subscriptions.in_force(&asked).await.unwrap();
    in_force.sort_by_key(|one| one.organization);
    assert_eq!(
        in_force.iter().map(|one| one.organization).collect::<Vec<_>>(),
        [first, second]
    );
    let ids: Vec<_> = in_force[0].subscriptions.iter().map(|one| one.id).collect();
    assert!(
        ids.is_sorted() && ids.len() == 2 && ids.contains(&disabled.id),
        "{ids:?}"
    );
    assert!(store.subscriptions.in_force(&[]).await.unwrap().is_empty());
}

pub(crate) async fn secrets_are_rotated(store: &Store) {
    let (ours, theirs) = (organization(store).await.id, organization(store).await.id);
    let made = push(store, ours).await;
    let new = |byte| NewSecret {
        scheme: SignatureScheme::Ed25519,
        secret: Sealed(vec![byte; 40]),
        public_key: Some(format!("whpk_{byte}")),
    };
    let rotate = async |organization, version, byte, overlap| {
        let rotated = store
            .subscriptions
            .rotate(organization, made.id, version, new(byte), overlap);
        rotated.await.unwrap()
    };
    assert!(matches!(
        rotate(theirs, 1, 1, MINUTE).await,
        PatchOutcome::NotFound
    ));
    assert!(matches!(rotate(ours, 7, 1, MINUTE).await, PatchOutcome::Conflict));
    let before = version(store, ours).await;
    let rotated = changed(rotate(ours, 1, 1, MINUTE).await);
    assert!(
        version(store, ours).await > before,
        "plans and routes are made anew"
    );
    let (old, now) = (made.push().unwrap().clone(), rotated.push().unwrap().clone());
    assert_eq!(
        (now.scheme, &now.secret),
        (SignatureScheme::Ed25519, &Sealed(vec![1; 40]))
    );
    assert_eq!(now.public_key.as_deref(), Some("whpk_1"));
    let former = now.former.clone().expect("the one before");
    assert_eq!(
        (former.scheme, former.secret),
        (SignatureScheme::Hmac, old.secret)
    );
    let left = former.until.since(Timestamp::now());
    assert!(left > MINUTE / 2 && left <= MINUTE, "{left:?}");
    // What a client changes leaves the secrets alone.
    let patch = SubscriptionPatch {
        description: Some(None),
        ..SubscriptionPatch::default()
    };
    let patched = store.subscriptions.patch(ours, made.id, 2, patch).await.unwrap();
    assert_eq!(changed(patched).push(), Some(&now));

    let again = changed(rotate(ours, 3, 2, MINUTE).await);
    assert_eq!(
        again.push().unwrap().former.as_ref().unwrap().secret,
        Sealed(vec![1; 40]),
        "two at most"
    );
    let last = changed(rotate(ours, 4, 3, Duration::ZERO).await);
    assert_eq!(last.push().unwrap().former, None);
    let short = changed(rotate(ours, 5, 4, Duration::from_millis(30)).await);
    let until = short.push().unwrap().former.as_ref().map(|former| former.until);
    while until.is_some_and(|until| Timestamp::now() <= until) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ended = store.subscriptions.get(ours, made.id).await.unwrap().unwrap();
    assert_eq!(ended.push().unwrap().former, None, "its time is over");
    store.keeper.keep(MINUTE * 60 * 24).await.unwrap();
    let nobody = store
        .subscriptions
        .sealed_otherwise([4; 4], None, 10)
        .await
        .unwrap();
    assert!(nobody.is_empty(), "and it is gone from its row: {nobody:?}");
}

/// Who read it before would put back what was sealed under the old key.
pub(crate) async fn a_change_by_what_was_sealed_before_is_a_conflict(store: &Store) {
    let ours = organization(store).await.id;
    let read = push(store, ours).await;
    let planned_by = version(store, ours).await;
    let subscriptions = &store.subscriptions;
    let before = &read.push().unwrap().secret;
    let resealed = subscriptions.reseal(read.id, before, Sealed(vec![9; 41]));
    assert!(resealed.await.unwrap());
    assert_eq!(version(store, ours).await, planned_by, "no plan is stale for it");
    subscriptions.raise_version(ours).await.unwrap();
    assert_eq!(version(store, ours).await, planned_by + 1, "until all are");
    let change = SubscriptionPatch {
        target: Some(read.target.clone()),
        ..SubscriptionPatch::default()
    };
    let outcome = subscriptions.patch(ours, read.id, read.version, change).await;
    assert!(matches!(outcome, Ok(PatchOutcome::Conflict)), "{outcome:?}");
    let kept = subscriptions.get(ours, read.id).await.unwrap().unwrap();
    assert_eq!(kept.push().unwrap().secret, Sealed(vec![9; 41]));
}

/// What is known of a subscriber holds while it is the same, which the store's rows say.
pub(crate) async fn to_be_enabled_makes_another_subscriber(store: &Store) {
    let ours = organization(store).await.id;
    let made = push(store, ours).await;
    let subscriptions = &store.subscriptions;
    let patched = async |version: i64, patch: SubscriptionPatch| {
        let outcome = subscriptions.patch(ours, made.id, version, patch).await.unwrap();
        let PatchOutcome::Changed(changed) = outcome else {
            panic!("{outcome:?}");
        };
        let planned = subscriptions.in_force(&[ours]).await.unwrap().remove(0);
        let planned = planned.subscriptions.iter().find(|one| one.id == made.id);
        let sent = subscriptions.by_ids(&[made.id]).await.unwrap().remove(0);
        let of = |one: &Subscription| Subscriber::of(one, one.push().unwrap());
        let all = [of(&changed), of(planned.unwrap()), of(&sent)];
        assert_eq!(all, [all[0]; 3], "however it is read");
        all[0]
    };
    let enabled = |enabled| SubscriptionPatch {
        enabled: Some(enabled),
        ..SubscriptionPatch::default()
    };
    let described = SubscriptionPatch {
        description: Some(Some("another text".to_owned())),
        target: Some(made.target.clone()),
        ..SubscriptionPatch::default()
    };
    let before = Subscriber::of(&made, made.push().unwrap());
    assert_eq!(patched(1, described).await, before);
    assert_eq!(patched(2, enabled(true)).await, before, "it was");
    patched(3, enabled(false)).await;
    let after = patched(4, enabled(true)).await;
    assert_ne!(after, before);
    assert_eq!(patched(5, enabled(true)).await, after);
}

pub(crate) async fn secrets_are_sealed_anew(store: &Store) {
    let ours = organization(store).await.id;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(push(store, ours).await.id);
    }
    let subscriptions = &store.subscriptions;
    let rotated = NewSecret {
        scheme: SignatureScheme::Hmac,
        secret: Sealed(vec![9; 40]),
        public_key: None,
    };
    subscriptions
        .rotate(ours, ids[1], 1, rotated, MINUTE)
        .await
        .unwrap();
    let found = subscriptions.sealed_otherwise([9; 4], None, 2).await.unwrap();
    assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), ids[..2]);
    assert_eq!(found[1].secrets.len(), 2, "the former one, too");
    let rest = subscriptions
        .sealed_otherwise([9; 4], Some(ids[1]), 2)
        .await
        .unwrap();
    assert_eq!(rest.iter().map(|found| found.id).collect::<Vec<_>>(), ids[2..]);
    let before = found[0].secrets[0].clone();
    assert!(
        !subscriptions
            .reseal(ids[0], &Sealed(vec![7; 40]), Sealed(vec![9; 41]))
            .await
            .unwrap()
    );
    assert!(
        subscriptions
            .reseal(ids[0], &before, Sealed(vec![9; 41]))
            .await
            .unwrap()
    );
    assert!(
        subscriptions
            .reseal(ids[1], &before, Sealed(vec![9; 42]))
            .await
            .unwrap()
    );
    let one = subscriptions.get(ours, ids[0]).await.unwrap().unwrap();
    assert_eq!(
        (one.version, &one.push().unwrap().secret),
        (2, &Sealed(vec![9; 41])),
        "the same secret as before"
    );
    let other = subscriptions.get(ours, ids[1]).await.unwrap().unwrap();
    let other = other.push().unwrap();
    assert_eq!(other.secret, Sealed(vec![9; 40]));
    assert_eq!(other.former.as_ref().unwrap().secret, Sealed(vec![9; 42]));
    let left = subscriptions.sealed_otherwise([9; 4], None, 10).await.unwrap();
    assert_eq!(left.iter().map(|found| found.id).collect::<Vec<_>>(), ids[2..]);

    // Static headers are sealed, too.
    let mut with_headers = new_push(ours);
    if let Target::Push(push) = &mut with_headers.target {
        push.secret = Sealed(vec![9; 50]);
        push.headers = Some(sealed_headers(&["x-a"], vec![8; 40]));
    }
    let made = subscriptions.create(with_headers).await.unwrap().unwrap();
    let found = subscriptions
        .sealed_otherwise([9; 4], Some(ids[2]), 10)
        .await
        .unwrap();
    assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), [made.id]);
    assert_eq!(found[0].secrets[1], Sealed(vec![8; 40]));
    let before = found[0].secrets[1].clone();
    assert!(
        subscriptions
            .reseal(made.id, &before, Sealed(vec![9; 60]))
            .await
            .unwrap()
    );
    let read = subscriptions.get(ours, made.id).await.unwrap().unwrap();
    let read = read.push().unwrap();
    assert_eq!(read.secret, Sealed(vec![9; 50]));
    assert_eq!(read.headers, Some(sealed_headers(&["x-a"], vec![9; 60])));
    let left = subscriptions.sealed_otherwise([9; 4], None, 10).await.unwrap();
    assert_eq!(left.iter().map(|found| found.id).collect::<Vec<_>>(), ids[2..]);

    let keeper = &store.keeper;
    let kept = keeper.secret_check(Sealed(vec![1])).await.unwrap();
    assert!(
        !keeper
            .replace_secret_check(&Sealed(vec![5]), Sealed(vec![2]))
            .await
            .unwrap()
    );
    assert!(keeper.replace_secret_check(&kept, Sealed(vec![2])).await.unwrap());
    assert_eq!(
        keeper.secret_check(Sealed(vec![3])).await.unwrap(),
        Sealed(vec![2])
    );
}
