//! What every engine of the store must do, run on SQLite, each check on a file of its own.

#[macro_use]
mod conformance;
mod support;

use std::pin::Pin;

use shared::store::{Removed, Store, sqlite};
use sqlx::{AssertSqlSafe, ConnectOptions as _, SqliteConnection, sqlite::SqliteConnectOptions};
use uuid::Uuid;

conformance_tests!(crate::on_a_store);

type Check = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn on_a_store(check: impl FnOnce(Store) -> Check) {
    let directory = support::Directory::new();
    let store = sqlite::open(directory.path()).await.expect("it opens");
    store.keeper.migrate().await.expect("a schema");
    check(store.clone()).await;
    // Whatever was done: a crash now would leave a sound file.
    let crashed = directory.as_after_a_crash();
    let mut file = SqliteConnectOptions::new()
        .filename(crashed.path().join("store.db"))
        .connect()
        .await
        .expect("it opens");
    let found: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_all(&mut file)
        .await
        .expect("it is read");
    assert_eq!(found, ["ok"]);
    store.keeper.close().await;
}

/// Tables that say of which organization or subscription a row is.
const TABLES: &str = "
    SELECT t.name || '.' || c.name FROM pragma_table_list t, pragma_table_info(t.name) c
    WHERE t.schema = 'main' AND t.type = 'table' AND c.name IN ('organization_id', 'subscription_id')
      AND t.name <> 'removals'
    ORDER BY 1";

async fn rows_of(
    file: &mut SqliteConnection,
    tables: &[String],
    organization: Uuid,
    subscription: Uuid,
) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for name in tables {
        let (table, column) = name.split_once('.').unwrap();
        let of = match column {
            "organization_id" => organization,
            _ => subscription,
        };
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {column} = ?)");
        let some = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(of)
            .fetch_one(&mut *file);
        found.push((name.clone(), some.await.unwrap()));
    }
    found
}

#[tokio::test]
async fn removing_an_organization_forgets_no_table() {
    let directory = support::Directory::new();
    let store = sqlite::open(directory.path()).await.unwrap();
    store.keeper.migrate().await.unwrap();
    let ((ours, push), (theirs, their_push)) = (
        conformance::removals::full(&store, 3).await,
        conformance::removals::full(&store, 3).await,
    );
    let options = SqliteConnectOptions::new().filename(directory.path().join("store.db"));
    let mut file = options.read_only(true).connect().await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&mut file).await.unwrap();
    assert!(tables.len() > 12, "{tables:?}");
    let all = |some| tables.iter().map(|name| (name.clone(), some)).collect::<Vec<_>>();
    let before = rows_of(&mut file, &tables, ours.uuid(), push.uuid()).await;
    assert_eq!(before, all(true), "there must be something in each to be removed");
    store.removals.begin_removal(ours).await.unwrap();
    while store.removals.remove_some(ours).await.unwrap() != Removed::All {}
    let after = rows_of(&mut file, &tables, ours.uuid(), push.uuid()).await;
    assert_eq!(after, all(false));
    let others = rows_of(&mut file, &tables, theirs.uuid(), their_push.uuid()).await;
    assert_eq!(others, all(true), "nothing of another");
    drop(file);
    store.keeper.close().await;
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_done() {
    let directory = support::Directory::new();
    let store = sqlite::open(directory.path()).await.unwrap();
    store.keeper.migrate().await.unwrap();
    let made = conformance::world::organization(&store).await;
    let push = conformance::world::push(&store, made.id).await;
    let options = SqliteConnectOptions::new().filename(directory.path().join("store.db"));
    let mut file = options.connect().await.unwrap();
    sqlx::raw_sql("ALTER TABLE audit_log RENAME TO away")
        .execute(&mut file)
        .await
        .unwrap();
    conformance::audit_log::not_changed(&store, made.id, &push).await;
    drop(file);
    store.keeper.close().await;
}
