//! For tests: a real store on SQLite in a directory of the test's own, whose calls about subscriptions can be told to fail,
//! and are counted; and so can those that give deliveries or lanes back be told to, or to take their time, and those that claim in
//! order.

mod releases;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{self, AtomicUsize},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use shared::{
    AcceptedEvent, DeliveryKey, EventId, EventPattern, EventType, KeyId, KeyText, OrganizationId, Payload,
    RetrySchedule, Scopes, Subscription, SubscriptionId, SubscriptionUrl, Tier, Timestamp, WorkerId,
    seal::{self, Sealed, Sealer},
    signature::SignatureScheme,
    store::{
        InForce, IntakeBatch, IntakeOutcome, NewKey, NewSecret, Page, PageRequest, PatchOutcome,
        PlannedDelivery, Result, SealedSecrets, Store, StoreError, SubscriptionPatch, Subscriptions, sqlite,
    },
    subscription::{AttemptTimeout, Format, Full, MaxInFlight, Metadata, Ordering, Push, Target},
};

pub use self::releases::Releases;
use crate::registry::Registry;

/// An event of this type, accepted just now.
pub fn accepted(organization: OrganizationId, event_type: &str) -> AcceptedEvent {
    AcceptedEvent {
        id: EventId::new(),
        former_ids: Vec::new(),
        organization,
        event_type: EventType::parse_any(event_type).unwrap(),
        dedup_id: None,
        received_at: Timestamp::now(),
        occurred_at: None,
        source: None,
        trace: None,
        payload: Payload::from_trusted(Bytes::from_static(b"{}")).unwrap(),
    }
}

/// Delegates to a real store, but for what it is told.
pub struct Watched {
    real: Arc<dyn Subscriptions>,
    /// Calls of [`Subscriptions::by_ids`] until one fails; zero is never.
    fails_in: AtomicUsize,
    disabling: AtomicUsize,
}

impl Watched {
    /// The call of [`Subscriptions::by_ids`] after so many, counted from now, fails.
    pub fn fail_look_up(&self, number: usize) {
        self.fails_in.store(number, atomic::Ordering::Relaxed);
    }

    /// How often anything was to be disabled.
    pub fn disabling(&self) -> usize {
        self.disabling.load(atomic::Ordering::Relaxed)
    }
}

#[async_trait]
impl Subscriptions for Watched {
    async fn create(&self, subscription: Subscription) -> Result<Result<Subscription, Full>> {
        self.real.create(subscription).await
    }

    async fn get(&self, organization: OrganizationId, id: SubscriptionId) -> Result<Option<Subscription>> {
        self.real.get(organization, id).await
    }

    async fn list(
        &self,
        organization: OrganizationId,
        page: PageRequest<SubscriptionId>,
    ) -> Result<Page<Subscription, SubscriptionId>> {
        self.real.list(organization, page).await
    }

    async fn patch(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        patch: SubscriptionPatch,
    ) -> Result<PatchOutcome> {
        self.real.patch(organization, id, version, patch).await
    }

    async fn delete(&self, organization: OrganizationId, id: SubscriptionId) -> Result<bool> {
        self.real.delete(organization, id).await
    }

    async fn disable(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        reason: &str,
        announced: bool,
    ) -> Result<bool> {
        self.disabling.fetch_add(1, atomic::Ordering::Relaxed);
        self.real
            .disable(organization, id, version, reason, announced)
            .await
    }

    async fn rotate(
        &self,
        organization: OrganizationId,
        id: SubscriptionId,
        version: i64,
        secret: NewSecret,
        overlap: Duration,
    ) -> Result<PatchOutcome> {
        self.real.rotate(organization, id, version, secret, overlap).await
    }

    async fn sealed_otherwise(
        &self,
        key: seal::KeyId,
        after: Option<SubscriptionId>,
        limit: u32,
    ) -> Result<Vec<SealedSecrets>> {
        self.real.sealed_otherwise(key, after, limit).await
    }

    async fn reseal(&self, id: SubscriptionId, before: &Sealed, after: Sealed) -> Result<bool> {
        self.real.reseal(id, before, after).await
    }

    async fn raise_version(&self, organization: OrganizationId) -> Result<()> {
        self.real.raise_version(organization).await
    }

    async fn webhook(&self, organization: OrganizationId) -> Result<Option<Subscription>> {
        self.real.webhook(organization).await
    }

    async fn in_force(&self, organizations: &[OrganizationId]) -> Result<Vec<InForce>> {
        self.real.in_force(organizations).await
    }

    async fn by_ids(&self, ids: &[SubscriptionId]) -> Result<Vec<Arc<Subscription>>> {
        let count_down = |left: usize| left.checked_sub(1);
        let before =
            self.fails_in
                .fetch_update(atomic::Ordering::Relaxed, atomic::Ordering::Relaxed, count_down);
        if before == Ok(1) {
            return Err(StoreError::Corrupt("a fault of the test's".to_owned()));
        }
        self.real.by_ids(ids).await
    }
}

/// A store with one organization.
pub struct RealStore {
    /// The store.
    pub store: Store,
    /// Its subscriptions, as they are watched.
    pub watched: Arc<Watched>,
    /// Its deliveries, as they are given back.
    pub releases: Arc<Releases>,
    organization: OrganizationId,
    sealer: Arc<Sealer>,
    directory: PathBuf,
}

impl RealStore {
    /// Opens one.
    pub async fn open() -> Self {
        let directory = std::env::temp_dir().join(format!("triggers-worker-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let mut store = sqlite::open(&directory).await.unwrap();
        store.keeper.migrate().await.unwrap();
        let watched = Arc::new(Watched {
            real: Arc::clone(&store.subscriptions),
            fails_in: AtomicUsize::new(0),
            disabling: AtomicUsize::new(0),
        });
        store.subscriptions = Arc::clone(&watched) as _;
        let releases = Arc::new(Releases::of(Arc::clone(&store.deliveries)));
        store.deliveries = Arc::clone(&releases) as _;
        let (organization, text) = (OrganizationId::new(), KeyText::generate());
        let key = NewKey {
            id: KeyId::new(),
            organization,
            name: "a key".to_owned(),
            hint: text.hint(),
            hash: text.hash(),
            scopes: Scopes::all(),
            expires_at: None,
        };
        let made = store
            .organizations
            .create(organization, "an organization", Tier::Free, key);
        made.await.unwrap();
        Self {
            store,
            watched,
            releases,
            organization,
            sealer: sealer(),
            directory,
        }
    }

    /// What a worker knows of it, which is nothing yet.
    pub fn registry(&self) -> Arc<Registry> {
        Arc::new(Registry::new(self.store.clone(), Arc::clone(&self.sealer)))
    }

    /// As much, but the worker's key is another than the one that secrets are sealed under.
    pub fn registry_of_another_key(&self) -> Arc<Registry> {
        Arc::new(Registry::new(self.store.clone(), sealer()))
    }

    /// Makes a push subscription. What is sealed is too short to sign with: nothing is sent to it.
    pub async fn subscription(&self) -> Subscription {
        self.subscription_to(EventPattern::all(), Ordering::None).await
    }

    /// Makes one to the system's own events.
    pub async fn listener(&self) -> Subscription {
        self.subscription_to(EventPattern::parse("triggers.**").unwrap(), Ordering::None)
            .await
    }

    /// Makes one that is sent to in order.
    pub async fn subscription_in_order(&self) -> Subscription {
        self.subscription_to(EventPattern::all(), Ordering::Fifo).await
    }

    async fn subscription_to(&self, events: EventPattern, ordering: Ordering) -> Subscription {
        let id = SubscriptionId::new();
        let secret = self.sealer.seal(self.organization, id.uuid(), b"short");
        let subscription = Subscription {
            id,
            organization: self.organization,
            builtin: None,
            target: Target::Push(Push {
                url: SubscriptionUrl::parse("https://example.com/hook").unwrap(),
                scheme: SignatureScheme::Hmac,
                secret,
                public_key: None,
                former: None,
                retry_schedule: RetrySchedule::default(),
                timeout: AttemptTimeout::default(),
                max_in_flight: MaxInFlight::default(),
                rate_limit: None,
                ordering,
                format: Format::Standard,
                headers: None,
            }),
            event_types: vec![events],
            enabled: true,
            disabled_reason: None,
            description: None,
            filter: None,
            metadata: Metadata::default(),
            version: 1,
            created_at: Timestamp::now(),
            updated_at: Timestamp::now(),
            enabled_at: None,
        };
        let made = self.store.subscriptions.create(subscription).await.unwrap();
        made.unwrap()
    }

    /// Takes so many events in for a subscription, held by a worker or due for anybody.
    pub async fn take_in(
        &self,
        count: usize,
        subscription: SubscriptionId,
        held_by: Option<WorkerId>,
    ) -> Vec<DeliveryKey> {
        let events: Vec<AcceptedEvent> = (0..count)
            .map(|_| accepted(self.organization, "order.placed"))
            .collect();
        let deliveries: Vec<PlannedDelivery> = (0..count)
            .map(|event| PlannedDelivery {
                event,
                subscription,
                held: held_by.is_some(),
            })
            .collect();
        let in_force = self.store.subscriptions.in_force(&[self.organization]).await;
        let batch = IntakeBatch {
            worker: held_by.unwrap_or_default(),
            events: &events,
            deliveries: &deliveries,
            versions: &[(self.organization, in_force.unwrap()[0].version)],
            repeats: &[],
        };
        let stored = self.store.events.intake(&batch).await.unwrap();
        assert!(matches!(stored, IntakeOutcome::Stored(stored) if stored.len() == count));
        let of = |event: &AcceptedEvent| DeliveryKey {
            event: event.id,
            subscription,
        };
        events.iter().map(of).collect()
    }

    /// The organization of all that is in it.
    pub fn organization(&self) -> OrganizationId {
        self.organization
    }
}

fn sealer() -> Arc<Sealer> {
    Arc::new(Sealer::from_base64(&Sealer::generate_base64()).unwrap())
}

impl Drop for RealStore {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
