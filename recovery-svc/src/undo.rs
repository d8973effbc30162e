//! The undos. Each is idempotent and finds what is gone already.

use common::agent::hand::{RecoveryAction, Request};
use common::messages::MountRelease;
use common::session::StepOutcome;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::hand::{ACT_FOR, unexpected};
use crate::service::Service;
use crate::steps::{self, Finished};
use crate::stored::Stored;

/// Stops PostgreSQL.
pub(crate) async fn stop_instance(service: &Service, stored: &Stored) -> Finished {
    let state = &stored.state;
    let Some(instance) = state.instance.clone() else {
        // Never prepared, so never started.
        return Finished::Done(StepOutcome::Done);
    };
    let timeout_s = service.config.limits.stop_timeout_s;
    let request = Request::StopInstance {
        place: state.spec.place.clone(),
        instance,
        timeout_s,
    };
    let limit = ACT_FOR + Duration::from_secs(timeout_s.into());
    let stopped = async {
        let hand = steps::grip(service, state).await?;
        match hand.ask(request, limit).await? {
            common::agent::hand::Response::Done => Ok(StepOutcome::Done),
            other => Err(unexpected("stop", &other)),
        }
    };
    stopped.await.into()
}

/// Ends the copy or the standby and removes what was made in the final place.
pub(crate) async fn remove_standby(service: &Service, stored: &Stored) -> Finished {
    let instance = stored.state.instance.clone();
    act(service, stored, RecoveryAction::RemoveStandby { instance }).await
}

/// Brings back what was set aside.
pub(crate) async fn put_back(service: &Service, stored: &Stored) -> Finished {
    act(service, stored, RecoveryAction::PutBack).await
}

async fn act(service: &Service, stored: &Stored, action: RecoveryAction) -> Finished {
    let state = &stored.state;
    let acted = async {
        let hand = steps::grip(service, state).await?;
        steps::recovery::act(&hand, state, action).await
    };
    acted.await.into()
}

/// Has mount-svc unmount and remove the write cache; its answer ends the undo from the queue.
pub(crate) async fn release_mount(
    service: &Service,
    stored: &Stored,
    epoch: u64,
    stop: &CancellationToken,
) -> Finished {
    let release = MountRelease {
        session_id: stored.state.session_id,
        epoch,
        target: stored.state.spec.target.clone(),
    };
    if let Err(error) = steps::send(service, stored, release.into()).await {
        return Finished::Failed(error.into());
    }
    let session_id = stored.state.session_id;
    steps::wait_for_answer(service, session_id, stop, "release the mount").await
}
