//! The table against a real broker: a passive check for every program, and making it for the operator.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Connection, ExchangeKind};

use super::{Argument, Arguments, COMMANDS, EVENTS, EVENTS_LOG, ExchangeType, PARKED};
use super::{Role, Topology, UNROUTED, mount_queue, recovery_queue, retry_queue};
use crate::bus::BusError;
use crate::bus::amqp::{bus_error, short};
use crate::problem::{ErrorCode, Problem};

const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// What differs, as a problem that ends a program with exit code 78.
pub(crate) fn mismatch(what: String) -> BusError {
    BusError::Topology(Problem::new(
        ErrorCode::TopologyMismatch,
        what,
        "run `explorer topology apply`",
    ))
}

fn field_table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => {
                AMQPValue::LongLongInt(i64::try_from(*number).unwrap_or(i64::MAX))
            }
            Argument::Flag(flag) => AMQPValue::Boolean(*flag),
        };
        table.insert(ShortString::from(*name), value);
    }
    table
}

/// Whether the broker says that there is no such exchange or queue. A queue that exists and cannot be reached just now, as
/// after a crash of the broker, has the same reply code and another text; time mends that.
pub(crate) fn is_absent(error: &lapin::Error) -> bool {
    let text = error.to_string();
    reply_code(error) == Some(NOT_FOUND)
        && (text.contains("no queue") || text.contains("no exchange"))
}

fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

impl Topology {
    /// Exchanges and queues that a role relies on.
    fn relied_on_by(&self, role: Role) -> (Vec<&'static str>, Vec<String>) {
        let mut queues: Vec<String> = match role {
            Role::Admin => self.queues().into_iter().map(|queue| queue.name).collect(),
            Role::MountService | Role::RecoveryService => {
                [PARKED, UNROUTED, EVENTS_LOG].map(String::from).to_vec()
            }
            Role::Explorer => [PARKED, EVENTS_LOG].map(String::from).to_vec(),
            Role::ThirdParty => Vec::new(),
            Role::Monitor => vec![EVENTS_LOG.to_owned()],
        };
        if matches!(role, Role::MountService | Role::RecoveryService) {
            for server in &self.servers {
                for work in [mount_queue(server), recovery_queue(server)] {
                    queues.push(retry_queue(&work));
                    queues.push(work);
                }
            }
        }
        let exchanges = match role {
            Role::Admin => self.exchanges().iter().map(|e| e.name).collect(),
            Role::Monitor => vec![EVENTS],
            _ => vec![COMMANDS, EVENTS],
        };
        (exchanges, queues)
    }
}

/// Looks whether everything that the role relies on exists, changing nothing. Arguments cannot be seen this way; [`apply`]
/// compares them.
pub(crate) async fn check(
    connection: &Connection,
    topology: &Topology,
    role: Role,
) -> Result<(), BusError> {
    let (exchanges, queues) = topology.relied_on_by(role);
    let channel = connection.create_channel().await.map_err(bus_error)?;
    let missing = |error: lapin::Error, what: &str, name: &str| {
        if is_absent(&error) {
            mismatch(format!("the broker has no {what} {name}"))
        } else {
            bus_error(error)
        }
    };
    for name in exchanges {
        let options = ExchangeDeclareOptions {
            passive: true,
            durable: true,
            ..Default::default()
        };
        // The type is not compared in a passive declaration.
        channel
            .exchange_declare(
                short(name)?,
                ExchangeKind::Direct,
                options,
                FieldTable::default(),
            )
            .await
            .map_err(|error| missing(error, "exchange", name))?;
    }
    for name in queues {
        let options = QueueDeclareOptions {
            passive: true,
            durable: true,
            ..Default::default()
        };
        channel
            .queue_declare(short(&name)?, options, FieldTable::default())
            .await
            .map_err(|error| missing(error, "queue", &name))?;
    }
    channel
        .close(200, "checked".into())
        .await
        .map_err(bus_error)
}

/// Makes whatever is missing. What exists with other arguments is left alone and named: to change it, its messages must be
/// moved away first, and that is a person's decision.
pub(crate) async fn apply(connection: &Connection, topology: &Topology) -> Result<(), BusError> {
    let channel = connection.create_channel().await.map_err(bus_error)?;
    let differs = |error: lapin::Error, what: &str, name: &str| match reply_code(&error) {
        Some(PRECONDITION_FAILED) => BusError::Topology(Problem::new(
            ErrorCode::TopologyMismatch,
            format!("the {what} {name} exists with other arguments: {error}"),
            format!("empty and delete the {what} {name}, then run `explorer topology apply` again"),
        )),
        _ => bus_error(error),
    };
    for exchange in topology.exchanges() {
        let kind = match exchange.kind {
            ExchangeType::Direct => ExchangeKind::Direct,
            ExchangeType::Fanout => ExchangeKind::Fanout,
            ExchangeType::Topic => ExchangeKind::Topic,
        };
        let options = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let arguments = field_table(&exchange.arguments);
        channel
            .exchange_declare(short(exchange.name)?, kind, options, arguments)
            .await
            .map_err(|error| differs(error, "exchange", exchange.name))?;
    }
    for queue in topology.queues() {
        let options = QueueDeclareOptions::durable();
        channel
            .queue_declare(short(&queue.name)?, options, field_table(&queue.arguments))
            .await
            .map_err(|error| differs(error, "queue", &queue.name))?;
    }
    for binding in topology.bindings() {
        channel
            .queue_bind(
                short(&binding.queue)?,
                short(binding.exchange)?,
                short(&binding.routing_key)?,
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(bus_error)?;
    }
    channel
        .close(200, "applied".into())
        .await
        .map_err(bus_error)
}
