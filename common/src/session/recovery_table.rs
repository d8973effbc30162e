//! Tables: what only recoveries do.

use jiff::Timestamp;

use super::table::{
    begin, done, failed, go_to, permanent, phases, run_to, take, temporary, undo_all,
};
use super::*;
use crate::messages::SwitchoverOrder;
use crate::problem::ErrorCode;

const SWITCHOVER: [Step; 5] = [
    Step::Checkpoint,
    Step::Freeze,
    Step::StopPublished,
    Step::StopStandby,
    Step::Compare,
];

fn ready() -> SessionState {
    run_to(SessionKind::Recover, 10, None)
}

/// In this step of a switchover that someone asked for.
fn switching(step: Step) -> SessionState {
    let order = Input::Switchover(SwitchoverOrder::Now);
    go_to(take(&ready(), order).0, Some(step))
}

#[test]
fn a_recovery_without_trouble_is_online_first_then_ready_then_switched_over() {
    let (mut state, _) = begin(SessionKind::Recover, 10);
    let mut statuses = vec![];
    let mut told = vec![];
    loop {
        let status = state.status();
        if statuses.last() != Some(&status) {
            statuses.push(status);
        }
        let input = match &state.phase {
            Phase::Running { step } => done(*step, state.epoch),
            Phase::Established => Input::Switchover(SwitchoverOrder::Now),
            Phase::Undoing { pending, .. } => Input::UndoDone {
                what: pending[0],
                epoch: state.epoch,
            },
            Phase::Waiting { .. } => panic!("it waits"),
            Phase::Ended(_) => break,
        };
        let effects;
        (state, effects) = take(&state, input);
        told.extend(
            phases(&effects)
                .into_iter()
                .filter(|phase| !phase.starts_with("step_") && phase.to_lowercase() == *phase),
        );
    }
    use SessionStatus::*;
    assert_eq!(
        statuses,
        [
            Publishing,
            Replicating,
            CatchingUp,
            ReadyForSwitchover,
            SwitchingOver,
            Completed
        ]
    );
    assert_eq!(
        told,
        [
            "published",
            "ready_for_switchover",
            "switching_over",
            "switched_over",
            "completed"
        ]
    );
    let switched_over = state.recovery.switched_over.unwrap();
    assert_eq!(switched_over.copied_bytes, 7);
}

#[test]
fn cancel_before_the_switchover_is_final_undoes_all_in_the_order_that_keeps_the_original_safe() {
    use Undo::{PutBack, ReleaseMount, RemoveStandby, StopInstance};
    for (state, expected) in [
        (
            run_to(SessionKind::Recover, 0, Some(Step::Mount)),
            &[ReleaseMount][..],
        ),
        (
            run_to(SessionKind::Recover, 0, Some(Step::SetAside)),
            &[PutBack, ReleaseMount],
        ),
        (
            run_to(SessionKind::Recover, 0, Some(Step::Recover)),
            &[StopInstance, PutBack, ReleaseMount],
        ),
        (
            run_to(SessionKind::Recover, 0, Some(Step::Replicate)),
            &[RemoveStandby, StopInstance, PutBack, ReleaseMount],
        ),
        (
            ready(),
            &[RemoveStandby, StopInstance, PutBack, ReleaseMount],
        ),
        (
            switching(Step::Compare),
            &[RemoveStandby, StopInstance, PutBack, ReleaseMount],
        ),
    ] {
        let (state, undone) = undo_all(take(&state, Input::Cancel).0);
        assert_eq!(undone, expected);
        assert_eq!(state.status(), SessionStatus::Cancelled);
    }
}

#[test]
fn from_the_comparison_on_it_goes_forward_only() {
    for step in [Step::Settle, Step::StartFinal] {
        let state = switching(step);
        let Refusal(problem) = apply(&state, Input::Cancel).unwrap_err();
        assert_eq!(problem.code, ErrorCode::NotPossibleNow);
        // Neither the loss of the mount nor a failure for good leads back.
        let lost = Input::MountLost {
            epoch: state.mount_epoch().unwrap(),
            problem: temporary(),
        };
        assert_eq!(take(&state, lost), (state.clone(), vec![]));
        for problem in [temporary(), permanent()] {
            let waiting = take(&state, failed(&state, problem)).0;
            assert!(apply(&waiting, Input::Cancel).is_err());
            let again = take(&waiting, Input::Retry).0;
            assert_eq!(again.phase, Phase::Running { step });
            let (ended, undone) = undo_all(go_to(again, None));
            assert_eq!(undone, [Undo::ReleaseMount]);
            assert_eq!(ended.status(), SessionStatus::Completed);
        }
    }
}

#[test]
fn a_switchover_that_fails_goes_back_and_the_session_is_ready_again_or_tries_again() {
    for step in SWITCHOVER {
        let by_hand = switching(step);
        let input = failed(&by_hand, temporary());
        let (back, effects) = take(&by_hand, input);
        assert_eq!(
            phases(&effects),
            ["switchover_failed", "step_started", "RUN"],
            "{step}"
        );
        assert_eq!(back.phase, Phase::Running { step: Step::Thaw });
        let again = go_to(back, None);
        assert_eq!(again.status(), SessionStatus::ReadyForSwitchover);
        assert!(!again.recovery.is_final);

        let mut automatic = switching(step);
        automatic.recovery.switchover = SwitchoverMode::Auto;
        let input = failed(&automatic, temporary());
        let back = take(&automatic, input).0;
        let waiting = take(&back, done(Step::Thaw, back.epoch)).0;
        assert_eq!(waiting.status(), SessionStatus::WaitingForRetry);
        assert_eq!(waiting.step(), Some(step));
        assert!(waiting.published.is_some(), "users go on working");
    }
}

#[test]
fn a_switchover_that_cannot_even_go_back_waits_and_a_retry_works_off_everything_again() {
    let state = switching(Step::StopPublished);
    let back = take(&state, failed(&state, temporary())).0;
    let waiting = take(&back, failed(&back, permanent())).0;
    assert_eq!(waiting.status(), SessionStatus::WaitingForManualRetry);
    let again = take(&waiting, Input::Retry).0;
    assert_eq!(
        again.phase,
        Phase::Running {
            step: Step::Validate
        }
    );
    assert_eq!(
        go_to(again, None).status(),
        SessionStatus::ReadyForSwitchover
    );
}

#[test]
fn a_switchover_begins_when_its_mode_says() {
    let at = Timestamp::UNIX_EPOCH;
    let scheduled = take(&ready(), Input::Switchover(SwitchoverOrder::At { at })).0;
    assert_eq!(scheduled.phase, Phase::Established);
    let due = Input::SwitchoverDue {
        epoch: scheduled.epoch,
    };
    let stale = Input::SwitchoverDue {
        epoch: scheduled.epoch - 1,
    };
    assert_eq!(take(&scheduled, stale), (scheduled.clone(), vec![]));
    assert_eq!(
        take(&scheduled, due).0.status(),
        SessionStatus::SwitchingOver
    );
    // A manual one is not begun by the clock.
    let manual = ready();
    let due = Input::SwitchoverDue {
        epoch: manual.epoch,
    };
    assert_eq!(take(&manual, due), (manual.clone(), vec![]));
    // Auto while it replicates: it begins as soon as it is ready.
    let copying = run_to(SessionKind::Recover, 0, Some(Step::Replicate));
    let (copying, effects) = take(&copying, Input::Switchover(SwitchoverOrder::Auto));
    assert_eq!(phases(&effects), ["switchover_changed"]);
    let state = go_to(copying, Some(Step::Checkpoint));
    assert_eq!(state.status(), SessionStatus::SwitchingOver);
    // Now, while it replicates, is refused; and nothing can be changed once it has begun.
    for (state, order) in [
        (
            run_to(SessionKind::Recover, 0, Some(Step::Replicate)),
            SwitchoverOrder::Now,
        ),
        (switching(Step::Checkpoint), SwitchoverOrder::Manual),
        (run_to(SessionKind::Publish, 0, None), SwitchoverOrder::Now),
    ] {
        let Refusal(problem) = apply(&state, Input::Switchover(order)).unwrap_err();
        assert_eq!(problem.code, ErrorCode::NotPossibleNow, "{order:?}");
    }
}

#[test]
fn a_lost_standby_is_made_again_while_users_go_on_and_a_lost_instance_is_started_again() {
    let state = ready();
    let epoch = state.epoch;
    let problem = temporary();
    let (waiting, _) = take(&state, Input::StandbyLost { epoch, problem });
    assert_eq!(waiting.status(), SessionStatus::WaitingForRetry);
    assert!(waiting.published.is_some());
    let problem = Problem::new(ErrorCode::InstanceFailed, "gone", "retry");
    let (waiting, _) = take(&state, Input::InstanceLost { epoch, problem });
    assert_eq!(waiting.published, None);
    let due = Input::RetryDue {
        attempt: waiting.attempt + 1,
        epoch: waiting.epoch,
    };
    let again = go_to(take(&waiting, due).0, None);
    assert_eq!(again.status(), SessionStatus::ReadyForSwitchover);
}

#[test]
fn a_published_session_becomes_a_recovery_and_keeps_its_instance() {
    let published = run_to(SessionKind::Publish, 0, None);
    let recovery = begin(SessionKind::Recover, 0).0.spec.recovery.unwrap();
    let input = Input::Recover {
        recovery: Box::new(recovery),
        switchover: SwitchoverMode::Manual,
        retry: RetryPolicy {
            automatic_max: 10,
            every_s: 300,
        },
    };
    let (state, effects) = take(&published, input.clone());
    assert_eq!(phases(&effects), ["STOP", "step_started", "RUN"]);
    // A place that is no good leaves the instance alone; another may be named.
    let refused = take(&state, failed(&state, permanent())).0;
    assert_eq!(refused.status(), SessionStatus::WaitingForManualRetry);
    let state = take(&refused, input.clone()).0;
    let state = go_to(state, None);
    assert_eq!(state.status(), SessionStatus::ReadyForSwitchover);
    assert_eq!(state.retry.automatic_max, 10);
    assert!(apply(&state, input).is_err(), "it is one already");
}
