//! From envelopes to outgoing messages, and the way of a message into and out of the parking queue.

use std::collections::BTreeMap;

use super::{
    Bus, Delivery, Destination, IncomingMessage, NotSettled, OutgoingMessage, PublishError,
};
use crate::env::Env;
use crate::messages::{Envelope, Event, Payload};
use crate::problem::Problem;
use crate::topology;

/// Header: why a message is parked, for people.
pub const X_REASON: &str = "x-reason";
/// Header: the error code of that reason.
pub const X_REASON_CODE: &str = "x-reason-code";
/// Header: what to do about it.
pub const X_REMEDY: &str = "x-remedy";
/// Header: when it was parked for the first time, RFC 3339.
pub const X_FIRST_FAILED_AT: &str = "x-first-failed-at";
/// Header: when it was parked last, RFC 3339.
pub const X_LAST_FAILED_AT: &str = "x-last-failed-at";
/// Header: the exchange that it had been published to; empty for the default exchange.
pub const X_ORIGINAL_EXCHANGE: &str = "x-original-exchange";
/// Header: the routing key that it had been published with.
pub const X_ORIGINAL_ROUTING_KEY: &str = "x-original-routing-key";

const PARKING_HEADERS: [&str; 7] = [
    X_REASON,
    X_REASON_CODE,
    X_REMEDY,
    X_FIRST_FAILED_AT,
    X_LAST_FAILED_AT,
    X_ORIGINAL_EXCHANGE,
    X_ORIGINAL_ROUTING_KEY,
];
/// What the broker writes by itself; copied into a new message it would tell of another one.
const BROKER_HEADERS: [&str; 6] = [
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-count",
    "x-stream-offset",
];

impl OutgoingMessage {
    /// The message for an envelope, with the properties and headers that mirror its attributes.
    pub fn new<P: Payload>(destination: Destination, envelope: &Envelope<P>) -> Self {
        let id = envelope.id.to_string();
        let type_name = envelope.payload.type_name().to_owned();
        let mut headers = BTreeMap::from([
            ("cloudEvents:specversion".to_owned(), "1.0".to_owned()),
            ("cloudEvents:id".to_owned(), id.clone()),
            ("cloudEvents:type".to_owned(), type_name.clone()),
            ("cloudEvents:source".to_owned(), envelope.source.clone()),
        ]);
        let optional = [
            ("cloudEvents:subject", envelope.subject.clone()),
            (
                "cloudEvents:time",
                envelope.time.map(|time| time.to_string()),
            ),
            (
                "traceparent",
                envelope.traceparent.as_ref().map(ToString::to_string),
            ),
            ("tracestate", envelope.tracestate.clone()),
        ];
        for (name, value) in optional {
            headers.extend(value.map(|value| (name.to_owned(), value)));
        }
        Self {
            destination,
            message_id: id,
            type_name,
            correlation_id: envelope.subject.clone(),
            reply_to: None,
            headers,
            body: envelope.to_bytes(),
        }
    }

    /// The message that publishes an event under its own routing key.
    pub fn event(envelope: &Envelope<Event>) -> Self {
        let routing_key = envelope.payload.routing_key();
        Self::new(Destination::Events { routing_key }, envelope)
    }

    /// The same with an address for the answer. Its correlation id becomes the message's id.
    pub fn reply_to(mut self, queue: &str) -> Self {
        self.correlation_id = Some(self.message_id.clone());
        self.reply_to = Some(queue.to_owned());
        self
    }

    /// The same with another correlation id: in a reply, the one of the question.
    pub fn correlate(mut self, correlation_id: impl Into<String>) -> Self {
        self.correlation_id = Some(correlation_id.into());
        self
    }

    /// The same with one more header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.insert(name.to_owned(), value.into());
        self
    }

    /// A message as it came, for sending it on unchanged: same id, type, body and headers, without what the broker added.
    pub fn forward(message: &IncomingMessage, destination: Destination, env: &Env) -> Self {
        let headers = message
            .headers
            .iter()
            .filter(|(name, _)| !BROKER_HEADERS.iter().any(|own| name.starts_with(own)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Self {
            destination,
            // A sender may have given none; without one, returned messages could not be told apart.
            message_id: message
                .message_id
                .clone()
                .unwrap_or_else(|| env.event_id().to_string()),
            type_name: message.type_name.clone().unwrap_or_default(),
            correlation_id: message.correlation_id.clone(),
            reply_to: message.reply_to.clone(),
            headers,
            body: message.body.clone(),
        }
    }
}

/// Why a message could not be parked. It stays in its queue and comes again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParkError {
    /// The parking queue did not take it.
    #[error(transparent)]
    NotPublished(#[from] PublishError),
    /// It is parked, and will be delivered once more nevertheless.
    #[error(transparent)]
    NotSettled(#[from] NotSettled),
}

/// Puts a message that cannot be dealt with into `parked`, with the reason, and then acknowledges it. Idempotent in effect:
/// a crash in between parks it twice, with the same message id.
pub async fn park(
    bus: &dyn Bus,
    env: &Env,
    delivery: Delivery,
    problem: &Problem,
) -> Result<(), ParkError> {
    let message = &delivery.message;
    let now = env.now().to_string();
    let header = |name: &str| message.headers.get(name).cloned();
    let first_failed_at = header(X_FIRST_FAILED_AT).unwrap_or_else(|| now.clone());
    // Where it came from is what the broker says, not what its headers say: a third party could name a queue there
    // that it may not write to, and wait for a person to send the message on.
    let (exchange, routing_key) = (message.exchange.clone(), message.routing_key.clone());
    let outgoing = OutgoingMessage::forward(
        message,
        Destination::Queue(topology::PARKED.to_owned()),
        env,
    )
    .header(X_REASON, problem.message.clone())
    .header(X_REASON_CODE, problem.code.to_string())
    .header(X_REMEDY, problem.remedy.clone())
    .header(X_FIRST_FAILED_AT, first_failed_at)
    .header(X_LAST_FAILED_AT, now)
    .header(X_ORIGINAL_EXCHANGE, exchange)
    .header(X_ORIGINAL_ROUTING_KEY, routing_key);
    bus.publish(outgoing).await?;
    delivery.ack().await?;
    Ok(())
}

/// What is known about a parked message, whether we parked it or the broker did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Why, for people.
    pub reason: String,
    /// The error code, when we parked it.
    pub code: Option<String>,
    /// What to do about it, when we parked it.
    pub remedy: Option<String>,
    /// When it was parked first.
    pub first_failed_at: Option<String>,
    /// When it was parked last.
    pub last_failed_at: Option<String>,
    /// The exchange that it had been published to; empty for the default exchange.
    pub exchange: String,
    /// The routing key that it had been published with.
    pub routing_key: String,
}

impl Parked {
    /// Reads it off a message of the parking queue.
    pub fn of(message: &IncomingMessage) -> Self {
        let header = |name: &str| message.headers.get(name).cloned();
        // The broker parks through the exchange `dead` and tells only the queue: that is where the message goes back to.
        let by_broker = (message.exchange == topology::DEAD)
            .then(|| header("x-first-death-queue"))
            .flatten();
        let reason = header(X_REASON).or_else(|| {
            header("x-first-death-reason").map(|reason| format!("the broker gave it up: {reason}"))
        });
        let (exchange, routing_key) = match (header(X_ORIGINAL_ROUTING_KEY), by_broker) {
            (_, Some(queue)) => (String::new(), queue),
            (Some(key), None) => (header(X_ORIGINAL_EXCHANGE).unwrap_or_default(), key),
            (None, None) => (message.exchange.clone(), message.routing_key.clone()),
        };
        Self {
            reason: reason.unwrap_or_else(|| "unknown".to_owned()),
            code: header(X_REASON_CODE),
            remedy: header(X_REMEDY),
            first_failed_at: header(X_FIRST_FAILED_AT),
            last_failed_at: header(X_LAST_FAILED_AT),
            exchange,
            routing_key,
        }
    }

    /// The message for another try at the place where it came from, without the headers of its failure.
    pub fn unpark(message: &IncomingMessage, env: &Env) -> OutgoingMessage {
        let Parked {
            exchange,
            routing_key,
            ..
        } = Self::of(message);
        let destination = match exchange.as_str() {
            topology::COMMANDS => Destination::Commands { routing_key },
            topology::EVENTS => Destination::Events { routing_key },
            _ => Destination::Queue(routing_key),
        };
        let mut outgoing = OutgoingMessage::forward(message, destination, env);
        for name in PARKING_HEADERS {
            outgoing.headers.remove(name);
        }
        outgoing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Cancel, Command};

    fn incoming(exchange: &str, headers: &[(&str, &str)]) -> IncomingMessage {
        IncomingMessage {
            message_id: Some("m1".to_owned()),
            type_name: Some("t".to_owned()),
            correlation_id: None,
            reply_to: Some("private.x".to_owned()),
            exchange: exchange.to_owned(),
            routing_key: "mount.db1".to_owned(),
            redelivered: false,
            delivery_count: None,
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            stream_offset: None,
            body: b"{}".to_vec(),
        }
    }

    #[test]
    fn an_envelope_is_mirrored_in_properties_and_headers() {
        let env = Env::system();
        let id = env.command_id();
        let envelope = Envelope {
            id: id.uuid(),
            source: "/test".to_owned(),
            subject: Some(id.to_string()),
            time: None,
            sequence: None,
            traceparent: None,
            tracestate: None,
            payload: Command::from(Cancel {
                session_id: id.into(),
            }),
        };
        let destination = Destination::Queue("mount.db1".to_owned());
        let message = OutgoingMessage::new(destination, &envelope).reply_to("private.x");
        assert_eq!(message.message_id, id.to_string());
        assert_eq!(message.type_name, "io.pginstant.command.cancel.v1");
        assert_eq!(message.correlation_id, Some(id.to_string()));
        for (name, value) in [
            ("cloudEvents:specversion", "1.0"),
            ("cloudEvents:type", "io.pginstant.command.cancel.v1"),
            ("cloudEvents:source", "/test"),
        ] {
            assert_eq!(message.headers.get(name).map(String::as_str), Some(value));
        }
    }

    #[test]
    fn a_parked_message_goes_back_to_where_it_came_from() {
        let env = Env::system();
        let queue = |name: &str| Destination::Queue(name.to_owned());
        let cases = [
            // Parked by us, from the exchange `cmd`.
            (
                incoming(
                    "",
                    &[
                        (X_REASON, "no"),
                        (X_ORIGINAL_EXCHANGE, "cmd"),
                        (X_ORIGINAL_ROUTING_KEY, "mount.db1"),
                    ],
                ),
                Destination::Commands {
                    routing_key: "mount.db1".to_owned(),
                },
            ),
            // Parked by the broker at the delivery limit.
            (
                incoming(
                    "dead",
                    &[
                        ("x-first-death-queue", "recovery.db1"),
                        ("x-first-death-reason", "delivery_limit"),
                    ],
                ),
                queue("recovery.db1"),
            ),
            (incoming("", &[]), queue("mount.db1")),
        ];
        for (message, destination) in cases {
            let back = Parked::unpark(&message, &env);
            assert_eq!(back.destination, destination);
            assert_eq!(back.headers, BTreeMap::new());
            assert_eq!(back.message_id, "m1");
            assert_eq!(back.reply_to.as_deref(), Some("private.x"));
        }
    }
}
