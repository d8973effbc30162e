//! What every part of pginstant shares: the contract that crosses process boundaries, the bus that
//! carries it, the session state machine, configuration and telemetry.
//!
//! The types (`ids`, `messages`, `agent`, `problem`, `session`, `wal`) need no runtime and are all that the agent uses;
//! the rest is behind the feature `service`.

pub mod agent;
pub mod ids;
pub mod messages;
pub mod problem;
pub mod session;
pub mod wal;

#[cfg(feature = "service")]
pub mod bus;
#[cfg(feature = "service")]
pub mod config;
#[cfg(feature = "service")]
pub mod env;
#[cfg(feature = "service")]
pub mod http;
#[cfg(feature = "service")]
pub mod journal;
#[cfg(feature = "service")]
pub mod service_main;
#[cfg(feature = "service")]
pub mod telemetry;
#[cfg(feature = "service")]
pub mod topology;
