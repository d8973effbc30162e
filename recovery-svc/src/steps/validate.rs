//! Validate: the target answers and has what the session needs, before anything is made.

use common::agent::hand::{RecoveryAction, RecoveryResponse, Request, Response, VolumeFacts};
use common::ids::SessionId;
use common::problem::{ErrorCode, Problem};
use common::session::{Phase, StepOutcome};

use super::{Grip, Run, instance_runs, recovery};
use crate::hand::{LOOK_FOR, unexpected};
use crate::stored::{SESSION, Stored};

/// Of the write cache's volume, this share must be free for a new session, in per cent.
const FREE_PERCENT_MIN: u64 = 5;
/// How long a PostgreSQL whose mount is gone may take for a fast stop, in seconds: it has nothing left to write to.
const ORPHAN_STOP_S: u32 = 2;
/// Most sessions that are compared for ports.
const COMPARED_MAX: usize = 10_000;

pub(super) async fn run(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let spec = &run.state().spec;
    let place = &spec.place;
    let hand = run.hand().await?;
    hand.act(Request::CheckOsUser {
        user: place.os_user.clone(),
        roots: vec![place.mount_root.clone(), place.cache_root.clone()],
    })
    .await?;
    let paths = vec![place.cache_root.clone()];
    let facts = match hand.ask(Request::HostFacts { paths }, LOOK_FOR).await? {
        Response::HostFacts(facts) => facts,
        other => return Err(unexpected("host facts", &other)),
    };
    facts.fuse?;
    // A session that has its cache already is not refused for what its own changes fill: it must stay retryable.
    if !run.state().made.mount {
        let least = run.target()?.cache_free_bytes_min;
        enough_space(facts.volumes.get(&place.cache_root), least)?;
    }
    if let Some(port) = spec.port {
        let programs = Request::ListPostgresql {
            extra_directories: run.target()?.program_directories.clone(),
        };
        match hand.ask(programs, LOOK_FOR).await? {
            Response::PostgresqlList(found) if !found.is_empty() => {}
            Response::PostgresqlList(_) => {
                return Err(Problem::new(
                    ErrorCode::PostgresqlNotFound,
                    format!("the target {} has no PostgreSQL", spec.target),
                    "install PostgreSQL of the backup's major version, or name its directory in program_directories",
                ));
            }
            other => return Err(unexpected("a list of PostgreSQL", &other)),
        }
        let will_be_free = final_place_is_fit(&run, &hand).await? == Some(port);
        if !own_instance_runs(&run, &hand).await? {
            port_is_ours(&run, port).await?;
            if !will_be_free {
                hand.act(Request::CheckPort {
                    port,
                    listen_addresses: run.target()?.listen_addresses.clone(),
                })
                .await?;
            }
        }
    }
    Ok(StepOutcome::Done)
}

/// Whether a recovery may use its directories; the port of a PostgreSQL that runs there and will be stopped.
async fn final_place_is_fit(run: &Run<'_>, hand: &Grip<'_>) -> Result<Option<u16>, Problem> {
    if run.state().spec.recovery.is_none() {
        return Ok(None);
    }
    match recovery::ask(hand, run.state(), RecoveryAction::Check).await? {
        RecoveryResponse::Checked { running_port, .. } => Ok(running_port),
        other => Err(recovery::unfitting(&other)),
    }
}

/// The rule: the configured least, or 5 % of the volume where that is more.
pub(crate) fn enough_space(volume: Option<&VolumeFacts>, least_bytes: u64) -> Result<(), Problem> {
    let Some(volume) = volume else {
        return Err(Problem::new(
            ErrorCode::IoFailed,
            "the agent did not say how much space the write cache has",
            "check the volume of cache_root on the target",
        ));
    };
    let wanted = least_bytes.max(volume.total_bytes / 100 * FREE_PERCENT_MIN);
    if volume.free_bytes >= wanted {
        return Ok(());
    }
    Err(Problem::new(
        ErrorCode::NotEnoughSpace,
        format!(
            "the write cache's volume has {} MiB free, {} MiB are needed",
            volume.free_bytes >> 20,
            wanted >> 20
        ),
        "free space, or put cache_root on a larger volume",
    ))
}

/// Whether the port is taken by this session's own instance, which a retry finds running.
async fn own_instance_runs(run: &Run<'_>, hand: &Grip<'_>) -> Result<bool, Problem> {
    let state = run.state();
    let (true, Some(instance)) = (state.made.instance, state.instance.clone()) else {
        return Ok(false);
    };
    let place = state.spec.place.clone();
    let mounted = Request::MountStatus {
        place: place.clone(),
    };
    if hand.ask(mounted, LOOK_FOR).await? == Response::MountStatus(None) {
        // A postmaster may have outlived its mount: it keeps the port, works on dead files and can never be used again.
        let timeout_s = ORPHAN_STOP_S;
        hand.act(Request::StopInstance {
            place,
            instance,
            timeout_s,
        })
        .await?;
        return Ok(false);
    }
    instance_runs(hand, state, instance).await
}

/// No other session of this service has the port, even one that has not started its instance yet.
async fn port_is_ours(run: &Run<'_>, port: u16) -> Result<(), Problem> {
    let sessions = run
        .service
        .journal
        .commit(|t| t.records::<Stored>(SESSION, false, COMPARED_MAX))
        .await?;
    let spec = &run.state().spec;
    let mine = (run.stored.started_at, run.state().session_id);
    let taken: Option<SessionId> = sessions
        .iter()
        .map(|record| &record.body)
        .filter(|other| other.state.spec.target == spec.target)
        .filter(|other| other.state.spec.port == Some(port))
        // One that waits and never started anything does not keep the port from others.
        .filter(|other| {
            !matches!(other.state.phase, Phase::Waiting { .. }) || other.state.made.instance
        })
        // Of two that are new, the one that came first gets it.
        .filter(|other| (other.started_at, other.state.session_id) < mine)
        .map(|other| other.state.session_id)
        .next();
    match taken {
        None => Ok(()),
        Some(other) => Err(Problem::new(
            ErrorCode::PortInUse,
            format!("session {other} has port {port} on target {}", spec.target),
            "choose another port, or unpublish that session",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_rule_is_the_configured_least_or_five_per_cent() {
        const GIB: u64 = 1 << 30;
        for (total, free, least, good) in [
            (10 * GIB, GIB, GIB, true),
            (10 * GIB, GIB - 1, GIB, false),
            (1_000 * GIB, 40 * GIB, GIB, false),
            (1_000 * GIB, 50 * GIB, GIB, true),
        ] {
            let volume = VolumeFacts {
                total_bytes: total,
                free_bytes: free,
            };
            assert_eq!(
                enough_space(Some(&volume), least).is_ok(),
                good,
                "{total} {free}"
            );
        }
        assert!(enough_space(None, 0).is_err());
    }
}
