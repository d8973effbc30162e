//! The session as a pure state machine: [`accept`] begins one, [`apply`] takes a state and an input and gives the next state and what must be done.
//!
//! It knows no clock, bus, file or database; the journal keeps its states and an executor carries out its effects. What must stay true:
//! - at most one activity (step, undo or watch) of a session lives, fenced by the epoch: an answer from another epoch changes nothing;
//! - once users may have written something, only `cancel` and `unpublish` release the write cache;
//! - a switchover goes back until both instances are shown to be equal, and forward only from then on;
//! - an undo is never given up, and covers exactly what was begun: a step that was running counts as done;
//! - a restart of the service spends no attempt.

mod apply;
mod effect;
mod input;
#[cfg(test)]
mod model;
mod recovery;
#[cfg(test)]
mod recovery_table;
#[cfg(test)]
mod table;
mod undo;

pub use apply::{accept, apply};
pub use effect::{Effect, Undo};
pub use input::{Accept, Input, Refusal, StepOutcome};

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::agent::hand::{Hydrate, InstanceOptions, Replace, SessionPlace};
use crate::ids::{BackupLabel, RepositoryName, SessionId, TargetName};
use crate::messages::{
    Lag, MountReady, Mounted, Published, RecoveryTarget, SessionKind, SessionStatus, Step,
    StepTiming, SwitchedOver, SwitchoverMode, Warning, WarningCode,
};
use crate::problem::Problem;

/// How often and how soon a kind of session tries again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// How many automatic retries there are; 0 means that someone must ask for each.
    pub automatic_max: u32,
    /// How long after a failure the next automatic attempt comes, in seconds.
    pub every_s: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            automatic_max: 0,
            every_s: 300,
        }
    }
}

/// What a session was asked to be; fixed when it is accepted, so that a changed configuration does not change a running session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionSpec {
    /// What the session is for.
    pub kind: SessionKind,
    /// The repository.
    pub repository: RepositoryName,
    /// The backup that was asked for; absent for the newest.
    pub backup: Option<BackupLabel>,
    /// The target.
    pub target: TargetName,
    /// Where the session lives on its target.
    pub place: SessionPlace,
    /// Port of the instance; absent for sessions without one.
    pub port: Option<u16>,
    /// What is copied from the backup beside what is read; the target's default when absent.
    #[serde(default)]
    pub hydrate: Option<Hydrate>,
    /// How far recovery goes.
    #[serde(default)]
    pub recovery_target: RecoveryTarget,
    /// Why, as the sender said.
    pub reason: Option<String>,
    /// Where the instance is to stay, for recoveries.
    #[serde(default)]
    pub recovery: Option<RecoverySpec>,
}

/// Where a recovered instance is to stay.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecoverySpec {
    /// Data directory, absolute.
    pub data_directory: PathBuf,
    /// Directory of a tablespace by its oid, absolute; where it was on the original when absent.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// What may be done about directories that are not empty.
    pub replace: Replace,
    /// How far behind a standby may be that counts as in step, in bytes.
    pub lag_max_bytes: u64,
}

/// The instance that stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FinalInstance {
    /// Host to connect to.
    pub host: String,
    /// PostgreSQL's version, as `server_version` says it.
    pub version: String,
    /// The timeline that it writes.
    pub timeline: u32,
    /// How the host starts it.
    pub manager: String,
}

/// Whether somebody may have written something that is only in the write cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Changes {
    /// Nobody could: nothing that takes writes was ever opened.
    Impossible,
    /// The step that opens the door runs for the first time; if it says for sure that it failed, nobody could.
    Opening,
    /// Somebody may have.
    Possible,
}

/// Which things on the target exist, or may exist, because of the session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Made {
    /// The mount and its write cache.
    pub mount: bool,
    /// The PostgreSQL instance.
    pub instance: bool,
    /// What was in the final directories, moved aside.
    #[serde(default)]
    pub set_aside: bool,
    /// A copy or a standby in the final directories.
    #[serde(default)]
    pub standby: bool,
}

/// Why everything is being undone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UndoReason {
    /// `cancel`.
    Cancel,
    /// `unpublish`.
    Unpublish,
    /// The switchover is done, and what served until then is not needed any more.
    SwitchedOver,
    /// A problem that no retry can mend.
    Failure {
        /// The step that failed.
        step: Option<Step>,
        /// Why.
        problem: Problem,
    },
}

/// Where a session stands, for the machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// A step runs.
    Running {
        /// Which.
        step: Step,
    },
    /// Published, or mounted: what was asked for is there and is being watched.
    Established,
    /// A step failed or the established thing was lost; all that was made is kept.
    Waiting {
        /// The step that failed; absent when an established session was lost.
        step: Option<Step>,
        /// Why.
        problem: Problem,
        /// The automatic attempt that is scheduled; absent when someone must ask.
        next_attempt: Option<u32>,
    },
    /// Things are being undone, one after the other.
    Undoing {
        /// Why.
        reason: UndoReason,
        /// What is left, first first. Never empty.
        pending: Vec<Undo>,
        /// How often the first of them has failed.
        failures: u32,
    },
    /// Nothing more will happen.
    Ended(Ending),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ending {
    /// Unpublished, or switched over.
    Completed,
    /// Cancelled.
    Cancelled,
    /// For a reason that no retry can mend.
    Failed {
        /// The step that failed.
        step: Option<Step>,
        /// Why.
        problem: Problem,
    },
}

/// All that is known about a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionState {
    /// Its id.
    pub session_id: SessionId,
    /// What it was asked to be.
    pub spec: SessionSpec,
    /// How often and how soon it tries again.
    pub retry: RetryPolicy,
    /// Counts activities: answers of older ones are ignored.
    pub epoch: u64,
    /// Attempt since the last progress, from 1.
    pub attempt: u32,
    /// Automatic retries spent since the last progress or manual retry.
    pub automatic_used: u32,
    /// Where it stands.
    pub phase: Phase,
    /// What exists or may exist.
    pub made: Made,
    /// Whether there may be changes to lose.
    pub changes: Changes,
    /// Whether it has ever been published or mounted.
    pub ever_established: bool,
    /// Steps that are done in this attempt.
    pub timings: Vec<StepTiming>,
    /// The mount as mount-svc reported it last.
    pub mount: Option<MountReady>,
    /// How the instance was prepared; what stops it needs the same.
    pub instance: Option<InstanceOptions>,
    /// How to connect, while published.
    pub published: Option<Published>,
    /// Where the files are, while mounted.
    pub mounted: Option<Mounted>,
    /// Warnings that hold.
    pub warnings: BTreeMap<WarningCode, String>,
    /// What only recoveries know.
    #[serde(default)]
    pub recovery: RecoveryState,
}

/// What is known about the recovery of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecoveryState {
    /// When it is switched over.
    pub switchover: SwitchoverMode,
    /// How far the standby was behind when it was last looked at.
    pub lag: Option<Lag>,
    /// How much was copied, in bytes.
    pub copied_bytes: u64,
    /// Whether both instances were shown to be equal: nothing goes back any more.
    pub is_final: bool,
    /// Why the running [`Step::Thaw`] goes back.
    pub going_back: Option<(Step, Problem)>,
    /// Why the last switchover went back; nothing once another has begun.
    #[serde(default)]
    pub went_back: Option<Problem>,
    /// What came of the switchover.
    pub switched_over: Option<SwitchedOver>,
}

impl SessionState {
    /// The status as people know it.
    pub fn status(&self) -> SessionStatus {
        match &self.phase {
            Phase::Running { step } => recovery::status_in(*step),
            Phase::Established => match self.spec.kind {
                SessionKind::Publish => SessionStatus::Published,
                SessionKind::Mount => SessionStatus::Mounted,
                SessionKind::Recover => SessionStatus::ReadyForSwitchover,
            },
            Phase::Waiting { next_attempt, .. } => match next_attempt {
                Some(_) => SessionStatus::WaitingForRetry,
                None => SessionStatus::WaitingForManualRetry,
            },
            Phase::Undoing { reason, .. } => match reason {
                // There is no word of its own for cleaning up after a failure; the problem beside it tells the difference.
                UndoReason::Cancel | UndoReason::Failure { .. } => SessionStatus::Cancelling,
                UndoReason::Unpublish => SessionStatus::Unpublishing,
                UndoReason::SwitchedOver => SessionStatus::SwitchingOver,
            },
            Phase::Ended(ending) => match ending {
                Ending::Completed => SessionStatus::Completed,
                Ending::Cancelled => SessionStatus::Cancelled,
                Ending::Failed { .. } => SessionStatus::Failed,
            },
        }
    }

    /// Whether nothing more will ever happen to it.
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// The step that runs or that failed, if one does or did.
    pub fn step(&self) -> Option<Step> {
        match &self.phase {
            Phase::Running { step } => Some(*step),
            Phase::Waiting { step, .. }
            | Phase::Undoing {
                reason: UndoReason::Failure { step, .. },
                ..
            }
            | Phase::Ended(Ending::Failed { step, .. }) => *step,
            Phase::Established
            | Phase::Undoing {
                reason: UndoReason::Cancel | UndoReason::Unpublish | UndoReason::SwitchedOver,
                ..
            }
            | Phase::Ended(Ending::Completed | Ending::Cancelled) => None,
        }
    }

    /// Why it waits or failed, if it does or did.
    pub fn problem(&self) -> Option<&Problem> {
        match &self.phase {
            Phase::Waiting { problem, .. }
            | Phase::Undoing {
                reason: UndoReason::Failure { problem, .. },
                ..
            }
            | Phase::Ended(Ending::Failed { problem, .. }) => Some(problem),
            Phase::Running { .. }
            | Phase::Established
            | Phase::Undoing {
                reason: UndoReason::Cancel | UndoReason::Unpublish | UndoReason::SwitchedOver,
                ..
            }
            | Phase::Ended(Ending::Completed | Ending::Cancelled) => None,
        }
    }

    /// The warnings that hold, as messages carry them.
    pub fn warning_list(&self) -> Vec<Warning> {
        self.warnings
            .iter()
            .map(|(code, text)| Warning {
                code: *code,
                text: text.clone(),
            })
            .collect()
    }

    /// The epoch of the request that made the present mount.
    pub fn mount_epoch(&self) -> Option<u64> {
        self.mount.as_ref().map(|mount| mount.epoch)
    }
}
