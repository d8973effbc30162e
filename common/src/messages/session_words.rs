//! The words of a session that messages carry: its kind, its status and its steps.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a session is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum SessionKind {
    /// A PostgreSQL instance started from a mounted backup.
    Publish,
    /// The files of a backup mounted, no PostgreSQL started.
    Mount,
    /// An instant recovery: published at once, replicated to its final place behind that, switched over.
    Recover,
}

impl SessionKind {
    /// The word in messages and routing keys.
    pub fn as_str(self) -> &'static str {
        match self {
            SessionKind::Publish => "publish",
            SessionKind::Mount => "mount",
            SessionKind::Recover => "recover",
        }
    }
}

impl fmt::Display for SessionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a session stands, in the words that people know.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum SessionStatus {
    /// The steps up to a running instance (or a mount) are being worked off.
    Publishing,
    /// The instance accepts connections.
    Published,
    /// The files are mounted (sessions of kind `mount`).
    Mounted,
    /// Users work in the published instance; `pg_basebackup` copies it to its final place (sessions of kind `recover`).
    Replicating,
    /// The standby streams and is not in step yet.
    #[serde(rename = "Catching up")]
    CatchingUp,
    /// The standby is in step: the switchover may begin.
    #[serde(rename = "Ready for switchover")]
    ReadyForSwitchover,
    /// The standby is being made the instance that stays.
    #[serde(rename = "Switching over")]
    SwitchingOver,
    /// A step failed; it is tried again by itself at a known time.
    #[serde(rename = "Waiting for retry")]
    WaitingForRetry,
    /// A step failed; someone must ask for the retry. The write cache is kept.
    #[serde(rename = "Waiting for manual retry")]
    WaitingForManualRetry,
    /// What was made is being undone, asked for by `cancel`.
    Cancelling,
    /// What was made is being undone, asked for by `unpublish`.
    Unpublishing,
    /// Ended: it failed for a reason that no retry can mend, and what was made is undone.
    Failed,
    /// Ended: unpublished, or switched over.
    Completed,
    /// Ended: cancelled.
    Cancelled,
}

impl SessionStatus {
    /// The status as people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            SessionStatus::Publishing => "Publishing",
            SessionStatus::Published => "Published",
            SessionStatus::Mounted => "Mounted",
            SessionStatus::Replicating => "Replicating",
            SessionStatus::CatchingUp => "Catching up",
            SessionStatus::ReadyForSwitchover => "Ready for switchover",
            SessionStatus::SwitchingOver => "Switching over",
            SessionStatus::WaitingForRetry => "Waiting for retry",
            SessionStatus::WaitingForManualRetry => "Waiting for manual retry",
            SessionStatus::Cancelling => "Cancelling",
            SessionStatus::Unpublishing => "Unpublishing",
            SessionStatus::Failed => "Failed",
            SessionStatus::Completed => "Completed",
            SessionStatus::Cancelled => "Cancelled",
        }
    }

    /// Whether nothing more will ever happen to the session.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            SessionStatus::Failed | SessionStatus::Completed | SessionStatus::Cancelled
        )
    }
}

impl fmt::Display for SessionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One step of a session's walk, in their order. Each is idempotent and resumes after a crash.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The target answers; user, PostgreSQL, port and space are as needed.
    Validate,
    /// The backup is mounted with its write cache.
    Mount,
    /// Configuration and recovery settings are in place.
    Prepare,
    /// PostgreSQL is started from the mount.
    Start,
    /// PostgreSQL recovers until it accepts reads and writes.
    Recover,
    /// What is in the final directories is moved aside, after a PostgreSQL that runs there was stopped.
    SetAside,
    /// `pg_basebackup` copies the published instance to its final place.
    Replicate,
    /// The copy is started as a standby that streams from the published instance.
    StartStandby,
    /// The standby comes into step.
    CatchUp,
    /// The published instance writes a checkpoint, so that little is left to write while nobody can work.
    Checkpoint,
    /// The published instance takes no more writes, and the standby has them all.
    Freeze,
    /// The published instance is stopped.
    StopPublished,
    /// The standby is stopped.
    StopStandby,
    /// Both are shown to stand at the same position. Until here everything can go back; from here on it goes forward only.
    Compare,
    /// The standby's directory becomes an instance of its own, with the original's configuration.
    Settle,
    /// It is started the way the host starts PostgreSQL.
    StartFinal,
    /// A switchover that failed goes back: the published instance takes writes again.
    Thaw,
}

impl Step {
    /// The steps of a kind of session, in order. [`Step::Thaw`] is in none: it is where a failed switchover goes back.
    pub fn of(kind: SessionKind) -> &'static [Step] {
        match kind {
            SessionKind::Publish => &[
                Step::Validate,
                Step::Mount,
                Step::Prepare,
                Step::Start,
                Step::Recover,
            ],
            SessionKind::Mount => &[Step::Validate, Step::Mount],
            SessionKind::Recover => &[
                Step::Validate,
                Step::Mount,
                Step::SetAside,
                Step::Prepare,
                Step::Start,
                Step::Recover,
                Step::Replicate,
                Step::StartStandby,
                Step::CatchUp,
                Step::Checkpoint,
                Step::Freeze,
                Step::StopPublished,
                Step::StopStandby,
                Step::Compare,
                Step::Settle,
                Step::StartFinal,
            ],
        }
    }

    /// The word in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Validate => "validate",
            Step::Mount => "mount",
            Step::Prepare => "prepare",
            Step::Start => "start",
            Step::Recover => "recover",
            Step::SetAside => "set_aside",
            Step::Replicate => "replicate",
            Step::StartStandby => "start_standby",
            Step::CatchUp => "catch_up",
            Step::Checkpoint => "checkpoint",
            Step::Freeze => "freeze",
            Step::StopPublished => "stop_published",
            Step::StopStandby => "stop_standby",
            Step::Compare => "compare",
            Step::Settle => "settle",
            Step::StartFinal => "start_final",
            Step::Thaw => "thaw",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
