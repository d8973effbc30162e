//! The steps. Each is idempotent: it finds what an earlier run left and goes on from there.

mod mount;
mod prepare;
mod recover;
pub(crate) mod recovery;
mod replicate;
mod set_aside;
pub(crate) mod standby;
mod switchover;
mod validate;

use std::sync::Arc;
use std::time::Duration;

use common::agent::hand::{InstanceOptions, InstanceStatus, Request, Response};
use common::config::TargetConfig;
use common::messages::Step;
use common::problem::{ErrorCode, Problem};
use common::session::{Input, SessionState, StepOutcome};
use tokio_util::sync::CancellationToken;

use crate::executor::report;
use crate::hand::{self, Hand};
use crate::service::Service;
use crate::stored::Stored;

pub(crate) use mount::{send, wait_for_answer};
pub(crate) use recover::stopped;
pub(crate) use validate::enough_space;

/// How an activity ended.
pub(crate) enum Finished {
    /// Well.
    Done(StepOutcome),
    /// Not well.
    Failed(Problem),
    /// It was told to stop, or its answer comes from elsewhere: nothing to report.
    Interrupted,
}

impl From<Result<StepOutcome, Problem>> for Finished {
    fn from(result: Result<StepOutcome, Problem>) -> Self {
        match result {
            Ok(outcome) => Finished::Done(outcome),
            Err(problem) => Finished::Failed(problem),
        }
    }
}

/// One run of a step.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) service: &'a Arc<Service>,
    pub(crate) stored: &'a Stored,
    pub(crate) epoch: u64,
    pub(crate) stop: &'a CancellationToken,
}

impl Run<'_> {
    pub(crate) fn state(&self) -> &SessionState {
        &self.stored.state
    }

    pub(crate) fn target(&self) -> Result<&TargetConfig, Problem> {
        self.service.config.target(&self.state().spec.target)
    }

    /// Tells how far the step is; while the broker is away only the last word matters, so none is kept for it.
    pub(crate) async fn progress(
        &self,
        step: Step,
        text: String,
        bytes: (Option<u64>, Option<u64>),
    ) {
        if !self.service.bus.health().connected {
            return;
        }
        let input = Input::Progress {
            step,
            epoch: self.epoch,
            text,
            done_bytes: bytes.0,
            total_bytes: bytes.1,
        };
        report(
            self.service,
            self.state().session_id,
            Some(input),
            self.stop,
        )
        .await;
    }

    pub(crate) async fn hand(&self) -> Result<Grip<'_>, Problem> {
        grip(self.service, self.state()).await
    }
}

/// A greeted connection to the agent whose requests count against the service's limit.
pub(crate) struct Grip<'a> {
    service: &'a Service,
    hand: Arc<dyn Hand>,
}

/// Opens a connection to the agent of a session's target.
pub(crate) async fn grip<'a>(
    service: &'a Service,
    state: &SessionState,
) -> Result<Grip<'a>, Problem> {
    let target = service.config.target(&state.spec.target)?;
    let hand = service.hands.open(&state.spec.target, target).await?;
    hand::greet(hand.as_ref()).await?;
    Ok(Grip { service, hand })
}

impl Grip<'_> {
    /// Asks, and waits for a turn when the limit of requests is reached.
    pub(crate) async fn ask(
        &self,
        request: Request,
        timeout: Duration,
    ) -> Result<Response, Problem> {
        let permit = self.service.hand_permits.acquire().await;
        let _permit = permit.map_err(|_| {
            Problem::new(
                ErrorCode::Internal,
                "the limit of requests is closed",
                "report this as a bug",
            )
        })?;
        self.hand.request(request, timeout).await
    }

    /// Asks for something whose answer is `done`.
    pub(crate) async fn act(&self, request: Request) -> Result<(), Problem> {
        match self.ask(request, hand::ACT_FOR).await? {
            Response::Done => Ok(()),
            other => Err(hand::unexpected("a request", &other)),
        }
    }
}

/// Runs a step.
pub(crate) async fn run(run: Run<'_>, step: Step) -> Finished {
    match step {
        Step::Validate => validate::run(run).await.into(),
        Step::Mount => mount::run(run).await,
        Step::Prepare => prepare::run(run).await.into(),
        Step::Start => start(run).await.into(),
        Step::Recover => recover::run(run).await,
        Step::SetAside => set_aside::run(run).await.into(),
        Step::Replicate => replicate::run(run).await,
        Step::StartStandby => standby::start(run).await.into(),
        Step::CatchUp => standby::catch_up(run).await,
        Step::Checkpoint => switchover::checkpoint(run).await.into(),
        Step::Freeze => switchover::freeze(run).await,
        Step::StopPublished => switchover::stop_published(run).await.into(),
        Step::StopStandby => switchover::stop_standby(run).await.into(),
        Step::Compare => switchover::compare(run).await.into(),
        Step::Settle => switchover::settle(run).await.into(),
        Step::StartFinal => switchover::start_final(run).await,
        Step::Thaw => switchover::thaw(run).await.into(),
    }
}

async fn start(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let request = Request::StartInstance {
        place: run.state().spec.place.clone(),
        instance: prepared(run.state())?,
    };
    run.hand().await?.act(request).await?;
    Ok(StepOutcome::Done)
}

/// The options with which the instance was prepared.
pub(crate) fn prepared(state: &SessionState) -> Result<InstanceOptions, Problem> {
    state.instance.clone().ok_or_else(|| {
        Problem::new(
            ErrorCode::Internal,
            "the session has no prepared instance",
            "report this as a bug",
        )
    })
}

/// The published instance is not there any more, with its last words if there are any.
async fn instance_ended(run: &Run<'_>) -> Problem {
    let words = async {
        let request = Request::InstanceStatus {
            place: run.state().spec.place.clone(),
            instance: prepared(run.state())?,
        };
        run.hand().await?.ask(request, hand::LOOK_FOR).await
    };
    match words.await {
        Ok(Response::Instance(InstanceStatus::Stopped { last_log_lines })) => {
            stopped(&last_log_lines)
        }
        Ok(_) | Err(_) => stopped(&[]),
    }
}

/// Whether PostgreSQL runs that was prepared like this.
async fn instance_runs(
    hand: &Grip<'_>,
    state: &SessionState,
    instance: InstanceOptions,
) -> Result<bool, Problem> {
    let place = state.spec.place.clone();
    let request = Request::InstanceStatus { place, instance };
    match hand.ask(request, hand::LOOK_FOR).await? {
        Response::Instance(InstanceStatus::Stopped { .. }) => Ok(false),
        Response::Instance(InstanceStatus::Recovering { .. } | InstanceStatus::Ready { .. }) => {
            Ok(true)
        }
        other => Err(hand::unexpected("the instance's status", &other)),
    }
}
