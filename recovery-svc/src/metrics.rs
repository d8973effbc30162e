//! The metrics of this service; their names stand here and nowhere else.

use common::messages::{SessionKind, SessionStatus};
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
    /// Always 1.
    BuildInfo,
}

impl MetricName {
    /// Every name.
    pub const ALL: [MetricName; 15] = [
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

    /// The metrics as Prometheus text.
    pub(crate) fn text(&self) -> String {
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => error.to_string(),
        }
    }
}
