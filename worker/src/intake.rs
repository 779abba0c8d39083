//! Intake: frames come out of the queue, and events, deduplicated, with their deliveries, are in the store before the
//! frames are acknowledged.
//!
//! One transaction a batch. A frame that comes twice changes nothing. While the store is away frames are given back and
//! the queue holds them: no frame goes round and round. What the store refuses is parted until the one event at fault
//! is alone; that one is set aside with its reason, and the rest flows.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use shared::{
    AcceptedEvent, DeliveryKey, Entry, EventId, OrganizationId, Repeat, SetAsideId, Timestamp,
    queue::{DynQueue, FrameSource, QueueError, Received, SourceLane, frame},
    store::{self, IntakeBatch, IntakeOutcome, PlannedDelivery, SetAside, Store, StoreError, StoredEvent},
    telemetry,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::Dispatch,
    lane::{EventBody, Job},
    lease::{Holding, Lease},
    registry::Registry,
};

/// The most events of one transaction.
const BATCH_EVENTS: usize = 500;
/// The most bytes of frames that are taken in together.
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// How often a plan may turn out stale before the batch is given back: subscriptions do not change that fast.
const MAX_PLANS: usize = 20;
/// How far from now an id may be of which the store has no reason to say that it is out of range.
const NEAR: Duration = Duration::from_hours(24);

/// Takes frames in.
#[derive(Clone)]
pub struct Intake {
    /// Where frames come from.
    pub queue: DynQueue,
    /// Where events go.
    pub store: Store,
    /// What deliveries are planned by.
    pub registry: Arc<Registry>,
    /// Where deliveries go once they are stored.
    pub dispatch: Arc<Dispatch>,
    /// As whom this worker holds them.
    pub lease: Arc<Lease>,
    /// How far intake has come.
    pub progress: Arc<Progress>,
}

/// How far intake has come: what still waits was accepted after the newest event that was taken in.
#[derive(Debug, Default)]
pub struct Progress(AtomicI64);

impl Progress {
    /// When the newest event that this worker took in was accepted.
    pub fn newest(&self) -> Option<Timestamp> {
        Some(self.0.load(Ordering::Relaxed))
            .filter(|millis| *millis > 0)
            .map(Timestamp::from_millis)
    }

    fn note(&self, events: &[AcceptedEvent]) {
        if let Some(newest) = events.iter().map(|event| event.received_at.millis()).max() {
            self.0.fetch_max(newest, Ordering::Relaxed);
        }
    }
}

/// Why a batch was not taken in.
#[derive(Debug, thiserror::Error)]
enum IntakeError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("subscriptions change faster than deliveries can be planned")]
    NeverFresh,
}

impl Intake {
    /// Takes frames in until the soft signal.
    pub async fn run(self, lane: SourceLane, soft: CancellationToken) -> anyhow::Result<()> {
        let mut pauses = pauses();
        while !soft.is_cancelled() {
            let taken_in = tokio::select! {
                () = soft.cancelled() => return Ok(()),
                ready = self.ready(lane) => match ready {
                    Ok(mut source) => self.take_in(&mut *source, &soft, &mut pauses).await,
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = taken_in {
                tracing::warn!(%error, ?lane, "intake is interrupted; the queue holds what is not stored");
                tokio::select! {
                    () = soft.cancelled() => {}
                    () = tokio::time::sleep(pauses.next().unwrap_or(Duration::from_secs(2))) => {}
                }
            }
        }
        Ok(())
    }

    /// A way out of the queue, once the store answers: a frame that cannot be stored is better left where it is.
    async fn ready(&self, lane: SourceLane) -> Result<Box<dyn FrameSource>, IntakeError> {
        self.store.keeper.ping().await?;
        Ok(self.queue.source(lane).await?)
    }

    async fn take_in(
        &self,
        source: &mut dyn FrameSource,
        soft: &CancellationToken,
        pauses: &mut backon::ExponentialBackoff,
    ) -> Result<(), IntakeError> {
        loop {
            let frames = tokio::select! {
                () = soft.cancelled() => return Ok(()),
                frames = source.receive(BATCH_BYTES) => frames?,
            };
            let last = frames.last().map(|frame| frame.tag);
            self.take_in_frames(frames).await?;
            if let Some(tag) = last {
                source.acknowledge_up_to(tag).await?;
            }
            *pauses = self::pauses();
        }
    }

    async fn take_in_frames(&self, frames: Vec<Received>) -> Result<(), IntakeError> {
        let mut events: Vec<AcceptedEvent> = Vec::new();
        let mut repeats: Vec<Repeat> = Vec::new();
        for Received { body, .. } in frames {
            match frame::decode(&body) {
                Ok(entries) => {
                    for entry in entries {
                        match entry {
                            Entry::Event(event) => events.push(event),
                            Entry::Repeat(repeat) => repeats.push(repeat),
                        }
                    }
                }
                Err(error) => {
                    self.set_aside(vec![aside("unreadable", &error, None, body.to_vec())])
                        .await?;
                }
            }
        }
        // By id: so that two workers cannot wait for each other, and a frame that came twice is seen once.
        events.sort_unstable_by_key(|event| event.id);
        events.dedup_by_key(|event| event.id);
        repeats.sort_unstable_by_key(|repeat| repeat.id);
        repeats.dedup_by_key(|repeat| repeat.id);
        let mut repeats = repeats.as_slice();
        if events.is_empty() && !repeats.is_empty() {
            return self.store_batch(&[], repeats).await;
        }
        for batch in events.chunks(BATCH_EVENTS) {
            self.store_batch(batch, std::mem::take(&mut repeats)).await?;
        }
        Ok(())
    }

    /// Stores a batch; what cannot be stored is set aside.
    async fn store_batch(&self, events: &[AcceptedEvent], repeats: &[Repeat]) -> Result<(), IntakeError> {
        match self.try_store(events, repeats).await {
            Err(IntakeError::Store(StoreError::Refused(error))) => {
                if events.len() + repeats.len() > 1 {
                    tracing::warn!(%error, events = events.len(), "a batch is refused; parting it");
                    let (some, others) = events.split_at(events.len() / 2);
                    let (some_repeats, other_repeats) = repeats.split_at(repeats.len() / 2);
                    // One that does not part (a single event with repeats) parts between the two.
                    if events.len() < 2 && repeats.len() < 2 {
                        Box::pin(self.store_batch(events, &[])).await?;
                        return Box::pin(self.store_batch(&[], repeats)).await;
                    }
                    Box::pin(self.store_batch(some, some_repeats)).await?;
                    return Box::pin(self.store_batch(others, other_repeats)).await;
                }
                if let Some(event) = events.first() {
                    if store::is_missing_partition(&error) && refusal(event.id) == "refused" {
                        // Its day's partition is missing, which is not the event's fault: it waits in the queue.
                        return Err(StoreError::Unavailable(error).into());
                    }
                    self.set_aside(vec![event_aside(refusal(event.id), &error, event)])
                        .await?;
                } else {
                    tracing::warn!(%error, "a note of a repeat is refused and dropped");
                }
                Ok(())
            }
            done => done,
        }
    }

    async fn try_store(&self, events: &[AcceptedEvent], repeats: &[Repeat]) -> Result<(), IntakeError> {
        let begun = Instant::now();
        let mut organizations: Vec<OrganizationId> = events.iter().map(|event| event.organization).collect();
        organizations.sort_unstable();
        organizations.dedup();
        for _ in 0..MAX_PLANS {
            let in_force = self.registry.in_force(&organizations).await?;
            if in_force.len() < organizations.len() {
                let (known, unknown): (Vec<_>, Vec<_>) = events
                    .iter()
                    .cloned()
                    .partition(|event| in_force.contains_key(&event.organization));
                let why = "there is no such organization";
                self.set_aside(
                    unknown
                        .iter()
                        .map(|event| event_aside("unknown_organization", &why, event))
                        .collect(),
                )
                .await?;
                if known.is_empty() && repeats.is_empty() {
                    return Ok(());
                }
                return Box::pin(self.try_store(&known, repeats)).await;
            }
            let versions: Vec<_> = in_force
                .values()
                .map(|known| (known.organization, known.version))
                .collect();
            let holding = self.lease.current();
            let worker = holding.worker();
            let mut plan = Plan::default();
            for (index, event) in events.iter().enumerate() {
                if let Some(known) = in_force.get(&event.organization) {
                    plan.event(index, event, &known.subscriptions, &self.dispatch);
                }
            }
            let batch = IntakeBatch {
                worker,
                events,
                deliveries: &plan.deliveries,
                versions: &versions,
                repeats,
            };
            let stored = match self.store.events.intake(&batch).await {
                Ok(IntakeOutcome::Stored(stored)) => stored,
                Ok(IntakeOutcome::Stale) => {
                    plan.give_back(&self.dispatch);
                    self.registry.forget_in_force(&organizations);
                    continue;
                }
                Err(error) => {
                    plan.give_back(&self.dispatch);
                    if error.is_transient() {
                        // It may have been committed all the same.
                        self.lease.doubt();
                    }
                    return Err(error.into());
                }
            };
            measure(begun, events, &stored);
            self.progress.note(events);
            self.registry.confirm(plan.held());
            self.start(&plan, events, &stored, &holding);
            return Ok(());
        }
        Err(IntakeError::NeverFresh)
    }

    /// Hands what was stored, and is held, to the lanes.
    fn start(&self, plan: &Plan, events: &[AcceptedEvent], stored: &[StoredEvent], holding: &Arc<Holding>) {
        let stored: HashSet<EventId> = stored.iter().map(|event| event.id).collect();
        let mut bodies: HashMap<EventId, Arc<EventBody>> = HashMap::with_capacity(stored.len());
        let mut jobs = Vec::with_capacity(plan.deliveries.len());
        let mut given_back = Vec::new();
        for delivery in plan.deliveries.iter().filter(|delivery| delivery.held) {
            let event = &events[delivery.event];
            if !stored.contains(&event.id) {
                given_back.push(delivery.subscription);
                continue;
            }
            let body = bodies.entry(event.id).or_insert_with(|| Arc::new(body(event)));
            jobs.push(Job {
                key: DeliveryKey {
                    event: event.id,
                    subscription: delivery.subscription,
                },
                organization: event.organization,
                attempts: 0,
                event: Arc::clone(body),
                holding: Arc::clone(holding),
                since: Instant::now(),
            });
        }
        if !given_back.is_empty() {
            let mut lanes = self.dispatch.lanes();
            for subscription in given_back {
                lanes.unreserve(subscription, 1);
            }
        }
        self.dispatch.push(jobs);
    }

    async fn set_aside(&self, items: Vec<SetAside>) -> Result<(), IntakeError> {
        if items.is_empty() {
            return Ok(());
        }
        for item in &items {
            tracing::error!(
                reason = item.reason, detail = item.detail, event.id = ?item.event, organization.id = ?item.organization,
                set_aside.id = %item.id, "set aside: it cannot be taken in; see /v1/set-aside"
            );
        }
        self.store.events.set_aside(&items).await?;
        telemetry::set_aside().increment(items.len() as u64);
        Ok(())
    }
}

/// The deliveries of a batch, and the room that is reserved for some of them.
#[derive(Default)]
struct Plan {
    deliveries: Vec<PlannedDelivery>,
    /// The subscriptions, as the plan saw them, of those deliveries that are held.
    held: HashMap<shared::SubscriptionId, i64>,
}

impl Plan {
    /// Plans the deliveries of one event: to every subscription that wants it, or to the inbox if none does.
    fn event(
        &mut self,
        index: usize,
        event: &AcceptedEvent,
        subscriptions: &[Arc<shared::Subscription>],
        dispatch: &Dispatch,
    ) {
        let before = self.deliveries.len();
        for subscription in subscriptions
            .iter()
            .filter(|subscription| subscription.wants(&event.event_type))
        {
            let held = match subscription.push() {
                Some(push) if subscription.enabled => dispatch
                    .lanes()
                    .reserve(subscription.id, usize::from(push.max_in_flight.get())),
                _ => false,
            };
            if held {
                self.held.insert(subscription.id, subscription.version);
            }
            self.deliveries.push(PlannedDelivery {
                event: index,
                subscription: subscription.id,
                held,
            });
        }
        if self.deliveries.len() == before {
            let inbox = subscriptions
                .iter()
                .find(|subscription| subscription.builtin == Some(shared::Builtin::Inbox));
            if let Some(inbox) = inbox {
                self.deliveries.push(PlannedDelivery {
                    event: index,
                    subscription: inbox.id,
                    held: false,
                });
            }
        }
    }

    /// The subscriptions of the deliveries that are held, with their versions.
    fn held(&self) -> impl Iterator<Item = (shared::SubscriptionId, i64)> {
        self.held.iter().map(|(id, version)| (*id, *version))
    }

    /// Gives the reserved room back: the plan came to nothing.
    fn give_back(&self, dispatch: &Dispatch) {
        let mut lanes = dispatch.lanes();
        for delivery in self.deliveries.iter().filter(|delivery| delivery.held) {
            lanes.unreserve(delivery.subscription, 1);
        }
    }
}

fn body(event: &AcceptedEvent) -> EventBody {
    EventBody {
        id: event.id,
        event_type: event.event_type.as_str().into(),
        received_at: event.received_at,
        occurred_at: event.occurred_at,
        trace: event.trace.as_ref().map(|trace| trace.as_str().to_owned()),
        // A copy, so that a small event that waits does not hold on to a large frame.
        payload: Bytes::copy_from_slice(event.payload.as_bytes()),
    }
}

/// Why an event that the store refuses is set aside. Retention goes by ids, so that one far from now, of a front whose
/// clock has gone wrong, has no place.
fn refusal(id: EventId) -> &'static str {
    let now = Timestamp::now();
    let near = |at: Timestamp| now.since(at).max(at.since(now)) <= NEAR;
    if id.created_at().is_some_and(near) {
        "refused"
    } else {
        "id_out_of_range"
    }
}

fn event_aside(reason: &str, detail: &impl ToString, event: &AcceptedEvent) -> SetAside {
    let frame = frame::encode(&Entry::Event(event.clone())).to_vec();
    aside(reason, detail, Some((event.organization, event.id)), frame)
}

fn aside(
    reason: &str,
    detail: &impl ToString,
    event: Option<(OrganizationId, EventId)>,
    frame: Vec<u8>,
) -> SetAside {
    SetAside {
        id: SetAsideId::new(),
        reason: reason.to_owned(),
        detail: detail.to_string().replace('\0', "\u{fffd}"),
        organization: event.map(|(organization, _)| organization),
        event: event.map(|(_, event)| event),
        frame,
        at: Timestamp::now(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "batches are of some hundreds")]
fn measure(begun: Instant, events: &[AcceptedEvent], stored: &[StoredEvent]) {
    telemetry::intake_events().record(events.len() as f64);
    telemetry::intake_seconds().record(begun.elapsed());
    telemetry::stored().increment(stored.len() as u64);
    telemetry::duplicates().increment((events.len() - stored.len()) as u64);
}

fn pauses() -> backon::ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter()
        .build()
}
