//! The one task that writes: it runs the changes that wait together in one transaction, and answers after the commit.
//!
//! A change that is refused takes back only what it did itself. One that fails for the database's sake (a full disk, a
//! lock) takes the whole transaction with it, and the connection is opened anew: SQLite may have rolled back by itself,
//! and what came after would commit statement by statement.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::{Connection as _, SqliteConnection, SqlitePool};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{audit_log, row::failed};
use crate::{
    Timestamp,
    audit::{self, By},
    sqlite::{Database, close_writer},
    store::{Change, Result, StoreError},
};

/// The most changes that wait; beyond, whoever has one waits to hand it in.
const MAX_WAITING: usize = 64;
/// The most changes of one transaction.
const MAX_TOGETHER: usize = 32;

/// A change's view of the transaction that it is part of.
pub(super) struct Tx {
    pub(super) connection: SqliteConnection,
    /// The time of the whole transaction.
    pub(super) now: Timestamp,
    /// On whose behalf the change is made.
    pub(super) by: By,
    changes: Vec<Change>,
}

impl Tx {
    /// Writes an entry of the audit log, to be committed with the change.
    pub(super) async fn audit(&mut self, change: audit::Change) -> Result<()> {
        audit_log::write(self, &change).await
    }

    /// To be announced once it is committed.
    pub(super) fn announce(&mut self, change: Change) {
        self.changes.push(change);
    }

    async fn execute(&mut self, statement: &'static str) -> Result<()> {
        sqlx::query(statement)
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(failed)
    }
}

/// The way to the writer.
pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
}

impl Writer {
    /// Runs a change. It is committed when this answers, and it runs to its end even if nobody waits any more.
    pub(super) async fn run<T, W>(&self, work: W) -> Result<T>
    where
        W: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job = Box::new(Handed {
            work: Some(work),
            by: By::now(),
            done: None,
            answer,
        });
        self.jobs.send(job).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

/// A change that waits, whatever it answers.
#[async_trait]
trait Job: Send {
    /// Runs it, and says how it went: the answer itself is kept until the commit.
    async fn perform(&mut self, tx: &mut Tx) -> Performed;
    /// Answers: that it was committed, or why not.
    fn answer(self: Box<Self>, committed: Result<()>);
}

enum Performed {
    Done,
    /// It has its answer; what it did is to be taken back.
    Refused,
    /// The transaction is of no use any more.
    Broken(StoreError),
}

struct Handed<W, T> {
    work: Option<W>,
    by: By,
    done: Option<Result<T>>,
    answer: oneshot::Sender<Result<T>>,
}

#[async_trait]
impl<W, T> Job for Handed<W, T>
where
    W: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T>> + Send,
    T: Send,
{
    async fn perform(&mut self, tx: &mut Tx) -> Performed {
        let Some(work) = self.work.take() else {
            unreachable!("a change is performed once");
        };
        tx.by = self.by.clone();
        match work(tx).await {
            Ok(value) => {
                self.done = Some(Ok(value));
                Performed::Done
            }
            Err(error) if error.is_transient() => Performed::Broken(error),
            Err(error) => {
                self.done = Some(Err(error));
                Performed::Refused
            }
        }
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        let answer = match (committed, self.done) {
            // A refusal stands, whatever became of the others.
            (_, Some(Err(refused))) => Err(refused),
            (Ok(()), Some(done)) => done,
            (Ok(()), None) => Err(closed()),
            (Err(error), _) => Err(error),
        };
        let _: Result<(), _> = self.answer.send(answer);
    }
}

/// The writer, and the work that is to be spawned for it. It ends once every [`Writer`] is gone, or after `stop` with
/// what was handed in.
pub(super) fn start(
    database: Database,
    connection: SqliteConnection,
    readers: SqlitePool,
    changes: broadcast::Sender<Change>,
    stop: CancellationToken,
    checkpoints: DropGuard,
) -> (Writer, impl Future<Output = ()> + Send + 'static) {
    let (jobs, mut waiting) = mpsc::channel(MAX_WAITING);
    let work = async move {
        let mut scribe = Scribe {
            database,
            connection: Some(connection),
            changes,
        };
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled(), if !waiting.is_closed() => waiting.close(),
                job = waiting.recv() => match job {
                    Some(first) => scribe.write_together(first, &mut waiting).await,
                    None => break,
                },
            }
        }
        readers.close().await;
        drop(checkpoints);
        if let Some(connection) = scribe.connection
            && let Err(error) = close_writer(connection).await
        {
            tracing::warn!(%error, "the embedded store was not closed cleanly");
        }
    };
    (Writer { jobs }, work)
}

struct Scribe {
    database: Database,
    /// `None` after an error: it is opened anew.
    connection: Option<SqliteConnection>,
    changes: broadcast::Sender<Change>,
}

impl Scribe {
    async fn write_together(&mut self, first: Box<dyn Job>, waiting: &mut mpsc::Receiver<Box<dyn Job>>) {
        let mut jobs = vec![first];
        while jobs.len() < MAX_TOGETHER
            && let Ok(job) = waiting.try_recv()
        {
            jobs.push(job);
        }
        let written = self.write(&mut jobs).await;
        for job in jobs {
            job.answer(match &written {
                Ok(()) => Ok(()),
                // An error cannot be copied; its text is what is logged.
                Err(error) => Err(StoreError::Unavailable(sqlx::Error::Protocol(error.to_string()))),
            });
        }
        if let Some(connection) = &mut self.connection {
            self.database.after_commit(connection).await;
        }
    }

    async fn write(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<()> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.database.writer().await.map_err(failed)?,
        };
        let mut tx = Tx {
            connection,
            now: Timestamp::now(),
            by: By::SYSTEM,
            changes: Vec::new(),
        };
        match transaction(&mut tx, jobs).await {
            Ok(()) => {
                self.connection = Some(tx.connection);
                for change in tx.changes {
                    // Nobody may be listening.
                    let _: Result<_, _> = self.changes.send(change);
                }
                Ok(())
            }
            Err(error) => {
                // Closing rolls back what is left.
                let _: sqlx::Result<()> = tx.connection.close().await;
                Err(error)
            }
        }
    }
}

async fn transaction(tx: &mut Tx, jobs: &mut [Box<dyn Job>]) -> Result<()> {
    tx.execute("BEGIN IMMEDIATE").await?;
    let alone = jobs.len() == 1;
    for job in jobs {
        if !alone {
            tx.execute("SAVEPOINT change").await?;
        }
        let announced = tx.changes.len();
        match job.perform(tx).await {
            Performed::Done if alone => {}
            Performed::Done => tx.execute("RELEASE change").await?,
            Performed::Broken(error) => return Err(error),
            Performed::Refused => {
                tx.changes.truncate(announced);
                if alone {
                    return tx.execute("ROLLBACK").await;
                }
                tx.execute("ROLLBACK TO change; RELEASE change").await?;
            }
        }
    }
    tx.execute("COMMIT").await
}

fn closed() -> StoreError {
    StoreError::Unavailable(sqlx::Error::PoolClosed)
}
