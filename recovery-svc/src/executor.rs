//! One executor a session: carries out one activity at a time, ends it before the next begins, and reports what came of it.

use std::sync::Arc;
use std::time::Duration;

use common::ids::SessionId;
use common::problem::{ErrorCode, Problem};
use common::session::{Input, Undo};
use common::telemetry::session_span;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::activity::Activity;
use crate::service::Service;
use crate::steps::{self, Finished};
use crate::{undo, watching};

/// How long a report waits before it is tried again when the journal does not work.
const REPORT_AGAIN: Duration = Duration::from_secs(2);

/// Runs until the session has ended or the service stops.
pub(crate) async fn run(
    service: Arc<Service>,
    session_id: SessionId,
    mut orders: watch::Receiver<Activity>,
) {
    let mut child: JoinSet<()> = JoinSet::new();
    let mut stop_child = CancellationToken::new();
    let mut current = Activity::Rest;
    loop {
        let wanted = *orders.borrow_and_update();
        if wanted != current {
            // The one that lives ends first: a session has never two hands on its target.
            stop_child.cancel();
            while child.join_next().await.is_some() {}
            current = wanted;
            match wanted {
                Activity::End => break,
                Activity::Rest => {}
                Activity::Step { .. } | Activity::Undo { .. } | Activity::Watch { .. } => {
                    stop_child = service.stop.child_token();
                    let work =
                        perform(Arc::clone(&service), session_id, wanted, stop_child.clone());
                    child.spawn(work.instrument(session_span(session_id)));
                }
            }
            continue;
        }
        tokio::select! {
            () = service.stop.cancelled() => {
                while child.join_next().await.is_some() {}
                return;
            }
            changed = orders.changed() => if changed.is_err() { break },
            Some(ended) = child.join_next(), if !child.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%session_id, %error, "an activity broke down");
                    report(&service, session_id, broke_down(current), &service.stop).await;
                }
            }
        }
    }
    service.forget(session_id);
}

/// An activity that panicked counts as failed: a broken invariant ends a session, not the process.
fn broke_down(activity: Activity) -> Option<Input> {
    let problem = Problem::new(
        ErrorCode::Internal,
        "an activity of the session broke down",
        "see the log of recovery-svc and report this as a bug",
    );
    match activity {
        Activity::Step { step, epoch } => Some(Input::StepFailed {
            step,
            epoch,
            problem,
        }),
        Activity::Undo { what, epoch, .. } => Some(Input::UndoFailed {
            what,
            epoch,
            problem,
        }),
        Activity::Watch { epoch } => Some(Input::InstanceLost { epoch, problem }),
        Activity::Rest | Activity::End => None,
    }
}

async fn perform(
    service: Arc<Service>,
    session_id: SessionId,
    activity: Activity,
    stop: CancellationToken,
) {
    let stored = loop {
        match service.stored(session_id).await {
            Ok(Some(stored)) => break stored,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "read a session");
                if !pause(REPORT_AGAIN, &stop).await {
                    return;
                }
            }
        }
    };
    let input = match activity {
        Activity::Step { step, epoch } => {
            tracing::info!(%step, epoch, "run a step");
            let run = steps::Run {
                service: &service,
                stored: &stored,
                epoch,
                stop: &stop,
            };
            match steps::run(run, step).await {
                Finished::Done(outcome) => Some(Input::StepDone {
                    step,
                    epoch,
                    outcome,
                    duration_ms: 0,
                }),
                Finished::Failed(problem) => {
                    tracing::warn!(%step, error = %problem, "a step failed");
                    Some(Input::StepFailed {
                        step,
                        epoch,
                        problem,
                    })
                }
                Finished::Interrupted => None,
            }
        }
        Activity::Undo {
            what,
            epoch,
            after_s,
        } => {
            if !pause(Duration::from_secs(after_s.into()), &stop).await {
                return;
            }
            tracing::info!(?what, epoch, "undo");
            let done = match what {
                Undo::RemoveStandby => undo::remove_standby(&service, &stored).await,
                Undo::PutBack => undo::put_back(&service, &stored).await,
                Undo::StopInstance => undo::stop_instance(&service, &stored).await,
                Undo::ReleaseMount => undo::release_mount(&service, &stored, epoch, &stop).await,
            };
            match done {
                Finished::Done(_) => Some(Input::UndoDone { what, epoch }),
                Finished::Failed(problem) => {
                    tracing::warn!(?what, error = %problem, "an undo failed, it is tried again");
                    Some(Input::UndoFailed {
                        what,
                        epoch,
                        problem,
                    })
                }
                Finished::Interrupted => None,
            }
        }
        Activity::Watch { epoch } => watching::watch(&service, &stored, epoch, &stop).await,
        Activity::Rest | Activity::End => None,
    };
    report(&service, session_id, input, &stop).await;
}

/// Gives an input to the session, again and again while the journal does not work.
pub(crate) async fn report(
    service: &Arc<Service>,
    session_id: SessionId,
    input: Option<Input>,
    stop: &CancellationToken,
) {
    let Some(input) = input else { return };
    loop {
        match service.give(session_id, input.clone(), None).await {
            Ok(_) => return,
            Err(error) => tracing::error!(%session_id, %error, "write a transition"),
        }
        if !pause(REPORT_AGAIN, stop).await {
            return;
        }
    }
}

/// Waits; `false` when it was told to stop.
pub(crate) async fn pause(time: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}
