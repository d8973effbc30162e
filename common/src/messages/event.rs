//! Events: what happened, published on the topic exchange `events` and kept in the stream `events.log`.
//!
//! The events of one session carry a gapless `sequence` from 1 on, all written by recovery-svc, which owns the session.

use std::path::PathBuf;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SwitchoverMode;
use super::payload::payloads;
use super::{
    CacheStatistics, ContractError, Payload, PayloadDoc, SessionKind, SessionStatus, Step,
};
use crate::ids::{BackupLabel, CommandId, RepositoryName, ServerName, TargetName};
use crate::problem::Problem;

/// How much an event matters to someone on call.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The story of a session.
    Info,
    /// Not normal, but coped with for now.
    Warning,
    /// Someone must act.
    Critical,
}

/// What every event says beside its own data; both stand in `data`, side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventHead {
    /// The mount server whose session it is.
    pub server: ServerName,
    /// The session's kind; absent only in `command.rejected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SessionKind>,
    /// The session's status after the event; absent only in `command.rejected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<SessionStatus>,
    /// How much it matters.
    pub severity: Severity,
}

/// One event: its head and its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What every event says.
    pub head: EventHead,
    /// What this one says.
    pub body: EventBody,
}

payloads! {
    /// What an event says, by type.
    EventBody {
        Accepted = "io.pginstant.session.accepted.v1",
        StepStarted = "io.pginstant.session.step_started.v1",
        StepProgress = "io.pginstant.session.step_progress.v1",
        StepFinished = "io.pginstant.session.step_finished.v1",
        Published = "io.pginstant.session.published.v1",
        Mounted = "io.pginstant.session.mounted.v1",
        ReadyForSwitchover = "io.pginstant.session.ready_for_switchover.v1",
        ReplicationLag = "io.pginstant.session.replication_lag.v1",
        SwitchoverChanged = "io.pginstant.session.switchover_changed.v1",
        SwitchingOver = "io.pginstant.session.switching_over.v1",
        SwitchoverFailed = "io.pginstant.session.switchover_failed.v1",
        SwitchedOver = "io.pginstant.session.switched_over.v1",
        Waiting = "io.pginstant.session.waiting.v1",
        RetriesExhausted = "io.pginstant.session.retries_exhausted.v1",
        Retrying = "io.pginstant.session.retrying.v1",
        Cancelling = "io.pginstant.session.cancelling.v1",
        Unpublishing = "io.pginstant.session.unpublishing.v1",
        Cancelled = "io.pginstant.session.cancelled.v1",
        Completed = "io.pginstant.session.completed.v1",
        Failed = "io.pginstant.session.failed.v1",
        Warning = "io.pginstant.session.warning.v1",
        WarningCleared = "io.pginstant.session.warning_cleared.v1",
        CacheStatistics = "io.pginstant.session.cache_statistics.v1",
        CommandRejected = "io.pginstant.command.rejected.v1",
    }
}

impl EventBody {
    /// The last word of the type: the `phase` of the routing key `session.<kind>.<phase>`.
    pub fn phase(&self) -> &'static str {
        let name = self.type_name();
        name.trim_end_matches(".v1")
            .rsplit('.')
            .next()
            .unwrap_or(name)
    }
}

impl Event {
    /// The key under which the event is published on the exchange `events`.
    pub fn routing_key(&self) -> String {
        match self.head.kind {
            Some(kind) => format!("session.{kind}.{}", self.body.phase()),
            None => format!("command.{}", self.body.phase()),
        }
    }
}

impl Payload for Event {
    fn docs() -> Vec<PayloadDoc> {
        EventBody::docs()
    }

    fn type_name(&self) -> &'static str {
        self.body.type_name()
    }

    fn to_data(&self) -> Value {
        let mut data = serde_json::to_value(&self.head).expect("the head has text keys only");
        if let (Value::Object(into), Value::Object(from)) = (&mut data, self.body.to_data()) {
            into.extend(from);
        }
        data
    }

    fn from_data(type_name: &str, data: Value) -> Result<Self, ContractError> {
        let body = EventBody::from_data(type_name, data.clone())?;
        let head = serde_json::from_value(data).map_err(|error| ContractError::MalformedData {
            type_name: type_name.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Event { head, body })
    }
}

/// A session has begun: its command is in the journal and will be worked off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// The command that began it.
    pub command_id: CommandId,
    /// The repository.
    pub repository: RepositoryName,
    /// The backup that was asked for; absent for the newest.
    #[serde(default)]
    pub backup: Option<BackupLabel>,
    /// The target.
    pub target: TargetName,
    /// The port that was asked for.
    #[serde(default)]
    pub port: Option<u16>,
    /// Why, as the sender said.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A command was refused before any session began, or its session could not take it. `subject` is the command's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandRejected {
    /// The command's id, when it could be read.
    #[serde(default)]
    pub command_id: Option<CommandId>,
    /// The command's type, when it could be read.
    #[serde(default)]
    pub command_type: Option<String>,
    /// Why.
    pub problem: Problem,
}

/// A step began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StepStarted {
    /// The step.
    pub step: Step,
    /// Attempt of the session, from 1.
    pub attempt: u32,
}

/// How far a step is. At most one a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StepProgress {
    /// The step.
    pub step: Step,
    /// What is being done, for people: `replayed 0/3000060 of 0/5000100`.
    pub text: String,
    /// How much is done, in bytes (of WAL, for recovery); absent when unknown.
    #[serde(default)]
    pub done_bytes: Option<u64>,
    /// How much there is, in bytes; absent when unknown.
    #[serde(default)]
    pub total_bytes: Option<u64>,
}

/// A step ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StepFinished {
    /// The step.
    pub step: Step,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// A step and how long it took.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct StepTiming {
    /// The step.
    pub step: Step,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// The instance accepts reads and writes.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct Published {
    /// Host to connect to.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Directory of the Unix socket, for the OS user and root.
    pub socket_directory: PathBuf,
    /// Data directory, inside the mount.
    pub data_directory: PathBuf,
    /// PostgreSQL's version, as `server_version` says it.
    pub version: String,
    /// The backup.
    pub backup: BackupLabel,
    /// The timeline that the instance writes.
    pub timeline: u32,
    /// WAL position that recovery reached, `X/X`.
    pub reached_lsn: String,
    /// Time of the last replayed transaction, if the WAL held one.
    #[serde(default)]
    pub reached_at: Option<Timestamp>,
    /// Each step's duration.
    pub steps: Vec<StepTiming>,
}

/// The files are mounted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Mounted {
    /// Where, on the target.
    pub mount_point: PathBuf,
    /// The data directory in it.
    pub data_directory: PathBuf,
    /// The backup.
    pub backup: BackupLabel,
    /// Each step's duration.
    pub steps: Vec<StepTiming>,
}

/// How far the standby is behind the published instance.
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
pub struct Lag {
    /// WAL between what the published instance has flushed and what the standby has replayed, in bytes.
    pub bytes: u64,
    /// Age of the last replayed change, in milliseconds; 0 when nothing is left to replay.
    pub ms: u64,
}

/// The standby is in step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadyForSwitchover {
    /// How far it is behind.
    pub lag: Lag,
    /// When the switchover will begin.
    pub switchover: SwitchoverMode,
    /// Each step's duration.
    pub steps: Vec<StepTiming>,
}

/// How far the standby is behind, while the session is ready for its switchover. At most one in ten seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicationLag {
    /// How far.
    pub lag: Lag,
}

/// Someone changed when the switchover will begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SwitchoverChanged {
    /// When.
    pub switchover: SwitchoverMode,
}

/// The switchover begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SwitchingOver {
    /// Whether someone asked for it now; else its time had come.
    pub manual: bool,
}

/// The switchover failed before anything was final; the published instance takes writes again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SwitchoverFailed {
    /// The step that failed.
    pub step: Step,
    /// Why.
    pub problem: Problem,
}

/// The instance runs from its final place, on a timeline of its own; the mount is still to be removed.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct SwitchedOver {
    /// Host to connect to.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Data directory.
    pub data_directory: PathBuf,
    /// PostgreSQL's version, as `server_version` says it.
    pub version: String,
    /// The timeline that the instance writes.
    pub timeline: u32,
    /// How it was started, and is to be started from now on: `pg_ctlcluster 15 main start`.
    pub manager: String,
    /// How long nobody could write, in milliseconds.
    pub without_writes_ms: u64,
    /// How long nobody could connect, in milliseconds.
    pub without_service_ms: u64,
    /// How much was copied, in bytes.
    pub copied_bytes: u64,
    /// Each step's duration.
    pub steps: Vec<StepTiming>,
}

/// A step failed and the session waits to be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// The step that failed; absent when a published instance was lost.
    #[serde(default)]
    pub step: Option<Step>,
    /// The attempt that failed, from 1.
    pub attempt: u32,
    /// How many automatic retries this kind of session has.
    pub automatic_retries_max: u32,
    /// When the next automatic attempt comes; absent when someone must ask for it.
    #[serde(default)]
    pub next_attempt_at: Option<Timestamp>,
    /// Why.
    pub problem: Problem,
}

/// The automatic retries have failed; someone must look, then `retry` or `cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetriesExhausted {
    /// How many automatic retries there were.
    pub automatic_retries: u32,
    /// Why the last one failed.
    pub problem: Problem,
}

/// A waiting session is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retrying {
    /// The attempt that begins, from 2.
    pub attempt: u32,
    /// Whether someone asked for it.
    pub manual: bool,
}

/// `cancel` was accepted; what was made is being undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancelling {}

/// `unpublish` was accepted; what was made is being undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unpublishing {}

/// Everything is undone; the session was cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancelled {}

/// Everything is undone; the session was unpublished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Completed {}

/// The session failed for a reason that no retry can mend; what was made is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failed {
    /// The step that failed.
    #[serde(default)]
    pub step: Option<Step>,
    /// Why.
    pub problem: Problem,
}

/// Something that people should know about and that may pass.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum WarningCode {
    /// The volume of the write cache is 80 % full, by use or by reserve.
    CacheSpaceLow,
    /// The volume of the write cache is 95 % full.
    CacheSpaceCritical,
    /// Pages not yet fetched wait for the repository or the mount server.
    BaseUnreachable,
    /// A file of the backup does not have the content that its manifest promises; its readers get EIO.
    BackupFileCorrupt,
    /// Undoing something failed; it is tried again.
    CleanupFailed,
    /// The file system runs without its fastest mode; the text says why.
    SlowerMode,
    /// As the backup's files are stored, its pages are slow to read at random; the text says which setting of the backup's tool makes
    /// later ones fast.
    SlowLayout,
}

/// Something that people should know about began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warning {
    /// What.
    pub code: WarningCode,
    /// One sentence for people, with the remedy.
    pub text: String,
}

/// A warning no longer holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WarningCleared {
    /// Which.
    pub code: WarningCode,
}
