//! What can happen to a session.

use crate::agent::hand::InstanceOptions;
use crate::ids::{CommandId, SessionId};
use crate::messages::{
    CacheStatistics, Lag, MountReady, Published, Step, SwitchoverMode, SwitchoverOrder, WarningCode,
};
use crate::problem::{ErrorCode, Problem};

use super::{FinalInstance, RecoverySpec, RetryPolicy, SessionSpec, Undo};

/// A command that begins a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    /// The session.
    pub session_id: SessionId,
    /// The command.
    pub command_id: CommandId,
    /// What is wanted.
    pub spec: SessionSpec,
    /// How often and how soon it is tried again.
    pub retry: RetryPolicy,
    /// When it is switched over; matters to recoveries only.
    pub switchover: SwitchoverMode,
}

/// What a step found out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepOutcome {
    /// Nothing that must be kept.
    Done,
    /// The mount is there.
    Mounted(Box<MountReady>),
    /// The instance is prepared, like this.
    Prepared(Box<InstanceOptions>),
    /// The instance accepts connections; the steps' durations are filled in by the machine.
    Recovered(Box<Published>),
    /// The published instance is copied.
    Replicated {
        /// How much, in bytes.
        bytes: u64,
    },
    /// The standby is in step.
    CaughtUp(Lag),
    /// The final instance runs.
    Final(Box<FinalInstance>),
}

/// One thing that happens to a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// A step ended well.
    StepDone {
        /// Which.
        step: Step,
        /// From [`super::Effect::RunStep`].
        epoch: u64,
        /// What it found out.
        outcome: StepOutcome,
        /// How long it took, in milliseconds.
        duration_ms: u64,
    },
    /// A step failed.
    StepFailed {
        /// Which.
        step: Step,
        /// From [`super::Effect::RunStep`].
        epoch: u64,
        /// Why.
        problem: Problem,
    },
    /// How far a step is.
    Progress {
        /// Which.
        step: Step,
        /// From [`super::Effect::RunStep`].
        epoch: u64,
        /// For people.
        text: String,
        /// How much is done, in bytes.
        done_bytes: Option<u64>,
        /// How much there is, in bytes.
        total_bytes: Option<u64>,
    },
    /// Someone wants it tried again.
    Retry,
    /// The scheduled attempt is due.
    RetryDue {
        /// The attempt.
        attempt: u32,
        /// The epoch in which it was scheduled.
        epoch: u64,
    },
    /// Someone gives it up.
    Cancel,
    /// Someone is done with what it established.
    Unpublish,
    /// A thing is undone.
    UndoDone {
        /// Which.
        what: Undo,
        /// From [`super::Effect::Undo`].
        epoch: u64,
    },
    /// A thing could not be undone.
    UndoFailed {
        /// Which.
        what: Undo,
        /// From [`super::Effect::Undo`].
        epoch: u64,
        /// Why.
        problem: Problem,
    },
    /// The published instance is gone.
    InstanceLost {
        /// From [`super::Effect::Watch`].
        epoch: u64,
        /// What was seen.
        problem: Problem,
    },
    /// The standby is gone, while the published instance is there.
    StandbyLost {
        /// From [`super::Effect::Watch`].
        epoch: u64,
        /// What was seen.
        problem: Problem,
    },
    /// How far the standby is behind.
    LagSeen {
        /// From [`super::Effect::Watch`].
        epoch: u64,
        /// How far.
        lag: Lag,
    },
    /// The time of the switchover has come.
    SwitchoverDue {
        /// From [`super::Effect::Watch`].
        epoch: u64,
    },
    /// Someone says when the switchover is to begin.
    Switchover(SwitchoverOrder),
    /// Someone makes a published session an instant recovery.
    Recover {
        /// Where the instance is to stay.
        recovery: Box<RecoverySpec>,
        /// When it is switched over.
        switchover: SwitchoverMode,
        /// How often and how soon it is tried again from now on.
        retry: RetryPolicy,
    },
    /// A mount that was ready is gone; its write cache is there.
    MountLost {
        /// The epoch of the request that made it.
        epoch: u64,
        /// What was seen.
        problem: Problem,
    },
    /// A warning begins (with a text) or ends (without).
    MountWarning {
        /// Which.
        code: WarningCode,
        /// For people.
        text: Option<String>,
    },
    /// How the write cache is doing.
    Statistics(Box<CacheStatistics>),
    /// The service has restarted: no activity of the session lives any more.
    Restarted,
}

/// Why a command cannot be taken in the session's state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub Problem);

impl Refusal {
    pub(super) fn not_now(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self(Problem::new(ErrorCode::NotPossibleNow, message, remedy))
    }
}
