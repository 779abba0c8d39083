//! Who a request is from: API keys, looked up by hash in a cache that outlives an outage of the store.
//!
//! A key that is used is looked up again every [`REFRESH`] in the background, so the hot path never waits and a revoked
//! key ends within seconds. While the store is away known keys are served from the cache, for an hour at most; an
//! unknown one is a 503 meanwhile, not a 401, since nobody can tell.
//!
//! A key that is revoked through this process ends at once, whatever look-ups were under way.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, header};
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use crate::{
    Grant, KeyHash, KeyId, KeyText, Timestamp,
    http::ApiError,
    lifecycle::Lifecycle,
    store::{Organizations, Store, StoreError},
};

/// How often keys in use are looked up again.
pub const REFRESH: Duration = Duration::from_secs(2);
/// How old a look-up may be before the next use waits for a new one: longer than a refresh takes.
const FRESH: Duration = Duration::from_secs(5);
/// How old a look-up may be while the store is away.
const MAX_STALE: Duration = Duration::from_hours(1);
/// How long a request waits for a look-up. Short, for a producer has to be answered within two seconds, and the queue has
/// to confirm meanwhile.
pub const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long after a failed look-up the store counts as away: longer than the next refresh takes to fail, so that while it
/// is away no request waits for it again.
const AWAY: Duration = Duration::from_secs(8);
/// How long it is remembered that a key was revoked: longer than any look-up that began before takes.
const REVOKED: Duration = Duration::from_mins(1);
/// The most keys that are remembered.
const MAX_KEYS: usize = 50_000;
/// The most look-ups at once for keys that are not remembered.
const MAX_LOOK_UPS: usize = 16;

/// What a key's look-up came to, and when.
#[derive(Debug)]
struct Known {
    grant: Arc<Grant>,
    looked_up: Instant,
    used: AtomicBool,
}

/// The keys of a deployment, as one process knows them.
pub struct Auth {
    organizations: Arc<dyn Organizations>,
    known: Cache<KeyHash, Arc<Known>>,
    /// Keys that were revoked here of late. Locked for as long as `known` is added to.
    revoked: Mutex<HashMap<KeyId, Instant>>,
    look_ups: Semaphore,
    started: Instant,
    /// Milliseconds after `started` of the last failed look-up, plus one; zero is never.
    failed: AtomicU64,
}

impl Auth {
    /// Starts the background refresh.
    pub fn start(store: Store, lifecycle: &Lifecycle) -> Arc<Self> {
        let auth = Arc::new(Self::new(store.organizations));
        let (refreshing, soft) = (Arc::clone(&auth), lifecycle.soft.clone());
        lifecycle.critical("key refresh", async move {
            let mut every = tokio::time::interval(REFRESH);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = soft.cancelled() => return Ok(()),
                    _ = every.tick() => {}
                }
                // A store that is away does not hold up the end.
                soft.run_until_cancelled(refreshing.refresh()).await;
            }
        });
        auth
    }

    fn new(organizations: Arc<dyn Organizations>) -> Self {
        Self {
            organizations,
            known: Cache::new(MAX_KEYS),
            revoked: Mutex::default(),
            look_ups: Semaphore::new(MAX_LOOK_UPS),
            started: Instant::now(),
            failed: AtomicU64::new(0),
        }
    }

    /// The grant of the request's key.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Grant>, ApiError> {
        let key = presented(headers)?;
        let hash = KeyText::hash_of(key).ok_or_else(invalid)?;
        let grant = self.grant(hash).await?;
        match grant.expires_at {
            Some(end) if end <= Timestamp::now() => Err(invalid()),
            _ => Ok(grant),
        }
    }

    /// Forgets a key at once, in this process: it was revoked here. A look-up that began before does not bring it back.
    pub fn forget(&self, key: KeyId) {
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.retain(|_, at| at.elapsed() < REVOKED);
        revoked.insert(key, Instant::now());
        self.known.retain(|_, known| known.grant.key != key);
    }

    async fn grant(&self, hash: KeyHash) -> Result<Arc<Grant>, ApiError> {
        let known = self.known.get(&hash);
        if let Some(known) = &known {
            let age = known.looked_up.elapsed();
            if age < FRESH || (age < MAX_STALE && self.is_store_away()) {
                known.used.store(true, Ordering::Relaxed);
                return Ok(Arc::clone(&known.grant));
            }
        }
        let look_up = async {
            let _permit = self.look_ups.acquire().await;
            self.organizations.grants(&[hash]).await
        };
        match tokio::time::timeout(LOOK_UP_TIMEOUT, look_up).await {
            Ok(Ok(grants)) => {
                let grant = grants.into_iter().next();
                let known = grant.and_then(|(_, grant)| self.remember(hash, grant, true));
                known.ok_or_else(|| {
                    self.known.remove(&hash);
                    invalid()
                })
            }
            failed => {
                self.note_failure(failed.ok().and_then(Result::err).as_ref());
                match known {
                    Some(known) if known.looked_up.elapsed() < MAX_STALE => Ok(Arc::clone(&known.grant)),
                    _ => Err(ApiError::unavailable(
                        "the API key cannot be checked at the moment; try again",
                        Duration::from_secs(1),
                    )),
                }
            }
        }
    }

    /// `None` if it was revoked meanwhile. `used` keeps it among those that the next refresh looks up.
    fn remember(&self, hash: KeyHash, grant: Grant, used: bool) -> Option<Arc<Grant>> {
        let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        if revoked.contains_key(&grant.key) {
            return None;
        }
        let grant = Arc::new(grant);
        let known = Known {
            grant: Arc::clone(&grant),
            looked_up: Instant::now(),
            used: AtomicBool::new(used),
        };
        self.known.insert(hash, Arc::new(known));
        Some(grant)
    }

    /// Looks up every key that was used since the last time.
    async fn refresh(&self) {
        let used: Vec<KeyHash> = self
            .known
            .iter()
            .filter(|(_, known)| known.used.swap(false, Ordering::Relaxed))
            .map(|(hash, _)| hash)
            .collect();
        for hashes in used.chunks(1_000) {
            // In the background there is time, but not without end.
            let looked_up = tokio::time::timeout(FRESH, self.organizations.grants(hashes)).await;
            match looked_up {
                Ok(Ok(grants)) => {
                    let mut gone: HashSet<KeyHash> = hashes.iter().copied().collect();
                    for (hash, grant) in grants {
                        gone.remove(&hash);
                        self.remember(hash, grant, false);
                    }
                    for hash in gone {
                        self.known.remove(&hash);
                    }
                }
                failed => {
                    self.note_failure(failed.ok().and_then(Result::err).as_ref());
                    // They are still in use as far as anybody knows: try again next time.
                    for hash in hashes {
                        if let Some(known) = self.known.get(hash) {
                            known.used.store(true, Ordering::Relaxed);
                        }
                    }
                    return;
                }
            }
        }
    }

    fn note_failure(&self, error: Option<&StoreError>) {
        if !self.is_store_away() {
            let error = error.map_or_else(|| "no answer in time".to_owned(), ToString::to_string);
            tracing::warn!(%error, "keys cannot be looked up; known ones are served for an hour at most");
        }
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.failed.store(now + 1, Ordering::Relaxed);
    }

    fn is_store_away(&self) -> bool {
        match self.failed.load(Ordering::Relaxed) {
            0 => false,
            failed => self.started.elapsed() < Duration::from_millis(failed - 1) + AWAY,
        }
    }
}

/// The key that a request presents: as a bearer, or else in a header of its own. What proxies put into `authorization`
/// for themselves does not hide that.
fn presented(headers: &HeaderMap) -> Result<&str, ApiError> {
    let bearer = |value| {
        let (scheme, key) = str::from_utf8(HeaderValue::as_bytes(value))
            .ok()?
            .split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    };
    if let Some(key) = headers.get_all(header::AUTHORIZATION).iter().find_map(bearer) {
        return Ok(key);
    }
    match headers.get("x-api-key") {
        Some(value) => value.to_str().map_err(|_| invalid()),
        None if headers.contains_key(header::AUTHORIZATION) => Err(ApiError::unauthorized(
            "the authorization header must be: Bearer <key>",
        )),
        None => Err(ApiError::unauthorized(
            "send an API key, as Authorization: Bearer <key> or X-API-Key: <key>",
        )),
    }
}

fn invalid() -> ApiError {
    ApiError::unauthorized("the API key is not valid: it is mistyped, unknown, revoked or expired")
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::{
        Key, Organization, OrganizationId, Scopes, Tier,
        store::{NewKey, Page, PageRequest, Result as StoreResult},
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
        async fn rename(&self, _: OrganizationId, _: &str) -> StoreResult<Option<Organization>> {
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
        async fn rotate_key(&self, _: KeyId, _: NewKey) -> StoreResult<Option<Key>> {
            unreachable!("keys are only looked up")
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

    /// Revokes the key once a look-up has begun, and lets that be answered then.
    async fn revoke(store: &Slow, auth: &Auth) {
        store.began.acquire().await.unwrap().forget();
        store.revoked.store(true, Ordering::SeqCst);
        auth.forget(store.grant.key);
        store.answer.add_permits(1);
    }

    #[tokio::test]
    async fn what_was_revoked_stays_forgotten_whatever_was_under_way() {
        let (text, store) = slow();
        let auth = Auth::new(Arc::clone(&store) as Arc<dyn Organizations>);
        let request = headers(&[("x-api-key", text.expose())]);
        store.answer.add_permits(1);
        assert_eq!(auth.authenticate(&request).await.unwrap().key, store.grant.key);
        store.began.acquire().await.unwrap().forget();

        // The refresh has looked, and has no answer yet, when the key is revoked.
        tokio::join!(auth.refresh(), revoke(&store, &auth));
        assert!(
            auth.known.get(&store.hash).is_none(),
            "the refresh brought it back"
        );
        store.answer.add_permits(1);
        assert!(auth.authenticate(&request).await.is_err());
    }

    #[tokio::test]
    async fn a_first_use_does_not_bring_back_what_was_revoked_meanwhile() {
        let (_, store) = slow();
        let auth = Auth::new(Arc::clone(&store) as Arc<dyn Organizations>);
        let (used, ()) = tokio::join!(auth.grant(store.hash), revoke(&store, &auth));
        assert!(used.is_err());
        assert!(auth.known.get(&store.hash).is_none());
    }
}
