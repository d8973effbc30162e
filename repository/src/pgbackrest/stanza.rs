//! One stanza of a repository: opening and reading its files, encrypted or not.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::Framing;
use super::backup_info::{BackupInfo, read_backup_info};
use super::cipher::MAGIC;
use super::compression::Compression;
use super::passphrase::Passphrase;
use super::stored::{Decoding, ReadFailure, StoredRange};
use crate::RepositoryError;
use crate::beneath::{open_directory, open_file, open_root, read_full_at};

/// First bytes of every info file.
const INFO_BEGINNING: &[u8] = b"[backrest]\n";

/// Reads an info file, decrypted; its name is for errors.
type Parse<'a, T> = dyn Fn(Box<dyn Read + Send>, &str) -> Result<T, RepositoryError> + 'a;

/// An opened repository, and the stanza in it that is asked for.
#[derive(Debug)]
pub(crate) struct Stanza {
    root: OwnedFd,
    /// The repository's directory, for errors.
    pub(crate) shown: String,
    /// The stanza's name.
    pub(crate) name: String,
    passphrase: Option<Passphrase>,
    passphrase_setting: String,
}

/// What opening a stanza takes.
#[derive(Debug)]
pub(crate) struct StanzaOptions<'a> {
    pub(crate) path: &'a Path,
    /// The only one there is, if absent.
    pub(crate) name: Option<&'a str>,
    pub(crate) passphrase: Option<&'a Passphrase>,
    /// What the caller calls the setting of the passphrase, for errors.
    pub(crate) passphrase_setting: &'a str,
}

impl Stanza {
    pub(crate) fn open(options: &StanzaOptions<'_>) -> Result<Self, RepositoryError> {
        let shown = options.path.display().to_string();
        let root = open_root(options.path)
            .map_err(|error| RepositoryError::unreadable(&shown, "open repository", error))?;
        let name = match options.name {
            Some(name) => checked_name(name, &shown)?,
            None => only_stanza(&root, &shown)?,
        };
        Ok(Self {
            root,
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
    pub(crate) fn file(&self, path: &str) -> io::Result<File> {
        open_file(self.root.as_fd(), path)
    }

    /// Opens a directory by its path below the repository.
    pub(crate) fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        open_directory(self.root.as_fd(), path)
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
        match self.directory(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RepositoryError::unsupported(
                    directory,
                    "is not there: the repository has no such stanza",
                    "name the directory that is repo1-path in pgbackrest.conf, and one of its stanzas",
                ));
            }
            Err(error) => return Err(RepositoryError::unreadable(directory, "open", error)),
            Ok(_) => {}
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
        let length = file.metadata().map_err(unreadable)?.len();
        let mut magic = [0; MAGIC.len()];
        read_full_at(&file, 0, &mut magic).map_err(unreadable)?;
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
            && let explained @ RepositoryError::Unreadable { .. } =
                failure.explain(path, "the file", &error)
        {
            return explained;
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

fn only_stanza(root: &OwnedFd, shown: &str) -> Result<String, RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(format!("{shown}/backup"), "list", error);
    let directory = open_directory(root.as_fd(), "backup").map_err(unreadable)?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory).map_err(|e| unreadable(e.into()))? {
        let entry = entry.map_err(|error| unreadable(error.into()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let info = format!("{name}/backup.info");
        if !name.starts_with('.') && open_file(directory.as_fd(), &info).is_ok() {
            names.push(name);
        }
    }
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
