//! The bus: the only door to the broker. Publishing waits for the broker's confirm; consuming survives every fault.
//!
//! [`amqp`] is RabbitMQ, [`memory`] a seeded in-memory broker that duplicates, delays, drops connections and returns; both
//! pass the same contract tests, so everything above may be tested on the second.

pub mod amqp;
pub mod memory;
mod outgoing;

pub use outgoing::{
    ParkError, Parked, X_FIRST_FAILED_AT, X_LAST_FAILED_AT, X_ORIGINAL_EXCHANGE,
    X_ORIGINAL_ROUTING_KEY, X_REASON, X_REASON_CODE, X_REMEDY, park,
};

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::problem::{ErrorCode, Problem};

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The default exchange, straight to a queue that must exist (`mandatory`).
    Queue(String),
    /// The exchange `cmd`, as third parties do; what fits no queue ends in `cmd.unrouted`.
    Commands {
        /// `mount.<server>` or `recovery.<server>`.
        routing_key: String,
    },
    /// The topic exchange `events`; always routed, since the stream is bound to everything.
    Events {
        /// `session.<kind>.<phase>`.
        routing_key: String,
    },
}

/// A message to publish. Persistent, mandatory, confirmed; published again after a reconnect with the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// Where to.
    pub destination: Destination,
    /// AMQP `message_id`: the CloudEvents id.
    pub message_id: String,
    /// AMQP `type`: the CloudEvents type.
    pub type_name: String,
    /// AMQP `correlation_id`: the session's id, or the query's for a reply.
    pub correlation_id: Option<String>,
    /// AMQP `reply_to`.
    pub reply_to: Option<String>,
    /// Headers beside those that mirror the CloudEvents attributes.
    pub headers: BTreeMap<String, String>,
    /// The envelope as JSON.
    pub body: Vec<u8>,
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingMessage {
    /// AMQP `message_id`, if the sender set it.
    pub message_id: Option<String>,
    /// AMQP `type`.
    pub type_name: Option<String>,
    /// AMQP `correlation_id`.
    pub correlation_id: Option<String>,
    /// AMQP `reply_to`.
    pub reply_to: Option<String>,
    /// Exchange that it was published to; empty for the default exchange.
    pub exchange: String,
    /// Routing key that it was published with.
    pub routing_key: String,
    /// Whether the broker has delivered it before.
    pub redelivered: bool,
    /// How often the broker says that it has been delivered before (`x-delivery-count`), if it says.
    pub delivery_count: Option<u64>,
    /// Text headers (`x-…`, `cloudEvents:…`).
    pub headers: BTreeMap<String, String>,
    /// Offset in the stream, when read from one.
    pub stream_offset: Option<u64>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a publish failed for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue takes it: the destination does not exist.
    #[error("no queue takes messages for {destination}")]
    Returned {
        /// The destination's queue or routing key.
        destination: String,
    },
    /// The broker refused it (a full queue).
    #[error("the broker refused the message for {destination}")]
    Refused {
        /// The destination's queue or routing key.
        destination: String,
    },
    /// The limit for publishing passed; the broker may or may not have it.
    #[error("the broker did not confirm within {after_s} s: {last_error}")]
    TimedOut {
        /// The limit in seconds.
        after_s: u64,
        /// What was seen last.
        last_error: String,
    },
    /// The bus is being closed.
    #[error("the bus is closed")]
    Closed,
}

impl PublishError {
    /// Whether sending the same message again later cannot help.
    pub fn is_permanent(&self) -> bool {
        matches!(self, PublishError::Returned { .. })
    }
}

/// Why a delivery could not be settled: the broker will deliver it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the delivery was not settled, the broker will deliver it again: {0}")]
pub struct NotSettled(pub String);

/// Why the bus could not be opened or the topology used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The broker cannot be reached now.
    #[error("the broker cannot be reached: {0}")]
    Unreachable(String),
    /// The broker refuses the credentials or the permission.
    #[error("the broker refuses access: {0}")]
    Forbidden(String),
    /// An exchange or queue is missing or is not as it must be.
    #[error("{0}")]
    Topology(Problem),
    /// The bus is being closed.
    #[error("the bus is closed")]
    Closed,
}

/// Settles one delivery; implemented by each bus.
#[async_trait]
pub trait Settle: Send + Sync {
    /// The message is dealt with: the broker may forget it.
    async fn ack(self: Box<Self>) -> Result<(), NotSettled>;
    /// The message goes back to its queue.
    async fn requeue(self: Box<Self>) -> Result<(), NotSettled>;
}

/// One message and the duty to settle it. Dropped unsettled, it is delivered again after the next reconnect.
pub struct Delivery {
    /// The message.
    pub message: IncomingMessage,
    settle: Box<dyn Settle>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .finish_non_exhaustive()
    }
}

impl Delivery {
    /// Pairs a message with what settles it.
    pub fn new(message: IncomingMessage, settle: Box<dyn Settle>) -> Self {
        Self { message, settle }
    }

    /// The message is dealt with.
    pub async fn ack(self) -> Result<(), NotSettled> {
        self.settle.ack().await
    }

    /// The message goes back to its queue.
    pub async fn requeue(self) -> Result<(), NotSettled> {
        self.settle.requeue().await
    }
}

/// Deliveries of one consumer, across reconnects. Ends only when the bus is closed.
pub type Deliveries = mpsc::Receiver<Delivery>;

/// A queue of one's own that goes away with its owner: for replies and for watching events.
#[derive(Debug)]
pub struct PrivateQueue {
    /// Its name, for `reply_to`.
    pub name: String,
    /// What arrives. After a reconnect the queue is a new, empty one under the same name.
    pub deliveries: Deliveries,
}

/// Where reading the event stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFrom {
    /// The oldest event that is kept.
    First,
    /// What comes from now on.
    Next,
    /// This offset.
    Offset(u64),
    /// This time, to the second.
    Time(Timestamp),
}

/// How the connections of a bus are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BusHealth {
    /// Every connection that is wanted is up and its topology was checked.
    pub connected: bool,
    /// The broker has blocked publishing (memory or disk alarm).
    pub blocked: bool,
    /// How often connections were made anew.
    pub reconnects: u64,
    /// What was wrong last.
    pub last_error: Option<String>,
}

/// The door to a broker.
#[async_trait]
pub trait Bus: Send + Sync + fmt::Debug {
    /// Publishes and waits until the broker has the message for good, over reconnects, at most the bus's publish limit.
    async fn publish(&self, message: OutgoingMessage) -> Result<(), PublishError>;
    /// Consumes a queue of the topology. `prefetch` (1..=16) messages may be unsettled at a time.
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Deliveries, BusError>;
    /// An exclusive, auto-deleted queue; bound to `events` with each of the keys (`session.publish.#`), or to nothing for replies.
    async fn private_queue(&self, event_keys: &[&str]) -> Result<PrivateQueue, BusError>;
    /// Reads the event stream `events.log`.
    async fn read_events(&self, from: StreamFrom) -> Result<Deliveries, BusError>;
    /// Takes one message from a queue without waiting; `None` when there is none. For `parked`.
    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BusError>;
    /// How many messages are ready in a queue.
    async fn depth(&self, queue: &str) -> Result<u64, BusError>;
    /// How the connections are.
    fn health(&self) -> BusHealth;
    /// Ends consumers and connections, at most 10 s; unsettled deliveries go back.
    async fn close(&self);
}

impl From<BusError> for Problem {
    fn from(error: BusError) -> Problem {
        match error {
            BusError::Topology(problem) => problem,
            BusError::Unreachable(_) => Problem::new(
                ErrorCode::BrokerUnavailable,
                error.to_string(),
                "see that RabbitMQ runs and that broker.host and broker.port are right",
            ),
            BusError::Forbidden(_) => Problem::new(
                ErrorCode::InvalidConfiguration,
                error.to_string(),
                "see that broker.user, its password file, its permissions and broker.vhost are right",
            ),
            BusError::Closed => Problem::new(
                ErrorCode::BrokerUnavailable,
                error.to_string(),
                "start the program again",
            ),
        }
    }
}
