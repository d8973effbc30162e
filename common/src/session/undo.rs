//! Undoing what a session made: one thing after the other, each tried until it is done.

use crate::messages::{Cancelled, Completed, Failed, Severity, WarningCode};
use crate::problem::Problem;

use super::apply::{clear_warning, emit, warn};
use super::{Changes, Effect, Ending, Phase, SessionState, Undo, UndoReason};

/// Longest wait between two tries of an undo, in seconds.
const UNDO_BACKOFF_MAX_S: u32 = 300;
/// Wait before the second try of an undo, in seconds; doubled for each further one.
const UNDO_BACKOFF_FIRST_S: u32 = 5;

pub(super) fn begin_undo(state: &mut SessionState, effects: &mut Vec<Effect>, reason: UndoReason) {
    state.epoch += 1;
    state.published = None;
    state.mounted = None;
    // The mount goes last: the session's directory holds what is known about the others.
    let pending = [
        (state.made.standby, Undo::RemoveStandby),
        (state.made.instance, Undo::StopInstance),
        (state.made.set_aside, Undo::PutBack),
        (state.made.mount, Undo::ReleaseMount),
    ]
    .into_iter()
    .filter_map(|(made, undo)| made.then_some(undo))
    .collect();
    go_on_undoing(state, effects, reason, pending);
}

fn go_on_undoing(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    reason: UndoReason,
    pending: Vec<Undo>,
) {
    match pending.first().copied() {
        Some(what) => {
            state.phase = Phase::Undoing {
                reason,
                pending,
                failures: 0,
            };
            effects.push(Effect::Undo {
                what,
                epoch: state.epoch,
                after_s: 0,
            });
        }
        None => end(state, effects, reason),
    }
}

fn end(state: &mut SessionState, effects: &mut Vec<Effect>, reason: UndoReason) {
    // Whoever was alerted must hear that there is nothing left to look at.
    let codes: Vec<WarningCode> = state.warnings.keys().copied().collect();
    for code in codes {
        clear_warning(state, effects, code);
    }
    state.changes = Changes::Impossible;
    state.phase = Phase::Ended(match reason {
        UndoReason::Cancel => {
            emit(effects, Severity::Info, Cancelled {});
            Ending::Cancelled
        }
        UndoReason::Unpublish | UndoReason::SwitchedOver => {
            emit(effects, Severity::Info, Completed {});
            Ending::Completed
        }
        UndoReason::Failure { step, problem } => {
            let failed = Failed {
                step,
                problem: problem.clone(),
            };
            emit(effects, Severity::Critical, failed);
            Ending::Failed { step, problem }
        }
    });
    effects.push(Effect::Forget);
}

pub(super) fn undo_done(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    what: Undo,
    epoch: u64,
) {
    let Phase::Undoing {
        reason, pending, ..
    } = &state.phase
    else {
        return;
    };
    if epoch != state.epoch || pending.first() != Some(&what) {
        return;
    }
    let reason = reason.clone();
    let rest = pending.iter().copied().skip(1).collect();
    match what {
        Undo::RemoveStandby => state.made.standby = false,
        Undo::StopInstance => state.made.instance = false,
        Undo::PutBack => state.made.set_aside = false,
        Undo::ReleaseMount => {
            state.made.mount = false;
            state.mount = None;
        }
    }
    state.epoch += 1;
    clear_warning(state, effects, WarningCode::CleanupFailed);
    go_on_undoing(state, effects, reason, rest);
}

pub(super) fn undo_failed(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    undo: (Undo, u64),
    problem: Problem,
) {
    let (what, epoch) = undo;
    let present = state.epoch;
    let Phase::Undoing {
        pending, failures, ..
    } = &mut state.phase
    else {
        return;
    };
    if epoch != present || pending.first() != Some(&what) {
        return;
    }
    let after_s = UNDO_BACKOFF_FIRST_S
        .saturating_mul(1 << (*failures).min(10))
        .min(UNDO_BACKOFF_MAX_S);
    *failures = failures.saturating_add(1);
    state.epoch += 1;
    let thing = match what {
        Undo::RemoveStandby => "the copy in the final place could not be removed",
        Undo::StopInstance => "the instance could not be stopped",
        Undo::PutBack => "what was set aside could not be put back",
        Undo::ReleaseMount => "the mount could not be released",
    };
    let text = format!("{thing}, it is tried again: {problem}");
    warn(state, effects, WarningCode::CleanupFailed, text);
    effects.push(Effect::Undo {
        what,
        epoch: state.epoch,
        after_s,
    });
}
