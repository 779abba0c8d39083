//! Who a request is from: API keys, looked up by hash in a cache that outlives an outage of the store.
//!
//! A key that is used is looked up again every [`REFRESH`] in the background, so the hot path never waits and a revoked
//! key ends within seconds. While the store is away known keys are served from the cache, for an hour at most; an
//! unknown one is a 503 meanwhile, not a 401, since nobody can tell.
//!
//! A key that is revoked through this process ends at once, whatever look-ups were under way, and a [notice](notices) tells the
//! other processes: so they need not reach the store for it. Neither way needs the other, also for a key that nobody uses: after
//! notices [may have been missed](Auth::missed_notices) every known key is looked up again, and now and then even if none was.

mod ending;
mod last_use;
mod notices;
mod strangers;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, header};
use quick_cache::sync::Cache;
use tokio::sync::{Semaphore, mpsc};

use crate::{
    Grant, KeyHash, KeyText, Timestamp,
    engine::Engine,
    http::{ApiError, Code, server::Peer},
    lifecycle::Lifecycle,
    store::{Organizations, StoreError},
};

pub use self::{ending::Ending, strangers::AddressRules};
use self::{
    ending::{Endings, Left},
    last_use::LastUse,
    strangers::Strangers,
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
/// How long after notices may have been missed every known key has been looked up since, if the store answers. One that has
/// not by then is not served from before.
const CAUGHT_UP: Duration = FRESH;
/// How old a look-up may be of a key that nobody uses, and how many such are looked up in one round: so one whose revocation nobody
/// told of, since the process that was to tell died, is known to have ended two minutes later.
const RESTING: Duration = Duration::from_mins(1);
const MAX_RESTING: usize = 1_000;
/// The most keys that are remembered.
const MAX_KEYS: usize = 50_000;
/// The most keys that one call looks up.
const MAX_TOGETHER: usize = 1_000;
/// The most look-ups at once for keys that are not remembered.
const MAX_LOOK_UPS: usize = 16;
/// The most keys whose last use one call writes down.
const MAX_USES: usize = 1_000;
/// How long a process that stops goes on trying to write uses down.
const LAST_USES: Duration = Duration::from_secs(1);

/// What a key's look-up came to, and when.
#[derive(Debug)]
struct Known {
    /// `None` since it has ended: kept, so that it is refused for that also while nobody can be asked.
    grant: Option<Arc<Grant>>,
    looked_up: Instant,
    /// How often notices may have been missed, when that look-up began.
    missed: u64,
    /// Since the last refresh.
    used: AtomicBool,
    /// It was used before a refresh that failed: the next one is to look it up.
    owed: AtomicBool,
}

impl Known {
    fn new(grant: Option<Arc<Grant>>, looked_up: Instant, missed: u64, used: bool) -> Self {
        Self {
            grant,
            looked_up,
            missed,
            used: AtomicBool::new(used),
            owed: AtomicBool::new(false),
        }
    }
}

/// The keys of a deployment, as one process knows them.
pub struct Auth {
    organizations: Arc<dyn Organizations>,
    known: Cache<KeyHash, Arc<Known>>,
    /// Keys that end. Locked for as long as `known` is added to.
    endings: Mutex<Endings>,
    /// To the task that tells the other processes.
    untold: mpsc::Sender<Ending>,
    look_ups: Semaphore,
    strangers: Strangers,
    started: Instant,
    /// Milliseconds after `started` of the last failed look-up, plus one; zero is never.
    failed: AtomicU64,
    missed: Missed,
}

/// That notices may have been missed: what was looked up before says nothing of keys that have ended until then.
#[derive(Debug, Default)]
struct Missed {
    /// How often.
    times: AtomicU64,
    /// Milliseconds after the process started of the last time, plus one.
    last: AtomicU64,
    /// After how many times the store went on answering for long enough to be asked for every known key: one that it was not asked
    /// for since is not served from before, however often notices are missed after that.
    decided: AtomicU64,
    /// After how many times every known key was looked up.
    caught_up: AtomicU64,
}

impl Auth {
    /// Starts the background refresh, and telling and hearing of revocations.
    pub fn start(engine: &Engine, addresses: AddressRules, lifecycle: &Lifecycle) -> Arc<Self> {
        let (untold, to_tell) = mpsc::channel(notices::MAX_UNTOLD);
        let auth = Arc::new(Self::new(
            Arc::clone(&engine.store.organizations),
            Strangers::new(addresses),
            untold,
        ));
        let soft = &lifecycle.soft;
        lifecycle.critical(
            "key refresh",
            Arc::clone(&auth).keep_refreshing(lifecycle.clone()),
        );
        lifecycle.critical(
            "telling of revocations",
            notices::tell(to_tell, Arc::clone(&engine.queue), soft.clone()),
        );
        lifecycle.critical(
            "hearing of revocations",
            notices::hear(Arc::clone(&auth), Arc::clone(&engine.queue), soft.clone()),
        );
        auth
    }

    fn new(
        organizations: Arc<dyn Organizations>,
        strangers: Strangers,
        untold: mpsc::Sender<Ending>,
    ) -> Self {
        Self {
            organizations,
            known: Cache::new(MAX_KEYS),
            endings: Mutex::default(),
            untold,
            look_ups: Semaphore::new(MAX_LOOK_UPS),
            strangers,
            started: Instant::now(),
            failed: AtomicU64::new(0),
            missed: Missed::default(),
        }
    }

    async fn keep_refreshing(self: Arc<Self>, lifecycle: Lifecycle) -> anyhow::Result<()> {
        let mut last_use = LastUse::default();
        let mut every = tokio::time::interval(REFRESH);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = lifecycle.soft.cancelled() => break,
                _ = every.tick() => {}
            }
            let round = async {
                self.refresh(&mut last_use).await;
                self.write_uses(&mut last_use).await;
            };
            // A store that is away does not hold up the end.
            lifecycle.soft.run_until_cancelled(round).await;
        }
        self.note_uses(&mut last_use);
        let _ = tokio::time::timeout(LAST_USES, self.write_uses(&mut last_use)).await;
        Ok(())
    }

    /// The grant of the request's key. An address that makes too many requests without a valid key is refused those.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<Peer>,
    ) -> Result<Arc<Grant>, ApiError> {
        let hash = presented(headers).and_then(|key| KeyText::hash_of(key).ok_or_else(invalid));
        let hash = match hash {
            Ok(hash) => hash,
            Err(refusal) => return Err(self.stranger(headers, peer, refusal)),
        };
        let known = self.known.get(&hash).is_some_and(|known| known.grant.is_some());
        if !known {
            return self.strangers.prove(headers, peer, self.in_force(hash)).await;
        }
        let grant = self.in_force(hash).await;
        grant.map_err(|error| match error.code() {
            Code::Unauthorized => self.stranger(headers, peer, error),
            _ => error,
        })
    }

    /// A refusal of a request that has no valid key, nor the admin token: this one, or another if its address has made too many.
    pub fn stranger(&self, headers: &HeaderMap, peer: Option<Peer>, refusal: ApiError) -> ApiError {
        self.strangers.count(headers, peer).err().unwrap_or(refusal)
    }

    /// Counts a request that needs no key and is answered all the same.
    pub fn count_stranger(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<(), ApiError> {
        self.strangers.count(headers, peer)
    }

    async fn in_force(&self, hash: KeyHash) -> Result<Arc<Grant>, ApiError> {
        let grant = self.grant(hash).await?;
        if has_expired(&grant, Timestamp::now()) {
            return Err(invalid());
        }
        Ok(grant)
    }

    /// Ends a key as it was ended in the store: at once in this process, whatever look-ups are under way, and as soon as they
    /// hear of it in the others.
    pub fn end(&self, ending: Ending) {
        self.apply(ending);
        if self.untold.try_send(ending).is_err() {
            tracing::warn!(key.id = %ending.key, "too many revocations wait to be told; the store tells this one");
        }
    }

    fn apply(&self, ending: Ending) {
        let mut endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        endings.insert(ending, Instant::now());
        let of_the_key = self.known.iter().filter_map(|(hash, known)| {
            let grant = known.grant.clone().filter(|grant| grant.key == ending.key)?;
            Some((hash, grant, known))
        });
        let of_the_key: Vec<_> = of_the_key.collect();
        for (hash, grant, known) in of_the_key {
            let grant = cut(&grant, endings.left(ending.key)).map(Arc::new);
            // It is looked up with the next refresh; that is no use of it.
            let used = known.used.load(Ordering::Relaxed);
            let ending = Known::new(grant, known.looked_up, known.missed, used);
            ending.owed.store(true, Ordering::Relaxed);
            self.known.insert(hash, Arc::new(ending));
        }
    }

    /// Notices are heard from now on, and some may have been told before: no key is taken for good any more because nobody said
    /// otherwise, and the next refresh looks all of them up.
    fn missed_notices(&self) {
        self.missed.last.store(self.now(), Ordering::SeqCst);
        self.missed.times.fetch_add(1, Ordering::SeqCst);
    }

    /// What a look-up that begins now is from after.
    fn missed_before(&self) -> u64 {
        self.missed.times.load(Ordering::SeqCst)
    }

    /// Whether a key may have ended without this process having had a chance to hear of it.
    fn is_doubtful(&self, known: &Known) -> bool {
        known.missed < self.missed_before()
    }

    /// Whether an earlier look-up of a key may be gone by while the store is away. Not if the key is in doubt, unless the store went
    /// away before there was time to ask it for all such keys. That one has ended is never in doubt.
    fn is_servable(&self, known: &Known) -> bool {
        known.grant.is_none() || known.missed >= self.missed.decided.load(Ordering::SeqCst)
    }

    /// A refresh was answered `at` then: so there was time to ask for all keys in doubt, if notices were not missed just before.
    fn answered(&self, at: u64) {
        // In this order: if they are missed meanwhile, this decides nothing.
        let times = self.missed_before();
        let since = self.missed.last.load(Ordering::SeqCst);
        if at >= since + u64::try_from(CAUGHT_UP.as_millis()).unwrap_or(u64::MAX) {
            self.missed.decided.fetch_max(times, Ordering::SeqCst);
        }
    }

    /// Milliseconds after the process started, plus one.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    async fn grant(&self, hash: KeyHash) -> Result<Arc<Grant>, ApiError> {
        let known = self.known.get(&hash);
        if let Some(known) = &known {
            let age = known.looked_up.elapsed();
            if age < FRESH || (age < MAX_STALE && self.is_store_away() && self.is_servable(known)) {
                known.used.store(true, Ordering::Relaxed);
                return known.grant.clone().ok_or_else(invalid);
            }
        }
        let look_up = async {
            let _permit = self.look_ups.acquire().await;
            let missed = self.missed_before();
            let grants = self.organizations.grants(&[hash]).await?;
            Ok::<_, StoreError>((grants, missed))
        };
        match tokio::time::timeout(LOOK_UP_TIMEOUT, look_up).await {
            Ok(Ok((grants, missed))) => {
                let grant = grants.into_iter().next();
                let known = grant.and_then(|(_, grant)| self.remember(hash, &grant, missed, true));
                known.ok_or_else(|| {
                    self.end_known(hash, missed);
                    invalid()
                })
            }
            failed => {
                self.note_failure(failed.ok().and_then(Result::err).as_ref());
                match known {
                    Some(known) if known.looked_up.elapsed() < MAX_STALE && self.is_servable(&known) => {
                        known.grant.clone().ok_or_else(invalid)
                    }
                    _ => Err(ApiError::unavailable(
                        "the API key cannot be checked at the moment; try again",
                        Duration::from_secs(1),
                    )),
                }
            }
        }
    }

    /// `None` if it was revoked meanwhile. `used` keeps it among those that the next refresh looks up.
    fn remember(&self, hash: KeyHash, grant: &Grant, missed: u64, used: bool) -> Option<Arc<Grant>> {
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = Arc::new(cut(grant, endings.left(grant.key))?);
        let known = Known::new(Some(Arc::clone(&grant)), Instant::now(), missed, used);
        self.known.insert(hash, Arc::new(known));
        Some(grant)
    }

    /// The store knows no such key. One that this process knew is remembered as ended; of others there is no end.
    fn end_known(&self, hash: KeyHash, missed: u64) {
        if self.known.get(&hash).is_some() {
            let known = Known::new(None, Instant::now(), missed, false);
            self.known.insert(hash, Arc::new(known));
        }
    }

    /// Notes which keys were used since the last time; gives those, and what is owed a look-up besides: the keys that are in
    /// doubt, and some of those that nobody has used or looked up for long.
    fn note_uses(&self, last_use: &mut LastUse) -> Vec<KeyHash> {
        let now = Instant::now();
        let (mut due, mut resting) = (Vec::new(), 0);
        for (hash, known) in self.known.iter() {
            let used = known.used.swap(false, Ordering::Relaxed);
            if used && let Some(grant) = &known.grant {
                last_use.note(grant.key, now);
            }
            let is_good = known.grant.is_some();
            if known.owed.swap(false, Ordering::Relaxed) || used || (is_good && self.is_doubtful(&known)) {
                due.push(hash);
            } else if is_good && known.looked_up.elapsed() >= RESTING && resting < MAX_RESTING {
                resting += 1;
                due.push(hash);
            }
        }
        due
    }

    async fn write_uses(&self, last_use: &mut LastUse) {
        let now = Instant::now();
        for uses in last_use.due(now).chunks(MAX_USES) {
            if let Err(error) = self.organizations.note_used(uses).await {
                tracing::debug!(%error, "when keys were last used is written down later");
                return;
            }
        }
        last_use.wrote(now);
    }

    /// Looks up every key that was used since the last time, and those that are owed it.
    async fn refresh(&self, last_use: &mut LastUse) {
        let missed = self.missed_before();
        let due = self.note_uses(last_use);
        for hashes in due.chunks(MAX_TOGETHER) {
            // In the background there is time, but not without end.
            let looked_up = tokio::time::timeout(FRESH, self.organizations.grants(hashes)).await;
            match looked_up {
                Ok(Ok(grants)) => {
                    self.answered(self.now());
                    let mut gone: HashSet<KeyHash> = hashes.iter().copied().collect();
                    for (hash, grant) in grants {
                        if self.remember(hash, &grant, missed, false).is_some() {
                            gone.remove(&hash);
                        }
                    }
                    for hash in gone {
                        self.end_known(hash, missed);
                    }
                }
                failed => {
                    self.note_failure(failed.ok().and_then(Result::err).as_ref());
                    // They are still in use as far as anybody knows: try again next time, with those not yet tried.
                    for hash in &due {
                        if let Some(known) = self.known.get(hash) {
                            known.owed.store(true, Ordering::Relaxed);
                        }
                    }
                    return;
                }
            }
        }
        if self.missed.caught_up.swap(missed, Ordering::Relaxed) < missed {
            tracing::info!("every known key was looked up again after notices may have been missed");
        }
    }

    fn note_failure(&self, error: Option<&StoreError>) {
        if !self.is_store_away() {
            let error = error.map_or_else(|| "no answer in time".to_owned(), ToString::to_string);
            tracing::warn!(%error, "keys cannot be looked up; known ones are served for an hour at most");
        }
        self.failed.store(self.now(), Ordering::Relaxed);
    }

    fn is_store_away(&self) -> bool {
        match self.failed.load(Ordering::Relaxed) {
            0 => false,
            failed => self.started.elapsed() < Duration::from_millis(failed - 1) + AWAY,
        }
    }
}

/// What a key grants that ends as it was told to; `None` is nothing.
fn cut(grant: &Grant, left: Left) -> Option<Grant> {
    let mut grant = grant.clone();
    match left {
        Left::All => {}
        Left::Nothing => return None,
        Left::Until(end) => grant.expires_at = Some(grant.expires_at.map_or(end, |earlier| earlier.min(end))),
    }
    Some(grant)
}

/// A key is good before its end, and not at it.
fn has_expired(grant: &Grant, now: Timestamp) -> bool {
    grant.expires_at.is_some_and(|end| end <= now)
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

/// Whether a request presents what reads as a key, in force or not. Nobody is asked.
pub fn presents_key(headers: &HeaderMap) -> bool {
    presented(headers).is_ok_and(|key| KeyText::hash_of(key).is_some())
}

fn invalid() -> ApiError {
    ApiError::unauthorized("the API key is not valid: it is mistyped, unknown, revoked or expired")
}

#[cfg(test)]
mod tests;
