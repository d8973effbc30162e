//! The transitions.

use crate::messages::{
    Accepted, Cancelling, EventBody, Mounted, ReadyForSwitchover, RetriesExhausted, Retrying,
    SessionKind, Severity, Step, StepFinished, StepProgress, StepStarted, StepTiming, Unpublishing,
    Waiting, Warning, WarningCleared, WarningCode,
};
use crate::problem::Problem;

use super::undo::{begin_undo, undo_done, undo_failed};
use super::{
    Accept, Changes, Effect, Ending, Input, Made, Phase, RecoveryState, Refusal, SessionState,
    StepOutcome, UndoReason, recovery,
};

/// Begins a session.
pub fn accept(accept: Accept) -> (SessionState, Vec<Effect>) {
    let mut effects = Vec::new();
    emit(
        &mut effects,
        Severity::Info,
        Accepted {
            command_id: accept.command_id,
            repository: accept.spec.repository.clone(),
            backup: accept.spec.backup.clone(),
            target: accept.spec.target.clone(),
            port: accept.spec.port,
            reason: accept.spec.reason.clone(),
        },
    );
    let first = first_step(accept.spec.kind);
    let mut state = SessionState {
        session_id: accept.session_id,
        spec: accept.spec,
        retry: accept.retry,
        epoch: 0,
        attempt: 1,
        automatic_used: 0,
        phase: Phase::Running { step: first },
        made: Made::default(),
        changes: Changes::Impossible,
        ever_established: false,
        timings: Vec::new(),
        mount: None,
        instance: None,
        published: None,
        mounted: None,
        warnings: Default::default(),
        recovery: RecoveryState {
            switchover: accept.switchover,
            ..RecoveryState::default()
        },
    };
    begin_step(&mut state, &mut effects, first);
    (state, effects)
}

/// What an input makes of a state. Stale and repeated inputs give the same state and no effects; only commands are refused.
pub fn apply(state: &SessionState, input: Input) -> Result<(SessionState, Vec<Effect>), Refusal> {
    let mut state = state.clone();
    let mut effects = Vec::new();
    match input {
        Input::StepDone {
            step,
            epoch,
            outcome,
            duration_ms,
        } => {
            if is_running(&state, step, epoch) {
                finish_step(&mut state, &mut effects, step, outcome, duration_ms);
            }
        }
        Input::StepFailed {
            step,
            epoch,
            problem,
        } => {
            if is_running(&state, step, epoch) {
                if step == opening_step(state.spec.kind) && state.changes == Changes::Opening {
                    // A permanent answer says for sure that nothing was opened; a temporary one (a lost answer) does not.
                    state.changes = if problem.is_permanent() {
                        Changes::Impossible
                    } else {
                        Changes::Possible
                    };
                }
                recovery::step_failed(&mut state, &mut effects, step, problem);
            }
        }
        Input::Progress {
            step,
            epoch,
            text,
            done_bytes,
            total_bytes,
        } => {
            if is_running(&state, step, epoch) {
                let progress = StepProgress {
                    step,
                    text,
                    done_bytes,
                    total_bytes,
                };
                emit(&mut effects, Severity::Info, progress);
            }
        }
        Input::Retry => retry_by_hand(&mut state, &mut effects)?,
        Input::RetryDue { attempt, epoch } => {
            let due = matches!(state.phase, Phase::Waiting { next_attempt: Some(next), .. } if next == attempt)
                && epoch == state.epoch;
            if due {
                state.automatic_used += 1;
                begin_attempt(&mut state, &mut effects, Manual::No);
            }
        }
        Input::Cancel => cancel(&mut state, &mut effects)?,
        Input::Unpublish => unpublish(&mut state, &mut effects)?,
        Input::UndoDone { what, epoch } => undo_done(&mut state, &mut effects, what, epoch),
        Input::UndoFailed {
            what,
            epoch,
            problem,
        } => undo_failed(&mut state, &mut effects, (what, epoch), problem),
        Input::InstanceLost { epoch, problem } => {
            if state.phase == Phase::Established && epoch == state.epoch {
                lose(&mut state, &mut effects, None, problem);
            }
        }
        Input::StandbyLost { epoch, problem } => {
            if state.phase == Phase::Established && epoch == state.epoch {
                lose(&mut state, &mut effects, Some(Step::StartStandby), problem);
            }
        }
        Input::LagSeen { epoch, lag } => {
            if state.phase == Phase::Established && epoch == state.epoch {
                recovery::lag_seen(&mut state, &mut effects, lag);
            }
        }
        Input::SwitchoverDue { epoch } => {
            if state.phase == Phase::Established && epoch == state.epoch {
                recovery::begin_if_due(&mut state, &mut effects);
            }
        }
        Input::Switchover(order) => recovery::order(&mut state, &mut effects, order)?,
        Input::Recover {
            recovery,
            switchover,
            retry,
        } => {
            recovery::promote(&mut state, &mut effects, (*recovery, switchover, retry))?;
        }
        Input::MountLost { epoch, problem } => mount_lost(&mut state, &mut effects, epoch, problem),
        Input::MountWarning { code, text } => {
            if !state.is_ended() {
                match text {
                    Some(text) => warn(&mut state, &mut effects, code, text),
                    None => clear_warning(&mut state, &mut effects, code),
                }
            }
        }
        Input::Statistics(statistics) => {
            if state.phase == Phase::Established {
                emit(&mut effects, Severity::Info, *statistics);
            }
        }
        Input::Restarted => restart(&mut state, &mut effects),
    }
    Ok((state, effects))
}

pub(super) fn emit(effects: &mut Vec<Effect>, severity: Severity, body: impl Into<EventBody>) {
    effects.push(Effect::Emit(Box::new(body.into()), severity));
}

pub(super) fn first_step(kind: SessionKind) -> Step {
    Step::of(kind).first().copied().unwrap_or(Step::Validate)
}

fn next_step(kind: SessionKind, step: Step) -> Option<Step> {
    Step::of(kind)
        .iter()
        .copied()
        .skip_while(|s| *s != step)
        .nth(1)
}

/// The step from whose beginning on somebody may write into the write cache.
fn opening_step(kind: SessionKind) -> Step {
    match kind {
        SessionKind::Publish | SessionKind::Recover => Step::Start,
        SessionKind::Mount => Step::Mount,
    }
}

fn is_running(state: &SessionState, step: Step, epoch: u64) -> bool {
    state.phase == Phase::Running { step } && state.epoch == epoch
}

/// Puts a step into the state as running and has it run: what it makes counts as made from now on.
pub(super) fn begin_step(state: &mut SessionState, effects: &mut Vec<Effect>, step: Step) {
    state.epoch += 1;
    state.phase = Phase::Running { step };
    match step {
        Step::Mount => state.made.mount = true,
        Step::Start => state.made.instance = true,
        Step::SetAside => state.made.set_aside = true,
        Step::Replicate => state.made.standby = true,
        Step::Validate
        | Step::Prepare
        | Step::Recover
        | Step::StartStandby
        | Step::CatchUp
        | Step::Checkpoint
        | Step::Freeze
        | Step::StopPublished
        | Step::StopStandby
        | Step::Compare
        | Step::Settle
        | Step::StartFinal
        | Step::Thaw => {}
    }
    if step == opening_step(state.spec.kind) {
        state.changes = match state.changes {
            Changes::Impossible => Changes::Opening,
            Changes::Opening | Changes::Possible => Changes::Possible,
        };
    }
    let attempt = state.attempt;
    emit(effects, Severity::Info, StepStarted { step, attempt });
    let epoch = state.epoch;
    effects.push(Effect::RunStep { step, epoch });
}

fn finish_step(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    step: Step,
    outcome: StepOutcome,
    duration_ms: u64,
) {
    if step == opening_step(state.spec.kind) {
        state.changes = Changes::Possible;
    }
    state.timings.push(StepTiming { step, duration_ms });
    emit(effects, Severity::Info, StepFinished { step, duration_ms });
    match outcome {
        StepOutcome::Done => {}
        StepOutcome::Mounted(ready) => state.mount = Some(*ready),
        StepOutcome::Prepared(instance) => state.instance = Some(*instance),
        StepOutcome::Recovered(published) => state.published = Some(*published),
        StepOutcome::Replicated { bytes } => state.recovery.copied_bytes = bytes,
        StepOutcome::CaughtUp(lag) => state.recovery.lag = Some(lag),
        StepOutcome::Final(instance) => recovery::note_final(state, effects, *instance),
    }
    if recovery::step_finished(state, effects, step) {
        return;
    }
    match next_step(state.spec.kind, step) {
        Some(next) => begin_step(state, effects, next),
        None => establish(state, effects),
    }
}

pub(super) fn establish(state: &mut SessionState, effects: &mut Vec<Effect>) {
    state.epoch += 1;
    state.phase = Phase::Established;
    state.ever_established = true;
    state.changes = Changes::Possible;
    state.attempt = 1;
    state.automatic_used = 0;
    match state.spec.kind {
        SessionKind::Publish => {
            if let Some(published) = &mut state.published {
                published.steps.clone_from(&state.timings);
                emit(effects, Severity::Info, published.clone());
            }
        }
        SessionKind::Mount => {
            state.mounted = state.mount.as_ref().map(|mount| Mounted {
                mount_point: mount.mount_point.clone(),
                data_directory: mount.data_directory.clone(),
                backup: mount.backup.clone(),
                steps: state.timings.clone(),
            });
            if let Some(mounted) = state.mounted.clone() {
                emit(effects, Severity::Info, mounted);
            }
        }
        SessionKind::Recover => {
            let ready = ReadyForSwitchover {
                lag: state.recovery.lag.unwrap_or_default(),
                switchover: state.recovery.switchover,
                steps: state.timings.clone(),
            };
            emit(effects, Severity::Info, ready);
            if recovery::begin_at_once(state, effects) {
                return;
            }
        }
    }
    effects.push(Effect::Watch { epoch: state.epoch });
}

/// Decides what a failure means: undo all where nothing can be lost and no retry helps, else keep all and wait.
pub(super) fn fail(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    step: Option<Step>,
    problem: Problem,
) {
    if !recovery::still_serves(state, &problem) {
        state.published = None;
    }
    state.mounted = None;
    if problem.is_permanent() && state.changes == Changes::Impossible {
        begin_undo(state, effects, UndoReason::Failure { step, problem });
        return;
    }
    let failed_attempt = state.attempt;
    let automatic_max = state.retry.automatic_max;
    let left = state.automatic_used < automatic_max;
    let next_attempt = (left && !problem.is_permanent()).then_some(failed_attempt + 1);
    let severity = match next_attempt {
        Some(_) => Severity::Warning,
        None => Severity::Critical,
    };
    if next_attempt.is_none() && automatic_max > 0 && !problem.is_permanent() {
        let exhausted = RetriesExhausted {
            automatic_retries: automatic_max,
            problem: problem.clone(),
        };
        emit(effects, Severity::Critical, exhausted);
    }
    state.epoch += 1;
    state.phase = Phase::Waiting {
        step,
        problem: problem.clone(),
        next_attempt,
    };
    let waiting = Waiting {
        step,
        attempt: failed_attempt,
        automatic_retries_max: automatic_max,
        next_attempt_at: None, // the executor knows the clock and fills it in
        problem,
    };
    emit(effects, severity, waiting);
    if let Some(attempt) = next_attempt {
        effects.push(Effect::ScheduleRetry {
            attempt,
            epoch: state.epoch,
            after_s: state.retry.every_s,
        });
    }
}

/// A failure that comes from outside of the activity that lives: that one must end first.
fn lose(state: &mut SessionState, effects: &mut Vec<Effect>, step: Option<Step>, problem: Problem) {
    effects.push(Effect::StopStep);
    fail(state, effects, step, problem);
}

fn mount_lost(state: &mut SessionState, effects: &mut Vec<Effect>, epoch: u64, problem: Problem) {
    if state.mount_epoch() != Some(epoch) {
        return;
    }
    match state.phase {
        Phase::Established => lose(state, effects, None, problem),
        Phase::Running { step } => match step {
            // These make the mount anew anyway.
            Step::Validate | Step::Mount => {}
            // These need it no more.
            Step::Settle | Step::StartFinal => {}
            Step::SetAside
            | Step::Prepare
            | Step::Start
            | Step::Recover
            | Step::Replicate
            | Step::StartStandby
            | Step::CatchUp
            | Step::Checkpoint
            | Step::Freeze
            | Step::StopPublished
            | Step::StopStandby
            | Step::Compare
            | Step::Thaw => {
                if state.changes == Changes::Opening {
                    state.changes = Changes::Possible;
                }
                lose(state, effects, Some(step), problem);
            }
        },
        Phase::Waiting { .. } | Phase::Undoing { .. } | Phase::Ended(_) => {}
    }
}

/// Whether someone asked for an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manual {
    Yes,
    No,
}

fn retry_by_hand(state: &mut SessionState, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
    if matches!(state.phase, Phase::Waiting { .. }) {
        state.automatic_used = 0;
        begin_attempt(state, effects, Manual::Yes);
        Ok(())
    } else {
        Err(Refusal::not_now(
            format!(
                "session {} is {:?} and does not wait for a retry",
                state.session_id,
                state.status().as_str()
            ),
            "retry a session that waits for a retry",
        ))
    }
}

/// Works off all steps again: each finds what an earlier attempt left and keeps it.
fn begin_attempt(state: &mut SessionState, effects: &mut Vec<Effect>, manual: Manual) {
    state.attempt += 1;
    if !state.recovery.is_final {
        state.timings.clear();
    }
    let retrying = Retrying {
        attempt: state.attempt,
        manual: manual == Manual::Yes,
    };
    emit(effects, Severity::Info, retrying);
    let step = recovery::resumes_at(state).unwrap_or(first_step(state.spec.kind));
    begin_step(state, effects, step);
}

fn cancel(state: &mut SessionState, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
    if state.recovery.is_final && !state.is_ended() {
        return Err(recovery::too_late(state));
    }
    match &state.phase {
        // Being undone already, whatever for: a second cancel wants nothing more.
        Phase::Undoing { .. } | Phase::Ended(Ending::Cancelled) => Ok(()),
        Phase::Ended(_) => Err(ended(state)),
        Phase::Running { .. } | Phase::Established => {
            effects.push(Effect::StopStep);
            emit(effects, Severity::Info, Cancelling {});
            begin_undo(state, effects, UndoReason::Cancel);
            Ok(())
        }
        Phase::Waiting { .. } => {
            emit(effects, Severity::Info, Cancelling {});
            begin_undo(state, effects, UndoReason::Cancel);
            Ok(())
        }
    }
}

fn unpublish(state: &mut SessionState, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
    if state.spec.kind == SessionKind::Recover && !state.is_ended() {
        return Err(recovery::not_published(state));
    }
    match &state.phase {
        Phase::Established => effects.push(Effect::StopStep),
        Phase::Waiting { .. } if state.ever_established => {}
        Phase::Undoing {
            reason: UndoReason::Unpublish,
            ..
        }
        | Phase::Ended(Ending::Completed) => return Ok(()),
        Phase::Ended(_) => return Err(ended(state)),
        Phase::Running { .. } | Phase::Waiting { .. } | Phase::Undoing { .. } => {
            let remedy = match state.phase {
                Phase::Undoing { .. } => "wait until everything is undone",
                _ => "use cancel, which gives a session up at any step",
            };
            return Err(Refusal::not_now(
                format!(
                    "session {} is {:?}, not published or mounted",
                    state.session_id,
                    state.status().as_str()
                ),
                remedy,
            ));
        }
    }
    emit(effects, Severity::Info, Unpublishing {});
    begin_undo(state, effects, UndoReason::Unpublish);
    Ok(())
}

fn ended(state: &SessionState) -> Refusal {
    Refusal::not_now(
        format!(
            "session {} has ended: {}",
            state.session_id,
            state.status().as_str()
        ),
        "begin a new session",
    )
}

pub(super) fn warn(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    code: WarningCode,
    text: String,
) {
    if state.warnings.get(&code) == Some(&text) {
        return;
    }
    state.warnings.insert(code, text.clone());
    let severity = match code {
        WarningCode::SlowerMode | WarningCode::SlowLayout => Severity::Info,
        WarningCode::CacheSpaceLow | WarningCode::BaseUnreachable | WarningCode::CleanupFailed => {
            Severity::Warning
        }
        WarningCode::CacheSpaceCritical | WarningCode::BackupFileCorrupt => Severity::Critical,
    };
    emit(effects, severity, Warning { code, text });
}

pub(super) fn clear_warning(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    code: WarningCode,
) {
    if state.warnings.remove(&code).is_some() {
        emit(effects, Severity::Info, WarningCleared { code });
    }
}

fn restart(state: &mut SessionState, effects: &mut Vec<Effect>) {
    match &mut state.phase {
        Phase::Running { step } => {
            if *step == opening_step(state.spec.kind) && state.changes == Changes::Opening {
                state.changes = Changes::Possible;
            }
            state.epoch += 1;
            effects.push(Effect::RunStep {
                step: *step,
                epoch: state.epoch,
            });
        }
        Phase::Established => {
            state.epoch += 1;
            effects.push(Effect::Watch { epoch: state.epoch });
        }
        Phase::Undoing { pending, .. } => {
            if let Some(what) = pending.first().copied() {
                state.epoch += 1;
                effects.push(Effect::Undo {
                    what,
                    epoch: state.epoch,
                    after_s: 0,
                });
            }
        }
        // The scheduled attempt is on its way in the outbox or the broker; a new epoch would make it stale.
        Phase::Waiting { .. } | Phase::Ended(_) => {}
    }
}
