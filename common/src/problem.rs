//! A failure in the form that people and programs get to see: one sentence that names the thing,
//! one that names the remedy, a stable code, and whether time may mend it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What went wrong, stable across releases: programs may branch on it, people may search for it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The message is not JSON, not a CloudEvent, or lacks something.
    MalformedMessage,
    /// The message is larger than the contract allows.
    MessageTooLarge,
    /// The message's type or major version is not known to this service.
    UnknownMessageType,
    /// A field of the command holds something that it must not.
    InvalidField,
    /// No session has this id.
    UnknownSession,
    /// The session is not in a state in which this can be done.
    NotPossibleNow,
    /// The configuration has no repository of this name.
    UnknownRepository,
    /// The repository has no backup of this label.
    UnknownBackup,
    /// The configuration has no target of this name.
    UnknownTarget,
    /// The repository or backup cannot be read (permissions, IO error, missing file).
    UnreadableBackup,
    /// The backup contradicts itself or its manifest, or holds hostile names.
    CorruptBackup,
    /// The backup is of a kind that cannot be published.
    UnsupportedBackup,
    /// The target cannot be reached, or its agent does not answer.
    TargetUnreachable,
    /// The agent on the target is of another version.
    AgentMismatch,
    /// The OS user does not exist on the target.
    UnknownOsUser,
    /// The OS user, or we, may not do what is needed.
    PermissionDenied,
    /// FUSE cannot be used on the target.
    FuseUnavailable,
    /// The target has no PostgreSQL of the backup's major version.
    PostgresqlNotFound,
    /// Somebody listens on the port already.
    PortInUse,
    /// A directory that is to be filled holds something already.
    DirectoryNotEmpty,
    /// A volume has not enough free space.
    NotEnoughSpace,
    /// The mount could not be made or has gone.
    MountFailed,
    /// A session directory or write cache is in the way, or in use by someone else.
    CacheInUse,
    /// PostgreSQL did not start, or ended.
    InstanceFailed,
    /// Recovery did not reach a consistent state.
    RecoveryFailed,
    /// Copying the published instance to its final place failed, or its standby ended.
    ReplicationFailed,
    /// The switchover could not be carried out; the published instance goes on.
    SwitchoverFailed,
    /// Something took longer than its limit.
    TimedOut,
    /// The broker cannot be reached or refused something.
    BrokerUnavailable,
    /// A service did not answer within the limit: it is not running, or busy.
    ServiceUnavailable,
    /// The broker's exchanges and queues are not those that this version needs.
    TopologyMismatch,
    /// The service's own journal or state directory failed.
    JournalFailed,
    /// The configuration is not valid.
    InvalidConfiguration,
    /// An IO error that none of the others describes.
    IoFailed,
    /// A broken invariant: a mistake of ours.
    Internal,
}

impl ErrorCode {
    /// Whether no retry can mend it, so that a session fails at once instead of waiting.
    pub fn is_permanent(self) -> bool {
        use ErrorCode::*;
        match self {
            MalformedMessage | MessageTooLarge | UnknownMessageType | InvalidField
            | UnknownSession | NotPossibleNow | UnknownRepository | UnknownBackup
            | UnknownTarget | CorruptBackup | UnsupportedBackup | AgentMismatch | UnknownOsUser
            | PermissionDenied | FuseUnavailable | PostgresqlNotFound | PortInUse
            | DirectoryNotEmpty | NotEnoughSpace | TopologyMismatch | InvalidConfiguration
            | Internal => true,
            UnreadableBackup | TargetUnreachable | MountFailed | CacheInUse | InstanceFailed
            | RecoveryFailed | ReplicationFailed | SwitchoverFailed | TimedOut
            | BrokerUnavailable | ServiceUnavailable | JournalFailed | IoFailed => false,
        }
    }

    /// The exit code of a program that ends because of it (sysexits, messaging contract section 5.6).
    pub fn exit_code(self) -> u8 {
        use ErrorCode::*;
        match self {
            InstanceFailed | RecoveryFailed | ReplicationFailed | SwitchoverFailed
            | MountFailed => 1,
            InvalidField => 64,
            MalformedMessage | MessageTooLarge | UnknownMessageType | UnknownSession
            | UnknownRepository | UnknownBackup | UnknownTarget | CorruptBackup
            | UnsupportedBackup | UnreadableBackup => 65,
            TargetUnreachable | BrokerUnavailable | ServiceUnavailable | PostgresqlNotFound
            | FuseUnavailable => 69,
            AgentMismatch | JournalFailed | Internal => 70,
            CacheInUse | DirectoryNotEmpty | NotEnoughSpace | PortInUse => 73,
            IoFailed => 74,
            NotPossibleNow | TimedOut => 75,
            UnknownOsUser | PermissionDenied => 77,
            TopologyMismatch | InvalidConfiguration => 78,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A failure as people and programs see it.
#[derive(
    Debug,
    Clone,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    thiserror::Error,
)]
#[error("{message}; {remedy} [{code}]")]
pub struct Problem {
    /// What went wrong, for programs.
    pub code: ErrorCode,
    /// What went wrong and where: one sentence, lower case, no full stop. At most 1,000 characters.
    pub message: String,
    /// What to do about it, in the same form.
    pub remedy: String,
}

impl Problem {
    /// Longest text of a message or remedy, in characters; what is longer is cut.
    pub const TEXT_MAX: usize = 1_000;

    /// Makes a problem; texts beyond [`Problem::TEXT_MAX`] are cut.
    pub fn new(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let cut = |text: String| match text.char_indices().nth(Self::TEXT_MAX) {
            Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
            None => text,
        };
        Self {
            code,
            message: cut(message.into()),
            remedy: cut(remedy.into()),
        }
    }

    /// Whether no retry can mend it.
    pub fn is_permanent(&self) -> bool {
        self.code.is_permanent()
    }
}
