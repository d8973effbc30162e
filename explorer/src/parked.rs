//! A parked message: why it was parked, where it was first sent to, and how it goes back there.

use std::collections::BTreeMap;

use common::bus::{Destination, IncomingMessage, OutgoingMessage};
use common::problem::{ErrorCode, Problem};
use serde::Serialize;
use serde_json::Value;

/// The queue that parked messages are in.
pub(crate) const QUEUE: &str = "parked";

/// Headers that say why and from where; a retry leaves them out.
const FAILURE_PREFIXES: [&str; 5] = [
    "x-park",
    "x-death",
    "x-first-death",
    "x-last-death",
    "x-delivery-count",
];

/// What people see of a parked message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ParkedMessage {
    /// Its message id; absent when its sender gave none.
    pub(crate) id: Option<String>,
    /// Its type.
    pub(crate) type_name: Option<String>,
    /// Why it was parked.
    pub(crate) reason: String,
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
        let header = |name: &str| message.headers.get(name).cloned();
        let reason = header("x-park-reason")
            .or_else(|| header("x-first-death-reason").map(|word| in_words(&word)))
            .unwrap_or_else(|| "unknown".to_owned());
        let exchange = header("x-park-exchange").or_else(|| header("x-first-death-exchange"));
        let routing_key = header("x-park-routing-key").or_else(|| header("x-first-death-queue"));
        let body = serde_json::from_slice(&message.body)
            .unwrap_or_else(|_| String::from_utf8_lossy(&message.body).into_owned().into());
        Self {
            id: message.message_id.clone(),
            type_name: message.type_name.clone(),
            reason,
            first_failed_at: header("x-park-first-failed-at"),
            last_failed_at: header("x-park-last-failed-at"),
            exchange: exchange.unwrap_or_default(),
            routing_key: routing_key.unwrap_or_default(),
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
pub(crate) fn back_to_origin(message: &IncomingMessage) -> Result<OutgoingMessage, Problem> {
    let parked = ParkedMessage::of(message);
    if parked.routing_key.is_empty() || parked.exchange == "events" {
        return Err(Problem::new(
            ErrorCode::NotPossibleNow,
            "the message does not say which queue it was first sent to",
            "look at it with `explorer parked show`, then discard it or send its command again",
        ));
    }
    let destination = match parked.exchange.as_str() {
        "cmd" => Destination::Commands {
            routing_key: parked.routing_key,
        },
        _ => Destination::Queue(parked.routing_key),
    };
    let is_failure = |name: &str| FAILURE_PREFIXES.iter().any(|p| name.starts_with(p));
    let headers = message
        .headers
        .iter()
        .filter(|(name, _)| !is_failure(name) && !name.starts_with("cloudEvents:"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    Ok(OutgoingMessage {
        destination,
        message_id: message.message_id.clone().unwrap_or_default(),
        type_name: message.type_name.clone().unwrap_or_default(),
        correlation_id: message.correlation_id.clone(),
        reply_to: None,
        headers,
        body: message.body.clone(),
    })
}

fn in_words(reason: &str) -> String {
    match reason {
        "delivery_limit" => {
            "delivered too often: the service died on it or gave it back".to_owned()
        }
        "rejected" => "rejected by the service".to_owned(),
        "expired" => "its time was over".to_owned(),
        "maxlen" => "the queue was full".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
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
        let parked = ParkedMessage::of(&message);
        assert!(parked.reason.starts_with("delivered too often"));
        assert!(parked.is_called("#3", 2));
        let back = back_to_origin(&message).unwrap();
        assert_eq!(
            back.destination,
            Destination::Queue("recovery.backup1".into())
        );
    }

    #[test]
    fn a_retry_goes_to_the_first_place_without_the_failure_headers() {
        let mut message = samples::parked();
        message.headers.insert("x-tenant".into(), "a".into());
        let back = back_to_origin(&message).unwrap();
        assert_eq!(
            back.destination,
            Destination::Commands {
                routing_key: "mount.backup1".into()
            }
        );
        assert_eq!(back.headers.keys().collect::<Vec<_>>(), ["x-tenant"]);
        assert_eq!(back.body, message.body);
        message.headers.clear();
        assert_eq!(
            back_to_origin(&message).unwrap_err().code,
            ErrorCode::NotPossibleNow
        );
    }
}
