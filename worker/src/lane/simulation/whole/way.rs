//! The way of one worker to the store: calls take their time, and answers get lost.

use async_trait::async_trait;
use shared::{
    seal::{KeyId, Sealed},
    store::{
        Acknowledged, Announced, Announcements, Backlog, Claimed, Deliveries, FailedAttempt, InForce, Lease,
        NewSecret, Page, PageRequest, PatchOutcome, Pause, Pauses, Recovered, Result, SealedSecrets,
        Standing, StoreError, SubscriptionPatch, Subscriptions,
    },
    subscription::{Full, MaxInFlight, Ordering, RateLimit, Subscriber, Target},
};

use super::{
    super::model::{Outcome, Taken},
    *,
};

pub(super) struct Way {
    whole: Arc<Whole>,
    worker: usize,
}

impl Way {
    /// The store, as this worker gets to it.
    pub(super) fn to(whole: &Arc<Whole>, worker: usize) -> Store {
        let way = Arc::new(Self {
            whole: Arc::clone(whole),
            worker,
        });
        Store {
            deliveries: Arc::clone(&way) as _,
            subscriptions: Arc::clone(&way) as _,
            announcements: Arc::clone(&way) as _,
            pauses: way,
            ..whole.common.store.clone()
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: Call,
        call: impl FnOnce(&mut Model, Instant) -> T + Send + 'static,
    ) -> Result<T> {
        let (there, back, fate) = self.whole.state().fate(what);
        self.whole.pass(self.worker, there).await;
        let answer = match fate {
            Fate::Answered => Some(call(&mut self.whole.state().store, Instant::now())),
            Fate::Lost => {
                call(&mut self.whole.state().store, Instant::now());
                None
            }
            Fate::Late(later) => {
                if let Some(later) = later {
                    let whole = Arc::clone(&self.whole);
                    tokio::spawn(async move {
                        tokio::time::sleep(later).await;
                        let state = &mut *whole.state();
                        call(&mut state.store, Instant::now());
                        state.committed_late += 1;
                    });
                }
                None
            }
        };
        self.whole.pass(self.worker, back).await;
        match answer {
            Some(answer) => Ok(answer),
            None => Err(self.away().await),
        }
    }

    /// What a store says that is away.
    async fn away(&self) -> StoreError {
        let closed = &self.whole.common.store.deliveries;
        let Err(error) = closed.standing(WorkerId::new()).await else {
            unreachable!("it is closed")
        };
        assert!(error.is_transient(), "{error}");
        error
    }

    fn claimed(&self, taken: Vec<Taken>) -> Vec<Claimed> {
        let state = self.whole.state();
        let claimed = taken.into_iter().map(|taken| Claimed {
            key: DeliveryKey {
                event: taken.event,
                subscription: taken.lane,
            },
            organization: state.store.lane(taken.lane).terms().organization,
            seq: state.store.place(taken.event).1,
            attempts: taken.attempts,
            attempts_before: 0,
            event_type: "a".into(),
            received_at: Timestamp::now(),
            occurred_at: None,
            source: None,
            trace: None,
            payload: bytes::Bytes::from_static(b"{}"),
        });
        claimed.collect()
    }
}

#[async_trait]
impl Deliveries for Way {
    async fn enlist(&self, worker: WorkerId, _: Duration) -> Result<()> {
        self.whole.state().by_id.insert(in_common(worker), self.worker);
        self.ask(Call::Enlist, move |store, now| store.enlist(worker, now))
            .await
    }

    async fn renew(&self, worker: WorkerId, _: Duration) -> Result<Lease> {
        let lives = self
            .ask(Call::Renew, move |store, now| store.renew(worker, now))
            .await?;
        Ok(if lives { Lease::Held } else { Lease::Lost })
    }

    async fn resign(&self, worker: WorkerId) -> Result<()> {
        self.ask(Call::Resign, move |store, _| store.resign(worker)).await
    }

    async fn lanes_due(
        &self,
        worker: WorkerId,
        _: Option<SubscriptionId>,
        _: u32,
    ) -> Result<Vec<SubscriptionId>> {
        self.ask(Call::Ask, move |store, now| store.lanes_due(worker, now))
            .await
    }

    async fn standing(&self, worker: WorkerId) -> Result<Standing> {
        self.ask(Call::Ask, move |store, now| store.standing(worker, now))
            .await
    }

    async fn own(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<Vec<SubscriptionId>> {
        let lanes = lanes.to_vec();
        self.ask(Call::Own, move |store, now| store.own(worker, &lanes, now))
            .await
    }

    async fn hand_over(&self, from: WorkerId, to: WorkerId) -> Result<Vec<SubscriptionId>> {
        self.ask(Call::HandOver, move |store, now| store.hand_over(from, to, now))
            .await
    }

    async fn disown(&self, worker: WorkerId, lanes: &[SubscriptionId]) -> Result<()> {
        let lanes = lanes.to_vec();
        self.ask(Call::Disown, move |store, _| store.disown(worker, &lanes))
            .await
    }

    async fn tell_owners(&self, _: &[SubscriptionId]) -> Result<()> {
        Ok(())
    }

    async fn claim_in_order(
        &self,
        worker: WorkerId,
        lane: SubscriptionId,
        most: u32,
    ) -> Result<Vec<Claimed>> {
        let claim = move |store: &mut Model, now| store.claim_in_order(worker, lane, most as usize, now);
        self.ask(Call::ClaimInOrder, claim)
            .await
            .map(|taken| self.claimed(taken))
    }

    async fn claim(&self, worker: WorkerId, wanted: &[(SubscriptionId, u32)]) -> Result<Vec<Claimed>> {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(lane, most)| (*lane, *most as usize))
            .collect();
        let claim = move |store: &mut Model, now| store.claim(worker, &wanted, now);
        self.ask(Call::Claim, claim)
            .await
            .map(|taken| self.claimed(taken))
    }

    async fn release(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<()> {
        let events: Vec<_> = keys.iter().map(|key| key.event).collect();
        self.ask(Call::Release, move |store, _| store.release(worker, &events))
            .await
    }

    async fn still_held(&self, worker: WorkerId, keys: &[DeliveryKey]) -> Result<Vec<DeliveryKey>> {
        let mut keys = keys.to_vec();
        let held = move |store: &mut Model, now| {
            keys.retain(|key| store.holds(worker, key.event, now));
            keys
        };
        self.ask(Call::Ask, held).await
    }

    async fn record(&self, worker: WorkerId, outcomes: &[AttemptOutcome]) -> Result<Vec<DeliveryKey>> {
        let is_refused = {
            let state = &mut *self.whole.state();
            let one_in = match state.fails {
                None => 100,
                Some(Call::Record) => 8,
                Some(_) => u32::MAX,
            };
            state.faults && state.random.random_range(0..one_in) == 0
        };
        if is_refused {
            return Err(StoreError::Corrupt("a fault of the test's".to_owned()));
        }
        let keys: Vec<_> = outcomes.iter().map(|outcome| outcome.delivery).collect();
        let outcomes: Vec<_> = outcomes.iter().map(|outcome| of(worker, outcome)).collect();
        let applied = self
            .ask(Call::Record, move |store, now| store.record(&outcomes, now))
            .await?;
        Ok(keys
            .into_iter()
            .filter(|key| applied.contains(&key.event))
            .collect())
    }

    async fn acknowledge(&self, _: OrganizationId, _: &[EventId]) -> Result<Vec<Acknowledged>> {
        unreachable!("no worker does that")
    }

    async fn backlog(&self) -> Result<Backlog> {
        unreachable!("the gauges are not read")
    }
}

fn of(worker: WorkerId, outcome: &AttemptOutcome) -> Outcome {
    let next = match &outcome.result {
        AttemptResult::Failed {
            next: Next::Retry { after },
            ..
        } => Some(*after),
        _ => None,
    };
    Outcome {
        worker,
        lane: outcome.delivery.subscription,
        event: outcome.delivery.event,
        attempts: outcome.number - 1,
        next,
        in_order: false,
        version: 0,
        subscriber: Subscriber::numbered(0),
        gone: false,
        asked_to_wait: None,
    }
}

#[async_trait]
impl Subscriptions for Way {
    async fn by_ids(&self, ids: &[SubscriptionId]) -> Result<Vec<Arc<shared::Subscription>>> {
        let (ids, template) = (ids.to_vec(), self.whole.common.template.clone());
        let read = move |store: &mut Model, _| {
            let of = |id: SubscriptionId| {
                let (lane, mut read) = (store.lane(id), template.clone());
                let terms = lane.terms();
                (read.id, read.organization) = (id, terms.organization);
                (read.enabled, read.version) = (lane.enabled, lane.version);
                read.enabled_at = Some(Timestamp::from_millis(lane.enabled_times));
                if let Target::Push(push) = &mut read.target {
                    push.ordering = if lane.in_order {
                        Ordering::Fifo
                    } else {
                        Ordering::None
                    };
                    push.rate_limit = terms
                        .rate_per_second
                        .and_then(|rate| RateLimit::new(rate.into()).ok());
                    push.max_in_flight = MaxInFlight::new(6).unwrap_or_default();
                }
                Arc::new(read)
            };
            ids.into_iter().map(of).collect()
        };
        self.ask(Call::Ask, read).await
    }

    async fn disable(
        &self,
        _: OrganizationId,
        id: SubscriptionId,
        version: i64,
        _: &str,
        _: bool,
    ) -> Result<bool> {
        self.ask(Call::Tell, move |store, _| store.disable(id, version))
            .await
    }

    async fn create(&self, _: shared::Subscription) -> Result<Result<shared::Subscription, Full>> {
        unreachable!("no worker does that")
    }

    async fn get(&self, _: OrganizationId, _: SubscriptionId) -> Result<Option<shared::Subscription>> {
        unreachable!("no worker does that")
    }

    async fn list(
        &self,
        _: OrganizationId,
        _: PageRequest<SubscriptionId>,
    ) -> Result<Page<shared::Subscription, SubscriptionId>> {
        unreachable!("no worker does that")
    }

    async fn patch(
        &self,
        _: OrganizationId,
        _: SubscriptionId,
        _: i64,
        _: SubscriptionPatch,
    ) -> Result<PatchOutcome> {
        unreachable!("no worker does that")
    }

    async fn delete(&self, _: OrganizationId, _: SubscriptionId) -> Result<bool> {
        unreachable!("no worker does that")
    }

    async fn rotate(
        &self,
        _: OrganizationId,
        _: SubscriptionId,
        _: i64,
        _: NewSecret,
        _: Duration,
    ) -> Result<PatchOutcome> {
        unreachable!("no worker does that")
    }

    async fn sealed_otherwise(
        &self,
        _: KeyId,
        _: Option<SubscriptionId>,
        _: u32,
    ) -> Result<Vec<SealedSecrets>> {
        unreachable!("no worker does that")
    }

    async fn reseal(&self, _: SubscriptionId, _: &Sealed, _: Sealed) -> Result<bool> {
        unreachable!("no worker does that")
    }

    async fn raise_version(&self, _: OrganizationId) -> Result<()> {
        unreachable!("no worker does that")
    }

    async fn webhook(&self, _: OrganizationId) -> Result<Option<shared::Subscription>> {
        unreachable!("no worker does that")
    }

    async fn in_force(&self, _: &[OrganizationId]) -> Result<Vec<InForce>> {
        unreachable!("there is no intake")
    }
}

/// Nothing is announced, and nothing disabled for failing.
#[async_trait]
impl Announcements for Way {
    async fn announce(&self, _: OrganizationId, _: &shared::announcement::Announcement) -> Result<()> {
        Ok(())
    }

    async fn announcements(&self, _: u32) -> Result<Vec<Announced>> {
        Ok(Vec::new())
    }

    async fn announced(&self, _: &[EventId]) -> Result<()> {
        Ok(())
    }

    async fn failed(&self, _: &[FailedAttempt]) -> Result<Vec<(SubscriptionId, Duration)>> {
        Ok(Vec::new())
    }

    async fn succeeded(&self, _: &[SubscriptionId]) -> Result<Vec<Recovered>> {
        Ok(Vec::new())
    }

    async fn disable_failing(
        &self,
        _: OrganizationId,
        _: SubscriptionId,
        _: i64,
        _: Duration,
        _: &str,
    ) -> Result<bool> {
        Ok(false)
    }
}

#[async_trait]
impl Pauses for Way {
    async fn note_pauses(&self, pauses: &[Pause]) -> Result<()> {
        let noted = pauses.to_vec();
        let note = move |store: &mut Model, now| {
            for pause in noted {
                store.note_pause(pause.subscription, pause.subscriber, now + pause.lasts);
            }
        };
        self.ask(Call::Tell, note).await?;
        for pause in pauses {
            let _ = self.whole.changes.send(Change::Pause(*pause));
        }
        Ok(())
    }

    async fn pauses(&self, _: u32) -> Result<Vec<Pause>> {
        let read = |store: &mut Model, now| {
            let of = |(subscription, subscriber, until): (_, _, Instant)| Pause {
                subscription,
                subscriber,
                lasts: until.duration_since(now),
            };
            let pauses = store.pauses().into_iter();
            pauses.filter(|(_, _, until)| *until > now).map(of).collect()
        };
        self.ask(Call::Ask, read).await
    }
}
