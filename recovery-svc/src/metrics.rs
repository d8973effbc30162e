//! The metrics of this service; their names stand here and nowhere else.

use common::ids::SessionId;
use common::messages::{CacheStatistics, SessionKind, SessionStatus};
use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Every metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetricName {
    /// Sessions by kind and state.
    Sessions,
    /// Transitions of sessions.
    SessionStateTransitions,
    /// Age of the oldest waiting session.
    SessionWaiting,
    /// Retry attempts begun.
    RetryAttempts,
    /// Sessions whose automatic retries are exhausted.
    RetriesExhausted,
    /// Messages taken, by type and outcome.
    Commands,
    /// How long handling a message took.
    CommandDuration,
    /// Messages owed to the broker.
    OutboxPending,
    /// Age of the oldest of them.
    OutboxOldest,
    /// Messages that no queue takes.
    OutboxUnroutable,
    /// Whether the connections to the broker are up.
    BusConnected,
    /// How often they were made anew.
    BusReconnects,
    /// Whether the broker has blocked publishing.
    BusBlocked,
    /// When a session was last established.
    LastSuccess,
    /// Bytes of a mount's write cache, by what they are.
    CacheBytes,
    /// Files of a mount, by class.
    MountFiles,
    /// Reads of a mount since its worker's start, by what came of them.
    MountReads,
    /// How long reads that waited for the backup and flushes took.
    MountLatency,
    /// Always 1.
    BuildInfo,
}

impl MetricName {
    /// Every name.
    pub const ALL: [MetricName; 19] = [
        MetricName::Sessions,
        MetricName::SessionStateTransitions,
        MetricName::SessionWaiting,
        MetricName::RetryAttempts,
        MetricName::RetriesExhausted,
        MetricName::Commands,
        MetricName::CommandDuration,
        MetricName::OutboxPending,
        MetricName::OutboxOldest,
        MetricName::OutboxUnroutable,
        MetricName::BusConnected,
        MetricName::BusReconnects,
        MetricName::BusBlocked,
        MetricName::LastSuccess,
        MetricName::CacheBytes,
        MetricName::MountFiles,
        MetricName::MountReads,
        MetricName::MountLatency,
        MetricName::BuildInfo,
    ];

    /// The name as Prometheus has it.
    pub fn as_str(self) -> &'static str {
        match self {
            MetricName::Sessions => "pginstant_sessions",
            MetricName::SessionStateTransitions => "pginstant_session_state_transitions_total",
            MetricName::SessionWaiting => "pginstant_session_waiting_seconds",
            MetricName::RetryAttempts => "pginstant_retry_attempts_total",
            MetricName::RetriesExhausted => "pginstant_retries_exhausted_total",
            MetricName::Commands => "pginstant_commands_total",
            MetricName::CommandDuration => "pginstant_command_duration_seconds",
            MetricName::OutboxPending => "pginstant_outbox_pending",
            MetricName::OutboxOldest => "pginstant_outbox_oldest_seconds",
            MetricName::OutboxUnroutable => "pginstant_outbox_unroutable",
            MetricName::BusConnected => "pginstant_bus_connected",
            MetricName::BusReconnects => "pginstant_bus_reconnects_total",
            MetricName::BusBlocked => "pginstant_bus_blocked",
            MetricName::LastSuccess => "pginstant_last_success_timestamp_seconds",
            MetricName::CacheBytes => "pginstant_cache_bytes",
            MetricName::MountFiles => "pginstant_mount_files",
            MetricName::MountReads => "pginstant_mount_reads",
            MetricName::MountLatency => "pginstant_mount_latency_seconds",
            MetricName::BuildInfo => "pginstant_build_info",
        }
    }
}

/// The metrics, registered.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) sessions: IntGaugeVec,
    pub(crate) transitions: IntCounterVec,
    pub(crate) waiting: GaugeVec,
    pub(crate) retry_attempts: IntCounterVec,
    pub(crate) retries_exhausted: IntCounterVec,
    pub(crate) commands: IntCounterVec,
    pub(crate) command_duration: HistogramVec,
    pub(crate) outbox_pending: IntGauge,
    pub(crate) outbox_oldest: GaugeVec,
    pub(crate) outbox_unroutable: IntGauge,
    pub(crate) bus_connected: IntGaugeVec,
    pub(crate) bus_reconnects: IntGaugeVec,
    pub(crate) bus_blocked: IntGaugeVec,
    pub(crate) last_success: GaugeVec,
    cache_bytes: IntGaugeVec,
    mount_files: IntGaugeVec,
    mount_reads: IntGaugeVec,
    mount_latency: GaugeVec,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let opts = |name: MetricName, help: &str| Opts::new(name.as_str(), help);
        macro_rules! registered {
            ($metric:expr) => {{
                let metric = $metric?;
                registry.register(Box::new(metric.clone()))?;
                metric
            }};
        }
        use MetricName as N;
        let build = registered!(IntGaugeVec::new(
            opts(N::BuildInfo, "always 1"),
            &["version", "service"]
        ));
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), "recovery-svc"])
            .set(1);
        Ok(Self {
            sessions: registered!(IntGaugeVec::new(
                opts(N::Sessions, "sessions that have not ended"),
                &["kind", "state"]
            )),
            transitions: registered!(IntCounterVec::new(
                opts(N::SessionStateTransitions, "transitions of sessions"),
                &["kind", "from", "to"]
            )),
            waiting: registered!(GaugeVec::new(
                opts(N::SessionWaiting, "age of the oldest waiting session"),
                &["kind"]
            )),
            retry_attempts: registered!(IntCounterVec::new(
                opts(N::RetryAttempts, "retry attempts by how they came about"),
                &["kind", "outcome"]
            )),
            retries_exhausted: registered!(IntCounterVec::new(
                opts(N::RetriesExhausted, "sessions out of automatic retries"),
                &["kind"]
            )),
            commands: registered!(IntCounterVec::new(
                opts(N::Commands, "messages taken from the queue"),
                &["type", "outcome"]
            )),
            command_duration: registered!(HistogramVec::new(
                HistogramOpts::new(N::CommandDuration.as_str(), "time to handle a message"),
                &["type"]
            )),
            outbox_pending: registered!(IntGauge::with_opts(opts(
                N::OutboxPending,
                "messages owed to the broker"
            ))),
            outbox_oldest: registered!(GaugeVec::new(
                opts(N::OutboxOldest, "age of the oldest message owed"),
                &[]
            )),
            outbox_unroutable: registered!(IntGauge::with_opts(opts(
                N::OutboxUnroutable,
                "messages that no queue takes"
            ))),
            bus_connected: registered!(IntGaugeVec::new(
                opts(N::BusConnected, "whether the broker is connected"),
                &["role"]
            )),
            bus_reconnects: registered!(IntGaugeVec::new(
                opts(N::BusReconnects, "connections made anew"),
                &["role"]
            )),
            bus_blocked: registered!(IntGaugeVec::new(
                opts(N::BusBlocked, "whether the broker blocks publishing"),
                &["role"]
            )),
            last_success: registered!(GaugeVec::new(
                opts(N::LastSuccess, "when a session was last established"),
                &["kind"]
            )),
            cache_bytes: registered!(IntGaugeVec::new(
                opts(N::CacheBytes, "bytes of a write cache"),
                &["session", "what"]
            )),
            mount_files: registered!(IntGaugeVec::new(
                opts(N::MountFiles, "files of a mount by class"),
                &["session", "class"]
            )),
            mount_reads: registered!(IntGaugeVec::new(
                opts(N::MountReads, "reads of a mount since its worker's start"),
                &["session", "outcome"]
            )),
            mount_latency: registered!(GaugeVec::new(
                opts(N::MountLatency, "how long requests to a mount took"),
                &["session", "request", "quantile"]
            )),
            registry,
        })
    }

    pub(crate) fn transition(
        &self,
        kind: SessionKind,
        from: Option<SessionStatus>,
        to: SessionStatus,
    ) {
        if from != Some(to) {
            let from = from.map_or("", SessionStatus::as_str);
            self.transitions
                .with_label_values(&[kind.as_str(), from, to.as_str()])
                .inc();
        }
    }

    /// Sets what was seen of a session's write cache.
    pub(crate) fn cache(&self, session_id: SessionId, figures: &CacheStatistics) {
        let session = session_id.to_string();
        for (vec, names_and_values) in [
            (&self.cache_bytes, bytes(figures).as_slice()),
            (&self.mount_files, files(figures).as_slice()),
            (&self.mount_reads, reads(figures).as_slice()),
        ] {
            for (name, value) in names_and_values {
                let value = i64::try_from(*value).unwrap_or(i64::MAX);
                vec.with_label_values(&[session.as_str(), name]).set(value);
            }
        }
        for (request, took) in [("read_miss", figures.read_miss), ("fsync", figures.fsync)] {
            let quantiles = [
                ("0.5", took.p50_us),
                ("0.99", took.p99_us),
                ("1", took.max_us),
            ];
            for (quantile, us) in quantiles {
                let labels = [session.as_str(), request, quantile];
                let seconds = std::time::Duration::from_micros(us).as_secs_f64();
                self.mount_latency.with_label_values(&labels).set(seconds);
            }
        }
    }

    /// Takes a session's write cache out.
    pub(crate) fn forget_cache(&self, session_id: SessionId) {
        let session = session_id.to_string();
        let none = CacheStatistics::default();
        for (vec, names_and_values) in [
            (&self.cache_bytes, bytes(&none).as_slice()),
            (&self.mount_files, files(&none).as_slice()),
            (&self.mount_reads, reads(&none).as_slice()),
        ] {
            for (name, _) in names_and_values {
                vec.remove_label_values(&[session.as_str(), name]).ok();
            }
        }
        for request in ["read_miss", "fsync"] {
            for quantile in ["0.5", "0.99", "1"] {
                let labels = [session.as_str(), request, quantile];
                self.mount_latency.remove_label_values(&labels).ok();
            }
        }
    }

    /// The metrics as Prometheus text.
    pub(crate) fn text(&self) -> String {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => error.to_string(),
        }
    }
}

fn bytes(figures: &CacheStatistics) -> [(&'static str, u64); 7] {
    [
        ("occupied", figures.cache_bytes),
        ("copied", figures.copied_bytes),
        ("written", figures.written_bytes),
        ("hydrated", figures.hydrated_bytes),
        ("given_back", figures.given_back_bytes),
        ("hydration_done", figures.hydration_done_bytes),
        ("hydration_total", figures.hydration_total_bytes),
    ]
}

fn files(figures: &CacheStatistics) -> [(&'static str, u64); 6] {
    [
        ("local", figures.files_local),
        ("complete", figures.files_complete),
        ("partial", figures.files_partial),
        ("open_passthrough", figures.open_passthrough),
        ("open_cached", figures.open_cached),
        ("open_upgradable", figures.open_upgradable),
    ]
}

fn reads(figures: &CacheStatistics) -> [(&'static str, u64); 5] {
    [
        ("hit", figures.read_hits),
        ("miss", figures.read_misses),
        ("error", figures.read_errors),
        ("base_reads", figures.base_reads),
        ("base_bytes", figures.base_bytes),
    ]
}
