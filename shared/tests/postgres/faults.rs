//! Plans that stay bounded, and a server that is busy, away, or hangs.

use std::{
    slice::from_ref,
    time::{Duration, Instant},
};

use shared::{
    AcceptedEvent, DeliveryStatus, EventStatus,
    delivery::Next,
    store::{Change, EventFilter, IntakeOutcome, Order},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, query, raw_sql};
use tokio::{net::TcpListener, time::timeout};

use super::{number, on_a_store_at, sql, store_at};
use crate::conformance::world::{
    MINUTE, event, failed, first, get, inbox, keyed, organization, push, succeeded, take_in, try_take_in,
    worker,
};

const DAY: Duration = Duration::from_hours(24);

#[tokio::test]
async fn open_transactions_of_others_hide_nothing() {
    on_a_store_at(|store, url| async move {
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
    on_a_store_at(|store, url| async move {
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

        for round in 0..20_u32 {
            let events: Vec<_> = (0..50).map(|n| keyed(ours, &format!("{round}-{n}"))).collect();
            take_in(&store, me, &events, &[(mine, round.is_multiple_of(2))]).await;
            let claimed = store.deliveries.claim(me, &[(mine, 50)]).await.unwrap();
            assert_eq!(claimed.len(), if round.is_multiple_of(2) { 0 } else { 50 });
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
            assert_eq!(store.deliveries.lanes_due(shared::WorkerId::new(), None, 10).await.unwrap(), [full]);
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

#[tokio::test]
async fn a_claim_is_bounded_in_bytes() {
    on_a_store_at(|store, _| async move {
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
    on_a_store_at(|store, url| async move {
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
                Ok(made) => break made.expect("room").id,
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
        // So that a readiness check, which has two seconds, can say what is away.
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(store.keeper.migrate().await.unwrap_err().is_transient());
        assert!(store.keeper.keep(DAY).await.unwrap_err().is_transient());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let _changes = store.keeper.changes();
        store.keeper.close().await;
    }
    accepting.abort();
}

/// A process is not ready while another one is still at the schema: its statements would fail.
#[tokio::test]
async fn a_schema_that_is_not_whole_is_not_ready() {
    on_a_store_at(|store, url| async move {
        store.keeper.ping().await.unwrap();
        let mut database = PgConnection::connect(&url).await.unwrap();
        let last = "(SELECT max(version) FROM _sqlx_migrations)";
        for (success, is_ready) in [(false, false), (true, true)] {
            raw_sql(sqlx::AssertSqlSafe(format!(
                "UPDATE _sqlx_migrations SET success = {success} WHERE version = {last}"
            )))
            .execute(&mut database)
            .await
            .unwrap();
            let looked = store.keeper.ping().await;
            assert_eq!(looked.is_ok(), is_ready, "{looked:?}");
            assert!(looked.err().is_none_or(|error| error.is_transient()));
        }
    })
    .await;
}

/// A worker asks for a lane; before it gets to the row, another worker comes to be, and to own the lane.
#[tokio::test]
async fn a_lane_is_not_taken_from_an_owner_who_came_after_it_was_asked_for() {
    on_a_store_at(|store, url| async move {
        let organization = organization(&store).await.id;
        let lane = push(&store, organization).await.id;
        let (old, other) = (worker(&store).await, worker(&store).await);
        assert_eq!(store.deliveries.own(old, &[lane]).await.unwrap(), [lane]);
        let mut locking = PgConnection::connect(&url).await.unwrap();
        raw_sql("BEGIN; SELECT FROM lanes FOR UPDATE")
            .execute(&mut locking)
            .await
            .unwrap();
        let asking = tokio::spawn({
            let deliveries = store.deliveries.clone();
            async move { deliveries.own(other, &[lane]).await.unwrap() }
        });
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while number(&url, waiting).await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let new = worker(&store).await;
        let hand_over = format!("UPDATE lanes SET owner = '{}'; COMMIT", new.uuid());
        raw_sql(AssertSqlSafe(hand_over))
            .execute(&mut locking)
            .await
            .unwrap();
        assert!(asking.await.unwrap().is_empty());
        assert_eq!(store.deliveries.own(new, &[lane]).await.unwrap(), [lane]);
    })
    .await;
}

/// The owner of a lane claims from it; before it gets to the rows, another takes one, by a claim that began before there was an owner,
/// or is done with it.
#[tokio::test]
async fn what_another_takes_meanwhile_is_not_claimed_in_order_nor_what_follows() {
    on_a_store_at(|store, url| async move {
        let organization = organization(&store).await.id;
        for (meanwhile, expected) in [
            ("lease_owner = $OTHER", &[0][..]),
            ("due_at = now() + interval '1 minute', state = 'retrying'", &[0]),
            ("due_at = NULL, state = 'acknowledged'", &[0, 2]),
        ] {
            let lane = push(&store, organization).await.id;
            let (me, other) = (worker(&store).await, worker(&store).await);
            let events: Vec<AcceptedEvent> = (0..3).map(|_| event(organization)).collect();
            take_in(&store, me, &events, &[(lane, false)]).await;
            assert_eq!(store.deliveries.own(me, &[lane]).await.unwrap(), [lane]);
            let mut taking = PgConnection::connect(&url).await.unwrap();
            let change = meanwhile.replace("$OTHER", &format!("'{}'", other.uuid()));
            let take = format!(
                "BEGIN; UPDATE deliveries SET {change} WHERE event_id = '{}' AND subscription_id = '{}'",
                events[1].id.uuid(),
                lane.uuid()
            );
            raw_sql(AssertSqlSafe(take)).execute(&mut taking).await.unwrap();
            let claiming = tokio::spawn({
                let deliveries = store.deliveries.clone();
                async move { deliveries.claim_in_order(me, lane, 10).await.unwrap() }
            });
            let waiting = "SELECT count(*) FROM pg_stat_activity
                           WHERE datname = current_database() AND wait_event_type = 'Lock'";
            while number(&url, waiting).await == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            raw_sql("COMMIT").execute(&mut taking).await.unwrap();
            let claimed = claiming.await.unwrap();
            let claimed: Vec<_> = claimed.iter().map(|claimed| claimed.key.event).collect();
            let expected: Vec<_> = expected.iter().map(|at| events[*at].id).collect();
            assert_eq!(claimed, expected, "{meanwhile}");
            let mine = format!(
                "SELECT count(*) FROM deliveries WHERE lease_owner = '{}'",
                me.uuid()
            );
            let mine = number(&url, &mine).await;
            assert_eq!(usize::try_from(mine), Ok(expected.len()), "{meanwhile}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_statement_that_waits_for_a_lock_gives_up_and_nothing_is_lost() {
    on_a_store_at(|store, url| async move {
        let ours = organization(&store).await.id;
        let (push, me) = (push(&store, ours).await.id, worker(&store).await);
        let posted = event(ours);
        take_in(&store, me, from_ref(&posted), &[(push, true)]).await;
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
