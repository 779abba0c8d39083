//! The queue on RabbitMQ (3.10 and later): quorum queues of frames, one unless a deployment is told otherwise, and one for
//! frames that were returned too often.
//!
//! Guarantees: a frame is confirmed only once a quorum has it on disk (persistent, publisher confirms, `mandatory`); a
//! full queue refuses (`reject-publish`) instead of dropping; past the delivery limit a frame goes to the dead queue,
//! at least once, where it is taken in alone. Everything has a connection of its own, because a broker in alarm stops
//! reading from connections that publish, and acks must pass. A broken connection breaks its sink or source; whoever
//! owns it makes a new one, which declares the queues again.
//!
//! A sink writes to as many queues as are set. A source takes from those and from every further one that is there when it
//! connects, so that what lies in the queues of a deployment that once had more is taken in.

mod notices;

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ErrorKind,
    message::Delivery,
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
    Confirmation, Depth, FrameSink, FrameSource, MAX_QUEUES, NoticeSink, NoticeSource, Queue, QueueError,
    Received, Result, SourceLane, frame,
};
use crate::Invalid;

/// How long one exchange with the broker may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Seconds between heartbeats, unless the URL says otherwise: a silent connection is given up after twice that.
const HEARTBEAT_SECONDS: u16 = 5;
/// Frames that a source holds unacknowledged, of all queues together: 17 MiB of them at most, for one is at most [`super::MAX_FRAME_BYTES`], or an
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
    /// Over how many queues frames are spread: 1 to [`MAX_QUEUES`].
    pub queues: u8,
    /// How often a frame may be returned before it is taken in alone.
    pub delivery_limit: u32,
    /// The most bytes of frames that wait in one queue; past that it refuses more.
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

    /// The name of a queue of frames, numbered from 1.
    fn main_queue(&self, number: u8) -> String {
        match number {
            1 => format!("{}events", self.prefix),
            _ => format!("{}events.{number}", self.prefix),
        }
    }

    fn dead_queue(&self) -> String {
        format!("{}events.dead", self.prefix)
    }
}

/// The queue of a deployment.
pub struct RabbitQueue {
    options: RabbitOptions,
    /// For [`Queue::depth`] alone: how to ask, and how many queues there are.
    monitor: Mutex<Option<(Link, u8)>>,
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

    /// A connection on which the queues are declared.
    async fn connect(&self, purpose: &str) -> Result<Link> {
        let link = self.link(purpose).await?;
        self.declare(&link.channel).await?;
        Ok(link)
    }

    async fn link(&self, purpose: &str) -> Result<Link> {
        let properties =
            ConnectionProperties::default().with_connection_name(format!("triggers {purpose}").into());
        let connection = call(Connection::connect_uri(self.options.uri.clone(), properties)).await?;
        let channel = call(connection.create_channel()).await?;
        Ok(Link { connection, channel })
    }

    async fn declare(&self, channel: &Channel) -> Result<()> {
        let mut dead = FieldTable::default();
        dead.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        dead.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(NO_LIMIT));
        self.declare_queue(channel, &self.options.dead_queue(), dead)
            .await?;

        for number in 1..=self.options.queues {
            let name = self.options.main_queue(number);
            self.declare_queue(channel, &name, self.main_properties()).await?;
        }
        Ok(())
    }

    fn main_properties(&self) -> FieldTable {
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
        main
    }

    /// How many queues there are: those that are set, and further ones of a time when more were.
    async fn count(&self, connection: &Connection) -> Result<u8> {
        let mut count = self.options.queues;
        if count == MAX_QUEUES {
            return Ok(count);
        }
        let channel = call(connection.create_channel()).await?;
        call(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        while count < MAX_QUEUES && is_there(&channel, self.options.main_queue(count + 1)).await? {
            count += 1;
        }
        let _ = timeout(CALL_TIMEOUT, channel.close(200, "counted".into())).await;
        Ok(count)
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

/// Whether there is such a queue. It is sent a frame with nothing in it, which comes back if there is not: to ask for a
/// queue that is missing would be an error, in the broker's log and in ours.
async fn is_there(channel: &Channel, name: String) -> Result<bool> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let properties = BasicProperties::default().with_content_type(ShortString::from(frame::CONTENT_TYPE));
    let sent = call(channel.basic_publish("".into(), name.into(), options, b"", properties)).await?;
    // Taken, or refused by a queue that is full.
    Ok(matches!(
        call(sent).await?,
        lapin::Confirmation::Ack(None) | lapin::Confirmation::Nack(None)
    ))
}

/// How many messages wait in a queue. An error closes the channel.
async fn message_count(channel: &Channel, name: String) -> Result<u64> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let queue = call(channel.queue_declare(name.into(), options, FieldTable::default())).await?;
    Ok(queue.message_count().into())
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
    fn ways(&self) -> usize {
        self.options.queues.into()
    }

    async fn sink(&self) -> Result<Box<dyn FrameSink>> {
        let link = self.connect("publisher").await?;
        call(link.channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type(ShortString::from(frame::CONTENT_TYPE));
        let name = |number| self.options.main_queue(number).into();
        Ok(Box::new(RabbitSink {
            link,
            queues: (1..=self.options.queues).map(name).collect(),
            properties,
        }))
    }

    async fn source(&self, lane: SourceLane) -> Result<Box<dyn FrameSource>> {
        let (link, queues, prefetch) = match lane {
            SourceLane::Main => {
                let link = self.connect("intake").await?;
                let count = self.count(&link.connection).await?;
                let queues = (1..=count).map(|number| self.options.main_queue(number));
                (
                    link,
                    queues.collect(),
                    (PREFETCH / u16::from(count.max(1))).max(1),
                )
            }
            SourceLane::Dead => {
                let link = self.connect("dead frames").await?;
                (link, vec![self.options.dead_queue()], 1)
            }
        };
        let mut outlets = Vec::with_capacity(queues.len());
        for queue in queues {
            // Each has a channel of its own: frames of one channel are acknowledged in the order in which the broker sent
            // them, which is not that in which they are taken from several queues.
            let channel = if outlets.is_empty() {
                link.channel.clone()
            } else {
                call(link.connection.create_channel()).await?
            };
            call(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
            let options = BasicConsumeOptions::default();
            let consume = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
            let consumer = call(consume).await?;
            outlets.push(Outlet { channel, consumer });
        }
        Ok(Box::new(RabbitSource {
            _link: link,
            outlets,
            turn: 0,
            last: 0,
            out: VecDeque::new(),
        }))
    }

    async fn depth(&self) -> Result<Depth> {
        let mut monitor = self.monitor.lock().await;
        let (link, queues) = match monitor.take() {
            Some((link, queues)) if link.connection.status().connected() => (link, queues),
            _ => {
                let link = self.connect("monitor").await?;
                let queues = self.count(&link.connection).await?;
                (link, queues)
            }
        };
        // An error closes the channel: the next call connects anew, and declares.
        let mut frames = 0;
        for number in 1..=queues {
            frames += message_count(&link.channel, self.options.main_queue(number)).await?;
        }
        let dead = message_count(&link.channel, self.options.dead_queue()).await?;
        *monitor = Some((link, queues));
        Ok(Depth { frames, dead })
    }

    async fn notice_sink(&self) -> Result<Option<Box<dyn NoticeSink>>> {
        Ok(Some(Box::new(self.open_notice_sink().await?)))
    }

    async fn notice_source(&self) -> Result<Option<Box<dyn NoticeSource>>> {
        Ok(Some(Box::new(self.open_notice_source().await?)))
    }

    async fn close(&self) {
        if let Some((link, _)) = self.monitor.lock().await.take() {
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
    /// Their names.
    queues: Vec<ShortString>,
    properties: BasicProperties,
}

#[async_trait]
impl FrameSink for RabbitSink {
    async fn write(&mut self, way: usize, frame: Bytes) -> Result<Confirmation> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let publish = self.link.channel.basic_publish(
            "".into(),
            self.queues[way].clone(),
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
    _link: Link,
    outlets: Vec<Outlet>,
    /// Whose turn it is to be asked first.
    turn: usize,
    /// The tag that was given last.
    last: u64,
    /// What was given and is not acknowledged, in the order of the tags.
    out: VecDeque<Out>,
}

/// The way out of one queue.
struct Outlet {
    channel: Channel,
    consumer: Consumer,
}

/// A frame not acknowledged.
struct Out {
    tag: u64,
    outlet: usize,
    /// What the broker calls it, on this outlet's channel.
    delivery_tag: u64,
}

impl RabbitSource {
    /// The next delivery, of the queues in turn.
    fn poll_next(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(usize, Delivery)>> {
        let count = self.outlets.len();
        for index in (self.turn..count).chain(0..self.turn) {
            match self.outlets[index].consumer.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(delivery))) => {
                    self.turn = (index + 1) % count;
                    return Poll::Ready(Ok((index, delivery)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(unavailable(&error))),
                // A consumer that the broker cancels (its queue was deleted) just ends.
                Poll::Ready(None) => {
                    let ended = "the broker ended a consumer".into();
                    return Poll::Ready(Err(QueueError::Unavailable(ended)));
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }
}

#[async_trait]
impl FrameSource for RabbitSource {
    async fn receive(&mut self, max_bytes: usize) -> Result<Vec<Received>> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        let mut next = poll_fn(|context| self.poll_next(context)).await;
        loop {
            let (outlet, delivery) = next?;
            self.last += 1;
            self.out.push_back(Out {
                tag: self.last,
                outlet,
                delivery_tag: delivery.delivery_tag,
            });
            bytes += delivery.data.len();
            frames.push(Received {
                body: delivery.data.into(),
                tag: self.last,
                redelivered: delivery.redelivered,
            });
            if bytes >= max_bytes {
                return Ok(frames);
            }
            match poll_fn(|context| self.poll_next(context)).now_or_never() {
                Some(ready) => next = ready,
                None => return Ok(frames),
            }
        }
    }

    async fn acknowledge_up_to(&mut self, tag: u64) -> Result<()> {
        let mut last = vec![None; self.outlets.len()];
        while let Some(out) = self.out.pop_front_if(|out| out.tag <= tag) {
            last[out.outlet] = Some(out.delivery_tag);
        }
        for (outlet, delivery_tag) in self.outlets.iter().zip(last) {
            if let Some(delivery_tag) = delivery_tag {
                let up_to = BasicAckOptions { multiple: true };
                call(outlet.channel.basic_ack(delivery_tag, up_to)).await?;
            }
        }
        Ok(())
    }
}
