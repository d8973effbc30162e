//! The program `pginstant-agent`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
#[command(version, about = "The part of pginstant that runs on the target host")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep a mount (started by the hand).
    Supervise {
        /// Specification in JSON.
        #[arg(long)]
        spec: String,
    },
    /// Serve a mount (started by the supervisor).
    Worker {
        /// Specification in JSON.
        #[arg(long)]
        spec: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .init();
    match arguments.command {
        Command::Supervise { spec } => agent::supervisor::command(&spec),
        Command::Worker { spec } => agent::worker::command(&spec),
    }
}
