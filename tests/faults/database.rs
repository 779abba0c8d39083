//! PostgreSQL taken away, worn out and fought over.

use std::time::{Duration, Instant};

use harness::eventually;
use sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar};

use crate::deployment::Deployment;

/// Tables that intake writes, in orders in which a rival takes them.
const ORDERS: [[&str; 2]; 4] = [
    ["deliveries", "events"],
    ["deliveries", "dedup_keys"],
    ["events", "dedup_keys"],
    ["event_aliases", "events"],
];
const DEADLOCK: &str = "deadlock detected";
const NOT_SERIALIZABLE: &str = "could not serialize access";

pub async fn run(connection: &mut PgConnection, statements: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(connection)
        .await
        .map(drop)
}

/// Changes the schema, until the server does not choose that for the victim of a deadlock with what the workers do.
pub async fn change(connection: &mut PgConnection, statements: &str) {
    eventually("the schema is changed", Duration::from_secs(20), async || {
        run(connection, statements)
            .await
            .map_err(|error| error.to_string())
    })
    .await;
}

/// Takes every connection that the server has, and ends those of the others.
pub async fn take_all_connections(deployment: &mut Deployment) {
    let url = deployment.world.database_url();
    let begun = Instant::now();
    loop {
        if let Ok(mut connection) = PgConnection::connect(&url).await {
            run(&mut connection, "SET application_name = 'rival'")
                .await
                .expect("a new connection works");
            deployment.taken.push(connection);
            continue;
        }
        let first = deployment.taken.first_mut().expect("one connection was free");
        let others: i64 = query_scalar(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE backend_type = 'client backend' AND application_name <> 'rival'",
        )
        .fetch_one(first)
        .await
        .expect("the first connection works");
        if others == 0 {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{others} connections are still others'"
        );
    }
}

/// Ends every session of the roles, again and again.
pub async fn end_sessions(deployment: &Deployment, hold: Duration) {
    let mut connection = deployment.sql().await;
    let begun = Instant::now();
    while begun.elapsed() < hold {
        run(
            &mut connection,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid(); SELECT pg_sleep(0.25)",
        )
        .await
        .expect("the session that ends others stays");
    }
}

/// Takes locks against the order in which intake takes them, until the server has ended transactions for it; the rival waits
/// longer than they do, so that they are the ones.
pub async fn deadlocks(deployment: &Deployment, hold: Duration) {
    let before = deployment.database.logged(DEADLOCK);
    let mut rival = deployment.sql().await;
    let begun = Instant::now();
    let mut orders = ORDERS.iter().cycle();
    let deadlocked = || deployment.database.logged(DEADLOCK) > before;
    while begun.elapsed() < hold || !deadlocked() {
        assert!(begun.elapsed() < Duration::from_secs(30), "there was no deadlock");
        let [first, second] = orders.next().expect("they go round");
        run(
            &mut rival,
            &format!(
                "BEGIN; SET LOCAL deadlock_timeout = '20s'; LOCK TABLE {first} IN EXCLUSIVE MODE; SELECT pg_sleep(0.3);
                 LOCK TABLE {second} IN EXCLUSIVE MODE; ROLLBACK"
            ),
        )
        .await
        .expect("the rival is not the one that is ended");
    }
}

/// Lets every transaction be serializable, and a rival read what intake writes and write what intake reads, until the
/// server has ended transactions for it.
pub async fn cannot_serialize(deployment: &Deployment, hold: Duration) {
    let before = deployment.database.logged(NOT_SERIALIZABLE);
    let mut connection = deployment.sql().await;
    let isolation = "ALTER SYSTEM SET default_transaction_isolation = 'serializable'";
    run(&mut connection, isolation).await.expect("a setting is set");
    run(&mut connection, "SELECT pg_reload_conf()")
        .await
        .expect("settings are read");
    let begun = Instant::now();
    while begun.elapsed() < hold || deployment.database.logged(NOT_SERIALIZABLE) == before {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "every transaction could be serialized"
        );
        // The rival itself may be the one that is ended.
        let fought = run(
            &mut connection,
            "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM events; SELECT count(*) FROM deliveries;
             UPDATE organizations SET name = name; SELECT pg_sleep(0.1); COMMIT",
        )
        .await;
        if fought.is_err() {
            run(&mut connection, "ROLLBACK").await.expect("a rollback works");
        }
    }
}

pub async fn serializes_again(deployment: &Deployment) {
    let mut connection = deployment.sql().await;
    for statement in [
        "ALTER SYSTEM RESET default_transaction_isolation",
        "SELECT pg_reload_conf()",
    ] {
        run(&mut connection, statement).await.expect("a setting is reset");
    }
}

/// Takes a table for itself, as a migration that hangs would.
pub async fn lock(deployment: &mut Deployment) {
    let mut rival = deployment.sql().await;
    run(
        &mut rival,
        "BEGIN; LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE",
    )
    .await
    .expect("a lock is free at some time");
    deployment.taken.push(rival);
}

/// Closes the connections that a fault has taken.
pub async fn let_go(deployment: &mut Deployment) {
    for connection in deployment.taken.drain(..) {
        let _ = connection.close().await;
    }
    let url = deployment.world.database_url();
    eventually(
        "a connection is free",
        Duration::from_secs(10),
        async || match PgConnection::connect(&url).await {
            Ok(connection) => {
                let _ = connection.close().await;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        },
    )
    .await;
}
