//! What `pg_controldata` tells about a data directory.

use std::collections::BTreeMap;
use std::path::Path;

use common::problem::{ErrorCode, Problem};

use crate::hand::command::{CommandLine, run};

/// The labelled values of `pg_controldata`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControlData {
    values: BTreeMap<String, String>,
}

impl ControlData {
    /// Asks the program; to be called in the name of the OS user.
    pub fn read(programs: &Path, data_directory: &Path) -> Result<Self, Problem> {
        let line = CommandLine::new(programs.join("pg_controldata"))
            .args([Path::new("-D"), data_directory]);
        let answer = run(&line)?;
        if !answer.success {
            return Err(Problem::new(
                ErrorCode::CorruptBackup,
                format!(
                    "pg_controldata cannot read {}: {}",
                    data_directory.display(),
                    answer.stderr.trim()
                ),
                "check that the backup is complete and of this major version",
            ));
        }
        Ok(Self::parse(&answer.stdout))
    }

    /// Parses the program's output.
    pub fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            let (label, value) = line.split_once(':')?;
            Some((label.trim().to_owned(), value.trim().to_owned()))
        };
        Self {
            values: text.lines().filter_map(pair).collect(),
        }
    }

    /// A number by its label.
    pub fn number(&self, label: &str) -> Option<u64> {
        self.values.get(label)?.parse().ok()
    }

    /// A value by its label.
    pub fn text(&self, label: &str) -> Option<&str> {
        self.values.get(label).map(String::as_str)
    }

    /// A WAL position by its label; `0/0` means none.
    pub fn position(&self, label: &str) -> Option<String> {
        let value = self.values.get(label)?;
        (value != "0/0").then(|| value.clone())
    }
}

/// The settings that hot standby wants at least as large as the original's, with their labels.
pub const STANDBY_LIMITS: [(&str, &str, u64); 5] = [
    ("max_connections", "max_connections setting", 100),
    ("max_worker_processes", "max_worker_processes setting", 8),
    ("max_wal_senders", "max_wal_senders setting", 10),
    ("max_prepared_transactions", "max_prepared_xacts setting", 0),
    (
        "max_locks_per_transaction",
        "max_locks_per_xact setting",
        64,
    ),
];
