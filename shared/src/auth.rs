//! Who a request is from: API keys, looked up by hash in a cache that outlives an outage of the store.
//!
//! A key that is used is looked up again every [`REFRESH`] in the background, so the hot path never waits and a revoked
//! key ends within seconds. While the store is away known keys are served from the cache, for an hour at most; an
//! unknown one is a 503 meanwhile, not a 401, since nobody can tell.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, header};
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use crate::{
    Grant, KeyHash, KeyId, KeyText, Scope, Timestamp,
    http::ApiError,
    lifecycle::Lifecycle,
    store::{Store, StoreError},
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
    store: Store,
    known: Cache<KeyHash, Arc<Known>>,
    look_ups: Semaphore,
    started: Instant,
    /// Milliseconds after `started` of the last failed look-up, plus one; zero is never.
    failed: AtomicU64,
}

impl Auth {
    /// Starts the background refresh.
    pub fn start(store: Store, lifecycle: &Lifecycle) -> Arc<Self> {
        let auth = Arc::new(Self {
            store,
            known: Cache::new(MAX_KEYS),
            look_ups: Semaphore::new(MAX_LOOK_UPS),
            started: Instant::now(),
            failed: AtomicU64::new(0),
        });
        let (refreshing, soft) = (Arc::clone(&auth), lifecycle.soft.clone());
        lifecycle.critical("key refresh", async move {
            let mut every = tokio::time::interval(REFRESH);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = soft.cancelled() => return Ok(()),
                    _ = every.tick() => refreshing.refresh().await,
                }
            }
        });
        auth
    }

    /// The grant of the request's key, if it has the scope.
    pub async fn authorize(&self, headers: &HeaderMap, scope: Scope) -> Result<Arc<Grant>, ApiError> {
        let grant = self.authenticate(headers).await?;
        if grant.scopes.contains(scope) {
            Ok(grant)
        } else {
            Err(ApiError::missing_scope(scope))
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

    /// Forgets a key at once, in this process: it was revoked here.
    pub fn forget(&self, key: KeyId) {
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
            self.store.organizations.grants(&[hash]).await
        };
        match tokio::time::timeout(LOOK_UP_TIMEOUT, look_up).await {
            Ok(Ok(grants)) => {
                if let Some((_, grant)) = grants.into_iter().next() {
                    Ok(self.remember(hash, grant, true))
                } else {
                    self.known.remove(&hash);
                    Err(invalid())
                }
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

    /// `used` keeps it among those that the next refresh looks up.
    fn remember(&self, hash: KeyHash, grant: Grant, used: bool) -> Arc<Grant> {
        let grant = Arc::new(grant);
        let known = Known {
            grant: Arc::clone(&grant),
            looked_up: Instant::now(),
            used: AtomicBool::new(used),
        };
        self.known.insert(hash, Arc::new(known));
        grant
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
            let looked_up = tokio::time::timeout(FRESH, self.store.organizations.grants(hashes)).await;
            match looked_up {
                Ok(Ok(grants)) => {
                    let mut gone: std::collections::HashSet<KeyHash> = hashes.iter().copied().collect();
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

/// The key that a request presents.
fn presented(headers: &HeaderMap) -> Result<&str, ApiError> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().map_err(|_| invalid())?;
        return match value.split_once(' ') {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(key.trim()),
            _ => Err(ApiError::unauthorized(
                "the authorization header must be: Bearer <key>",
            )),
        };
    }
    match headers.get("x-api-key") {
        Some(value) => value.to_str().map_err(|_| invalid()),
        None => Err(ApiError::unauthorized(
            "send an API key, as Authorization: Bearer <key> or X-API-Key: <key>",
        )),
    }
}

fn invalid() -> ApiError {
    ApiError::unauthorized("the API key is not valid: it is mistyped, unknown, revoked or expired")
}
