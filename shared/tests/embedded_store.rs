//! What is special to the store on SQLite: crashes, changes that share a transaction, a file that cannot be written,
//! and retention by deleting. What every engine does is in the conformance suite.

mod support;

use std::time::Duration;

use bytes::Bytes;
use shared::{
    AcceptedEvent, DedupId, DeliveryKey, DeliveryStatus, EventId, EventStatus, EventType, KeyHash, KeyId,
    OrganizationId, Payload, Scopes, SubscriptionId, Tier, Timestamp, WorkerId,
    delivery::{AttemptOutcome, AttemptResult},
    statistics::Tally,
    store::{
        EventFilter, IntakeBatch, IntakeOutcome, Lease, Minute, NewKey, Order, PageRequest, PlannedDelivery,
        Retention, Store, StoreError, SubscriptionStats, sqlite,
    },
};
use sqlx::{ConnectOptions as _, SqliteConnection, sqlite::SqliteConnectOptions};
use support::Directory;
use uuid::Uuid;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// A store with one organization, its inbox, and a worker.
struct Setting {
    store: Store,
    organization: OrganizationId,
    inbox: SubscriptionId,
    worker: WorkerId,
}

async fn opened(directory: &Directory) -> Store {
    let store = sqlite::open(directory.path()).await.unwrap();
    store.keeper.migrate().await.unwrap();
    store
}

impl Setting {
    async fn new(directory: &Directory) -> Self {
        let store = opened(directory).await;
        let organization = OrganizationId::new();
        let key = NewKey {
            id: KeyId::new(),
            organization,
            name: "first".to_owned(),
            hint: "trg_live_abcd".to_owned(),
            hash: KeyHash([7; 32]),
            scopes: Scopes::all(),
            expires_at: None,
        };
        store
            .organizations
            .create(organization, "acme", Tier::Free, key)
            .await
            .unwrap();
        let in_force = store.subscriptions.in_force(&[organization]).await.unwrap();
        let inbox = in_force[0].subscriptions[0].id;
        let worker = WorkerId::new();
        store.deliveries.enlist(worker, HOUR).await.unwrap();
        Self {
            store,
            organization,
            inbox,
            worker,
        }
    }

    fn event(&self, id: EventId) -> AcceptedEvent {
        AcceptedEvent {
            id,
            former_ids: Vec::new(),
            organization: self.organization,
            event_type: EventType::parse("user.created").unwrap(),
            dedup_id: None,
            received_at: Timestamp::now(),
            occurred_at: None,
            source: None,
            trace: None,
            payload: Payload::from_trusted(Bytes::from_static(b"{ \"b\":1.0, \"a\":\"\xc3\xa9\" }")).unwrap(),
        }
    }

    /// Takes events in, for the inbox.
    async fn take_in(&self, events: &[AcceptedEvent], version: i64) -> Result<IntakeOutcome, StoreError> {
        let deliveries: Vec<PlannedDelivery> = (0..events.len())
            .map(|event| PlannedDelivery {
                event,
                subscription: self.inbox,
                held: true,
            })
            .collect();
        let batch = IntakeBatch {
            worker: self.worker,
            events,
            deliveries: &deliveries,
            versions: &[(self.organization, version)],
            repeats: &[],
        };
        self.store.events.intake(&batch).await
    }

    async fn stored(&self, count: usize) -> Vec<EventId> {
        let ids: Vec<EventId> = (0..count).map(|_| EventId::new()).collect();
        let events: Vec<AcceptedEvent> = ids.iter().map(|id| self.event(*id)).collect();
        let outcome = self.take_in(&events, 1).await.unwrap();
        let IntakeOutcome::Stored(stored) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(stored.iter().map(|event| event.id).collect::<Vec<_>>(), ids);
        assert!(stored.windows(2).all(|pair| pair[0].seq < pair[1].seq));
        ids
    }

    async fn count(&self, filter: &EventFilter) -> u64 {
        let counted = self.store.events.count(self.organization, filter, 10_000).await;
        counted.unwrap()
    }

    async fn listed(&self) -> Vec<EventId> {
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let page = PageRequest { after, limit: 70 };
            let list = self
                .store
                .events
                .list(
                    self.organization,
                    &EventFilter::default(),
                    Order::OldestFirst,
                    page,
                    0,
                )
                .await
                .unwrap();
            ids.extend(list.items.iter().map(|event| event.id));
            after = list.next;
            if after.is_none() {
                return ids;
            }
        }
    }

    fn delivered(&self, event: EventId) -> AttemptOutcome {
        AttemptOutcome {
            delivery: DeliveryKey {
                event,
                subscription: self.inbox,
            },
            organization: self.organization,
            number: 1,
            started_at: Timestamp::now(),
            announcement: None,
            duration: Duration::from_millis(12),
            result: AttemptResult::Delivered { status_code: 204 },
        }
    }
}

fn old_id(age: Duration) -> EventId {
    let millis = u64::try_from(Timestamp::now().minus(age).millis()).unwrap();
    let random = Uuid::new_v4().into_bytes()[..10].try_into().unwrap();
    EventId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

async fn file(directory: &Directory) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(directory.path().join("store.db"))
        .connect()
        .await
        .unwrap()
}

fn status(status: EventStatus) -> EventFilter {
    EventFilter {
        statuses: vec![status],
        ..EventFilter::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_survives_a_crash_and_a_close() {
    let directory = Directory::new();
    let setting = Setting::new(&directory).await;
    let ids = setting.stored(300).await;
    let outcomes: Vec<AttemptOutcome> = ids[..100].iter().map(|id| setting.delivered(*id)).collect();
    let recorded = setting
        .store
        .deliveries
        .record(setting.worker, &outcomes)
        .await
        .unwrap();
    assert_eq!(recorded.len(), 100);

    let crashed = directory.as_after_a_crash();
    let recovered = Setting {
        store: opened(&crashed).await,
        ..setting
    };
    assert_eq!(recovered.listed().await, ids);
    assert_eq!(recovered.count(&status(EventStatus::Delivered)).await, 100);
    assert_eq!(recovered.count(&status(EventStatus::Pending)).await, 200);
    let event = recovered
        .store
        .events
        .get(recovered.organization, ids[0])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(event.payload, "{ \"b\":1.0, \"a\":\"é\" }");
    assert_eq!(event.deliveries[0].log[0].status_code, Some(204));
    // Nobody who held something has lived on.
    let event = recovered
        .store
        .events
        .get(recovered.organization, ids[299])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(event.deliveries[0].status, DeliveryStatus::Pending);
    let lease = recovered.store.deliveries.renew(recovered.worker, HOUR).await;
    assert_eq!(lease.unwrap(), Lease::Lost);

    recovered.store.keeper.close().await;
    assert!(!crashed.path().join("store.db-wal").exists());
    assert!(matches!(
        recovered.take_in(&[], 1).await,
        Err(StoreError::Unavailable(_))
    ));
    let reopened = Setting {
        store: opened(&crashed).await,
        ..recovered
    };
    assert_eq!(reopened.listed().await, ids);
    let more = reopened.stored(1).await;
    assert_eq!(
        reopened.listed().await.last(),
        more.first(),
        "numbers go on where they were"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_share_a_transaction_fail_alone() {
    let directory = Directory::new();
    let setting = Setting::new(&directory).await;
    // While somebody else holds the file, everything waits in the writer's channel, to go together afterwards.
    let mut lock = file(&directory).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
    let good: Vec<Vec<AcceptedEvent>> = (0..20)
        .map(|_| vec![setting.event(EventId::new()), setting.event(EventId::new())])
        .collect();
    let bad: Vec<Vec<AcceptedEvent>> = (0..20)
        .map(|_| {
            vec![
                setting.event(EventId::new()),
                setting.event(EventId::from_uuid(Uuid::new_v4())),
            ]
        })
        .collect();
    let mut all = Vec::new();
    for (good, bad) in good.iter().zip(&bad) {
        all.push(setting.take_in(good, 1));
        all.push(setting.take_in(bad, 1));
        all.push(setting.take_in(good, 7));
    }
    let all = futures_util::future::join_all(all);
    let unlock = async {
        sqlx::query("ROLLBACK").execute(&mut lock).await.unwrap();
    };
    let (outcomes, ()) = tokio::join!(all, unlock);
    for three in outcomes.chunks(3) {
        assert!(matches!(&three[0], Ok(IntakeOutcome::Stored(stored)) if stored.len() == 2));
        assert!(matches!(&three[1], Err(StoreError::Refused(_))));
        assert!(matches!(&three[2], Ok(IntakeOutcome::Stale)));
    }
    assert_eq!(setting.listed().await.len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_is_an_outage_that_ends() {
    let directory = Directory::new();
    let setting = Setting::new(&directory).await;
    let event = [setting.event(EventId::new())];
    let mut lock = file(&directory).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
    let outage = setting.take_in(&event, 1).await.unwrap_err();
    assert!(outage.is_transient(), "{outage}");
    assert_eq!(setting.listed().await, [], "reads go on");
    sqlx::query("ROLLBACK").execute(&mut lock).await.unwrap();
    assert!(
        matches!(setting.take_in(&event, 1).await, Ok(IntakeOutcome::Stored(stored)) if stored.len() == 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_past_its_retention_expires_is_shown_for_a_day_and_goes() {
    let directory = Directory::new();
    let setting = Setting::new(&directory).await;
    let (old, closed, young) = (old_id(DAY * 4), old_id(DAY * 4), EventId::new());
    let mut events = [old, closed, young].map(|id| setting.event(id));
    events[0].dedup_id = Some(DedupId::parse("key").unwrap());
    events.sort_by_key(|event| event.id);
    setting.take_in(&events, 1).await.unwrap();
    let many: Vec<AcceptedEvent> = (0..600).map(|_| setting.event(old_id(DAY * 5 / 2))).collect();
    setting.take_in(&many, 1).await.unwrap();
    setting
        .store
        .deliveries
        .record(setting.worker, &[setting.delivered(closed)])
        .await
        .unwrap();

    let first = setting.store.keeper.keep(DAY * 2).await.unwrap();
    assert_eq!(
        first,
        Retention {
            expired: 601,
            removed: 1,
            removed_early: 0,
            set_aside_removed: 0
        },
        "what had ended goes, what has just expired stays"
    );
    let shown = setting
        .store
        .events
        .get(setting.organization, old)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(shown.status(), EventStatus::Expired);
    assert_eq!(shown.deliveries[0].status, DeliveryStatus::Expired);
    assert_eq!(setting.count(&status(EventStatus::Expired)).await, 601);
    assert_eq!(setting.count(&status(EventStatus::Pending)).await, 1);

    // A day later.
    let mut file = file(&directory).await;
    sqlx::query("UPDATE deliveries SET updated_at = updated_at - 90000000 WHERE state = 'expired'")
        .execute(&mut file)
        .await
        .unwrap();
    sqlx::query("UPDATE dedup_keys SET expires_at = 1")
        .execute(&mut file)
        .await
        .unwrap();
    let second = setting.store.keeper.keep(DAY * 2).await.unwrap();
    assert_eq!(second.expired, 0);
    assert_eq!(second.removed, 1, "the others are not old enough");
    let third = setting.store.keeper.keep(DAY).await.unwrap();
    assert_eq!(third.removed, 600);
    assert_eq!(setting.listed().await, [young]);
    for table in ["deliveries", "events"] {
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(&mut file)
            .await
            .unwrap();
        assert_eq!(rows, 1, "{table}");
    }
    let keys: i64 = sqlx::query_scalar("SELECT count(*) FROM dedup_keys")
        .fetch_one(&mut file)
        .await
        .unwrap();
    assert_eq!(keys, 0);
}

#[tokio::test]
async fn counts_go_after_an_hour_and_the_last_times_stay() {
    let directory = Directory::new();
    let Setting { store, inbox, .. } = Setting::new(&directory).await;
    let mut tally = Tally::default();
    tally.add(None, Duration::from_millis(4));
    let minutes: Vec<Minute> = (0..600)
        .map(|number| Minute {
            subscription: inbox,
            number,
            tally: tally.clone(),
            success_ago: Some(Duration::from_secs(9)),
            failure_ago: None,
        })
        .collect();
    store
        .insight
        .write_minutes(WorkerId::new(), &minutes)
        .await
        .unwrap();
    let age = async |by: Duration| {
        let mut file = SqliteConnectOptions::new()
            .filename(directory.path().join("store.db"))
            .connect()
            .await
            .unwrap();
        sqlx::query("UPDATE attempt_minutes SET at = at - ?")
            .bind(i64::try_from(by.as_millis()).unwrap())
            .execute(&mut file)
            .await
            .unwrap();
    };
    let stats = async || store.insight.subscription_stats(inbox).await.unwrap();
    age(Duration::from_mins(59)).await;
    let before = stats().await;
    assert_eq!(before.tally.attempts(), 600);
    age(Duration::from_secs(61)).await;
    assert_eq!(stats().await.tally.attempts(), 0);
    store.keeper.keep(DAY).await.unwrap();
    let expected = SubscriptionStats {
        last_success_at: before.last_success_at,
        ..SubscriptionStats::default()
    };
    assert_eq!(stats().await, expected);
    // An older one does not take its place.
    let older = Minute {
        success_ago: Some(2 * HOUR),
        ..minutes[0].clone()
    };
    store
        .insight
        .write_minutes(WorkerId::new(), &[older])
        .await
        .unwrap();
    age(2 * HOUR).await;
    store.keeper.keep(DAY).await.unwrap();
    assert_eq!(stats().await, expected);
}
