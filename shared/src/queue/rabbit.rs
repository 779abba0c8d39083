//! The queue on RabbitMQ (3.10 and later): one quorum queue of frames, and one for frames that were returned too often.
//!
//! Guarantees: a frame is confirmed only once a quorum has it on disk (persistent, publisher confirms, `mandatory`); a
//! full queue refuses (`reject-publish`) instead of dropping; past the delivery limit a frame goes to the dead queue,
//! at least once, where it is taken in alone. Everything has a connection of its own, because a broker in alarm stops
//! reading from connections that publish, and acks must pass. A broken connection breaks its sink or source; whoever
//! owns it makes a new one, which declares the queues again.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ErrorKind,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueDeclareOptions,
    },
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::{AMQPValue, FieldTable, ShortString},
    uri::AMQPUri,
};
use tokio::{sync::Mutex, time::timeout};

use super::{
    Confirmation, Depth, FrameSink, FrameSource, Queue, QueueError, Received, Result, SourceLane, frame,
};
use crate::Invalid;

/// How long one exchange with the broker may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Seconds between heartbeats, unless the URL says otherwise: a silent connection is given up after twice that.
const HEARTBEAT_SECONDS: u16 = 5;
/// Frames that a source holds unacknowledged: 17 MiB of them at most, for one is at most [`super::MAX_FRAME_BYTES`], or an
/// event of the largest payload.
const PREFETCH: u16 = 64;
/// A delivery limit that no frame reaches: the dead queue has nowhere to send frames on to.
const NO_LIMIT: i64 = 1_000_000_000;

/// How to reach the broker, and what the queues are like.
#[derive(Debug, Clone)]
pub struct RabbitOptions {
    /// `amqp://` or `amqps://`.
    pub uri: AMQPUri,
    /// What the queues' names begin with.
    pub prefix: String,
    /// How often a frame may be returned before it is taken in alone.
    pub delivery_limit: u32,
    /// The most bytes of frames that wait; past that the queue refuses more.
    pub max_bytes: u64,
}

impl RabbitOptions {
    /// Reads the URL.
    pub fn parse_uri(url: &str) -> Result<AMQPUri, Invalid> {
        let mut uri: AMQPUri = url
            .parse()
            .map_err(|error| Invalid::new(format!("must be an amqp:// URL: {error}")))?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        uri.query.connection_timeout.get_or_insert(5_000);
        Ok(uri)
    }

    fn main_queue(&self) -> String {
        format!("{}events", self.prefix)
    }

    fn dead_queue(&self) -> String {
        format!("{}events.dead", self.prefix)
    }
}

/// The queue of a deployment.
pub struct RabbitQueue {
    options: RabbitOptions,
    /// For [`Queue::depth`] alone.
    monitor: Mutex<Option<Link>>,
}

/// A connection with one channel.
struct Link {
    connection: Connection,
    channel: Channel,
}

impl RabbitQueue {
    /// Connects to nothing yet: sinks and sources do.
    pub fn new(options: RabbitOptions) -> Self {
        Self {
            options,
            monitor: Mutex::new(None),
        }
    }

    async fn connect(&self, purpose: &str) -> Result<Link> {
        let properties =
            ConnectionProperties::default().with_connection_name(format!("triggers {purpose}").into());
        let connection = call(Connection::connect_uri(self.options.uri.clone(), properties)).await?;
        let channel = call(connection.create_channel()).await?;
        let link = Link { connection, channel };
        self.declare(&link.channel).await?;
        Ok(link)
    }

    async fn declare(&self, channel: &Channel) -> Result<()> {
        let mut dead = FieldTable::default();
        dead.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        dead.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(NO_LIMIT));
        self.declare_queue(channel, &self.options.dead_queue(), dead)
            .await?;

        let mut main = FieldTable::default();
        main.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        main.insert(
            "x-delivery-limit".into(),
            AMQPValue::LongLongInt(self.options.delivery_limit.into()),
        );
        main.insert(
            "x-overflow".into(),
            AMQPValue::LongString("reject-publish".into()),
        );
        let max_bytes = i64::try_from(self.options.max_bytes).unwrap_or(i64::MAX);
        main.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(max_bytes));
        main.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        let dead_queue = self.options.dead_queue();
        main.insert(
            "x-dead-letter-routing-key".into(),
            AMQPValue::LongString(dead_queue.into()),
        );
        main.insert(
            "x-dead-letter-strategy".into(),
            AMQPValue::LongString("at-least-once".into()),
        );
        self.declare_queue(channel, &self.options.main_queue(), main)
            .await
    }

    async fn declare_queue(&self, channel: &Channel, name: &str, arguments: FieldTable) -> Result<()> {
        let declared = channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments);
        match timeout(CALL_TIMEOUT, declared).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if is_mismatch(&error) => Err(QueueError::Misconfigured(format!(
                "the queue {name} exists with other properties than this version declares: delete it once it is empty, \
                 or set TRIGGERS_QUEUE_PREFIX to use another ({error})"
            ))),
            Ok(Err(error)) => Err(unavailable(&error)),
            Err(_) => Err(no_answer()),
        }
    }
}

fn is_mismatch(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error)
        if *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED))
}

async fn call<T>(exchange: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match timeout(CALL_TIMEOUT, exchange).await {
        Ok(done) => done.map_err(|error| unavailable(&error)),
        Err(_) => Err(no_answer()),
    }
}

fn unavailable(error: &lapin::Error) -> QueueError {
    QueueError::Unavailable(error.to_string())
}

fn no_answer() -> QueueError {
    QueueError::Unavailable("the broker did not answer within 5 seconds".into())
}

#[async_trait]
impl Queue for RabbitQueue {
    async fn sink(&self) -> Result<Box<dyn FrameSink>> {
        let link = self.connect("publisher").await?;
        call(link.channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type(ShortString::from(frame::CONTENT_TYPE));
        Ok(Box::new(RabbitSink {
            link,
            queue: self.options.main_queue().into(),
            properties,
        }))
    }

    async fn source(&self, lane: SourceLane) -> Result<Box<dyn FrameSource>> {
        let (purpose, queue, prefetch) = match lane {
            SourceLane::Main => ("intake", self.options.main_queue(), PREFETCH),
            SourceLane::Dead => ("dead frames", self.options.dead_queue(), 1),
        };
        let link = self.connect(purpose).await?;
        call(link.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consume = link
            .channel
            .basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let consumer = call(consume).await?;
        Ok(Box::new(RabbitSource { link, consumer }))
    }

    async fn depth(&self) -> Result<Depth> {
        let mut monitor = self.monitor.lock().await;
        let link = match monitor.take() {
            Some(link) if link.connection.status().connected() => link,
            _ => self.connect("monitor").await?,
        };
        let mut counts = [0; 2];
        for (count, name) in counts
            .iter_mut()
            .zip([self.options.main_queue(), self.options.dead_queue()])
        {
            let options = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            // An error closes the channel: the next call connects anew, and declares.
            let queue = call(
                link.channel
                    .queue_declare(name.into(), options, FieldTable::default()),
            )
            .await?;
            *count = u64::from(queue.message_count());
        }
        *monitor = Some(link);
        Ok(Depth {
            frames: counts[0],
            dead: counts[1],
        })
    }

    async fn close(&self) {
        if let Some(link) = self.monitor.lock().await.take() {
            link.close().await;
        }
    }
}

impl Link {
    async fn close(self) {
        let _ = timeout(Duration::from_secs(1), self.connection.close(200, "done".into())).await;
    }
}

/// Frames go in here. One task owns it: a channel shared by several can swap delivery tags.
struct RabbitSink {
    link: Link,
    queue: ShortString,
    properties: BasicProperties,
}

#[async_trait]
impl FrameSink for RabbitSink {
    async fn write(&mut self, frame: Bytes) -> Result<Confirmation> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let publish = self.link.channel.basic_publish(
            "".into(),
            self.queue.clone(),
            options,
            &frame,
            self.properties.clone(),
        );
        // A broker in alarm, or hung, stops reading: a write that does not end breaks the sink.
        let confirm = timeout(super::publisher::CONFIRM_TIMEOUT, publish)
            .await
            .map_err(|_| QueueError::Unavailable("the broker does not read".into()))?
            .map_err(|error| unavailable(&error))?;
        Ok(confirm
            .map(|confirmed| match confirmed {
                Ok(lapin::Confirmation::Ack(None)) => Ok(()),
                // Acknowledged and returned is not in any queue.
                Ok(lapin::Confirmation::Ack(Some(_)) | lapin::Confirmation::Nack(Some(_))) => Err(
                    QueueError::Unavailable("the queue is gone: the frame was returned".into()),
                ),
                Ok(lapin::Confirmation::Nack(None)) => Err(QueueError::Refused(
                    "it is full (or the broker could not store the frame)".into(),
                )),
                Ok(lapin::Confirmation::NotRequested) => {
                    Err(QueueError::Unavailable("the channel does not confirm".into()))
                }
                Err(error) => Err(unavailable(&error)),
            })
            .boxed())
    }

    fn healthy(&self) -> bool {
        let status = self.link.connection.status();
        status.connected() && !status.blocked() && self.link.channel.status().connected()
    }
}

/// Frames come out here.
struct RabbitSource {
    link: Link,
    consumer: Consumer,
}

#[async_trait]
impl FrameSource for RabbitSource {
    async fn receive(&mut self, max_bytes: usize) -> Result<Vec<Received>> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        let mut next = self.consumer.next().await;
        loop {
            let delivery = match next {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => return Err(unavailable(&error)),
                // A consumer that the broker cancels (its queue was deleted) just ends.
                None => return Err(QueueError::Unavailable("the broker ended the consumer".into())),
            };
            bytes += delivery.data.len();
            frames.push(Received {
                body: delivery.data.into(),
                tag: delivery.delivery_tag,
                redelivered: delivery.redelivered,
            });
            if bytes >= max_bytes {
                return Ok(frames);
            }
            match self.consumer.next().now_or_never() {
                Some(ready) => next = ready,
                None => return Ok(frames),
            }
        }
    }

    async fn acknowledge_up_to(&mut self, tag: u64) -> Result<()> {
        call(
            self.link
                .channel
                .basic_ack(tag, BasicAckOptions { multiple: true }),
        )
        .await
    }
}
