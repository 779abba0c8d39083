//! The store on SQLite, for one process with everything in it.
//!
//! One [`writer`] task owns the one connection that writes; changes that wait while it commits go together in the next
//! transaction. Reads have a few connections of their own, each in one statement or one short transaction. Since there
//! is one writer, the order of `seq` is the order of commits, and lists need not stop anywhere.
//!
//! The store's clock is this process's, read once in each transaction. Rows are written and looked up many at a time,
//! in [`portions`](many::portions) of a few fixed sizes, so that each statement is prepared once.

mod announcements;
mod audit_log;
mod browse;
mod deliveries;
mod erasures;
mod events;
mod feed;
mod former;
mod insight;
mod intake;
mod keeper;
mod limits;
mod list;
mod many;
mod organizations;
mod outcomes;
mod pauses;
mod pulls;
mod removals;
mod replay_ways;
mod replays;
mod retention;
mod row;
mod set_aside;
mod statistics;
mod subscriptions;
mod test_pushes;
mod writer;

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use sqlx::SqlitePool;
use tokio::sync::{Mutex, broadcast};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::writer::Writer;
use super::{Change, Result, Store};
use crate::sqlite::{Database, Migrations};

const MIGRATIONS: Migrations = &[
    (
        1,
        "initial",
        include_str!("../../../../migrations/sqlite/store/0001_initial.sql"),
    ),
    (
        2,
        "secret check",
        include_str!("../../../../migrations/sqlite/store/0002_secret_check.sql"),
    ),
    (
        3,
        "set aside",
        include_str!("../../../../migrations/sqlite/store/0003_set_aside.sql"),
    ),
    (
        4,
        "order and rate",
        include_str!("../../../../migrations/sqlite/store/0004_order_and_rate.sql"),
    ),
    (
        5,
        "signing",
        include_str!("../../../../migrations/sqlite/store/0005_signing.sql"),
    ),
    (
        6,
        "replays",
        include_str!("../../../../migrations/sqlite/store/0006_replays.sql"),
    ),
    (
        7,
        "announcements",
        include_str!("../../../../migrations/sqlite/store/0007_announcements.sql"),
    ),
    (
        8,
        "seeing",
        include_str!("../../../../migrations/sqlite/store/0008_seeing.sql"),
    ),
    (
        9,
        "push",
        include_str!("../../../../migrations/sqlite/store/0009_push.sql"),
    ),
    (
        12,
        "keys",
        include_str!("../../../../migrations/sqlite/store/0012_keys.sql"),
    ),
    (
        13,
        "limits",
        include_str!("../../../../migrations/sqlite/store/0013_limits.sql"),
    ),
    (
        14,
        "erasures",
        include_str!("../../../../migrations/sqlite/store/0014_erasures.sql"),
    ),
    (
        15,
        "organizations",
        include_str!("../../../../migrations/sqlite/store/0015_organizations.sql"),
    ),
    (
        16,
        "filters",
        include_str!("../../../../migrations/sqlite/store/0016_filters.sql"),
    ),
    (
        17,
        "audit_log",
        include_str!("../../../../migrations/sqlite/store/0017_audit_log.sql"),
    ),
    (
        18,
        "pauses",
        include_str!("../../../../migrations/sqlite/store/0018_pauses.sql"),
    ),
    (
        23,
        "parked",
        include_str!("../../../../migrations/sqlite/store/0023_parked.sql"),
    ),
    (
        24,
        "order",
        include_str!("../../../../migrations/sqlite/store/0024_order.sql"),
    ),
    (
        25,
        "begets",
        include_str!("../../../../migrations/sqlite/store/0025_begets.sql"),
    ),
    (
        27,
        "replay_ways",
        include_str!("../../../../migrations/sqlite/store/0027_replay_ways.sql"),
    ),
];
/// Changes that a receiver may lag behind before it is told that it lost some.
const CHANGES: usize = 1024;

/// What all the aggregates share.
struct Engine {
    database: Database,
    writer: Writer,
    readers: SqlitePool,
    changes: broadcast::Sender<Change>,
    /// Whether anybody has listened yet.
    listening: AtomicBool,
    /// Held by whoever does a round of retention.
    retention: Mutex<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
}

/// Opens the store in `store.db` of the directory, which must exist, and which nobody else may have open.
/// [`migrate`](super::Keeper::migrate) it before use.
///
/// Since the store works in one process only, no worker can have outlived the one before: all leases end here, and what
/// a crash left behind is anybody's at once.
pub async fn open(dir: &Path) -> Result<Store> {
    let database = Database::new(dir.join("store.db"), 8192);
    let mut connection = database.writer().await.map_err(row::failed)?;
    let used_before = sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'workers'")
        .fetch_optional(&mut connection)
        .await
        .map_err(row::failed)?
        .is_some();
    if used_before {
        sqlx::query("DELETE FROM workers")
            .execute(&mut connection)
            .await
            .map_err(row::failed)?;
    }
    let readers = database.readers(4);
    let (changes, _) = broadcast::channel(CHANGES);
    let (tasks, stop, checkpoints_stop) = (
        TaskTracker::new(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    tasks.spawn(database.clone().keep_checkpointing(checkpoints_stop.clone()));
    let (writer, work) = writer::start(
        database.clone(),
        connection,
        readers.clone(),
        changes.clone(),
        stop.clone(),
        checkpoints_stop.drop_guard(),
    );
    tasks.spawn(work);
    let engine = Arc::new(Engine {
        database,
        writer,
        readers,
        changes,
        listening: AtomicBool::new(false),
        retention: Mutex::new(()),
        tasks,
        _stop_when_dropped: stop.clone().drop_guard(),
        stop,
    });
    Ok(Store {
        organizations: engine.clone(),
        subscriptions: engine.clone(),
        events: engine.clone(),
        deliveries: engine.clone(),
        pulls: engine.clone(),
        replays: engine.clone(),
        erasures: engine.clone(),
        feed: engine.clone(),
        removals: engine.clone(),
        audit_log: engine.clone(),
        announcements: engine.clone(),
        insight: engine.clone(),
        limits: engine.clone(),
        tests: engine.clone(),
        pauses: engine.clone(),
        keeper: engine,
    })
}
