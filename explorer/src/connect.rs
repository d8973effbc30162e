//! Opens the bus that the configuration names: the only file that knows which broker it is.

use std::sync::Arc;
use std::time::Duration;

use common::bus::amqp::{AmqpBus, AmqpOptions, apply_topology, check_topology};
use common::bus::{Bus, BusError, BusHealth};
use common::config::Secret;
use common::env::Env;
use common::ids::ServerName;
use common::problem::Problem;
use common::topology::{Role, Topology};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli;
use crate::config::ExplorerConfig;
use crate::exit::{Failure, bus_problem};

/// How long a publish may wait for its confirm: a person sits in front of it.
const PUBLISH_LIMIT_S: u64 = 30;
/// How long the bus may take to tell how its first connections came out.
const STATE_WAIT: Duration = Duration::from_secs(2);

/// The bus, or why it cannot be had. Services wait for a broker that is away; a person is told at once.
pub(crate) async fn open(
    config: &ExplorerConfig,
    server: &ServerName,
    env: &Env,
) -> Result<Arc<dyn Bus>, Failure> {
    let options = options(config, server, Role::Explorer)?;
    let bus = AmqpBus::open(options, env.clone(), CancellationToken::new()).await?;
    let health = first_state(bus.as_ref()).await;
    if health.connected {
        return Ok(bus);
    }
    bus.close().await;
    let address = format!("{}:{}", config.broker.host, config.broker.port);
    let error = health
        .last_error
        .unwrap_or_else(|| format!("{address}: no answer"));
    let reason = error
        .strip_prefix("the broker cannot be reached: ")
        .unwrap_or(&error);
    Err(BusError::Unreachable(reason.to_owned()).into())
}

/// How the connections came out: the bus tells a moment after it is open.
async fn first_state(bus: &dyn Bus) -> BusHealth {
    let began = Instant::now();
    loop {
        let health = bus.health();
        if health.connected || health.last_error.is_some() || began.elapsed() > STATE_WAIT {
            return health;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Makes or checks the exchanges and queues of a mount server.
pub(crate) async fn topology(
    config: &ExplorerConfig,
    server: &ServerName,
    what: cli::Topology,
) -> Result<(), Problem> {
    // Everything is looked at, not only what explorer itself relies on.
    let options = options(config, server, Role::Admin)?;
    let done = match what {
        cli::Topology::Apply => apply_topology(&options).await,
        cli::Topology::Check => check_topology(&options).await,
    };
    done.map_err(bus_problem)
}

fn options(
    config: &ExplorerConfig,
    server: &ServerName,
    role: Role,
) -> Result<AmqpOptions, Problem> {
    let broker = &config.broker;
    Ok(AmqpOptions {
        host: broker.host.clone(),
        port: broker.port,
        vhost: broker.vhost.clone(),
        user: broker.user.clone(),
        password: Secret::from_file(&broker.password_file)?,
        heartbeat_s: broker.heartbeat_s,
        connection_name: format!("explorer/{}", env!("CARGO_PKG_VERSION")),
        publish_limit_s: PUBLISH_LIMIT_S,
        role,
        topology: Topology::new([server.clone()]),
    })
}
