//! Answers of mount-svc and retries that came back from the retry queue. Idempotent: epochs make repeated and late ones stale.

use std::sync::Arc;

use common::messages::{Internal, RetryDue, Step};
use common::problem::{ErrorCode, Problem};
use common::session::{Input, StepOutcome, Undo};
use jiff::SignedDuration;

use crate::service::{Service, Taken};
use crate::worker::Unhandled;

/// Takes an answer.
pub(crate) async fn take(
    service: &Arc<Service>,
    message: Internal,
) -> Result<&'static str, Unhandled> {
    let (session_id, input) = match message {
        Internal::MountReady(ready) => {
            let step = Step::Mount;
            let (session_id, epoch) = (ready.session_id, ready.epoch);
            let outcome = StepOutcome::Mounted(Box::new(ready));
            let input = Input::StepDone {
                step,
                epoch,
                outcome,
                duration_ms: 0,
            };
            (session_id, input)
        }
        Internal::MountProgress(progress) => {
            service.mount_advances(progress.session_id);
            let input = Input::Progress {
                step: Step::Mount,
                epoch: progress.epoch,
                text: progress.text,
                done_bytes: Some(progress.done_bytes),
                total_bytes: Some(progress.total_bytes),
            };
            (progress.session_id, input)
        }
        Internal::MountFailed(failed) => {
            let input = Input::StepFailed {
                step: Step::Mount,
                epoch: failed.epoch,
                problem: failed.problem,
            };
            (failed.session_id, input)
        }
        Internal::MountReleased(released) => {
            let (what, epoch) = (Undo::ReleaseMount, released.epoch);
            let input = match released.problem {
                None => Input::UndoDone { what, epoch },
                Some(problem) => Input::UndoFailed {
                    what,
                    epoch,
                    problem,
                },
            };
            (released.session_id, input)
        }
        Internal::MountLost(lost) => {
            let input = Input::MountLost {
                epoch: lost.epoch,
                problem: lost.problem,
            };
            (lost.session_id, input)
        }
        Internal::MountWarning(warning) => {
            let input = Input::MountWarning {
                code: warning.code,
                text: warning.text,
            };
            (warning.session_id, input)
        }
        Internal::RetryDue(due) => return retry_due(service, due).await,
        Internal::MountRequest(_) | Internal::MountRelease(_) => {
            return Err(Unhandled::Never(Problem::new(
                ErrorCode::UnknownMessageType,
                "this message is for mount-svc",
                "send it to mount.<server>",
            )));
        }
    };
    Ok(match service.give(session_id, input, None).await? {
        Taken::Accepted => "accepted",
        Taken::Duplicate => "duplicate",
        // The answer for a session that this journal does not know: nothing to do, and nobody to tell.
        Taken::Rejected(_) | Taken::Unknown => "rejected",
    })
}

/// After a long outage all retries come back at once: each begins at a random time of its own.
async fn retry_due(service: &Arc<Service>, due: RetryDue) -> Result<&'static str, Unhandled> {
    let jitter_max_ms = service.config.limits.retry_jitter_ms;
    let jitter_ms = match jitter_max_ms {
        0 => 0,
        max => service.env.random() % max,
    };
    let now = service.env.now();
    let jitter = SignedDuration::from_millis(i64::try_from(jitter_ms).unwrap_or(0));
    let at = now.checked_add(jitter).unwrap_or(now);
    service
        .fire_at(due.session_id, (due.attempt, due.epoch), at)
        .await?;
    Ok("accepted")
}
