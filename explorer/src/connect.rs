//! Opens the bus that the configuration names: the only file that knows which broker it is.

use std::sync::Arc;

use common::bus::{Bus, BusError};
use common::env::Env;
use common::ids::ServerName;

use crate::cli::Topology;
use crate::config::ExplorerConfig;

/// The bus, or why it cannot be had.
pub(crate) async fn open(config: &ExplorerConfig, _env: &Env) -> Result<Arc<dyn Bus>, BusError> {
    let address = (config.broker.host.as_str(), config.broker.port);
    let reached = tokio::time::timeout(
        std::time::Duration::from_secs(8),
        tokio::net::TcpStream::connect(address),
    )
    .await;
    let error = match reached {
        Ok(Ok(_)) => "this build has no AMQP".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it does not answer within 8 s".to_owned(),
    };
    Err(BusError::Unreachable(format!(
        "{}:{}: {error}",
        address.0, address.1
    )))
}

/// Makes or checks the exchanges and queues of a mount server.
pub(crate) async fn topology(
    config: &ExplorerConfig,
    _server: &ServerName,
    _what: Topology,
) -> Result<(), BusError> {
    open(config, &Env::system()).await.map(drop)
}
