//! The publisher over a real queue.

use std::path::PathBuf;

use sqlx::{ConnectOptions as _, sqlite::SqliteConnectOptions};
use tokio::{runtime::Handle, time::timeout};

use super::*;
use crate::{
    OrganizationId,
    queue::{Received, SourceLane, embedded},
};

const LONG: Duration = Duration::from_secs(20);

fn entry(bytes: impl Into<Bytes>) -> Encoded {
    Encoded {
        organization: OrganizationId::new(),
        bytes: bytes.into(),
        entries: 1,
    }
}

struct Setting {
    queue: DynQueue,
    publisher: Publisher,
    directory: PathBuf,
}

impl Setting {
    async fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("triggers-publisher-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let queue: DynQueue = Arc::new(embedded::open(&directory).await.unwrap());
        let publisher = Publisher::start(Arc::clone(&queue), &Lifecycle::new());
        let opens = async {
            while !publisher.is_open() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, opens).await.expect("the queue opens");
        Self {
            queue,
            publisher,
            directory,
        }
    }

    /// Frames until there are so many bytes.
    async fn frames(&self, bytes: usize) -> Vec<Received> {
        let mut source = self.queue.source(SourceLane::Main).await.unwrap();
        let mut frames: Vec<Received> = Vec::new();
        while frames.iter().map(|frame| frame.body.len()).sum::<usize>() < bytes {
            let more = timeout(LONG, source.receive(usize::MAX)).await;
            frames.extend(more.expect("frames in time").unwrap());
        }
        frames
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[tokio::test]
async fn what_nobody_waits_for_is_written_and_takes_no_task() {
    let setting = Setting::new().await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    setting.publisher.publish_unconfirmed(entry(&b"a note"[..]));
    assert_eq!(tasks(), before);
    let frames = setting.frames(1).await;
    assert_eq!(frames[0].body, "a note");
}

#[tokio::test]
async fn frames_are_bounded() {
    const ENTRY: usize = 20 * 1024;
    // 64 of them are what a consumer may be sent at once.
    const MOST: usize = 256 * 1024;
    let setting = Setting::new().await;
    let publish = |_| setting.publisher.publish(entry(vec![b'x'; ENTRY]));
    let all = futures_util::future::join_all((0..40).map(publish)).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let large = MOST + 1;
    let alone = setting.publisher.publish(entry(vec![b'x'; large]));
    alone.await.unwrap();
    let frames = setting.frames(40 * ENTRY + large).await;
    let mut sizes: Vec<_> = frames.iter().map(|frame| frame.body.len()).collect();
    assert_eq!(sizes.pop(), Some(large), "what is larger goes alone");
    assert!(sizes.iter().all(|size| *size <= MOST), "{sizes:?}");
    assert!(sizes.len() < 10, "entries gather: {sizes:?}");
}

#[tokio::test]
async fn a_caller_waits_no_longer_than_its_deadline() {
    let setting = Setting::new().await;
    let mut file = SqliteConnectOptions::new()
        .filename(setting.directory.join("queue.db"))
        .connect()
        .await
        .unwrap();
    // While somebody else holds the file, nothing is confirmed.
    sqlx::query("BEGIN IMMEDIATE").execute(&mut file).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_millis(50);
    let late = setting.publisher.publish_by(entry(&b"late"[..]), deadline).await;
    assert_eq!(late, Err(PublishError::TimedOut));
    assert!(
        deadline.elapsed() < Duration::from_millis(500),
        "{:?}",
        deadline.elapsed()
    );
    sqlx::query("ROLLBACK").execute(&mut file).await.unwrap();
    setting.publisher.publish(entry(&b"in time"[..])).await.unwrap();
}

/// A queue that confirms nothing for a while is full of those that came first: who comes later is told at once, and all goes
/// on by itself.
#[tokio::test]
async fn who_comes_while_a_queue_stands_is_told_at_once() {
    let setting = Setting::new().await;
    let mut file = SqliteConnectOptions::new()
        .filename(setting.directory.join("queue.db"))
        .connect()
        .await
        .unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut file).await.unwrap();
    // More than the frames that may be on their way hold.
    let first: Vec<_> = (0..8)
        .map(|_| {
            let publisher = setting.publisher.clone();
            tokio::spawn(async move { publisher.publish(entry(vec![b'x'; 200 * 1024])).await })
        })
        .collect();
    let refused = async {
        loop {
            let publisher = &setting.publisher;
            let soon = tokio::time::Instant::now() + Duration::from_millis(50);
            match publisher.publish_by(entry(&b"more"[..]), soon).await {
                Err(PublishError::TimedOut) => {}
                other => return other,
            }
        }
    };
    let refused = timeout(LONG, refused).await.expect("in time");
    assert_eq!(refused, Err(PublishError::Overloaded));
    sqlx::query("ROLLBACK").execute(&mut file).await.unwrap();
    for first in first {
        first.await.unwrap().unwrap();
    }
    setting.publisher.publish(entry(&b"after it"[..])).await.unwrap();
}
