//! A repository that is a directory: one backup itself, or holding backups as its children.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::pg_basebackup::{
    Place, Siblings, Wal, began, looks_like_a_backup, open_backup, outline_of,
};
use crate::wal_archive::{WalDirectory, shared, with_archived_wal};
use crate::{
    Backup, BackupChoice, OpenOptions, Repository, RepositoryError, RestorePoint, RestorePoints,
    WalArchive, WalArchives,
};

/// Opens a repository: a directory that is one backup, or whose children are. The label of a backup is its directory's name.
pub fn open_repository(
    path: &Path,
    options: OpenOptions,
) -> Result<Box<dyn Repository>, RepositoryError> {
    let shown = || path.display().to_string();
    let real = path.canonicalize();
    let real =
        real.map_err(|error| RepositoryError::unreadable(shown(), "open repository", error))?;
    if !real.is_dir() {
        let error = io::Error::from(io::ErrorKind::NotADirectory);
        return Err(RepositoryError::unreadable(
            shown(),
            "open repository",
            error,
        ));
    }
    // Made once, so that all that is opened here shares its bounds.
    let options = OpenOptions {
        decoded: Some(options.decoded_store()),
        ..options
    };
    Ok(Box::new(DirectoryRepository {
        path: real,
        options,
    }))
}

#[derive(Debug)]
struct DirectoryRepository {
    path: PathBuf,
    options: OpenOptions,
}

impl DirectoryRepository {
    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn unreadable(&self, error: io::Error) -> RepositoryError {
        RepositoryError::unreadable(self.shown(), "list repository", error)
    }

    /// The backups' places, and whether some were left out.
    fn places(&self) -> Result<(Vec<Place<'_>>, bool), RepositoryError> {
        if looks_like_a_backup(&self.path) {
            let name = self.path.file_name().and_then(|name| name.to_str());
            let label = name.unwrap_or("backup").to_owned();
            return Ok((vec![self.place(self.path.clone(), label)], false));
        }
        let mut places = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(|error| self.unreadable(error))? {
            let entry = entry.map_err(|error| self.unreadable(error))?;
            let is_directory = entry
                .file_type()
                .map_err(|error| self.unreadable(error))?
                .is_dir();
            // A name that is not UTF-8 cannot be a label.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if !is_directory || name.starts_with('.') || !looks_like_a_backup(&entry.path()) {
                continue;
            }
            if places.len() == self.options.limits.backup_count {
                return Ok((places, true));
            }
            places.push(self.place(entry.path(), name));
        }
        Ok((places, false))
    }

    fn place(&self, path: PathBuf, label: String) -> Place<'_> {
        Place {
            repository: &self.path,
            path,
            label,
            tablespaces: Vec::new(),
        }
    }

    /// Where the parents of incremental backups are looked for.
    fn siblings(&self) -> Siblings<'_> {
        let list = || self.places().map(|(places, _)| places);
        Siblings::new(Box::new(list), &self.options)
    }

    fn unknown(&self, what: String) -> RepositoryError {
        RepositoryError::UnknownBackup {
            repository: self.shown(),
            what,
        }
    }

    fn open_label(&self, label: &str) -> Result<Arc<dyn Backup>, RepositoryError> {
        let itself = looks_like_a_backup(&self.path);
        let own = self
            .path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("backup");
        let path = match itself {
            true if label == own => Some(self.path.clone()),
            true => None,
            false => {
                let plain =
                    !label.is_empty() && !label.starts_with('.') && !label.contains(['/', '\0']);
                let child = plain.then(|| self.path.join(label));
                child.filter(|child| {
                    let directory = child.symlink_metadata().is_ok_and(|found| found.is_dir());
                    directory && looks_like_a_backup(child)
                })
            }
        };
        let path = path.ok_or_else(|| self.unknown(format!("backup {label:?}")))?;
        let place = self.place(path, label.to_owned());
        self.open_place(&place, &self.siblings())
    }

    /// Opens a backup; WAL that it does not bring along has to be in the archive.
    fn open_place(
        &self,
        place: &Place<'_>,
        siblings: &Siblings<'_>,
    ) -> Result<Arc<dyn Backup>, RepositoryError> {
        let options = &self.options;
        match &options.wal_archive {
            None => open_backup(place, siblings, Wal::InBackup, options),
            Some(archive) => {
                let backup = open_backup(place, siblings, Wal::InBackupIfAny, options)?;
                with_archived_wal(backup, archive, options)
            }
        }
    }

    /// Describes a backup: a compressed tar backup by its outline where that tells enough, others by opening them.
    fn describe(
        &self,
        place: &Place<'_>,
        siblings: &Siblings<'_>,
    ) -> Result<RestorePoint, RepositoryError> {
        match outline_of(place) {
            Some(point) => Ok(point),
            None => Ok(self.open_place(place, siblings)?.restore_point().clone()),
        }
    }

    // To open a backup is to read its whole list of files: where their labels say which one is the newest, it is the only one
    // that is opened, else all are, and the newest stays open.
    fn open_newest(&self) -> Result<Arc<dyn Backup>, RepositoryError> {
        let mut places = self.places()?.0;
        let known: Option<BTreeMap<_, _>> = places
            .iter()
            .map(|place| Some((place.label.clone(), began(place)?)))
            .collect();
        if let Some(known) = &known {
            places.sort_by(|a, b| {
                let age =
                    |place: &Place<'_>| (known.get(&place.label).copied(), place.label.clone());
                age(b).cmp(&age(a))
            });
        }
        let siblings = self.siblings();
        let mut newest: Option<Arc<dyn Backup>> = None;
        let mut problem: Option<(String, RepositoryError)> = None;
        for place in places {
            if known.is_some() && newest.is_some() {
                break;
            }
            match self.open_place(&place, &siblings) {
                Ok(backup) => {
                    let is_newer = |than: &Arc<dyn Backup>| {
                        age(backup.restore_point()) > age(than.restore_point())
                    };
                    if newest.as_ref().is_none_or(is_newer) {
                        newest = Some(backup);
                    }
                }
                Err(error)
                    if problem
                        .as_ref()
                        .is_none_or(|(label, _)| place.label < *label) =>
                {
                    problem = Some((place.label, error));
                }
                Err(_) => {}
            }
        }
        match (newest, problem) {
            (Some(newest), _) => Ok(newest),
            // There are backups, but none can be opened: the reason of the first says more than "none".
            (None, Some((_, error))) => Err(error),
            (None, None) => Err(self.unknown("backup".into())),
        }
    }
}

// The larger the newer; of those begun in the same second the one further on in the WAL.
fn age(point: &RestorePoint) -> impl Ord + use<'_> {
    let from_lsn = point.recoverable.from_lsn;
    (point.started_at, from_lsn, &point.label)
}

impl Repository for DirectoryRepository {
    fn restore_points(&self) -> Result<RestorePoints, RepositoryError> {
        let (mut places, truncated) = self.places()?;
        // Those of one chain mostly stand together then, and none is opened for each of them.
        places.sort_by(|a, b| a.label.cmp(&b.label));
        let siblings = self.siblings();
        let mut found = RestorePoints {
            truncated,
            ..RestorePoints::default()
        };
        for place in places {
            match self.describe(&place, &siblings) {
                Ok(point) => found.restore_points.push(point),
                Err(error) => found.problems.push((place.label, error)),
            }
        }
        found.restore_points.sort_by(|a, b| age(b).cmp(&age(a)));
        found.problems.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    }

    fn open(&self, which: BackupChoice<'_>) -> Result<Arc<dyn Backup>, RepositoryError> {
        match which {
            BackupChoice::Label(label) => self.open_label(label),
            BackupChoice::Newest => self.open_newest(),
        }
    }

    fn wal_archives(&self, points: &[RestorePoint]) -> Result<WalArchives, RepositoryError> {
        let storage = match &self.options.wal_archive {
            Some(path) => Some(shared(Arc::new(WalDirectory::open(path)?), points)),
            None => None,
        };
        let archives = points.iter().map(|point| {
            let storage = storage.clone();
            let store = self.options.decoded_store();
            Ok(storage.map(|storage| WalArchive::new(storage, store, point, None)))
        });
        Ok(archives.collect())
    }
}
