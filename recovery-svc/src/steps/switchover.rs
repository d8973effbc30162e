//! The switchover (design decision D10): nothing is final until both instances were shown to stand at the same position.

use std::time::Duration;

use common::agent::hand::{
    InstanceStatus, Positions, RecoveryAction, RecoveryResponse, Request, Response,
};
use common::messages::Step;
use common::problem::{ErrorCode, Problem};
use common::session::{FinalInstance, StepOutcome};
use common::wal;
use tokio::time::Instant;

use super::recovery::{act, ask, last_words, unfitting};
use super::{Finished, Grip, Run, prepared, standby};
use crate::executor::pause;
use crate::hand::{ACT_FOR, unexpected};

/// Between two looks while nobody can write.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a checkpoint writes now need not be written while nobody can work.
pub(super) async fn checkpoint(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let instance = prepared(run.state())?;
    let action = RecoveryAction::Checkpoint { instance };
    act(&run.hand().await?, run.state(), action).await
}

/// Takes no more writes, and waits until the standby has them all.
pub(super) async fn freeze(run: Run<'_>) -> Finished {
    let limit = Duration::from_secs(run.service.config.limits.switchover_wait_s);
    let frozen = async {
        let state = run.state();
        let instance = prepared(state)?;
        let hand = run.hand().await?;
        match ask(&hand, state, RecoveryAction::Freeze { instance }).await? {
            RecoveryResponse::Frozen {
                flushed_lsn,
                ended_session_count,
            } => Ok((hand, flushed_lsn, ended_session_count)),
            other => Err(unfitting(&other)),
        }
    };
    let (hand, flushed_lsn, ended_session_count) = match frozen.await {
        Ok(frozen) => frozen,
        Err(problem) => return Finished::Failed(problem),
    };
    let text =
        format!("no more writes from {flushed_lsn} on; {ended_session_count} sessions ended");
    run.progress(Step::Freeze, text, (None, None)).await;
    wait_for_standby(&run, &hand, &flushed_lsn, limit).await
}

async fn wait_for_standby(
    run: &Run<'_>,
    hand: &Grip<'_>,
    flushed_lsn: &str,
    limit: Duration,
) -> Finished {
    let began_at = Instant::now();
    loop {
        let words = match standby::status(hand, run.state()).await {
            Ok(status) if !status.running => return Finished::Failed(standby::ended(&status)),
            Ok(status) if !status.published_running => {
                return Finished::Failed(super::instance_ended(run).await);
            }
            Ok(status) => {
                let replayed = status.replayed_lsn.as_deref().and_then(wal::position);
                if status.streaming && replayed >= wal::position(flushed_lsn) {
                    return Finished::Done(StepOutcome::Done);
                }
                standby::words(&status)
            }
            Err(problem) => return Finished::Failed(problem),
        };
        if began_at.elapsed() >= limit {
            return Finished::Failed(Problem::new(
                ErrorCode::SwitchoverFailed,
                format!(
                    "the standby has not replayed {flushed_lsn} within {} s{words}",
                    limit.as_secs()
                ),
                "look for what slows it down, then switch over again",
            ));
        }
        if !pause(LOOK_EVERY, run.stop).await {
            return Finished::Interrupted;
        }
    }
}

/// Stops the published instance: a fast shutdown sends its last checkpoint to the standby.
pub(super) async fn stop_published(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let state = run.state();
    let timeout_s = run.service.config.limits.stop_timeout_s;
    let request = Request::StopInstance {
        place: state.spec.place.clone(),
        instance: prepared(state)?,
        timeout_s,
    };
    let limit = ACT_FOR + Duration::from_secs(timeout_s.into());
    match run.hand().await?.ask(request, limit).await? {
        Response::Done => Ok(StepOutcome::Done),
        other => Err(unexpected("stop", &other)),
    }
}

/// Stops the standby.
pub(super) async fn stop_standby(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let timeout_s = run.service.config.limits.stop_timeout_s;
    let action = RecoveryAction::StopStandby {
        instance: prepared(run.state())?,
        timeout_s,
    };
    act(&run.hand().await?, run.state(), action).await
}

/// Both must have ended at the same checkpoint: what `pg_control` says decides.
pub(super) async fn compare(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let state = run.state();
    let instance = prepared(state)?;
    let hand = run.hand().await?;
    let action = RecoveryAction::Positions { instance };
    match ask(&hand, state, action).await? {
        RecoveryResponse::Positions(positions) => {
            equal(&positions)?;
            Ok(StepOutcome::Done)
        }
        other => Err(unfitting(&other)),
    }
}

/// Whether the standby has everything that the published instance had.
fn equal(positions: &Positions) -> Result<(), Problem> {
    let (published, standby) = (&positions.published, &positions.standby);
    let differs = if published.state != "shut down" {
        Some(format!(
            "the published instance did not end cleanly: it is {:?}",
            published.state
        ))
    } else if standby.state != "shut down in recovery" {
        Some(format!(
            "the standby did not end as a standby: it is {:?}",
            standby.state
        ))
    } else if published.system_identifier != standby.system_identifier {
        Some("the standby is of another cluster".to_owned())
    } else if (published.checkpoint_lsn.as_str(), published.timeline)
        != (standby.checkpoint_lsn.as_str(), standby.timeline)
    {
        Some(format!(
            "the published instance ended at {} on timeline {}, the standby at {} on timeline {}",
            published.checkpoint_lsn, published.timeline, standby.checkpoint_lsn, standby.timeline
        ))
    } else {
        None
    };
    match differs {
        None => Ok(()),
        Some(how) => Err(Problem::new(
            ErrorCode::SwitchoverFailed,
            how,
            "the published instance goes on; look into both logs, then switch over again",
        )),
    }
}

/// Makes the standby's directory an instance of its own.
pub(super) async fn settle(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let state = run.state();
    let instance = prepared(state)?;
    let hand = run.hand().await?;
    let action = RecoveryAction::Settle { instance };
    match ask(&hand, state, action).await? {
        RecoveryResponse::Settled { manager, remarks } => {
            let text = format!("the host starts it with {manager}");
            run.progress(Step::Settle, text, (None, None)).await;
            for remark in remarks.into_iter().take(20) {
                run.progress(Step::Settle, remark, (None, None)).await;
            }
            Ok(StepOutcome::Done)
        }
        other => Err(unfitting(&other)),
    }
}

/// Starts the instance that stays and waits until it accepts writes.
pub(super) async fn start_final(run: Run<'_>) -> Finished {
    let limit = Duration::from_secs(run.service.config.limits.recovery_stall_s);
    let started = async {
        let state = run.state();
        let instance = prepared(state)?;
        let hand = run.hand().await?;
        // It says again how the host starts it, and finds what is done already.
        let settle = RecoveryAction::Settle {
            instance: instance.clone(),
        };
        let manager = match ask(&hand, state, settle).await? {
            RecoveryResponse::Settled { manager, .. } => manager,
            other => return Err(unfitting(&other)),
        };
        let start = RecoveryAction::StartFinal { instance };
        act(&hand, state, start).await?;
        Ok((hand, manager))
    };
    let (hand, manager) = match started.await {
        Ok(started) => started,
        Err(problem) => return Finished::Failed(problem),
    };
    let began_at = Instant::now();
    loop {
        match look_at_final(&run, &hand, &manager).await {
            Ok(Some(instance)) => return Finished::Done(StepOutcome::Final(Box::new(instance))),
            Ok(None) if began_at.elapsed() < limit => {}
            Ok(None) => return Finished::Failed(not_ready(limit)),
            Err(problem) => return Finished::Failed(problem),
        }
        if !pause(LOOK_EVERY, run.stop).await {
            return Finished::Interrupted;
        }
    }
}

async fn look_at_final(
    run: &Run<'_>,
    hand: &Grip<'_>,
    manager: &str,
) -> Result<Option<FinalInstance>, Problem> {
    let state = run.state();
    let instance = prepared(state)?;
    let action = RecoveryAction::FinalStatus { instance };
    match ask(hand, state, action).await? {
        RecoveryResponse::Final(InstanceStatus::Ready {
            version, timeline, ..
        }) => Ok(Some(FinalInstance {
            host: run.target()?.host.clone(),
            version,
            timeline,
            manager: manager.to_owned(),
        })),
        RecoveryResponse::Final(InstanceStatus::Recovering { .. }) => Ok(None),
        RecoveryResponse::Final(InstanceStatus::Stopped { last_log_lines }) => Err(Problem::new(
            ErrorCode::InstanceFailed,
            format!(
                "the instance in its final place is not running; its last log lines: {}",
                last_words(&last_log_lines)
            ),
            "mend the cause, then retry: everything that was written is in its data directory",
        )),
        other => Err(unfitting(&other)),
    }
}

fn not_ready(limit: Duration) -> Problem {
    Problem::new(
        ErrorCode::TimedOut,
        format!(
            "the instance in its final place does not accept writes after {} s",
            limit.as_secs()
        ),
        "look into its log, then retry",
    )
}

/// Goes back: the published instance runs and takes writes again.
pub(super) async fn thaw(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let instance = prepared(run.state())?;
    let action = RecoveryAction::Thaw { instance };
    act(&run.hand().await?, run.state(), action).await
}

#[cfg(test)]
mod tests {
    use common::agent::hand::ControlPosition;

    use super::*;

    fn position(state: &str, checkpoint_lsn: &str, timeline: u32) -> ControlPosition {
        ControlPosition {
            state: state.to_owned(),
            checkpoint_lsn: checkpoint_lsn.to_owned(),
            timeline,
            system_identifier: "7".to_owned(),
        }
    }

    #[test]
    fn only_clean_ends_at_the_same_checkpoint_are_equal() {
        let published = position("shut down", "0/5000028", 2);
        let standby = position("shut down in recovery", "0/5000028", 2);
        let foreign = ControlPosition {
            system_identifier: "8".to_owned(),
            ..standby.clone()
        };
        for (published, standby, is_equal) in [
            (&published, &standby, true),
            (&published, &foreign, false),
            (
                &published,
                &position("shut down in recovery", "0/5000000", 2),
                false,
            ),
            (
                &published,
                &position("shut down in recovery", "0/5000028", 3),
                false,
            ),
            (
                &published,
                &position("in archive recovery", "0/5000028", 2),
                false,
            ),
            (&position("in production", "0/5000028", 2), &standby, false),
        ] {
            let positions = Positions {
                published: published.clone(),
                standby: standby.clone(),
            };
            assert_eq!(equal(&positions).is_ok(), is_equal, "{positions:?}");
        }
    }
}
