//! Word of changes, by LISTEN on one channel and a connection of its own.
//!
//! The listener starts with the first who asks, and lives until the store is closed or dropped. When its connection
//! breaks it connects again, with growing waits and jitter, and says [`Change::Everything`] each time it listens anew,
//! since what was said meanwhile is lost. A connection on which nothing came for a while is asked whether it lives.

use std::{sync::OnceLock, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use sqlx::{
    Executor,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::sync::broadcast;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use uuid::Uuid;

use crate::{
    DeliveryKey, EventId, SubscriptionId,
    store::{Change, Pause},
    subscription::Subscriber,
};

/// The channel, as the statements that give notice name it.
const CHANNEL: &str = "triggers_changes";
const BUFFERED: usize = 1_024;
const CONNECT: Duration = Duration::from_secs(5);
/// Silence after which the connection is tried.
const SILENCE: Duration = Duration::from_secs(15);

pub(super) struct Changes {
    connect: PgConnectOptions,
    sender: broadcast::Sender<Change>,
    started: OnceLock<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
}

impl Changes {
    pub(super) fn new(connect: PgConnectOptions) -> Self {
        let stop = CancellationToken::new();
        Self {
            connect,
            sender: broadcast::Sender::new(BUFFERED),
            started: OnceLock::new(),
            tasks: TaskTracker::new(),
            _stop_when_dropped: stop.clone().drop_guard(),
            stop,
        }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Change> {
        let receiver = self.sender.subscribe();
        self.started.get_or_init(|| {
            let (connect, sender, stop) = (self.connect.clone(), self.sender.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                stop.run_until_cancelled(Box::pin(listen_always(connect, sender)))
                    .await
            });
        });
        receiver
    }

    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn listen_always(connect: PgConnectOptions, sender: broadcast::Sender<Change>) {
    let backoff = || {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(10))
            .with_jitter()
            .without_max_times()
            .build()
    };
    let mut waits = backoff();
    loop {
        match listener(&connect).await {
            Ok(listener) => {
                waits = backoff();
                let error = listen(listener, &sender).await;
                tracing::warn!(error = %error, "lost the connection that brings word of changes");
            }
            Err(error) => tracing::warn!(error = %error, "cannot listen for changes"),
        }
        tokio::time::sleep(waits.next().unwrap_or(Duration::from_secs(10))).await;
    }
}

async fn listener(connect: &PgConnectOptions) -> Result<PgListener, sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(CONNECT)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with(connect.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    in_time(listener.listen(CHANNEL)).await?;
    Ok(listener)
}

/// Passes on what comes, until the connection is lost.
async fn listen(mut listener: PgListener, sender: &broadcast::Sender<Change>) -> sqlx::Error {
    // An error of `send` says that nobody listens just now.
    let _ = sender.send(Change::Everything);
    loop {
        match tokio::time::timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                if let Some(change) = change(notification.payload()) {
                    let _ = sender.send(change);
                }
            }
            Ok(Ok(None)) => return sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into()),
            Ok(Err(error)) => return error,
            Err(_silence) => {
                if let Err(error) = in_time(listener.execute("SELECT 1")).await {
                    return error;
                }
            }
        }
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    tokio::time::timeout(CONNECT, call)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// What a notice says; a newer version may say what this one does not know.
fn change(notice: &str) -> Option<Change> {
    let (kind, id) = notice.split_once(':')?;
    if kind == "d" {
        let (event, subscription) = id.split_once('/')?;
        return Some(Change::Cancelled(DeliveryKey {
            event: EventId::from_uuid(Uuid::try_parse(event).ok()?),
            subscription: SubscriptionId::from_uuid(Uuid::try_parse(subscription).ok()?),
        }));
    }
    if kind == "p" {
        let mut parts = id.splitn(3, '/');
        return Some(Change::Pause(Pause {
            subscription: SubscriptionId::from_uuid(Uuid::try_parse(parts.next()?).ok()?),
            subscriber: Subscriber::numbered(parts.next()?.parse().ok()?),
            lasts: Duration::from_millis(parts.next()?.parse().ok()?),
        }));
    }
    let id = Uuid::try_parse(id).ok()?;
    match kind {
        "s" => Some(Change::Subscription(SubscriptionId::from_uuid(id))),
        "l" => Some(Change::Lane(SubscriptionId::from_uuid(id))),
        "w" => Some(Change::Awaited(SubscriptionId::from_uuid(id))),
        "t" => Some(Change::TestPush),
        "c" => Some(Change::Closed(EventId::from_uuid(id))),
        _ => None,
    }
}
