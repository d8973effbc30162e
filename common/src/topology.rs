//! What must exist on the broker: exchanges, queues, bindings and users, in one table.
//!
//! The same table is checked passively by every program when it connects, made by `explorer topology apply`, and written
//! as `deploy/rabbitmq/definitions.json`. It keeps to what RabbitMQ 3.10 to 4.x understand alike. Everything is a queue
//! argument, not a policy: a declaration by hand, a definitions file and a test broker then agree to the letter, and a
//! difference is refused by the broker (406) instead of going unnoticed.
//!
//! What must stay true: nothing that was acknowledged can vanish. So every queue refuses when full (`reject-publish`), every
//! dead letter goes `at-least-once` to a queue that exists, and delivery limits are explicit and never -1, which on 3.10
//! destroys a message at its first requeue.

mod broker;
mod definitions;

pub(crate) use broker::{apply, check, is_absent, mismatch};
pub use definitions::{definitions, password_placeholder};

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::ServerName;

/// The virtual host that everything lives in.
pub const VHOST: &str = "/recovery";
/// Exchange for the commands and queries of third parties.
pub const COMMANDS: &str = "cmd";
/// Where commands go that fit no queue: the alternate exchange of [`COMMANDS`], and its queue.
pub const UNROUTED: &str = "cmd.unrouted";
/// Topic exchange of the events.
pub const EVENTS: &str = "events";
/// Stream that keeps every event.
pub const EVENTS_LOG: &str = "events.log";
/// Exchange for dead letters.
pub const DEAD: &str = "dead";
/// Where messages wait that nobody could deal with.
pub const PARKED: &str = "parked";
/// How long a message stays in a `.retry` queue, in milliseconds, unless a test says otherwise.
pub const RETRY_TTL_MS: u64 = 300_000;
/// Deliveries of one message after which the broker itself parks it.
pub const DELIVERY_LIMIT: u64 = 20;
/// The same for queues that people look through by taking and requeueing: each look counts as a delivery, and
/// RabbitMQ 4 would otherwise drop the message at the twentieth.
pub const PARKED_DELIVERY_LIMIT: u64 = 1_000_000;
/// Most messages in a queue.
pub const QUEUE_MESSAGES_MAX: u64 = 100_000;

const LOG_BYTES_MAX: u64 = 5_000_000_000;
// Retention drops whole segments only: small ones, so that 30 days mean 30 days on a quiet broker too.
const LOG_SEGMENT_BYTES: u64 = 20_000_000;

/// The queue of a server's mount service.
pub fn mount_queue(server: &ServerName) -> String {
    format!("mount.{server}")
}

/// The queue of a server's recovery service.
pub fn recovery_queue(server: &ServerName) -> String {
    format!("recovery.{server}")
}

/// The queue in which messages of a work queue wait for their next attempt.
pub fn retry_queue(work_queue: &str) -> String {
    format!("{work_queue}.retry")
}

/// Who connects to the broker; each has a user of its own that may do what it needs and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Makes and removes everything (`explorer topology apply`); runs nothing.
    Admin,
    /// The mount service of a server.
    MountService,
    /// The recovery service of a server.
    RecoveryService,
    /// The command line and web console, parked messages included.
    Explorer,
    /// A program of someone else: sends commands, has queues of its own, hears events.
    ThirdParty,
    /// Hears events only.
    Monitor,
}

/// What a user may do: regular expressions over names, as RabbitMQ has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// Make and delete.
    pub configure: String,
    /// Publish to an exchange, bind a queue.
    pub write: String,
    /// Consume a queue, bind to an exchange.
    pub read: String,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 6] = [
        Role::Admin,
        Role::MountService,
        Role::RecoveryService,
        Role::Explorer,
        Role::ThirdParty,
        Role::Monitor,
    ];

    /// The name of the role's user on the broker.
    pub fn user(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::MountService => "mount-svc",
            Role::RecoveryService => "recovery-svc",
            Role::Explorer => "explorer",
            Role::ThirdParty => "third-party",
            Role::Monitor => "monitor",
        }
    }

    /// What the role's user may do. Queues of one's own begin with `private.<user>.` or `<user>.`, or are named by the
    /// broker (`amq.gen-…`). Only our own users may write to the default exchange, the door to every queue: a message that
    /// came through it (an empty exchange) is not a third party's.
    pub fn permissions(self) -> Permissions {
        let user = self.user();
        let own = format!(r"private\.{user}\..*|{user}\..*|amq\.gen.*");
        let make = |configure: &str, write: &str, read: &str| Permissions {
            configure: format!("^({configure})$"),
            write: format!("^({write})$"),
            read: format!("^({read})$"),
        };
        let own_and = |more: &str| format!("{own}|{more}");
        match self {
            Role::Admin => make(".*", ".*", ".*"),
            Role::MountService => make(
                &own,
                &own_and(r"amq\.default|events"),
                &own_and(r"mount\..*|cmd\.unrouted|events|events\.log"),
            ),
            Role::RecoveryService => make(
                &own,
                &own_and(r"amq\.default|events"),
                &own_and(r"recovery\..*|events|events\.log"),
            ),
            Role::Explorer => make(
                &own,
                &own_and(r"amq\.default|cmd"),
                &own_and(r"parked|cmd\.unrouted|events|events\.log"),
            ),
            Role::ThirdParty => make(&own, &own_and("cmd"), &own_and(r"events|events\.log")),
            Role::Monitor => make(&own, &own, &own_and(r"events|events\.log")),
        }
    }

    /// Tags of the role's user (what it may do in RabbitMQ's own console).
    pub fn tags(self) -> &'static [&'static str] {
        match self {
            Role::Admin => &["administrator"],
            Role::Monitor => &["monitoring"],
            Role::MountService | Role::RecoveryService | Role::Explorer | Role::ThirdParty => &[],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.user())
    }
}

/// The value of an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
    /// A truth value.
    Flag(bool),
}

/// Arguments of a queue or exchange.
pub type Arguments = BTreeMap<&'static str, Argument>;

/// Type of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeType {
    /// By equal key.
    Direct,
    /// To every bound queue.
    Fanout,
    /// By pattern of words.
    Topic,
}

impl ExchangeType {
    /// RabbitMQ's word.
    pub fn as_str(self) -> &'static str {
        match self {
            ExchangeType::Direct => "direct",
            ExchangeType::Fanout => "fanout",
            ExchangeType::Topic => "topic",
        }
    }
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: ExchangeType,
    /// Its arguments.
    pub arguments: Arguments,
    /// What it is for, for `explorer topology` and the documents.
    pub purpose: &'static str,
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: Arguments,
    /// What it is for.
    pub purpose: &'static str,
}

impl Queue {
    fn text(&self, name: &str) -> Option<&str> {
        match self.arguments.get(name) {
            Some(Argument::Text(text)) => Some(text),
            _ => None,
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.arguments.get(name) {
            Some(Argument::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// Whether it is a stream.
    pub fn is_stream(&self) -> bool {
        self.text("x-queue-type") == Some("stream")
    }

    /// Whether only one of its consumers gets messages, the others being hot spares.
    pub fn is_single_active(&self) -> bool {
        self.arguments.get("x-single-active-consumer") == Some(&Argument::Flag(true))
    }

    /// After how many milliseconds its messages leave it for [`Queue::dead_letters_to`].
    pub fn message_ttl_ms(&self) -> Option<u64> {
        self.number("x-message-ttl")
    }

    /// Deliveries after which a message leaves it for [`Queue::dead_letters_to`].
    pub fn delivery_limit(&self) -> Option<u64> {
        self.number("x-delivery-limit")
    }

    /// Most messages in it.
    pub fn messages_max(&self) -> Option<u64> {
        self.number("x-max-length")
    }

    /// Exchange and routing key of its dead letters.
    pub fn dead_letters_to(&self) -> Option<(&str, &str)> {
        Some((
            self.text("x-dead-letter-exchange")?,
            self.text("x-dead-letter-routing-key")?,
        ))
    }
}

/// A queue bound to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// From this exchange.
    pub exchange: &'static str,
    /// To this queue.
    pub queue: String,
    /// With this key or pattern.
    pub routing_key: String,
}

/// The table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// The mount servers that have queues.
    pub servers: Vec<ServerName>,
    /// How long a message waits for its next attempt, in milliseconds.
    pub retry_ttl_ms: u64,
}

fn text(value: &str) -> Argument {
    Argument::Text(value.to_owned())
}

fn quorum(more: impl IntoIterator<Item = (&'static str, Argument)>) -> Arguments {
    let mut arguments = Arguments::from([
        ("x-queue-type", text("quorum")),
        ("x-max-length", Argument::Number(QUEUE_MESSAGES_MAX)),
        ("x-overflow", text("reject-publish")),
    ]);
    arguments.extend(more);
    arguments
}

fn dead_letters(exchange: &str, routing_key: &str) -> [(&'static str, Argument); 3] {
    [
        ("x-dead-letter-exchange", text(exchange)),
        ("x-dead-letter-routing-key", text(routing_key)),
        ("x-dead-letter-strategy", text("at-least-once")),
    ]
}

impl Topology {
    /// The product's topology for these mount servers.
    pub fn new(servers: impl IntoIterator<Item = ServerName>) -> Self {
        Self {
            servers: servers.into_iter().collect(),
            retry_ttl_ms: RETRY_TTL_MS,
        }
    }

    /// The same with another waiting time in the retry queues.
    pub fn with_retry_ttl_ms(mut self, retry_ttl_ms: u64) -> Self {
        self.retry_ttl_ms = retry_ttl_ms;
        self
    }

    /// Every exchange.
    pub fn exchanges(&self) -> Vec<Exchange> {
        let exchange = |name, kind, purpose| Exchange {
            name,
            kind,
            arguments: Arguments::new(),
            purpose,
        };
        vec![
            exchange(
                UNROUTED,
                ExchangeType::Fanout,
                "commands that fit no queue of the exchange cmd",
            ),
            Exchange {
                arguments: Arguments::from([("alternate-exchange", text(UNROUTED))]),
                ..exchange(
                    COMMANDS,
                    ExchangeType::Direct,
                    "commands and queries of third parties",
                )
            },
            exchange(
                DEAD,
                ExchangeType::Direct,
                "messages that the broker has given up",
            ),
            exchange(EVENTS, ExchangeType::Topic, "what happened, for everyone"),
        ]
    }

    /// Every queue.
    pub fn queues(&self) -> Vec<Queue> {
        let mut queues = vec![
            Queue {
                name: PARKED.to_owned(),
                arguments: quorum([("x-delivery-limit", Argument::Number(PARKED_DELIVERY_LIMIT))]),
                purpose: "messages that nobody could deal with, until a person decides",
            },
            Queue {
                name: UNROUTED.to_owned(),
                arguments: quorum(
                    [("x-delivery-limit", Argument::Number(DELIVERY_LIMIT))]
                        .into_iter()
                        .chain(dead_letters(DEAD, PARKED)),
                ),
                purpose: "commands to servers that do not exist, to be answered with a rejection",
            },
            Queue {
                name: EVENTS_LOG.to_owned(),
                arguments: Arguments::from([
                    ("x-queue-type", text("stream")),
                    ("x-max-age", text("30D")),
                    ("x-max-length-bytes", Argument::Number(LOG_BYTES_MAX)),
                    (
                        "x-stream-max-segment-size-bytes",
                        Argument::Number(LOG_SEGMENT_BYTES),
                    ),
                ]),
                purpose: "every event of the last 30 days, to be read from any point",
            },
        ];
        for server in &self.servers {
            for (name, purpose) in [
                (mount_queue(server), "work of a server's mount service"),
                (
                    recovery_queue(server),
                    "work of a server's recovery service",
                ),
            ] {
                queues.push(Queue {
                    name: retry_queue(&name),
                    arguments: quorum(
                        [
                            ("x-message-ttl", Argument::Number(self.retry_ttl_ms)),
                            ("x-delivery-limit", Argument::Number(DELIVERY_LIMIT)),
                        ]
                        .into_iter()
                        .chain(dead_letters("", &name)),
                    ),
                    purpose: "messages that wait for their next attempt; nobody consumes it",
                });
                queues.push(Queue {
                    name,
                    arguments: quorum(
                        [
                            ("x-single-active-consumer", Argument::Flag(true)),
                            ("x-delivery-limit", Argument::Number(DELIVERY_LIMIT)),
                        ]
                        .into_iter()
                        .chain(dead_letters(DEAD, PARKED)),
                    ),
                    purpose,
                });
            }
        }
        queues
    }

    /// Every binding.
    pub fn bindings(&self) -> Vec<Binding> {
        let binding = |exchange, queue: &str, routing_key: &str| Binding {
            exchange,
            queue: queue.to_owned(),
            routing_key: routing_key.to_owned(),
        };
        let mut bindings = vec![
            binding(UNROUTED, UNROUTED, ""),
            binding(DEAD, PARKED, PARKED),
            binding(EVENTS, EVENTS_LOG, "#"),
        ];
        for server in &self.servers {
            for queue in [mount_queue(server), recovery_queue(server)] {
                bindings.push(binding(COMMANDS, &queue, &queue));
            }
        }
        bindings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology() -> Topology {
        Topology::new([ServerName::new("db1").unwrap()])
    }

    #[test]
    fn a_retry_waits_five_minutes_and_comes_back_to_its_work_queue() {
        for queue in topology()
            .queues()
            .iter()
            .filter(|queue| queue.name.ends_with(".retry"))
        {
            assert_eq!(queue.message_ttl_ms(), Some(300_000));
            let work = queue.name.trim_end_matches(".retry");
            assert_eq!(queue.dead_letters_to(), Some(("", work)));
        }
    }

    #[test]
    fn no_queue_drops_what_it_cannot_hold_or_deliver() {
        let queues = topology().queues();
        let bindings = topology().bindings();
        for queue in queues.iter().filter(|queue| !queue.is_stream()) {
            assert_eq!(queue.text("x-queue-type"), Some("quorum"), "{}", queue.name);
            assert_eq!(
                queue.text("x-overflow"),
                Some("reject-publish"),
                "{}",
                queue.name
            );
            let limit = queue.delivery_limit().expect("an explicit delivery limit");
            match queue.dead_letters_to() {
                Some((exchange, key)) => {
                    assert_eq!(queue.text("x-dead-letter-strategy"), Some("at-least-once"));
                    let target = match exchange {
                        "" => Some(key),
                        _ => bindings
                            .iter()
                            .find(|b| b.exchange == exchange && b.routing_key == key)
                            .map(|b| b.queue.as_str()),
                    };
                    assert!(queues.iter().any(|q| Some(q.name.as_str()) == target));
                }
                None => assert!(limit >= PARKED_DELIVERY_LIMIT, "{}", queue.name),
            }
        }
    }

    #[test]
    fn a_third_party_can_neither_reach_a_queue_directly_nor_forge_an_event() {
        let permissions = Role::ThirdParty.permissions();
        for name in ["amq\\.default", "events", "parked", "mount"] {
            assert!(!permissions.write.contains(name), "{}", permissions.write);
        }
    }
}
