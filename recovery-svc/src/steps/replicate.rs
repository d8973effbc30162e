//! Replicate: `pg_basebackup` copies the published instance; it runs on the target by itself and is only watched from here.

use std::time::Duration;

use common::agent::hand::{RecoveryAction, RecoveryResponse, ReplicationStatus};
use common::messages::Step;
use common::problem::{ErrorCode, Problem};
use common::session::StepOutcome;
use tokio::time::Instant;

use super::recovery::{act, ask, last_words, unfitting};
use super::{Finished, Grip, Run, prepared};
use crate::executor::pause;

/// Between two progress events of one session.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// How long the copy may stand still before the published instance is looked at.
const LOOK_AFTER: Duration = Duration::from_secs(2);
/// How long the agent may fail to answer before the step does.
const SILENCE_MAX: Duration = Duration::from_secs(60);

pub(super) async fn run(run: Run<'_>) -> Finished {
    let begun = begin(&run).await;
    let begun = match begun {
        Ok(status) => status,
        Err(problem) => return Finished::Failed(problem),
    };
    watch(&run, begun).await
}

async fn begin(run: &Run<'_>) -> Result<ReplicationStatus, Problem> {
    let state = run.state();
    let instance = prepared(state)?;
    let hand = run.hand().await?;
    // An earlier switchover may have been broken off after it had made the instance read-only.
    let thaw = RecoveryAction::Thaw {
        instance: instance.clone(),
    };
    act(&hand, state, thaw).await?;
    let action = RecoveryAction::BeginReplication { instance };
    match ask(&hand, state, action).await? {
        RecoveryResponse::Replication(status) => Ok(status),
        other => Err(unfitting(&other)),
    }
}

async fn watch(run: &Run<'_>, mut status: ReplicationStatus) -> Finished {
    let poll_every = Duration::from_millis(run.service.config.limits.recovery_poll_every_ms);
    let stall_max = Duration::from_secs(run.service.config.limits.recovery_stall_s);
    let mut hand = None;
    let mut silent_since: Option<Instant> = None;
    let mut rate = Rate::new();
    let mut advanced_at = Instant::now();
    loop {
        match status {
            ReplicationStatus::Complete { done_bytes: bytes } => {
                return Finished::Done(StepOutcome::Replicated { bytes });
            }
            ReplicationStatus::Failed { last_log_lines } => {
                return Finished::Failed(broken_off(&last_log_lines));
            }
            ReplicationStatus::NotBegun => return Finished::Failed(broken_off(&[])),
            ReplicationStatus::Running {
                done_bytes,
                total_bytes,
            } => {
                if rate.has_advanced_to(done_bytes) {
                    advanced_at = Instant::now();
                } else if advanced_at.elapsed() >= stall_max {
                    return Finished::Failed(stalled(done_bytes, stall_max));
                } else if advanced_at.elapsed() >= LOOK_AFTER
                    && published_is_gone(run, hand.as_ref()).await
                {
                    // What serves the copy may outlive its postmaster by a minute; users would wait as long.
                    return Finished::Failed(super::instance_ended(run).await);
                }
                if let Some(text) = rate.due(done_bytes, total_bytes) {
                    let bytes = (Some(done_bytes), total_bytes);
                    run.progress(Step::Replicate, text, bytes).await;
                }
            }
        }
        if !pause(poll_every, run.stop).await {
            return Finished::Interrupted;
        }
        status = match look(run, &mut hand).await {
            Ok(status) => {
                silent_since = None;
                status
            }
            Err(problem) if problem.is_permanent() => return Finished::Failed(problem),
            Err(problem) => {
                hand = None;
                if silent_since.get_or_insert_with(Instant::now).elapsed() >= SILENCE_MAX {
                    return Finished::Failed(problem);
                }
                // Not known: as it was last.
                ReplicationStatus::Running {
                    done_bytes: rate.done_bytes,
                    total_bytes: None,
                }
            }
        };
    }
}

async fn published_is_gone(run: &Run<'_>, hand: Option<&Grip<'_>>) -> bool {
    let (Some(hand), Ok(instance)) = (hand, prepared(run.state())) else {
        return false;
    };
    let runs = super::instance_runs(hand, run.state(), instance).await;
    matches!(runs, Ok(false))
}

async fn look<'a>(
    run: &Run<'a>,
    hand: &mut Option<Grip<'a>>,
) -> Result<ReplicationStatus, Problem> {
    let hand = match hand {
        Some(hand) => hand,
        None => hand.insert(super::grip(run.service, &run.stored.state).await?),
    };
    match ask(hand, run.state(), RecoveryAction::ReplicationStatus).await? {
        RecoveryResponse::Replication(status) => Ok(status),
        other => Err(unfitting(&other)),
    }
}

/// How fast it goes, and when to say so.
struct Rate {
    began_at: Instant,
    first_bytes: Option<u64>,
    done_bytes: u64,
    told_at: Option<Instant>,
}

impl Rate {
    fn new() -> Self {
        Self {
            began_at: Instant::now(),
            first_bytes: None,
            done_bytes: 0,
            told_at: None,
        }
    }

    fn has_advanced_to(&mut self, done_bytes: u64) -> bool {
        let is_first = self.first_bytes.is_none();
        self.first_bytes.get_or_insert(done_bytes);
        let advanced = is_first || done_bytes > self.done_bytes;
        self.done_bytes = self.done_bytes.max(done_bytes);
        advanced
    }

    fn due(&mut self, done_bytes: u64, total_bytes: Option<u64>) -> Option<String> {
        if self.told_at.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            return None;
        }
        self.told_at = Some(Instant::now());
        let since_first = done_bytes.saturating_sub(self.first_bytes.unwrap_or(done_bytes));
        Some(text(
            done_bytes,
            total_bytes,
            since_first,
            self.began_at.elapsed(),
        ))
    }
}

/// How much is copied, how fast, and for how long it will go on.
fn text(done: u64, total: Option<u64>, since_first: u64, took: Duration) -> String {
    let mib = done >> 20;
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    let bytes_per_s = since_first.saturating_mul(1_000) / millis;
    let speed = format!("{} MiB/s", bytes_per_s >> 20);
    match total.map(|total| total.max(done)) {
        Some(total) if bytes_per_s > 0 => format!(
            "copied {mib} of {} MiB, {speed}, {} s to go",
            total >> 20,
            (total - done) / bytes_per_s
        ),
        Some(total) => format!("copied {mib} of {} MiB", total >> 20),
        None => format!("copied {mib} MiB, {speed}"),
    }
}

fn broken_off(last_log_lines: &[String]) -> Problem {
    Problem::new(
        ErrorCode::ReplicationFailed,
        format!(
            "pg_basebackup did not copy everything: {}",
            last_words(last_log_lines)
        ),
        "mend the cause, then retry; the published instance goes on",
    )
}

fn stalled(done_bytes: u64, limit: Duration) -> Problem {
    Problem::new(
        ErrorCode::ReplicationFailed,
        format!(
            "pg_basebackup stands still at {} MiB for {} s",
            done_bytes >> 20,
            limit.as_secs()
        ),
        "check the repository, the mount and the volume of the data directory, then retry",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_how_much_how_fast_and_how_long() {
        let mib = |count: u64| count << 20;
        let second = Duration::from_secs(1);
        for (done, total, since_first, took, expected) in [
            (mib(0), None, 0, second, "copied 0 MiB, 0 MiB/s"),
            (mib(10), Some(mib(110)), 0, second, "copied 10 of 110 MiB"),
            (
                mib(10),
                Some(mib(110)),
                mib(10),
                second,
                "copied 10 of 110 MiB, 10 MiB/s, 10 s to go",
            ),
            (
                mib(120),
                Some(mib(110)),
                mib(120),
                second * 2,
                "copied 120 of 120 MiB, 60 MiB/s, 0 s to go",
            ),
        ] {
            assert_eq!(text(done, total, since_first, took), expected);
        }
    }
}
