//! What `main` of both services does: configuration, logging, signals, exit code.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::problem::{ErrorCode, Problem};
use crate::telemetry;

/// Runs a service to its end; the exit code is the problem's (78 for a bad configuration).
pub fn main<C, F>(
    path: &Path,
    print_config: bool,
    validate: impl FnOnce(&C) -> Result<(), Problem>,
    run: impl FnOnce(C, CancellationToken) -> F,
) -> ExitCode
where
    C: DeserializeOwned + Serialize,
    F: Future<Output = Result<(), Problem>>,
{
    match try_main(path, print_config, validate, run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!(error = %problem, "the service ends");
            ExitCode::from(problem.code.exit_code())
        }
    }
}

fn try_main<C, F>(
    path: &Path,
    print_config: bool,
    validate: impl FnOnce(&C) -> Result<(), Problem>,
    run: impl FnOnce(C, CancellationToken) -> F,
) -> Result<(), Problem>
where
    C: DeserializeOwned + Serialize,
    F: Future<Output = Result<(), Problem>>,
{
    telemetry::init()?;
    let configuration: C = config::load(path)?;
    validate(&configuration)?;
    if print_config {
        #[expect(clippy::print_stdout, reason = "this is what was asked for")]
        {
            print!("{}", config::print(&configuration));
        }
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Problem::new(
                ErrorCode::Internal,
                format!("start the runtime: {error}"),
                "check the process limits",
            )
        })?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = stop_on_signal(stop.clone());
        let service = run(configuration, stop.clone());
        tokio::pin!(service);
        tokio::select! {
            result = &mut service => return result,
            caught = signals => caught?,
        }
        service.await
    })
}

async fn stop_on_signal(stop: CancellationToken) -> Result<(), Problem> {
    let unable = |error: std::io::Error| {
        Problem::new(
            ErrorCode::Internal,
            format!("listen for signals: {error}"),
            "report this",
        )
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(unable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unable)?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    stop.cancel();
    Ok(())
}
