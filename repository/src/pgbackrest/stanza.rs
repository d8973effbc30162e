//! One stanza of a repository: opening and reading its files, encrypted or not.

use std::io::{self, Read};
use std::sync::Arc;

use super::Framing;
use super::backup_info::{BackupInfo, read_backup_info};
use super::cipher::MAGIC;
use super::compression::Compression;
use super::passphrase::Passphrase;
use super::stored::{Decoding, ReadFailure, StoredRange};
use crate::RepositoryError;
use crate::storage::{Storage, StorageFile};

/// First bytes of every info file.
const INFO_BEGINNING: &[u8] = b"[backrest]\n";

/// Reads an info file, decrypted; its name is for errors.
type Parse<'a, T> = dyn Fn(Box<dyn Read + Send>, &str) -> Result<T, RepositoryError> + 'a;

/// An opened repository, and the stanza in it that is asked for.
#[derive(Debug)]
pub(crate) struct Stanza {
    storage: Storage,
    /// The repository's place, for errors.
    pub(crate) shown: String,
    /// The stanza's name.
    pub(crate) name: String,
    passphrase: Option<Passphrase>,
    passphrase_setting: String,
}

/// What opening a stanza takes.
#[derive(Debug)]
pub(crate) struct StanzaOptions<'a> {
    /// What holds the repository.
    pub(crate) storage: Storage,
    /// The only one there is, if absent.
    pub(crate) name: Option<&'a str>,
    pub(crate) passphrase: Option<&'a Passphrase>,
    /// What the caller calls the setting of the passphrase, for errors.
    pub(crate) passphrase_setting: &'a str,
}

impl Stanza {
    pub(crate) fn open(options: StanzaOptions<'_>) -> Result<Self, RepositoryError> {
        let storage = options.storage;
        let shown = storage.shown().to_owned();
        let name = match options.name {
            Some(name) => checked_name(name, &shown)?,
            None => only_stanza(&storage, &shown)?,
        };
        Ok(Self {
            storage,
            shown,
            name,
            passphrase: options.passphrase.cloned(),
            passphrase_setting: options.passphrase_setting.to_owned(),
        })
    }

    /// The passphrase that people gave.
    pub(crate) fn passphrase(&self) -> Option<&Passphrase> {
        self.passphrase.as_ref()
    }

    /// The path of a backup's directory or of something in it, below the repository.
    pub(crate) fn backup_path(&self, rest: &str) -> String {
        format!("backup/{}/{rest}", self.name)
    }

    /// The path of something in the WAL archive, below the repository.
    pub(crate) fn archive_path(&self, rest: &str) -> String {
        format!("archive/{}/{rest}", self.name)
    }

    /// Opens a file by its path below the repository.
    pub(crate) fn file(&self, path: &str) -> io::Result<StorageFile> {
        self.storage.file(path)
    }

    /// The names in a directory, by its path below the repository.
    pub(crate) fn names(&self, path: &str) -> io::Result<Vec<String>> {
        self.storage.names(path)
    }

    /// Fails with [`io::ErrorKind::NotFound`] if there is no such directory below the repository.
    pub(crate) fn has_directory(&self, path: &str) -> io::Result<()> {
        self.storage.has_directory(path)
    }

    /// What a file that is not there means: with the repository still in its place, it has been removed.
    pub(crate) fn missing(&self, path: &str, shown_at: &str, error: io::Error) -> RepositoryError {
        let is_gone = error.kind() == io::ErrorKind::NotFound
            && self.file(&self.backup_path("backup.info")).is_ok();
        if is_gone {
            let reason = format!(
                "{path} is not in the repository any more: the backup was expired, or the file removed"
            );
            return RepositoryError::corrupt(shown_at, reason);
        }
        RepositoryError::unreadable(format!("{shown_at} ({path})"), "open", error)
    }

    /// Reads `backup.info`, or its copy.
    pub(crate) fn backup_info(&self) -> Result<BackupInfo, RepositoryError> {
        let path = self.backup_path("backup.info");
        let directory = self.backup_path("");
        match self.has_directory(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RepositoryError::unsupported(
                    directory,
                    "is not there: the repository has no such stanza",
                    "name the directory that is repo1-path in pgbackrest.conf, and one of its stanzas",
                ));
            }
            Err(error) => return Err(RepositoryError::unreadable(directory, "open", error)),
            Ok(()) => {}
        }
        self.info(&path, self.passphrase(), &read_backup_info)
    }

    /// Reads an info file, or its copy if that cannot be read. Two that are damaged have the first one's error.
    pub(crate) fn info<T>(
        &self,
        path: &str,
        passphrase: Option<&Passphrase>,
        parse: &Parse<'_, T>,
    ) -> Result<T, RepositoryError> {
        let first = match self.one_info(path, passphrase, parse) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        match self.one_info(&format!("{path}.copy"), passphrase, parse) {
            Ok(found) => {
                tracing::warn!(file = path, error = %first, "the copy of an info file is used");
                Ok(found)
            }
            Err(_) => Err(first),
        }
    }

    fn one_info<T>(
        &self,
        path: &str,
        passphrase: Option<&Passphrase>,
        parse: &Parse<'_, T>,
    ) -> Result<T, RepositoryError> {
        let unreadable = |error| RepositoryError::unreadable(path, "open", error);
        let file = Arc::new(self.file(path).map_err(unreadable)?);
        let length = file.size_bytes().map_err(unreadable)?;
        let mut magic = [0; MAGIC.len()];
        file.read_full_at(0, &mut magic).map_err(unreadable)?;
        let passphrase = match (passphrase, &magic == MAGIC) {
            (None, true) => {
                return Err(RepositoryError::unsupported(
                    path,
                    "is encrypted, and no passphrase is configured",
                    format!(
                        "put the repository's passphrase (repo1-cipher-pass of pgbackrest.conf) into the file that {} names",
                        self.passphrase_setting
                    ),
                ));
            }
            (Some(_), false) => {
                return Err(RepositoryError::unsupported(
                    path,
                    "is not encrypted, although a passphrase says it should be",
                    format!(
                        "see that {} belongs to this repository",
                        self.passphrase_setting
                    ),
                ));
            }
            (passphrase, _) => passphrase,
        };
        let range = StoredRange::new(file, 0, length);
        let failure = range.failure();
        let decoding = Decoding {
            compression: Compression::None,
            framing: Framing::Standard,
            passphrase,
        };
        let unreadable = |error: io::Error| failure.explain(path, "the file", &error);
        let mut source = decoding.decoder(range).map_err(unreadable)?;
        if passphrase.is_some() {
            let mut beginning = Vec::new();
            let length = INFO_BEGINNING.len() as u64;
            let read = (&mut source).take(length).read_to_end(&mut beginning);
            if read.is_err() || beginning != INFO_BEGINNING {
                return Err(self.wrong_passphrase(path, &failure, read.err()));
            }
            source = Box::new(io::Cursor::new(beginning).chain(source));
        }
        parse(source, path)
    }

    fn wrong_passphrase(
        &self,
        path: &str,
        failure: &ReadFailure,
        error: Option<io::Error>,
    ) -> RepositoryError {
        if let Some(error) = error
            && failure.happened()
        {
            return failure.explain(path, "the file", &error);
        }
        RepositoryError::unsupported(
            path,
            "cannot be decrypted: the passphrase is another, or the file is damaged",
            format!(
                "see that the file that {} names holds the repository's passphrase (repo1-cipher-pass of pgbackrest.conf)",
                self.passphrase_setting
            ),
        )
    }
}

/// A stanza's name becomes part of a path.
fn checked_name(name: &str, shown: &str) -> Result<String, RepositoryError> {
    let sound = !name.is_empty()
        && !name.starts_with('.')
        && !name.contains(|c: char| c == '/' || c.is_control());
    match sound {
        true => Ok(name.to_owned()),
        false => Err(RepositoryError::unsupported(
            shown,
            format!("{name:?} is no name of a stanza"),
            "name one of the directories in the repository's directory backup",
        )),
    }
}

fn only_stanza(storage: &Storage, shown: &str) -> Result<String, RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(format!("{shown}/backup"), "list", error);
    let mut names = storage.names("backup").map_err(unreadable)?;
    names.retain(|name| {
        !name.starts_with('.') && storage.file(&format!("backup/{name}/backup.info")).is_ok()
    });
    names.sort();
    match names.as_slice() {
        [name] => checked_name(name, shown),
        [] => Err(RepositoryError::unsupported(
            shown,
            "has no stanza: this is no repository of pgBackRest, or an empty one",
            "name the directory that is repo1-path in pgbackrest.conf",
        )),
        names => Err(RepositoryError::unsupported(
            shown,
            format!("has several stanzas: {}", names.join(", ")),
            "say which stanza is meant",
        )),
    }
}
