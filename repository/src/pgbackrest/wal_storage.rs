//! The archive of a cluster, as pgBackRest keeps it: `archive/<stanza>/<archive-id>`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::archive::{archive_passphrase, find_segment, segment_of};
use super::backup_info::BackupInfo;
use super::passphrase::Passphrase;
use super::stanza::Stanza;
use crate::wal_archive::{ArchiveNames, StoredWal, WalStorage, is_segment, may_hold};
use crate::{Lsn, RepositoryError};

/// One archive of a stanza.
#[derive(Debug)]
pub(super) struct PgBackRestWal {
    stanza: Arc<Stanza>,
    /// `15-1`
    archive_id: String,
    passphrase: Option<Passphrase>,
}

impl PgBackRestWal {
    /// The archive that a backup's cluster is archived to; none if nothing ever was.
    pub(super) fn of(
        stanza: &Arc<Stanza>,
        info: &BackupInfo,
        label: &str,
    ) -> Result<Option<Self>, RepositoryError> {
        let cluster = info.backups.get(label).and_then(|listed| {
            let cluster = info.clusters.get(&listed.db_id)?;
            Some(format!("{}-{}", cluster.db_version, listed.db_id))
        });
        let Some(archive_id) = cluster else {
            return Ok(None);
        };
        let path = stanza.archive_path(&archive_id);
        match stanza.has_directory(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RepositoryError::unreadable(path, "open", error)),
            Ok(()) => {}
        }
        Ok(Some(Self {
            passphrase: archive_passphrase(stanza)?,
            stanza: Arc::clone(stanza),
            archive_id,
        }))
    }

    fn path(&self, rest: &str) -> String {
        self.stanza
            .archive_path(&format!("{}/{rest}", self.archive_id))
    }

    /// Names in a directory of the archive.
    fn names(&self, path: &str) -> Result<Vec<String>, RepositoryError> {
        match self.stanza.names(path) {
            // Expired meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names.map_err(|error| RepositoryError::unreadable(path, "list", error)),
        }
    }

    /// A file that cannot be found: gone, or the whole repository is away for now.
    fn not_found(&self, error: RepositoryError) -> RepositoryError {
        let info = self.stanza.backup_path("backup.info");
        match self.stanza.file(&info) {
            Ok(_) => error,
            Err(away) => RepositoryError::unreadable(info, "open", away),
        }
    }
}

impl WalStorage for PgBackRestWal {
    fn list(&self, from: Lsn) -> Result<Arc<ArchiveNames>, RepositoryError> {
        let mut found = ArchiveNames::default();
        for name in self.names(&self.path(""))? {
            if !may_hold(&name, from) {
                found.add(&name)?;
                continue;
            }
            for file in self.names(&self.path(&name))? {
                if let Some(segment) = segment_of(&file)
                    && segment.starts_with(&name)
                {
                    found.add(segment)?;
                }
            }
        }
        Ok(Arc::new(found))
    }

    fn open(&self, name: &str) -> Result<StoredWal, RepositoryError> {
        let mut stored = if is_segment(name) {
            let found = find_segment(&self.stanza, &self.archive_id, name, &mut BTreeMap::new());
            let found = found.map_err(|error| self.not_found(error))?;
            let file = self.stanza.file(&found.path);
            let file =
                file.map_err(|error| RepositoryError::unreadable(&found.path, "open", error))?;
            let mut stored = StoredWal::plain(found.path, file)?;
            stored.compression = found.compression;
            stored.sha1 = Some(found.sha1);
            stored
        } else {
            // Histories are encrypted, but never compressed.
            let path = self.path(name);
            match self.stanza.file(&path) {
                Ok(file) => StoredWal::plain(path, file)?,
                Err(error) => return Err(self.stanza.missing(&path, name, error)),
            }
        };
        stored.passphrase = self.passphrase.clone();
        Ok(stored)
    }
}
