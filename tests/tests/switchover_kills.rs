//! Each process killed at each step of a switchover: the step is held while that is done, so that every one is really hit.

use anyhow::{Context, Result, ensure};
use common::messages::{EventBody, Step};
use tests::gate::{Gate, Held, Moment, request_of};
use tests::ready::Ready;
use tests::recoverable::{World, WorldOptions};
use tests::victims;

const STEPS: [Step; 7] = [
    Step::Checkpoint,
    Step::Freeze,
    Step::StopPublished,
    Step::StopStandby,
    Step::Compare,
    Step::Settle,
    Step::StartFinal,
];

#[derive(Debug, Clone, Copy)]
enum Victim {
    RecoverySvc,
    MountSvc,
    /// The agent's hand, and what connects recovery-svc with it.
    Hand,
    Supervisor,
    Worker,
    Published,
    Standby,
    Final,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The step is done as if nothing had happened.
    GoesOn,
    /// The switchover fails at this step and goes back; users go on.
    GoesBack(Step),
    /// The session waits and tries again by itself.
    Waits,
}

/// When who is killed, and what comes of it.
#[derive(Debug, Clone, Copy)]
struct Point {
    step: Step,
    moment: Moment,
    victim: Victim,
    outcome: Outcome,
}

impl Point {
    fn hold(&self, gate: &Gate) -> Result<()> {
        gate.want(self.moment, request_of(self.step)?)
    }

    /// Whether the next step comes without anybody's order.
    fn stays_under_way(&self) -> bool {
        match self.outcome {
            Outcome::GoesOn => true,
            Outcome::GoesBack(_) => false,
            Outcome::Waits => is_final(self.step),
        }
    }
}

/// Whether the step goes forward only.
fn is_final(step: Step) -> bool {
    matches!(step, Step::Settle | Step::StartFinal)
}

async fn killed_at(points: Vec<Point>) -> Result<()> {
    let options = WorldOptions {
        gate: true,
        ..WorldOptions::default()
    };
    let world = World::with(15, options).await?;
    let mut ready = Ready::of(world).await?;
    let gate = ready.world.system.gate()?;
    points.first().context("a point")?.hold(&gate)?;
    ready.order().await?;
    for (number, point) in points.iter().enumerate() {
        let next = points.get(number + 1);
        at(&mut ready, &gate, point, next)
            .await
            .with_context(|| format!("{point:?}"))?;
    }
    gate.is_open()?;
    if !points.last().is_some_and(Point::stays_under_way) {
        ready.order().await?;
    }
    let count = |word: &str| ready.history.count(&ready.id, word);
    let expected = |is: fn(&Point) -> bool| points.iter().filter(|point| is(point)).count();
    let (failed, waited) = (count("switchover_failed"), count("waiting"));
    let words = format!("{:?}", ready.history.words().get(&ready.id));
    ready.ends_well().await?;
    let back = expected(|point| matches!(point.outcome, Outcome::GoesBack(_)));
    let waits = expected(|point| point.outcome == Outcome::Waits);
    // A mount that is gone may be noticed by the step first: it tries to go back before it waits.
    let tries = expected(|point| point.outcome == Outcome::Waits && !is_final(point.step));
    ensure!(
        (back..=back + tries).contains(&failed) && waited == waits,
        "{failed} times gone back, {waited} times waited: {words}"
    );
    Ok(())
}

async fn at(ready: &mut Ready, gate: &Gate, point: &Point, next: Option<&Point>) -> Result<()> {
    let held = gate.holds().await?;
    ready.is_in(point.step).await?;
    let failed_before = ready.history.count(&ready.id, "switchover_failed");
    let waited_before = ready.history.count(&ready.id, "waiting");
    // What goes on must not pass by the next point.
    if let (true, Some(next)) = (point.stays_under_way(), next) {
        next.hold(gate)?;
    }
    kill(ready, point.victim, held)?;
    gate.release()?;
    match point.outcome {
        Outcome::GoesOn => return Ok(()),
        Outcome::GoesBack(step) => {
            let failed = ready
                .history
                .until_count(&ready.id, "switchover_failed", failed_before + 1)
                .await?;
            let EventBody::SwitchoverFailed(failed) = failed.event.body else {
                anyhow::bail!("{failed:?}");
            };
            ensure!(failed.step == step, "{failed:?}");
        }
        Outcome::Waits => {
            ready
                .history
                .until_count(&ready.id, "waiting", waited_before + 1)
                .await?;
        }
    }
    if point.stays_under_way() {
        return Ok(());
    }
    ready.is_ready_again().await?;
    match next {
        Some(next) => {
            next.hold(gate)?;
            ready.order().await
        }
        None => Ok(()),
    }
}

fn kill(ready: &mut Ready, victim: Victim, held: Held) -> Result<()> {
    match victim {
        Victim::RecoverySvc => {
            let service = &mut ready.world.system.recovery_svc;
            service.kill();
            // Its answer would reach nobody.
            victims::kill(held.gate)?;
            service.start_again()
        }
        Victim::MountSvc => ready.world.system.mount_svc.start_again(),
        Victim::Hand => {
            victims::kill(held.agent)?;
            victims::kill(held.gate)
        }
        Victim::Supervisor => victims::kill(victims::agent(&ready.id, "supervise")?),
        Victim::Worker => victims::kill(victims::agent(&ready.id, "worker")?),
        Victim::Published => victims::kill(victims::postmaster(&ready.detail)?),
        Victim::Standby | Victim::Final => victims::kill(ready.final_postmaster()?),
    }
}

#[tokio::test]
async fn recovery_svc_killed_at_each_step_of_a_switchover_goes_on_with_it() -> Result<()> {
    let both = |step| {
        [Moment::Before, Moment::After].map(|moment| Point {
            step,
            moment,
            victim: Victim::RecoverySvc,
            outcome: Outcome::GoesOn,
        })
    };
    killed_at(STEPS.into_iter().flat_map(both).collect()).await
}

#[tokio::test]
async fn mount_svc_and_worker_killed_at_each_step_of_a_switchover_are_not_noticed() -> Result<()> {
    let each = |step| {
        [
            (Moment::Before, Victim::MountSvc),
            (Moment::After, Victim::Worker),
        ]
        .map(|(moment, victim)| Point {
            step,
            moment,
            victim,
            outcome: Outcome::GoesOn,
        })
    };
    killed_at(STEPS.into_iter().flat_map(each).collect()).await
}

#[tokio::test]
async fn a_hand_killed_at_each_step_of_a_switchover_makes_it_go_back_or_later_try_again()
-> Result<()> {
    let each = |step| Point {
        step,
        moment: match step {
            Step::StopStandby | Step::Compare => Moment::Before,
            _ => Moment::After,
        },
        victim: Victim::Hand,
        outcome: match is_final(step) {
            true => Outcome::Waits,
            false => Outcome::GoesBack(step),
        },
    };
    killed_at(STEPS.into_iter().map(each).collect()).await
}

#[tokio::test]
async fn a_supervisor_killed_at_each_step_of_a_switchover_is_waited_for_or_not_needed_any_more()
-> Result<()> {
    let each = |step| Point {
        step,
        moment: Moment::Before,
        victim: Victim::Supervisor,
        outcome: match is_final(step) {
            true => Outcome::GoesOn,
            false => Outcome::Waits,
        },
    };
    // It is killed once only after the last order: there is no mount any more then.
    let steps = STEPS.into_iter().filter(|step| *step != Step::StartFinal);
    killed_at(steps.map(each).collect()).await
}

#[tokio::test]
async fn a_postgresql_killed_at_each_step_of_a_switchover_that_it_lives_in_makes_it_go_back_or_later_try_again()
-> Result<()> {
    let points = [
        (
            Step::Checkpoint,
            Moment::Before,
            Victim::Published,
            Outcome::GoesBack(Step::Checkpoint),
        ),
        (
            Step::Freeze,
            Moment::After,
            Victim::Published,
            Outcome::GoesBack(Step::Freeze),
        ),
        (
            Step::StopPublished,
            Moment::Before,
            Victim::Published,
            Outcome::GoesBack(Step::Compare),
        ),
        (
            Step::Freeze,
            Moment::Before,
            Victim::Standby,
            Outcome::GoesBack(Step::Freeze),
        ),
        (
            Step::StopPublished,
            Moment::Before,
            Victim::Standby,
            Outcome::GoesBack(Step::Compare),
        ),
        (
            Step::StopStandby,
            Moment::Before,
            Victim::Standby,
            Outcome::GoesBack(Step::Compare),
        ),
        (
            Step::StartFinal,
            Moment::After,
            Victim::Final,
            Outcome::Waits,
        ),
    ];
    let points = points.map(|(step, moment, victim, outcome)| Point {
        step,
        moment,
        victim,
        outcome,
    });
    killed_at(points.to_vec()).await
}
