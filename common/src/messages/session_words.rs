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
}

impl SessionKind {
    /// The word in messages and routing keys.
    pub fn as_str(self) -> &'static str {
        match self {
            SessionKind::Publish => "publish",
            SessionKind::Mount => "mount",
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
    /// Ended: unpublished.
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
}

impl Step {
    /// The steps of a kind of session, in order.
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
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
