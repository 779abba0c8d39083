use std::sync::Arc;

use async_trait::async_trait;
use shared::{
    DeliveryKey, DeliveryState, EventPattern, OrganizationId, ReplayId, SubscriptionId, WorkerId,
    delivery::{AttemptOutcome, AttemptResult, Failure, Next},
    store::{
        ActedOn, Candidates, NewReplay, Replay, ReplayStatus, ReplayStep, Replays, Result, Store, StoreError,
    },
};

use super::*;
use crate::real_store::RealStore;

/// Delegates, but for the steps of one replay: these fail.
struct Failing {
    real: Arc<dyn Replays>,
    whose: ReplayId,
}

#[async_trait]
impl Replays for Failing {
    async fn retry(&self, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn> {
        self.real.retry(organization, delivery).await
    }

    async fn cancel(&self, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn> {
        self.real.cancel(organization, delivery).await
    }

    async fn create_replay(&self, replay: NewReplay, most: u32) -> Result<Option<Replay>> {
        self.real.create_replay(replay, most).await
    }

    async fn get_replay(&self, organization: OrganizationId, id: ReplayId) -> Result<Option<Replay>> {
        self.real.get_replay(organization, id).await
    }

    async fn list_replays(
        &self,
        organization: OrganizationId,
        subscription: SubscriptionId,
        limit: u32,
    ) -> Result<Vec<Replay>> {
        self.real.list_replays(organization, subscription, limit).await
    }

    async fn cancel_replay(&self, organization: OrganizationId, id: ReplayId) -> Result<bool> {
        self.real.cancel_replay(organization, id).await
    }

    async fn running_replays(&self, limit: u32) -> Result<Vec<(Replay, bool)>> {
        self.real.running_replays(limit).await
    }

    async fn begin_replay(&self, replay: &Replay) -> Result<Option<Replay>> {
        self.real.begin_replay(replay).await
    }

    async fn replay_candidates(&self, replay: &Replay, limit: u32) -> Result<Candidates> {
        if replay.id == self.whose {
            return Err(StoreError::Corrupt("a fault of the test's".to_owned()));
        }
        self.real.replay_candidates(replay, limit).await
    }

    async fn put_off_replay(&self, replay: &Replay, by: Duration) -> Result<()> {
        self.real.put_off_replay(replay, by).await
    }

    async fn replay_step(&self, replay: &Replay, step: &ReplayStep) -> Result<Option<u64>> {
        self.real.replay_step(replay, step).await
    }
}

/// A replay of all dead letters of a subscription.
async fn create(store: &Store, organization: OrganizationId, subscription: SubscriptionId) -> Replay {
    let new = NewReplay {
        id: ReplayId::new(),
        organization,
        subscription,
        since: None,
        until: None,
        statuses: vec![DeliveryState::DeadLetter],
        event_types: vec![EventPattern::all()],
    };
    let made = store.replays.create_replay(new, 10).await.unwrap();
    made.expect("there are few")
}

#[tokio::test]
async fn one_that_fails_does_not_hold_up_others() {
    let real = RealStore::open().await;
    let (ours, me) = (real.organization(), WorkerId::new());
    let subscription = real.subscription().await.id;
    let mut store = real.store.clone();
    store.deliveries.enlist(me, Duration::from_mins(1)).await.unwrap();
    let keys = real.take_in(3, subscription, Some(me)).await;
    let dead = keys.iter().map(|key| AttemptOutcome {
        delivery: *key,
        organization: ours,
        number: 1,
        started_at: shared::Timestamp::now(),
        duration: Duration::from_millis(1),
        result: AttemptResult::Failed {
            failure: Failure {
                kind: shared::FailureKind::Status,
                status_code: Some(500),
                detail: String::new(),
            },
            next: Next::DeadLetter,
        },
        announcement: None,
    });
    let outcomes: Vec<_> = dead.collect();
    store.deliveries.record(me, &outcomes).await.unwrap();
    // It is the first, and stays so unless it is put off.
    let failing = create(&store, ours, subscription).await;
    let other = create(&store, ours, subscription).await;
    store.replays = Arc::new(Failing {
        real: Arc::clone(&store.replays),
        whose: failing.id,
    });
    assert!(round(&store).await.unwrap(), "the other got on");
    let status = async |replay: &Replay| {
        let found = store.replays.get_replay(ours, replay.id).await.unwrap().unwrap();
        (found.status, found.opened)
    };
    assert_eq!(status(&other).await, (ReplayStatus::Done, 3));
    assert_eq!(status(&failing).await, (ReplayStatus::Running, 0));
    assert!(
        !round(&store).await.unwrap(),
        "it has its turn later, and nobody waits for it busily"
    );
}
