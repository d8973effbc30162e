//! What the machine wants done.

use serde::{Deserialize, Serialize};

use crate::messages::{EventBody, Severity, Step};

/// One thing that can be undone; each is idempotent on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Undo {
    /// End the copy or the standby, and remove what was made in the final place.
    RemoveStandby,
    /// Stop PostgreSQL.
    StopInstance,
    /// Bring back what was set aside, and start it if it ran.
    PutBack,
    /// Unmount and remove the session's directories, write cache included.
    ReleaseMount,
}

/// One thing to do, in the order given. `Emit` and `ScheduleRetry` commit together with the state.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Run a step and answer with the epoch.
    RunStep {
        /// Which.
        step: Step,
        /// To be given back with the answer.
        epoch: u64,
    },
    /// End the step or watch that lives, and wait until it has ended, before anything after this effect.
    StopStep,
    /// Undo a thing and answer with the epoch.
    Undo {
        /// What.
        what: Undo,
        /// To be given back with the answer.
        epoch: u64,
        /// How long to wait before, in seconds: the back-off after failures.
        after_s: u32,
    },
    /// Watch what is established and tell when it is lost.
    Watch {
        /// To be given back with a loss.
        epoch: u64,
    },
    /// Have `RetryDue` with these numbers come back.
    ScheduleRetry {
        /// The attempt.
        attempt: u32,
        /// The epoch in which it is scheduled.
        epoch: u64,
        /// How much later, in seconds.
        after_s: u32,
    },
    /// Tell everyone.
    Emit(Box<EventBody>, Severity),
    /// The session has ended: no executor is needed any more.
    Forget,
}
