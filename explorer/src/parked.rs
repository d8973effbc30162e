//! A parked message: why it was parked, where it was first sent to, and how it goes back there.

use std::collections::BTreeMap;

use common::bus::{IncomingMessage, OutgoingMessage, Parked};
use common::env::Env;
use common::problem::{ErrorCode, Problem};
use common::topology::EVENTS;
use serde::Serialize;
use serde_json::Value;

/// The queue that parked messages are in.
pub(crate) const QUEUE: &str = common::topology::PARKED;

/// What people see of a parked message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ParkedMessage {
    /// Its message id; absent when its sender gave none.
    pub(crate) id: Option<String>,
    /// Its type.
    pub(crate) type_name: Option<String>,
    /// Why it was parked.
    pub(crate) reason: String,
    /// The error code and what to do about it, when a service parked it.
    pub(crate) code: Option<String>,
    pub(crate) remedy: Option<String>,
    /// When it failed first and last, as far as it is known.
    pub(crate) first_failed_at: Option<String>,
    pub(crate) last_failed_at: Option<String>,
    /// Exchange and routing key that it was first published with.
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// Text headers.
    pub(crate) headers: BTreeMap<String, String>,
    /// The body: JSON when it is JSON, else text.
    pub(crate) body: Value,
}

impl ParkedMessage {
    /// Reads what the headers tell.
    pub(crate) fn of(message: &IncomingMessage) -> Self {
        let parked = Parked::of(message);
        let body = serde_json::from_slice(&message.body)
            .unwrap_or_else(|_| String::from_utf8_lossy(&message.body).into_owned().into());
        Self {
            id: message.message_id.clone(),
            type_name: message.type_name.clone(),
            reason: parked.reason,
            code: parked.code,
            remedy: parked.remedy,
            first_failed_at: parked.first_failed_at,
            last_failed_at: parked.last_failed_at,
            exchange: parked.exchange,
            routing_key: parked.routing_key,
            headers: message.headers.clone(),
            body,
        }
    }

    /// What the message is called: its id, or its place in the queue when it has none.
    pub(crate) fn handle(&self, place: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("#{}", place + 1))
    }

    /// Whether `wanted` means this message.
    pub(crate) fn is_called(&self, wanted: &str, place: usize) -> bool {
        match &self.id {
            Some(id) => wanted.len() >= 4 && id.starts_with(wanted),
            None => wanted == self.handle(place),
        }
    }
}

/// The message as it was before it failed, to where it was first sent.
pub(crate) fn back_to_origin(
    message: &IncomingMessage,
    env: &Env,
) -> Result<OutgoingMessage, Problem> {
    let origin = Parked::of(message);
    // One that somebody put into the queue by hand would come back to it, and nobody may speak for the services in `events`.
    if [QUEUE, ""].contains(&origin.routing_key.as_str()) || origin.exchange == EVENTS {
        return Err(Problem::new(
            ErrorCode::NotPossibleNow,
            "the message does not say which queue it was first sent to",
            "look at it with `explorer parked show`, then discard it or send its command again",
        ));
    }
    Ok(Parked::unpark(message, env))
}

#[cfg(test)]
mod tests {
    use common::bus::Destination;

    use super::*;
    use crate::output::samples;

    #[test]
    fn a_parked_message_tells_why_and_from_where() {
        let parked = ParkedMessage::of(&samples::parked());
        assert_eq!(parked.reason, "the message is not a CloudEvent");
        assert_eq!(
            (parked.exchange.as_str(), parked.routing_key.as_str()),
            ("cmd", "mount.backup1")
        );
        assert!(parked.is_called("0190b5a8", 0));
        assert!(!parked.is_called("019", 0));
    }

    #[test]
    fn what_the_broker_dead_lettered_is_read_too() {
        let mut message = samples::parked();
        message.headers = [
            ("x-first-death-reason", "delivery_limit"),
            ("x-first-death-exchange", ""),
            ("x-first-death-queue", "recovery.backup1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        message.message_id = None;
        message.exchange = "dead".into();
        let parked = ParkedMessage::of(&message);
        assert!(parked.reason.ends_with("delivery_limit"));
        assert!(parked.is_called("#3", 2));
        let back = back_to_origin(&message, &Env::system()).unwrap();
        assert_eq!(
            back.destination,
            Destination::Queue("recovery.backup1".into())
        );
    }

    #[test]
    fn a_retry_goes_to_the_first_place_without_the_failure_headers() {
        let mut message = samples::parked();
        message.headers.insert("x-tenant".into(), "a".into());
        let back = back_to_origin(&message, &Env::system()).unwrap();
        assert_eq!(
            back.destination,
            Destination::Commands {
                routing_key: "mount.backup1".into()
            }
        );
        assert_eq!(
            back.headers.keys().collect::<Vec<_>>(),
            ["cloudEvents:id", "x-tenant"]
        );
        assert_eq!(back.body, message.body);
        message.headers.clear();
        message.routing_key = QUEUE.into();
        assert_eq!(
            back_to_origin(&message, &Env::system()).unwrap_err().code,
            ErrorCode::NotPossibleNow
        );
    }
}
