//! Queries and their replies: asked with `reply_to` and a correlation id, answered at once, kept nowhere.
//! `backups` goes to `mount.<server>`; `sessions`, `session` and `host_check` go to `recovery.<server>`.

use std::path::PathBuf;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SwitchoverMode;
use super::event::{Lag, Mounted, Published, StepTiming, SwitchedOver, Waiting, Warning};
use super::payload::payloads;
use super::{CacheStatistics, SessionKind, SessionStatus, Step, WalGap};
use crate::ids::{BackupLabel, OsUser, RepositoryName, ServerName, SessionId, TargetName};
use crate::problem::Problem;

payloads! {
    /// Everything that can be asked.
    Query {
        BackupsQuery = "io.pginstant.query.backups.v1",
        SessionsQuery = "io.pginstant.query.sessions.v1",
        SessionQuery = "io.pginstant.query.session.v1",
        HostCheckQuery = "io.pginstant.query.host_check.v1",
    }
}

payloads! {
    /// Every answer.
    Reply {
        BackupList = "io.pginstant.reply.backups.v1",
        SessionList = "io.pginstant.reply.sessions.v1",
        SessionDetail = "io.pginstant.reply.session.v1",
        HostCheck = "io.pginstant.reply.host_check.v1",
        Refused = "io.pginstant.reply.refused.v1",
    }
}

/// Which backups are there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupsQuery {
    /// One repository; all of the mount server's when absent.
    #[serde(default)]
    pub repository: Option<RepositoryName>,
}

/// The backups, newest first in each repository; at most 1,000.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupList {
    /// The backups.
    pub backups: Vec<BackupListed>,
    /// Repositories (or single backups) that could not be read, each with the reason.
    pub problems: Vec<Problem>,
    /// Whether older backups were left out.
    pub truncated: bool,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupListed {
    /// The repository that it is in.
    pub repository: RepositoryName,
    /// Its label.
    pub label: BackupLabel,
    /// Its format: `pg_basebackup plain`, `pg_basebackup tar`, `pg_basebackup tar, gzip` (`lz4`, `zstd`; each also with `incr`),
    /// `pgBackRest full` (`diff`, `incr`), `Barman full` (`incr`).
    pub format: String,
    /// Whether it stands on others.
    #[serde(default)]
    pub kind: Option<ListedKind>,
    /// The backups that it stands on, oldest first.
    #[serde(default)]
    pub references: Vec<BackupLabel>,
    /// PostgreSQL's major version, from `PG_VERSION`.
    pub postgresql_major: u32,
    /// When it was begun.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it was finished, where the format tells it.
    #[serde(default)]
    pub stopped_at: Option<Timestamp>,
    /// Size of its files, in bytes.
    pub size_bytes: u64,
    /// How many files it has.
    pub file_count: u64,
    /// How many tablespaces it has beside `pg_default` and `pg_global`.
    pub tablespace_count: u32,
    /// What it can be recovered to.
    #[serde(default)]
    pub recoverable: Option<ListedRestoreInterval>,
    /// Why its pages are slow to read at random, and which setting of the backup's tool makes later ones fast: one sentence; absent where
    /// they are not slow.
    #[serde(default)]
    pub slow_layout: Option<String>,
}

/// Whether a backup stands on others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ListedKind {
    /// On none.
    Full,
    /// On a full one.
    Diff,
    /// On any of its set.
    Incr,
}

impl ListedKind {
    /// Its name, as messages have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Diff => "diff",
            Self::Incr => "incr",
        }
    }
}

/// The interval of states that a backup can be recovered to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListedRestoreInterval {
    /// First consistent WAL position, `X/X`.
    pub from_lsn: String,
    /// Last WAL position that is there, `X/X`; equal to the first when only one state is.
    pub to_lsn: String,
    /// Earliest recoverable time, if known.
    #[serde(default)]
    pub from: Option<Timestamp>,
    /// Latest recoverable time, if known.
    #[serde(default)]
    pub to: Option<Timestamp>,
    /// The archived WAL that goes on behind the backup, if there is any; `to_lsn` is its end then.
    #[serde(default)]
    pub archive: Option<ListedArchive>,
}

/// The archived WAL with which recovery of a backup goes on: from its start without a hole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListedArchive {
    /// Name of the last segment.
    pub last_segment: String,
    /// The timeline of the last segment.
    pub timeline: u32,
    /// When the last segment was archived: the time of its file.
    #[serde(default)]
    pub archived_at: Option<Timestamp>,
    /// The hole behind the last segment, if the archive goes on after one.
    #[serde(default)]
    pub gap: Option<WalGap>,
}

/// Which sessions are there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionsQuery {
    /// Ended ones too.
    #[serde(default)]
    pub include_ended: bool,
}

/// The sessions, newest first; at most 500.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionList {
    /// The sessions.
    pub sessions: Vec<SessionSummary>,
    /// Whether older ones were left out.
    pub truncated: bool,
}

/// One session in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionSummary {
    /// The session.
    pub session_id: SessionId,
    /// The mount server.
    pub server: ServerName,
    /// Its kind.
    pub kind: SessionKind,
    /// Where it stands.
    pub status: SessionStatus,
    /// The step that runs or that failed, if one does or did.
    #[serde(default)]
    pub step: Option<Step>,
    /// The repository.
    pub repository: RepositoryName,
    /// The backup; absent until it is known.
    #[serde(default)]
    pub backup: Option<BackupLabel>,
    /// The target.
    pub target: TargetName,
    /// The port of the instance.
    #[serde(default)]
    pub port: Option<u16>,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Attempt, from 1.
    pub attempt: u32,
    /// Why it waits or failed.
    #[serde(default)]
    pub problem: Option<Problem>,
}

/// One session, whole?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionQuery {
    /// Its id.
    pub session_id: SessionId,
}

/// One session with its steps, its connection and the last lines of its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionDetail {
    /// What the list says.
    pub summary: SessionSummary,
    /// The steps that are done, with their durations.
    pub steps: Vec<StepTiming>,
    /// How to connect, when it is published.
    #[serde(default)]
    pub published: Option<Published>,
    /// Where it is, when files are mounted.
    #[serde(default)]
    pub mounted: Option<Mounted>,
    /// How its recovery stands, for sessions of kind `recover`.
    #[serde(default)]
    pub recovery: Option<RecoveryDetail>,
    /// What it waits for.
    #[serde(default)]
    pub waiting: Option<Waiting>,
    /// How its write cache is doing, while it is looked at.
    #[serde(default)]
    pub cache: Option<CacheStatistics>,
    /// Warnings that hold.
    pub warnings: Vec<Warning>,
    /// Why it was asked for.
    #[serde(default)]
    pub reason: Option<String>,
    /// Its latest events, oldest first; at most 200.
    pub log: Vec<SessionLogLine>,
}

/// How an instant recovery stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RecoveryDetail {
    /// Where the instance is to stay.
    pub data_directory: PathBuf,
    /// When it is switched over.
    pub switchover: SwitchoverMode,
    /// How far the standby was behind when it was last looked at.
    #[serde(default)]
    pub lag: Option<Lag>,
    /// What came of the switchover.
    #[serde(default)]
    pub switched_over: Option<SwitchedOver>,
    /// Why the last switchover went back; absent once another has begun.
    #[serde(default)]
    pub went_back: Option<Problem>,
}

/// One line of a session's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionLogLine {
    /// When.
    pub at: Timestamp,
    /// The event's number in the session.
    pub sequence: u64,
    /// The event's type.
    pub event_type: String,
    /// What happened, for people.
    pub text: String,
}

/// Is the target fit? Asked by `explorer doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostCheckQuery {
    /// The target; all when absent.
    #[serde(default)]
    pub target: Option<TargetName>,
}

/// What was found, line by line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostCheck {
    /// The lines.
    pub lines: Vec<HostCheckLine>,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostCheckLine {
    /// The target.
    pub target: TargetName,
    /// The OS user that was checked for, where it matters.
    #[serde(default)]
    pub os_user: Option<OsUser>,
    /// What was checked: `fuse`, `passthrough`, `postgresql`, `write cache space`.
    pub name: String,
    /// How it stands.
    pub state: HostCheckState,
    /// What was found, for people.
    pub found: String,
    /// What to do, when there is something to do.
    #[serde(default)]
    pub remedy: Option<String>,
}

/// How a checked thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostCheckState {
    /// As it should be.
    Good,
    /// Works, slower or with a limit.
    Limited,
    /// Does not work.
    Bad,
}

/// The query could not be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// Why.
    pub problem: Problem,
}
