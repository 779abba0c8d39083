//! Notices on RabbitMQ: a fanout exchange, which passes each on to a queue of every process that listens.
//!
//! Such a queue is its connection's own and goes with it, and the exchange goes with the last queue: nothing is left behind,
//! and nothing gathers for a process that is gone. A process that does not keep up loses the oldest notices first.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Consumer, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};

use super::{Link, RabbitQueue, Result, call, unavailable};
use crate::queue::{NoticeSink, NoticeSource, QueueError};

/// The most notices that wait for one process.
const MAX_WAITING: i32 = 10_000;

impl RabbitQueue {
    fn exchange(&self) -> ShortString {
        format!("{}revocations", self.options.prefix).into()
    }

    /// A connection on which the exchange is declared.
    async fn notices(&self, purpose: &str) -> Result<Link> {
        let link = self.link(purpose).await?;
        let options = ExchangeDeclareOptions {
            auto_delete: true,
            ..ExchangeDeclareOptions::default()
        };
        let declared = link.channel.exchange_declare(
            self.exchange(),
            ExchangeKind::Fanout,
            options,
            FieldTable::default(),
        );
        call(declared).await?;
        Ok(link)
    }

    pub(super) async fn open_notice_sink(&self) -> Result<Sink> {
        let link = self.notices("revocations").await?;
        call(link.channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Sink {
            exchange: self.exchange(),
            channel: link.channel.clone(),
            _link: link,
        })
    }

    pub(super) async fn open_notice_source(&self) -> Result<Source> {
        let link = self.notices("revocations heard").await?;
        let channel = &link.channel;
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(MAX_WAITING));
        let queue = call(channel.queue_declare("".into(), options, arguments)).await?;
        let bind = channel.queue_bind(
            queue.name().clone(),
            self.exchange(),
            "".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        call(bind).await?;
        // What is lost on the way is told by the store: nothing is acknowledged.
        let options = BasicConsumeOptions {
            no_ack: true,
            exclusive: true,
            ..BasicConsumeOptions::default()
        };
        let consume = channel.basic_consume(queue.name().clone(), "".into(), options, FieldTable::default());
        let consumer = call(consume).await?;
        Ok(Source {
            consumer,
            _link: link,
        })
    }
}

pub(super) struct Sink {
    exchange: ShortString,
    channel: Channel,
    _link: Link,
}

#[async_trait]
impl NoticeSink for Sink {
    async fn send(&mut self, notice: Bytes) -> Result<()> {
        let properties = BasicProperties::default().with_content_type("application/json".into());
        let publish = self.channel.basic_publish(
            self.exchange.clone(),
            "".into(),
            BasicPublishOptions::default(),
            &notice,
            properties,
        );
        let confirm = call(publish).await?;
        match call(confirm).await? {
            lapin::Confirmation::Ack(_) => Ok(()),
            other => Err(QueueError::Refused(format!("{other:?}"))),
        }
    }
}

pub(super) struct Source {
    consumer: Consumer,
    _link: Link,
}

#[async_trait]
impl NoticeSource for Source {
    async fn receive(&mut self) -> Result<Bytes> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(delivery.data.into()),
            Some(Err(error)) => Err(unavailable(&error)),
            None => Err(QueueError::Unavailable("the broker ended the consumer".into())),
        }
    }
}
