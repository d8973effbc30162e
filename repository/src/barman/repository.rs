//! A server of Barman as a repository of backups.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::backup_info::{BackupInfo, Status};
use super::layout::{slow_cloud_layout, slow_layout};
use super::server::{Server, is_backup_id};
use super::wal::{WalRange, find_wal};
use super::wal_storage::BarmanWal;
use crate::pg_basebackup::{Place, Siblings, TablespaceDirectory, Wal, open_backup};
use crate::restore_point::RecoverableInterval;
use crate::storage::Storage;
use crate::wal_archive::shared;
use crate::with_wal::{BackupWithWal, Parts};
use crate::{
    Backup, BackupChoice, BackupFormat, BackupKind, Lsn, OpenOptions, Repository, RepositoryError,
    RestorePoint, RestorePoints, Verification, WalArchive, WalArchives,
};

/// Opens a server of Barman: its directory below `barman_home`, or that one if it has no other server.
pub fn open_barman(
    path: &Path,
    options: OpenOptions,
) -> Result<Box<dyn Repository>, RepositoryError> {
    Ok(of_server(Server::open(path)?, options))
}

/// The same, of a part of a bucket: what `barman-cloud-backup` and `barman-cloud-wal-archive` have put there, or the copy of a server's directory.
pub fn open_barman_in(
    storage: Storage,
    options: OpenOptions,
) -> Result<Box<dyn Repository>, RepositoryError> {
    Ok(of_server(Server::open_in(storage)?, options))
}

fn of_server(server: Server, options: OpenOptions) -> Box<dyn Repository> {
    // Made once, so that all that is opened here shares its bounds.
    let options = OpenOptions {
        decoded: Some(options.decoded_store()),
        ..options
    };
    Box::new(BarmanRepository {
        server: Arc::new(server),
        options,
    })
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
        let directory = format!("base/{id}");
        let mut place = Place::at(storage, format!("{directory}/data"), id.to_owned())?;
        if !place.looks_like_a_backup()
            && let Some(place) = Place::of_barman_cloud(storage, directory.clone(), id.to_owned())?
        {
            return Ok(place);
        }
        for tablespace in &info.tablespaces {
            let path = format!("{directory}/{}", tablespace.oid);
            match storage.has_directory(&path) {
                Ok(()) => place.tablespaces.push(TablespaceDirectory {
                    path,
                    tablespace: tablespace.clone(),
                }),
                Err(error)
                    if storage.is_in_objects() && error.kind() != io::ErrorKind::NotFound =>
                {
                    return Err(RepositoryError::unreadable(path, "look into", error));
                }
                Err(_) => {}
            }
        }
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

    /// Describes a backup: one of `barman-cloud-backup` by what `backup.info` and the names of its archives say, others by opening them.
    fn describe(&self, id: &str, siblings: &Siblings<'_>) -> Result<RestorePoint, RepositoryError> {
        let info = self.usable(id)?;
        let place = self.place(id, &info)?;
        let Some(postgresql_major) = info.postgresql_major.filter(|_| place.is_of_barman_cloud())
        else {
            return Ok(self.open_id(id, siblings)?.restore_point().clone());
        };
        let found = place.codec()?.map(BackupFormat::PgBasebackupCompressedTar);
        let slow = found.and_then(crate::pg_basebackup::slow_layout);
        find_wal(&self.server, &wal_range(&info, info.end_lsn))?;
        Ok(RestorePoint {
            label: id.to_owned(),
            format: BackupFormat::Barman,
            kind: BackupKind::Full,
            references: Vec::new(),
            postgresql_major,
            started_at: info.started_at,
            stopped_at: info.stopped_at,
            size_bytes: info.cluster_bytes.unwrap_or(0),
            file_count: 0,
            recoverable: RecoverableInterval {
                from_lsn: info.begin_lsn,
                to_lsn: Some(info.end_lsn),
                timeline: info.timeline,
            },
            system_identifier: info.system_identifier,
            verification: Verification::Unverified,
            slow_layout: slow.map(slow_cloud_layout),
            tablespaces: info.tablespaces,
        })
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
        restore_point.slow_layout =
            restore_point
                .slow_layout
                .map(match place.is_of_barman_cloud() {
                    true => slow_cloud_layout,
                    false => slow_layout,
                });
        for tablespace in &mut restore_point.tablespaces {
            let told = info
                .tablespaces
                .iter()
                .find(|told| told.oid == tablespace.oid);
            if let (true, Some(told)) = (tablespace.location.is_empty(), told) {
                tablespace.location.clone_from(&told.location);
            }
        }
        restore_point.format = BackupFormat::Barman;
        restore_point.started_at = info.started_at.or(restore_point.started_at);
        restore_point.stopped_at = info.stopped_at;
        // The manifest's end is the exact one; Barman rounds it up to the segment's.
        let end_lsn = begins.to_lsn.unwrap_or(info.end_lsn);
        restore_point.recoverable.to_lsn = Some(end_lsn);
        restore_point.system_identifier =
            restore_point.system_identifier.or(info.system_identifier);
        let range = WalRange {
            system_identifier: restore_point.system_identifier,
            ..wal_range(&info, end_lsn)
        };
        let segments = find_wal(&self.server, &range)?;
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

/// The WAL that a backup needs which ends there.
fn wal_range(info: &BackupInfo, end_lsn: Lsn) -> WalRange {
    WalRange {
        timeline: info.timeline,
        start_lsn: info.begin_lsn,
        end_lsn,
        segment_bytes: info.segment_bytes,
        system_identifier: info.system_identifier,
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
            match self.describe(id, &siblings) {
                Ok(point) => found.restore_points.push(point),
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
