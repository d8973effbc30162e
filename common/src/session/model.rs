//! The machine, model-checked: every order of answers, duplicates, crashes, losses and commands within bounds.
//!
//! The world beside the session is what its effects make of it: activities that live, messages under way, and what is on the target.

use std::collections::BTreeSet;

use stateright::{Checker, Model, Property};

use super::table::{begin, outcome, permanent, temporary};
use super::*;
use crate::messages::SwitchoverOrder;

/// An activity of the executor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Live {
    Step(Step, u64),
    Undo(Undo, u64),
    Watch(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    session: SessionState,
    live: Vec<Live>,
    /// Unordered; a message may be delivered and stay.
    messages: BTreeSet<Input>,
    mount: bool,
    /// Epoch of the request that made the mount.
    mount_made_in: u64,
    instance: bool,
    /// The published instance takes no writes.
    frozen: bool,
    standby: bool,
    /// Both were seen at the same position, and nobody wrote since.
    equal: bool,
    final_runs: bool,
    user_wrote: bool,
    user_gave_up: bool,
    begun: BTreeSet<Undo>,
    undone: BTreeSet<Undo>,
    violation: Option<&'static str>,
    resumed: bool,
    retried_automatically: bool,
    crashes_left: u8,
    faults_left: u8,
    duplicates_left: u8,
    losses_left: u8,
    commands_left: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Action {
    /// The live activity succeeds and answers.
    Works,
    /// It fails without an effect.
    FailsForGood,
    /// It fails, its effect happens all the same.
    AnswerLost,
    Deliver(Input),
    DeliverAndKeep(Input),
    /// The service dies; with `true` a step that lived has its effect all the same.
    Crash(bool),
    Command(Input),
    /// The watch sees that something is gone.
    WatchSees,
    InstanceDies,
    MountDies,
}

#[derive(Debug, Clone)]
struct Machine {
    kind: SessionKind,
    automatic_max: u32,
    crashes: u8,
    faults: u8,
    duplicates: u8,
    losses: u8,
    commands: u8,
}

impl Machine {
    fn world(&self) -> World {
        let (session, effects) = begin(self.kind, self.automatic_max);
        let mut world = World {
            session,
            live: Vec::new(),
            messages: BTreeSet::new(),
            mount: false,
            mount_made_in: 0,
            instance: false,
            frozen: false,
            standby: false,
            equal: false,
            final_runs: false,
            user_wrote: false,
            user_gave_up: false,
            begun: BTreeSet::new(),
            undone: BTreeSet::new(),
            violation: None,
            resumed: false,
            retried_automatically: false,
            crashes_left: self.crashes,
            faults_left: self.faults,
            duplicates_left: self.duplicates,
            losses_left: self.losses,
            commands_left: self.commands,
        };
        world.carry_out(effects);
        world
    }
}

impl World {
    fn input(&mut self, input: Input) {
        let is_command = matches!(
            input,
            Input::Cancel | Input::Unpublish | Input::Retry | Input::Switchover(_)
        );
        let was_ended = self.session.is_ended();
        let is_automatic = matches!(input, Input::RetryDue { .. });
        match apply(&self.session, input.clone()) {
            Ok((next, effects)) => {
                if was_ended && (next != self.session || !effects.is_empty()) {
                    self.violation = Some("something happened after the end");
                }
                if matches!(input, Input::Cancel | Input::Unpublish) && next != self.session {
                    self.user_gave_up = true;
                }
                if is_automatic && next != self.session {
                    self.retried_automatically = true;
                }
                self.session = next;
                self.carry_out(effects);
            }
            Err(_) if is_command => {}
            Err(_) => self.violation = Some("an input that is no command was refused"),
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::RunStep { step, epoch } => {
                    match step {
                        Step::Mount => drop(self.begun.insert(Undo::ReleaseMount)),
                        Step::Start => drop(self.begun.insert(Undo::StopInstance)),
                        Step::SetAside => drop(self.begun.insert(Undo::PutBack)),
                        Step::Replicate => drop(self.begun.insert(Undo::RemoveStandby)),
                        _ => {}
                    }
                    self.begin(Live::Step(step, epoch));
                }
                Effect::Undo { what, epoch, .. } => self.begin(Live::Undo(what, epoch)),
                Effect::Watch { epoch } => self.begin(Live::Watch(epoch)),
                Effect::StopStep => self.live.clear(),
                Effect::ScheduleRetry { attempt, epoch, .. } => {
                    self.messages.insert(Input::RetryDue { attempt, epoch });
                }
                Effect::Emit(..) => {}
                Effect::Forget => {
                    if !self.live.is_empty() {
                        self.violation = Some("forgotten while something lives");
                    }
                }
            }
        }
    }

    fn begin(&mut self, live: Live) {
        if !self.live.is_empty() {
            self.violation = Some("two activities live");
        }
        self.live.push(live);
    }

    fn effect_of(&mut self, live: &Live) {
        match live {
            Live::Step(Step::Mount, epoch) => {
                self.mount = true;
                self.mount_made_in = *epoch;
            }
            Live::Step(Step::Start, _) => self.instance = true,
            Live::Step(Step::StartStandby, _) => self.standby = true,
            Live::Step(Step::Freeze, _) => self.frozen = true,
            Live::Step(Step::StopPublished, _) => self.instance = false,
            Live::Step(Step::StopStandby, _) => self.standby = false,
            Live::Step(Step::Compare, _) => {
                if self.instance || self.standby {
                    self.violation = Some("compared while one of them runs");
                }
                self.equal = true;
            }
            Live::Step(Step::Thaw, _) => {
                self.instance = self.mount;
                self.frozen = false;
            }
            Live::Step(Step::StartFinal, _) => {
                if self.instance || !self.equal {
                    self.violation = Some("the final instance starts without all that was written");
                }
                self.final_runs = true;
            }
            Live::Undo(what, _) => self.effect_of_undo(*what),
            Live::Step(..) | Live::Watch(_) => {}
        }
        // The worst that users can do: they write at once.
        if self.is_open() {
            self.user_wrote = true;
            self.equal = false;
        }
    }

    fn effect_of_undo(&mut self, what: Undo) {
        self.undone.insert(what);
        match what {
            Undo::RemoveStandby => self.standby = false,
            Undo::StopInstance => self.instance = false,
            Undo::PutBack => {
                if self.standby {
                    self.violation = Some("the original is put back over a standby");
                }
            }
            Undo::ReleaseMount => {
                if self.instance {
                    self.violation = Some("the mount is released under a running instance");
                }
                if self.user_wrote && !self.user_gave_up && !self.final_runs {
                    self.violation = Some("changes are thrown away that nobody gave up");
                }
                self.mount = false;
                self.user_wrote = false;
            }
        }
    }

    fn tell_loss(&mut self) {
        if let Some(Live::Watch(epoch)) = self.live.pop() {
            let problem = temporary();
            self.messages.insert(Input::InstanceLost { epoch, problem });
        }
    }

    /// Whether somebody can write now.
    fn is_open(&self) -> bool {
        match self.session.spec.kind {
            SessionKind::Publish => self.instance,
            SessionKind::Recover => self.instance && !self.frozen,
            SessionKind::Mount => self.mount,
        }
    }

    /// A switchover keeps what it made, and leaves aside what was set aside.
    fn to_be_undone(&self) -> BTreeSet<Undo> {
        if self.final_runs {
            return BTreeSet::from([Undo::ReleaseMount]);
        }
        self.begun.clone()
    }

    /// Nothing is stuck: whatever is not at rest has something under way that will move it.
    fn is_moving_or_at_rest(&self) -> bool {
        let epoch = self.session.epoch;
        match &self.session.phase {
            Phase::Running { step } => {
                self.live.contains(&Live::Step(*step, epoch))
                    || self.messages.iter().any(|message| match message {
                        Input::StepDone {
                            step: s, epoch: e, ..
                        }
                        | Input::StepFailed {
                            step: s, epoch: e, ..
                        } => s == step && *e == epoch,
                        _ => false,
                    })
            }
            Phase::Established => {
                self.live.contains(&Live::Watch(epoch))
                    || self.messages.iter().any(|message| match message {
                        Input::InstanceLost { epoch: e, .. }
                        | Input::SwitchoverDue { epoch: e } => *e == epoch,
                        _ => false,
                    })
            }
            Phase::Waiting {
                problem,
                next_attempt,
                ..
            } => {
                let scheduled = next_attempt.is_none_or(|attempt| {
                    self.messages.contains(&Input::RetryDue { attempt, epoch })
                });
                scheduled && !problem.message.is_empty() && self.live.is_empty()
            }
            Phase::Undoing { pending, .. } => pending.first().is_some_and(|what| {
                self.live.contains(&Live::Undo(*what, epoch))
                    || self.messages.iter().any(|message| match message {
                        Input::UndoDone { what: w, epoch: e }
                        | Input::UndoFailed {
                            what: w, epoch: e, ..
                        } => w == what && *e == epoch,
                        _ => false,
                    })
            }),
            Phase::Ended(_) => self.live.is_empty(),
        }
    }
}

fn answer(live: &Live) -> Option<Input> {
    match live {
        Live::Step(step, epoch) => Some(Input::StepDone {
            step: *step,
            epoch: *epoch,
            outcome: outcome(*step, *epoch),
            duration_ms: 1,
        }),
        Live::Undo(what, epoch) => Some(Input::UndoDone {
            what: *what,
            epoch: *epoch,
        }),
        Live::Watch(_) => None,
    }
}

fn failure(live: &Live, problem: Problem) -> Option<Input> {
    match live {
        Live::Step(step, epoch) => Some(Input::StepFailed {
            step: *step,
            epoch: *epoch,
            problem,
        }),
        Live::Undo(what, epoch) => Some(Input::UndoFailed {
            what: *what,
            epoch: *epoch,
            problem,
        }),
        Live::Watch(_) => None,
    }
}

impl Model for Machine {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.world()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if let Some(live) = world.live.first()
            && !matches!(live, Live::Watch(_))
        {
            actions.push(Action::Works);
            if world.faults_left > 0 {
                actions.push(Action::FailsForGood);
                actions.push(Action::AnswerLost);
            }
        }
        for message in &world.messages {
            actions.push(Action::Deliver(message.clone()));
            if world.duplicates_left > 0 {
                actions.push(Action::DeliverAndKeep(message.clone()));
            }
        }
        if world.crashes_left > 0 {
            actions.push(Action::Crash(false));
            if matches!(
                world.live.first(),
                Some(
                    Live::Step(
                        Step::Mount
                            | Step::Start
                            | Step::Freeze
                            | Step::StopPublished
                            | Step::Compare
                            | Step::StartFinal
                            | Step::Thaw,
                        _
                    ) | Live::Undo(..)
                )
            ) {
                actions.push(Action::Crash(true));
            }
        }
        if world.commands_left > 0 && !world.session.is_ended() {
            actions.push(Action::Command(Input::Retry));
            actions.push(Action::Command(Input::Cancel));
            actions.push(Action::Command(Input::Unpublish));
            if self.kind == SessionKind::Recover {
                let order = SwitchoverOrder::Now;
                actions.push(Action::Command(Input::Switchover(order)));
            }
        }
        if matches!(world.live.first(), Some(Live::Watch(_))) && !world.is_open() {
            actions.push(Action::WatchSees);
        }
        if world.losses_left > 0 {
            if world.instance {
                actions.push(Action::InstanceDies);
            }
            if world.mount {
                actions.push(Action::MountDies);
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Works => {
                let live = world.live.pop()?;
                world.effect_of(&live);
                world.messages.extend(answer(&live));
            }
            Action::FailsForGood => {
                let live = world.live.pop()?;
                world.faults_left -= 1;
                world.messages.extend(failure(&live, permanent()));
            }
            Action::AnswerLost => {
                let live = world.live.pop()?;
                world.faults_left -= 1;
                world.effect_of(&live);
                world.messages.extend(failure(&live, temporary()));
            }
            Action::Deliver(input) => {
                world.messages.remove(&input);
                world.input(input);
            }
            Action::DeliverAndKeep(input) => {
                world.duplicates_left -= 1;
                world.input(input);
            }
            Action::Crash(effect) => {
                world.crashes_left -= 1;
                if let (Some(live), true) = (world.live.first().cloned(), effect) {
                    world.effect_of(&live);
                }
                world.live.clear();
                // What the executor had answered itself died with it; the retry queue is the broker's.
                world
                    .messages
                    .retain(|message| matches!(message, Input::RetryDue { .. }));
                world.resumed |= matches!(world.session.phase, Phase::Running { .. });
                world.input(Input::Restarted);
            }
            Action::Command(input) => {
                world.commands_left -= 1;
                world.input(input);
            }
            Action::WatchSees => world.tell_loss(),
            Action::InstanceDies => {
                world.losses_left -= 1;
                world.instance = false;
            }
            Action::MountDies => {
                world.losses_left -= 1;
                world.mount = false;
                world.instance = false;
                let epoch = world.mount_made_in;
                let problem = temporary();
                world.messages.insert(Input::MountLost { epoch, problem });
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken on the way", |_, world: &World| {
                world.violation.is_none()
            }),
            Property::always("at most one activity lives", |_, world: &World| {
                world.live.len() <= 1
            }),
            Property::always(
                "automatic retries stay within their number",
                |machine: &Self, world: &World| {
                    world.session.automatic_used <= machine.automatic_max
                },
            ),
            Property::always(
                "a session moves, waits with a reason, or has ended",
                |_, world: &World| world.is_moving_or_at_rest(),
            ),
            Property::always(
                "an ended session has undone exactly what it began",
                |_, world: &World| {
                    !world.session.is_ended()
                        || (world.undone == world.to_be_undone() && !world.mount && !world.instance)
                },
            ),
            Property::always(
                "changes end only when someone gave them up",
                |_, world: &World| {
                    !(world.user_wrote
                        && !world.final_runs
                        && matches!(world.session.phase, Phase::Ended(Ending::Failed { .. })))
                },
            ),
            Property::sometimes("established", |_, world: &World| {
                world.session.phase == Phase::Established
            }),
            Property::sometimes("waits for someone", |_, world: &World| {
                world.session.status() == SessionStatus::WaitingForManualRetry
            }),
            Property::sometimes("failed", |_, world: &World| {
                world.session.status() == SessionStatus::Failed
            }),
            Property::sometimes("cancelled", |_, world: &World| {
                world.session.status() == SessionStatus::Cancelled
            }),
            Property::sometimes("completed", |_, world: &World| {
                world.session.status() == SessionStatus::Completed
            }),
            Property::sometimes("established after a crash in a step", |_, world: &World| {
                world.resumed && world.session.phase == Phase::Established
            }),
            Property::sometimes(
                "retried by itself when it may",
                |machine: &Self, world: &World| {
                    machine.automatic_max == 0 || world.retried_automatically
                },
            ),
        ]
    }
}

fn check(machine: Machine) {
    let checker = machine.checker().threads(2).spawn_bfs().join();
    assert!(
        checker.unique_state_count() < 3_000_000,
        "the bounds are too wide"
    );
    checker.assert_properties();
}

#[test]
fn publishing_keeps_its_promises_under_faults_crashes_and_commands() {
    check(Machine {
        kind: SessionKind::Publish,
        automatic_max: 0,
        crashes: 1,
        faults: 1,
        duplicates: 1,
        losses: 1,
        commands: 2,
    });
}

#[test]
fn automatic_retries_keep_their_promises() {
    check(Machine {
        kind: SessionKind::Publish,
        automatic_max: 2,
        crashes: 1,
        faults: 2,
        duplicates: 1,
        losses: 0,
        commands: 1,
    });
}

#[test]
fn a_recovery_keeps_its_promises_and_never_has_two_instances_or_none_with_all_that_was_written() {
    check(Machine {
        kind: SessionKind::Recover,
        automatic_max: 1,
        crashes: 1,
        faults: 1,
        duplicates: 0,
        losses: 0,
        commands: 2,
    });
}

#[test]
fn mounting_keeps_its_promises() {
    check(Machine {
        kind: SessionKind::Mount,
        automatic_max: 1,
        crashes: 1,
        faults: 1,
        duplicates: 1,
        losses: 1,
        commands: 2,
    });
}
