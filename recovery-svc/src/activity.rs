//! What the executor of a session does at a time.

use common::messages::Step;
use common::session::Undo;

/// One activity; the epoch makes each a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Nothing: the session waits.
    Rest,
    /// A step.
    Step {
        /// Which.
        step: Step,
        /// For the answer.
        epoch: u64,
    },
    /// An undo.
    Undo {
        /// What.
        what: Undo,
        /// For the answer.
        epoch: u64,
        /// Wait before, in seconds.
        after_s: u32,
    },
    /// Watching what is established.
    Watch {
        /// For a loss.
        epoch: u64,
    },
    /// The session has ended.
    End,
}
