//! Logging to standard error: text on a terminal, JSON lines otherwise. Everything about a session happens inside
//! [`session_span`], so that each of its lines carries the session's id.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::ids::SessionId;
use crate::problem::{ErrorCode, Problem};

/// Environment variable with the filter, for example `info,common::bus=debug`. `info` when unset.
pub const FILTER_VARIABLE: &str = "PGINSTANT_LOG";

/// Sets up logging for the process; to be called once, first thing.
pub fn init() -> Result<(), Problem> {
    let wrong = |what: String| {
        Problem::new(
            ErrorCode::InvalidConfiguration,
            format!("logging cannot be set up: {what}"),
            format!("correct or unset {FILTER_VARIABLE}"),
        )
    };
    let text = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| "info,lapin=error".to_owned());
    let filter = EnvFilter::try_new(&text).map_err(|error| wrong(error.to_string()))?;
    let registry = tracing_subscriber::registry().with(filter);
    let terminal = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let result = if terminal {
        registry.with(layer.with_target(false)).try_init()
    } else {
        registry.with(layer.json().flatten_event(true)).try_init()
    };
    result.map_err(|error| wrong(error.to_string()))
}

/// The span in which everything about a session happens.
pub fn session_span(session_id: SessionId) -> tracing::Span {
    tracing::info_span!("session", session_id = %session_id)
}
