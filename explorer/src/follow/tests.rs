//! Folding: duplicates, disorder, gaps, and how a session comes out.

use common::messages::{
    Accepted, EventHead, Lag, Payload, RecoveryDetail, RetriesExhausted, Retrying, SessionLogLine,
    SessionSummary, Severity, StepFinished, StepStarted, SwitchingOver, SwitchoverFailed,
    WarningCleared, WarningCode,
};
use common::problem::ErrorCode;
use uuid::Uuid;

use super::*;
use crate::output::samples;

fn event(sequence: u64, status: SessionStatus, body: impl Into<EventBody>) -> Envelope<Event> {
    Envelope {
        id: Uuid::from_u128(u128::from(sequence)),
        source: "/test".into(),
        subject: Some(samples::ID.into()),
        time: Some("2026-11-21T04:00:00Z".parse().unwrap()),
        sequence: Some(sequence),
        traceparent: None,
        tracestate: None,
        payload: Event {
            head: EventHead {
                server: "backup1".parse().unwrap(),
                kind: Some(SessionKind::Publish),
                status: Some(status),
                severity: Severity::Info,
            },
            body: body.into(),
        },
    }
}

fn accepted() -> Accepted {
    Accepted {
        command_id: samples::ID.parse().unwrap(),
        repository: "main".parse().unwrap(),
        backup: None,
        target: "db1".parse().unwrap(),
        port: None,
        reason: None,
    }
}

fn started(step: Step) -> StepStarted {
    StepStarted { step, attempt: 1 }
}

fn finished(step: Step, duration_ms: u64) -> StepFinished {
    StepFinished { step, duration_ms }
}

/// A publish that goes well.
fn story() -> Vec<Envelope<Event>> {
    use SessionStatus::{Published, Publishing};
    vec![
        event(1, Publishing, accepted()),
        event(2, Publishing, started(Step::Validate)),
        event(3, Publishing, finished(Step::Validate, 210)),
        event(4, Publishing, started(Step::Mount)),
        event(5, Publishing, finished(Step::Mount, 480)),
        event(6, Published, samples::published()),
    ]
}

fn fold(events: impl IntoIterator<Item = Envelope<Event>>) -> SessionView {
    let mut view = SessionView::new(samples::ID.parse().unwrap());
    for event in events {
        view.apply(event);
    }
    view
}

fn detail(status: SessionStatus, sequence: u64) -> SessionDetail {
    let [summary, _] = <[SessionSummary; 2]>::try_from(samples::sessions()).unwrap();
    SessionDetail {
        summary: SessionSummary { status, ..summary },
        steps: samples::timings(),
        published: (status == SessionStatus::Published).then(samples::published),
        mounted: None,
        recovery: None,
        waiting: None,
        cache: None,
        warnings: Vec::new(),
        reason: None,
        log: vec![SessionLogLine {
            at: "2026-11-21T04:00:09Z".parse().unwrap(),
            sequence,
            event_type: "io.pginstant.session.published.v1".into(),
            text: "published".into(),
        }],
    }
}

#[test]
fn duplicates_and_disorder_change_nothing_in_the_end() {
    let straight = fold(story());
    assert_eq!(straight.last_sequence(), 6);
    assert_eq!(straight.published, Some(samples::published()));
    let doubled = fold(story().into_iter().flat_map(|event| [event.clone(), event]));
    assert_eq!(doubled, straight);
    let reversed = fold(story().into_iter().rev());
    assert_eq!(reversed, straight);
    let twice = fold(story().into_iter().chain(story()));
    assert_eq!(twice, straight);
}

#[test]
fn a_session_is_ready_only_when_it_is_known_where() {
    let mut events = story();
    let published = events.pop().unwrap();
    events.pop();
    // recovery-svc tells the new status with the end of the last step already.
    events.push(event(
        5,
        SessionStatus::Published,
        finished(Step::Mount, 480),
    ));
    let mut view = fold(events);
    assert_eq!(view.end(Goal::Ready, 0), None);
    view.apply(published);
    assert_eq!(view.end(Goal::Ready, 0), Some(End::Reached));
}

#[test]
fn what_comes_after_a_gap_is_held_back_until_the_gap_is_filled() {
    let mut missing = story();
    let lost = missing.remove(2);
    let mut view = fold(missing);
    assert!(view.has_gap());
    assert_eq!(view.last_sequence(), 2);
    assert_eq!(view.end(Goal::Ready, 0), None);
    assert_eq!(view.apply(lost), Folded::Applied);
    assert!(!view.has_gap());
    assert_eq!(view.end(Goal::Ready, 0), Some(End::Reached));
}

#[test]
fn the_owners_answer_fills_a_gap_and_an_old_answer_changes_nothing() {
    let mut view = fold(story().into_iter().skip(3));
    assert!(view.has_gap());
    assert_eq!(
        view.resync(detail(SessionStatus::Publishing, 4)),
        Folded::Applied
    );
    assert!(!view.has_gap());
    assert_eq!(view.last_sequence(), 6);
    assert_eq!(view.end(Goal::Ready, 0), Some(End::Reached));
    let before = view.clone();
    assert_eq!(
        view.resync(detail(SessionStatus::Publishing, 5)),
        Folded::Ignored
    );
    assert_eq!(view, before);
}

#[test]
fn another_sessions_events_are_ignored() {
    let mut other = event(1, SessionStatus::Publishing, accepted());
    other.subject = Some(samples::OTHER_ID.into());
    let mut view = SessionView::new(samples::ID.parse().unwrap());
    assert_eq!(view.apply(other), Folded::Ignored);
    assert_eq!(view.last_sequence(), 0);
}

#[test]
fn a_step_that_begins_again_takes_those_after_it_with_it() {
    let mut view = fold(story().into_iter().take(5));
    view.apply(event(
        6,
        SessionStatus::WaitingForManualRetry,
        samples::waiting(),
    ));
    assert_eq!(view.steps.last(), Some(&(Step::Start, StepState::Failed)));
    assert_eq!(view.problem, Some(samples::problem()));
    let retrying = Retrying {
        attempt: 3,
        manual: true,
    };
    view.apply(event(7, SessionStatus::Publishing, retrying));
    assert_eq!(
        (view.attempt, view.waiting.clone(), view.problem.clone()),
        (3, None, None)
    );
    view.apply(event(8, SessionStatus::Publishing, started(Step::Mount)));
    let expected = [
        (Step::Validate, StepState::Done { duration_ms: 210 }),
        (Step::Mount, StepState::Running(None)),
    ];
    assert_eq!(view.steps, expected);
}

#[test]
fn a_warning_holds_until_it_is_cleared() {
    let code = WarningCode::BaseUnreachable;
    let text = "reads wait".to_owned();
    let mut view = fold([event(1, SessionStatus::Published, Warning { code, text })]);
    assert_eq!(view.warnings.len(), 1);
    view.apply(event(2, SessionStatus::Published, WarningCleared { code }));
    assert!(view.warnings.is_empty());
}

#[test]
fn every_end_has_its_exit_code() {
    use SessionStatus::*;
    let failed = |code| common::messages::Failed {
        step: Some(Step::Validate),
        problem: Problem::new(code, "it failed", "mend it"),
    };
    let exhausted = RetriesExhausted {
        automatic_retries: 10,
        problem: samples::problem(),
    };
    let table: Vec<(Goal, Envelope<Event>, Option<u8>)> = vec![
        (Goal::Ready, event(1, Publishing, accepted()), None),
        (
            Goal::Ready,
            event(1, Published, samples::published()),
            Some(0),
        ),
        (Goal::Ready, event(1, Mounted, samples::mounted()), Some(0)),
        (
            Goal::Ready,
            event(1, WaitingForRetry, samples::waiting()),
            Some(2),
        ),
        (
            Goal::Ready,
            event(1, WaitingForManualRetry, exhausted),
            Some(2),
        ),
        (
            Goal::Ready,
            event(1, Failed, failed(ErrorCode::PortInUse)),
            Some(73),
        ),
        (
            Goal::Ready,
            event(1, Failed, failed(ErrorCode::CorruptBackup)),
            Some(65),
        ),
        (
            Goal::Ready,
            event(1, Failed, failed(ErrorCode::InstanceFailed)),
            Some(1),
        ),
        (
            Goal::Ready,
            event(1, Cancelling, common::messages::Cancelling {}),
            None,
        ),
        (
            Goal::Ready,
            event(1, Cancelled, common::messages::Cancelled {}),
            Some(1),
        ),
        (Goal::Gone, event(1, Published, samples::published()), None),
        (
            Goal::Gone,
            event(1, Unpublishing, common::messages::Unpublishing {}),
            None,
        ),
        (
            Goal::Gone,
            event(1, WaitingForManualRetry, samples::waiting()),
            None,
        ),
        (
            Goal::Gone,
            event(1, Completed, common::messages::Completed {}),
            Some(0),
        ),
        (
            Goal::Gone,
            event(1, Cancelled, common::messages::Cancelled {}),
            Some(0),
        ),
        (
            Goal::Gone,
            event(1, Failed, failed(ErrorCode::IoFailed)),
            Some(74),
        ),
    ];
    for (goal, event, expected) in table {
        let shown = format!("{goal:?} {event:?}");
        let end = fold([event]).end(goal, 0);
        assert_eq!(end.map(|end| end.exit_code()), expected, "{shown}");
    }
}

#[test]
fn a_session_that_waited_before_a_retry_is_not_taken_for_one_that_waits_again() {
    let mut view = SessionView::new(samples::ID.parse().unwrap());
    view.resync(detail(SessionStatus::WaitingForManualRetry, 9));
    let base = view.last_sequence();
    assert_eq!(view.end(Goal::Ready, base), None);
    let retrying = Retrying {
        attempt: 2,
        manual: true,
    };
    view.apply(event(10, SessionStatus::Publishing, retrying));
    assert_eq!(view.end(Goal::Ready, base), None);
    view.apply(event(
        11,
        SessionStatus::WaitingForManualRetry,
        samples::waiting(),
    ));
    assert_eq!(view.end(Goal::Ready, base), Some(End::Waits));
}

#[test]
fn a_switchover_that_went_back_is_a_failure_once_the_session_is_ready_again() {
    use SessionStatus::{CatchingUp, ReadyForSwitchover as Ready, SwitchingOver as Switching};
    let mut view = SessionView::new(samples::ID.parse().unwrap());
    let started = |step| StepStarted { step, attempt: 1 };
    let failed = SwitchoverFailed {
        step: Step::Freeze,
        problem: samples::problem(),
    };
    for told in [
        event(1, Switching, SwitchingOver { manual: true }),
        event(2, Switching, started(Step::Freeze)),
        event(3, Switching, failed),
        event(4, Switching, started(Step::Thaw)),
        event(5, CatchingUp, started(Step::StartStandby)),
    ] {
        assert_eq!(view.apply(told), Folded::Applied);
        assert_eq!(view.end(Goal::SwitchedOver, 0), None);
    }
    let ready = ReadyForSwitchover {
        lag: Lag::default(),
        switchover: SwitchoverMode::Manual,
        steps: Vec::new(),
    };
    view.apply(event(6, Ready, ready));
    let end = view.end(Goal::SwitchedOver, 0);
    assert_eq!(end, Some(End::Failed(Some(samples::problem()))));
}

#[test]
fn a_switchover_that_went_back_unseen_is_a_failure_when_the_sessions_owner_tells_it() {
    let mut told = detail(SessionStatus::ReadyForSwitchover, 7);
    let line = told.log[0].clone();
    let failed = SessionLogLine {
        sequence: 4,
        event_type: SWITCHOVER_FAILED.to_owned(),
        ..line.clone()
    };
    told.log = vec![failed, line];
    told.recovery = Some(RecoveryDetail {
        data_directory: "/srv/pg".into(),
        switchover: SwitchoverMode::Manual,
        lag: None,
        switched_over: None,
        went_back: Some(samples::problem()),
    });
    let body = EventBody::SwitchoverFailed(SwitchoverFailed {
        step: Step::Freeze,
        problem: samples::problem(),
    });
    assert_eq!(body.type_name(), SWITCHOVER_FAILED);
    let mut view = SessionView::new(samples::ID.parse().unwrap());
    assert_eq!(view.resync(told), Folded::Applied);
    let end = view.end(Goal::SwitchedOver, 3);
    assert_eq!(end, Some(End::Failed(Some(samples::problem()))));
    // One that went back before the order is another one.
    assert_eq!(view.end(Goal::SwitchedOver, 5), None);
}

#[test]
fn a_session_that_was_ready_and_is_cancelled_is_not_ready_any_more() {
    use SessionStatus::{Cancelled, Cancelling, ReadyForSwitchover as Ready};
    let ready = ReadyForSwitchover {
        lag: Lag::default(),
        switchover: SwitchoverMode::Manual,
        steps: Vec::new(),
    };
    let view = fold([
        event(1, Ready, ready),
        event(2, Cancelling, common::messages::Cancelling {}),
        event(3, Cancelled, common::messages::Cancelled {}),
    ]);
    assert_eq!(view.end(Goal::Gone, 1), Some(End::Reached));
    assert_eq!(view.ready, None);
}
