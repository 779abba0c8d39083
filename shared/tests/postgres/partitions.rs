//! Migrations at once, partitions, keys whose time is up, and the order of intake.

use std::{slice::from_ref, time::Duration};

use shared::{
    AcceptedEvent, EventId, EventStatus, Timestamp,
    store::{EventFilter, Order, StoreError},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, raw_sql};
use tokio::task::JoinSet;
use uuid::{NoContext, Uuid};

use super::{number, on_a_database, on_a_store_at, sql, store_at};
use crate::conformance::world::{
    event, first, get, inbox, keyed, organization, repeat_of, take_in, try_take_in, worker,
};

const DAY: Duration = Duration::from_hours(24);

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
    on_a_store_at(|store, url| async move {
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
    on_a_store_at(|store, _| async move {
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
    on_a_store_at(|store, url| async move {
        let ours = organization(&store).await.id;
        let (inbox, me) = (inbox(&store, ours).await, worker(&store).await);
        let to_inbox = [(inbox, false)];
        let (first, second, third) = (keyed(ours, "k"), keyed(ours, "k"), keyed(ours, "k"));
        take_in(&store, me, from_ref(&first), &to_inbox).await;
        take_in(&store, me, from_ref(&second), &to_inbox).await;
        let end_window = "UPDATE dedup_keys SET expires_at = now() - interval '1 second'";
        sql(&url, end_window).await;

        // A frame that comes again, long after: neither a second event nor the owner of the key.
        assert!(take_in(&store, me, from_ref(&second), &to_inbox).await.is_empty());
        assert_eq!(get(&store, ours, second.id).await.id, first.id);
        assert_eq!(
            take_in(&store, me, from_ref(&third), &to_inbox).await[0].id,
            third.id
        );
        assert!(take_in(&store, me, from_ref(&first), &to_inbox).await.is_empty());
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
    on_a_store_at(|store, url| async move {
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
    on_a_store_at(|store, url| async move {
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
