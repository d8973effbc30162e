//! The standby: started, brought into step, and looked at.

use std::time::Duration;

use common::agent::hand::{RecoveryAction, RecoveryResponse, StandbyStatus};
use common::messages::{Lag, Step};
use common::problem::{ErrorCode, Problem};
use common::session::{SessionState, StepOutcome};
use tokio::time::Instant;

use super::recovery::{act, ask, last_words, spec, unfitting};
use super::{Finished, Grip, Run, prepared};
use crate::executor::pause;

/// Between two progress events of one session.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// How long the agent or the standby may fail to answer before the step does.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Starts it.
pub(super) async fn start(run: Run<'_>) -> Result<StepOutcome, Problem> {
    let instance = prepared(run.state())?;
    let action = RecoveryAction::StartStandby { instance };
    act(&run.hand().await?, run.state(), action).await
}

/// Waits until it is in step; as long as it advances, that may take any time.
pub(super) async fn catch_up(run: Run<'_>) -> Finished {
    let limits = &run.service.config.limits;
    let poll_every = Duration::from_millis(limits.recovery_poll_every_ms);
    let stall_max = Duration::from_secs(limits.recovery_stall_s);
    let lag_max_bytes = match spec(run.state()) {
        Ok(spec) => spec.lag_max_bytes,
        Err(problem) => return Finished::Failed(problem),
    };
    let mut hand = None;
    let mut silent_since: Option<Instant> = None;
    let mut told_at: Option<Instant> = None;
    let mut seen_lsn = None;
    let mut advanced_at = Instant::now();
    loop {
        match look(&run, &mut hand).await {
            Ok(status) if !status.running => {
                return Finished::Failed(ended(&status));
            }
            // Nobody can work, and nothing will ever come to the standby: it is started again by a retry.
            Ok(status) if !status.published_running => {
                return Finished::Failed(super::instance_ended(&run).await);
            }
            Ok(status) => {
                let lag = lag_of(&status);
                if let Some(lag) = lag.filter(|lag| status.streaming && lag.bytes <= lag_max_bytes)
                {
                    return Finished::Done(StepOutcome::CaughtUp(lag));
                }
                silent_since = None;
                if status.replayed_lsn.is_some() && status.replayed_lsn != seen_lsn {
                    seen_lsn.clone_from(&status.replayed_lsn);
                    advanced_at = Instant::now();
                } else if advanced_at.elapsed() >= stall_max {
                    return Finished::Failed(stalled(&status, stall_max));
                }
                if told_at.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) {
                    told_at = Some(Instant::now());
                    run.progress(Step::CatchUp, text(&status), (None, None))
                        .await;
                }
            }
            Err(problem) if problem.is_permanent() => return Finished::Failed(problem),
            Err(problem) => {
                hand = None;
                if silent_since.get_or_insert_with(Instant::now).elapsed() >= SILENCE_MAX {
                    return Finished::Failed(problem);
                }
            }
        }
        if !pause(poll_every, run.stop).await {
            return Finished::Interrupted;
        }
    }
}

async fn look<'a>(run: &Run<'a>, hand: &mut Option<Grip<'a>>) -> Result<StandbyStatus, Problem> {
    let hand = match hand {
        Some(hand) => hand,
        None => hand.insert(super::grip(run.service, &run.stored.state).await?),
    };
    status(hand, run.state()).await
}

/// How it is.
pub(crate) async fn status(
    hand: &Grip<'_>,
    state: &SessionState,
) -> Result<StandbyStatus, Problem> {
    let instance = prepared(state)?;
    let action = RecoveryAction::StandbyStatus { instance };
    match ask(hand, state, action).await? {
        RecoveryResponse::Standby(status) => Ok(status),
        other => Err(unfitting(&other)),
    }
}

/// How far it is behind, if that is known.
pub(crate) fn lag_of(status: &StandbyStatus) -> Option<Lag> {
    Some(Lag {
        bytes: status.lag_bytes?,
        ms: status.lag_ms.unwrap_or_default(),
    })
}

fn text(status: &StandbyStatus) -> String {
    match (&status.lag_bytes, &status.replayed_lsn) {
        (Some(bytes), _) => format!("{} MiB behind", bytes >> 20),
        (None, Some(lsn)) => format!("replayed {lsn}"),
        (None, None) => "the standby is starting".to_owned(),
    }
}

/// Its postmaster is not there any more.
pub(crate) fn ended(status: &StandbyStatus) -> Problem {
    Problem::new(
        ErrorCode::ReplicationFailed,
        format!(
            "the standby is not running; its last log lines: {}",
            last_words(&status.last_log_lines)
        ),
        "look into the session's log directory, mend the cause, then retry; the published instance goes on",
    )
}

/// Why it does not receive anything, for the end of a sentence, if it says so.
pub(crate) fn words(status: &StandbyStatus) -> String {
    match status.last_log_lines.is_empty() {
        true => String::new(),
        false => format!(
            "; its last log lines: {}",
            last_words(&status.last_log_lines)
        ),
    }
}

fn stalled(status: &StandbyStatus, limit: Duration) -> Problem {
    let what = match status.streaming {
        true => "does not advance",
        false => "does not stream from the published instance",
    };
    Problem::new(
        ErrorCode::ReplicationFailed,
        format!(
            "the standby {what} for {} s{}",
            limit.as_secs(),
            words(status)
        ),
        "look into its log in the session's log directory, mend the cause, then retry",
    )
}
