//! What is PostgreSQL's own: migrations at once, partitions, keys whose time is up, plans, and a server that is away.

use std::time::{Duration, Instant};

use shared::{
    AcceptedEvent, DeliveryStatus, EventId, EventStatus, Timestamp,
    delivery::Next,
    store::{Change, EventFilter, IntakeOutcome, Order, Store, StoreError},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, query, raw_sql};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use uuid::{NoContext, Uuid};

use super::{on_a_database, store_at};
use crate::conformance::world::{
    MINUTE, event, failed, first, get, inbox, keyed, organization, push, repeat_of, succeeded, take_in,
    try_take_in, worker,
};

const DAY: Duration = Duration::from_hours(24);

async fn sql(url: &str, statements: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    raw_sql(AssertSqlSafe(statements.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

async fn number(url: &str, statement: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let row = query(AssertSqlSafe(statement.to_owned()))
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    row.get(0)
}

/// As the checks of every engine have it, with the URL as well.
async fn on_a_store<F>(check: impl FnOnce(Store, String) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    on_a_database(|url| {
        let store = store_at(&url);
        let check = check(store.clone(), url);
        Box::pin(async move {
            store.keeper.migrate().await.expect("a schema");
            check.await;
            store.keeper.close().await;
        })
    })
    .await;
}

fn id_of(at: Timestamp) -> EventId {
    let seconds = u64::try_from(at.seconds()).unwrap();
    EventId::from_uuid(Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, seconds, 0)))
}

#[tokio::test]
async fn many_migrate_an_empty_database_at_once() {
    on_a_database(|url| {
        Box::pin(async move {
            let mut tasks = JoinSet::new();
            for _ in 0..8 {
                let store = store_at(&url);
                tasks.spawn(async move { store.keeper.migrate().await.map(|()| store) });
            }
            let stores: Vec<_> = tasks.join_all().await.into_iter().map(Result::unwrap).collect();
            let ours = organization(&stores[0]).await.id;
            let (inbox, me) = (inbox(&stores[1], ours).await, worker(&stores[2]).await);
            assert_eq!(
                take_in(&stores[3], me, &[event(ours)], &[(inbox, false)])
                    .await
                    .len(),
                1
            );
        })
    })
    .await;
}

#[tokio::test]
async fn an_older_version_starts_on_a_newer_schema() {
    on_a_store(|store, url| async move {
        sql(
            &url,
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'of a newer version', true, '', 0)",
        )
        .await;
        store.keeper.migrate().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_id_far_from_today_is_refused_and_nothing_else_is_written() {
    on_a_store(|store, _| async move {
        let ours = organization(&store).await.id;
        let (inbox, me) = (inbox(&store, ours).await, worker(&store).await);
        let now = Timestamp::now();
        for far in [
            id_of(now.minus(10 * DAY)),
            id_of(now.plus(10 * DAY)),
            EventId::from_uuid(Uuid::new_v4()),
        ] {
            let (good, bad) = (
                keyed(ours, "k"),
                AcceptedEvent {
                    id: far,
                    ..event(ours)
                },
            );
            let error = try_take_in(&store, me, &[good.clone(), bad], &[], &[(inbox, false)])
                .await
                .unwrap_err();
            assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
            assert!(store.events.get(ours, good.id).await.unwrap().is_none());
        }
        for near in [id_of(now.minus(DAY)), id_of(now.plus(2 * DAY)), EventId::new()] {
            let good = AcceptedEvent {
                id: near,
                ..event(ours)
            };
            assert_eq!(take_in(&store, me, &[good], &[(inbox, false)]).await.len(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_whose_time_is_up_is_taken_over_or_forgotten() {
    on_a_store(|store, url| async move {
        let ours = organization(&store).await.id;
        let (inbox, me) = (inbox(&store, ours).await, worker(&store).await);
        let to_inbox = [(inbox, false)];
        let (first, second, third) = (keyed(ours, "k"), keyed(ours, "k"), keyed(ours, "k"));
        take_in(&store, me, std::slice::from_ref(&first), &to_inbox).await;
        take_in(&store, me, std::slice::from_ref(&second), &to_inbox).await;
        let end_window = "UPDATE dedup_keys SET expires_at = now() - interval '1 second'";
        sql(&url, end_window).await;

        // A frame that comes again, long after: neither a second event nor the owner of the key.
        assert!(take_in(&store, me, std::slice::from_ref(&second), &to_inbox).await.is_empty());
        assert_eq!(get(&store, ours, second.id).await.id, first.id);
        assert_eq!(
            take_in(&store, me, std::slice::from_ref(&third), &to_inbox).await[0].id,
            third.id
        );
        assert!(take_in(&store, me, std::slice::from_ref(&first), &to_inbox).await.is_empty());
        let (old, new) = (
            get(&store, ours, first.id).await,
            get(&store, ours, third.id).await,
        );
        assert_eq!(
            (old.id, old.repeats, new.id, new.repeats),
            (first.id, 1, third.id, 0)
        );

        // Many want it at once.
        sql(&url, end_window).await;
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let store = store.clone();
            tasks.spawn(async move { take_in(&store, me, &[keyed(ours, "k")], &to_inbox).await.len() });
        }
        assert_eq!(tasks.join_all().await.iter().sum::<usize>(), 1);

        sql(&url, end_window).await;
        store.keeper.keep(30 * DAY).await.unwrap();
        assert_eq!(number(&url, "SELECT count(*) FROM dedup_keys").await, 0);
    })
    .await;
}

const PARTITIONS: &str = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '_p[0-9]{8}$'";

#[tokio::test]
async fn partitions_leave_after_retention_and_an_interrupted_round_is_finished() {
    on_a_store(|store, url| async move {
        let ours = organization(&store).await.id;
        let (inbox, me) = (inbox(&store, ours).await, worker(&store).await);
        assert_eq!(number(&url, PARTITIONS).await, 4 * 6);
        let midday = |days_back: u32| {
            let now = Timestamp::now();
            let midnight = now.minus(Duration::from_millis(u64::try_from(now.millis().rem_euclid(86_400_000)).unwrap()));
            id_of(midnight.minus(DAY * days_back).plus(DAY / 2))
        };
        let old = AcceptedEvent { id: midday(2), ..keyed(ours, "k") };
        let young = event(ours);
        take_in(&store, me, &[old.clone(), young.clone()], &[(inbox, false)]).await;
        try_take_in(&store, me, &[], &[repeat_of(&old, true)], &[]).await.unwrap();

        // As a crash leaves them: one detached and not dropped, one detached by half.
        let day = |id: EventId| id.created_at().unwrap().to_string()[..10].replace('-', "");
        let (two_back, ahead) = (day(old.id), day(id_of(Timestamp::now().plus(3 * DAY))));
        sql(&url, &format!("ALTER TABLE attempts DETACH PARTITION attempts_p{two_back}")).await;
        let mut reader = PgConnection::connect(&url).await.unwrap();
        raw_sql("BEGIN; SELECT count(*) FROM event_aliases").execute(&mut reader).await.unwrap();
        let half = format!(
            "SET statement_timeout = '200ms'; ALTER TABLE event_aliases DETACH PARTITION event_aliases_p{ahead} CONCURRENTLY"
        );
        let mut connection = PgConnection::connect(&url).await.unwrap();
        for statement in half.split("; ") {
            let _gives_up = raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await;
        }
        reader.close().await.unwrap();
        assert_eq!(number(&url, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending").await, 1);

        let kept = store.keeper.keep(Duration::ZERO).await.unwrap();
        assert_eq!((kept.expired, kept.removed), (1, 1));
        assert!(store.events.get(ours, old.id).await.unwrap().is_none());
        assert_eq!(get(&store, ours, young.id).await.status(), EventStatus::Pending);
        assert_eq!(number(&url, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending").await, 0);
        assert_eq!(number(&url, PARTITIONS).await, 4 * 5 - 1);
        store.keeper.migrate().await.unwrap();
        assert_eq!(number(&url, PARTITIONS).await, 4 * 6, "made again, all of them");
        let attached = "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent WHERE c.relkind = 'p'";
        assert_eq!(number(&url, attached).await, 4 * 6);
        assert_eq!(take_in(&store, me, &[event(ours)], &[(inbox, false)]).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn order_goes_on_after_a_move_to_another_server() {
    on_a_store(|store, url| async move {
        let ours = organization(&store).await.id;
        let (inbox, me) = (inbox(&store, ours).await, worker(&store).await);
        let before = take_in(&store, me, &[event(ours)], &[(inbox, false)]).await[0];
        // There its transactions had far higher numbers.
        sql(
            &url,
            "UPDATE events SET seq = seq + (5000000000::bigint << 18);
             UPDATE deliveries SET seq = seq + (5000000000::bigint << 18);
             UPDATE intake_order SET system_identifier = 1",
        )
        .await;
        store.keeper.migrate().await.unwrap();
        let after = take_in(&store, me, &[event(ours)], &[(inbox, false)]).await[0];
        assert!(after.seq > before.seq + (5_000_000_000 << 18));
        let listed = store
            .events
            .list(ours, &EventFilter::default(), Order::OldestFirst, first(10), 0)
            .await
            .unwrap();
        assert_eq!(
            listed.items.iter().map(|event| event.id).collect::<Vec<_>>(),
            [before.id, after.id]
        );
        let offset = number(&url, "SELECT xid_offset FROM intake_order").await;
        store.keeper.migrate().await.unwrap();
        assert_eq!(number(&url, "SELECT xid_offset FROM intake_order").await, offset);
    })
    .await;
}

#[tokio::test]
async fn open_transactions_of_others_hide_nothing() {
    on_a_store(|store, url| async move {
        let ours = organization(&store).await.id;
        let (inbox, me) = (inbox(&store, ours).await, worker(&store).await);
        let mut other = PgConnection::connect(&url).await.unwrap();
        raw_sql("CREATE TABLE others (n int); BEGIN; INSERT INTO others VALUES (1)")
            .execute(&mut other)
            .await
            .unwrap();
        take_in(&store, me, &[event(ours)], &[(inbox, false)]).await;
        let all = EventFilter::default();
        let listed = store
            .events
            .list(ours, &all, Order::OldestFirst, first(10), 0)
            .await
            .unwrap();
        assert_eq!(listed.items.len(), 1);

        // An intake under way hides what comes after it, whether or not its rows can be seen.
        raw_sql("ROLLBACK; BEGIN; SELECT pg_current_xact_id(); LOCK TABLE events IN ROW EXCLUSIVE MODE")
            .execute(&mut other)
            .await
            .unwrap();
        take_in(&store, me, &[event(ours)], &[(inbox, false)]).await;
        let listed = store
            .events
            .list(ours, &all, Order::OldestFirst, first(10), 0)
            .await
            .unwrap();
        assert_eq!(listed.items.len(), 1);
        assert_eq!(store.events.count(ours, &all, 10).await.unwrap(), 2);
        raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
        let listed = store
            .events
            .list(ours, &all, Order::OldestFirst, first(10), 0)
            .await
            .unwrap();
        assert_eq!(listed.items.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_backlog_elsewhere_is_not_read_through() {
    const BACKLOG: i64 = 200_000;
    on_a_store(|store, url| async move {
        let (ours, theirs) = (organization(&store).await.id, organization(&store).await.id);
        let (mine, full) = (push(&store, ours).await.id, push(&store, theirs).await.id);
        let me = worker(&store).await;
        // Without ANALYZE: as a partition is on its first busy minutes.
        sql(
            &url,
            &format!(
                "WITH ids AS (
                    SELECT n, (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7000'
                               || lpad(to_hex(n), 16, '0'))::uuid AS id FROM generate_series(1, {BACKLOG}) n
                 ), stored AS (
                    INSERT INTO events (id, organization_id, seq, received_at, type, payload)
                    SELECT id, '{theirs}', n, now(), 'x', '{{}}' FROM ids
                 )
                 INSERT INTO deliveries (event_id, subscription_id, organization_id, seq, due_at)
                 SELECT id, '{full}', '{theirs}', n, now() - interval '1 hour' FROM ids",
                theirs = theirs.uuid(),
                full = full.uuid(),
            ),
        )
        .await;
        let read = "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint FROM pg_stat_user_tables
                    WHERE relname ~ '^(events|deliveries|attempts|event_aliases)_p'";
        let before = number(&url, read).await;

        for round in 0..20 {
            let events: Vec<_> = (0..50).map(|n| keyed(ours, &format!("{round}-{n}"))).collect();
            take_in(&store, me, &events, &[(mine, n_is_even(round))]).await;
            let claimed = store.deliveries.claim(me, &[(mine, 50)]).await.unwrap();
            assert_eq!(claimed.len(), if n_is_even(round) { 0 } else { 50 });
            let outcomes: Vec<_> = events
                .iter()
                .enumerate()
                .map(|(n, event)| match n % 5 {
                    0 => failed(event, mine, 1, Next::Retry { after: MINUTE }),
                    _ => succeeded(event, mine, 1),
                })
                .collect();
            assert_eq!(store.deliveries.record(me, &outcomes).await.unwrap().len(), 50);
            let keys: Vec<_> = events.iter().map(|event| crate::conformance::world::key(event, mine)).collect();
            store.deliveries.release(me, &keys).await.unwrap();
            store.deliveries.still_held(me, &keys).await.unwrap();
            get(&store, ours, events[0].id).await;
            store.deliveries.acknowledge(ours, &[events[0].id, events[1].id]).await.unwrap();
            assert_eq!(store.deliveries.lanes_due(None, 10).await.unwrap(), [full]);
            let pending = EventFilter { statuses: vec![EventStatus::Pending], ..EventFilter::default() };
            for order in [Order::OldestFirst, Order::NewestFirst] {
                store.events.list(ours, &pending, order, first(50), 0).await.unwrap();
                store.events.list(theirs, &pending, order, first(5), 0).await.unwrap();
                store.events.list(theirs, &EventFilter::default(), order, first(5), 0).await.unwrap();
            }
            store.keeper.cancel_deleted().await.unwrap();
        }
        store.keeper.close().await;
        // Connections that are gone have told all that they counted.
        let mut connection = PgConnection::connect(&url).await.unwrap();
        loop {
            let others = "SELECT count(*) FROM pg_stat_activity
                          WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
            if query(others).fetch_one(&mut connection).await.unwrap().get::<i64, _>(0) == 0 {
                break;
            }
        }
        let rows = number(&url, read).await - before;
        assert!(rows < BACKLOG, "{rows} rows read");
    })
    .await;
}

const fn n_is_even(n: usize) -> bool {
    n.is_multiple_of(2)
}

#[tokio::test]
async fn a_claim_is_bounded_in_bytes() {
    on_a_store(|store, _| async move {
        let ours = organization(&store).await.id;
        let (push, me) = (push(&store, ours).await.id, worker(&store).await);
        let large = shared::Payload::from_trusted(format!("\"{}\"", "a".repeat(250_000)).into()).unwrap();
        let mut left = 60;
        for _ in 0..6 {
            let events: Vec<_> = (0..10)
                .map(|_| AcceptedEvent {
                    payload: large.clone(),
                    ..event(ours)
                })
                .collect();
            take_in(&store, me, &events, &[(push, false)]).await;
        }
        while left > 0 {
            let claimed = store.deliveries.claim(me, &[(push, 100)]).await.unwrap();
            assert!(
                (1..=35).contains(&claimed.len()) || claimed.len() == left,
                "{}",
                claimed.len()
            );
            assert!(claimed.len() <= 35);
            left -= claimed.len();
        }
    })
    .await;
}

#[tokio::test]
async fn word_of_changes_comes_back_after_the_connection_breaks() {
    on_a_store(|store, url| async move {
        let ours = organization(&store).await.id;
        let mut changes = store.keeper.changes();
        let mut next = async || {
            timeout(MINUTE, changes.recv())
                .await
                .expect("word")
                .expect("the store lives")
        };
        while next().await != Change::Everything {}
        sql(
            &url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
             AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
        )
        .await;
        while next().await != Change::Everything {}
        let made = loop {
            // The pool's connections broke as well; a call may be the one that finds out.
            match store
                .subscriptions
                .create(crate::conformance::world::new_push(ours))
                .await
            {
                Ok(made) => break made.id,
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
        };
        while next().await != Change::Subscription(made) {}
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_away_or_hangs_is_unavailable_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hanging = listener.local_addr().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let accepting = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    for address in [closed, hanging] {
        let store = store_at(&format!("postgres://nobody@{address}/nothing"));
        let began = Instant::now();
        let error = store.keeper.ping().await.unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        assert!(store.keeper.migrate().await.unwrap_err().is_transient());
        assert!(store.keeper.keep(DAY).await.unwrap_err().is_transient());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let _changes = store.keeper.changes();
        store.keeper.close().await;
    }
    accepting.abort();
}

#[tokio::test]
async fn a_statement_that_waits_for_a_lock_gives_up_and_nothing_is_lost() {
    on_a_store(|store, url| async move {
        let ours = organization(&store).await.id;
        let (push, me) = (push(&store, ours).await.id, worker(&store).await);
        let posted = event(ours);
        take_in(&store, me, std::slice::from_ref(&posted), &[(push, true)]).await;
        let mut blocker = PgConnection::connect(&url).await.unwrap();
        raw_sql("BEGIN; SELECT * FROM deliveries FOR UPDATE; LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            .execute(&mut blocker)
            .await
            .unwrap();
        let outcome = [succeeded(&posted, push, 1)];
        let (next, held) = ([event(ours)], [(push, true)]);
        let (record, intake) = tokio::join!(
            store.deliveries.record(me, &outcome),
            try_take_in(&store, me, &next, &[], &held),
        );
        assert!(record.unwrap_err().is_transient());
        assert!(intake.unwrap_err().is_transient());
        raw_sql("ROLLBACK").execute(&mut blocker).await.unwrap();
        assert_eq!(store.deliveries.record(me, &outcome).await.unwrap().len(), 1);
        let again = try_take_in(&store, me, &next, &[], &held).await.unwrap();
        assert!(matches!(again, IntakeOutcome::Stored(stored) if stored.len() == 1));
        assert_eq!(
            get(&store, ours, posted.id).await.deliveries[0].status,
            DeliveryStatus::Delivered
        );
    })
    .await;
}
