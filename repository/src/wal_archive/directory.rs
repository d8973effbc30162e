//! An archive that is a plain directory or a part of a bucket, as `archive_command = 'cp %p /path/%f'` and `pg_receivewal` make it.

use std::io;
use std::sync::Arc;

use super::names::{ArchiveNames, is_segment};
use super::storage::{StoredWal, WalStorage};
use crate::storage::Storage;
use crate::{Lsn, RepositoryError, WalPlace};

/// What may stand behind a name. What a file is compressed with its beginning tells.
pub(crate) const WAL_ENDINGS: [&str; 7] = ["", ".gz", ".lz4", ".zst", ".bz2", ".xz", ".snappy"];
/// Of a segment that is still being received.
const PARTIAL: &str = ".partial";

/// The directory.
#[derive(Debug)]
pub(crate) struct WalDirectory {
    storage: Arc<Storage>,
}

impl WalDirectory {
    pub(crate) fn open(place: &WalPlace) -> Result<Self, RepositoryError> {
        let storage = match place {
            WalPlace::Directory(path) => Arc::new(Storage::directory(path)?),
            WalPlace::Objects(storage) => Arc::clone(storage),
        };
        Ok(Self { storage })
    }

    /// What holds it.
    pub(super) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// The path of a file, for errors.
    pub(super) fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.storage.shown())
    }

    /// The file that holds what has this name, and its own name.
    pub(super) fn find(&self, name: &str) -> Result<Option<(String, StoredWal)>, RepositoryError> {
        for ending in WAL_ENDINGS.iter().chain([&PARTIAL]) {
            let file = format!("{name}{ending}");
            if let Some(stored) = self.stored(&file, name)? {
                return Ok(Some((file, stored)));
            }
        }
        Ok(None)
    }

    fn stored(&self, file: &str, name: &str) -> Result<Option<StoredWal>, RepositoryError> {
        let path = self.path(file);
        let opened = match self.storage.file(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| RepositoryError::unreadable(&path, "open", error))?,
        };
        let mut stored = StoredWal::plain(path, opened)?;
        stored.is_partial = file.ends_with(PARTIAL);
        stored.recognise(is_segment(name))?;
        Ok(Some(stored))
    }
}

/// The name of what a file of an archive holds.
pub(crate) fn name_of(file: &str) -> &str {
    let known = WAL_ENDINGS
        .iter()
        .filter(|ending| !ending.is_empty())
        .find_map(|ending| file.strip_suffix(*ending));
    known.unwrap_or(file)
}

impl WalStorage for WalDirectory {
    fn list(&self, _from: Lsn) -> Result<Arc<ArchiveNames>, RepositoryError> {
        let files = self.storage.names("");
        let files = files
            .map_err(|error| RepositoryError::unreadable(self.storage.shown(), "list", error))?;
        let mut names = ArchiveNames::default();
        for file in files {
            match file.strip_suffix(PARTIAL) {
                Some(name) => names.add_partial(name)?,
                None => names.add(name_of(&file))?,
            }
        }
        Ok(Arc::new(names))
    }

    fn open(&self, name: &str) -> Result<StoredWal, RepositoryError> {
        match self.find(name)? {
            Some((_, stored)) => Ok(stored),
            None => Err(gone(&self.path(name))),
        }
    }
}

/// A file that the archive had.
pub(crate) fn gone(path: &str) -> RepositoryError {
    RepositoryError::corrupt(
        path,
        "is not in the WAL archive any more: it was expired or removed",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: &str = "000000010000000000000002";

    #[test]
    fn files_are_known_by_their_names_whatever_stands_behind_them() {
        for (file, name) in [
            (SEGMENT, SEGMENT),
            ("000000010000000000000002.gz", SEGMENT),
            ("000000010000000000000002.xz", SEGMENT),
            ("00000002.history", "00000002.history"),
            ("00000002.history.zst", "00000002.history"),
        ] {
            assert_eq!(name_of(file), name);
        }
    }

    #[test]
    fn a_whole_segment_is_taken_rather_than_a_partial_one() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            std::fs::write(directory.path().join(name), content).unwrap();
        };
        write("000000010000000000000002.partial", &[0; 8]);
        let place = WalPlace::Directory(directory.path().to_owned());
        let archive = WalDirectory::open(&place).unwrap();
        assert!(archive.open(SEGMENT).unwrap().is_partial);
        write(SEGMENT, b"\x10\xd1\x07\0\x01\0");
        assert!(!archive.open(SEGMENT).unwrap().is_partial);
        write("000000010000000000000003", b"garbage!");
        let names = archive.list(Lsn(0)).unwrap();
        assert_eq!(names.segments().count(), 2);
        let error = archive.open("000000010000000000000003").unwrap_err();
        assert!(
            error.to_string().contains("000000010000000000000003"),
            "{error}"
        );
        let error = archive.open("000000010000000000000004").unwrap_err();
        assert!(error.is_permanent(), "{error}");
    }
}
