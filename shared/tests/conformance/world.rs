//! What the checks set up: organizations, subscriptions, events, and the steps that most of them take.

use std::time::Duration;

use bytes::Bytes;
use shared::{
    AcceptedEvent, Builtin, DedupId, DeliveryKey, EventId, EventPattern, EventType, KeyId, KeyText,
    Organization, OrganizationId, Payload, Repeat, RetrySchedule, Scopes, Subscription, SubscriptionId,
    SubscriptionUrl, Tier, Timestamp, WorkerId,
    delivery::{AttemptOutcome, AttemptResult, Failure, Next},
    seal::Sealed,
    signature::SignatureScheme,
    store::{
        EventRecord, IntakeBatch, IntakeOutcome, NewKey, PageRequest, PlannedDelivery, Store, StoredEvent,
    },
    subscription::{AttemptTimeout, Format, MaxInFlight, Metadata, Ordering, Push, Target},
};
use uuid::Uuid;

pub(crate) const MINUTE: Duration = Duration::from_mins(1);

pub(crate) fn new_key(organization: OrganizationId) -> NewKey {
    let text = KeyText::generate();
    NewKey {
        id: KeyId::new(),
        organization,
        name: "a key".to_owned(),
        hint: text.hint(),
        hash: text.hash(),
        scopes: Scopes::all(),
        expires_at: None,
    }
}

pub(crate) async fn organization(store: &Store) -> Organization {
    let id = OrganizationId::new();
    store
        .organizations
        .create(id, "an organization", Tier::Free, new_key(id))
        .await
        .expect("an organization")
}

pub(crate) fn new_push(organization: OrganizationId) -> Subscription {
    Subscription {
        id: SubscriptionId::new(),
        organization,
        builtin: None,
        target: Target::Push(Push {
            url: SubscriptionUrl::parse("https://example.com/hook?a=b").expect("a url"),
            scheme: SignatureScheme::Hmac,
            secret: Sealed(vec![0, 1, 2, 255]),
            public_key: None,
            former: None,
            retry_schedule: RetrySchedule::default(),
            timeout: AttemptTimeout::default(),
            max_in_flight: MaxInFlight::default(),
            rate_limit: None,
            ordering: Ordering::None,
            format: Format::Standard,
            headers: None,
        }),
        event_types: vec![EventPattern::all()],
        enabled: true,
        disabled_reason: None,
        description: Some("a subscription".to_owned()),
        filter: None,
        metadata: Metadata::default(),
        version: 1,
        created_at: Timestamp::now(),
        updated_at: Timestamp::now(),
        enabled_at: None,
    }
}

pub(crate) async fn push(store: &Store, organization: OrganizationId) -> Subscription {
    store
        .subscriptions
        .create(new_push(organization))
        .await
        .expect("a subscription")
        .expect("room for it")
}

pub(crate) async fn inbox(store: &Store, organization: OrganizationId) -> SubscriptionId {
    let in_force = store
        .subscriptions
        .in_force(&[organization])
        .await
        .expect("what is in force");
    let mut subscriptions = in_force.iter().flat_map(|in_force| &in_force.subscriptions);
    subscriptions
        .find(|one| one.builtin == Some(Builtin::Inbox))
        .expect("an inbox")
        .id
}

pub(crate) fn event(organization: OrganizationId) -> AcceptedEvent {
    AcceptedEvent {
        id: EventId::new(),
        former_ids: Vec::new(),
        organization,
        event_type: EventType::parse("order.created").expect("a type"),
        dedup_id: None,
        received_at: Timestamp::now(),
        occurred_at: None,
        source: None,
        trace: None,
        payload: payload(r#"{"n":1}"#),
    }
}

/// One that was accepted then.
pub(crate) fn accepted_at(organization: OrganizationId, at: Timestamp) -> AcceptedEvent {
    let random = Uuid::new_v4().into_bytes();
    let random = std::array::from_fn(|byte| random[byte]);
    let millis = u64::try_from(at.millis()).expect("a time since 1970");
    AcceptedEvent {
        id: EventId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()),
        received_at: at,
        ..event(organization)
    }
}

pub(crate) fn keyed(organization: OrganizationId, key: &str) -> AcceptedEvent {
    AcceptedEvent {
        dedup_id: Some(DedupId::parse(key).expect("a key")),
        ..event(organization)
    }
}

pub(crate) fn payload(json: &'static str) -> Payload {
    Payload::from_trusted(Bytes::from_static(json.as_bytes())).expect("a payload")
}

pub(crate) fn repeat_of(first: &AcceptedEvent, differs: bool) -> Repeat {
    Repeat {
        id: EventId::new(),
        organization: first.organization,
        first: first.id,
        differs,
    }
}

pub(crate) async fn worker(store: &Store) -> WorkerId {
    let worker = WorkerId::new();
    store.deliveries.enlist(worker, MINUTE).await.expect("a lease");
    worker
}

/// Takes events in, each for each of the subscriptions.
pub(crate) async fn try_take_in(
    store: &Store,
    worker: WorkerId,
    events: &[AcceptedEvent],
    repeats: &[Repeat],
    subscriptions: &[(SubscriptionId, bool)],
) -> shared::store::Result<IntakeOutcome> {
    let mut organizations: Vec<_> = events.iter().map(|event| event.organization).collect();
    organizations.sort_unstable();
    organizations.dedup();
    let in_force = store.subscriptions.in_force(&organizations).await?;
    let versions: Vec<_> = in_force
        .iter()
        .map(|one| (one.organization, one.version))
        .collect();
    let deliveries: Vec<_> = (0..events.len())
        .flat_map(|event| {
            subscriptions
                .iter()
                .map(move |(subscription, held)| PlannedDelivery {
                    event,
                    subscription: *subscription,
                    held: *held,
                })
        })
        .collect();
    let batch = IntakeBatch {
        worker,
        events,
        deliveries: &deliveries,
        versions: &versions,
        repeats,
    };
    store.events.intake(&batch).await
}

pub(crate) async fn take_in(
    store: &Store,
    worker: WorkerId,
    events: &[AcceptedEvent],
    subscriptions: &[(SubscriptionId, bool)],
) -> Vec<StoredEvent> {
    match try_take_in(store, worker, events, &[], subscriptions)
        .await
        .expect("an intake")
    {
        IntakeOutcome::Stored(stored) => stored,
        IntakeOutcome::Stale => panic!("nobody changed a subscription"),
    }
}

pub(crate) async fn get(store: &Store, organization: OrganizationId, id: EventId) -> EventRecord {
    store
        .events
        .get(organization, id)
        .await
        .expect("a look-up")
        .expect("an event")
}

pub(crate) fn key(event: &AcceptedEvent, subscription: SubscriptionId) -> DeliveryKey {
    DeliveryKey {
        event: event.id,
        subscription,
    }
}

pub(crate) fn succeeded(event: &AcceptedEvent, subscription: SubscriptionId, number: u32) -> AttemptOutcome {
    AttemptOutcome {
        delivery: key(event, subscription),
        organization: event.organization,
        number,
        started_at: Timestamp::from_millis(1_700_000_000_123),
        duration: Duration::from_millis(42),
        result: AttemptResult::Delivered { status_code: 204 },
        announcement: None,
    }
}

pub(crate) fn failed(
    event: &AcceptedEvent,
    subscription: SubscriptionId,
    number: u32,
    next: Next,
) -> AttemptOutcome {
    AttemptOutcome {
        result: AttemptResult::Failed {
            failure: Failure {
                kind: shared::FailureKind::Status,
                status_code: Some(500),
                detail: format!("attempt {number} was refused: ü"),
            },
            next,
        },
        ..succeeded(event, subscription, number)
    }
}

pub(crate) const fn first<C>(limit: u32) -> PageRequest<C> {
    PageRequest { after: None, limit }
}

pub(crate) const fn after<C>(cursor: C, limit: u32) -> PageRequest<C> {
    PageRequest {
        after: Some(cursor),
        limit,
    }
}
