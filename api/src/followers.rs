//! Who follows events, and the one look-out for all of them.
//!
//! A stream is a place in the order of events, and reads what comes after it. What it need not do is ask: one task a process
//! looks, a few times a second and while there is anybody to look for, how far events are settled, and which of the
//! organizations that are followed have newer ones. Only theirs are woken, and read. Intake gives no notice: on the path of
//! every event that would cost more than this.
//!
//! Streams are bounded in number, for all and for each organization; beyond there is 503 with `Retry-After`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::{
    OrganizationId,
    http::ApiError,
    store::{self, Feed},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The most streams of a process: each has a page of 256 KiB at most, and as much again on its way to the socket.
const MAX_STREAMS: usize = 256;
/// The most of one organization.
const MAX_OF_ONE: usize = 32;
/// How often it is looked whether there is something new.
const LOOK: Duration = Duration::from_millis(200);
/// How long a client that is refused waits.
const LATER: Duration = Duration::from_secs(10);

/// The organizations that are followed.
pub(crate) struct Followers {
    feed: Arc<dyn Feed>,
    room: Arc<Semaphore>,
    organizations: Mutex<HashMap<OrganizationId, Followed>>,
    /// Somebody new follows.
    begun: Notify,
}

struct Followed {
    /// The newest event that is settled.
    newest: watch::Sender<i64>,
    streams: usize,
}

/// A stream's part in it. Dropping it ends that.
pub(crate) struct Following {
    followers: Arc<Followers>,
    organization: OrganizationId,
    newest: watch::Receiver<i64>,
    _room: OwnedSemaphorePermit,
}

impl Followers {
    pub(crate) fn new(feed: Arc<dyn Feed>) -> Arc<Self> {
        Arc::new(Self {
            feed,
            room: Arc::new(Semaphore::new(MAX_STREAMS)),
            organizations: Mutex::default(),
            begun: Notify::new(),
        })
    }

    /// Begins to follow an organization's events.
    pub(crate) fn follow(self: &Arc<Self>, organization: OrganizationId) -> Result<Following, ApiError> {
        let too_many = |whose| ApiError::unavailable(whose, LATER);
        let room = Arc::clone(&self.room)
            .try_acquire_owned()
            .map_err(|_| too_many("there are as many streams as this node serves; try again"))?;
        let mut organizations = self.organizations.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = organizations.entry(organization).or_insert_with(|| Followed {
            newest: watch::Sender::new(i64::MIN),
            streams: 0,
        });
        if followed.streams >= MAX_OF_ONE {
            return Err(too_many(
                "the organization has as many streams as one may have here; end one, or try again",
            ));
        }
        followed.streams += 1;
        let newest = followed.newest.subscribe();
        drop(organizations);
        self.begun.notify_one();
        Ok(Following {
            followers: Arc::clone(self),
            organization,
            newest,
            _room: room,
        })
    }

    /// Looks out for all who follow, until the soft signal.
    pub(crate) async fn look_out(self: Arc<Self>, soft: CancellationToken) -> anyhow::Result<()> {
        let mut is_away = false;
        loop {
            let organizations = self.followed();
            let next = Instant::now() + LOOK;
            if !organizations.is_empty() {
                match soft.run_until_cancelled(self.look(&organizations)).await {
                    None => return Ok(()),
                    Some(Ok(())) => is_away = false,
                    Some(Err(error)) => {
                        if !is_away {
                            tracing::warn!(%error, "streams wait for the store");
                        }
                        is_away = true;
                    }
                }
            }
            tokio::select! {
                () = soft.cancelled() => return Ok(()),
                () = self.begun.notified() => {}
                () = tokio::time::sleep_until(next), if !organizations.is_empty() => {}
            }
        }
    }

    fn followed(&self) -> Vec<OrganizationId> {
        let organizations = self.organizations.lock().unwrap_or_else(PoisonError::into_inner);
        organizations.keys().copied().collect()
    }

    async fn look(&self, organizations: &[OrganizationId]) -> store::Result<()> {
        let settled = self.feed.settled().await?;
        let found = self.feed.newest(organizations, settled).await?;
        let organizations = self.organizations.lock().unwrap_or_else(PoisonError::into_inner);
        for (organization, newest) in found {
            if let Some(followed) = organizations.get(&organization) {
                followed.newest.send_if_modified(|known| {
                    let is_news = newest > *known;
                    *known = newest.max(*known);
                    is_news
                });
            }
        }
        Ok(())
    }
}

impl Following {
    /// The newest event that is settled, as far as is known.
    pub(crate) fn newest(&mut self) -> i64 {
        *self.newest.borrow_and_update()
    }

    /// Waits until there is a newer one than [`Following::newest`] said.
    pub(crate) async fn news(&mut self) {
        if self.newest.changed().await.is_err() {
            // Its sender lives for as long as this does.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let organizations = &self.followers.organizations;
        let mut organizations = organizations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(followed) = organizations.get_mut(&self.organization) {
            followed.streams -= 1;
            if followed.streams == 0 {
                organizations.remove(&self.organization);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use async_trait::async_trait;
    use shared::{
        EventId, Timestamp,
        store::{EventQuery, FeedPage},
    };

    use super::*;

    /// A feed of organizations that all have the same newest event.
    #[derive(Default)]
    struct Same {
        newest: AtomicI64,
        looks: AtomicUsize,
    }

    #[async_trait]
    impl Feed for Same {
        async fn settled(&self) -> store::Result<i64> {
            self.looks.fetch_add(1, Ordering::SeqCst);
            Ok(self.newest.load(Ordering::SeqCst))
        }
        async fn newest(
            &self,
            organizations: &[OrganizationId],
            settled: i64,
        ) -> store::Result<Vec<(OrganizationId, i64)>> {
            Ok(organizations.iter().map(|one| (*one, settled)).collect())
        }
        async fn follow(&self, _: OrganizationId, _: &EventQuery, _: i64, _: i64) -> store::Result<FeedPage> {
            unreachable!("the look-out reads no events")
        }
        async fn place(&self, _: OrganizationId, _: EventId) -> store::Result<Option<i64>> {
            unreachable!("the look-out asks for no event")
        }
        async fn place_before(&self, _: OrganizationId, _: Timestamp) -> store::Result<i64> {
            unreachable!("the look-out asks for no time")
        }
    }

    #[tokio::test]
    async fn streams_are_bounded_for_each_and_for_all() {
        let followers = Followers::new(Arc::new(Same::default()));
        let mut held = Vec::new();
        for _ in 0..MAX_STREAMS / MAX_OF_ONE {
            let organization = OrganizationId::new();
            for _ in 0..MAX_OF_ONE {
                held.push(followers.follow(organization).unwrap());
            }
            let refused = followers.follow(organization).err().unwrap();
            assert_eq!(refused.code(), shared::http::Code::Unavailable);
        }
        assert!(followers.follow(OrganizationId::new()).is_err());
        held.pop();
        let another = followers.follow(OrganizationId::new());
        assert!(another.is_ok());
        drop((held, another));
        assert!(followers.followed().is_empty());
        assert_eq!(followers.room.available_permits(), MAX_STREAMS);
    }

    #[tokio::test]
    async fn one_look_serves_all_and_nobody_looks_for_nobody() {
        let feed = Arc::new(Same::default());
        let followers = Followers::new(Arc::clone(&feed) as Arc<dyn Feed>);
        let soft = CancellationToken::new();
        let looking = tokio::spawn(Arc::clone(&followers).look_out(soft.clone()));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(feed.looks.load(Ordering::SeqCst), 0);
        let mut following: Vec<_> = (0..50)
            .map(|_| followers.follow(OrganizationId::new()).unwrap())
            .collect();
        for newest in [7, 9] {
            feed.newest.store(newest, Ordering::SeqCst);
            let looks = feed.looks.load(Ordering::SeqCst);
            for one in &mut following {
                while one.newest() < newest {
                    one.news().await;
                }
            }
            assert!(feed.looks.load(Ordering::SeqCst) <= looks + 2);
        }
        soft.cancel();
        looking.await.unwrap().unwrap();
    }
}
