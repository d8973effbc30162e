//! Consumers that are never deaf: each has a channel of its own, and treats the end of its stream, an error, a delivery that
//! could not be settled and a closed channel alike. The channel is given up, what was unsettled on it goes back, and another
//! one is attached, until the bus is closed or the receiver is gone.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::health::Health;
use super::link::{Link, Live, backoff};
use super::message::{bus_error, incoming, short};
use crate::bus::{BusError, Delivery, NotSettled, Settle, StreamFrom};
use crate::env::Env;
use crate::topology;

const ATTACH_LIMIT: Duration = Duration::from_secs(5);
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const PRIVATE_QUEUE_MESSAGES_MAX: i64 = 10_000;

/// What is consumed.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A queue of the topology.
    Queue(String),
    /// A queue of our own, made again at each attaching.
    Private {
        name: String,
        event_keys: Vec<String>,
    },
    /// The event stream; where reading goes on moves with what was handed out.
    Stream(StreamFrom),
}

impl Source {
    fn queue(&self) -> &str {
        match self {
            Source::Queue(name) | Source::Private { name, .. } => name,
            Source::Stream(_) => topology::EVENTS_LOG,
        }
    }
}

#[derive(Debug)]
pub(super) struct ConsumerTask {
    pub(super) source: Source,
    pub(super) prefetch: u16,
    pub(super) link: Link,
    pub(super) health: Arc<Health>,
    pub(super) env: Env,
    pub(super) cancel: CancellationToken,
    pub(super) out: mpsc::Sender<Delivery>,
    /// Told what the first attaching came to.
    pub(super) first: Option<oneshot::Sender<Result<(), BusError>>>,
}

/// Why a consumer stopped handing out.
enum Pause {
    /// The bus is being closed or nobody receives any more.
    Done,
    /// Something went wrong.
    Fault(BusError),
}

fn fault(text: &str) -> Pause {
    Pause::Fault(BusError::Unreachable(text.to_owned()))
}

impl ConsumerTask {
    /// Runs until the bus is closed or the receiver is dropped.
    pub(super) async fn run(mut self) {
        let id = self.health.add_consumer();
        self.attach_and_pump(id).await;
        self.health.remove_consumer(id);
    }

    async fn attach_and_pump(&mut self, id: u64) {
        let mut failures = 0;
        loop {
            let live = tokio::select! {
                () = self.cancel.cancelled() => return,
                () = self.out.closed() => return,
                live = self.link.ready() => match live {
                    Some(live) => live,
                    None => return,
                },
            };
            let attached = timeout(ATTACH_LIMIT, self.attach(&live)).await;
            let error = match attached {
                Ok(Ok((channel, consumer))) => {
                    failures = 0;
                    self.health.consumer_attached(id);
                    debug!(queue = self.source.queue(), "consuming");
                    self.tell_first(Ok(()));
                    match self.pump(&channel, consumer).await {
                        Pause::Done => return,
                        Pause::Fault(error) => {
                            give_back(&channel).await;
                            error
                        }
                    }
                }
                Ok(Err(error)) => error,
                Err(_) => BusError::Unreachable("no answer within 5 s".to_owned()),
            };
            // Whoever asked for a queue that cannot be used is told so, once; later, while running, it is waited for.
            let refused = matches!(error, BusError::Topology(_) | BusError::Forbidden(_));
            if refused && self.tell_first(Err(error.clone())) {
                return;
            }
            if failures == 0 {
                warn!(queue = self.source.queue(), %error, "a consumer lost its queue");
            }
            self.health.consumer_detached(id, error);
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = sleep(backoff(&self.env, failures)) => failures = failures.saturating_add(1),
            }
        }
    }

    /// Tells whoever waits for the first attaching, if somebody does.
    fn tell_first(&mut self, result: Result<(), BusError>) -> bool {
        self.first
            .take()
            .is_some_and(|first| first.send(result).is_ok())
    }

    async fn attach(&mut self, live: &Live) -> Result<(Channel, Consumer), BusError> {
        let queue = short(self.source.queue())?;
        let missing = |error: lapin::Error| {
            if topology::is_absent(&error) {
                topology::mismatch(format!("the broker has no queue {queue}"))
            } else {
                bus_error(error)
            }
        };
        let channel = live.connection.create_channel().await.map_err(bus_error)?;
        channel
            .basic_qos(self.prefetch, BasicQosOptions::default())
            .await
            .map_err(bus_error)?;
        let mut arguments = FieldTable::default();
        match &self.source {
            Source::Queue(_) => {}
            Source::Private { event_keys, .. } => {
                declare_private(&channel, self.source.queue(), event_keys).await?;
            }
            Source::Stream(from) => {
                let value = match from {
                    StreamFrom::First => AMQPValue::LongString("first".into()),
                    StreamFrom::Next => AMQPValue::LongString("next".into()),
                    StreamFrom::Offset(offset) => {
                        AMQPValue::LongLongInt(i64::try_from(*offset).unwrap_or(i64::MAX))
                    }
                    StreamFrom::Time(time) => AMQPValue::Timestamp(seconds(*time)),
                };
                arguments.insert("x-stream-offset".into(), value);
            }
        }
        let consumer = channel
            .basic_consume(
                queue.clone(),
                "".into(),
                BasicConsumeOptions::default(),
                arguments,
            )
            .await
            .map_err(missing)?;
        if let Source::Stream(from @ StreamFrom::Next) = &mut self.source {
            // What comes from now on, also when now is long ago at the next attaching.
            *from = StreamFrom::Time(self.env.now());
        }
        Ok((channel, consumer))
    }

    /// Hands deliveries out until something happens.
    async fn pump(&mut self, channel: &Channel, mut consumer: Consumer) -> Pause {
        let broken = CancellationToken::new();
        let tag = consumer.tag();
        let pause = loop {
            let delivery = tokio::select! {
                biased;
                () = self.cancel.cancelled() => break Pause::Done,
                () = self.out.closed() => break Pause::Done,
                () = broken.cancelled() => break fault("a delivery could not be settled"),
                next = consumer.next() => match next {
                    Some(Ok(delivery)) => delivery,
                    Some(Err(error)) => break Pause::Fault(bus_error(error)),
                    None => break fault("the broker ended the consumer"),
                },
                () = sleep(LOOK_EVERY) => {
                    if channel.status().connected() {
                        continue;
                    }
                    break fault("the channel was closed");
                }
            };
            let Some(delivery) = self.convert(channel, &broken, delivery).await else {
                continue;
            };
            let next = delivery.message.stream_offset.map(|offset| offset + 1);
            let sent = tokio::select! {
                biased;
                () = self.cancel.cancelled() => break Pause::Done,
                () = broken.cancelled() => break fault("a delivery could not be settled"),
                sent = self.out.send(delivery) => sent,
                () = closed(channel) => break fault("the channel was closed"),
            };
            if sent.is_err() {
                break Pause::Done;
            }
            if let (Source::Stream(from), Some(next)) = (&mut self.source, next) {
                *from = StreamFrom::Offset(next);
            }
        };
        if matches!(pause, Pause::Done) {
            // Whoever still holds deliveries may settle them: they hold the channel open.
            let cancel = channel.basic_cancel(tag, BasicCancelOptions::default());
            if !matches!(timeout(CLOSE_LIMIT, cancel).await, Ok(Ok(()))) {
                info!(
                    queue = self.source.queue(),
                    "the consumer could not be cancelled; its channel goes with it"
                );
            }
        }
        pause
    }

    /// Our form of a delivery; `None` when it lies before the place that was asked for.
    async fn convert(
        &self,
        channel: &Channel,
        broken: &CancellationToken,
        mut delivery: AmqpDelivery,
    ) -> Option<Delivery> {
        let sent_at_s = *delivery.properties.timestamp();
        let message = incoming(&mut delivery);
        let settle = AmqpSettle {
            delivery,
            broken: broken.clone(),
            _channel: channel.clone(),
        };
        let Source::Stream(from) = &self.source else {
            return Some(Delivery::new(message, Box::new(settle)));
        };
        // The broker begins at the chunk in which the place lies.
        let before = match *from {
            StreamFrom::Offset(first) => message.stream_offset.is_some_and(|at| at < first),
            StreamFrom::Time(first) => sent_at_s.is_some_and(|at| at < seconds(first)),
            StreamFrom::First | StreamFrom::Next => false,
        };
        let settle = Box::new(StreamSettle(settle));
        if !before {
            return Some(Delivery::new(message, settle));
        }
        // An acknowledgement in a stream only asks for more; one that fails breaks the channel, which is seen to.
        match settle.ack().await {
            Ok(()) | Err(_) => None,
        }
    }
}

fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or(0)
}

async fn closed(channel: &Channel) {
    while channel.status().connected() {
        sleep(LOOK_EVERY).await;
    }
}

async fn declare_private(
    channel: &Channel,
    name: &str,
    event_keys: &[String],
) -> Result<(), BusError> {
    let options = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..Default::default()
    };
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("classic".into()),
    );
    arguments.insert(
        "x-max-length".into(),
        AMQPValue::LongLongInt(PRIVATE_QUEUE_MESSAGES_MAX),
    );
    channel
        .queue_declare(short(name)?, options, arguments)
        .await
        .map_err(bus_error)?;
    for key in event_keys {
        channel
            .queue_bind(
                short(name)?,
                topology::EVENTS.into(),
                short(key)?,
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(bus_error)?;
    }
    Ok(())
}

/// Closes a channel, so that what is unsettled on it goes back at once.
async fn give_back(channel: &Channel) {
    if channel.status().connected() {
        let close = channel.close(200, "consuming again".into());
        if !matches!(timeout(CLOSE_LIMIT, close).await, Ok(Ok(()))) {
            debug!("a channel was gone before it was closed");
        }
    }
}

/// Settles a delivery; a failure breaks the consumer that it came from, which then starts again.
pub(super) struct AmqpSettle {
    pub(super) delivery: AmqpDelivery,
    pub(super) broken: CancellationToken,
    // The channel lives as long as a delivery of it can be settled.
    pub(super) _channel: Channel,
}

impl AmqpSettle {
    fn settled(
        &self,
        result: Result<lapin::Result<bool>, tokio::time::error::Elapsed>,
    ) -> Result<(), NotSettled> {
        let why = match result {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => "its channel is gone".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within 10 s".to_owned(),
        };
        self.broken.cancel();
        Err(NotSettled(why))
    }
}

#[async_trait]
impl Settle for AmqpSettle {
    #[expect(clippy::disallowed_methods, reason = "here Ok(false) is a failure")]
    async fn ack(self: Box<Self>) -> Result<(), NotSettled> {
        let ack = self.delivery.acker.ack(BasicAckOptions::default());
        self.settled(timeout(SETTLE_LIMIT, ack).await)
    }

    #[expect(clippy::disallowed_methods, reason = "here Ok(false) is a failure")]
    async fn requeue(self: Box<Self>) -> Result<(), NotSettled> {
        let options = BasicNackOptions {
            requeue: true,
            ..Default::default()
        };
        let nack = self.delivery.acker.nack(options);
        self.settled(timeout(SETTLE_LIMIT, nack).await)
    }
}

/// Settles a delivery of the stream: that only asks for more, the stream keeps everything and our reader its own place. So
/// a failure is no news to whoever handled the message; the reader attaches again behind it.
struct StreamSettle(AmqpSettle);

#[async_trait]
impl Settle for StreamSettle {
    async fn ack(self: Box<Self>) -> Result<(), NotSettled> {
        match Box::new(self.0).ack().await {
            Ok(()) | Err(NotSettled(_)) => Ok(()),
        }
    }

    async fn requeue(self: Box<Self>) -> Result<(), NotSettled> {
        self.ack().await
    }
}
