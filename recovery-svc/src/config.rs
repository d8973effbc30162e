//! The configuration of recovery-svc.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use common::config::{BrokerConfig, TargetConfig};
use common::ids::{ServerName, TargetName};
use common::messages::SessionKind;
use common::problem::{ErrorCode, Problem};
use common::session::RetryPolicy;
use common::topology::RETRY_TTL_MS;
use serde::{Deserialize, Serialize};

/// Everything that recovery-svc is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The mount server's name: its queues are `mount.<server>` and `recovery.<server>`.
    pub server: ServerName,
    /// Where the journal is kept.
    pub state_directory: PathBuf,
    /// Address of `/healthz`, `/readyz` and `/metrics`.
    #[serde(default = "default_http_listen")]
    pub http_listen: SocketAddr,
    /// The broker.
    pub broker: BrokerConfig,
    /// Targets, by name.
    #[serde(default)]
    pub targets: BTreeMap<TargetName, TargetConfig>,
    /// How often and how soon each kind of session tries again by itself.
    #[serde(default)]
    pub retry: RetryConfig,
    /// Limits and intervals.
    #[serde(default)]
    pub limits: LimitsConfig,
}

/// Retry policies by kind of session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryConfig {
    /// Sessions that publish.
    #[serde(default)]
    pub publish: AutomaticRetries,
    /// Sessions that mount files.
    #[serde(default)]
    pub mount: AutomaticRetries,
    /// Instant recoveries.
    #[serde(default = "recover_retries")]
    pub recover: AutomaticRetries,
}

/// How often a kind of session tries again by itself. How soon is the retry queue's business: see
/// [`LimitsConfig::retry_queue_ms`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutomaticRetries {
    /// How many automatic retries there are; 0 means that someone must ask for each.
    pub automatic_max: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            publish: AutomaticRetries::default(),
            mount: AutomaticRetries::default(),
            recover: recover_retries(),
        }
    }
}

fn recover_retries() -> AutomaticRetries {
    AutomaticRetries { automatic_max: 10 }
}

/// Limits and intervals. Those in milliseconds are there for tests; their defaults are the promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsConfig {
    /// Most sessions that have not ended.
    pub sessions_max: usize,
    /// Most requests to agents at a time.
    pub hand_requests_max: usize,
    /// How often an established session is looked at, in milliseconds.
    pub watch_every_ms: u64,
    /// How often a recovering instance is looked at, in milliseconds.
    pub recovery_poll_every_ms: u64,
    /// How long replay may stand still before recovery counts as failed for now, in seconds.
    pub recovery_stall_s: u64,
    /// How long mount-svc may take to mount or release while the broker is up, in seconds.
    pub mount_answer_s: u64,
    /// How long a fast stop of PostgreSQL may take before it becomes an immediate one, in seconds.
    pub stop_timeout_s: u32,
    /// How far behind a standby may be that counts as in step, in bytes.
    pub lag_max_bytes: u64,
    /// How long a switchover waits for the standby's last bytes, while nobody can write, before it goes back, in seconds.
    pub switchover_wait_s: u64,
    /// How long messages stay in the retry queue, in milliseconds: the broker's definitions say so, and this must be the same.
    pub retry_queue_ms: u64,
    /// Most that the start of an automatic attempt is delayed at random, in milliseconds.
    pub retry_jitter_ms: u64,
    /// How long after its time an automatic attempt that did not come back from the broker is begun nevertheless, in seconds.
    pub retry_overdue_s: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            sessions_max: 64,
            hand_requests_max: 16,
            watch_every_ms: 5_000,
            recovery_poll_every_ms: 500,
            recovery_stall_s: 600,
            mount_answer_s: 900,
            stop_timeout_s: 60,
            lag_max_bytes: 16 * 1024 * 1024,
            switchover_wait_s: 30,
            retry_queue_ms: RETRY_TTL_MS,
            retry_jitter_ms: 15_000,
            retry_overdue_s: 240,
        }
    }
}

fn default_http_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9632))
}

impl Config {
    /// Checks what the types alone do not; nothing is opened.
    pub fn validate(&self) -> Result<(), Problem> {
        let wrong = |message: String, remedy: &str| {
            let code = ErrorCode::InvalidConfiguration;
            Err(Problem::new(code, message, remedy))
        };
        self.broker.validate()?;
        for (name, target) in &self.targets {
            target.validate(name.as_str())?;
        }
        if !self.state_directory.is_absolute() {
            return wrong(
                "state_directory is a relative path".to_owned(),
                "give an absolute path",
            );
        }
        for (name, policy) in [
            ("publish", self.retry.publish),
            ("mount", self.retry.mount),
            ("recover", self.retry.recover),
        ] {
            if policy.automatic_max > 1_000 {
                return wrong(
                    format!("retry.{name}.automatic_max is {}", policy.automatic_max),
                    "choose 0 to 1000",
                );
            }
        }
        let limits = &self.limits;
        for (name, value, max) in [
            ("sessions_max", limits.sessions_max as u64, 10_000),
            ("hand_requests_max", limits.hand_requests_max as u64, 256),
            ("watch_every_ms", limits.watch_every_ms, 300_000),
            (
                "recovery_poll_every_ms",
                limits.recovery_poll_every_ms,
                60_000,
            ),
            ("recovery_stall_s", limits.recovery_stall_s, 604_800),
            ("mount_answer_s", limits.mount_answer_s, 86_400),
            ("lag_max_bytes", limits.lag_max_bytes, 1 << 40),
            ("switchover_wait_s", limits.switchover_wait_s, 3_600),
            ("stop_timeout_s", u64::from(limits.stop_timeout_s), 3_600),
            ("retry_queue_ms", limits.retry_queue_ms, 86_400_000),
        ] {
            if value == 0 || value > max {
                return wrong(
                    format!("limits.{name} is {value}"),
                    &format!("choose 1 to {max}"),
                );
            }
        }
        if limits.retry_jitter_ms > 60_000 {
            return wrong(
                format!("limits.retry_jitter_ms is {}", limits.retry_jitter_ms),
                "choose 0 to 60000",
            );
        }
        Ok(())
    }

    /// How often and how soon a kind of session tries again by itself.
    pub fn retry_policy(&self, kind: SessionKind) -> RetryPolicy {
        let retries = match kind {
            SessionKind::Publish => self.retry.publish,
            SessionKind::Mount => self.retry.mount,
            SessionKind::Recover => self.retry.recover,
        };
        let every_s = self.limits.retry_queue_ms.div_ceil(1_000);
        RetryPolicy {
            automatic_max: retries.automatic_max,
            every_s: u32::try_from(every_s).unwrap_or(u32::MAX),
        }
    }

    /// The target of a name, or the refusal that names what there is.
    pub fn target(&self, name: &TargetName) -> Result<&TargetConfig, Problem> {
        self.targets.get(name).ok_or_else(|| {
            let known: Vec<&str> = self
                .targets
                .keys()
                .map(TargetName::as_str)
                .take(20)
                .collect();
            let known = if known.is_empty() {
                "(none is configured)".to_owned()
            } else {
                known.join(", ")
            };
            Problem::new(
                ErrorCode::UnknownTarget,
                format!("mount server {} has no target {name}", self.server),
                format!("choose one of: {known}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_soon_a_retry_comes_is_the_queues_time_and_cannot_be_said_otherwise() {
        let text = |retries: &str| {
            format!(
                r#"{{"server":"test","state_directory":"/s","broker":{{"user":"u","password_file":"/p"}},
                    "retry":{{"recover":{retries}}}}}"#
            )
        };
        let config: Config = serde_json::from_str(&text(r#"{"automatic_max":3}"#)).unwrap();
        let expected = RetryPolicy {
            automatic_max: 3,
            every_s: 300,
        };
        assert_eq!(config.retry_policy(SessionKind::Recover), expected);
        let other = text(r#"{"automatic_max":3,"every_s":60}"#);
        let error = serde_json::from_str::<Config>(&other).unwrap_err();
        assert!(error.to_string().contains("every_s"), "{error}");
    }
}
