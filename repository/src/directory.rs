//! A repository that is a directory, or a part of a bucket: one backup itself, or holding backups as its children.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::pg_basebackup::{Place, Siblings, Wal, began, open_backup, outline_of};
use crate::storage::Storage;
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
    open_repository_in(Storage::directory(&real)?, options)
}

/// The same, of a part of a bucket.
pub fn open_repository_in(
    storage: Storage,
    options: OpenOptions,
) -> Result<Box<dyn Repository>, RepositoryError> {
    // Made once, so that all that is opened here shares its bounds.
    let options = OpenOptions {
        decoded: Some(options.decoded_store()),
        ..options
    };
    Ok(Box::new(DirectoryRepository {
        storage: Arc::new(storage),
        options,
    }))
}

#[derive(Debug)]
struct DirectoryRepository {
    storage: Arc<Storage>,
    options: OpenOptions,
}

impl DirectoryRepository {
    /// The one backup that it is, if it is one.
    fn itself(&self) -> Result<Option<Place>, RepositoryError> {
        let label = self.storage.name().unwrap_or("backup");
        let place = Place::at(&self.storage, String::new(), label.to_owned())?;
        Ok(Some(place).filter(Place::looks_like_a_backup))
    }

    /// The backup in a directory, if there is one.
    fn child(&self, label: &str) -> Result<Option<Place>, RepositoryError> {
        let place = Place::at(&self.storage, label.to_owned(), label.to_owned())?;
        Ok(Some(place).filter(Place::looks_like_a_backup))
    }

    /// The backups' places, and whether some were left out.
    fn places(&self) -> Result<(Vec<Place>, bool), RepositoryError> {
        if let Some(itself) = self.itself()? {
            return Ok((vec![itself], false));
        }
        let mut places = Vec::new();
        let names = self.storage.directories("");
        let names = names.map_err(|error| self.unlisted(error))?;
        for name in names.iter().filter(|name| !name.starts_with('.')) {
            let Some(place) = self.child(name)? else {
                continue;
            };
            if places.len() == self.options.limits.backup_count {
                return Ok((places, true));
            }
            places.push(place);
        }
        Ok((places, false))
    }

    fn unlisted(&self, error: io::Error) -> RepositoryError {
        let shown = self.storage.shown();
        match error.kind() {
            io::ErrorKind::NotFound if self.storage.is_in_objects() => {
                RepositoryError::unsupported(
                    shown,
                    "is empty: there are no objects whose keys begin with this",
                    "see that path names the bucket and the prefix of the backups",
                )
            }
            _ => RepositoryError::unreadable(shown, "list repository", error),
        }
    }

    /// Where the parents of incremental backups are looked for.
    fn siblings(&self) -> Siblings<'_> {
        let list = || self.places().map(|(places, _)| places);
        Siblings::new(Box::new(list), &self.options)
    }

    fn unknown(&self, what: String) -> RepositoryError {
        RepositoryError::UnknownBackup {
            repository: self.storage.shown().to_owned(),
            what,
        }
    }

    fn open_label(&self, label: &str) -> Result<Arc<dyn Backup>, RepositoryError> {
        let place = match self.itself()? {
            Some(itself) => Some(itself).filter(|itself| itself.label == label),
            None => {
                let plain =
                    !label.is_empty() && !label.starts_with('.') && !label.contains(['/', '\0']);
                match plain {
                    true => self.child(label)?,
                    false => None,
                }
            }
        };
        let place = place.ok_or_else(|| self.unknown(format!("backup {label:?}")))?;
        self.open_place(&place, &self.siblings())
    }

    /// Opens a backup; WAL that it does not bring along has to be in the archive.
    fn open_place(
        &self,
        place: &Place,
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
        place: &Place,
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
                let age = |place: &Place| (known.get(&place.label).copied(), place.label.clone());
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
            Some(place) => Some(shared(Arc::new(WalDirectory::open(place)?), points)),
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
