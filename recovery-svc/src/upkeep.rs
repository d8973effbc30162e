//! What is done by the clock: automatic attempts begin, metrics are brought up to date, old notes go; and once, at the start,
//! directories of sessions that are long over are released.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::agent::hand::{FoundSession, Request, Response};
use common::config::TargetConfig;
use common::ids::TargetName;
use common::journal::JournalError;
use common::messages::{MountRelease, SessionStatus};
use common::problem::Problem;
use common::session::Input;
use jiff::{SignedDuration, Timestamp};

use crate::executor::{pause, report};
use crate::hand::{self, LOOK_FOR, unexpected};
use crate::service::{Service, next_attempt};
use crate::steps;

const TICK: Duration = Duration::from_millis(500);
/// Ticks between two looks at the journal for the metrics.
const MEASURE_EVERY: u32 = 10;
/// How long a command may be repeated and is still recognised.
const INBOX_KEPT_FOR: SignedDuration = SignedDuration::from_hours(24 * 30);
/// Ticks between two prunings of the inbox: an hour.
const PRUNE_EVERY: u32 = 7_200;
/// How often, and how far apart, targets are asked for leftovers until they answer.
const LEFTOVER_TRIES: u32 = 10;
const LEFTOVER_EVERY: Duration = Duration::from_secs(30);

/// Runs until the service stops.
pub(crate) async fn run(service: Arc<Service>) {
    let mut tick = 0_u32;
    while pause(TICK, &service.stop).await {
        fire(&service).await;
        if tick.is_multiple_of(MEASURE_EVERY)
            && let Err(error) = measure(&service).await
        {
            tracing::warn!(%error, "read the journal for the metrics");
        }
        if tick.is_multiple_of(PRUNE_EVERY) {
            let pruned = service
                .journal
                .commit(|t| t.prune_inbox(INBOX_KEPT_FOR))
                .await;
            if let Err(error) = pruned {
                tracing::warn!(%error, "prune the inbox");
            }
        }
        tick = tick.wrapping_add(1);
    }
}

/// Begins the automatic attempts whose time has come, whether they came back from the broker or are overdue.
async fn fire(service: &Arc<Service>) {
    let now = service.env.now();
    for (session_id, seen) in service.seen() {
        if seen.fires_at.is_none_or(|at| at > now) {
            continue;
        }
        match service.stored(session_id).await {
            Ok(Some(stored)) => {
                if let Some(attempt) = next_attempt(&stored.state) {
                    let epoch = stored.state.epoch;
                    let input = Input::RetryDue { attempt, epoch };
                    report(service, session_id, Some(input), &service.stop).await;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "read a session that is due"),
        }
    }
}

async fn measure(service: &Service) -> Result<(), JournalError> {
    let metrics = &service.metrics;
    let now = service.env.now();
    let age = |since: Timestamp| now.duration_since(since).as_secs_f64().max(0.0);
    metrics.sessions.reset();
    metrics.waiting.reset();
    let mut oldest: BTreeMap<&'static str, f64> = BTreeMap::new();
    for (_, seen) in service.seen() {
        let labels = [seen.kind.as_str(), seen.status.as_str()];
        metrics.sessions.with_label_values(&labels).inc();
        let waits = matches!(
            seen.status,
            SessionStatus::WaitingForRetry | SessionStatus::WaitingForManualRetry
        );
        if waits {
            let waiting_s = oldest.entry(seen.kind.as_str()).or_default();
            *waiting_s = waiting_s.max(age(seen.status_since));
        }
    }
    for (kind, seconds) in oldest {
        metrics.waiting.with_label_values(&[kind]).set(seconds);
    }
    let health = service.bus.health();
    let role = ["recovery-svc"];
    let as_gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    metrics
        .bus_connected
        .with_label_values(&role)
        .set(health.connected.into());
    metrics
        .bus_blocked
        .with_label_values(&role)
        .set(health.blocked.into());
    metrics
        .bus_reconnects
        .with_label_values(&role)
        .set(as_gauge(health.reconnects));
    let depth = service.journal.outbox_depth().await?;
    metrics.outbox_pending.set(as_gauge(depth.pending_count));
    metrics.outbox_unroutable.set(as_gauge(depth.parked_count));
    let none: [&str; 0] = [];
    metrics
        .outbox_oldest
        .with_label_values(&none)
        .set(depth.oldest_at.map_or(0.0, age));
    Ok(())
}

/// Looks on each target for directories of sessions: those of sessions that ended are released, unknown ones are only reported.
pub(crate) async fn leftovers(service: Arc<Service>) {
    for (name, target) in &service.config.targets {
        for _ in 0..LEFTOVER_TRIES {
            match look(&service, name, target).await {
                Ok(()) => break,
                Err(problem) => {
                    tracing::warn!(target_name = %name, error = %problem, "look for leftovers");
                }
            }
            if !pause(LEFTOVER_EVERY, &service.stop).await {
                return;
            }
        }
    }
}

async fn look(service: &Service, name: &TargetName, target: &TargetConfig) -> Result<(), Problem> {
    let hand = service.hands.open(name, target).await?;
    hand::greet(hand.as_ref()).await?;
    let request = Request::ListSessions {
        mount_root: target.mount_root.clone(),
        cache_root: target.cache_root.clone(),
    };
    let found: Vec<FoundSession> = match hand.request(request, LOOK_FOR).await? {
        Response::Sessions(found) => found,
        other => return Err(unexpected("a list of sessions", &other)),
    };
    for FoundSession { session_id, .. } in found {
        match service.stored(session_id).await? {
            Some(stored) if stored.state.is_ended() && stored.state.spec.target == *name => {
                tracing::info!(%session_id, "release what an ended session left behind");
                let release = MountRelease {
                    session_id,
                    epoch: stored.state.epoch,
                    target: name.clone(),
                };
                steps::send(service, &stored, release.into()).await?;
            }
            Some(_) => {}
            None => tracing::warn!(
                %session_id, target_name = %name,
                "directories of a session that this service does not know; nothing is removed"
            ),
        }
    }
    Ok(())
}
