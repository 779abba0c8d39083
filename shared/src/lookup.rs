//! Looking up the addresses of a host, by the system's resolver, within bounds.
//!
//! `getaddrinfo` cannot be called off: it holds a thread until the resolver answers or gives up, which is half a minute where
//! a name server does not answer. So each call has a thread of its own, and none of those that everything else of the process
//! shares; there is one at a time for a host, whose answer all get who asked meanwhile; and there are so many at once, and
//! no more. Whoever asks waits no longer than it likes to: the call goes on without it.
//!
//! What hangs must not keep out what does not. Hosts whose last look-up was answered within [`PROMPT`] have a quota of their own;
//! one that takes longer leaves it, as soon as the other has room. And an organization has a part of either quota, so that
//! however many hosts it names that hang, others go on. Nothing that was answered is remembered but that it came promptly.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::{OrganizationId, shares::Shares, telemetry};

/// A look-up that takes longer does not count as prompt.
const PROMPT: Duration = Duration::from_secs(1);
/// The most hosts that are known to be answered promptly.
const MAX_PROMPT: usize = 50_000;
/// The part of a quota that one organization has, at most.
const SHARE: usize = 4;

/// How many look-ups there may be at once: of hosts that were answered promptly the last time, and of others.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    prompt: usize,
    others: usize,
}

impl Bounds {
    /// For attempts. Fewer threads than there are attempts: those that hang do little but take up memory.
    pub const ATTEMPTS: Self = Self {
        prompt: 64,
        others: 256,
    };
    /// For checks of URLs that are to be saved.
    pub const CHECKS: Self = Self {
        prompt: 16,
        others: 32,
    };
}

/// Why there are no addresses.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookupError {
    /// The resolver says so.
    #[error("{0}")]
    Unanswered(Arc<io::Error>),
    /// This process could not ask it.
    #[error("no thread to look it up with: {0}")]
    NotAsked(Arc<io::Error>),
}

type Answer = Result<Arc<[IpAddr]>, LookupError>;
type Answering = watch::Receiver<Option<Answer>>;
type Asked = oneshot::Receiver<io::Result<Arc<[IpAddr]>>>;

/// Looks hosts up. Clones share their bounds.
#[derive(Debug, Clone)]
pub struct Lookups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    prompt: Quota,
    others: Quota,
    /// Hosts whose last look-up was answered promptly.
    prompt_hosts: Cache<Arc<str>, ()>,
    /// Who is next to ask for a host, of each organization.
    turns: Shares<(Option<OrganizationId>, Arc<str>)>,
    running: Mutex<HashMap<Arc<str>, Answering>>,
}

impl Lookups {
    /// With nothing known of any host.
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Inner {
            prompt: Quota::of(bounds.prompt),
            others: Quota::of(bounds.others),
            prompt_hosts: Cache::new(MAX_PROMPT),
            turns: Shares::of_each(1),
            running: Mutex::default(),
        }))
    }

    /// The addresses of a host, on behalf of an organization. To be given a time: a name server may not answer for long, and
    /// there may be no room to ask one.
    pub async fn addresses(&self, whose: Option<OrganizationId>, host: &str) -> Answer {
        let mut answering = self.begun(whose, host.into()).await;
        let answered = match answering.wait_for(Option::is_some).await {
            Ok(answered) => answered.clone(),
            Err(_) => None,
        };
        answered.unwrap_or_else(|| {
            let ended = io::Error::other("the look-up ended without an answer");
            Err(LookupError::NotAsked(Arc::new(ended)))
        })
    }

    /// The look-up of a host that runs, or is begun once there is room.
    async fn begun(&self, whose: Option<OrganizationId>, host: Arc<str>) -> Answering {
        let inner = &self.0;
        if let Some(answering) = lock(&inner.running).get(&host) {
            return answering.clone();
        }
        // One of an organization waits for room, however many of its attempts want the host. Others have turns of their own: they
        // do not wait for room that this one has used up.
        let turn = inner.turns.of((whose, Arc::clone(&host)));
        let _turn = turn.acquire().await;
        if let Some(answering) = lock(&inner.running).get(&host) {
            return answering.clone();
        }
        let is_prompt = inner.prompt_hosts.get(&host).is_some();
        let quota = if is_prompt { &inner.prompt } else { &inner.others };
        let place = quota.place(whose).await;
        let mut running = lock(&inner.running);
        if let Some(answering) = running.get(&host) {
            return answering.clone();
        }
        let (answer, answering) = watch::channel(None);
        running.insert(Arc::clone(&host), answering.clone());
        let run = Run {
            inner: Arc::clone(inner),
            host,
            whose,
            answer,
            is_listed: true,
        };
        tokio::spawn(run.run(place, is_prompt));
        answering
    }
}

/// As wide as checks need it.
impl Default for Lookups {
    fn default() -> Self {
        Self::new(Bounds::CHECKS)
    }
}

/// A look-up under way. Nobody calls it off.
struct Run {
    inner: Arc<Inner>,
    host: Arc<str>,
    whose: Option<OrganizationId>,
    answer: watch::Sender<Option<Answer>>,
    is_listed: bool,
}

impl Run {
    async fn run(mut self, place: Place, is_prompt: bool) {
        telemetry::lookups_in_flight().increment(1.0);
        let answer = match ask(Arc::clone(&self.host)) {
            Ok(asked) => self.answered(asked, place, is_prompt).await,
            Err(error) => Err(LookupError::NotAsked(Arc::new(error))),
        };
        // Who asks from now on begins anew.
        self.unlist();
        self.answer.send_replace(Some(answer));
    }

    /// Waits for the answer, and keeps a place until it has come.
    async fn answered(&self, mut asked: Asked, place: Place, is_prompt: bool) -> Answer {
        if let Ok(answer) = tokio::time::timeout(PROMPT, &mut asked).await {
            self.inner.prompt_hosts.insert(Arc::clone(&self.host), ());
            return of_thread(answer);
        }
        self.inner.prompt_hosts.remove(&self.host);
        tokio::select! {
            answer = &mut asked => of_thread(answer),
            _elsewhere = self.inner.others.place(self.whose), if is_prompt => {
                drop(place);
                of_thread(asked.await)
            }
        }
    }

    fn unlist(&mut self) {
        // Once: another may run by then.
        if std::mem::take(&mut self.is_listed) {
            lock(&self.inner.running).remove(&self.host);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.unlist();
        telemetry::lookups_in_flight().decrement(1.0);
    }
}

/// Asks the system's resolver, on a thread that ends with its answer.
fn ask(host: Arc<str>) -> io::Result<Asked> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new()
        .name("look-up".to_owned())
        .spawn(move || {
            let found = (&*host, 0).to_socket_addrs();
            let found = found.map(|found| found.map(|address| address.ip()).collect());
            // Where the process stops, nobody waits for it.
            let _ = tell.send(found);
        })?;
    Ok(told)
}

fn of_thread(answer: Result<io::Result<Arc<[IpAddr]>>, oneshot::error::RecvError>) -> Answer {
    match answer {
        Ok(found) => found.map_err(|error| LookupError::Unanswered(Arc::new(error))),
        Err(error) => Err(LookupError::NotAsked(Arc::new(io::Error::other(error)))),
    }
}

/// How many look-ups there may be at once, over all and of one organization.
#[derive(Debug)]
struct Quota {
    room: Arc<Semaphore>,
    shares: Shares<Option<OrganizationId>>,
}

/// A place in a quota. Free again once it is dropped.
#[derive(Debug)]
struct Place {
    _share: Option<OwnedSemaphorePermit>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Quota {
    fn of(room: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(room)),
            shares: Shares::of_each((room / SHARE).max(1)),
        }
    }

    /// Waits for a place: first for one of the organization's, so that it has no more than its part of who waits, either.
    async fn place(&self, whose: Option<OrganizationId>) -> Place {
        // They are never closed.
        let share = self.shares.of(whose).acquire_owned().await.ok();
        let room = Arc::clone(&self.room).acquire_owned().await.ok();
        Place {
            _share: share,
            _room: room,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_system_knows_is_found_and_what_nobody_can_have_is_not() {
        let lookups = Lookups::default();
        let found = lookups.addresses(None, "localhost").await.unwrap();
        assert!(
            !found.is_empty() && found.iter().all(IpAddr::is_loopback),
            "{found:?}"
        );
        let nobody = lookups.addresses(None, "no\0host").await;
        assert!(matches!(nobody, Err(LookupError::Unanswered(_))), "{nobody:?}");
        assert!(lookups.0.prompt_hosts.get("localhost").is_some());
        assert!(lock(&lookups.0.running).is_empty());
    }

    #[tokio::test]
    async fn an_organization_has_its_part_and_gives_it_back() {
        let quota = Quota::of(8);
        let (ours, theirs) = (Some(OrganizationId::new()), Some(OrganizationId::new()));
        let held = (quota.place(ours).await, quota.place(ours).await);
        let third = quota.place(ours);
        let mut third = std::pin::pin!(third);
        assert!(
            futures_util::poll!(&mut third).is_pending(),
            "two of eight are its part"
        );
        let others = quota.place(theirs).await;
        drop(held);
        drop(third.await);
        assert_eq!(quota.room.available_permits(), 7);
        drop(others);
    }
}
