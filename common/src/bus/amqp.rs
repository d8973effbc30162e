//! The bus over RabbitMQ: two supervised connections, one publishing task, one task per consumer.
//!
//! Opening needs no broker: as long as it cannot be reached, publishes wait (up to their limit) and consumers are silent.
//! What no waiting can mend, a missing queue or a refused password, is an error when it is seen at opening.

mod consumer;
mod health;
mod link;
mod message;
mod publisher;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::Channel;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::consumer::{AmqpSettle, ConsumerTask, Source};
use self::health::{Health, Purpose};
use self::link::{Link, Live, Supervisor};
use self::publisher::{GROUP_MAX, Item, Publisher};
use super::{
    Bus, BusError, BusHealth, Deliveries, Delivery, OutgoingMessage, PrivateQueue, PublishError,
    StreamFrom,
};
use crate::config::Secret;
use crate::env::Env;
use crate::topology::{self, Role, Topology};

pub(crate) use message::{bus_error, short};

const STREAM_PREFETCH: u16 = 100;
const PRIVATE_PREFETCH: u16 = 16;
const PREFETCH_MAX: u16 = 16;
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// How to reach and use a broker.
#[derive(Debug, Clone)]
pub struct AmqpOptions {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Virtual host, [`topology::VHOST`].
    pub vhost: String,
    /// User.
    pub user: String,
    /// The user's password.
    pub password: Secret,
    /// Heartbeat in seconds; a frozen broker is noticed after twice that.
    pub heartbeat_s: u16,
    /// Who we are, in the broker's list of connections and in `app_id`: `mount-svc/0.1.0 db1`.
    pub connection_name: String,
    /// How long a publish may wait for its confirm, in seconds.
    pub publish_limit_s: u64,
    /// What we are; decides what of the topology must exist.
    pub role: Role,
    /// What must exist.
    pub topology: Topology,
}

/// A bus over RabbitMQ.
#[derive(Debug)]
pub struct AmqpBus {
    options: AmqpOptions,
    env: Env,
    health: Arc<Health>,
    publish: mpsc::Sender<Item>,
    consuming: Link,
    // The channel for taking single messages, with its connection's generation.
    taking: Mutex<Option<(u64, Channel)>>,
    consumers_stop: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Makes whatever of the topology is missing; needs the rights of [`Role::Admin`].
pub async fn apply_topology(options: &AmqpOptions) -> Result<(), BusError> {
    let connection = link::log_in(options, "topology apply").await?;
    let result = topology::apply(&connection, &options.topology).await;
    hang_up(&connection).await;
    result
}

/// Looks whether everything that `options.role` relies on exists.
pub async fn check_topology(options: &AmqpOptions) -> Result<(), BusError> {
    let connection = link::log_in(options, "topology check").await?;
    let result = topology::check(&connection, &options.topology, options.role).await;
    hang_up(&connection).await;
    result
}

async fn hang_up(connection: &lapin::Connection) {
    let closed = timeout(ANSWER_LIMIT, connection.close(200, "bye".into())).await;
    if !matches!(closed, Ok(Ok(()))) {
        warn!("the broker did not say good-bye");
    }
}

impl AmqpBus {
    /// Opens a bus. A broker that cannot be reached is no error: it is tried again until `cancel`. A missing queue and
    /// refused credentials are, when the broker could be reached.
    pub async fn open(
        options: AmqpOptions,
        env: Env,
        cancel: CancellationToken,
    ) -> Result<Arc<Self>, BusError> {
        let (publishing, consuming) = tokio::join!(
            link::connect(&options, Purpose::Publishing),
            link::connect(&options, Purpose::Consuming),
        );
        for result in [&publishing, &consuming] {
            if let Err(error @ (BusError::Topology(_) | BusError::Forbidden(_))) = result {
                return Err(error.clone());
            }
        }
        let tasks = TaskTracker::new();
        let health = Arc::new(Health::default());
        let stop = cancel.child_token();
        let [publisher_stop, consumers_stop, links_stop] =
            [(); 3].map(|()| CancellationToken::new());
        let link = |purpose, first| {
            let (supervisor, link) = Supervisor::new(
                purpose,
                options.clone(),
                env.clone(),
                Arc::clone(&health),
                links_stop.clone(),
            );
            tasks.spawn(supervisor.run(first));
            link
        };
        let reached = [publishing.is_ok(), consuming.is_ok()];
        let publishing = link(Purpose::Publishing, publishing);
        let consuming = link(Purpose::Consuming, consuming);
        for (reached, link) in reached.into_iter().zip([&publishing, &consuming]) {
            // So that the health is right from the first look on.
            if reached && link.clone().ready().await.is_none() {
                return Err(BusError::Closed);
            }
        }
        let (publish, items) = mpsc::channel(GROUP_MAX);
        let publisher = tasks.spawn(
            Publisher {
                items,
                link: publishing,
                health: Arc::clone(&health),
                env: env.clone(),
                app_id: options.connection_name.clone(),
                cancel: publisher_stop.clone(),
            }
            .run(),
        );
        let (closing, consumers) = (stop.clone(), consumers_stop.clone());
        tasks.spawn(async move {
            // In this order: nothing new comes in, what was given to us goes out, then the connections close.
            closing.cancelled().await;
            consumers.cancel();
            publisher_stop.cancel();
            if let Err(error) = publisher.await {
                warn!(%error, "the publishing task ended badly");
            }
            links_stop.cancel();
        });
        Ok(Arc::new(Self {
            options,
            env,
            health,
            publish,
            consuming,
            taking: Mutex::new(None),
            consumers_stop,
            stop,
            tasks,
        }))
    }

    /// Starts a consumer. When the broker is there, waits until it is attached; when not, it attaches later.
    async fn start(&self, source: Source, prefetch: u16) -> Result<Started, BusError> {
        if self.stop.is_cancelled() {
            return Err(BusError::Closed);
        }
        let (out, deliveries) = mpsc::channel(usize::from(prefetch));
        let (first, attached) = oneshot::channel();
        self.tasks.spawn(
            ConsumerTask {
                source,
                prefetch,
                link: self.consuming.clone(),
                health: Arc::clone(&self.health),
                env: self.env.clone(),
                cancel: self.consumers_stop.clone(),
                out,
                first: Some(first),
            }
            .run(),
        );
        if self.consuming.now().is_none() {
            return Ok(Started {
                deliveries,
                attached: Some(attached),
            });
        }
        match timeout(ANSWER_LIMIT, attached).await {
            Ok(Ok(result)) => result.map(|()| Started {
                deliveries,
                attached: None,
            }),
            Ok(Err(_)) => Err(BusError::Closed),
            // The broker has just gone away; the task goes on trying.
            Err(_) => Ok(Started {
                deliveries,
                attached: None,
            }),
        }
    }

    /// The consuming connection, waited for a little.
    async fn live(&self) -> Result<Live, BusError> {
        match timeout(ANSWER_LIMIT, self.consuming.clone().ready()).await {
            Ok(Some(live)) => Ok(live),
            Ok(None) => Err(BusError::Closed),
            Err(_) => Err(self
                .health
                .last_error()
                .unwrap_or_else(|| BusError::Unreachable("there is no connection".to_owned()))),
        }
    }

    async fn answer<T>(
        &self,
        queue: &str,
        work: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BusError> {
        match timeout(ANSWER_LIMIT, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if topology::is_absent(&error) => Err(topology::mismatch(format!(
                "the broker has no queue {queue}"
            ))),
            Ok(Err(error)) => Err(bus_error(error)),
            Err(_) => Err(BusError::Unreachable("no answer within 5 s".to_owned())),
        }
    }
}

struct Started {
    deliveries: Deliveries,
    // There when the broker could not be reached yet.
    attached: Option<oneshot::Receiver<Result<(), BusError>>>,
}

#[async_trait]
impl Bus for AmqpBus {
    async fn publish(&self, message: OutgoingMessage) -> Result<(), PublishError> {
        let limit = Duration::from_secs(self.options.publish_limit_s);
        let deadline = Instant::now() + limit;
        let (answer, answered) = oneshot::channel();
        let item = Item {
            message,
            timestamp_s: u64::try_from(self.env.now().as_second()).unwrap_or(0),
            answer,
        };
        let work = async {
            self.publish
                .send(item)
                .await
                .map_err(|_| PublishError::Closed)?;
            answered.await.unwrap_or(Err(PublishError::Closed))
        };
        timeout_at(deadline, work).await.unwrap_or_else(|_| {
            let last_error = self.health.view().last_error;
            Err(PublishError::TimedOut {
                after_s: self.options.publish_limit_s,
                last_error: last_error.unwrap_or_else(|| "no answer".to_owned()),
            })
        })
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Deliveries, BusError> {
        let prefetch = prefetch.clamp(1, PREFETCH_MAX);
        let source = Source::Queue(queue.to_owned());
        Ok(self.start(source, prefetch).await?.deliveries)
    }

    async fn private_queue(&self, event_keys: &[&str]) -> Result<PrivateQueue, BusError> {
        let name = format!("private.{}.{}", self.options.user, self.env.event_id());
        let source = Source::Private {
            name: name.clone(),
            event_keys: event_keys.iter().map(|key| (*key).to_owned()).collect(),
        };
        let started = self.start(source, PRIVATE_PREFETCH).await?;
        if let Some(attached) = started.attached {
            // An answer sent to a queue that does not exist yet would be lost: here the broker is needed.
            match timeout(ANSWER_LIMIT, attached).await {
                Ok(Ok(result)) => result?,
                Ok(Err(_)) => return Err(BusError::Closed),
                Err(_) => {
                    return Err(self.health.last_error().unwrap_or_else(|| {
                        BusError::Unreachable("there is no connection".to_owned())
                    }));
                }
            }
        }
        Ok(PrivateQueue {
            name,
            deliveries: started.deliveries,
        })
    }

    async fn read_events(&self, from: StreamFrom) -> Result<Deliveries, BusError> {
        let started = self.start(Source::Stream(from), STREAM_PREFETCH).await?;
        Ok(started.deliveries)
    }

    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BusError> {
        let live = self.live().await?;
        // Held over the get: a channel can do one at a time.
        let mut taking = self.taking.lock().await;
        let channel = match taking.take() {
            Some((generation, channel))
                if generation == live.generation && channel.status().connected() =>
            {
                channel
            }
            _ => self.answer(queue, live.connection.create_channel()).await?,
        };
        let get = channel.basic_get(short(queue)?, BasicGetOptions::default());
        let message = self.answer(queue, get).await?;
        *taking = Some((live.generation, channel.clone()));
        Ok(message.map(|mut got| {
            let message = message::incoming(&mut got.delivery);
            let settle = AmqpSettle {
                delivery: got.delivery,
                broken: CancellationToken::new(),
                _channel: channel,
            };
            Delivery::new(message, Box::new(settle))
        }))
    }

    async fn depth(&self, queue: &str) -> Result<u64, BusError> {
        let live = self.live().await?;
        let name = short(queue)?;
        let work = async {
            let channel = live.connection.create_channel().await?;
            let options = QueueDeclareOptions {
                passive: true,
                ..Default::default()
            };
            let found = channel
                .queue_declare(name, options, FieldTable::default())
                .await?;
            channel.close(200, "counted".into()).await?;
            Ok(u64::from(found.message_count()))
        };
        self.answer(queue, work).await
    }

    fn health(&self) -> BusHealth {
        self.health.view()
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(CLOSE_LIMIT, self.tasks.wait()).await.is_err() {
            warn!("the bus was not closed within 10 s");
        }
    }
}
