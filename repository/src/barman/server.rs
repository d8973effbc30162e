//! The directory of one server of Barman: where its backups and its WAL are.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backup_info::{INFO_BYTES_MAX, Status, parse_backup_info};
use crate::RepositoryError;
use crate::storage::{Storage, StorageFile};
use crate::wal_archive::WAL_ENDINGS;

/// An opened directory of a server.
#[derive(Debug)]
pub(super) struct Server {
    storage: Arc<Storage>,
}

impl Server {
    /// Opens the directory of a server, or `barman_home` if it has only one.
    pub(super) fn open(path: &Path) -> Result<Self, RepositoryError> {
        let shown = path.display().to_string();
        let unreadable = |error| RepositoryError::unreadable(&shown, "open repository", error);
        let path = path.canonicalize().map_err(unreadable)?;
        let path = match path.join("base").is_dir() {
            true => path,
            false => only_server(&path, &shown)?,
        };
        Ok(Self {
            storage: Arc::new(Storage::directory(&path)?),
        })
    }

    /// The same in a part of a bucket.
    pub(super) fn open_in(storage: Storage) -> Result<Self, RepositoryError> {
        let shown = storage.shown().to_owned();
        let unreadable = |error| RepositoryError::unreadable(&shown, "list repository", error);
        let is_server = |path: &str| match storage.has_directory(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(unreadable(error)),
        };
        if is_server("base")? {
            return Ok(Self {
                storage: Arc::new(storage),
            });
        }
        let names = match storage.directories("") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names.map_err(unreadable)?,
        };
        let mut servers = Vec::new();
        for name in names {
            if is_server(&format!("{name}/base"))? {
                servers.push(name);
            }
        }
        let server = storage.below(only(&servers, &shown)?).map_err(unreadable)?;
        Ok(Self {
            storage: Arc::new(server),
        })
    }

    /// What holds it.
    pub(super) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Opens a file by its path below the server's directory.
    pub(super) fn file(&self, path: &str) -> io::Result<StorageFile> {
        self.storage.file(path)
    }

    /// Opens a file of the archive of WAL by its path, or by that path with an ending that tells how it is compressed: `barman-cloud-wal-archive`
    /// gives it one. Gives the path by which it was found.
    pub(super) fn archived(&self, path: &str) -> io::Result<(String, StorageFile)> {
        for ending in WAL_ENDINGS {
            let path = format!("{path}{ending}");
            match self.file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened.map(|file| (path, file)),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// The ids of all backups, oldest first: their order is that of the times in them.
    pub(super) fn backup_ids(&self) -> Result<BTreeSet<String>, RepositoryError> {
        let mut ids = BTreeSet::new();
        ids.extend(
            self.names("base")?
                .into_iter()
                .filter(|name| is_backup_id(name)),
        );
        // Of backups that have nothing else here, as snapshots.
        for name in self.names("meta")? {
            let id = name
                .strip_suffix("-backup.info")
                .filter(|id| is_backup_id(id));
            ids.extend(id.map(str::to_owned));
        }
        Ok(ids)
    }

    /// Names in a directory below the server's; none if it is not there.
    pub(super) fn names(&self, directory: &str) -> Result<Vec<String>, RepositoryError> {
        let unreadable = |error| RepositoryError::unreadable(directory, "list", error);
        match self.storage.names(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names.map_err(unreadable),
        }
    }

    /// How a backup stands; none if there is no such backup.
    pub(super) fn backup_info(&self, id: &str) -> Result<Option<Status>, RepositoryError> {
        // In `meta` since Barman 3.13.2.
        for path in [
            format!("meta/{id}-backup.info"),
            format!("base/{id}/backup.info"),
        ] {
            let unreadable = |error| RepositoryError::unreadable(&path, "read", error);
            let file = match self.file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(unreadable)?,
            };
            let content = file.read_beginning(INFO_BYTES_MAX + 1);
            let content = content.map_err(unreadable)?;
            if content.len() as u64 > INFO_BYTES_MAX {
                let reason = "is far larger than such a file can be";
                return Err(RepositoryError::corrupt(path, reason));
            }
            return parse_backup_info(&content, &path).map(Some);
        }
        Ok(None)
    }
}

/// `20261121T164723`
pub(super) fn is_backup_id(name: &str) -> bool {
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    name.split_once('T')
        .is_some_and(|(date, time)| digits(date, 8) && digits(time, 6))
}

fn only_server(home: &Path, shown: &str) -> Result<PathBuf, RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(shown, "list repository", error);
    let mut servers = Vec::new();
    for entry in std::fs::read_dir(home).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.join("base").is_dir() {
            servers.push(path);
        }
    }
    only(&servers, shown).cloned()
}

fn only<'a, T>(servers: &'a [T], shown: &str) -> Result<&'a T, RepositoryError> {
    match servers {
        [server] => Ok(server),
        [] => Err(RepositoryError::unsupported(
            shown,
            "has no directory base, nor has any directory in it: this is no server of Barman",
            "name the directory of a server: barman_home and the server's name",
        )),
        [_, ..] => Err(RepositoryError::unsupported(
            shown,
            format!("has {} servers of Barman", servers.len()),
            "name the directory of one of them, as a repository of its own",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_times_and_nothing_else() {
        assert!(is_backup_id("20261121T164723"));
        for bad in [
            "",
            "20261121",
            "20261121T16472",
            "20261121T1647233",
            "../../..T164723",
            "20261121t164723",
        ] {
            assert!(!is_backup_id(bad), "{bad}");
        }
    }
}
