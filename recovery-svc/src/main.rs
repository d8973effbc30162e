//! `recovery-svc`: the service on the mount server that drives sessions.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::service_main;
use recovery_svc::Config;

/// Drives sessions: checks, mounts, starts, watches, undoes, retries.
#[derive(Debug, Parser)]
#[command(name = "recovery-svc", version)]
struct Arguments {
    /// Configuration file (TOML); every key can be overridden by the environment: PGINSTANT__BROKER__HOST.
    #[arg(long, default_value = "/etc/pginstant/recovery-svc.toml")]
    config: PathBuf,
    /// Print the configuration as it is understood, and end.
    #[arg(long)]
    print_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    service_main::main(
        &arguments.config,
        arguments.print_config,
        Config::validate,
        recovery_svc::serve,
    )
}
