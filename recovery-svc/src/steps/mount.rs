//! Mount: mount-svc is asked through the outbox; its answer comes to the queue and ends the step from there.

use std::time::Duration;

use common::ids::SessionId;
use common::journal::JournalError;
use common::messages::{Internal, MountRequest};
use common::problem::{ErrorCode, Problem};
use tokio_util::sync::CancellationToken;

use super::{Finished, Run};
use crate::executor::pause;
use crate::service::Service;
use crate::stored::Stored;

const TICK: Duration = Duration::from_secs(1);

pub(super) async fn run(run: Run<'_>) -> Finished {
    let spec = &run.state().spec;
    // A retry must get the backup that it had: its changes belong to that one.
    let opened = run.state().mount.as_ref().map(|mount| mount.backup.clone());
    let request = MountRequest {
        session_id: run.state().session_id,
        epoch: run.epoch,
        repository: spec.repository.clone(),
        backup: opened.or_else(|| spec.backup.clone()),
        target: spec.target.clone(),
        os_user: spec.place.os_user.clone(),
        hydrate: spec.hydrate,
    };
    if let Err(error) = send(run.service, run.stored, request.into()).await {
        return Finished::Failed(error.into());
    }
    wait_for_answer(run.service, run.state().session_id, run.stop, "mount").await
}

/// Puts a message for mount-svc into the outbox.
pub(crate) async fn send(
    service: &Service,
    stored: &Stored,
    message: Internal,
) -> Result<(), JournalError> {
    let clerk = service.clerk.clone();
    let stored = stored.clone();
    service
        .journal
        .commit(move |t| clerk.send_to_mount_service(t, &stored, message))
        .await
}

/// Waits until the answer has ended the activity, at most as long as mount-svc may take without a sign that it advances. Time without
/// the broker does not count: an outage must not cost an attempt.
pub(crate) async fn wait_for_answer(
    service: &Service,
    session_id: SessionId,
    stop: &CancellationToken,
    what: &str,
) -> Finished {
    let limit_s = service.config.limits.mount_answer_s;
    let mut waited_s = 0;
    let mut advance_count = service.mount_advance_count(session_id);
    while waited_s < limit_s {
        if !pause(TICK, stop).await {
            return Finished::Interrupted;
        }
        if service.bus.health().connected {
            waited_s += 1;
        }
        let now = service.mount_advance_count(session_id);
        if std::mem::replace(&mut advance_count, now) != now {
            waited_s = 0;
        }
    }
    Finished::Failed(Problem::new(
        ErrorCode::TimedOut,
        format!("mount-svc said nothing of the request to {what} within {limit_s} s"),
        "check that mount-svc runs on this mount server and look into its log",
    ))
}
