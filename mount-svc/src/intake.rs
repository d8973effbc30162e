//! What becomes of one message from mount-svc's queue, decided without doing anything yet.

use common::ids::{CommandId, SessionId};
use common::messages::{
    Command, ContractError, Envelope, Internal, Limits, MountRelease, MountRequest, Payload, Query,
    RawEnvelope,
};
use common::problem::{ErrorCode, Problem};

use crate::config::Config;

/// What is to be done with a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Intake {
    /// A sound command: it goes on to recovery-svc as it came.
    Delegate(CommandId),
    /// A command that cannot be carried out: its sender is told why.
    Reject(Rejection),
    /// A question to be answered.
    Answer(Envelope<Query>),
    /// recovery-svc wants a mount.
    Mount(CommandId, MountRequest),
    /// recovery-svc wants a mount gone.
    Release(CommandId, MountRelease),
    /// Cannot be understood: it is put aside with the reason.
    Park(Option<Rejection>, Problem),
}

/// Who is told what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The command.
    pub command_id: CommandId,
    /// Its type.
    pub command_type: String,
    /// Why.
    pub problem: Problem,
}

/// By which door a message came: only our own services may write to the default exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The default exchange: from one of ours.
    Own,
    /// The exchange `cmd`: from anyone.
    Public,
}

impl Door {
    /// The door that belongs to the exchange that a message was published to.
    pub fn of_exchange(exchange: &str) -> Self {
        if exchange.is_empty() {
            Door::Own
        } else {
            Door::Public
        }
    }
}

/// Decides about one message body.
pub fn decide(config: &Config, door: Door, body: &[u8]) -> Intake {
    let raw = match RawEnvelope::from_bytes(body, Limits::COMMAND_BYTES) {
        Ok(raw) => raw,
        Err(error) => return Intake::Park(None, error.into()),
    };
    let type_name = raw.type_name.clone();
    let id = match CommandId::new(raw.id) {
        Ok(id) => id,
        Err(error) => {
            let problem = Problem::new(
                ErrorCode::MalformedMessage,
                error.to_string(),
                "give every message a new UUID of version 7 or 4",
            );
            return Intake::Park(None, problem);
        }
    };
    let rejection = |problem: Problem| Rejection {
        command_id: id,
        command_type: type_name.clone(),
        problem,
    };
    let park = |error: ContractError| {
        let problem = Problem::from(error);
        Intake::Park(Some(rejection(problem.clone())), problem)
    };
    if has_type::<Command>(&type_name) {
        match raw.open::<Command>() {
            Ok(envelope) => match check_command(config, &envelope.payload) {
                Ok(()) => Intake::Delegate(id),
                Err(problem) => Intake::Reject(rejection(problem)),
            },
            // The type is known, so the sender speaks the contract and can understand the refusal: nothing to look at by hand.
            Err(error) => Intake::Reject(rejection(error.into())),
        }
    } else if has_type::<Internal>(&type_name) {
        if door == Door::Public {
            let problem = Problem::new(
                ErrorCode::PermissionDenied,
                format!("{type_name} is for our own services only"),
                "send commands and queries",
            );
            return Intake::Park(Some(rejection(problem.clone())), problem);
        }
        match raw.open::<Internal>() {
            Ok(Envelope {
                payload: Internal::MountRequest(request),
                ..
            }) => Intake::Mount(id, request),
            Ok(Envelope {
                payload: Internal::MountRelease(release),
                ..
            }) => Intake::Release(id, release),
            Ok(_) => park(ContractError::UnknownType {
                type_name: type_name.clone(),
            }),
            Err(error) => park(error),
        }
    } else if has_type::<Query>(&type_name) {
        match raw.open::<Query>() {
            Ok(query) => Intake::Answer(query),
            Err(error) => park(error),
        }
    } else {
        park(ContractError::UnknownType {
            type_name: type_name.clone(),
        })
    }
}

fn has_type<P: Payload>(type_name: &str) -> bool {
    P::docs().iter().any(|doc| doc.type_name == type_name)
}

fn check_command(config: &Config, command: &Command) -> Result<(), Problem> {
    match command {
        Command::Publish(publish) => {
            config.repository(&publish.repository)?;
            config.target(&publish.target)?;
            check_port(publish.port)?;
            check_reason(publish.reason.as_deref())
        }
        Command::MountFiles(mount) => {
            config.repository(&mount.repository)?;
            config.target(&mount.target)?;
            check_reason(mount.reason.as_deref())
        }
        Command::Recover(recover) => {
            config.repository(&recover.repository)?;
            config.target(&recover.target)?;
            check_port(recover.port)?;
            recover.location.check()?;
            check_reason(recover.reason.as_deref())
        }
        Command::RecoverSession(recover) => recover.location.check(),
        // Whether the session exists and can take it, its owner knows.
        Command::Unpublish(_) | Command::Cancel(_) | Command::Retry(_) | Command::Switchover(_) => {
            Ok(())
        }
    }
}

fn check_port(port: Option<u16>) -> Result<(), Problem> {
    match port {
        Some(0) => Err(Problem::new(
            ErrorCode::InvalidField,
            "port is 0",
            "choose 1 to 65535",
        )),
        Some(_) | None => Ok(()),
    }
}

fn check_reason(reason: Option<&str>) -> Result<(), Problem> {
    match reason.map(|reason| reason.chars().count()) {
        Some(length) if length > Limits::REASON_CHARS => Err(Problem::new(
            ErrorCode::InvalidField,
            format!("the reason has {length} characters"),
            format!("use at most {}", Limits::REASON_CHARS),
        )),
        _ => Ok(()),
    }
}

/// The session of an internal message, for the log.
pub fn session_of(intake: &Intake) -> Option<SessionId> {
    match intake {
        Intake::Delegate(id) => Some((*id).into()),
        Intake::Mount(_, request) => Some(request.session_id),
        Intake::Release(_, release) => Some(release.session_id),
        Intake::Reject(_) | Intake::Answer(_) | Intake::Park(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config() -> Config {
        serde_json::from_value(json!({
            "server": "db1",
            "state_directory": "/s",
            "broker": {"user": "u", "password_file": "/p"},
            "repositories": {"main": {"path": "/backups"}},
            "targets": {"here": {}},
        }))
        .unwrap()
    }

    fn decided(type_name: &str, data: Value) -> Intake {
        let message = json!({
            "specversion": "1.0", "id": "0190b5a8-7c3a-7def-8123-456789abcdef", "source": "/t",
            "type": type_name, "data": data,
        });
        decide(&config(), Door::Own, &serde_json::to_vec(&message).unwrap())
    }

    fn code(intake: Intake) -> ErrorCode {
        match intake {
            Intake::Reject(rejection) => rejection.problem.code,
            Intake::Park(_, problem) => problem.code,
            other => panic!("{other:?}"),
        }
    }

    const PUBLISH: &str = "io.pginstant.command.publish.v1";

    #[test]
    fn a_sound_command_is_delegated() {
        let data = json!({"repository": "main", "target": "here", "port": 6000});
        assert!(matches!(decided(PUBLISH, data), Intake::Delegate(_)));
        let data = json!({"session_id": "0190b5a8-7c3a-7def-8123-456789abcdee"});
        assert!(matches!(
            decided("io.pginstant.command.cancel.v1", data),
            Intake::Delegate(_)
        ));
    }

    #[test]
    fn a_command_that_cannot_be_carried_out_is_rejected_with_what_there_is() {
        let cases = [
            (
                json!({"repository": "x", "target": "here"}),
                ErrorCode::UnknownRepository,
            ),
            (
                json!({"repository": "main", "target": "x"}),
                ErrorCode::UnknownTarget,
            ),
            (
                json!({"repository": "../..", "target": "here"}),
                ErrorCode::InvalidField,
            ),
            (
                json!({"repository": "main", "target": "here", "port": 0}),
                ErrorCode::InvalidField,
            ),
            (
                json!({"repository": "main", "target": "here", "port": 70000}),
                ErrorCode::InvalidField,
            ),
            (
                json!({"repository": "main", "target": "here", "reason": "x".repeat(501)}),
                ErrorCode::InvalidField,
            ),
            (json!([]), ErrorCode::InvalidField),
        ];
        for (data, expected) in cases {
            let intake = decided(PUBLISH, data.clone());
            assert!(matches!(intake, Intake::Reject(_)), "{data}");
            assert_eq!(code(intake), expected, "{data}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_parked_with_its_reason() {
        assert_eq!(
            code(decide(&config(), Door::Public, b"not json")),
            ErrorCode::MalformedMessage
        );
        assert_eq!(
            code(decide(&config(), Door::Public, &vec![b' '; 70_000])),
            ErrorCode::MessageTooLarge
        );
        let unknown = decided("io.pginstant.command.publish.v2", json!({}));
        assert!(matches!(&unknown, Intake::Park(Some(_), _)));
        assert_eq!(code(unknown), ErrorCode::UnknownMessageType);
        assert!(matches!(
            decided("io.pginstant.mount.ready.v1", json!({})),
            Intake::Park(..)
        ));
        assert!(matches!(
            decided("io.pginstant.mount.request.v1", json!({})),
            Intake::Park(..)
        ));
    }

    #[test]
    fn a_forged_message_of_the_services_is_not_obeyed() {
        let message = json!({
            "specversion": "1.0", "id": "0190b5a8-7c3a-7def-8123-456789abcdef", "source": "/hosts/db1/recovery-svc",
            "type": "io.pginstant.mount.release.v1",
            "data": {"session_id": "0190b5a8-7c3a-7def-8123-456789abcdee", "epoch": 1, "target": "here"},
        });
        let body = serde_json::to_vec(&message).unwrap();
        assert!(matches!(
            decide(&config(), Door::Own, &body),
            Intake::Release(..)
        ));
        assert_eq!(
            code(decide(&config(), Door::Public, &body)),
            ErrorCode::PermissionDenied
        );
    }
}
