//! Set aside: with the backup's size known, the final place is looked at once more, then what is in it is moved aside.

use common::agent::hand::{RecoveryAction, RecoveryResponse, Request, Response, VolumeFacts};
use common::messages::Step;
use common::problem::{ErrorCode, Problem};
use common::session::{SessionState, StepOutcome};

use super::recovery::{ask, final_place, unfitting};
use super::{Grip, Run};
use crate::hand::{LOOK_FOR, unexpected};

/// Beside the backup's size, this share is wanted for WAL and growth, in per cent.
const RESERVE_PERCENT: u64 = 10;

pub(super) async fn run(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let state = run.state();
    let hand = run.hand().await?;
    // A copy that is there already has taken its space.
    if !state.made.standby {
        check_space(&run, &hand).await?;
    }
    match ask(&hand, state, RecoveryAction::Check).await? {
        RecoveryResponse::Checked { .. } => {}
        other => return Err(unfitting(&other)),
    }
    let aside = match ask(&hand, state, RecoveryAction::SetAside).await? {
        RecoveryResponse::SetAside(aside) => aside,
        other => return Err(unfitting(&other)),
    };
    if let (true, Some(manager)) = (aside.was_running, &aside.manager) {
        let text = format!("the original was stopped; the host runs it with {manager}");
        run.progress(Step::SetAside, text, (None, None)).await;
    }
    for (from, to) in aside.moved.iter().take(20) {
        let text = format!("{} was moved to {}", from.display(), to.display());
        run.progress(Step::SetAside, text, (None, None)).await;
    }
    Ok(StepOutcome::Done)
}

async fn check_space(run: &Run<'_>, hand: &Grip<'_>) -> Result<(), Problem> {
    let state = run.state();
    let place = final_place(state)?;
    let path = place
        .data_directory
        .parent()
        .unwrap_or(&place.data_directory)
        .to_owned();
    let paths = vec![path.clone()];
    let facts = match hand.ask(Request::HostFacts { paths }, LOOK_FOR).await? {
        Response::HostFacts(facts) => facts,
        other => return Err(unexpected("host facts", &other)),
    };
    enough_for(state, facts.volumes.get(&path), &path.display().to_string())
}

/// The volume of the data directory must hold the whole backup and a reserve. Tablespaces may lie elsewhere, where the agent's own error
/// tells; here they count as if they did not.
fn enough_for(
    state: &SessionState,
    volume: Option<&VolumeFacts>,
    path: &str,
) -> Result<(), Problem> {
    let size = state.mount.as_ref().map_or(0, |mount| mount.size_bytes);
    let wanted = size.saturating_add(size / 100 * RESERVE_PERCENT);
    match volume {
        Some(volume) if volume.free_bytes < wanted => Err(Problem::new(
            ErrorCode::NotEnoughSpace,
            format!(
                "the volume of {path} has {} MiB free, {} MiB are needed for the replicated instance",
                volume.free_bytes >> 20,
                wanted >> 20
            ),
            "free space, or choose a data directory on a larger volume",
        )),
        Some(_) | None => Ok(()),
    }
}
