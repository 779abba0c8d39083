//! What this worker knows of subscriptions: how to plan deliveries, and how to send them.
//!
//! For planning, an organization's subscriptions are remembered with their version, which intake's transaction checks
//! against the store: a plan made from what is stale is refused there, and made anew. For sending, each subscription is
//! asked for before every attempt, and what is known of it is never older than [`FRESH`]: it is read again when word of
//! a change comes, every second while it has a lane, and else when it is asked for; an intake that was planned by it and
//! was not refused says that it is as it was.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use quick_cache::{Weighter, sync::Cache};
use shared::{
    OrganizationId, Subscription, SubscriptionId, Timestamp,
    seal::{OpenError, Sealer},
    signature::SigningKey,
    store::{self, InForce, Store},
    subscription::{Push, StaticHeaders, Subscriber},
    weighed_cache::weighed_cache,
};
use tokio::time::Instant;

use crate::lane::Terms;

/// How many organizations are remembered with their subscriptions, if those are few and small.
const USUAL_ORGANIZATIONS: usize = 10_000;
/// How many subscriptions are remembered for sending, if they are small.
const USUAL_SUBSCRIPTIONS: usize = 50_000;
/// What each of the two may take in memory: somewhat more than the largest organization does.
const BYTES: u64 = 64 * 1024 * 1024;

/// How old what is known of a subscription may be when something is sent to it. It is read each second; a store that is slow
/// for a moment (a checkpoint) must not make every attempt under way ask for itself.
pub const FRESH: Duration = Duration::from_secs(3);

/// A push subscription, ready to be sent to.
#[derive(Debug)]
pub struct Route {
    /// The subscription.
    pub subscription: Arc<Subscription>,
    /// How to push.
    pub push: Push,
    /// Its URL, as the client takes it.
    pub uri: Result<Uri, Unusable>,
    /// What it is signed with, the current one first, each with its end.
    pub signing: Result<Vec<(SigningKey, Option<Timestamp>)>, Unusable>,
    /// The headers that its webhooks have of its own.
    pub headers: Result<HeaderMap, Unusable>,
}

/// Why a part of a subscription cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It does not open: with this process's keys, or at all. That says nothing of the subscriber.
    #[error(transparent)]
    Sealed(OpenError),
    /// It is none that can be sent.
    #[error("{0}")]
    Bad(String),
}

impl Route {
    /// What its lane has to keep to.
    pub fn terms(&self, workers: u32) -> Terms {
        Terms::of(&self.subscription, &self.push, workers)
    }

    /// Who is sent to.
    pub fn subscriber(&self) -> Subscriber {
        Subscriber::of(&self.subscription, &self.push)
    }
}

/// What there is of a subscription.
#[derive(Debug, Clone)]
pub enum Found {
    /// It is to be served.
    Enabled(Arc<Route>),
    /// Its deliveries are parked.
    Disabled,
    /// It is deleted, or is not of kind `push`.
    Gone,
}

/// What this worker knows of subscriptions.
pub struct Registry {
    store: Store,
    sealer: Arc<Sealer>,
    in_force: Cache<OrganizationId, Arc<InForce>, Bytes>,
    routes: Cache<SubscriptionId, Known, Bytes>,
}

/// Weighs what is remembered.
#[derive(Clone)]
struct Bytes;

impl Weighter<OrganizationId, Arc<InForce>> for Bytes {
    fn weight(&self, _: &OrganizationId, in_force: &Arc<InForce>) -> u64 {
        let subscriptions = in_force.subscriptions.iter();
        let bytes: usize = subscriptions.map(|subscription| subscription.bytes()).sum();
        (bytes + 128) as u64
    }
}

impl Weighter<SubscriptionId, Known> for Bytes {
    fn weight(&self, _: &SubscriptionId, known: &Known) -> u64 {
        let bytes = match &known.found {
            // What is prepared of it is about as much again.
            Found::Enabled(route) => 2 * route.subscription.bytes(),
            Found::Disabled | Found::Gone => 0,
        };
        (bytes + 128) as u64
    }
}

/// What is known of a subscription, and as of when.
#[derive(Debug, Clone)]
struct Known {
    found: Found,
    /// The version that was read; `None` if there was nothing to read.
    version: Option<i64>,
    as_of: Instant,
}

impl Known {
    /// Whether a reading that was begun `as_of` then, and came to this version, says nothing new: readings may cross.
    fn is_newer(&self, version: Option<i64>, as_of: Instant) -> bool {
        match (self.version, version) {
            (Some(known), Some(read)) => known > read,
            // One of the two is before it was created, or after it was deleted.
            (Some(_), None) | (None, Some(_)) => self.as_of > as_of,
            (None, None) => false,
        }
    }
}

impl Registry {
    /// Knows nothing yet.
    pub fn new(store: Store, sealer: Arc<Sealer>) -> Self {
        Self {
            store,
            sealer,
            in_force: weighed_cache(USUAL_ORGANIZATIONS, BYTES, Bytes),
            routes: weighed_cache(USUAL_SUBSCRIPTIONS, BYTES, Bytes),
        }
    }

    /// The subscriptions of these organizations, as remembered or read; those that do not exist are left out.
    pub async fn in_force(
        &self,
        organizations: &[OrganizationId],
    ) -> store::Result<HashMap<OrganizationId, Arc<InForce>>> {
        let mut found = HashMap::with_capacity(organizations.len());
        let mut missing = Vec::new();
        for organization in organizations {
            match self.in_force.get(organization) {
                Some(in_force) => drop(found.insert(*organization, in_force)),
                None => missing.push(*organization),
            }
        }
        if !missing.is_empty() {
            found.extend(self.read_in_force(&missing).await?);
        }
        Ok(found)
    }

    /// The subscriptions of an organization as they are in the store now, whatever is remembered.
    pub async fn in_force_now(&self, organization: OrganizationId) -> store::Result<Option<Arc<InForce>>> {
        let read = self.read_in_force(&[organization]).await?;
        Ok(read.into_iter().next().map(|(_, in_force)| in_force))
    }

    async fn read_in_force(
        &self,
        organizations: &[OrganizationId],
    ) -> store::Result<Vec<(OrganizationId, Arc<InForce>)>> {
        let as_of = Instant::now();
        let read = self.store.subscriptions.in_force(organizations).await?;
        let read = read.into_iter().map(|in_force| {
            for subscription in &in_force.subscriptions {
                self.note(subscription, as_of);
            }
            let in_force = Arc::new(in_force);
            self.in_force.insert(in_force.organization, Arc::clone(&in_force));
            (in_force.organization, in_force)
        });
        Ok(read.collect())
    }

    /// Forgets what was remembered for planning: it is stale.
    pub fn forget_in_force(&self, organizations: &[OrganizationId]) {
        for organization in organizations {
            self.in_force.remove(organization);
        }
    }

    /// A plan by these versions of subscriptions was not refused: they are in force.
    pub fn confirm(&self, versions: impl Iterator<Item = (SubscriptionId, i64)>) {
        let as_of = Instant::now();
        for (subscription, version) in versions {
            if let Some(known) = self.routes.get(&subscription)
                && known.version == Some(version)
            {
                self.routes.insert(subscription, Known { as_of, ..known });
            }
        }
    }

    /// How to send to a subscription.
    pub async fn route(&self, subscription: SubscriptionId) -> store::Result<Found> {
        match self.routes.get(&subscription) {
            Some(known) if known.as_of.elapsed() < FRESH => Ok(known.found),
            _ => {
                self.refresh(&[subscription]).await?;
                Ok(self
                    .routes
                    .get(&subscription)
                    .map_or(Found::Gone, |known| known.found))
            }
        }
    }

    /// Reads these anew.
    pub async fn refresh(&self, subscriptions: &[SubscriptionId]) -> store::Result<()> {
        for some in subscriptions.chunks(500) {
            let as_of = Instant::now();
            let mut read: HashMap<SubscriptionId, Arc<Subscription>> = HashMap::with_capacity(some.len());
            for subscription in self.store.subscriptions.by_ids(some).await? {
                read.insert(subscription.id, subscription);
            }
            for id in some {
                match read.get(id) {
                    Some(subscription) => self.note(subscription, as_of),
                    None => self.know(*id, Found::Gone, None, as_of),
                }
            }
        }
        Ok(())
    }

    fn note(&self, subscription: &Arc<Subscription>, as_of: Instant) {
        let found = match self.routes.get(&subscription.id) {
            Some(Known {
                found: Found::Enabled(route),
                ..
            }) if route.subscription.version == subscription.version
                && subscription
                    .push()
                    .is_some_and(|push| push.former == route.push.former) =>
            {
                Found::Enabled(route)
            }
            Some(known) if known.is_newer(Some(subscription.version), as_of) => return,
            _ => self.prepare(subscription),
        };
        self.know(subscription.id, found, Some(subscription.version), as_of);
    }

    fn know(&self, subscription: SubscriptionId, found: Found, version: Option<i64>, as_of: Instant) {
        match self.routes.get(&subscription) {
            Some(known) if known.is_newer(version, as_of) => {}
            _ => self.routes.insert(
                subscription,
                Known {
                    found,
                    version,
                    as_of,
                },
            ),
        }
    }

    fn prepare(&self, subscription: &Arc<Subscription>) -> Found {
        let Some(push) = subscription.push() else {
            return Found::Gone;
        };
        if !subscription.enabled {
            return Found::Disabled;
        }
        let open = |scheme, secret| {
            let opened = self
                .sealer
                .open(subscription.organization, subscription.id.uuid(), secret);
            let opened = opened.map_err(Unusable::Sealed);
            opened.and_then(|bytes| {
                SigningKey::from_bytes(scheme, bytes)
                    .map_err(|error| Unusable::Bad(format!("the secret {error}")))
            })
        };
        let signing = open(push.scheme, &push.secret).map(|current| {
            let mut keys = vec![(current, None)];
            if let Some(former) = &push.former {
                match open(former.scheme, &former.secret) {
                    Ok(key) => keys.push((key, Some(former.until))),
                    Err(error) => {
                        tracing::warn!(subscription.id = %subscription.id, %error, "its former secret does not sign");
                    }
                }
            }
            keys
        });
        let uri = push
            .url
            .as_str()
            .parse()
            .map_err(|error| Unusable::Bad(format!("the URL cannot be sent to: {error}")));
        let headers = match &push.headers {
            None => Ok(HeaderMap::new()),
            Some(sealed) => sealed
                .open(&self.sealer, subscription.organization, subscription.id)
                .map_err(Unusable::Sealed)
                .and_then(|opened| header_map(&opened).map_err(Unusable::Bad)),
        };
        Found::Enabled(Arc::new(Route {
            subscription: Arc::clone(subscription),
            push: push.clone(),
            uri,
            signing,
            headers,
        }))
    }
}

fn header_map(headers: &StaticHeaders) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter() {
        let unsendable = |error: http::Error| format!("the header {name} cannot be sent: {error}");
        let parsed = HeaderName::try_from(name).map_err(|error| unsendable(error.into()))?;
        let mut value = HeaderValue::try_from(value).map_err(|error| unsendable(error.into()))?;
        // Nothing prints it, and HTTP/2 keeps it out of the tables that its compression makes.
        value.set_sensitive(true);
        map.insert(parsed, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use shared::store::SubscriptionPatch;

    use super::*;
    use crate::real_store::RealStore;

    /// What is known of a subscription after two readings, of which the one that began first is noted last.
    fn crossed(
        registry: &Registry,
        newer: Option<&Arc<Subscription>>,
        older: Option<&Arc<Subscription>>,
    ) -> Found {
        let (first, second) = (Instant::now(), Instant::now() + Duration::from_millis(1));
        let id = newer.or(older).expect("one was read").id;
        for (read, as_of) in [(newer, second), (older, first)] {
            match read {
                Some(subscription) => registry.note(subscription, as_of),
                None => registry.know(id, Found::Gone, None, as_of),
            }
        }
        registry.routes.get(&id).expect("something is known").found
    }

    #[tokio::test]
    async fn readings_that_cross_leave_what_is_newer() {
        let real = RealStore::open().await;
        let enabled = real.subscription().await;
        let disable = SubscriptionPatch {
            enabled: Some(false),
            ..SubscriptionPatch::default()
        };
        let subscriptions = &real.store.subscriptions;
        let (organization, id) = (enabled.organization, enabled.id);
        subscriptions
            .patch(organization, id, enabled.version, disable)
            .await
            .unwrap();
        let disabled = Arc::new(subscriptions.get(organization, id).await.unwrap().unwrap());
        let enabled = Arc::new(enabled);
        let (now, before) = (Some(&disabled), Some(&enabled));
        assert!(matches!(crossed(&real.registry(), now, before), Found::Disabled));
        // Whichever began first: the version decides.
        let again = real.registry();
        assert!(matches!(crossed(&again, before, now), Found::Disabled));
        assert!(matches!(crossed(&real.registry(), None, before), Found::Gone));
        assert!(matches!(
            crossed(&real.registry(), before, None),
            Found::Enabled(_)
        ));
    }

    #[tokio::test]
    async fn what_is_in_force_now_is_read_and_remembered() {
        let (real, one) = (RealStore::open().await, [OrganizationId::new()]);
        let (registry, ours) = (real.registry(), [real.organization()]);
        let count = |known: Option<&Arc<InForce>>| known.map(|known| known.subscriptions.len());
        let before = count(registry.in_force(&ours).await.unwrap().get(&ours[0]));
        let made = real.subscription().await;
        assert_eq!(
            count(registry.in_force(&ours).await.unwrap().get(&ours[0])),
            before,
            "as remembered"
        );
        let now = registry.in_force_now(ours[0]).await.unwrap();
        assert_eq!(count(now.as_ref()), before.map(|before| before + 1));
        let remembered = registry.in_force(&ours).await.unwrap();
        assert_eq!(count(remembered.get(&ours[0])), count(now.as_ref()));
        assert!(matches!(
            registry.route(made.id).await.unwrap(),
            Found::Enabled(_)
        ));
        assert!(registry.in_force_now(one[0]).await.unwrap().is_none());
    }
}
