//! What this worker knows of subscriptions: how to plan deliveries, and how to send them.
//!
//! For planning, an organization's subscriptions are remembered with their version, which intake's transaction checks
//! against the store: a plan made from what is stale is refused there, and made anew. For sending, each subscription is
//! asked for before every attempt; it is read again when word of a change comes, and every second in any case for
//! those that have a lane.

use std::{collections::HashMap, sync::Arc};

use http::Uri;
use quick_cache::sync::Cache;
use shared::{
    OrganizationId, Subscription, SubscriptionId,
    seal::Sealer,
    signature::SigningSecret,
    store::{self, InForce, Store},
    subscription::Push,
};

/// The most organizations whose subscriptions are remembered.
const MAX_ORGANIZATIONS: usize = 10_000;
/// The most subscriptions that are remembered.
const MAX_SUBSCRIPTIONS: usize = 50_000;

/// A push subscription, ready to be sent to.
#[derive(Debug)]
pub struct Route {
    /// The subscription.
    pub subscription: Arc<Subscription>,
    /// How to push.
    pub push: Push,
    /// Its URL, as the client takes it; or why it cannot be sent to.
    pub uri: Result<Uri, String>,
    /// Its signing secret; or why it does not open.
    pub secret: Result<SigningSecret, String>,
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
    routes: Cache<SubscriptionId, Found>,
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
            for in_force in self.store.subscriptions.in_force(&missing).await? {
                for subscription in &in_force.subscriptions {
                    self.note(subscription);
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

    /// How to send to a subscription.
    pub async fn route(&self, subscription: SubscriptionId) -> store::Result<Found> {
        match self.routes.get(&subscription) {
            Some(found) => Ok(found),
            None => {
                self.refresh(&[subscription]).await?;
                Ok(self.routes.get(&subscription).unwrap_or(Found::Gone))
            }
        }
    }

    /// Reads these anew.
    pub async fn refresh(&self, subscriptions: &[SubscriptionId]) -> store::Result<()> {
        for some in subscriptions.chunks(500) {
            let read = self.store.subscriptions.by_ids(some).await?;
            for id in some {
                match read.iter().find(|subscription| subscription.id == *id) {
                    Some(subscription) => self.note(subscription),
                    None => self.routes.insert(*id, Found::Gone),
                }
            }
        }
        Ok(())
    }

    fn note(&self, subscription: &Arc<Subscription>) {
        let unchanged = match self.routes.get(&subscription.id) {
            Some(Found::Enabled(route)) => route.subscription.version == subscription.version,
            _ => false,
        };
        if !unchanged {
            self.routes.insert(subscription.id, self.prepare(subscription));
        }
    }

    fn prepare(&self, subscription: &Arc<Subscription>) -> Found {
        let Some(push) = subscription.push() else {
            return Found::Gone;
        };
        if !subscription.enabled {
            return Found::Disabled;
        }
        let secret = self
            .sealer
            .open(subscription.organization, subscription.id.uuid(), &push.secret)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                SigningSecret::from_bytes(bytes).map_err(|error| format!("the secret {error}"))
            });
        let uri = push
            .url
            .as_str()
            .parse()
            .map_err(|error| format!("the URL cannot be sent to: {error}"));
        Found::Enabled(Arc::new(Route {
            subscription: Arc::clone(subscription),
            push: push.clone(),
            uri,
            secret,
        }))
    }
}
