//! A stanza as a repository of backups.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::Arc;

use super::archive::ArchiveListing;
use super::backup_info::BackupInfo;
use super::check::Opening;
use super::passphrase::Passphrase;
use super::stanza::{Stanza, StanzaOptions};
use super::wal_storage::PgBackRestWal;
use crate::storage::Storage;
use crate::wal_archive::{WalStorage, shared};
use crate::{
    Backup, BackupChoice, DecodedStore, OpenOptions, Repository, RepositoryError, RestorePoint,
    RestorePoints, WalArchive, WalArchives,
};

/// What is particular to repositories of pgBackRest.
#[derive(Debug, Clone, Default)]
pub struct PgBackRestOptions {
    /// The stanza; absent: the only one there is.
    pub stanza: Option<String>,
    /// `repo1-cipher-pass`, if the repository is encrypted.
    pub passphrase: Option<Passphrase>,
    /// What the caller calls the setting behind `passphrase`, for refusals to name.
    pub passphrase_setting: String,
}

/// Opens a repository of pgBackRest: the directory that is `repo1-path`.
pub fn open_pgbackrest(
    path: &Path,
    pgbackrest: &PgBackRestOptions,
    options: OpenOptions,
) -> Result<Box<dyn Repository>, RepositoryError> {
    open_pgbackrest_in(Storage::directory(path)?, pgbackrest, options)
}

/// Opens a repository of pgBackRest that lies in `storage`: there is `repo1-path`.
pub fn open_pgbackrest_in(
    storage: Storage,
    pgbackrest: &PgBackRestOptions,
    options: OpenOptions,
) -> Result<Box<dyn Repository>, RepositoryError> {
    let stanza = Stanza::open(StanzaOptions {
        storage,
        name: pgbackrest.stanza.as_deref(),
        passphrase: pgbackrest.passphrase.as_ref(),
        passphrase_setting: match pgbackrest.passphrase_setting.as_str() {
            "" => "the passphrase",
            setting => setting,
        },
    })?;
    let store = options.decoded_store();
    Ok(Box::new(PgBackRestRepository {
        stanza: Arc::new(stanza),
        options,
        store,
    }))
}

#[derive(Debug)]
struct PgBackRestRepository {
    stanza: Arc<Stanza>,
    options: OpenOptions,
    store: Arc<DecodedStore>,
}

impl PgBackRestRepository {
    fn open_label(
        &self,
        info: &BackupInfo,
        label: &str,
        listing: &mut ArchiveListing,
    ) -> Result<Arc<dyn Backup>, RepositoryError> {
        let listed = info.backups.get(label);
        let listed = listed.ok_or_else(|| self.unknown(format!("backup {label:?}")))?;
        Opening {
            stanza: &self.stanza,
            info,
            label,
            listed,
            limits: self.options.limits,
            store: &self.store,
        }
        .open(listing)
    }

    fn unknown(&self, what: String) -> RepositoryError {
        RepositoryError::UnknownBackup {
            repository: format!("{} (stanza {})", self.stanza.shown, self.stanza.name),
            what,
        }
    }

    /// Labels from the one begun last on: their order is that of the times in them, whatever they stand on.
    fn newest_first(info: &BackupInfo) -> Vec<&str> {
        let mut labels: Vec<&str> = info.backups.keys().map(String::as_str).collect();
        let time = |label: &str| label.rsplit('_').next().map(str::to_owned);
        labels.sort_by_key(|label| std::cmp::Reverse(time(label)));
        labels
    }
}

impl Repository for PgBackRestRepository {
    fn restore_points(&self) -> Result<RestorePoints, RepositoryError> {
        let info = self.stanza.backup_info()?;
        let mut found = RestorePoints::default();
        let mut listing = ArchiveListing::default();
        for (number, label) in Self::newest_first(&info).into_iter().enumerate() {
            if number == self.options.limits.backup_count {
                found.truncated = true;
                break;
            }
            match self.open_label(&info, label, &mut listing) {
                Ok(backup) => found.restore_points.push(backup.restore_point().clone()),
                Err(error) => found.problems.push((label.to_owned(), error)),
            }
        }
        Ok(found)
    }

    fn open(&self, which: BackupChoice<'_>) -> Result<Arc<dyn Backup>, RepositoryError> {
        let info = self.stanza.backup_info()?;
        let mut listing = ArchiveListing::default();
        let label = match which {
            BackupChoice::Label(label) => return self.open_label(&info, label, &mut listing),
            BackupChoice::Newest => Self::newest_first(&info),
        };
        let mut problem = None;
        for label in label {
            match self.open_label(&info, label, &mut listing) {
                Ok(backup) => return Ok(backup),
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        // There are backups, but none can be opened: why the newest cannot says more than "none".
        Err(problem.unwrap_or_else(|| self.unknown("backup".into())))
    }

    fn wal_archives(&self, points: &[RestorePoint]) -> Result<WalArchives, RepositoryError> {
        let info = self.stanza.backup_info()?;
        // Each cluster has an archive of its own.
        let mut known: BTreeMap<u32, Option<Arc<dyn WalStorage>>> = BTreeMap::new();
        let archives = points.iter().map(|point| {
            let Some(listed) = info.backups.get(&point.label) else {
                return Ok(None);
            };
            let storage = match known.entry(listed.db_id) {
                Entry::Occupied(found) => found.get().clone(),
                Entry::Vacant(place) => {
                    let found = PgBackRestWal::of(&self.stanza, &info, &point.label)?;
                    let found = found.map(|found| shared(Arc::new(found), points));
                    place.insert(found).clone()
                }
            };
            let store = Arc::clone(&self.store);
            Ok(storage.map(|storage| WalArchive::new(storage, store, point, None)))
        });
        Ok(archives.collect())
    }
}
