//! The one task that writes: inserts of what was handed in, together, and deletes of what was acknowledged.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use sqlx::{AssertSqlSafe, SqliteConnection, SqlitePool, sqlite::SqliteArguments};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Reserved, State, unavailable};
use crate::{
    queue::{QueueError, Result},
    sqlite::{Database, close_writer},
};

/// The most frames of one statement: each number of them is a statement of its own in SQLite's cache.
const MAX_TOGETHER: usize = 32;
/// The most bytes of one statement, unless a single frame is larger.
const MAX_TOGETHER_BYTES: usize = 4 * 1024 * 1024;
/// How long acknowledged frames stay in the file.
const SWEEP_AFTER: Duration = Duration::from_millis(50);

/// A frame to be written, and whom to tell.
pub(super) struct Insert {
    pub(super) reserved: Reserved,
    pub(super) answer: oneshot::Sender<Result<()>>,
}

pub(super) struct Writer {
    pub(super) database: Database,
    /// `None` after an error: it is opened anew.
    pub(super) connection: Option<SqliteConnection>,
    pub(super) state: Arc<State>,
    /// Tells sources the highest id on disk.
    pub(super) commits: watch::Sender<u64>,
    /// The highest id given.
    pub(super) last: u64,
    /// When acknowledged frames are to be deleted.
    pub(super) sweep_at: Option<Instant>,
    /// Every frame up to this id is deleted.
    pub(super) swept: u64,
    pub(super) readers: SqlitePool,
    /// Ends the checkpoints with the writer.
    pub(super) checkpoints: DropGuard,
}

impl Writer {
    /// Writes until every sink is gone or `stop`, then what has been handed in.
    pub(super) async fn run(mut self, mut inserts: mpsc::Receiver<Insert>, stop: CancellationToken) {
        loop {
            let sweep_at = self.sweep_at;
            tokio::select! {
                // What is seldom ready comes first: under load there is always another insert.
                biased;
                () = stop.cancelled(), if !inserts.is_closed() => inserts.close(),
                () = self.state.acknowledgement.notified(), if sweep_at.is_none() => {
                    self.sweep_at = Some(Instant::now() + SWEEP_AFTER);
                }
                insert = inserts.recv() => match insert {
                    Some(first) => self.write(first, &mut inserts).await,
                    None => break,
                },
                () = async { tokio::time::sleep_until(sweep_at.unwrap_or_else(Instant::now)).await },
                    if sweep_at.is_some() => self.sweep().await,
            }
        }
        self.sweep().await;
        self.readers.close().await;
        drop(self.checkpoints);
        if let Some(connection) = self.connection.take()
            && let Err(error) = close_writer(connection).await
        {
            tracing::warn!(%error, "the embedded queue was not closed cleanly");
        }
    }

    /// Writes `first` and what waits behind it, and tells everybody.
    async fn write(&mut self, first: Insert, inserts: &mut mpsc::Receiver<Insert>) {
        let mut bytes = first.reserved.frame.len();
        let mut together = vec![first];
        while together.len() < MAX_TOGETHER && bytes < MAX_TOGETHER_BYTES {
            let Ok(insert) = inserts.try_recv() else { break };
            bytes += insert.reserved.frame.len();
            together.push(insert);
        }

        let first_id = self.last + 1;
        // Ids of a write that failed are not used again: whether its rows exist may be unknown.
        self.last += together.len() as u64;
        match self.insert(first_id, &together).await {
            Ok(()) => {
                let mut frames = Vec::with_capacity(together.len());
                for Insert { reserved, answer } in together {
                    frames.push(reserved.keep());
                    let _: Result<_, _> = answer.send(Ok(()));
                }
                self.state.tail.push(first_id, frames);
                self.commits.send_replace(self.last);
            }
            Err(error) => {
                tracing::warn!(%error, frames = together.len(), "frames were not written");
                for Insert { reserved, answer } in together {
                    drop(reserved);
                    let _: Result<_, _> = answer.send(Err(QueueError::Unavailable(error.to_string())));
                }
            }
        }
        if let Some(connection) = &mut self.connection {
            self.database.after_commit(connection).await;
        }
    }

    async fn insert(&mut self, first_id: u64, together: &[Insert]) -> Result<()> {
        let sweep_to = self
            .sweep_at
            .filter(|at| *at <= Instant::now())
            .map(|_| self.state.acknowledged.load(Ordering::Relaxed))
            .filter(|acknowledged| *acknowledged > self.swept);
        let mut sql = String::new();
        let mut arguments = SqliteArguments::default();
        if let Some(acknowledged) = sweep_to {
            sql.push_str("BEGIN IMMEDIATE; DELETE FROM frames WHERE id <= ?; ");
            bind(&mut arguments, acknowledged.cast_signed())?;
        }
        sql.push_str("INSERT INTO frames (id, body) VALUES ");
        for (id, insert) in (first_id..).zip(together) {
            let _: std::fmt::Result = write!(sql, "{}(?, ?)", if id == first_id { "" } else { ", " });
            bind(&mut arguments, id.cast_signed())?;
            bind(&mut arguments, &insert.reserved.frame[..])?;
        }
        if sweep_to.is_some() {
            sql.push_str("; COMMIT");
        }
        self.execute(sql, arguments).await?;
        if let Some(acknowledged) = sweep_to {
            self.swept = acknowledged;
            self.sweep_at = None;
        }
        Ok(())
    }

    /// Deletes what was acknowledged. A failure is only logged: it is tried again with the next acknowledgement.
    async fn sweep(&mut self) {
        self.sweep_at = None;
        let acknowledged = self.state.acknowledged.load(Ordering::Relaxed);
        if acknowledged <= self.swept {
            return;
        }
        let mut arguments = SqliteArguments::default();
        let swept = match bind(&mut arguments, acknowledged.cast_signed()) {
            Ok(()) => {
                self.execute("DELETE FROM frames WHERE id <= ?".to_owned(), arguments)
                    .await
            }
            Err(error) => Err(error),
        };
        match swept {
            Ok(()) => {
                self.swept = acknowledged;
                if let Some(connection) = &mut self.connection {
                    self.database.after_commit(connection).await;
                }
            }
            Err(error) => tracing::warn!(%error, "acknowledged frames were not deleted"),
        }
    }

    /// One trip to SQLite's thread. After an error the connection may be in a transaction, or past use: it is closed,
    /// which rolls back.
    async fn execute(&mut self, sql: String, arguments: SqliteArguments) -> Result<()> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self
                .database
                .writer()
                .await
                .map_err(|error| unavailable(&error))?,
        };
        match sqlx::query_with(AssertSqlSafe(sql), arguments)
            .execute(&mut connection)
            .await
        {
            Ok(_) => {
                self.connection = Some(connection);
                Ok(())
            }
            Err(error) => {
                let _: sqlx::Result<()> = sqlx::Connection::close(connection).await;
                Err(unavailable(&error))
            }
        }
    }
}

fn bind<'q, T>(arguments: &mut SqliteArguments, value: T) -> Result<()>
where
    T: sqlx::Encode<'q, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    sqlx::Arguments::add(arguments, value).map_err(|error| QueueError::Refused(error.to_string()))
}
