//! The PostgreSQL engine: the checks of every engine, each on a database of its own, and what is its own.

use std::{panic, pin::Pin};

use shared::store::{
    Store,
    postgres::{PostgresOptions, connect},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, query, raw_sql};
use uuid::Uuid;

mod backlogs;
mod coverage;
mod faults;
mod partitions;
mod replaying;

crate::conformance::conformance_tests!(crate::postgres::on_a_store);

type Check = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The server: `TRIGGERS_TEST_DATABASE_URL`, or the local one.
fn server() -> String {
    std::env::var("TRIGGERS_TEST_DATABASE_URL")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned())
}

pub(crate) fn store_at(url: &str) -> Store {
    connect(&PostgresOptions {
        url: url.to_owned().into(),
        max_connections: 10,
    })
    .expect("a good url")
}

/// Runs a check on a store in a database of its own, which is dropped even if the check fails.
pub(crate) async fn on_a_store(check: impl FnOnce(Store) -> Check) {
    on_a_database(|url| {
        let store = store_at(&url);
        let check = check(store.clone());
        Box::pin(async move {
            store.keeper.migrate().await.expect("a schema");
            check.await;
            store.keeper.close().await;
        })
    })
    .await;
}

/// As [`on_a_store`], with the URL of the database, which holds nothing.
pub(crate) async fn on_a_database(check: impl FnOnce(String) -> Check) {
    let name = format!("triggers_test_{}", Uuid::now_v7().simple());
    let mut url = url::Url::parse(&server()).expect("TRIGGERS_TEST_DATABASE_URL is a url");
    let mut connection = PgConnection::connect(url.as_str())
        .await
        .expect("PostgreSQL answers");
    raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut connection)
        .await
        .expect("a database");
    url.set_path(&name);
    let outcome = tokio::spawn(check(url.to_string())).await;
    raw_sql(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)")))
        .execute(&mut connection)
        .await
        .expect("the database goes");
    if let Err(error) = outcome {
        panic::resume_unwind(error.into_panic());
    }
}

/// Runs statements of the test's own.
pub(crate) async fn sql(url: &str, statements: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    raw_sql(AssertSqlSafe(statements.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

/// The one number that a query answers.
pub(crate) async fn number(url: &str, statement: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let row = query(AssertSqlSafe(statement.to_owned()))
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    row.get(0)
}

/// As [`on_a_store`], with the URL as well.
pub(crate) async fn on_a_store_at<F>(check: impl FnOnce(Store, String) -> F)
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
