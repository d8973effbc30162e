//! `mount-svc`: the service on the mount server that takes commands and keeps mounts.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use common::service_main;
use mount_svc::config::Config;

/// Takes commands from the queue, delegates them, opens repositories, makes and keeps mounts, serves pages to agents.
#[derive(Debug, Parser)]
#[command(name = "mount-svc", version)]
struct Arguments {
    /// Configuration file (TOML); every key can be overridden by the environment: PGINSTANT__BROKER__HOST.
    #[arg(long, default_value = "/etc/pginstant/mount-svc.toml")]
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
        mount_svc::run::run,
    )
}
