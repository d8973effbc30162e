//! The counters of mount-svc, for `/metrics`.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// The counters; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    commands: IntCounterVec,
    mounts: IntGauge,
    bus_connected: IntGauge,
    outbox_pending: IntGauge,
}

impl Metrics {
    /// Makes the counters and enters them in a registry.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            commands: IntCounterVec::new(
                Opts::new(
                    "pginstant_commands_total",
                    "Commands by what became of them.",
                ),
                &["outcome"],
            )?,
            mounts: IntGauge::new("pginstant_mounts", "Mounts that are kept.")?,
            bus_connected: IntGauge::new(
                "pginstant_bus_connected",
                "Whether the broker is connected.",
            )?,
            outbox_pending: IntGauge::new("pginstant_outbox_pending", "Messages not yet relayed.")?,
        };
        registry.register(Box::new(metrics.commands.clone()))?;
        registry.register(Box::new(metrics.mounts.clone()))?;
        registry.register(Box::new(metrics.bus_connected.clone()))?;
        registry.register(Box::new(metrics.outbox_pending.clone()))?;
        Ok(metrics)
    }

    /// Counts a command.
    pub fn command(&self, outcome: &str) {
        self.commands.with_label_values(&[outcome]).inc();
    }

    /// Sets the gauges to what was seen.
    pub fn observe(&self, mounts: usize, bus_connected: bool, outbox_pending: u64) {
        self.mounts.set(i64::try_from(mounts).unwrap_or(i64::MAX));
        self.bus_connected.set(i64::from(bus_connected));
        self.outbox_pending
            .set(i64::try_from(outbox_pending).unwrap_or(i64::MAX));
    }
}
