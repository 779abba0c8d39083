//! What this worker knows of subscriptions: how to plan deliveries, and how to send them.
//!
//! For planning, an organization's subscriptions are remembered with their version, which intake's transaction checks
//! against the store: a plan made from what is stale is refused there, and made anew. For sending, each subscription is
//! asked for before every attempt, and what is known of it is never older than [`FRESH`]: it is read again when word of
//! a change comes, every second while it has a lane, and else when it is asked for; an intake that was planned by it and
//! was not refused says that it is as it was.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use quick_cache::sync::Cache;
use shared::{
    OrganizationId, Subscription, SubscriptionId, Timestamp,
    seal::Sealer,
    signature::SigningKey,
    store::{self, InForce, Store},
    subscription::{Push, StaticHeaders},
};
use tokio::time::Instant;

use crate::lane::Terms;

/// The most organizations whose subscriptions are remembered.
const MAX_ORGANIZATIONS: usize = 10_000;
/// The most subscriptions that are remembered.
const MAX_SUBSCRIPTIONS: usize = 50_000;

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
    /// Its URL, as the client takes it; or why it cannot be sent to.
    pub uri: Result<Uri, String>,
    /// What it is signed with, the current one first, each with its end; or why that does not open.
    pub signing: Result<Vec<(SigningKey, Option<Timestamp>)>, String>,
    /// The headers that its webhooks have of its own; or why they do not open.
    pub headers: Result<HeaderMap, String>,
}

impl Route {
    /// What its lane has to keep to.
    pub fn terms(&self, workers: u32) -> Terms {
        Terms::of(&self.subscription, &self.push, workers)
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
    in_force: Cache<OrganizationId, Arc<InForce>>,
    routes: Cache<SubscriptionId, Known>,
}

/// What is known of a subscription, and as of when.
#[derive(Debug, Clone)]
struct Known {
    found: Found,
    as_of: Instant,
}

impl Registry {
    /// Knows nothing yet.
    pub fn new(store: Store, sealer: Arc<Sealer>) -> Self {
        Self {
            store,
            sealer,
            in_force: Cache::new(MAX_ORGANIZATIONS),
            routes: Cache::new(MAX_SUBSCRIPTIONS),
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
            let as_of = Instant::now();
            for in_force in self.store.subscriptions.in_force(&missing).await? {
                for subscription in &in_force.subscriptions {
                    self.note(subscription, as_of);
                }
                let in_force = Arc::new(in_force);
                self.in_force.insert(in_force.organization, Arc::clone(&in_force));
                found.insert(in_force.organization, in_force);
            }
        }
        Ok(found)
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
            if let Some(Known {
                found: Found::Enabled(route),
                ..
            }) = self.routes.get(&subscription)
                && route.subscription.version == version
            {
                self.routes.insert(
                    subscription,
                    Known {
                        found: Found::Enabled(route),
                        as_of,
                    },
                );
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
                    None => self.routes.insert(
                        *id,
                        Known {
                            found: Found::Gone,
                            as_of,
                        },
                    ),
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
            // Two reads may cross: the newer version stays.
            Some(Known {
                found: Found::Enabled(route),
                ..
            }) if route.subscription.version > subscription.version => {
                return;
            }
            _ => self.prepare(subscription),
        };
        self.routes.insert(subscription.id, Known { found, as_of });
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
            let opened = opened.map_err(|error| error.to_string());
            opened.and_then(|bytes| {
                SigningKey::from_bytes(scheme, bytes).map_err(|error| format!("the secret {error}"))
            })
        };
        let signing = open(push.scheme, &push.secret).map(|current| {
            let mut keys = vec![(current, None)];
            if let Some(former) = &push.former {
                match open(former.scheme, &former.secret) {
                    Ok(key) => keys.push((key, Some(former.until))),
                    Err(error) => {
                        tracing::warn!(subscription.id = %subscription.id, error, "its former secret does not sign");
                    }
                }
            }
            keys
        });
        let uri = push
            .url
            .as_str()
            .parse()
            .map_err(|error| format!("the URL cannot be sent to: {error}"));
        let headers = match &push.headers {
            None => Ok(HeaderMap::new()),
            Some(sealed) => sealed
                .open(&self.sealer, subscription.organization, subscription.id)
                .map_err(|error| error.to_string())
                .and_then(|opened| header_map(&opened)),
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
