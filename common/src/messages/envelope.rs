//! The envelope: CloudEvents 1.0, structured JSON mode, with the limits that hold for every message.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::Payload;
use crate::problem::{ErrorCode, Problem};

/// AMQP `content_type` of every message.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

/// Version of the contract: changes with every addition, its major part is the `v1` of the types.
pub const CONTRACT_VERSION: &str = "1.0.0";

const SCHEMA_BASE: &str = "https://pginstant.io/schemas/v1";

/// Limits on what is read from the broker.
#[derive(Debug)]
pub struct Limits;

impl Limits {
    /// Largest command, query or internal message, in bytes.
    pub const COMMAND_BYTES: usize = 64 * 1024;
    /// Largest reply or event, in bytes.
    pub const REPLY_BYTES: usize = 1024 * 1024;
    /// Longest `source`, `subject` or `type`, in bytes.
    pub const ATTRIBUTE_BYTES: usize = 255;
    /// Longest reason that a command may give, in characters.
    pub const REASON_CHARS: usize = 500;
}

/// Why a message is not one of the contract's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// Larger than the limit.
    #[error("the message has {bytes} bytes, {limit} are allowed")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Not JSON, or not a CloudEvent.
    #[error("the message is not a CloudEvent 1.0 in JSON: {reason}")]
    MalformedEnvelope {
        /// What is wrong with it.
        reason: String,
    },
    /// A CloudEvent of a type that the family does not have.
    #[error("the message type {type_name:?} is not known here")]
    UnknownType {
        /// The type.
        type_name: String,
    },
    /// The type is known, its data is not right.
    #[error("the data of {type_name} is not right: {reason}")]
    MalformedData {
        /// The type.
        type_name: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<ContractError> for Problem {
    fn from(error: ContractError) -> Problem {
        let code = match error {
            ContractError::TooLarge { .. } => ErrorCode::MessageTooLarge,
            ContractError::MalformedEnvelope { .. } => ErrorCode::MalformedMessage,
            ContractError::UnknownType { .. } => ErrorCode::UnknownMessageType,
            ContractError::MalformedData { .. } => ErrorCode::InvalidField,
        };
        Problem::new(
            code,
            error.to_string(),
            "send what docs/asyncapi.yaml describes",
        )
    }
}

/// W3C trace context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct TraceParent(String);

impl TraceParent {
    /// A new trace whose ids are taken from a UUID; flagged as sampled.
    pub fn from_uuid(uuid: Uuid) -> Self {
        let hex = uuid.simple().to_string();
        let span = hex.get(16..).unwrap_or_default();
        Self(format!("00-{hex}-{span}-01"))
    }
}

impl FromStr for TraceParent {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        let hex = text
            .bytes()
            .all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if lengths == [2, 32, 16, 2] && hex && text.starts_with("00-") {
            Ok(Self(text.to_owned()))
        } else {
            Err("traceparent is not of the form 00-<32 hex>-<16 hex>-<2 hex>".to_owned())
        }
    }
}

impl TryFrom<String> for TraceParent {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TraceParent> for String {
    fn from(trace: TraceParent) -> String {
        trace.0
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A CloudEvent whose type and data have not been looked at yet. `specversion` must be `1.0`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RawEnvelope {
    /// CloudEvents version: `1.0`.
    pub specversion: String,
    /// The message's own id: a UUID, version 7 (4 is accepted).
    pub id: Uuid,
    /// Who sent it: a URI reference, for example `/hosts/db1/recovery-svc`.
    pub source: String,
    /// What it is: see the list of types.
    #[serde(rename = "type")]
    pub type_name: String,
    /// What it is about: a session's id for events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// `application/json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacontenttype: Option<String>,
    /// Where the JSON Schema of `data` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataschema: Option<String>,
    /// Number of this event among those of its session, from 1, without gaps. Only events have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// W3C trace context of the sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceParent>,
    /// W3C trace state of the sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
    /// The payload.
    #[serde(default)]
    pub data: Value,
}

impl RawEnvelope {
    /// Reads an envelope, checking the limits and the attributes but not the type.
    pub fn from_bytes(bytes: &[u8], limit: usize) -> Result<Self, ContractError> {
        if bytes.len() > limit {
            return Err(ContractError::TooLarge {
                bytes: bytes.len(),
                limit,
            });
        }
        let malformed = |reason: String| ContractError::MalformedEnvelope { reason };
        let raw: RawEnvelope =
            serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
        if raw.specversion != "1.0" {
            return Err(malformed(format!(
                "specversion is {:?}, not \"1.0\"",
                raw.specversion
            )));
        }
        let texts = [
            ("source", Some(&raw.source)),
            ("type", Some(&raw.type_name)),
            ("subject", raw.subject.as_ref()),
        ];
        for (name, text) in texts {
            if text.is_some_and(|text| text.is_empty() || text.len() > Limits::ATTRIBUTE_BYTES) {
                return Err(malformed(format!(
                    "{name} must have 1 to {} bytes",
                    Limits::ATTRIBUTE_BYTES
                )));
            }
        }
        Ok(raw)
    }

    /// Reads the payload as one of a family.
    pub fn open<P: Payload>(self) -> Result<Envelope<P>, ContractError> {
        let payload = P::from_data(&self.type_name, self.data)?;
        Ok(Envelope {
            id: self.id,
            source: self.source,
            subject: self.subject,
            time: self.time,
            sequence: self.sequence,
            traceparent: self.traceparent,
            tracestate: self.tracestate,
            payload,
        })
    }
}

/// A message of the contract.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope<P> {
    /// The message's own id.
    pub id: Uuid,
    /// Who sent it.
    pub source: String,
    /// What it is about.
    pub subject: Option<String>,
    /// When it was made.
    pub time: Option<Timestamp>,
    /// Number among the session's events.
    pub sequence: Option<u64>,
    /// Trace context.
    pub traceparent: Option<TraceParent>,
    /// Trace state.
    pub tracestate: Option<String>,
    /// What it says.
    pub payload: P,
}

impl<P: Payload> Envelope<P> {
    /// Reads a whole message.
    pub fn from_bytes(bytes: &[u8], limit: usize) -> Result<Self, ContractError> {
        RawEnvelope::from_bytes(bytes, limit)?.open()
    }

    /// The message as JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        let type_name = self.payload.type_name();
        let raw = RawEnvelope {
            specversion: "1.0".to_owned(),
            id: self.id,
            source: self.source.clone(),
            type_name: type_name.to_owned(),
            subject: self.subject.clone(),
            time: self.time,
            datacontenttype: Some("application/json".to_owned()),
            dataschema: Some(format!("{SCHEMA_BASE}/{type_name}.json")),
            sequence: self.sequence,
            traceparent: self.traceparent.clone(),
            tracestate: self.tracestate.clone(),
            data: self.payload.to_data(),
        };
        serde_json::to_vec(&raw).expect("envelopes have text keys only")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Cancel, Command};

    fn command_json(change: impl Fn(&mut Value)) -> Vec<u8> {
        let mut value = serde_json::json!({
            "specversion": "1.0",
            "id": "0190b5a8-7c3a-7def-8123-456789abcdef",
            "source": "/test",
            "type": "io.pginstant.command.cancel.v1",
            "data": {"session_id": "0190b5a8-7c3a-7def-8123-456789abcdee"},
        });
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Envelope<Command>, ContractError> {
        Envelope::from_bytes(bytes, Limits::COMMAND_BYTES)
    }

    #[test]
    fn a_minimal_cloud_event_is_enough_and_unknown_fields_are_ignored() {
        let envelope = read(&command_json(|v| v["somebodys_extension"] = 1.into())).unwrap();
        assert!(matches!(envelope.payload, Command::Cancel(Cancel { .. })));
        assert_eq!(read(&envelope.to_bytes()).unwrap(), envelope);
    }

    #[test]
    fn what_is_wrong_with_a_message_is_told_apart() {
        let code = |bytes: &[u8]| Problem::from(read(bytes).unwrap_err()).code;
        assert_eq!(code(b"{"), ErrorCode::MalformedMessage);
        assert_eq!(
            code(&command_json(|v| v["specversion"] = "0.3".into())),
            ErrorCode::MalformedMessage
        );
        assert_eq!(
            code(&command_json(|v| v["source"] = "".into())),
            ErrorCode::MalformedMessage
        );
        assert_eq!(
            code(&command_json(|v| v["id"] = "1".into())),
            ErrorCode::MalformedMessage
        );
        assert_eq!(
            code(&command_json(
                |v| v["type"] = "io.pginstant.command.cancel.v2".into()
            )),
            ErrorCode::UnknownMessageType
        );
        assert_eq!(
            code(&command_json(|v| v["data"] = Value::Null)),
            ErrorCode::InvalidField
        );
        assert_eq!(
            code(&command_json(
                |v| v["data"]["session_id"] = "../../etc".into()
            )),
            ErrorCode::InvalidField
        );
        assert_eq!(
            code(&command_json(
                |v| v["x"] = "x".repeat(Limits::COMMAND_BYTES).into()
            )),
            ErrorCode::MessageTooLarge
        );
    }
}
