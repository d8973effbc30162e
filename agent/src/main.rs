//! `pginstant-agent`: parses its arguments, sets up its log on standard error and hands over to the library.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use agent::hand::Hand;
use agent::hand::fuse_mounts::FuseMounts;
use agent::hand::listen::{self, Access};
use clap::{Parser, Subcommand};
use common::problem::{ErrorCode, Problem};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: agent::sys::PresentBuffers = agent::sys::PresentBuffers;

/// Acts on a target host for pginstant: mounts backups and runs PostgreSQL on them.
#[derive(Debug, Parser)]
#[command(name = "pginstant-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer requests on standard input until it ends.
    Serve,
    /// Answer requests on each connection of a Unix socket.
    Listen {
        /// Path of the socket.
        #[arg(long)]
        socket: PathBuf,
        /// Group that may connect.
        #[arg(long)]
        group: Option<String>,
        /// Permission bits of the socket, octal; 660 with a group, 600 without.
        #[arg(long, value_parser = octal)]
        mode: Option<u32>,
    },
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

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permission bits such as 660 are wanted".into()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let result = match arguments.command {
        // These two have runtimes of their own.
        Command::Supervise { spec } => return agent::supervisor::command(&spec),
        Command::Worker { spec } => return agent::worker::command(&spec),
        Command::Serve => run(Service::Serve),
        Command::Listen {
            socket,
            group,
            mode,
        } => run(Service::Listen {
            socket,
            group,
            mode,
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!("{problem}");
            ExitCode::from(problem.code.exit_code())
        }
    }
}

enum Service {
    Serve,
    Listen {
        socket: PathBuf,
        group: Option<String>,
        mode: Option<u32>,
    },
}

fn run(service: Service) -> Result<(), Problem> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| agent::hand::failure(ErrorCode::IoFailed, "start the runtime", e))?;
    let hand = Hand::new(FuseMounts);
    let result = runtime.block_on(async {
        match service {
            Service::Serve => {
                let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
                let socket = std::io::stdin().as_fd().try_clone_to_owned();
                let socket = socket
                    .ok()
                    .filter(|socket| common::agent::passing::is_possible(socket));
                agent::hand::serve::serve(hand, input, output, socket)
                    .await
                    .map_err(|e| agent::hand::failure(ErrorCode::IoFailed, "serve requests", e))
            }
            Service::Listen {
                socket,
                group,
                mode,
            } => {
                let group = group
                    .as_deref()
                    .map(agent::hand::os_user::group_number)
                    .transpose()?;
                let listener = listen::bind(&socket, &Access { group, mode })?;
                let shutdown = CancellationToken::new();
                let stop = shutdown.clone();
                tokio::select! {
                    () = listen::run(hand, listener, shutdown) => {}
                    () = told_to_stop() => stop.cancel(),
                }
                std::fs::remove_file(&socket)
                    .map_err(|e| agent::hand::failure(ErrorCode::IoFailed, "remove the socket", e))
            }
        }
    });
    // A request that hangs on a dead mount must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// Waits for SIGTERM or SIGINT.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}
