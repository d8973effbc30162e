//! Commands: what people and third parties ask for. Sent to `mount.<server>`; session commands name their session in `subject`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::payload::payloads;
use crate::agent::hand::Hydrate;
use crate::ids::{BackupLabel, RepositoryName, SessionId, TargetName};

payloads! {
    /// Everything that can be asked for.
    Command {
        Publish = "io.pginstant.command.publish.v1",
        MountFiles = "io.pginstant.command.mount.v1",
        Unpublish = "io.pginstant.command.unpublish.v1",
        Cancel = "io.pginstant.command.cancel.v1",
        Retry = "io.pginstant.command.retry.v1",
    }
}

impl Command {
    /// The existing session that the command is about, if it is about one.
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Command::Publish(_) | Command::MountFiles(_) => None,
            Command::Unpublish(command) => Some(command.session_id),
            Command::Cancel(command) => Some(command.session_id),
            Command::Retry(command) => Some(command.session_id),
        }
    }
}

/// Start PostgreSQL on a target from a mounted backup. The session that it begins has this command's `id` as its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Publish {
    /// The repository, by its name in the mount server's configuration.
    pub repository: RepositoryName,
    /// The backup; the newest one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupLabel>,
    /// The target, by its name in the mount server's configuration.
    pub target: TargetName,
    /// TCP port of the published instance, 1 to 65535; the target's default when absent. It must be free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// What is copied from the backup into the write cache beside what is read; the target's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hydrate: Option<Hydrate>,
    /// Why, for the session's history. At most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub reason: Option<String>,
}

/// Mount the files of a backup on a target, with a write cache, and start nothing. The session has this command's `id` as its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountFiles {
    /// The repository, by its name in the mount server's configuration.
    pub repository: RepositoryName,
    /// The backup; the newest one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupLabel>,
    /// The target, by its name in the mount server's configuration.
    pub target: TargetName,
    /// What is copied from the backup into the write cache beside what is read; the target's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hydrate: Option<Hydrate>,
    /// Why, for the session's history. At most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub reason: Option<String>,
}

/// Stop the published instance (fast), unmount, and remove the write cache with every change in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unpublish {
    /// The session.
    pub session_id: SessionId,
}

/// Give a session up at whatever step it is, and undo exactly what it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancel {
    /// The session.
    pub session_id: SessionId,
}

/// Try again what failed, now. The write cache, and with it every change that users made, is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retry {
    /// The session.
    pub session_id: SessionId,
}
