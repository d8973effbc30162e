//! `explorer completions`: the script that completes our command line in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::{Answer, SUCCESS};
use crate::output::Output;

/// Prints the script.
pub(super) fn run(shell: Shell, output: &Output) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "explorer", &mut script);
    output.raw(&script)?;
    Ok(SUCCESS)
}
