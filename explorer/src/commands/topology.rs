//! `explorer topology`: makes or checks the exchanges and queues.

use common::ids::ServerName;

use crate::cli::Topology;
use crate::config::ExplorerConfig;
use crate::exit::{Answer, SUCCESS};
use crate::output::Output;

/// Applies or checks; a difference is a refusal with exit code 78.
pub(super) async fn run(
    what: Topology,
    config: &ExplorerConfig,
    server: &ServerName,
    output: &Output,
) -> Answer {
    crate::connect::topology(config, server, what).await?;
    let state = match what {
        Topology::Apply => "applied",
        Topology::Check => "as it must be",
    };
    let value = serde_json::json!({ "server": server, "topology": state });
    output.result(&value, |_| {
        format!("the topology for mount server {server} is {state}\n")
    })?;
    Ok(SUCCESS)
}
