//! Recover: PostgreSQL replays until it accepts reads and writes; as long as replay advances it may take any time.

use std::time::Duration;

use common::agent::hand::{InstanceStatus, Request, Response};
use common::messages::{Published, RecoveryTarget, Step};
use common::problem::{ErrorCode, Problem};
use common::session::StepOutcome;
use common::wal;
use tokio::time::Instant;

use super::recovery::last_words;
use super::{Finished, Grip, Run, prepared};
use crate::executor::pause;
use crate::hand::{LOOK_FOR, unexpected};

/// Between two progress events of one session.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How long the agent may fail to answer before the step does.
const SILENCE_MAX: Duration = Duration::from_secs(60);

pub(super) async fn run(run: Run<'_>) -> Finished {
    let limits = &run.service.config.limits;
    let poll_every = Duration::from_millis(limits.recovery_poll_every_ms);
    let stall_max = Duration::from_secs(limits.recovery_stall_s);
    let mut hand = None;
    let mut silent_since: Option<Instant> = None;
    let mut advanced_at = Instant::now();
    let mut told_at: Option<Instant> = None;
    let mut seen_lsn: Option<String> = None;
    let mut first_bytes = None;
    loop {
        match look(&run, &mut hand).await {
            Ok(InstanceStatus::Ready {
                version,
                timeline,
                reached_lsn,
                reached_at,
            }) => {
                let reached = Reached {
                    version,
                    timeline,
                    reached_lsn,
                    reached_at,
                };
                return published(&run, reached).into();
            }
            Ok(InstanceStatus::Stopped { last_log_lines }) => {
                return Finished::Failed(stopped(&last_log_lines));
            }
            Ok(InstanceStatus::Recovering { replayed_lsn }) => {
                silent_since = None;
                if replayed_lsn.is_some() && replayed_lsn != seen_lsn {
                    seen_lsn = replayed_lsn;
                    advanced_at = Instant::now();
                    if told_at.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) {
                        told_at = Some(Instant::now());
                        let replayed = seen_lsn.as_deref().unwrap_or_default();
                        first_bytes = first_bytes.or_else(|| wal::position(replayed));
                        tell(&run, replayed, first_bytes).await;
                    }
                } else if advanced_at.elapsed() >= stall_max {
                    return Finished::Failed(stalled(seen_lsn.as_deref(), stall_max));
                }
            }
            Err(problem) if problem.is_permanent() => return Finished::Failed(problem),
            Err(problem) => {
                hand = None;
                let since = *silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SILENCE_MAX {
                    return Finished::Failed(problem);
                }
            }
        }
        if !pause(poll_every, run.stop).await {
            return Finished::Interrupted;
        }
    }
}

async fn look<'a>(run: &Run<'a>, hand: &mut Option<Grip<'a>>) -> Result<InstanceStatus, Problem> {
    let hand = match hand {
        Some(hand) => hand,
        None => hand.insert(super::grip(run.service, &run.stored.state).await?),
    };
    let request = Request::InstanceStatus {
        place: run.state().spec.place.clone(),
        instance: prepared(run.state())?,
    };
    match hand.ask(request, LOOK_FOR).await? {
        Response::Instance(status) => Ok(status),
        other => Err(unexpected("the instance's status", &other)),
    }
}

async fn tell(run: &Run<'_>, replayed: &str, first_bytes: Option<u64>) {
    let state = run.state();
    let end = state.mount.as_ref().and_then(|mount| {
        let of_archive = mount.wal.as_ref().and_then(|wal| wal.end_lsn.as_deref());
        match state.spec.recovery_target {
            RecoveryTarget::Latest => of_archive.or(mount.end_lsn.as_deref()),
            RecoveryTarget::Immediate => mount.end_lsn.as_deref(),
        }
    });
    let text = match end {
        Some(end) => format!("replayed {replayed} of {end}"),
        None => format!("replayed {replayed}"),
    };
    let positions = (wal::position(replayed), end.and_then(wal::position));
    run.progress(Step::Recover, text, replayed_bytes(positions, first_bytes))
        .await;
}

/// How much is replayed, of how much, since the first position seen. Without an archive the end is that of the backup; if it brings
/// along WAL beyond it, that is replayed too, and then nobody knows how much there is.
fn replayed_bytes(
    (replayed, end): (Option<u64>, Option<u64>),
    first: Option<u64>,
) -> (Option<u64>, Option<u64>) {
    let since_first = |position: u64| position.saturating_sub(first.unwrap_or(position));
    let done = replayed.map(since_first);
    let total = end.map(since_first).filter(|total| done <= Some(*total));
    (done, total)
}

struct Reached {
    version: String,
    timeline: u32,
    reached_lsn: String,
    reached_at: Option<String>,
}

fn published(run: &Run<'_>, reached: Reached) -> Result<StepOutcome, Problem> {
    let state = run.state();
    let place = &state.spec.place;
    let (Some(mount), Some(instance)) = (&state.mount, &state.instance) else {
        return Err(Problem::new(
            ErrorCode::Internal,
            "the session is published without a mount or an instance",
            "report this as a bug",
        ));
    };
    Ok(StepOutcome::Recovered(Box::new(Published {
        host: run.target()?.host.clone(),
        port: instance.port,
        socket_directory: place.socket_directory(),
        data_directory: mount.data_directory.clone(),
        version: reached.version,
        backup: mount.backup.clone(),
        timeline: reached.timeline,
        reached_lsn: reached.reached_lsn,
        reached_at: reached.reached_at.and_then(|text| text.parse().ok()),
        steps: Vec::new(),
    })))
}

/// PostgreSQL is not there any more; its last words say why.
pub(crate) fn stopped(last_log_lines: &[String]) -> Problem {
    Problem::new(
        ErrorCode::InstanceFailed,
        format!(
            "PostgreSQL is not running; its last log lines: {}",
            last_words(last_log_lines)
        ),
        "look into the session's log directory, mend the cause, then retry",
    )
}

fn stalled(replayed: Option<&str>, limit: Duration) -> Problem {
    Problem::new(
        ErrorCode::RecoveryFailed,
        format!(
            "recovery stands still at {} for {} s",
            replayed.unwrap_or("an unknown position"),
            limit.as_secs()
        ),
        "check the repository, the mount and PostgreSQL's log, then retry",
    )
}

#[cfg(test)]
mod tests {
    use super::replayed_bytes;

    #[test]
    fn what_is_replayed_is_counted_from_the_first_position_and_never_more_than_the_whole() {
        for (replayed, end, expected) in [
            (Some(100), Some(300), (Some(0), Some(200))),
            (Some(250), Some(300), (Some(150), Some(200))),
            (Some(300), Some(300), (Some(200), Some(200))),
            (Some(400), Some(300), (Some(300), None)),
            (Some(150), None, (Some(50), None)),
            (None, Some(300), (None, Some(200))),
        ] {
            assert_eq!(
                replayed_bytes((replayed, end), Some(100)),
                expected,
                "{replayed:?} of {end:?}"
            );
        }
    }
}
