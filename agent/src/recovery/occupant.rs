//! The server that runs in a data directory, as its `postmaster.pid` and the process table together tell.

use std::path::Path;

use common::problem::Problem;

use crate::hand::os_user::Account;
use crate::postgresql::host_files::read_limited;
use crate::postgresql::process::{self, Process};

/// A running postmaster and what it wrote about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Occupant {
    pub(super) process: Process,
    pub(super) port: Option<u16>,
    /// `starting`, `standby`, `ready` (for reads at least) or `stopping`.
    pub(super) state: String,
}

/// The server that runs in the data directory, if there is one.
pub(super) fn of(data_directory: &Path, account: &Account) -> Result<Option<Occupant>, Problem> {
    let read = account.act(|| {
        let real = std::fs::canonicalize(data_directory).ok()?;
        let text = read_limited(&real.join("postmaster.pid")).ok()?;
        Some((real, text))
    })?;
    let Some((real, text)) = read else {
        return Ok(None);
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let pid = lines.first().and_then(|line| line.parse::<i32>().ok());
    // The file outlives its server, and its number is used again: the process must work in this very directory.
    let Some(process) = pid.and_then(process::by_number) else {
        return Ok(None);
    };
    if !process::working_in(&real, account.uid).contains(&process) {
        return Ok(None);
    }
    Ok(Some(Occupant {
        process,
        port: lines.get(3).and_then(|line| line.parse().ok()),
        state: lines
            .get(7)
            .map(|line| (*line).to_owned())
            .unwrap_or_default(),
    }))
}
