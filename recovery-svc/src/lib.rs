//! recovery-svc: owns the sessions. It takes delegated commands from `recovery.<server>`, keeps every session in its journal, carries out
//! what the state machine decides, and is the only writer of session events.
//!
//! Life: open the journal, take all sessions up again, relay what is owed, then consume. Every task belongs to [`Running`], which ends them in order.

mod activity;
pub mod agents;
mod answers;
mod cache_watch;
mod commands;
pub mod config;
mod executor;
pub mod hand;
mod host_check;
mod metrics;
mod queries;
mod reopen;
mod service;
mod steps;
mod stored;
mod telling;
mod undo;
mod upkeep;
mod watching;
mod worker;

pub use config::Config;
pub use metrics::MetricName;
pub use stored::{Stored, session_key};

use std::sync::Arc;
use std::time::Duration;

use common::bus::Bus;
use common::bus::amqp::AmqpBus;
use common::config::Secret;
use common::env::Env;
use common::http::{HttpDoor, Readiness};
use common::journal::{Journal, Record, relay};
use common::problem::{ErrorCode, Problem};
use common::topology::{Role, Topology};
use tokio_util::sync::CancellationToken;

use crate::agents::Agents;
use crate::hand::Hands;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::stored::SESSION;

/// How long activities may take to come to rest when the service stops.
const STOP_FOR: Duration = Duration::from_secs(30);
/// Most sessions that can be taken up again.
const RESUMED_MAX: usize = 10_000;

/// What the service works with; in production the broker and real agents.
#[derive(Clone)]
pub struct Parts {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// The agents.
    pub hands: Arc<dyn Hands>,
    /// Time, ids, randomness.
    pub env: Env,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

/// How long a publish may wait for its confirm, in seconds.
const PUBLISH_LIMIT_S: u64 = 60;

/// Runs the service with the configured broker and real agents until the token is cancelled.
pub async fn serve(config: Config, stop: CancellationToken) -> Result<(), Problem> {
    let env = Env::system();
    let password = Secret::from_file(&config.broker.password_file)?;
    let options = config.broker.amqp(
        password,
        format!(
            "recovery-svc/{} {}",
            env!("CARGO_PKG_VERSION"),
            config.server
        ),
        PUBLISH_LIMIT_S,
        Role::RecoveryService,
        Topology::new([config.server.clone()]),
    );
    // The bus closes after everything that uses it.
    let bus_stop = CancellationToken::new();
    let bus: Arc<dyn Bus> = AmqpBus::open(options, env.clone(), bus_stop.clone()).await?;
    let parts = Parts {
        bus: Arc::clone(&bus),
        hands: Arc::new(Agents),
        env,
    };
    let result = run(config, parts, stop).await;
    bus.close().await;
    bus_stop.cancel();
    result
}

/// Runs the service until the token is cancelled. The bus is the caller's to close.
pub async fn run(config: Config, parts: Parts, stop: CancellationToken) -> Result<(), Problem> {
    config.validate()?;
    let door = HttpDoor::bind(config.http_listen).await?;
    let running = start(config, parts, stop.child_token()).await?;
    running.open(door);
    stop.cancelled().await;
    running.end().await;
    Ok(())
}

/// A service that runs.
pub struct Running {
    service: Arc<Service>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Running")
    }
}

/// Opens the journal, takes every session up again and begins to work. Cancelling the token begins the end; [`Running::end`] waits for it.
pub async fn start(
    config: Config,
    parts: Parts,
    stop: CancellationToken,
) -> Result<Running, Problem> {
    let journal = Journal::open(&config.state_directory, parts.env.clone())?;
    let metrics = Metrics::new().map_err(|error| {
        let message = format!("metrics cannot be registered: {error}");
        Problem::new(ErrorCode::Internal, message, "report this as a bug")
    })?;
    let service = Service::new(
        config,
        journal,
        (parts.bus, parts.hands),
        parts.env,
        metrics,
        stop,
    );
    resume_all(&service).await?;
    let tasks = &service.tasks;
    tasks.spawn(relay(
        service.journal.clone(),
        Arc::clone(&service.bus),
        service.stop.clone(),
    ));
    tasks.spawn(worker::work(Arc::clone(&service)));
    tasks.spawn(upkeep::run(Arc::clone(&service)));
    tasks.spawn(upkeep::leftovers(Arc::clone(&service)));
    tasks.close();
    Ok(Running { service })
}

async fn resume_all(service: &Arc<Service>) -> Result<(), Problem> {
    let sessions: Vec<Record<Stored>> = service
        .journal
        .commit(|t| t.records(SESSION, false, RESUMED_MAX))
        .await?;
    if !sessions.is_empty() {
        tracing::info!(count = sessions.len(), "take sessions up again");
    }
    for record in sessions {
        service.resume(record.body.state.session_id).await?;
    }
    Ok(())
}

impl Running {
    /// Opens the HTTP door.
    fn open(&self, door: HttpDoor) {
        let bus = Arc::clone(&self.service.bus);
        let readiness: Readiness = Arc::new(move || {
            let health = bus.health();
            if health.connected {
                Ok(())
            } else {
                let why = health.last_error.unwrap_or_else(|| "not yet".to_owned());
                Err(format!("the broker is not connected: {why}"))
            }
        });
        let registry = self.service.metrics.registry.clone();
        let served = door.serve(readiness, registry, self.service.stop.clone());
        self.service.tasks.spawn(served);
    }

    /// The metrics as Prometheus text.
    pub fn metrics_text(&self) -> String {
        self.service.metrics.text()
    }

    /// Ends every task, at most 30 s; what could not come to rest is resumed at the next start.
    pub async fn end(self) {
        self.service.stop.cancel();
        if tokio::time::timeout(STOP_FOR, self.service.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some activities did not come to rest in time");
        }
        self.service.journal.close().await;
    }
}
