//! Watching what is established: the postmaster, the mount, the write cache's volume, the way to the backup.

use std::sync::Arc;
use std::time::Duration;

use common::agent::hand::{InstanceStatus, MountStatus, Request, Response};
use common::env::Env;
use common::ids::SessionId;
use common::messages::{Lag, SessionKind, SwitchoverMode, WarningCode};
use common::problem::{ErrorCode, Problem};
use common::session::Input;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::cache_watch::Cadence;
use crate::executor::{pause, report};
use crate::hand::{LOOK_FOR, unexpected};
use crate::reopen::{self, Due, Reopening};
use crate::service::Service;
use crate::steps::{self, Grip};
use crate::stored::Stored;

/// A loss is believed when it was seen twice in a row.
const SIGHTINGS: u32 = 2;
/// Shares of the cache's volume in use, in per cent, at which warnings begin and, lower, end.
const LOW: (u64, u64) = (80, 75);
const CRITICAL: (u64, u64) = (95, 90);
/// Between two events about a standby's lag.
const LAG_EVERY: SignedDuration = SignedDuration::from_secs(10);
/// How long a read has waited for the backup before people are told, in seconds.
const BASE_WAIT_TOLD_S: u64 = 10;
/// How often figures of the write cache are told at most.
const STATISTICS_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// Looks until something is lost (which it gives back) or it is told to stop.
pub(crate) async fn watch(
    service: &Arc<Service>,
    stored: &Stored,
    epoch: u64,
    stop: &CancellationToken,
) -> Option<Input> {
    let every = Duration::from_millis(service.config.limits.watch_every_ms);
    let mut hand: Option<Grip<'_>> = None;
    let mut sightings = 0;
    let mut unreachable = 0_u32;
    let mut lights = Lights::of(stored);
    let switchover = stored.state.recovery.switchover;
    let mut lag_due = LagDue::default();
    let session_id = stored.state.session_id;
    let _seen = Seen {
        service,
        session_id,
    };
    let mut cadence = Cadence::new(STATISTICS_EVERY);
    let reopen_every_s = service
        .config
        .target(&stored.state.spec.target)
        .map_or(0, |target| target.reopen_every_s);
    let mut reopening = Reopening::new(reopen_every_s);
    loop {
        if let SwitchoverMode::At { at } = switchover
            && at <= service.env.now()
        {
            return Some(Input::SwitchoverDue { epoch });
        }
        let pause_for = match (sightings, switchover) {
            (0, SwitchoverMode::Auto | SwitchoverMode::Manual) => every,
            _ => every.min(Duration::from_secs(1)),
        };
        if !pause(pause_for, stop).await {
            return None;
        }
        let found = look(service, stored, &mut hand).await;
        match found {
            Ok(Found::StandbyLost(problem)) => {
                sightings += 1;
                if sightings >= SIGHTINGS {
                    return Some(Input::StandbyLost { epoch, problem });
                }
            }
            Ok(Found::There {
                status,
                version,
                lag,
            }) => {
                if let Some(lag) = lag.filter(|_| lag_due.is_due(&service.env)) {
                    let input = Input::LagSeen { epoch, lag };
                    report(service, stored.state.session_id, Some(input), stop).await;
                }
                sightings = 0;
                unreachable = 0;
                let (figures, now) = (&status.statistics, service.env.now());
                service.caches.saw(&service.metrics, session_id, figures);
                if cadence.is_due(now, figures) {
                    let input = Input::Statistics(Box::new(figures.clone()));
                    report(service, session_id, Some(input), stop).await;
                }
                let due = match &version {
                    Some(version) => reopening.due(now, version, figures.open_upgradable),
                    None => Due::Nothing,
                };
                if let Some(hand) = hand.as_ref()
                    && let Err(problem) = reopen(stored, hand, due).await
                {
                    tracing::warn!(error = %problem, "have PostgreSQL open its files anew");
                }
                for (code, text) in lights.changes(&status) {
                    let input = Input::MountWarning { code, text };
                    report(service, stored.state.session_id, Some(input), stop).await;
                }
            }
            Ok(Found::Lost(problem)) => {
                sightings += 1;
                if sightings >= SIGHTINGS {
                    return Some(Input::InstanceLost { epoch, problem });
                }
            }
            // The instance goes on without us; it is not lost because its agent does not answer.
            Err(problem) => {
                hand = None;
                unreachable = unreachable.saturating_add(1);
                if unreachable.is_power_of_two() {
                    tracing::warn!(error = %problem, times = unreachable, "watch a session");
                }
            }
        }
    }
}

// Takes the figures of a session off the list when it is no longer looked at.
struct Seen<'a> {
    service: &'a Service,
    session_id: SessionId,
}

impl Drop for Seen<'_> {
    fn drop(&mut self) {
        let metrics = &self.service.metrics;
        self.service.caches.forget(metrics, self.session_id);
    }
}

async fn reopen(stored: &Stored, hand: &Grip<'_>, due: Due) -> Result<(), Problem> {
    if due == Due::Nothing {
        return Ok(());
    }
    let state = &stored.state;
    let instance = steps::prepared(state)?;
    reopen::carry_out(due, hand, state.session_id, &state.spec.place, &instance).await
}

enum Found {
    StandbyLost(Problem),
    There {
        status: Box<MountStatus>,
        // Of an instance that takes reads and writes.
        version: Option<String>,
        // Of a standby.
        lag: Option<Lag>,
    },
    Lost(Problem),
}

/// When the lag of a standby is told again.
#[derive(Default)]
struct LagDue(Option<Timestamp>);

impl LagDue {
    fn is_due(&mut self, env: &Env) -> bool {
        let now = env.now();
        let is_due = self
            .0
            .is_none_or(|told_at| now.duration_since(told_at) >= LAG_EVERY);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

async fn look<'a>(
    service: &'a Service,
    stored: &Stored,
    hand: &mut Option<Grip<'a>>,
) -> Result<Found, Problem> {
    let state = &stored.state;
    let hand = match hand {
        Some(hand) => hand,
        None => hand.insert(steps::grip(service, state).await?),
    };
    let place = state.spec.place.clone();
    let mut lag = None;
    let mut version = None;
    if state.spec.kind != SessionKind::Mount {
        let request = Request::InstanceStatus {
            place: place.clone(),
            instance: steps::prepared(state)?,
        };
        match hand.ask(request, LOOK_FOR).await? {
            Response::Instance(InstanceStatus::Stopped { last_log_lines }) => {
                return Ok(Found::Lost(steps::stopped(&last_log_lines)));
            }
            // Recovering is a crash recovery after a backend died: it comes back by itself.
            Response::Instance(InstanceStatus::Recovering { .. }) => {}
            Response::Instance(InstanceStatus::Ready { version: seen, .. }) => {
                version = Some(seen);
            }
            other => return Err(unexpected("the instance's status", &other)),
        }
    }
    if state.spec.kind == SessionKind::Recover {
        let status = steps::standby::status(hand, state).await?;
        if !status.running {
            return Ok(Found::StandbyLost(steps::standby::ended(&status)));
        }
        lag = steps::standby::lag_of(&status);
    }
    match hand.ask(Request::MountStatus { place }, LOOK_FOR).await? {
        Response::MountStatus(Some(status)) => Ok(Found::There {
            status: Box::new(status),
            version,
            lag,
        }),
        Response::MountStatus(None) => Ok(Found::Lost(Problem::new(
            ErrorCode::MountFailed,
            "the mount is gone; its write cache is kept",
            "retry: the mount is made again over the same write cache",
        ))),
        other => Err(unexpected("the mount's status", &other)),
    }
}

/// Which warnings hold; what begins and ends is told once.
struct Lights {
    low: bool,
    critical: bool,
    base: bool,
    slower: bool,
}

impl Lights {
    fn of(stored: &Stored) -> Self {
        let holds = |code| stored.state.warnings.contains_key(&code);
        Self {
            low: holds(WarningCode::CacheSpaceLow),
            critical: holds(WarningCode::CacheSpaceCritical),
            base: holds(WarningCode::BaseUnreachable),
            slower: holds(WarningCode::SlowerMode),
        }
    }

    fn changes(&mut self, status: &MountStatus) -> Vec<(WarningCode, Option<String>)> {
        let volume = status.cache_volume;
        let used = volume.total_bytes.saturating_sub(volume.free_bytes);
        let percent = match volume.total_bytes {
            0 => 0,
            total => u64::try_from(u128::from(used) * 100 / u128::from(total)).unwrap_or(100),
        };
        let free_mib = volume.free_bytes >> 20;
        let space = format!(
            "the volume of the write cache is {percent} % full, {free_mib} MiB are free; free space or unpublish a session"
        );
        let mut changes = Vec::new();
        let mut light = |on: &mut bool, now: bool, code, text: String| {
            if *on != now {
                *on = now;
                changes.push((code, now.then_some(text)));
            }
        };
        let over = |on: bool, (begin, end): (u64, u64)| percent >= if on { end } else { begin };
        let low = over(self.low, LOW);
        let critical = over(self.critical, CRITICAL);
        light(
            &mut self.low,
            low,
            WarningCode::CacheSpaceLow,
            space.clone(),
        );
        light(
            &mut self.critical,
            critical,
            WarningCode::CacheSpaceCritical,
            space,
        );
        let base = status
            .base_waiting_s
            .is_some_and(|waiting| waiting >= BASE_WAIT_TOLD_S);
        light(
            &mut self.base,
            base,
            WarningCode::BaseUnreachable,
            "reads of pages that are not in the write cache wait for mount-svc or the repository; check both".to_owned(),
        );
        let slower = status.passthrough.is_err();
        let why = status.passthrough.clone().err().unwrap_or_default();
        light(
            &mut self.slower,
            slower,
            WarningCode::SlowerMode,
            format!("files of the write cache are served without FUSE passthrough: {why}"),
        );
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::agent::hand::VolumeFacts;

    fn status(used_percent: u64, base_waiting_s: Option<u64>) -> MountStatus {
        MountStatus {
            supervisor_pid: 1,
            worker_ready: true,
            worker_starts: 1,
            passthrough: Ok(()),
            base_attached: true,
            base_waiting_s,
            cache_bytes: 0,
            cache_volume: VolumeFacts {
                total_bytes: 100 << 30,
                free_bytes: (100 - used_percent) << 30,
            },
            counters: Default::default(),
            statistics: Default::default(),
        }
    }

    #[test]
    fn a_warning_begins_at_its_mark_and_ends_below_it() {
        use WarningCode::{BaseUnreachable as Base, CacheSpaceCritical as C, CacheSpaceLow as L};
        let mut lights = Lights {
            low: false,
            critical: false,
            base: false,
            slower: false,
        };
        for (percent, waits, expected) in [
            (79, None, vec![]),
            (80, None, vec![(L, true)]),
            (96, None, vec![(C, true)]),
            (94, None, vec![]),
            (89, None, vec![(C, false)]),
            (76, Some(9), vec![]),
            (74, Some(10), vec![(L, false), (Base, true)]),
            (74, Some(60), vec![]),
            (74, None, vec![(Base, false)]),
        ] {
            let found: Vec<(WarningCode, bool)> = lights
                .changes(&status(percent, waits))
                .into_iter()
                .map(|(code, text)| (code, text.is_some()))
                .collect();
            assert_eq!(found, expected, "{percent} {waits:?}");
        }
    }
}
