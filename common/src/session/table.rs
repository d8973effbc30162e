//! Tables: what each input makes of each kind of state.

use super::*;
use crate::ids::{CommandId, OsUser};
use crate::messages::EventBody;
use crate::problem::ErrorCode;
use std::path::PathBuf;

pub(super) fn problem(code: ErrorCode) -> Problem {
    Problem::new(code, "it failed", "mend it")
}

pub(super) fn temporary() -> Problem {
    problem(ErrorCode::TargetUnreachable)
}

pub(super) fn permanent() -> Problem {
    problem(ErrorCode::PortInUse)
}

pub(super) fn session_id() -> SessionId {
    "0190b5a8-7c3a-7def-8123-456789abcdef".parse().unwrap()
}

pub(super) fn spec(kind: SessionKind) -> SessionSpec {
    SessionSpec {
        hydrate: None,
        recovery_target: RecoveryTarget::Latest,
        kind,
        repository: RepositoryName::new("main").unwrap(),
        backup: None,
        target: TargetName::new("local").unwrap(),
        place: SessionPlace {
            session_id: session_id(),
            mount_root: PathBuf::from("/tmp/pginstant"),
            cache_root: PathBuf::from("/var/tmp/pginstant"),
            os_user: OsUser::new("postgres").unwrap(),
        },
        port: Some(5555),
        reason: None,
        recovery: (kind == SessionKind::Recover).then(|| RecoverySpec {
            data_directory: PathBuf::from("/var/lib/postgresql/15/main"),
            tablespaces: BTreeMap::new(),
            replace: Replace::MoveAside,
            lag_max_bytes: 1,
        }),
    }
}

pub(super) fn begin(kind: SessionKind, automatic_max: u32) -> (SessionState, Vec<Effect>) {
    accept(Accept {
        session_id: session_id(),
        command_id: CommandId::from(session_id()),
        spec: spec(kind),
        retry: RetryPolicy {
            automatic_max,
            every_s: 300,
        },
        switchover: SwitchoverMode::Manual,
    })
}

pub(super) fn ready(epoch: u64) -> MountReady {
    MountReady {
        session_id: session_id(),
        epoch,
        backup: BackupLabel::new("20260101").unwrap(),
        mount_point: PathBuf::from("/tmp/pginstant/s"),
        data_directory: PathBuf::from("/tmp/pginstant/s/data"),
        postgresql_major: 15,
        end_lsn: None,
        wal: None,
        size_bytes: 1,
        tablespaces: BTreeMap::new(),
        passthrough: true,
        passthrough_reason: None,
    }
}

pub(super) fn published() -> Published {
    Published {
        host: "h".to_owned(),
        port: 5555,
        socket_directory: PathBuf::new(),
        data_directory: PathBuf::new(),
        version: "15.1".to_owned(),
        backup: BackupLabel::new("20260101").unwrap(),
        timeline: 2,
        reached_lsn: "0/1".to_owned(),
        reached_at: None,
        steps: Vec::new(),
    }
}

pub(super) fn outcome(step: Step, epoch: u64) -> StepOutcome {
    match step {
        Step::Mount => StepOutcome::Mounted(Box::new(ready(epoch))),
        Step::Recover => StepOutcome::Recovered(Box::new(published())),
        Step::Replicate => StepOutcome::Replicated { bytes: 7 },
        Step::CatchUp => StepOutcome::CaughtUp(Lag::default()),
        Step::StartFinal => StepOutcome::Final(Box::new(FinalInstance {
            host: "h".to_owned(),
            version: "15.1".to_owned(),
            timeline: 3,
            manager: "pg_ctl".to_owned(),
        })),
        Step::Validate
        | Step::Prepare
        | Step::Start
        | Step::SetAside
        | Step::StartStandby
        | Step::Checkpoint
        | Step::Freeze
        | Step::StopPublished
        | Step::StopStandby
        | Step::Compare
        | Step::Settle
        | Step::Thaw => StepOutcome::Done,
    }
}

pub(super) fn done(step: Step, epoch: u64) -> Input {
    Input::StepDone {
        step,
        epoch,
        outcome: outcome(step, epoch),
        duration_ms: 1,
    }
}

pub(super) fn failed(state: &SessionState, problem: Problem) -> Input {
    let Phase::Running { step } = state.phase else {
        panic!("not running: {state:?}")
    };
    Input::StepFailed {
        step,
        epoch: state.epoch,
        problem,
    }
}

pub(super) fn take(state: &SessionState, input: Input) -> (SessionState, Vec<Effect>) {
    apply(state, input).unwrap()
}

/// Works off steps until `step` runs; `None`: until established.
pub(super) fn run_to(kind: SessionKind, automatic_max: u32, step: Option<Step>) -> SessionState {
    go_to(begin(kind, automatic_max).0, step)
}

pub(super) fn go_to(mut state: SessionState, step: Option<Step>) -> SessionState {
    while let Phase::Running { step: running } = state.phase {
        if Some(running) == step {
            return state;
        }
        state = take(&state, done(running, state.epoch)).0;
    }
    assert_eq!(step, None);
    state
}

pub(super) fn undo_all(mut state: SessionState) -> (SessionState, Vec<Undo>) {
    let mut undone = Vec::new();
    while let Phase::Undoing { pending, .. } = &state.phase {
        let what = pending[0];
        undone.push(what);
        let epoch = state.epoch;
        state = take(&state, Input::UndoDone { what, epoch }).0;
    }
    (state, undone)
}

pub(super) fn phases(effects: &[Effect]) -> Vec<&'static str> {
    effects
        .iter()
        .map(|effect| match effect {
            Effect::Emit(body, _) => body.phase(),
            Effect::RunStep { .. } => "RUN",
            Effect::StopStep => "STOP",
            Effect::Undo { .. } => "UNDO",
            Effect::Watch { .. } => "WATCH",
            Effect::ScheduleRetry { .. } => "SCHEDULE",
            Effect::Forget => "FORGET",
        })
        .collect()
}

#[test]
fn a_session_without_trouble_goes_through_its_steps_and_tells_each() {
    let (mut state, effects) = begin(SessionKind::Publish, 0);
    assert_eq!(phases(&effects), ["accepted", "step_started", "RUN"]);
    for step in [Step::Validate, Step::Mount, Step::Prepare, Step::Start] {
        let effects;
        (state, effects) = take(&state, done(step, state.epoch));
        assert_eq!(phases(&effects), ["step_finished", "step_started", "RUN"]);
    }
    let (state, effects) = take(&state, done(Step::Recover, state.epoch));
    assert_eq!(phases(&effects), ["step_finished", "published", "WATCH"]);
    assert_eq!(state.status(), SessionStatus::Published);
    assert_eq!(state.published.unwrap().steps.len(), 5);
    let state = run_to(SessionKind::Mount, 0, None);
    assert_eq!(state.status(), SessionStatus::Mounted);
    assert_eq!(state.mounted.unwrap().steps.len(), 2);
}

#[test]
fn cancel_at_any_step_undoes_exactly_what_was_begun() {
    use Undo::{ReleaseMount, StopInstance};
    let none: &[Undo] = &[];
    let mount: &[Undo] = &[ReleaseMount];
    let both: &[Undo] = &[StopInstance, ReleaseMount];
    for (step, expected) in [
        (Some(Step::Validate), none),
        (Some(Step::Mount), mount),
        (Some(Step::Prepare), mount),
        (Some(Step::Start), both),
        (Some(Step::Recover), both),
        (None, both),
    ] {
        let state = run_to(SessionKind::Publish, 0, step);
        let (state, effects) = take(&state, Input::Cancel);
        assert_eq!(phases(&effects)[..2], ["STOP", "cancelling"], "{step:?}");
        let (state, undone) = undo_all(state);
        assert_eq!(undone, expected, "{step:?}");
        assert_eq!(state.status(), SessionStatus::Cancelled);
        assert_eq!(take(&state, Input::Cancel), (state, vec![]), "idempotent");
    }
}

#[test]
fn what_a_failure_means_depends_on_whether_users_may_have_written() {
    // (step, permanent) → status when all is undone or kept
    for (step, problem, expected) in [
        (Step::Validate, permanent(), SessionStatus::Failed),
        (Step::Mount, permanent(), SessionStatus::Failed),
        (Step::Prepare, permanent(), SessionStatus::Failed),
        (Step::Start, permanent(), SessionStatus::Failed),
        (
            Step::Recover,
            permanent(),
            SessionStatus::WaitingForManualRetry,
        ),
        (
            Step::Validate,
            temporary(),
            SessionStatus::WaitingForManualRetry,
        ),
        (
            Step::Start,
            temporary(),
            SessionStatus::WaitingForManualRetry,
        ),
    ] {
        let state = run_to(SessionKind::Publish, 0, Some(step));
        let made = state.made;
        let input = failed(&state, problem.clone());
        let (state, _) = take(&state, input);
        if expected == SessionStatus::WaitingForManualRetry {
            assert_eq!(state.made, made, "kept");
        }
        let (state, _) = undo_all(state);
        assert_eq!(state.status(), expected, "{step:?} {problem}");
    }
}

#[test]
fn a_permanent_failure_after_a_lost_start_or_a_crash_keeps_the_write_cache() {
    let start = run_to(SessionKind::Publish, 0, Some(Step::Start));
    let crashed = take(&start, Input::Restarted).0;
    let input = failed(&crashed, permanent());
    assert_eq!(
        take(&crashed, input).0.status(),
        SessionStatus::WaitingForManualRetry
    );
    let lost = take(&start, failed(&start, temporary())).0;
    let again = take(&lost, Input::Retry).0;
    let input = failed(&again, permanent());
    assert_eq!(
        take(&again, input).0.status(),
        SessionStatus::WaitingForManualRetry
    );
}

#[test]
fn automatic_retries_end_after_their_number_and_a_manual_one_begins_anew() {
    let mut state = run_to(SessionKind::Publish, 10, Some(Step::Mount));
    for used in 0..10 {
        let input = failed(&state, temporary());
        let (waiting, effects) = take(&state, input);
        assert_eq!(phases(&effects), ["waiting", "SCHEDULE"]);
        assert_eq!(waiting.automatic_used, used);
        let (attempt, epoch) = (waiting.attempt + 1, waiting.epoch);
        let stale = Input::RetryDue {
            attempt: attempt - 1,
            epoch,
        };
        assert_eq!(take(&waiting, stale), (waiting.clone(), vec![]));
        let due = Input::RetryDue { attempt, epoch };
        let effects;
        (state, effects) = take(&waiting, due.clone());
        assert_eq!(phases(&effects), ["retrying", "step_started", "RUN"]);
        assert_eq!(take(&state, due), (state.clone(), vec![]), "a duplicate");
    }
    let input = failed(&state, temporary());
    let (state, effects) = take(&state, input);
    assert_eq!(phases(&effects), ["retries_exhausted", "waiting"]);
    assert_eq!(state.status(), SessionStatus::WaitingForManualRetry);
    let state = take(&state, Input::Retry).0;
    assert_eq!((state.attempt, state.automatic_used), (12, 0));
}

#[test]
fn a_lost_instance_waits_with_its_changes_and_can_be_unpublished() {
    let state = run_to(SessionKind::Publish, 0, None);
    let lost = Input::InstanceLost {
        epoch: state.epoch,
        problem: permanent(),
    };
    let (state, effects) = take(&state, lost.clone());
    assert_eq!(phases(&effects), ["STOP", "waiting"]);
    assert_eq!(take(&state, lost), (state.clone(), vec![]), "a duplicate");
    let again = go_to(take(&state, Input::Retry).0, None);
    assert_eq!(
        (again.status(), again.attempt),
        (SessionStatus::Published, 1)
    );
    let (state, undone) = undo_all(take(&state, Input::Unpublish).0);
    assert_eq!(undone, [Undo::StopInstance, Undo::ReleaseMount]);
    assert_eq!(state.status(), SessionStatus::Completed);
}

#[test]
fn a_lost_mount_counts_only_if_it_is_the_present_one() {
    for step in [Some(Step::Prepare), Some(Step::Recover), None] {
        let state = run_to(SessionKind::Publish, 0, step);
        let lost = |epoch| Input::MountLost {
            epoch,
            problem: temporary(),
        };
        let present = state.mount_epoch().unwrap();
        assert_eq!(take(&state, lost(present + 1)), (state.clone(), vec![]));
        let (state, effects) = take(&state, lost(present));
        assert_eq!(phases(&effects), ["STOP", "waiting"]);
        assert_eq!(state.step(), step);
    }
}

#[test]
fn commands_that_do_not_fit_are_refused_with_a_remedy() {
    let running = run_to(SessionKind::Publish, 0, Some(Step::Mount));
    let established = run_to(SessionKind::Publish, 0, None);
    let waiting = take(&running, failed(&running, temporary())).0;
    let cancelling = take(&running, Input::Cancel).0;
    let completed = undo_all(take(&established, Input::Unpublish).0).0;
    for (state, input, remedy) in [
        (&running, Input::Unpublish, "cancel"),
        (&waiting, Input::Unpublish, "cancel"),
        (&cancelling, Input::Unpublish, "wait"),
        (&running, Input::Retry, "waits"),
        (&established, Input::Retry, "waits"),
        (&completed, Input::Cancel, "new session"),
        (&completed, Input::Retry, "waits"),
    ] {
        let Refusal(problem) = apply(state, input.clone()).unwrap_err();
        assert_eq!(problem.code, ErrorCode::NotPossibleNow);
        assert!(problem.remedy.contains(remedy), "{input:?}: {problem}");
    }
    assert_eq!(take(&completed, Input::Unpublish), (completed, vec![]));
}

#[test]
fn an_undo_that_fails_is_tried_again_for_ever_with_growing_pauses() {
    let state = run_to(SessionKind::Publish, 0, Some(Step::Mount));
    let mut state = take(&state, Input::Cancel).0;
    let mut pauses = Vec::new();
    for round in 0..40 {
        let failed = Input::UndoFailed {
            what: Undo::ReleaseMount,
            epoch: state.epoch,
            problem: temporary(),
        };
        let effects;
        (state, effects) = take(&state, failed);
        let expected: &[&str] = if round == 0 {
            &["warning", "UNDO"]
        } else {
            &["UNDO"]
        };
        assert_eq!(phases(&effects), expected);
        if let Some(Effect::Undo { after_s, .. }) = effects.last() {
            pauses.push(*after_s);
        }
    }
    assert_eq!(pauses[..7], [5, 10, 20, 40, 80, 160, 300]);
    assert_eq!(pauses[39], 300);
    let done = Input::UndoDone {
        what: Undo::ReleaseMount,
        epoch: state.epoch,
    };
    let (state, effects) = take(&state, done);
    assert_eq!(phases(&effects), ["warning_cleared", "cancelled", "FORGET"]);
    assert_eq!(state.status(), SessionStatus::Cancelled);
}

#[test]
fn a_restart_goes_on_where_it_was_and_spends_no_attempt() {
    for (state, expected) in [
        (
            run_to(SessionKind::Publish, 3, Some(Step::Prepare)),
            &["RUN"][..],
        ),
        (run_to(SessionKind::Publish, 3, None), &["WATCH"]),
        (
            take(
                &run_to(SessionKind::Publish, 3, Some(Step::Mount)),
                Input::Cancel,
            )
            .0,
            &["UNDO"],
        ),
    ] {
        let (after, effects) = take(&state, Input::Restarted);
        assert_eq!(phases(&effects), expected);
        assert_eq!(after.attempt, state.attempt);
        assert_eq!(after.automatic_used, state.automatic_used);
        assert!(after.epoch > state.epoch, "answers from before are stale");
    }
}

#[test]
fn warnings_begin_and_end_once_and_end_with_the_session() {
    let state = run_to(SessionKind::Publish, 0, None);
    let warn = |text: Option<&str>| Input::MountWarning {
        code: WarningCode::BaseUnreachable,
        text: text.map(str::to_owned),
    };
    assert_eq!(take(&state, warn(None)), (state.clone(), vec![]));
    let (state, effects) = take(&state, warn(Some("a")));
    assert_eq!(phases(&effects), ["warning"]);
    assert_eq!(take(&state, warn(Some("a"))), (state.clone(), vec![]));
    let state = take(&state, Input::Cancel).0;
    let state = take(
        &state,
        Input::UndoDone {
            what: Undo::StopInstance,
            epoch: state.epoch,
        },
    )
    .0;
    let (_, effects) = take(
        &state,
        Input::UndoDone {
            what: Undo::ReleaseMount,
            epoch: state.epoch,
        },
    );
    assert_eq!(phases(&effects), ["warning_cleared", "cancelled", "FORGET"]);
}

#[test]
fn a_state_reads_back_as_it_was_written() {
    for step in [Some(Step::Validate), Some(Step::Recover), None] {
        let state = run_to(SessionKind::Publish, 2, step);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<SessionState>(&text).unwrap(), state);
    }
    let body: EventBody = crate::messages::Completed {}.into();
    assert_eq!(body.phase(), "completed");
}
