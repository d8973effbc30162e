//! Where a backup is: what holds its repository, and the directory in there.

use std::io;
use std::sync::Arc;

use super::tar::{Naming, codec_of};
use crate::storage::{Forwards, ObjectFailure, Storage, StorageFile};
use crate::{Codec, RepositoryError, Tablespace};

/// Names of the archive of the data directory.
const BASE_ARCHIVES: [&str; 5] = [
    "base.tar",
    "base.tar.gz",
    "base.tgz",
    "base.tar.lz4",
    "base.tar.zst",
];

/// What shows a backup, whole or not, beside its archives.
const SIGNS: [&str; 4] = [
    "backup_label",
    "backup_manifest",
    "backup_manifest.tmp",
    "PG_VERSION",
];

/// Where a backup is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// What holds the repository; in a directory links may lead to what is below it.
    pub(crate) repository: Arc<Storage>,
    /// The backup's directory in there; empty: all of it.
    pub(crate) path: String,
    /// Its label.
    pub(crate) label: String,
    /// Tablespaces of a plain backup that lie elsewhere than their links lead, or have none.
    pub(crate) tablespaces: Vec<TablespaceDirectory>,
    /// Whose names its archives have.
    pub(super) naming: Naming,
    /// What shows a backup, as far as it was there.
    signs: Vec<&'static str>,
}

/// Where a tablespace's files are.
#[derive(Debug, Clone)]
pub(crate) struct TablespaceDirectory {
    /// The directory in the repository.
    pub(crate) path: String,
    pub(crate) tablespace: Tablespace,
}

impl Place {
    /// The directory, whatever is there.
    pub(crate) fn at(
        repository: &Arc<Storage>,
        path: String,
        label: String,
    ) -> Result<Self, RepositoryError> {
        let looked_for: Vec<_> = SIGNS.into_iter().chain(BASE_ARCHIVES).collect();
        let signs = match repository.present(&path, &looked_for) {
            Ok(signs) => signs,
            Err(error) if is_answer(&error) => Vec::new(),
            Err(error) => {
                // The repository may itself be the backup.
                let shown = match path.as_str() {
                    "" => repository.shown(),
                    path => path,
                };
                return Err(RepositoryError::unreadable(shown, "look into", error));
            }
        };
        Ok(Self {
            repository: Arc::clone(repository),
            path,
            label,
            tablespaces: Vec::new(),
            naming: Naming::PgBasebackup,
            signs,
        })
    }

    /// The directory if it has archives as `barman-cloud-backup` names them.
    pub(crate) fn of_barman_cloud(
        repository: &Arc<Storage>,
        path: String,
        label: String,
    ) -> Result<Option<Self>, RepositoryError> {
        let place = Self {
            naming: Naming::BarmanCloud,
            ..Self::at(repository, path, label)?
        };
        let is_one = codec_of(&place)?.is_some();
        Ok(Some(place).filter(|_| is_one))
    }

    /// How its archives are compressed, if it is in archives.
    pub(crate) fn codec(&self) -> Result<Option<Codec>, RepositoryError> {
        Ok(codec_of(self)?.flatten())
    }

    /// Whether it is in archives as `barman-cloud-backup` makes them.
    pub(crate) fn is_of_barman_cloud(&self) -> bool {
        self.naming == Naming::BarmanCloud
    }

    /// Whether it has what shows a backup, whole or not.
    pub(crate) fn looks_like_a_backup(&self) -> bool {
        !self.signs.is_empty()
    }

    /// Whether it has a file that shows a backup.
    pub(super) fn has(&self, sign: &str) -> bool {
        self.signs.contains(&sign)
    }

    /// Whether it is in archives.
    pub(crate) fn is_tar(&self) -> bool {
        let is_plain = self.has("PG_VERSION");
        self.is_of_barman_cloud() || !is_plain && BASE_ARCHIVES.iter().any(|name| self.has(name))
    }

    /// What people call it.
    pub(super) fn shown(&self) -> String {
        match self.path.as_str() {
            "" => self.repository.shown().to_owned(),
            path => format!("{}/{path}", self.repository.shown()),
        }
    }

    /// The path of a file of it in the repository.
    pub(super) fn path_of(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}/{name}"),
        }
    }

    /// Opens the directory.
    pub(super) fn open(&self) -> Result<Storage, RepositoryError> {
        let opened = self.repository.below(&self.path);
        opened.map_err(|error| RepositoryError::unreadable(self.shown(), "open directory", error))
    }

    /// Opens a file of it.
    pub(super) fn file(&self, name: &str) -> io::Result<StorageFile> {
        self.repository.file(&self.path_of(name))
    }

    /// Opens its manifest, if it has one.
    pub(super) fn manifest(&self) -> Result<Option<Forwards>, RepositoryError> {
        let name = super::MANIFEST;
        match self.file(name).and_then(Forwards::new) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RepositoryError::unreadable(name, "open", error)),
        }
    }
}

/// Whether an error says that nothing is there: of a directory any, of an object store only that one.
fn is_answer(error: &io::Error) -> bool {
    ObjectFailure::of(error).is_none() || error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_directory_shows_whether_it_is_a_backup() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        [
            "plain/PG_VERSION",
            "tar/base.tgz",
            "begun/backup_manifest.tmp",
            "other/x",
        ]
        .into_iter()
        .for_each(make);
        make("both/PG_VERSION");
        make("both/base.tar");
        let repository = Arc::new(Storage::directory(root.path()).unwrap());
        for (path, is_backup, is_tar) in [
            ("plain", true, false),
            ("tar", true, true),
            ("begun", true, false),
            ("both", true, false),
            ("other", false, false),
            ("gone", false, false),
            ("", false, false),
        ] {
            let place = Place::at(&repository, path.to_owned(), String::new()).unwrap();
            let found = (place.looks_like_a_backup(), place.is_tar());
            assert_eq!(found, (is_backup, is_tar), "{path}");
        }
    }
}
