//! Commands, as mount-svc delegates them. Idempotent: the id of each is in the inbox with the same commit that it caused.

use std::sync::Arc;

use common::agent::hand::{Hydrate, Replace, SessionPlace};
use common::ids::{BackupLabel, RepositoryName, SessionId, TargetName};
use common::messages::{
    Command, Envelope, FinalLocation, Limits, MountFiles, Publish, Recover, RecoverSession,
    RecoveryTarget, SessionKind, SwitchoverMode, TraceParent,
};
use common::problem::{ErrorCode, Problem};
use common::session::{Accept, Input, RecoverySpec, SessionSpec};

use crate::service::{CommandMark, Service, Taken};
use crate::worker::{Unhandled, mark};

/// Takes a command.
pub(crate) async fn take(
    service: &Arc<Service>,
    envelope: Envelope<Command>,
) -> Result<&'static str, Unhandled> {
    let mark = mark(&envelope)?;
    let traceparent = envelope.traceparent.clone();
    let taken = match envelope.payload {
        Command::Publish(command) => begin(service, mark, Wish::from(command), traceparent).await?,
        Command::MountFiles(command) => {
            begin(service, mark, Wish::from(command), traceparent).await?
        }
        Command::Unpublish(command) => {
            steer(service, mark, command.session_id, Input::Unpublish).await?
        }
        Command::Cancel(command) => steer(service, mark, command.session_id, Input::Cancel).await?,
        Command::Retry(command) => steer(service, mark, command.session_id, Input::Retry).await?,
        Command::Recover(command) => begin(service, mark, Wish::from(command), traceparent).await?,
        Command::RecoverSession(command) => promote(service, mark, command).await?,
        Command::Switchover(command) => {
            let input = Input::Switchover(command.order);
            steer(service, mark, command.session_id, input).await?
        }
    };
    Ok(match taken {
        Taken::Accepted => "accepted",
        Taken::Duplicate => "duplicate",
        Taken::Rejected(_) | Taken::Unknown => "rejected",
    })
}

async fn promote(
    service: &Arc<Service>,
    mark: CommandMark,
    command: RecoverSession,
) -> Result<Taken, Unhandled> {
    match recovery_spec(service, &command.location) {
        Ok(recovery) => {
            let input = Input::Recover {
                recovery: Box::new(recovery),
                switchover: command.location.switchover,
                retry: service.config.retry_policy(SessionKind::Recover),
            };
            steer(service, mark, command.session_id, input).await
        }
        Err(problem) => Ok(service.reject(mark, problem).await?),
    }
}

/// What the commands that begin a session say.
struct Wish {
    kind: SessionKind,
    repository: RepositoryName,
    backup: Option<BackupLabel>,
    target: TargetName,
    port: Option<u16>,
    hydrate: Option<Hydrate>,
    recovery_target: RecoveryTarget,
    reason: Option<String>,
    location: Option<FinalLocation>,
}

impl From<Recover> for Wish {
    fn from(command: Recover) -> Self {
        Self {
            kind: SessionKind::Recover,
            repository: command.repository,
            backup: command.backup,
            target: command.target,
            port: command.port,
            // Replicating reads everything once: nothing beside that is copied.
            hydrate: Some(Hydrate::None),
            recovery_target: command.recovery_target,
            reason: command.reason,
            location: Some(command.location),
        }
    }
}

impl From<Publish> for Wish {
    fn from(command: Publish) -> Self {
        Self {
            kind: SessionKind::Publish,
            repository: command.repository,
            backup: command.backup,
            target: command.target,
            port: command.port,
            hydrate: command.hydrate,
            recovery_target: command.recovery_target,
            reason: command.reason,
            location: None,
        }
    }
}

impl From<MountFiles> for Wish {
    fn from(command: MountFiles) -> Self {
        Self {
            kind: SessionKind::Mount,
            repository: command.repository,
            backup: command.backup,
            target: command.target,
            port: None,
            hydrate: command.hydrate,
            recovery_target: RecoveryTarget::default(),
            reason: command.reason,
            location: None,
        }
    }
}

async fn begin(
    service: &Arc<Service>,
    mark: CommandMark,
    wish: Wish,
    traceparent: Option<TraceParent>,
) -> Result<Taken, Unhandled> {
    let session_id = SessionId::from(mark.id);
    // A duplicate must not be refused for a limit that its first copy was within.
    if service.stored(session_id).await?.is_some() {
        return Ok(Taken::Duplicate);
    }
    let switchover = match &wish.location {
        Some(location) => location.switchover,
        None => SwitchoverMode::Manual,
    };
    match spec(service, session_id, wish) {
        Ok(spec) => {
            let request = Accept {
                switchover,
                session_id,
                command_id: mark.id,
                retry: service.config.retry_policy(spec.kind),
                spec,
            };
            Ok(service.begin(mark, request, traceparent).await?)
        }
        Err(problem) => Ok(service.reject(mark, problem).await?),
    }
}

fn spec(service: &Service, session_id: SessionId, wish: Wish) -> Result<SessionSpec, Problem> {
    let target = service.config.target(&wish.target)?;
    if wish.port == Some(0) {
        return Err(Problem::new(
            ErrorCode::InvalidField,
            "port is 0",
            "choose 1 to 65535, or leave it out for the target's default",
        ));
    }
    let reason_chars = wish.reason.as_ref().map_or(0, |text| text.chars().count());
    if reason_chars > Limits::REASON_CHARS {
        return Err(Problem::new(
            ErrorCode::InvalidField,
            format!(
                "reason has {reason_chars} characters, {} are allowed",
                Limits::REASON_CHARS
            ),
            "say it in fewer words",
        ));
    }
    let sessions_max = service.config.limits.sessions_max;
    if service.session_count() >= sessions_max {
        return Err(Problem::new(
            ErrorCode::NotPossibleNow,
            format!(
                "{sessions_max} sessions have not ended, which is the limit of this mount server"
            ),
            "unpublish or cancel one, or raise limits.sessions_max",
        ));
    }
    let port = match wish.kind {
        SessionKind::Publish | SessionKind::Recover => {
            Some(wish.port.unwrap_or(target.default_port))
        }
        SessionKind::Mount => None,
    };
    let recovery = match &wish.location {
        Some(location) => Some(recovery_spec(service, location)?),
        None => None,
    };
    Ok(SessionSpec {
        kind: wish.kind,
        repository: wish.repository,
        backup: wish.backup,
        target: wish.target,
        place: SessionPlace {
            session_id,
            mount_root: target.mount_root.clone(),
            cache_root: target.cache_root.clone(),
            os_user: target.os_user.clone(),
        },
        port,
        hydrate: wish.hydrate,
        recovery_target: wish.recovery_target,
        reason: wish.reason,
        recovery,
    })
}

/// Where the instance is to stay, checked for what can be told without the target.
fn recovery_spec(service: &Service, location: &FinalLocation) -> Result<RecoverySpec, Problem> {
    location.check()?;
    Ok(RecoverySpec {
        data_directory: location.data_directory.clone(),
        tablespaces: location.tablespaces.clone(),
        replace: match location.replace {
            true => Replace::MoveAside,
            false => Replace::Never,
        },
        lag_max_bytes: service.config.limits.lag_max_bytes,
    })
}

async fn steer(
    service: &Arc<Service>,
    mark: CommandMark,
    session_id: SessionId,
    input: Input,
) -> Result<Taken, Unhandled> {
    match service.give(session_id, input, Some(mark.clone())).await? {
        Taken::Unknown => {
            let problem = unknown(service, session_id);
            Ok(service.reject(mark, problem).await?)
        }
        taken => Ok(taken),
    }
}

/// There is no session of this id.
pub(crate) fn unknown(service: &Service, session_id: SessionId) -> Problem {
    Problem::new(
        ErrorCode::UnknownSession,
        format!(
            "mount server {} has no session {session_id}",
            service.config.server
        ),
        "see explorer sessions for those that there are",
    )
}
