//! Keys that end while look-ups are under way, and keys that are not looked up at all.

use async_trait::async_trait;

use super::*;
use crate::{
    Key, KeyId, Organization, OrganizationId, Scopes, Tier,
    http::Code,
    store::{NewKey, OrganizationPatch, Page, PageRequest, Result as StoreResult, Rotated, Rotation},
};

fn headers(given: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

#[test]
fn a_key_is_a_bearer_or_else_in_a_header_of_its_own() {
    for (given, expected) in [
        (&[("authorization", "Bearer one")][..], Ok("one")),
        (&[("authorization", "bearer  one ")], Ok("one")),
        (&[("x-api-key", "two")], Ok("two")),
        (
            &[("authorization", "Bearer one"), ("x-api-key", "two")],
            Ok("one"),
        ),
        (
            &[("authorization", "Basic eDp5"), ("x-api-key", "two")],
            Ok("two"),
        ),
        (&[("authorization", "nonsense"), ("x-api-key", "two")], Ok("two")),
        (
            &[("authorization", "Basic eDp5"), ("authorization", "Bearer one")],
            Ok("one"),
        ),
        (
            &[("authorization", "Basic eDp5")],
            Err("the authorization header must be: Bearer <key>"),
        ),
        (
            &[],
            Err("send an API key, as Authorization: Bearer <key> or X-API-Key: <key>"),
        ),
    ] {
        let headers = headers(given);
        let presented = presented(&headers);
        let presented = presented.as_deref().map_err(ApiError::detail);
        assert_eq!(presented, expected, "{given:?}");
    }
}

/// A store of one key, whose look-ups are answered when the test lets them, as they were when they began.
struct Slow {
    hash: KeyHash,
    grant: Grant,
    revoked: AtomicBool,
    began: Semaphore,
    answer: Semaphore,
}

#[async_trait]
impl Organizations for Slow {
    async fn grants(&self, _: &[KeyHash]) -> StoreResult<Vec<(KeyHash, Grant)>> {
        let revoked = self.revoked.load(Ordering::SeqCst);
        self.began.add_permits(1);
        self.answer.acquire().await.unwrap().forget();
        Ok(if revoked {
            Vec::new()
        } else {
            vec![(self.hash, self.grant.clone())]
        })
    }

    async fn create(&self, _: OrganizationId, _: &str, _: Tier, _: NewKey) -> StoreResult<Organization> {
        unreachable!("keys are only looked up")
    }
    async fn get(&self, _: OrganizationId) -> StoreResult<Option<Organization>> {
        unreachable!("keys are only looked up")
    }
    async fn change(&self, _: OrganizationId, _: OrganizationPatch) -> StoreResult<Option<Organization>> {
        unreachable!("keys are only looked up")
    }
    async fn create_key(&self, _: NewKey) -> StoreResult<Key> {
        unreachable!("keys are only looked up")
    }
    async fn keys(&self, _: OrganizationId, _: PageRequest<KeyId>) -> StoreResult<Page<Key, KeyId>> {
        unreachable!("keys are only looked up")
    }
    async fn revoke_key(&self, _: OrganizationId, _: KeyId) -> StoreResult<bool> {
        unreachable!("keys are only looked up")
    }
    async fn rotate_key(&self, _: Rotation) -> StoreResult<Rotated> {
        unreachable!("keys are only looked up")
    }
    async fn note_used(&self, _: &[(KeyId, Duration)]) -> StoreResult<()> {
        Ok(())
    }
}

fn slow() -> (KeyText, Arc<Slow>) {
    let text = KeyText::generate();
    let grant = Grant {
        key: KeyId::new(),
        organization: OrganizationId::new(),
        tier: Tier::Free,
        scopes: Scopes::all(),
        expires_at: None,
    };
    let store = Arc::new(Slow {
        hash: text.hash(),
        grant,
        revoked: AtomicBool::new(false),
        began: Semaphore::new(0),
        answer: Semaphore::new(0),
    });
    (text, store)
}

fn auth(store: &Arc<Slow>) -> Auth {
    let (untold, _) = mpsc::channel(1);
    Auth::new(
        Arc::clone(store) as Arc<dyn Organizations>,
        Strangers::new(AddressRules::default()),
        untold,
    )
}

/// Revokes the key once a look-up has begun, and lets that be answered then.
async fn revoke(store: &Slow, auth: &Auth) {
    store.began.acquire().await.unwrap().forget();
    store.revoked.store(true, Ordering::SeqCst);
    auth.end(Ending {
        key: store.grant.key,
        ends_at: None,
    });
    store.answer.add_permits(1);
}

#[tokio::test]
async fn what_was_revoked_stays_forgotten_whatever_was_under_way() {
    let (text, store) = slow();
    let auth = auth(&store);
    let request = headers(&[("x-api-key", text.expose())]);
    let mut last_use = LastUse::default();
    store.answer.add_permits(1);
    assert_eq!(
        auth.authenticate(&request, None).await.unwrap().key,
        store.grant.key
    );
    store.began.acquire().await.unwrap().forget();

    // The refresh has looked, and has no answer yet, when the key is revoked.
    tokio::join!(auth.refresh(&mut last_use), revoke(&store, &auth));
    assert!(
        auth.known.get(&store.hash).unwrap().grant.is_none(),
        "the refresh brought it back"
    );
    // It is refused without asking, and so also while the store is away.
    let refused = auth.authenticate(&request, None).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthorized);
}

#[tokio::test]
async fn a_first_use_does_not_bring_back_what_was_revoked_meanwhile() {
    let (_, store) = slow();
    let auth = auth(&store);
    let (used, ()) = tokio::join!(auth.grant(store.hash), revoke(&store, &auth));
    assert!(used.is_err());
    assert!(auth.known.get(&store.hash).is_none());
}

#[tokio::test]
async fn a_key_that_was_replaced_ends_when_it_was_told_to() {
    let (_, store) = slow();
    let auth = auth(&store);
    store.answer.add_permits(2);
    let ends_at = Some(Timestamp::now().plus(Duration::from_mins(1)));
    assert_eq!(auth.grant(store.hash).await.unwrap().expires_at, None);
    auth.end(Ending {
        key: store.grant.key,
        ends_at,
    });
    assert_eq!(auth.grant(store.hash).await.unwrap().expires_at, ends_at);
    // What the store knew before the rotation does not give it longer.
    auth.refresh(&mut LastUse::default()).await;
    let known = auth.known.get(&store.hash).unwrap();
    assert_eq!(known.grant.as_ref().unwrap().expires_at, ends_at);
}

#[tokio::test]
async fn that_a_key_ends_is_no_use_of_it() {
    for used in [false, true] {
        let (_, store) = slow();
        let auth = auth(&store);
        let grant = Some(Arc::new(store.grant.clone()));
        let known = Known::new(grant, Instant::now(), 0, used);
        auth.known.insert(store.hash, Arc::new(known));
        auth.end(Ending {
            key: store.grant.key,
            ends_at: Some(Timestamp::now().plus(Duration::from_mins(1))),
        });
        let mut last_use = LastUse::default();
        assert_eq!(auth.note_uses(&mut last_use), [store.hash], "it is looked up");
        let uses = last_use.due(Instant::now()).len();
        assert_eq!(uses, usize::from(used));
    }
}

/// A key that was used and looked up again since, and that nobody uses any more.
async fn resting(store: &Slow, auth: &Auth) {
    store.answer.add_permits(2);
    auth.grant(store.hash).await.unwrap();
    auth.refresh(&mut LastUse::default()).await;
    store.began.acquire_many(2).await.unwrap().forget();
    auth.refresh(&mut LastUse::default()).await;
    assert_eq!(store.began.available_permits(), 0, "it does not rest");
}

#[tokio::test]
async fn a_key_that_rests_is_looked_up_after_notices_were_missed() {
    let (text, store) = slow();
    let auth = auth(&store);
    resting(&store, &auth).await;
    store.revoked.store(true, Ordering::SeqCst);
    auth.missed_notices();
    store.answer.add_permits(1);
    auth.refresh(&mut LastUse::default()).await;
    let request = headers(&[("x-api-key", text.expose())]);
    auth.note_failure(None);
    auth.missed_notices();
    let refused = auth.authenticate(&request, None).await.unwrap_err();
    assert_eq!(
        refused.code(),
        Code::Unauthorized,
        "that it has ended is never in doubt"
    );
    assert_eq!(store.began.available_permits(), 1, "and nobody has to be asked");
}

/// Notices are missed once more while it is looked up: that look-up does not count.
#[tokio::test]
async fn a_look_up_from_before_notices_were_missed_does_not_do() {
    let (_, store) = slow();
    let auth = auth(&store);
    resting(&store, &auth).await;
    auth.missed_notices();
    let mut last_use = LastUse::default();
    let meanwhile = async {
        store.began.acquire().await.unwrap().forget();
        auth.missed_notices();
        store.answer.add_permits(1);
    };
    tokio::join!(auth.refresh(&mut last_use), meanwhile);
    store.revoked.store(true, Ordering::SeqCst);
    store.answer.add_permits(1);
    auth.refresh(&mut last_use).await;
    assert!(auth.known.get(&store.hash).unwrap().grant.is_none());
}

#[tokio::test]
async fn a_key_in_doubt_is_served_only_if_there_was_no_time_to_ask() {
    let (_, store) = slow();
    let auth = auth(&store);
    let grant = Some(Arc::new(store.grant.clone()));
    let long_ago = Instant::now().checked_sub(FRESH * 2).unwrap();
    auth.known
        .insert(store.hash, Arc::new(Known::new(grant, long_ago, 0, false)));
    auth.note_failure(None);
    assert!(auth.grant(store.hash).await.is_ok(), "nothing was missed");
    auth.missed_notices();
    assert!(
        auth.grant(store.hash).await.is_ok(),
        "the store went away before it could be asked"
    );
    let missed = auth.missed.last.load(Ordering::SeqCst);
    let in_time = u64::try_from(CAUGHT_UP.as_millis()).unwrap();
    auth.answered(missed + in_time - 1);
    assert!(auth.grant(store.hash).await.is_ok(), "or while it was");
    assert_eq!(store.began.available_permits(), 0);
    // The store went on answering, and not for this key.
    auth.answered(missed + in_time);
    let refused = auth.grant(store.hash).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "nobody can tell");
    // Nor does anybody know more once notices are missed again.
    auth.missed_notices();
    let refused = auth.grant(store.hash).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "nobody can tell");
    store.answer.add_permits(1);
    assert!(auth.grant(store.hash).await.is_ok(), "it is asked for");
}

#[tokio::test]
async fn a_key_that_nobody_uses_is_looked_up_now_and_then() {
    let (_, store) = slow();
    let auth = auth(&store);
    let grant = Some(Arc::new(store.grant.clone()));
    let long_ago = Instant::now().checked_sub(RESTING).unwrap();
    auth.known
        .insert(store.hash, Arc::new(Known::new(grant, long_ago, 0, false)));
    store.revoked.store(true, Ordering::SeqCst);
    store.answer.add_permits(1);
    auth.refresh(&mut LastUse::default()).await;
    assert!(auth.known.get(&store.hash).unwrap().grant.is_none());
}

#[tokio::test]
async fn a_mistyped_key_is_refused_without_a_look_up() {
    let (text, store) = slow();
    let auth = auth(&store);
    let last = if text.expose().ends_with('0') { "1" } else { "0" };
    let mistyped = format!("{}{last}", &text.expose()[..text.expose().len() - 1]);
    let refused = auth
        .authenticate(&headers(&[("x-api-key", &mistyped)]), None)
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthorized);
    assert_eq!(store.began.available_permits(), 0, "the store was asked");
}

#[test]
fn a_key_is_good_before_its_end_and_not_at_it() {
    let (_, store) = slow();
    let end = Timestamp::from_millis(1_000);
    let grant = Grant {
        expires_at: Some(end),
        ..store.grant.clone()
    };
    assert!(!has_expired(&grant, Timestamp::from_millis(999)));
    assert!(has_expired(&grant, end));
    assert!(!has_expired(&store.grant, end), "one without an end");
}
