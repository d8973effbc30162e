//! The only place that prints: results go to standard output, everything else to standard error.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line client writes to its terminal; nothing outside this module does"
)]

pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod human;
pub(crate) mod lists;
pub(crate) mod parked;
pub(crate) mod progress;
pub(crate) mod session;
mod table;

#[cfg(test)]
pub(crate) mod samples;

use std::io::{IsTerminal, Write};

use common::problem::Problem;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::exit::Failure;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Tables and sentences for people: local time, readable sizes.
    Table,
    /// JSON for programs, one object a line: UTC, bytes.
    Json,
}

/// Where and how to write.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) format: Format,
    /// The zone of times in tables.
    pub(crate) zone: TimeZone,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            zone: TimeZone::system(),
        }
    }

    /// Writes a result: JSON of `value`, or the text for people, which is only made when it is wanted.
    pub(crate) fn result<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&TimeZone) -> String,
    ) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json => {
                let mut line = serde_json::to_string(value).map_err(std::io::Error::from)?;
                line.push('\n');
                line
            }
            Format::Table => printable(&text(&self.zone)),
        };
        self.raw(text.as_bytes())
    }

    /// Writes bytes to standard output as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        Ok(())
    }

    /// Begins a new picture: in place on a terminal, after an empty line elsewhere.
    pub(crate) fn redraw(&self, text: &str) -> Result<(), Failure> {
        let begin = match std::io::stdout().is_terminal() {
            true => "\x1b[H\x1b[2J",
            false => "\n",
        };
        self.raw(format!("{begin}{}", printable(text)).as_bytes())
    }

    /// Says something beside the result. Whoever closed standard error does not want to hear it.
    pub(crate) fn note(&self, text: &str) {
        drop(writeln!(std::io::stderr(), "explorer: {}", printable(text)));
    }

    /// Refuses in one sentence.
    pub(crate) fn refusal(&self, problem: &Problem) {
        self.note(&problem.to_string());
    }

    /// Whether progress can be drawn in place.
    pub(crate) fn draws_progress(&self) -> bool {
        std::io::stderr().is_terminal()
    }
}

/// What strangers wrote (reasons, parked bodies) may hold control characters; a terminal must not obey them.
fn printable(text: &str) -> String {
    let safe = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_wrote_cannot_command_the_terminal() {
        assert_eq!(
            printable("a\x1b[2J\tb\u{9b}c\n"),
            "a\u{fffd}[2J\tb\u{fffd}c\n"
        );
    }
}
