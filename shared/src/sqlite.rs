//! A SQLite database as the embedded engines use it: opened for durability, with its checkpoints off the commit path.
//!
//! WAL and `synchronous=FULL`: a commit is on disk when it is answered. One connection writes, a few read. The writer
//! never checkpoints by itself: a task with a connection of its own runs `PASSIVE` ones, which take no lock that a
//! writer wants. A passive checkpoint lets the log start over only if nobody has written meanwhile, so under steady
//! load the log would grow for ever: past [`MAX_WAL_PAGES`] the writer is asked to restart it, which is quick right
//! after a passive one.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Connection as _, Row as _, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Past this many pages (32 MiB) the write-ahead log is started over; what is written until the next checkpoint comes on top.
const MAX_WAL_PAGES: i64 = 8 * 1024;
/// How often the log is carried into the database file, while there is anything to carry.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How long a lock that somebody else holds is waited for. No other process should be there at all.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the log's readers are waited for before it is started over.
const RESTART_BUSY_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a reader waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Statements of a schema, in order: version, description, text.
pub(crate) type Migrations = &'static [(i64, &'static str, &'static str)];

/// A database file and how it is opened.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    path: PathBuf,
    /// The writer's page cache.
    cache_kib: u32,
    wal: Arc<Wal>,
}

/// What the writer and the checkpoints tell each other.
#[derive(Debug, Default)]
struct Wal {
    written: AtomicBool,
    oversized: AtomicBool,
}

impl Database {
    /// The file need not exist yet.
    pub(crate) fn new(path: PathBuf, cache_kib: u32) -> Self {
        Self {
            path,
            cache_kib,
            wal: Arc::default(),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn options(&self, cache_kib: u32) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", format!("-{cache_kib}"))
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("temp_store", "MEMORY")
            .pragma("wal_autocheckpoint", "0")
            .disable_statement_logging()
    }

    /// The connection that writes; there must be one at a time.
    pub(crate) async fn writer(&self) -> sqlx::Result<SqliteConnection> {
        self.options(self.cache_kib)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .statement_cache_capacity(256)
            .connect()
            .await
    }

    /// Connections that read, made as they are needed and closed when they are not.
    pub(crate) fn readers(&self, most: u32) -> SqlitePool {
        SqlitePoolOptions::new()
            .max_connections(most)
            .min_connections(0)
            .idle_timeout(Duration::from_mins(1))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_lazy_with(self.options(1024).read_only(true))
    }

    /// Brings the schema up to date, over a connection of its own.
    pub(crate) async fn migrate(&self, migrations: Migrations) -> Result<(), MigrateError> {
        let migrations = migrations
            .iter()
            .map(|&(version, description, text)| {
                let text = sqlx::SqlSafeStr::into_sql_str(text);
                Migration::new(version, description.into(), MigrationType::Simple, text, false)
            })
            .collect();
        let mut connection = self.writer().await?;
        let done = Migrator::with_migrations(migrations)
            .run_direct(None, &mut connection, false)
            .await;
        connection.close().await?;
        done
    }

    /// To be called by the writer after each commit: starts the log over if it has grown too large.
    pub(crate) async fn after_commit(&self, writer: &mut SqliteConnection) {
        self.wal.written.store(true, Ordering::Relaxed);
        if !self.wal.oversized.swap(false, Ordering::Relaxed) {
            return;
        }
        // Readers of the log's old frames are waited for, but not long: the next round asks again.
        let restarted = async {
            set_busy_timeout(writer, RESTART_BUSY_TIMEOUT).await?;
            let restarted = sqlx::raw_sql("PRAGMA wal_checkpoint(RESTART)")
                .execute(&mut *writer)
                .await;
            // Whatever came of it: what is written next must wait for a lock as long as ever.
            set_busy_timeout(writer, BUSY_TIMEOUT).await?;
            restarted
        };
        if let Err(error) = restarted.await {
            tracing::warn!(path = %self.path.display(), %error, "the write-ahead log was not started over");
        }
    }

    /// Carries the log into the database until `stop`.
    pub(crate) async fn keep_checkpointing(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(CHECKPOINT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connection = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            if !self.wal.written.swap(false, Ordering::Relaxed) {
                continue;
            }
            if let Err(error) = self.checkpoint(&mut connection).await {
                tracing::warn!(path = %self.path.display(), %error, "a checkpoint failed");
                self.wal.written.store(true, Ordering::Relaxed);
                connection = None;
            }
        }
        if let Some(connection) = connection {
            let _: sqlx::Result<()> = connection.close().await;
        }
    }

    async fn checkpoint(&self, connection: &mut Option<SqliteConnection>) -> sqlx::Result<()> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.options(256).connect().await?),
        };
        let row = sqlx::raw_sql("PRAGMA wal_checkpoint(PASSIVE)")
            .fetch_one(connection)
            .await?;
        let (pages, carried): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
        if pages > MAX_WAL_PAGES {
            self.wal.oversized.store(true, Ordering::Relaxed);
        }
        if carried < pages {
            self.wal.written.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

async fn set_busy_timeout(connection: &mut SqliteConnection, timeout: Duration) -> sqlx::Result<()> {
    let set = format!("PRAGMA busy_timeout = {}", timeout.as_millis());
    sqlx::raw_sql(sqlx::AssertSqlSafe(set))
        .execute(connection)
        .await
        .map(drop)
}

/// Closes the writer's connection, with the whole log carried into the database and emptied.
pub(crate) async fn close_writer(mut writer: SqliteConnection) -> sqlx::Result<()> {
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&mut writer)
        .await?;
    writer.close().await
}

/// What a SQLite error means to whoever called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Busy, full, unreadable, away: the same call may succeed later.
    Unavailable,
    /// This content is refused: a constraint, a type, a size.
    Refused,
    /// What is stored does not read as it should.
    Corrupt,
}

/// Tells them apart by the [primary result code](https://www.sqlite.org/rescode.html). What is not known to be the
/// content's fault is taken as an outage: to set good events aside would be worse than to wait.
pub(crate) fn meaning(error: &sqlx::Error) -> Meaning {
    const CORRUPT: i32 = 11;
    const TOO_BIG: i32 = 18;
    const CONSTRAINT: i32 = 19;
    const MISMATCH: i32 = 20;
    const NOT_A_DATABASE: i32 = 26;
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse::<i32>().ok());
            match code.map(|code| code & 0xff) {
                Some(TOO_BIG | CONSTRAINT | MISMATCH) => Meaning::Refused,
                Some(CORRUPT | NOT_A_DATABASE) => Meaning::Corrupt,
                _ => Meaning::Unavailable,
            }
        }
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::RowNotFound => Meaning::Corrupt,
        _ => Meaning::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_restart_that_fails_leaves_the_connection_as_it_was() {
        let directory = std::env::temp_dir().join(format!("triggers-sqlite-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let database = Database::new(directory.join("a.db"), 256);
        let mut writer = database.writer().await.unwrap();
        sqlx::raw_sql("CREATE TABLE a (b); BEGIN; INSERT INTO a VALUES (1)")
            .execute(&mut writer)
            .await
            .unwrap();
        // Inside a transaction it is refused.
        let refused = sqlx::raw_sql("PRAGMA wal_checkpoint(RESTART)")
            .execute(&mut writer)
            .await;
        assert!(refused.is_err());
        database.wal.oversized.store(true, Ordering::Relaxed);
        database.after_commit(&mut writer).await;
        let timeout: i64 = sqlx::query_scalar("PRAGMA busy_timeout")
            .fetch_one(&mut writer)
            .await
            .unwrap();
        assert_eq!(u128::try_from(timeout), Ok(BUSY_TIMEOUT.as_millis()));
        writer.close().await.unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
