//! What only instant recoveries do: the walk from the published instance to the one that stays, and the way back.

use crate::messages::{
    Lag, Published, ReplicationLag, SessionKind, SessionStatus, Severity, Step, SwitchedOver,
    SwitchingOver, SwitchoverChanged, SwitchoverFailed, SwitchoverMode, SwitchoverOrder,
};
use crate::problem::{ErrorCode, Problem};

use super::apply::{begin_step, emit, fail, first_step};
use super::undo::begin_undo;
use super::{
    Effect, FinalInstance, Phase, RecoverySpec, Refusal, RetryPolicy, SessionState, UndoReason,
};

/// The status while a step runs.
pub(super) fn status_in(step: Step) -> SessionStatus {
    match step {
        Step::Validate
        | Step::Mount
        | Step::SetAside
        | Step::Prepare
        | Step::Start
        | Step::Recover => SessionStatus::Publishing,
        Step::Replicate => SessionStatus::Replicating,
        Step::StartStandby | Step::CatchUp => SessionStatus::CatchingUp,
        Step::Checkpoint
        | Step::Freeze
        | Step::StopPublished
        | Step::StopStandby
        | Step::Compare
        | Step::Settle
        | Step::StartFinal
        | Step::Thaw => SessionStatus::SwitchingOver,
    }
}

/// A step of a switchover that can still go back.
fn can_go_back(step: Step) -> bool {
    matches!(
        step,
        Step::Checkpoint | Step::Freeze | Step::StopPublished | Step::StopStandby | Step::Compare
    )
}

/// A step failed: a switchover goes back first, everything else waits or is undone.
pub(super) fn step_failed(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    step: Step,
    problem: Problem,
) {
    if can_go_back(step) {
        let failed = SwitchoverFailed {
            step,
            problem: problem.clone(),
        };
        emit(effects, Severity::Critical, failed);
        state.recovery.went_back = Some(problem.clone());
        state.recovery.going_back = Some((step, problem));
        begin_step(state, effects, Step::Thaw);
        return;
    }
    state.recovery.going_back = None;
    fail(state, effects, Some(step), problem);
}

/// What follows a finished step where it is not simply the next one.
pub(super) fn step_finished(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    step: Step,
) -> bool {
    if state.spec.kind != SessionKind::Recover {
        return false;
    }
    match step {
        Step::Recover => {
            tell_published(state, effects);
            false
        }
        // Hours of copying are behind: what failed before counts no more.
        Step::Replicate => {
            state.automatic_used = 0;
            false
        }
        Step::CatchUp => {
            super::apply::establish(state, effects);
            true
        }
        Step::Compare => {
            state.recovery.is_final = true;
            false
        }
        Step::StartFinal => {
            state.made.instance = false;
            state.made.standby = false;
            state.made.set_aside = false;
            begin_undo(state, effects, UndoReason::SwitchedOver);
            true
        }
        Step::Thaw => {
            went_back(state, effects);
            true
        }
        Step::Validate
        | Step::Mount
        | Step::SetAside
        | Step::Prepare
        | Step::Start
        | Step::StartStandby
        | Step::Checkpoint
        | Step::Freeze
        | Step::StopPublished
        | Step::StopStandby
        | Step::Settle => false,
    }
}

fn tell_published(state: &mut SessionState, effects: &mut Vec<Effect>) {
    state.ever_established = true;
    let timings = state.timings.clone();
    if let Some(published) = &mut state.published {
        published.steps = timings;
        let published: Published = published.clone();
        emit(effects, Severity::Info, published);
    }
}

/// The published instance takes writes again. Whoever said when the switchover is to be is owed another try; an order by hand is not
/// repeated, so the session goes back to being ready.
fn went_back(state: &mut SessionState, effects: &mut Vec<Effect>) {
    let Some((step, problem)) = state.recovery.going_back.take() else {
        begin_step(state, effects, Step::StartStandby);
        return;
    };
    match state.recovery.switchover {
        SwitchoverMode::Manual => begin_step(state, effects, Step::StartStandby),
        SwitchoverMode::Auto | SwitchoverMode::At { .. } => {
            fail(state, effects, Some(step), problem);
        }
    }
}

/// Whether the published instance still serves although the session waits.
pub(super) fn still_serves(state: &SessionState, problem: &Problem) -> bool {
    state.spec.kind == SessionKind::Recover
        && state.ever_established
        && !matches!(
            problem.code,
            ErrorCode::InstanceFailed | ErrorCode::RecoveryFailed | ErrorCode::MountFailed
        )
}

/// Where an attempt begins when nothing may be repeated.
pub(super) fn resumes_at(state: &SessionState) -> Option<Step> {
    let step = match state.step() {
        Some(Step::StartFinal) => Step::StartFinal,
        _ => Step::Settle,
    };
    state.recovery.is_final.then_some(step)
}

/// Takes note of the instance that stays.
pub(super) fn note_final(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    instance: FinalInstance,
) {
    let Some(recovery) = &state.spec.recovery else {
        return;
    };
    let switched_over = SwitchedOver {
        host: instance.host,
        port: state.spec.port.unwrap_or_default(),
        data_directory: recovery.data_directory.clone(),
        version: instance.version,
        timeline: instance.timeline,
        manager: instance.manager,
        // The executor knows the clock and fills these in.
        without_writes_ms: 0,
        without_service_ms: 0,
        copied_bytes: state.recovery.copied_bytes,
        steps: state.timings.clone(),
    };
    state.recovery.switched_over = Some(switched_over.clone());
    emit(effects, Severity::Info, switched_over);
}

/// The standby was looked at.
pub(super) fn lag_seen(state: &mut SessionState, effects: &mut Vec<Effect>, lag: Lag) {
    if state.recovery.lag != Some(lag) {
        state.recovery.lag = Some(lag);
        emit(effects, Severity::Info, ReplicationLag { lag });
    }
}

/// A session that has just become ready switches over at once if that is its mode.
pub(super) fn begin_at_once(state: &mut SessionState, effects: &mut Vec<Effect>) -> bool {
    let is_auto = state.recovery.switchover == SwitchoverMode::Auto;
    if is_auto {
        begin_switchover(state, effects, SwitchingOver { manual: false });
    }
    is_auto
}

/// The watch says that the time has come.
pub(super) fn begin_if_due(state: &mut SessionState, effects: &mut Vec<Effect>) {
    match state.recovery.switchover {
        SwitchoverMode::Manual => {}
        SwitchoverMode::Auto | SwitchoverMode::At { .. } => {
            effects.push(Effect::StopStep);
            begin_switchover(state, effects, SwitchingOver { manual: false });
        }
    }
}

fn begin_switchover(state: &mut SessionState, effects: &mut Vec<Effect>, begins: SwitchingOver) {
    state.recovery.went_back = None;
    emit(effects, Severity::Info, begins);
    begin_step(state, effects, Step::Checkpoint);
}

/// Someone says when the switchover is to begin.
pub(super) fn order(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    order: SwitchoverOrder,
) -> Result<(), Refusal> {
    let is_ready = state.phase == Phase::Established;
    let has_begun = match &state.phase {
        Phase::Running { step } => status_in(*step) == SessionStatus::SwitchingOver,
        Phase::Undoing { .. } | Phase::Ended(_) => true,
        Phase::Established | Phase::Waiting { .. } => state.recovery.is_final,
    };
    if state.spec.kind != SessionKind::Recover || has_begun {
        return Err(Refusal::not_now(
            format!(
                "session {} is {:?}: nothing can be changed about its switchover",
                state.session_id,
                state.status().as_str()
            ),
            "switch over sessions of kind recover before their switchover has begun",
        ));
    }
    let mode = match order {
        SwitchoverOrder::Now if is_ready => {
            effects.push(Effect::StopStep);
            begin_switchover(state, effects, SwitchingOver { manual: true });
            return Ok(());
        }
        SwitchoverOrder::Now => {
            return Err(Refusal::not_now(
                format!(
                    "session {} is {:?}, not ready for its switchover",
                    state.session_id,
                    state.status().as_str()
                ),
                "wait for \"Ready for switchover\", or order it with --auto",
            ));
        }
        SwitchoverOrder::Auto => SwitchoverMode::Auto,
        SwitchoverOrder::Manual => SwitchoverMode::Manual,
        SwitchoverOrder::At { at } => SwitchoverMode::At { at },
    };
    if state.recovery.switchover != mode {
        state.recovery.switchover = mode;
        let changed = SwitchoverChanged { switchover: mode };
        emit(effects, Severity::Info, changed);
    }
    if is_ready && mode == SwitchoverMode::Auto {
        effects.push(Effect::StopStep);
        begin_switchover(state, effects, SwitchingOver { manual: false });
    } else if is_ready {
        // The watch knows the time of a switchover from its beginning.
        effects.push(Effect::StopStep);
        state.epoch += 1;
        effects.push(Effect::Watch { epoch: state.epoch });
    }
    Ok(())
}

/// Makes a published session an instant recovery: the steps are worked off again, and each finds what there is.
pub(super) fn promote(
    state: &mut SessionState,
    effects: &mut Vec<Effect>,
    (recovery, switchover, retry): (RecoverySpec, SwitchoverMode, RetryPolicy),
) -> Result<(), Refusal> {
    let is_published = state.spec.kind == SessionKind::Publish && state.phase == Phase::Established;
    // A place that turned out to be no good may be replaced by another as long as nothing was done there.
    let may_be_moved = state.spec.kind == SessionKind::Recover
        && matches!(state.phase, Phase::Waiting { .. })
        && !(state.made.set_aside || state.made.standby);
    if !(is_published || may_be_moved) {
        return Err(Refusal::not_now(
            format!(
                "session {} is {:?} and cannot become an instant recovery",
                state.session_id,
                state.status().as_str()
            ),
            "choose a session that is published",
        ));
    }
    if is_published {
        effects.push(Effect::StopStep);
    }
    state.spec.kind = SessionKind::Recover;
    state.spec.recovery = Some(recovery);
    state.recovery.switchover = switchover;
    state.retry = retry;
    state.timings.clear();
    begin_step(state, effects, first_step(SessionKind::Recover));
    Ok(())
}

/// A recovery is final and goes forward only.
pub(super) fn too_late(state: &SessionState) -> Refusal {
    Refusal::not_now(
        format!(
            "session {} has switched over: the instance in its final place is the one that counts",
            state.session_id
        ),
        "wait until it has completed; what was set aside is kept beside it",
    )
}

/// A recovery is not unpublished.
pub(super) fn not_published(state: &SessionState) -> Refusal {
    Refusal::not_now(
        format!("session {} is an instant recovery", state.session_id),
        "switch it over, or use cancel, which throws its changes away and puts the original back",
    )
}
