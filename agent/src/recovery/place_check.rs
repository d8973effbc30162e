//! May the directories of the final place be used?

use std::path::{Component, Path, PathBuf};

use common::agent::hand::{RecoveryResponse, Replace};
use common::problem::{ErrorCode, Problem};

use super::directory::{self, Found};
use super::{Recovery, occupant};

impl Recovery<'_> {
    /// Looks at everything and changes nothing.
    pub(super) fn check(&self) -> Result<RecoveryResponse, Problem> {
        self.check_paths()?;
        let record = self.record()?;
        let mut occupied = Vec::new();
        for path in self.directories() {
            self.check_parent(path)?;
            // What we have set aside, made or filled already is no obstacle.
            if record.before(path).is_some() {
                continue;
            }
            if let Found::Occupied { real, .. } = directory::look(path, &self.account)? {
                self.check_replaceable(path, &real)?;
                occupied.push(path.clone());
            }
        }
        let data = &self.final_place.data_directory;
        let running_port = match record.copy.is_none() {
            true => occupant::of(data, &self.account)?.map(|found| found.port.unwrap_or(0)),
            false => None,
        };
        Ok(RecoveryResponse::Checked {
            running_port,
            occupied,
        })
    }

    /// Refuses an occupied directory that may not, or cannot, be moved aside.
    pub(super) fn check_replaceable(&self, path: &Path, real: &Path) -> Result<(), Problem> {
        if self.final_place.replace == Replace::Never {
            return Err(Problem::new(
                ErrorCode::DirectoryNotEmpty,
                format!("{} is not empty", path.display()),
                "name another directory, or agree that it is moved aside (--replace)",
            ));
        }
        directory::check_movable(real, &self.aside_name(real))
    }

    pub(super) fn aside_name(&self, real: &Path) -> PathBuf {
        directory::aside_name(real, &self.place.session_id.to_string())
    }

    /// Paths must be plain, and none within another or the session's own.
    pub(super) fn check_paths(&self) -> Result<(), Problem> {
        let refused = |path: &Path, why: String| {
            Problem::new(
                ErrorCode::InvalidField,
                format!("{} cannot be used: {why}", path.display()),
                "name another directory",
            )
        };
        let all: Vec<&PathBuf> = self.directories().collect();
        for (index, path) in all.iter().enumerate() {
            let plain = path
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            if !path.is_absolute() || !plain || path.file_name().is_none() {
                return Err(refused(
                    path,
                    "an absolute path without . or .. is wanted".into(),
                ));
            }
            let text = path.to_string_lossy();
            if path.to_str().is_none() || text.contains(['\n', '\r', '\'']) {
                return Err(refused(
                    path,
                    "its name holds what PostgreSQL cannot take".into(),
                ));
            }
            let real = resolved(path);
            let roots = [&self.place.mount_root, &self.place.cache_root];
            for other in all.iter().take(index).chain(&roots) {
                let other_real = resolved(other);
                if real.starts_with(&other_real) || other_real.starts_with(&real) {
                    return Err(refused(
                        path,
                        format!("{} lies in it, or it in that", other.display()),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_parent(&self, path: &Path) -> Result<(), Problem> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let facts = self.account.act(|| std::fs::metadata(parent.join(".")))?;
        let is_directory = match facts {
            Ok(facts) => facts.is_dir(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => {
                return Err(crate::hand::failure(
                    ErrorCode::PermissionDenied,
                    format!("enter {} as {}", parent.display(), self.account.name),
                    error,
                ));
            }
        };
        if is_directory {
            return Ok(());
        }
        Err(Problem::new(
            ErrorCode::InvalidField,
            format!("{} does not exist", parent.display()),
            format!("make it, so that {} can enter it", self.account.name),
        ))
    }
}

/// The path with the links in it followed, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = std::fs::canonicalize(path) {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path.to_owned(),
    }
}
