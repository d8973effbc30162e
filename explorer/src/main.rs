//! The command line client of pginstant: see `explorer::run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(explorer::run(std::env::args_os()))
}
