//! Replays beside intakes, and beside much that they are not asked for.

use shared::{
    AcceptedEvent, DeliveryState, EventId, EventPattern, OrganizationId, ReplayId, SubscriptionId, Timestamp,
    delivery::Next,
    store::{NewReplay, Replay, ReplayStatus, ReplayStep, Store, Walk},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, query, raw_sql};

use super::{number, on_a_store_at, sql};
use crate::conformance::world::{MINUTE, event, failed, organization, push, take_in, worker};

fn of(organization: OrganizationId, subscription: SubscriptionId, status: DeliveryState) -> NewReplay {
    NewReplay {
        id: ReplayId::new(),
        organization,
        subscription,
        since: None,
        until: None,
        statuses: vec![status],
        event_types: vec![EventPattern::all()],
    }
}

/// Takes a replay to its end: how many steps that takes, and the events that it looks at.
async fn whole(store: &Store, mut replay: Replay) -> (u32, Vec<EventId>) {
    let (mut steps, mut seen) = (0, Vec::new());
    while replay.status == ReplayStatus::Running {
        let candidates = store.replays.replay_candidates(&replay, 500).await.unwrap();
        let since = replay.since.unwrap_or(Timestamp::from_millis(0));
        let asked = |at: Timestamp| at >= since && at < replay.until;
        let events = candidates.events.iter().filter(|event| asked(event.received_at));
        let step = ReplayStep {
            events: events.map(|event| event.event).collect(),
            after_seq: candidates.after_seq,
            after_id: candidates.after_id,
            looked_at: candidates.events.len() as u64,
            done: candidates.last,
        };
        seen.extend(candidates.events.iter().map(|event| event.event));
        store.replays.replay_step(&replay, &step).await.unwrap().unwrap();
        replay = store
            .replays
            .get_replay(replay.organization, replay.id)
            .await
            .unwrap()
            .unwrap();
        steps += 1;
    }
    (steps, seen)
}

/// An intake waits, and behind it others are committed and end: a replay made by then has all of that, whichever way it goes.
#[tokio::test]
async fn nothing_is_left_out_that_was_under_way() {
    on_a_store_at(|store, url| async move {
        let (ours, me) = (organization(&store).await.id, worker(&store).await);
        let push = push(&store, ours).await.id;
        let mut intake = PgConnection::connect(&url).await.unwrap();
        let ids = [EventId::new(), EventId::new()];
        raw_sql(AssertSqlSafe(format!(
            "BEGIN;
             INSERT INTO events (id, organization_id, seq, received_at, type, payload)
             SELECT '{id}', '{ours}', (pg_current_xact_id()::text::bigint + xid_offset) << 18, now(), 'x', '{{}}' FROM intake_order;
             INSERT INTO deliveries (event_id, subscription_id, organization_id, seq, state)
             SELECT id, '{push}', organization_id, seq, 'dead_letter' FROM events",
            id = ids[0].uuid(),
            ours = ours.uuid(),
            push = push.uuid(),
        )))
        .execute(&mut intake)
        .await
        .unwrap();
        let behind = AcceptedEvent { id: ids[1], ..event(ours) };
        take_in(&store, me, std::slice::from_ref(&behind), &[(push, true)]).await;
        let outcome = [failed(&behind, push, 1, Next::DeadLetter)];
        store.deliveries.record(me, &outcome).await.unwrap();

        let dead = of(ours, push, DeliveryState::DeadLetter);
        let since = Some(Timestamp::now().minus(MINUTE));
        let mut made = Vec::new();
        for (since, statuses) in [
            (None, vec![DeliveryState::DeadLetter]),
            (None, vec![DeliveryState::Delivered, DeliveryState::DeadLetter]),
            (since, vec![DeliveryState::Delivered, DeliveryState::DeadLetter]),
        ] {
            let until = Some(Timestamp::now().plus(MINUTE));
            let wanted = NewReplay { id: ReplayId::new(), since, until, statuses, ..dead.clone() };
            let replay = store.replays.create_replay(wanted, 10).await.unwrap().unwrap();
            assert!(store.replays.begin_replay(&replay).await.unwrap().is_none(), "an intake is under way");
            made.push(replay);
        }
        raw_sql("COMMIT").execute(&mut intake).await.unwrap();
        let mut walks = Vec::new();
        for replay in made {
            let begun = store.replays.begin_replay(&replay).await.unwrap().unwrap();
            walks.push(begun.way.unwrap().walk);
            let (_, mut seen) = whole(&store, begun).await;
            seen.sort_unstable();
            assert_eq!(seen, ids);
        }
        assert_eq!(walks, [Walk::DeadLetters, Walk::Order, Walk::Time]);
    })
    .await;
}

/// A day of one organization's, of which ten minutes are asked for: neither the rest of the day is read, nor what lies beside.
#[tokio::test]
async fn a_window_of_a_full_day_is_all_that_is_read() {
    const DAY: i64 = 200_000;
    on_a_store_at(|store, url| async move {
        let ours = organization(&store).await.id;
        let (push, other) = (push(&store, ours).await.id, push(&store, ours).await.id);
        let now = Timestamp::now();
        let from = now.minus(20 * 60 * MINUTE);
        // One every 0.36 s. To one subscription all went well, and to the other nothing. Without ANALYZE, as it is first.
        sql(
            &url,
            &format!(
                "WITH ids AS (
                    SELECT n, {from} + n * 360 AS at, (lpad(to_hex({from} + n * 360), 12, '0') || '7000' || lpad(to_hex(n), 16, '0'))::uuid AS id
                    FROM generate_series(0, {DAY} - 1) n
                 ), stored AS (
                    INSERT INTO events (id, organization_id, seq, received_at, type, payload)
                    SELECT id, '{ours}'::uuid, n, to_timestamp(at / 1000.0), 'x', '{{}}' FROM ids
                 )
                 INSERT INTO deliveries (event_id, subscription_id, organization_id, seq, state)
                 SELECT id, '{push}'::uuid, '{ours}'::uuid, n, 'delivered' FROM ids
                 UNION ALL SELECT id, '{other}'::uuid, '{ours}'::uuid, n, 'dead_letter' FROM ids",
                from = from.millis(),
                ours = ours.uuid(),
                push = push.uuid(),
                other = other.uuid(),
            ),
        )
        .await;
        let since = from.plus(10 * 60 * MINUTE);
        let window = |replay| NewReplay { since: Some(since), until: Some(since.plus(10 * MINUTE)), ..replay };
        for (replay, walk) in [
            (window(of(ours, push, DeliveryState::Delivered)), Walk::Time),
            (window(of(ours, other, DeliveryState::DeadLetter)), Walk::Time),
            (window(of(ours, other, DeliveryState::Cancelled)), Walk::Time),
        ] {
            let replay = store.replays.create_replay(replay, 10).await.unwrap().unwrap();
            let replay = store.replays.begin_replay(&replay).await.unwrap().unwrap();
            assert_eq!(replay.way.unwrap().walk, walk);
            // The first step opens some already: it begins where the window does.
            let first = store.replays.replay_candidates(&replay, 500).await.unwrap();
            assert!(first.events.iter().filter(|event| event.received_at >= since).count() > 300);
            let (steps, seen) = whole(&store, replay).await;
            assert!(steps < 30, "{steps} steps");
            assert!(seen.len() < 15_000, "{} looked at", seen.len());
        }
        store.keeper.close().await;
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let others = "SELECT count(*) FROM pg_stat_activity
                      WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
        while query(others).fetch_one(&mut connection).await.unwrap().get::<i64, _>(0) > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        // Of the ten thousand dead letters that are counted, and of three windows with an hour behind each.
        let read = "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint FROM pg_stat_user_tables
                    WHERE relname ~ '^(events|deliveries)_p'";
        let rows = number(&url, read).await;
        assert!(rows < DAY / 2, "{rows} rows read");
    })
    .await;
}
