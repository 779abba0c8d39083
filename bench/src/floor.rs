//! The floor: what the queue itself costs, with nothing around it, for the same bytes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::load::{self, Shape};

/// What was measured.
#[derive(Debug, Clone)]
pub struct Floor {
    /// What it is.
    pub what: &'static str,
    /// Each confirm's time.
    pub times: Vec<Duration>,
    /// Confirms a second; `None` where it makes no sense.
    pub per_second: Option<f64>,
}

/// What is around a payload in a frame, in bytes.
pub const AROUND: usize = 250;

impl Floor {
    /// Each of whose messages is as many events.
    pub fn of_events(self, events: u64) -> Self {
        Self {
            what: match events {
                1 => self.what,
                _ => "the same queue, a message or a commit of as many bytes as a batch",
            },
            per_second: self.per_second.map(|messages| messages * events as f64),
            ..self
        }
    }
}

/// Publish and confirm with lapin, a message of so many bytes an event, to a quorum queue: as many at once as the load has connections,
/// or in open loop at its rate.
pub async fn rabbit(url: &str, shape: Shape, bytes: usize, length: Duration) -> anyhow::Result<Floor> {
    // Threads of its own, as the front has.
    let url = url.to_owned();
    let measure = move || async move {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(&url, properties)
            .await
            .context("RabbitMQ cannot be reached")?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let queue = format!("bench-floor-{}", uuid::Uuid::now_v7());
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel
            .queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments)
            .await?;
        let body = load::payload(0, bytes).into_bytes();
        let warm = Duration::from_secs(1);
        let measured = match shape {
            Shape::Closed { connections } | Shape::Counted { connections, .. } => {
                closed(&channel, &queue, &body, connections, warm).await?;
                closed(&channel, &queue, &body, connections, length).await
            }
            Shape::Open { rate, .. } => {
                open(&channel, &queue, &body, rate, warm).await?;
                open(&channel, &queue, &body, rate, length).await
            }
        };
        channel
            .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
            .await?;
        measured
    };
    tokio::task::spawn_blocking(move || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(measure())
    })
    .await?
}

async fn publish(channel: &Channel, queue: &str, body: &[u8], due: Instant) -> anyhow::Result<Confirming> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let properties = BasicProperties::default().with_delivery_mode(2);
    let confirm = channel
        .basic_publish("".into(), queue.into(), options, body, properties)
        .await?;
    Ok(Box::pin(async move {
        match confirm.await? {
            Confirmation::Ack(None) => Ok(due.elapsed()),
            other => bail!("not confirmed: {other:?}"),
        }
    }))
}

type Confirming = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<Duration>> + Send>>;

async fn closed(
    channel: &Channel,
    queue: &str,
    body: &[u8],
    at_once: u16,
    length: Duration,
) -> anyhow::Result<Floor> {
    let (begun, mut times) = (Instant::now(), Vec::new());
    let mut confirming = FuturesUnordered::new();
    for _ in 0..at_once {
        confirming.push(publish(channel, queue, body, Instant::now()).await?);
    }
    while let Some(time) = confirming.next().await {
        times.push(time?);
        if begun.elapsed() < length {
            confirming.push(publish(channel, queue, body, Instant::now()).await?);
        }
    }
    let per_second = Some(times.len() as f64 / begun.elapsed().as_secs_f64());
    Ok(Floor {
        what: "publish and confirm with lapin, a message an event",
        times,
        per_second,
    })
}

async fn open(
    channel: &Channel,
    queue: &str,
    body: &[u8],
    rate: u32,
    length: Duration,
) -> anyhow::Result<Floor> {
    let count = (f64::from(rate) * length.as_secs_f64()) as u64;
    let (sender, mut due) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let begun = Instant::now();
        for index in 0..count {
            let due = begun + Duration::from_secs_f64(index as f64 / f64::from(rate));
            if let Some(wait) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(wait);
            }
            if sender.send(due).is_err() {
                break;
            }
        }
    });
    let mut times = Vec::new();
    let mut confirming = FuturesUnordered::new();
    let mut posting = true;
    while posting || !confirming.is_empty() {
        tokio::select! {
            biased;
            Some(time) = confirming.next(), if !confirming.is_empty() => times.push(time?),
            next = due.recv(), if posting => match next {
                Some(due) => confirming.push(publish(channel, queue, body, due).await?),
                None => posting = false,
            },
        }
    }
    Ok(Floor {
        what: "publish and confirm with lapin, a message an event, in open loop",
        times,
        per_second: None,
    })
}

/// SQLite's own commit of the same bytes, with WAL and `synchronous=FULL`. Many autocommitted statements are run in one
/// call, so that the way to SQLite's thread and back does not count; a time is the mean of a call's statements.
pub async fn sqlite(bytes: usize) -> anyhow::Result<Floor> {
    const STATEMENTS: u32 = 20;
    let directory = Directory::new("floor")?;
    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("floor.db"))
        .create_if_missing(true)
        .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
        .synchronous(sqlx::sqlite::SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "0");
    let mut connection = SqliteConnection::connect_with(&options).await?;
    sqlx::raw_sql("CREATE TABLE frames (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL)")
        .execute(&mut connection)
        .await?;
    let body = load::payload(0, bytes);
    let statements = format!("INSERT INTO frames (body) VALUES ('{body}');").repeat(STATEMENTS as usize);
    let mut times = Vec::new();
    for round in 0..120 {
        let begun = Instant::now();
        sqlx::raw_sql(AssertSqlSafe(statements.clone()))
            .execute(&mut connection)
            .await?;
        if round >= 20 {
            times.push(begun.elapsed() / STATEMENTS);
        }
    }
    connection.close().await?;
    Ok(Floor {
        what: "SQLite's own commit (WAL, synchronous=FULL)",
        times,
        per_second: None,
    })
}

/// A directory that goes when it is dropped.
#[derive(Debug, Clone)]
pub struct Directory(Arc<Path>);

#[derive(Debug)]
struct Path(std::path::PathBuf);

impl Directory {
    /// A new one beside the build, on the same disk as data would be.
    pub fn new(purpose: &str) -> anyhow::Result<Self> {
        let beside = std::env::current_exe()?;
        let parent = beside.parent().context("the bench has no directory")?;
        let path = parent.join(format!("bench-{purpose}-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(Arc::new(Path(path))))
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.0.0
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
