//! Messages between mount-svc and recovery-svc, sent through the default exchange to the other's queue.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::WarningCode;
use super::payload::payloads;
use crate::agent::hand::Hydrate;
use crate::ids::{BackupLabel, OsUser, RepositoryName, SessionId, TargetName};
use crate::problem::Problem;

payloads! {
    /// Everything that the two services say to each other, beside delegated commands.
    Internal {
        MountRequest = "io.pginstant.mount.request.v1",
        MountRelease = "io.pginstant.mount.release.v1",
        MountProgress = "io.pginstant.mount.progress.v1",
        MountReady = "io.pginstant.mount.ready.v1",
        MountFailed = "io.pginstant.mount.failed.v1",
        MountReleased = "io.pginstant.mount.released.v1",
        MountLost = "io.pginstant.mount.lost.v1",
        MountWarning = "io.pginstant.mount.warning.v1",
        RetryDue = "io.pginstant.session.retry_due.v1",
    }
}

/// recovery-svc asks mount-svc for a mount. Idempotent: an existing mount of the session is answered with `ready` again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountRequest {
    /// The session; there is one mount a session.
    pub session_id: SessionId,
    /// Fences answers: an answer with another epoch than the session's is ignored.
    pub epoch: u64,
    /// The repository.
    pub repository: RepositoryName,
    /// The backup; the newest when absent.
    #[serde(default)]
    pub backup: Option<BackupLabel>,
    /// The target.
    pub target: TargetName,
    /// The OS user that owns every file of the mount.
    pub os_user: OsUser,
    /// What is copied from the backup beside what is read; the target's default when absent.
    #[serde(default)]
    pub hydrate: Option<Hydrate>,
}

/// recovery-svc asks mount-svc to unmount and to remove the write cache. Idempotent: what is gone is answered with `released`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountRelease {
    /// The session.
    pub session_id: SessionId,
    /// The session's epoch.
    pub epoch: u64,
    /// The target (the mount may never have been made, or mount-svc may have lost its journal).
    pub target: TargetName,
}

/// A request is worked at, and this is how far: opening a backup in compressed archives may take hours. Told every few seconds while
/// there is progress, so that who waits knows that it is not in vain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountProgress {
    /// The session.
    pub session_id: SessionId,
    /// The epoch of the request.
    pub epoch: u64,
    /// What is being done, for people.
    pub text: String,
    /// How much is done, in bytes.
    pub done_bytes: u64,
    /// How much there is, in bytes.
    pub total_bytes: u64,
}

/// The mount is there and serves files.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct MountReady {
    /// The session.
    pub session_id: SessionId,
    /// The epoch of the request.
    pub epoch: u64,
    /// The backup that was opened.
    pub backup: BackupLabel,
    /// Where it is mounted on the target.
    pub mount_point: PathBuf,
    /// The data directory in it.
    pub data_directory: PathBuf,
    /// PostgreSQL's major version of the backup, from `PG_VERSION`.
    pub postgresql_major: u32,
    /// WAL position at which the backup is consistent, `X/X`, if the backup says so.
    #[serde(default)]
    pub end_lsn: Option<String>,
    /// What the mount shows of the archive of WAL, if there is one.
    #[serde(default)]
    pub wal: Option<MountedWal>,
    /// Size of the backup's files, in bytes.
    #[serde(default)]
    pub size_bytes: u64,
    /// Where each tablespace was on the original, by its oid.
    #[serde(default)]
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// Whether the kernel serves local files by itself (FUSE passthrough).
    pub passthrough: bool,
    /// Why not, when it does not.
    #[serde(default)]
    pub passthrough_reason: Option<String>,
}

/// What a mount shows of the repository's archive of WAL, beside the data directory: recovery can go on with it behind the backup's end.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct MountedWal {
    /// The timeline to which recovery goes; the one on which the backup was made when absent.
    #[serde(default)]
    pub target_timeline: Option<u32>,
    /// The end of the last segment, `X/X`.
    #[serde(default)]
    pub end_lsn: Option<String>,
    /// The hole before which the WAL ends, if the archive goes on after one.
    #[serde(default)]
    pub gap: Option<WalGap>,
}

/// Segments that are missing in an archive of WAL.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct WalGap {
    /// Name of the first that is missing.
    pub first_missing: String,
    /// Name of the next that is there.
    pub next: String,
}

/// The mount could not be made; what was made for it is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountFailed {
    /// The session.
    pub session_id: SessionId,
    /// The epoch of the request.
    pub epoch: u64,
    /// Why.
    pub problem: Problem,
}

/// The mount and its write cache are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountReleased {
    /// The session.
    pub session_id: SessionId,
    /// The epoch of the request.
    pub epoch: u64,
    /// Why it could not be released; absent when it was.
    #[serde(default)]
    pub problem: Option<Problem>,
}

/// A mount that was ready has gone (agent killed, host restarted); its write cache is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountLost {
    /// The session.
    pub session_id: SessionId,
    /// The epoch of the request that made it.
    pub epoch: u64,
    /// What was seen.
    pub problem: Problem,
}

/// Something about a mount that people should know began or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountWarning {
    /// The session.
    pub session_id: SessionId,
    /// What.
    pub code: WarningCode,
    /// One sentence for people; absent when the warning no longer holds.
    #[serde(default)]
    pub text: Option<String>,
}

/// Comes back from the retry queue when the next attempt of a waiting session is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetryDue {
    /// The session.
    pub session_id: SessionId,
    /// The epoch in which it was scheduled; in a later one it is ignored.
    pub epoch: u64,
    /// The attempt that is due, from 2.
    pub attempt: u32,
}
