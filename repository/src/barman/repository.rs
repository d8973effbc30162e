//! A server of Barman as a repository of backups.

use std::path::Path;
use std::sync::Arc;

use super::backup_info::{BackupInfo, Status};
use super::layout::slow_layout;
use super::server::{Server, is_backup_id};
use super::wal::{WalRange, find_wal};
use super::wal_storage::BarmanWal;
use crate::pg_basebackup::{Place, Siblings, TablespaceDirectory, Wal, open_backup};
use crate::wal_archive::shared;
use crate::with_wal::{BackupWithWal, Parts};
use crate::{
    Backup, BackupChoice, BackupFormat, OpenOptions, Repository, RepositoryError, RestorePoint,
    RestorePoints, WalArchive, WalArchives,
};

/// Opens a server of Barman: its directory below `barman_home`, or that one if it has no other server.
pub fn open_barman(
    path: &Path,
    options: OpenOptions,
) -> Result<Box<dyn Repository>, RepositoryError> {
    let server = Server::open(path)?;
    // Made once, so that all that is opened here shares its bounds.
    let options = OpenOptions {
        decoded: Some(options.decoded_store()),
        ..options
    };
    Ok(Box::new(BarmanRepository {
        server: Arc::new(server),
        options,
    }))
}

#[derive(Debug)]
struct BarmanRepository {
    server: Arc<Server>,
    options: OpenOptions,
}

impl BarmanRepository {
    fn unknown(&self, what: String) -> RepositoryError {
        RepositoryError::UnknownBackup {
            repository: self.server.storage().shown().to_owned(),
            what,
        }
    }

    fn usable(&self, id: &str) -> Result<BackupInfo, RepositoryError> {
        let status = self.server.backup_info(id)?;
        match status.ok_or_else(|| self.unknown(format!("backup {id:?}")))? {
            Status::Usable(info) => Ok(info),
            Status::Unusable { reason, remedy } => {
                let file = format!("{id}/backup.info");
                Err(RepositoryError::unsupported(file, reason, remedy))
            }
        }
    }

    fn place(&self, id: &str, info: &BackupInfo) -> Result<Place, RepositoryError> {
        let storage = self.server.storage();
        let mut place = Place::at(storage, format!("base/{id}/data"), id.to_owned())?;
        let beside = info.tablespaces.iter().filter_map(|tablespace| {
            let path = format!("base/{id}/{}", tablespace.oid);
            storage.has_directory(&path).ok()?;
            Some(TablespaceDirectory {
                path,
                tablespace: tablespace.clone(),
            })
        });
        place.tablespaces = beside.collect();
        Ok(place)
    }

    /// Where the parents of incremental backups are looked for.
    fn siblings(&self) -> Siblings<'_> {
        let list = || {
            let mut places = Vec::new();
            for id in self.server.backup_ids()? {
                // One that cannot be used is nobody's parent; opening it says why.
                if let Ok(info) = self.usable(&id) {
                    places.push(self.place(&id, &info)?);
                }
            }
            Ok(places)
        };
        Siblings::new(Box::new(list), &self.options)
    }

    fn open_id(
        &self,
        id: &str,
        siblings: &Siblings<'_>,
    ) -> Result<Arc<dyn Backup>, RepositoryError> {
        let info = self.usable(id)?;
        let place = self.place(id, &info)?;
        let backup = open_backup(&place, siblings, Wal::Elsewhere, &self.options)?;
        let mut restore_point = backup.restore_point().clone();
        let begins = restore_point.recoverable;
        if begins.from_lsn != info.begin_lsn || begins.timeline != info.timeline {
            let reason = format!(
                "of backup {id} begins at {} on timeline {}, and backup.info says {} on timeline {}",
                begins.from_lsn, begins.timeline, info.begin_lsn, info.timeline
            );
            return Err(RepositoryError::corrupt("backup_label", reason));
        }
        restore_point.slow_layout = restore_point.slow_layout.map(slow_layout);
        restore_point.format = BackupFormat::Barman;
        restore_point.started_at = info.started_at.or(restore_point.started_at);
        restore_point.stopped_at = info.stopped_at;
        // The manifest's end is the exact one; Barman rounds it up to the segment's.
        let end_lsn = begins.to_lsn.unwrap_or(info.end_lsn);
        restore_point.recoverable.to_lsn = Some(end_lsn);
        restore_point.system_identifier =
            restore_point.system_identifier.or(info.system_identifier);
        let segments = find_wal(
            &self.server,
            &WalRange {
                timeline: info.timeline,
                start_lsn: info.begin_lsn,
                end_lsn,
                segment_bytes: info.segment_bytes,
                system_identifier: restore_point.system_identifier,
            },
        )?;
        Ok(Arc::new(BackupWithWal::new(Parts {
            backup,
            storage: Arc::clone(self.server.storage()),
            segments,
            segment_bytes: info.segment_bytes,
            restore_point,
            store: self.options.decoded_store(),
            limits: self.options.limits,
        })?))
    }
}

impl Repository for BarmanRepository {
    fn restore_points(&self) -> Result<RestorePoints, RepositoryError> {
        let siblings = self.siblings();
        let mut found = RestorePoints::default();
        for (number, id) in self.server.backup_ids()?.iter().rev().enumerate() {
            if number == self.options.limits.backup_count {
                found.truncated = true;
                break;
            }
            match self.open_id(id, &siblings) {
                Ok(backup) => found.restore_points.push(backup.restore_point().clone()),
                Err(error) => found.problems.push((id.clone(), error)),
            }
        }
        Ok(found)
    }

    fn open(&self, which: BackupChoice<'_>) -> Result<Arc<dyn Backup>, RepositoryError> {
        let siblings = self.siblings();
        if let BackupChoice::Label(id) = which {
            return match is_backup_id(id) {
                true => self.open_id(id, &siblings),
                false => Err(self.unknown(format!("backup {id:?}"))),
            };
        }
        let mut problem = None;
        for id in self.server.backup_ids()?.iter().rev() {
            match self.open_id(id, &siblings) {
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
        let storage = shared(Arc::new(BarmanWal::of(&self.server)), points);
        let archives = points.iter().map(|point| {
            let segment_bytes = self.usable(&point.label)?.segment_bytes;
            let (storage, store) = (Arc::clone(&storage), self.options.decoded_store());
            let archive = WalArchive::new(storage, store, point, Some(segment_bytes));
            Ok(Some(archive))
        });
        Ok(archives.collect())
    }
}
