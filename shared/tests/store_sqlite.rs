//! What every engine of the store must do, run on SQLite, each check on a file of its own.

#[macro_use]
mod conformance;
mod support;

use std::pin::Pin;

use shared::store::{Store, sqlite};
use sqlx::{ConnectOptions as _, sqlite::SqliteConnectOptions};

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
