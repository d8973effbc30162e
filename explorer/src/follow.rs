//! Folds the events of one session into what people see of it. Pure: it knows no clock, broker or terminal.
//!
//! What must stay true: an event is applied once and in the order of its `sequence`, however often and in whatever order it
//! comes. What comes too early is held back; [`SessionView::has_gap`] says that something is missing, and
//! [`SessionView::resync`] fills it from the owner's own answer.

use std::collections::BTreeMap;

use common::ids::SessionId;
use common::messages::{
    Envelope, Event, EventBody, Mounted, Published, ReadyForSwitchover, SessionDetail, SessionKind,
    SessionLogLine, SessionStatus, Step, StepProgress, StepTiming, SwitchedOver, SwitchoverMode,
    Waiting, Warning,
};
use common::problem::Problem;
use jiff::Timestamp;

/// Most events that are held back while an earlier one is missing; more are dropped and asked for again.
const HELD_MAX: usize = 1_000;
/// The type of [`EventBody::SwitchoverFailed`], as a session's log has it.
const SWITCHOVER_FAILED: &str = "io.pginstant.session.switchover_failed.v1";

/// How a step of the present attempt stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StepState {
    /// It runs; the last word on how far it is.
    Running(Option<StepProgress>),
    /// It ended well after so many milliseconds.
    Done { duration_ms: u64 },
    /// It failed.
    Failed,
}

/// What is known of a session.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SessionView {
    pub(crate) session_id: SessionId,
    pub(crate) kind: Option<SessionKind>,
    pub(crate) status: Option<SessionStatus>,
    pub(crate) attempt: u32,
    pub(crate) steps: Vec<(Step, StepState)>,
    pub(crate) published: Option<Published>,
    pub(crate) mounted: Option<Mounted>,
    pub(crate) ready: Option<ReadyForSwitchover>,
    pub(crate) switched_over: Option<SwitchedOver>,
    /// Why the last switchover went back, and the number of the event that told it.
    went_back: Option<(u64, Problem)>,
    pub(crate) waiting: Option<Waiting>,
    /// Why it waits or failed.
    pub(crate) problem: Option<Problem>,
    pub(crate) warnings: Vec<Warning>,
    /// When the last event was made.
    pub(crate) changed_at: Option<Timestamp>,
    last_sequence: u64,
    held: BTreeMap<u64, Envelope<Event>>,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Folded {
    /// Another session's, or seen before.
    Ignored,
    /// An earlier one is missing.
    Held,
    /// The view has changed.
    Applied,
}

/// What the follower waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The instance runs or the files are mounted.
    Ready,
    /// The session has ended and what it made is undone.
    Gone,
    /// The switchover is done and the mount is gone.
    SwitchedOver,
}

/// How it came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// As was wanted.
    Reached,
    /// The session exists and waits to be tried again.
    Waits,
    /// The session failed.
    Failed(Option<Problem>),
    /// Someone else ended it meanwhile.
    EndedOtherwise(SessionStatus),
}

impl End {
    /// The exit code of a program that followed the session to this end.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            End::Reached => crate::exit::SUCCESS,
            End::Waits => crate::exit::NOT_FULFILLED,
            End::Failed(Some(problem)) => problem.code.exit_code(),
            End::Failed(None) | End::EndedOtherwise(_) => 1,
        }
    }
}

impl SessionView {
    /// A session of which nothing is known yet.
    pub(crate) fn new(session_id: SessionId) -> Self {
        Self {
            session_id,
            kind: None,
            status: None,
            attempt: 1,
            steps: Vec::new(),
            published: None,
            mounted: None,
            ready: None,
            switched_over: None,
            went_back: None,
            waiting: None,
            problem: None,
            warnings: Vec::new(),
            changed_at: None,
            last_sequence: 0,
            held: BTreeMap::new(),
        }
    }

    /// Number of the last event that the view includes.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// Whether later events are here and an earlier one is not.
    pub(crate) fn has_gap(&self) -> bool {
        !self.held.is_empty()
    }

    /// Folds one event in.
    pub(crate) fn apply(&mut self, envelope: Envelope<Event>) -> Folded {
        if envelope.subject.as_deref() != Some(self.session_id.to_string().as_str()) {
            return Folded::Ignored;
        }
        let Some(sequence) = envelope.sequence else {
            return Folded::Ignored;
        };
        if sequence <= self.last_sequence {
            return Folded::Ignored;
        }
        if self.held.len() < HELD_MAX {
            self.held.insert(sequence, envelope);
        }
        match self.apply_held() {
            true => Folded::Applied,
            false => Folded::Held,
        }
    }

    /// Takes over what the session's owner says, unless the events are ahead of it.
    pub(crate) fn resync(&mut self, detail: SessionDetail) -> Folded {
        let known = detail.log.last().map_or(0, |line| line.sequence);
        if detail.summary.session_id != self.session_id || known <= self.last_sequence {
            return Folded::Ignored;
        }
        let summary = detail.summary;
        self.kind = Some(summary.kind);
        self.status = Some(summary.status);
        self.attempt = summary.attempt;
        self.changed_at = detail.log.last().map(|line| line.at);
        self.steps = detail.steps.iter().map(done).collect();
        if let Some(step) = summary.step
            && !self.steps.iter().any(|(known, _)| *known == step)
        {
            let state = match summary.status {
                SessionStatus::Publishing
                | SessionStatus::Replicating
                | SessionStatus::CatchingUp
                | SessionStatus::SwitchingOver => StepState::Running(None),
                _ => StepState::Failed,
            };
            self.steps.push((step, state));
        }
        self.published = detail.published;
        self.mounted = detail.mounted;
        if let Some(recovery) = detail.recovery {
            self.ready =
                (summary.status == SessionStatus::ReadyForSwitchover).then(|| ReadyForSwitchover {
                    lag: recovery.lag.unwrap_or_default(),
                    switchover: recovery.switchover,
                    steps: detail.steps.clone(),
                });
            self.switched_over = recovery.switched_over;
            self.went_back = went_back_at(&detail.log).zip(recovery.went_back);
        }
        self.problem = summary.problem;
        self.waiting = detail.waiting;
        self.warnings = detail.warnings;
        self.last_sequence = known;
        self.held = self.held.split_off(&known.saturating_add(1));
        self.apply_held();
        Folded::Applied
    }

    /// Whether the goal is reached or cannot be any more. Only what happened after event `base` counts, so that a session
    /// that waited before `retry` is not taken for one that waits again.
    pub(crate) fn end(&self, goal: Goal, base: u64) -> Option<End> {
        use SessionStatus::*;
        let status = self.status.filter(|_| self.last_sequence > base)?;
        match (goal, status) {
            // The last step's `step_finished` has the new status already; what there is to tell comes with the next event.
            (Goal::Ready, Published) => self.published.is_some().then_some(End::Reached),
            (Goal::Ready, Mounted) => self.mounted.is_some().then_some(End::Reached),
            // With the mode `auto` it goes on by itself, up to the end.
            (Goal::Ready, ReadyForSwitchover) => self
                .ready
                .as_ref()
                .filter(|ready| ready.switchover != SwitchoverMode::Auto)
                .map(|_| End::Reached),
            (Goal::Ready | Goal::SwitchedOver, WaitingForRetry | WaitingForManualRetry) => {
                (self.waiting.is_some() || self.problem.is_some()).then_some(End::Waits)
            }
            (Goal::Ready | Goal::SwitchedOver, Completed) if self.switched_over.is_some() => {
                Some(End::Reached)
            }
            // A switchover that goes back ends in being ready again.
            (Goal::SwitchedOver, ReadyForSwitchover) => self
                .went_back
                .clone()
                .filter(|(sequence, _)| *sequence > base)
                .map(|(_, problem)| End::Failed(Some(problem))),
            (Goal::Ready | Goal::SwitchedOver, Completed | Cancelled) => {
                Some(End::EndedOtherwise(status))
            }
            (Goal::Gone, Completed | Cancelled) => Some(End::Reached),
            (Goal::Ready | Goal::Gone | Goal::SwitchedOver, Failed) => {
                Some(End::Failed(self.problem.clone()))
            }
            (
                Goal::Ready | Goal::SwitchedOver,
                Publishing | Replicating | CatchingUp | SwitchingOver | Cancelling | Unpublishing,
            )
            | (Goal::SwitchedOver, Published | Mounted) => None,
            (
                Goal::Gone,
                Publishing
                | Published
                | Mounted
                | Replicating
                | CatchingUp
                | ReadyForSwitchover
                | SwitchingOver
                | WaitingForRetry
                | WaitingForManualRetry
                | Cancelling
                | Unpublishing,
            ) => None,
        }
    }

    fn apply_held(&mut self) -> bool {
        let mut changed = false;
        while let Some(envelope) = self.held.remove(&(self.last_sequence + 1)) {
            self.last_sequence += 1;
            self.changed_at = envelope.time.or(self.changed_at);
            self.fold(envelope.payload);
            changed = true;
        }
        changed
    }

    fn fold(&mut self, event: Event) {
        self.kind = event.head.kind.or(self.kind);
        self.status = event.head.status.or(self.status);
        match event.body {
            EventBody::Accepted(_) | EventBody::CommandRejected(_) => {}
            EventBody::StepStarted(started) => {
                self.attempt = started.attempt;
                self.waiting = None;
                self.ready = None;
                self.problem = None;
                // A step that begins again takes those after it with it.
                let kind = self.kind.unwrap_or(SessionKind::Publish);
                let place = |step: Step| Step::of(kind).iter().position(|known| *known == step);
                if let Some(place_of_started) = place(started.step) {
                    self.steps
                        .retain(|(step, _)| place(*step).is_some_and(|at| at < place_of_started));
                }
                self.steps.push((started.step, StepState::Running(None)));
            }
            EventBody::StepProgress(progress) => {
                self.set(progress.step, StepState::Running(Some(progress)));
            }
            EventBody::StepFinished(finished) => {
                let duration_ms = finished.duration_ms;
                self.set(finished.step, StepState::Done { duration_ms });
            }
            EventBody::Published(published) => {
                self.steps = published.steps.iter().map(done).collect();
                self.published = Some(published);
            }
            EventBody::Mounted(mounted) => {
                self.steps = mounted.steps.iter().map(done).collect();
                self.mounted = Some(mounted);
            }
            EventBody::ReadyForSwitchover(ready) => {
                self.steps = ready.steps.iter().map(done).collect();
                self.ready = Some(ready);
            }
            EventBody::ReplicationLag(seen) => {
                if let Some(ready) = &mut self.ready {
                    ready.lag = seen.lag;
                }
            }
            EventBody::SwitchoverChanged(changed) => {
                if let Some(ready) = &mut self.ready {
                    ready.switchover = changed.switchover;
                }
            }
            EventBody::SwitchingOver(_) => self.went_back = None,
            EventBody::SwitchoverFailed(failed) => {
                self.fail(Some(failed.step));
                self.went_back = Some((self.last_sequence, failed.problem));
            }
            EventBody::SwitchedOver(switched_over) => {
                self.steps = switched_over.steps.iter().map(done).collect();
                self.published = None;
                self.ready = None;
                self.switched_over = Some(switched_over);
            }
            EventBody::Waiting(waiting) => {
                self.fail(waiting.step);
                self.attempt = waiting.attempt;
                self.problem = Some(waiting.problem.clone());
                self.published = None;
                self.waiting = Some(waiting);
            }
            EventBody::RetriesExhausted(exhausted) => self.problem = Some(exhausted.problem),
            EventBody::Retrying(retrying) => {
                self.attempt = retrying.attempt;
                self.waiting = None;
                self.problem = None;
            }
            EventBody::Cancelling(_) | EventBody::Unpublishing(_) => {
                self.published = None;
                self.mounted = None;
                self.ready = None;
                self.waiting = None;
            }
            EventBody::Cancelled(_) | EventBody::Completed(_) => self.waiting = None,
            EventBody::Failed(failed) => {
                self.fail(failed.step);
                self.waiting = None;
                self.problem = Some(failed.problem);
            }
            EventBody::Warning(warning) => {
                self.warnings.retain(|known| known.code != warning.code);
                self.warnings.push(warning);
            }
            EventBody::CacheStatistics(_) => {}
            EventBody::WarningCleared(cleared) => {
                self.warnings.retain(|known| known.code != cleared.code);
            }
        }
    }

    fn set(&mut self, step: Step, state: StepState) {
        match self.steps.iter_mut().find(|(known, _)| *known == step) {
            Some((_, known)) => *known = state,
            None => self.steps.push((step, state)),
        }
    }

    fn fail(&mut self, step: Option<Step>) {
        if let Some(step) = step {
            self.set(step, StepState::Failed);
        }
    }
}

/// Number of the latest event that told of a switchover going back.
fn went_back_at(log: &[SessionLogLine]) -> Option<u64> {
    let told = log.iter().rev();
    told.map(|line| (line.sequence, line.event_type.as_str()))
        .find(|(_, event_type)| *event_type == SWITCHOVER_FAILED)
        .map(|(sequence, _)| sequence)
}

fn done(timing: &StepTiming) -> (Step, StepState) {
    let duration_ms = timing.duration_ms;
    (timing.step, StepState::Done { duration_ms })
}

#[cfg(test)]
mod tests;
