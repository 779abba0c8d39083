//! The deduplication keys that this node has seen of late, so that a repeat is answered with the first id at once.
//!
//! A key is remembered after its event is confirmed, never before; a repeat that comes meanwhile waits for that. It is
//! a shortcut alone: intake decides what is a duplicate, by a unique key in the store.

use std::time::{Duration, Instant};

use quick_cache::{
    DefaultHashBuilder, UnitWeighter,
    sync::{Cache, DefaultLifecycle, PlaceholderGuard},
};
use sha2::{Digest, Sha256};
use shared::{DedupId, EventId, OrganizationId, Timestamp, event::Digest16};

/// How long a key is remembered. Short beside the store's window, which it must not outlive: what is first here may be a
/// repeat of what another node took long before.
const REMEMBERED: Duration = Duration::from_mins(5);
/// The most keys that are remembered: about 100 bytes each.
const MAX_KEYS: usize = 100_000;

/// Organization and key, hashed: of one size, and nobody else's key can be mistaken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct RecentKey([u8; 16]);

impl RecentKey {
    fn new(organization: OrganizationId, dedup_id: &DedupId) -> Self {
        let mut hash = Sha256::new();
        hash.update(organization.uuid().as_bytes());
        hash.update(dedup_id.as_str());
        let full: [u8; 32] = hash.finalize().into();
        let mut short = [0; 16];
        short.copy_from_slice(&full[..16]);
        Self(short)
    }
}

/// The first event of a key.
#[derive(Debug, Clone, Copy)]
pub struct First {
    /// Its id.
    pub id: EventId,
    /// When it was taken.
    pub received_at: Timestamp,
    /// To tell whether a repeat differs.
    pub digest: Digest16,
    confirmed: Instant,
}

impl First {
    /// Confirmed just now.
    pub fn new(id: EventId, received_at: Timestamp, digest: Digest16) -> Self {
        Self {
            id,
            received_at,
            digest,
            confirmed: Instant::now(),
        }
    }
}

type Guard<'a> = PlaceholderGuard<
    'a,
    RecentKey,
    First,
    UnitWeighter,
    DefaultHashBuilder,
    DefaultLifecycle<RecentKey, First>,
>;

/// The keys of a node.
pub struct Recent(Cache<RecentKey, First>);

impl Default for Recent {
    fn default() -> Self {
        Self(Cache::new(MAX_KEYS))
    }
}

/// What is known of a key.
pub enum Claim<'a> {
    /// It is the first event's.
    Known(First),
    /// Nothing: whoever holds this is the first, until it is dropped or confirmed.
    New(Pending<'a>),
}

/// A key whose event is on its way to the queue. Dropping it lets the next one try.
pub struct Pending<'a>(Option<Box<Guard<'a>>>);

impl Pending<'_> {
    /// The event is confirmed.
    pub fn confirm(mut self, first: First) {
        if let Some(guard) = self.0.take() {
            // Fails only if the key was removed meanwhile, and then there is nothing to remember.
            let _ = guard.insert(first);
        }
    }
}

impl Recent {
    /// Asks for a key; waits while its first event is on its way.
    pub async fn claim(&self, organization: OrganizationId, dedup_id: &DedupId) -> Claim<'_> {
        let key = RecentKey::new(organization, dedup_id);
        loop {
            match self.0.get_value_or_guard_async(&key).await {
                Ok(first) if first.confirmed.elapsed() < REMEMBERED => return Claim::Known(first),
                Ok(_) => {
                    self.0.remove(&key);
                }
                Err(guard) => return Claim::New(Pending(Some(Box::new(guard)))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shared::{EventType, Payload};

    use super::*;

    fn first(id: EventId) -> First {
        let payload = Payload::from_trusted("1".into()).unwrap();
        First::new(
            id,
            Timestamp::now(),
            Digest16::of(&EventType::parse("a").unwrap(), &payload),
        )
    }

    #[tokio::test]
    async fn a_concurrent_repeat_waits_for_the_first() {
        let recent = Arc::new(Recent::default());
        let (organization, key) = (OrganizationId::new(), DedupId::parse("k").unwrap());
        let Claim::New(pending) = recent.claim(organization, &key).await else {
            panic!("new")
        };
        let (again, id) = (Arc::clone(&recent), EventId::new());
        let repeat = tokio::spawn(async move {
            match again.claim(organization, &DedupId::parse("k").unwrap()).await {
                Claim::Known(first) => first.id,
                Claim::New(_) => panic!("known"),
            }
        });
        tokio::task::yield_now().await;
        assert!(!repeat.is_finished());
        pending.confirm(first(id));
        assert_eq!(repeat.await.unwrap(), id);
        assert!(
            matches!(recent.claim(OrganizationId::new(), &key).await, Claim::New(_)),
            "not across organizations"
        );
    }

    #[tokio::test]
    async fn one_that_fails_lets_the_next_try() {
        let recent = Recent::default();
        let (organization, key) = (OrganizationId::new(), DedupId::parse("k").unwrap());
        let claim = recent.claim(organization, &key).await;
        assert!(matches!(claim, Claim::New(_)));
        drop(claim);
        assert!(matches!(recent.claim(organization, &key).await, Claim::New(_)));
    }
}
