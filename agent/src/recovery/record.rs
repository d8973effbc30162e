//! What we did in the final place, written durably before it is done: by it every request goes on where an earlier one was killed,
//! and nothing is removed or put back that the record does not name as ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::agent::hand::SessionPlace;
use common::problem::{ErrorCode, Problem};
use serde::{Deserialize, Serialize};

use super::directory::Before;
use super::io_failed;
use super::manager::Manager;
use crate::hand::write_durably;

/// Everything that must be known after a crash. Lies in the session's directory, which is ours and not the OS user's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// What there was in each directory of the final place before us.
    pub(super) directories: BTreeMap<PathBuf, Before>,
    /// The server that ran in the data directory and that we stopped.
    pub(super) original: Option<Original>,
    /// The copy: from here on the directories' contents are ours.
    pub(super) copy: Option<Copy>,
    /// Whether the published instance was made read-only.
    pub(super) frozen: bool,
    /// How the standby is being made the instance that stays.
    pub(super) settling: Option<Settled>,
    /// How it became the instance that stays.
    pub(super) settled: Option<Settled>,
}

/// A server that ran in the data directory and that we stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Original {
    /// How the host had started it.
    pub(super) manager: Manager,
}

/// A copy of the published instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Copy {
    /// How many bytes were copied; known when all were.
    pub(super) complete_bytes: Option<u64>,
}

/// How the instance that stays came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settled {
    /// How it is started.
    pub(super) manager: Manager,
    /// Sentences for people.
    pub(super) remarks: Vec<String>,
    /// Settings at the end of `postgresql.auto.conf` that only its first start needs.
    pub(super) temporary: Vec<(String, String)>,
    /// The last timeline that is used when it becomes an instance of its own; it takes a later one.
    #[serde(default)]
    pub(super) left_timeline: u32,
    /// Whether it was seen to accept writes and the temporary settings were taken back.
    pub(super) complete: bool,
}

impl Record {
    fn path(place: &SessionPlace) -> PathBuf {
        place.session_directory().join("recovery.json")
    }

    /// The record as it is on disk; an empty one if there is none.
    pub(super) fn load(place: &SessionPlace) -> Result<Self, Problem> {
        let path = Self::path(place);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(io_failed(format!("read {}", path.display()), error)),
        };
        serde_json::from_str(&text).map_err(|error| {
            Problem::new(
                ErrorCode::CacheInUse,
                format!("{} is not to be understood: {error}", path.display()),
                "use the version of pginstant that wrote it",
            )
        })
    }

    /// Writes it durably.
    pub(super) fn save(&self, place: &SessionPlace) -> Result<(), Problem> {
        let path = Self::path(place);
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Problem::new(ErrorCode::Internal, e.to_string(), "report this"))?;
        write_durably(&path, &text, 0o600)
            .map_err(|e| io_failed(format!("write {}", path.display()), e))
    }

    /// Directories that were set aside: from, to.
    pub(super) fn aside(&self) -> impl Iterator<Item = (&PathBuf, &PathBuf)> {
        self.directories.iter().filter_map(|(path, before)| {
            let Before::Aside { to, .. } = before else {
                return None;
            };
            Some((path, to))
        })
    }

    /// What was in this directory before us, if we have touched it.
    pub(super) fn before(&self, path: &Path) -> Option<&Before> {
        self.directories.get(path)
    }
}

/// Why the session's directory must not be removed: by its record alone the original can be put back.
pub(crate) fn holds_what_must_stay(place: &SessionPlace) -> Option<String> {
    let record = Record::load(place).ok()?;
    if record.settled.is_some() {
        return None;
    }
    if let Some((_, to)) = record.aside().next() {
        return Some(format!(
            "the original is still set aside in {}",
            to.display()
        ));
    }
    record
        .copy
        .is_some()
        .then(|| "its half-made standby is still there".to_owned())
}
