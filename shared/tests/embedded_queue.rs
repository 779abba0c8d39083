//! What is special to the embedded queue: crashes, its bound, a file that cannot be written, memory and file as one.

mod support;

use std::time::Duration;

use bytes::Bytes;
use shared::queue::{
    FrameSource, Queue, QueueError, Received, SourceLane,
    embedded::{self, EmbeddedQueue},
};
use sqlx::{ConnectOptions as _, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};
use support::Directory;

const LONG: Duration = Duration::from_secs(20);

async fn opened(directory: &Directory) -> EmbeddedQueue {
    embedded::open(directory.path()).await.expect("it opens")
}

fn frame(number: usize) -> Bytes {
    Bytes::from(format!("frame {number}"))
}

/// Writes frames and waits until they are confirmed.
async fn write(queue: &EmbeddedQueue, numbers: std::ops::Range<usize>) {
    let mut sink = queue.sink().await.unwrap();
    let mut confirmations = Vec::new();
    for number in numbers {
        confirmations.push(sink.write(0, frame(number)).await.unwrap());
    }
    for confirmation in confirmations {
        confirmation.await.unwrap();
    }
}

/// Receives until there are `count` frames, and checks that there are no more.
async fn receive(source: &mut Box<dyn FrameSource>, count: usize) -> Vec<Received> {
    let mut received = Vec::new();
    while received.len() < count {
        let more = tokio::time::timeout(LONG, source.receive(1)).await;
        received.extend(more.expect("frames in time").unwrap());
    }
    assert_eq!(received.len(), count);
    received
}

fn bodies(received: &[Received]) -> Vec<Bytes> {
    received.iter().map(|frame| frame.body.clone()).collect()
}

fn frames(numbers: std::ops::Range<usize>) -> Vec<Bytes> {
    numbers.map(frame).collect()
}

/// A connection of the test's own to the queue's file.
async fn file(directory: &Directory) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(directory.path().join("queue.db"))
        .connect()
        .await
        .unwrap()
}

async fn rows(file: &mut SqliteConnection) -> i64 {
    let row = sqlx::query("SELECT count(*) FROM frames").fetch_one(file).await;
    row.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_come_out_in_order_until_they_are_acknowledged() {
    let directory = Directory::new();
    let queue = opened(&directory).await;
    write(&queue, 0..50).await;

    let mut source = queue.source(SourceLane::Main).await.unwrap();
    let first = receive(&mut source, 50).await;
    assert_eq!(bodies(&first), frames(0..50));
    assert!(first.iter().all(|frame| !frame.redelivered));
    source.acknowledge_up_to(first[19].tag).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().frames, 30);

    // Another source begins with the first that was not acknowledged, and goes on with what is new.
    drop(source);
    let mut source = queue.source(SourceLane::Main).await.unwrap();
    let again = receive(&mut source, 30).await;
    assert_eq!(bodies(&again), frames(20..50));
    assert!(again.iter().all(|frame| frame.redelivered));
    write(&queue, 50..60).await;
    let new = receive(&mut source, 10).await;
    assert_eq!(bodies(&new), frames(50..60));
    assert!(new.iter().all(|frame| !frame.redelivered));

    source.acknowledge_up_to(new[9].tag).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().frames, 0);
    let mut file = file(&directory).await;
    tokio::time::timeout(LONG, async { while rows(&mut file).await > 0 {} })
        .await
        .expect("acknowledged frames are deleted without more being written");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_waits_and_may_be_cancelled() {
    let directory = Directory::new();
    let queue = opened(&directory).await;
    let mut source = queue.source(SourceLane::Main).await.unwrap();
    let mut dead = queue.source(SourceLane::Dead).await.unwrap();
    for number in 0..20 {
        let waiting = tokio::time::timeout(Duration::ZERO, source.receive(1 << 20)).await;
        assert!(waiting.is_err(), "nothing is there");
        write(&queue, number..number + 1).await;
        assert_eq!(bodies(&receive(&mut source, 1).await), frames(number..number + 1));
    }
    let waiting = tokio::spawn(async move { dead.receive(1).await });
    queue.close().await;
    assert!(matches!(source.receive(1).await, Err(QueueError::Unavailable(_))));
    assert!(matches!(waiting.await.unwrap(), Err(QueueError::Unavailable(_))));
    assert!(matches!(
        queue.sink().await.unwrap().write(0, frame(0)).await,
        Err(QueueError::Unavailable(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_confirmed_survives_a_crash() {
    let directory = Directory::new();
    let queue = opened(&directory).await;
    let mut source = queue.source(SourceLane::Main).await.unwrap();
    write(&queue, 0..10).await;
    let received = receive(&mut source, 10).await;
    source.acknowledge_up_to(received[4].tag).await.unwrap();
    write(&queue, 10..300).await;

    let crashed = directory.as_after_a_crash();
    let recovered = opened(&crashed).await;
    let depth = recovered.depth().await.unwrap().frames;
    assert!(
        (295..=300).contains(&depth),
        "an acknowledgement may be lost: {depth}"
    );
    let mut source = recovered.source(SourceLane::Main).await.unwrap();
    let count = usize::try_from(depth).unwrap();
    let received = receive(&mut source, count).await;
    assert_eq!(bodies(&received), frames(300 - count..300));
    assert!(
        received.iter().all(|frame| frame.redelivered),
        "it may have come out before"
    );

    // A clean end leaves everything in the one file.
    source.acknowledge_up_to(received[count - 3].tag).await.unwrap();
    recovered.close().await;
    assert!(!crashed.path().join("queue.db-wal").exists());
    let reopened = opened(&crashed).await;
    assert_eq!(reopened.depth().await.unwrap().frames, 2);
    let mut source = reopened.source(SourceLane::Main).await.unwrap();
    assert_eq!(bodies(&receive(&mut source, 2).await), frames(298..300));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lags_reads_what_memory_does_not_hold() {
    let directory = Directory::new();
    let queue = opened(&directory).await;
    let mut sink = queue.sink().await.unwrap();
    let body = |number: u32| Bytes::from([&number.to_be_bytes()[..], &vec![7; 600_000]].concat());
    for number in 0..20 {
        sink.write(0, body(number)).await.unwrap().await.unwrap();
    }
    let mut source = queue.source(SourceLane::Main).await.unwrap();
    let mut received = Vec::new();
    while received.len() < 20 {
        let batch = source.receive(1_000_000).await.unwrap();
        assert!(
            batch.len() <= 2,
            "no more than was asked for, and the frame that goes over"
        );
        received.extend(batch);
    }
    let expected: Vec<Bytes> = (0..20).map(body).collect();
    assert!(bodies(&received) == expected);
    // Caught up: what comes now comes from memory, and nothing twice.
    sink.write(0, body(20)).await.unwrap().await.unwrap();
    assert!(bodies(&receive(&mut source, 1).await) == [body(20)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_takes_again_once_there_is_room() {
    let directory = Directory::new();
    let queue = embedded::open_bounded(directory.path(), 30).await.unwrap();
    write(&queue, 0..4).await;
    let mut sink = queue.sink().await.unwrap();
    assert!(matches!(
        sink.write(0, frame(4)).await.map(drop),
        Err(QueueError::Refused(_))
    ));
    assert!(sink.healthy());
    let mut source = queue.source(SourceLane::Main).await.unwrap();
    let received = receive(&mut source, 4).await;
    source.acknowledge_up_to(received[0].tag).await.unwrap();
    sink.write(0, frame(4)).await.unwrap().await.unwrap();
    assert!(matches!(
        sink.write(0, frame(5)).await.map(drop),
        Err(QueueError::Refused(_))
    ));
    queue.close().await;
    // The bound counts what is already there.
    let queue = embedded::open_bounded(directory.path(), 30).await.unwrap();
    let mut sink = queue.sink().await.unwrap();
    assert!(matches!(
        sink.write(0, frame(5)).await.map(drop),
        Err(QueueError::Refused(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_confirms_nothing_and_recovers() {
    let directory = Directory::new();
    let queue = opened(&directory).await;
    write(&queue, 0..1).await;
    let mut lock = file(&directory).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();

    let mut sink = queue.sink().await.unwrap();
    let refused = tokio::time::timeout(LONG, sink.write(0, frame(1)).await.unwrap()).await;
    assert!(matches!(
        refused.expect("an answer in time"),
        Err(QueueError::Unavailable(_))
    ));
    assert!(sink.healthy());
    assert_eq!(queue.depth().await.unwrap().frames, 1);

    sqlx::query("ROLLBACK").execute(&mut lock).await.unwrap();
    write(&queue, 2..4).await;
    let mut source = queue.source(SourceLane::Main).await.unwrap();
    let received = receive(&mut source, 3).await;
    assert_eq!(bodies(&received), [frame(0), frame(2), frame(3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sinks_write_at_once_and_each_keeps_its_order() {
    let directory = Directory::new();
    let queue = opened(&directory).await;
    let mut source = queue.source(SourceLane::Main).await.unwrap();
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let sink = queue.sink();
            async move {
                let mut sink = sink.await.unwrap();
                let mut confirmations = Vec::new();
                for number in 0..200 {
                    let body = Bytes::from(format!("{writer} {number:03}"));
                    confirmations.push(sink.write(0, body).await.unwrap());
                }
                for confirmation in confirmations {
                    confirmation.await.unwrap();
                }
            }
        })
        .collect();
    let written = futures_util::future::join_all(writers);
    let read = async {
        let mut received: Vec<Received> = Vec::new();
        while received.len() < 1600 {
            let batch = tokio::time::timeout(LONG, source.receive(200)).await;
            let batch = batch.expect("frames in time").unwrap();
            source
                .acknowledge_up_to(batch[batch.len() - 1].tag)
                .await
                .unwrap();
            received.extend(batch);
        }
        received
    };
    let (_, received) = tokio::join!(written, read);
    for writer in 0..8 {
        let prefix = format!("{writer} ");
        let own: Vec<Bytes> = bodies(&received)
            .into_iter()
            .filter(|body| body.starts_with(prefix.as_bytes()))
            .collect();
        let expected: Vec<Bytes> = (0..200)
            .map(|number| Bytes::from(format!("{writer} {number:03}")))
            .collect();
        assert_eq!(own, expected);
    }
    assert_eq!(queue.depth().await.unwrap().frames, 0);
}
