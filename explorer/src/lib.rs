//! explorer: the command line client of the pginstant message queue.
//!
//! It has no private door: it sends the commands and queries that a third party would, and reads the same events.
//! Everything above [`connect`] works on `Arc<dyn Bus>`; what people read is made by pure functions in [`output`].

mod cli;
mod client;
mod commands;
mod config;
mod connect;
mod exit;
mod follow;
mod output;
mod parked;
mod session_ref;
mod time_args;
mod watch;

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;
use common::problem::{ErrorCode, Problem};

use crate::exit::{Failure, SUCCESS};
use crate::output::Output;

/// Runs one command line and returns the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match cli::Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let output = Output::new(cli.global.output);
    let answer = start(cli, &output);
    match answer {
        Ok(code) => code,
        Err(failure) => {
            if let Failure::Problem(problem) = &failure {
                output.refusal(problem);
            }
            failure.exit_code()
        }
    }
}

fn start(cli: cli::Cli, output: &Output) -> exit::Answer {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| {
            Problem::new(
                ErrorCode::Internal,
                format!("the runtime cannot be started: {error}"),
                "look at the limits of this user (ulimit -a)",
            )
        })?;
    let answer = runtime.block_on(commands::run(cli, output));
    // A blocked read of standard input or of a slow disk must not keep the program alive.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    answer
}

/// Help and version go out as clap prints them; a mistake becomes one sentence.
fn usage(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Ok(()) => SUCCESS,
            Err(_) => ErrorCode::IoFailed.exit_code(),
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => match error.print() {
            Ok(()) => ErrorCode::InvalidField.exit_code(),
            Err(_) => ErrorCode::IoFailed.exit_code(),
        },
        _ => {
            let problem = exit::usage_problem(&error.to_string());
            Output::new(output::Format::Table).refusal(&problem);
            problem.code.exit_code()
        }
    }
}
