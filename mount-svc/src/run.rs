//! The life of the service from its configuration to its end.

use std::sync::Arc;
use std::time::Duration;

use common::bus::Bus;
use common::bus::amqp::{AmqpBus, AmqpOptions};
use common::config::Secret;
use common::env::Env;
use common::http::{HttpDoor, Readiness};
use common::journal::{self, Journal};
use common::problem::{ErrorCode, Problem};
use common::topology::{Role, Topology};
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::service::Service;
use crate::store::Store;

/// How long a publish may wait for its confirm, in seconds.
const PUBLISH_LIMIT_S: u64 = 60;
/// How often gauges are set and old inbox entries forgotten.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(5);
/// How long the inbox remembers: longer than any message can wait in a queue or be sent again.
const INBOX_FOR: jiff::SignedDuration = jiff::SignedDuration::from_hours(24 * 30);

/// Runs until `stop` is cancelled. The configuration must have been validated.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Problem> {
    let config = Arc::new(config);
    let env = Env::system();
    let password = Secret::from_file(&config.broker.password_file)?;
    let journal = Journal::open(&config.state_directory, env.clone())?;
    let door = HttpDoor::bind(config.http_listen).await?;
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).map_err(|error| {
        Problem::new(
            ErrorCode::Internal,
            format!("register metrics: {error}"),
            "report this",
        )
    })?;
    // The bus closes after everything that uses it.
    let bus_stop = CancellationToken::new();
    let bus: Arc<dyn Bus> =
        AmqpBus::open(options(&config, password), env.clone(), bus_stop.clone()).await?;
    let store = Store::new(config.clone(), journal.clone(), env.clone(), stop.clone());
    let mounts = store.resume().await?;
    tracing::info!(server = %config.server, mounts, version = env!("CARGO_PKG_VERSION"), "mount-svc is up");

    let tasks = TaskTracker::new();
    let relay_stop = CancellationToken::new();
    tasks.spawn(journal::relay(
        journal.clone(),
        bus.clone(),
        relay_stop.clone(),
    ));
    tasks.spawn(door.serve(readiness(bus.clone()), registry, relay_stop.clone()));
    let service = Service {
        config,
        env,
        journal: journal.clone(),
        bus: bus.clone(),
        store: store.clone(),
        metrics,
    };
    tasks.spawn(housekeep(service.clone(), relay_stop.clone()));
    let worked = service.work(&stop).await;
    stop.cancel();
    store.closed().await;
    relay_stop.cancel();
    tasks.close();
    tasks.wait().await;
    journal.close().await;
    bus.close().await;
    bus_stop.cancel();
    tracing::info!("mount-svc has stopped; mounts and published instances go on");
    worked
}

fn options(config: &Config, password: Secret) -> AmqpOptions {
    config.broker.amqp(
        password,
        format!("mount-svc/{} {}", env!("CARGO_PKG_VERSION"), config.server),
        PUBLISH_LIMIT_S,
        Role::MountService,
        Topology::new([config.server.clone()]),
    )
}

fn readiness(bus: Arc<dyn Bus>) -> Readiness {
    Arc::new(move || {
        let health = bus.health();
        match (health.connected, health.blocked) {
            (true, false) => Ok(()),
            (true, true) => {
                Err("the broker has blocked publishing (memory or disk alarm)".to_owned())
            }
            (false, _) => Err(format!(
                "the broker is not connected: {}",
                health.last_error.as_deref().unwrap_or("connecting")
            )),
        }
    })
}

async fn housekeep(service: Service, stop: CancellationToken) {
    let mut tick = tokio::time::interval(HOUSEKEEPING_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let seen = service.journal.commit(|t| {
            t.prune_inbox(INBOX_FOR)?;
            t.outbox_depth()
        });
        match seen.await {
            Ok(depth) => {
                let connected = service.bus.health().connected;
                service
                    .metrics
                    .observe(service.store.count(), connected, depth.pending_count);
            }
            Err(error) => {
                let error: journal::JournalError = error;
                tracing::error!(%error, "look after the journal");
            }
        }
    }
}
