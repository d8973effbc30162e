//! Commands: what people and third parties ask for. Sent to `mount.<server>`; session commands name their session in `subject`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::payload::payloads;
use crate::agent::hand::Hydrate;
use crate::ids::{BackupLabel, RepositoryName, SessionId, TargetName};
use crate::problem::{ErrorCode, Problem};

payloads! {
    /// Everything that can be asked for.
    Command {
        Publish = "io.pginstant.command.publish.v1",
        MountFiles = "io.pginstant.command.mount.v1",
        Unpublish = "io.pginstant.command.unpublish.v1",
        Cancel = "io.pginstant.command.cancel.v1",
        Retry = "io.pginstant.command.retry.v1",
        Recover = "io.pginstant.command.recover.v1",
        RecoverSession = "io.pginstant.command.recover_session.v1",
        Switchover = "io.pginstant.command.switchover.v1",
    }
}

impl Command {
    /// The existing session that the command is about, if it is about one.
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Command::Publish(_) | Command::MountFiles(_) | Command::Recover(_) => None,
            Command::RecoverSession(command) => Some(command.session_id),
            Command::Switchover(command) => Some(command.session_id),
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
    /// How far recovery goes.
    #[serde(default, skip_serializing_if = "RecoveryTarget::is_default")]
    pub recovery_target: RecoveryTarget,
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

/// How far recovery goes.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryTarget {
    /// To the end of the WAL that the repository's archive has when the backup is mounted; without an archive, of what the backup
    /// brings along.
    #[default]
    Latest,
    /// To the backup's end, the first consistent state.
    Immediate,
}

impl RecoveryTarget {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a recovered instance is to stay, and when it goes there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct FinalLocation {
    /// Data directory on the target, absolute.
    pub data_directory: PathBuf,
    /// Directory of a tablespace by its oid, absolute; where it was on the original when absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// What is in these directories may be moved aside (to `<directory>.before-<session>`, never deleted), and a PostgreSQL that
    /// runs there stopped. Without it they must be empty.
    #[serde(default)]
    pub replace: bool,
    /// When it is switched over.
    #[serde(default)]
    pub switchover: SwitchoverMode,
}

impl FinalLocation {
    /// Longest path, in bytes.
    const PATH_BYTES_MAX: usize = 1_024;
    /// Most tablespaces.
    const TABLESPACES_MAX: usize = 1_000;

    /// Refuses what cannot be meant: relative paths, paths that climb, directories inside each other or named twice.
    pub fn check(&self) -> Result<(), Problem> {
        let wrong = |message: String, remedy: &str| {
            Err(Problem::new(ErrorCode::InvalidField, message, remedy))
        };
        if self.tablespaces.len() > Self::TABLESPACES_MAX {
            return wrong(
                format!("{} tablespaces are named", self.tablespaces.len()),
                "name at most 1000",
            );
        }
        let paths: Vec<&Path> = std::iter::once(&self.data_directory)
            .chain(self.tablespaces.values())
            .map(PathBuf::as_path)
            .collect();
        for path in &paths {
            let is_plain = path
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            let is_short = path.as_os_str().len() <= Self::PATH_BYTES_MAX;
            if !path.is_absolute() || !is_plain || !is_short || path.parent().is_none() {
                return wrong(
                    format!("{} is no directory to recover to", path.display()),
                    "give absolute paths without . or .., of at most 1024 bytes",
                );
            }
        }
        for (index, path) in paths.iter().enumerate() {
            let inside =
                |(other, outer): (usize, &&Path)| other != index && path.starts_with(outer);
            if let Some((_, outer)) = paths.iter().enumerate().find(|pair| inside(*pair)) {
                return wrong(
                    format!("{} lies in {}", path.display(), outer.display()),
                    "give each of them a directory of its own",
                );
            }
        }
        Ok(())
    }
}

/// When a switchover begins.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum SwitchoverMode {
    /// As soon as the standby is in step.
    Auto,
    /// When someone asks for it.
    #[default]
    Manual,
    /// At a time, or as soon as the standby is in step after it.
    At {
        /// The time.
        at: Timestamp,
    },
}

/// An instant recovery: publish at the final port at once, replicate behind that to the final place, then switch over without losing a
/// commit. The session has this command's `id` as its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recover {
    /// The repository, by its name in the mount server's configuration.
    pub repository: RepositoryName,
    /// The backup; the newest one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupLabel>,
    /// The target, by its name in the mount server's configuration.
    pub target: TargetName,
    /// TCP port of the instance, from the first moment to the last, 1 to 65535; the target's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Where it is to stay.
    pub location: FinalLocation,
    /// How far recovery goes.
    #[serde(default, skip_serializing_if = "RecoveryTarget::is_default")]
    pub recovery_target: RecoveryTarget,
    /// Why, for the session's history. At most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub reason: Option<String>,
}

/// Turn a published session into an instant recovery; what users wrote is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RecoverSession {
    /// The session, which must be published.
    pub session_id: SessionId,
    /// Where the instance is to stay.
    pub location: FinalLocation,
}

/// Switch over now, or change when it is to happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Switchover {
    /// The session.
    pub session_id: SessionId,
    /// What is wanted.
    pub order: SwitchoverOrder,
}

/// What may be asked of a switchover.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum SwitchoverOrder {
    /// Begin now; refused unless the session is ready for it.
    Now,
    /// Begin as soon as the standby is in step.
    Auto,
    /// Wait for an order.
    Manual,
    /// Begin at a time.
    At {
        /// The time.
        at: Timestamp,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_that_cannot_be_meant_is_refused() {
        for (data_directory, tablespaces, is_fine) in [
            ("/var/lib/postgresql/15/main", &[][..], true),
            (
                "/data/main",
                &[(16_400, "/fast/ts"), (16_401, "/slow/ts")],
                true,
            ),
            ("data", &[], false),
            ("/", &[], false),
            ("/data/../etc", &[], false),
            ("/data/main", &[(16_400, "relative")], false),
            ("/data/main", &[(16_400, "/data/main")], false),
            ("/data/main", &[(16_400, "/data/main/ts")], false),
            ("/data/main", &[(16_400, "/data")], false),
            ("/data/main", &[(16_400, "/ts"), (16_401, "/ts")], false),
        ] {
            let location = FinalLocation {
                data_directory: data_directory.into(),
                tablespaces: tablespaces
                    .iter()
                    .map(|(oid, path)| (*oid, PathBuf::from(path)))
                    .collect(),
                replace: false,
                switchover: SwitchoverMode::Manual,
            };
            assert_eq!(location.check().is_ok(), is_fine, "{location:?}");
        }
    }
}
