//! Prepare: PostgreSQL of the backup's major version is found, then configuration and recovery settings are written.

use common::agent::hand::{ArchiveOptions, InstanceOptions, RecoveryOptions, Request, Response};
use common::messages::{RecoveryTarget, Step};
use common::problem::{ErrorCode, Problem};
use common::session::StepOutcome;

use super::{Grip, Run, instance_runs};
use crate::hand::{ACT_FOR, LOOK_FOR, unexpected};

pub(super) async fn run(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let state = run.state();
    let target = run.target()?;
    let (Some(mount), Some(port)) = (&state.mount, state.spec.port) else {
        return Err(Problem::new(
            ErrorCode::Internal,
            "the session has no mount or no port to prepare for",
            "report this as a bug",
        ));
    };
    let hand = run.hand().await?;
    // A retry or a recovery of a published session finds it running: nothing is prepared under its feet.
    if let Some(instance) = running(&run, &hand).await? {
        return Ok(StepOutcome::Prepared(Box::new(instance)));
    }
    let find = Request::FindPostgresql {
        major: mount.postgresql_major,
        extra_directories: target.program_directories.clone(),
    };
    let programs = match hand.ask(find, LOOK_FOR).await? {
        Response::Postgresql(found) => found,
        other => return Err(unexpected("where PostgreSQL is", &other)),
    };
    let instance = InstanceOptions {
        program_directory: programs.program_directory,
        port,
        listen_addresses: target.listen_addresses.clone(),
        hba_lines: target.hba_lines.clone(),
        superuser: target.superuser.clone(),
        shared_buffers_bytes: target.shared_buffers_bytes,
        settings: target.settings.clone(),
        recovery: RecoveryOptions {
            target: state.spec.recovery_target,
            archive: mount.wal.as_ref().map(|wal| ArchiveOptions {
                timeline: wal.target_timeline,
            }),
        },
    };
    if let Some(gap) = mount.wal.as_ref().and_then(|wal| wal.gap.as_ref())
        && state.spec.recovery_target == RecoveryTarget::Latest
    {
        let text = format!(
            "the archive of WAL has a gap: {} is missing or not whole, the next is {}; recovery ends before the gap",
            gap.first_missing, gap.next
        );
        run.progress(Step::Prepare, text, (None, None)).await;
    }
    let request = Request::Prepare {
        place: state.spec.place.clone(),
        instance: instance.clone(),
    };
    let prepared = match hand.ask(request, ACT_FOR).await? {
        Response::Prepared(prepared) => prepared,
        other => return Err(unexpected("prepare", &other)),
    };
    let missing = &prepared.missing_libraries;
    if !missing.is_empty() {
        let text = format!(
            "left out of shared_preload_libraries, since the target does not have them: {}",
            missing.join(", ")
        );
        run.progress(Step::Prepare, text, (None, None)).await;
    }
    for remark in prepared.remarks.into_iter().take(20) {
        run.progress(Step::Prepare, remark, (None, None)).await;
    }
    Ok(StepOutcome::Prepared(Box::new(instance)))
}

/// How the session's own instance was prepared, if that runs.
async fn running(run: &Run<'_>, hand: &Grip<'_>) -> Result<Option<InstanceOptions>, Problem> {
    let state = run.state();
    let (true, Some(instance)) = (state.made.instance, state.instance.clone()) else {
        return Ok(None);
    };
    let runs = instance_runs(hand, state, instance.clone()).await?;
    Ok(runs.then_some(instance))
}
