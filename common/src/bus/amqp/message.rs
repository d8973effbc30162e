//! Messages between our types and AMQP's, and errors between lapin's and ours.

use std::collections::BTreeMap;

use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, ErrorKind};

use crate::bus::{BusError, Destination, IncomingMessage, OutgoingMessage};
use crate::messages::CONTENT_TYPE;
use crate::topology;

const PERSISTENT: u8 = 2;
const ACCESS_REFUSED: u16 = 403;
const NOT_ALLOWED: u16 = 530;

/// An AMQP short string; lapin's own conversion panics above 255 bytes.
pub(crate) fn short(text: &str) -> Result<ShortString, BusError> {
    ShortString::try_new(text).map_err(|_| {
        let start: String = text.chars().take(80).collect();
        topology::mismatch(format!("the name {start}… is longer than 255 bytes"))
    })
}

/// What a failure of lapin means to those above.
pub(crate) fn bus_error(error: lapin::Error) -> BusError {
    match error.kind() {
        ErrorKind::ProtocolError(reply)
            if matches!(reply.get_id(), ACCESS_REFUSED | NOT_ALLOWED) =>
        {
            BusError::Forbidden(error.to_string())
        }
        ErrorKind::AuthProviderError(_) => BusError::Forbidden(error.to_string()),
        _ => BusError::Unreachable(error.to_string()),
    }
}

/// Exchange and routing key.
pub(super) fn address(destination: &Destination) -> (&'static str, &str) {
    match destination {
        Destination::Queue(name) => ("", name),
        Destination::Commands { routing_key } => (topology::COMMANDS, routing_key),
        Destination::Events { routing_key } => (topology::EVENTS, routing_key),
    }
}

/// AMQP properties of a message; texts that AMQP cannot carry are left out (they are in the body's envelope too).
pub(super) fn properties(
    message: &OutgoingMessage,
    app_id: &str,
    timestamp_s: u64,
) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(PERSISTENT)
        .with_timestamp(timestamp_s);
    if let Ok(app_id) = ShortString::try_new(app_id) {
        properties = properties.with_app_id(app_id);
    }
    if let Ok(id) = ShortString::try_new(message.message_id.as_str()) {
        properties = properties.with_message_id(id);
    }
    if let Ok(kind) = ShortString::try_new(message.type_name.as_str()) {
        properties = properties.with_type(kind);
    }
    let optional = |text: &Option<String>| {
        text.as_deref()
            .and_then(|text| ShortString::try_new(text).ok())
    };
    if let Some(id) = optional(&message.correlation_id) {
        properties = properties.with_correlation_id(id);
    }
    if let Some(queue) = optional(&message.reply_to) {
        properties = properties.with_reply_to(queue);
    }
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        if let Ok(name) = ShortString::try_new(name.as_str()) {
            headers.insert(name, AMQPValue::LongString(value.as_str().into()));
        }
    }
    properties.with_headers(headers)
}

fn number(value: &AMQPValue) -> Option<u64> {
    match *value {
        AMQPValue::ShortShortInt(n) => u64::try_from(n).ok(),
        AMQPValue::ShortShortUInt(n) => Some(n.into()),
        AMQPValue::ShortInt(n) => u64::try_from(n).ok(),
        AMQPValue::ShortUInt(n) => Some(n.into()),
        AMQPValue::LongInt(n) => u64::try_from(n).ok(),
        AMQPValue::LongUInt(n) => Some(n.into()),
        AMQPValue::LongLongInt(n) => u64::try_from(n).ok(),
        AMQPValue::Timestamp(n) => Some(n),
        _ => None,
    }
}

fn header_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::Boolean(flag) => Some(flag.to_string()),
        other => number(other).map(|n| n.to_string()),
    }
}

/// A delivery's message; its body is moved out.
pub(super) fn incoming(delivery: &mut Delivery) -> IncomingMessage {
    let properties = &delivery.properties;
    let table = properties.headers().as_ref().map(FieldTable::inner);
    let header_number = |name: &str| table.and_then(|table| table.get(name)).and_then(number);
    let headers: BTreeMap<String, String> = table
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.to_string(), header_text(value)?)))
        .collect();
    let text = |text: &Option<ShortString>| text.as_ref().map(ShortString::to_string);
    IncomingMessage {
        message_id: text(properties.message_id()),
        type_name: text(properties.kind()),
        correlation_id: text(properties.correlation_id()),
        reply_to: text(properties.reply_to()),
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        redelivered: delivery.redelivered,
        delivery_count: header_number("x-delivery-count"),
        stream_offset: header_number("x-stream-offset"),
        headers,
        body: std::mem::take(&mut delivery.data),
    }
}
