//! What holds a repository: a local directory, or a part of a bucket in an object store. Readers of formats open files by their paths below it, read them at any place and
//! list directories, and know nothing else of it.
//!
//! What must stay true: a path that leads elsewhere (`..`, links) opens nothing; a page of a local file is read as
//! directly as the system can.

mod failure;
mod file;
mod objects;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, statat};

pub(crate) use failure::{is_of_storage, same_error};
pub(crate) use file::{Forwards, SizedFile, StorageFile};
pub(crate) use objects::{FoundObject, ObjectFailure, ObjectFile, ObjectStorage};
pub use objects::{
    InvalidObjectLocation, ObjectAccess, ObjectLimits, ObjectLocation, ObjectOptions,
    ObjectStoreKind,
};

use crate::RepositoryError;
use crate::beneath::{open_directory, open_file, open_root};

/// What holds a repository, opened.
#[derive(Debug)]
pub struct Storage {
    place: Place,
    shown: String,
}

#[derive(Debug)]
enum Place {
    Directory { root: OwnedFd, path: PathBuf },
    Objects(Arc<ObjectStorage>),
}

/// What a storage is, for who goes through all of it.
#[derive(Debug)]
pub(crate) enum Kept<'a> {
    /// A local directory, and its path.
    Directory(BorrowedFd<'a>, &'a Path),
    /// A part of a bucket.
    Objects(&'a Arc<ObjectStorage>),
}

impl Storage {
    /// A local directory; links in its path are followed.
    pub fn directory(path: &Path) -> Result<Self, RepositoryError> {
        let shown = path.display().to_string();
        let root = open_root(path)
            .map_err(|error| RepositoryError::unreadable(shown, "open repository", error))?;
        Ok(Self::opened(root, path.to_owned()))
    }

    /// A local directory that is open already.
    pub(crate) fn opened(root: OwnedFd, path: PathBuf) -> Self {
        Self {
            shown: path.display().to_string(),
            place: Place::Directory { root, path },
        }
    }

    /// A part of a bucket. Nothing is asked of the store before something is opened.
    pub fn objects(
        location: &ObjectLocation,
        options: &ObjectOptions,
        access: &Arc<ObjectAccess>,
    ) -> Result<Self, RepositoryError> {
        let storage = ObjectStorage::new(location, options, access)?;
        Ok(Self {
            place: Place::Objects(Arc::new(storage)),
            shown: location.to_string(),
        })
    }

    /// What lies below a directory in here, as a storage of its own.
    pub(crate) fn below(&self, path: &str) -> io::Result<Self> {
        let place = match &self.place {
            Place::Directory { root, path: of } => {
                let root = open_directory(root.as_fd(), path)?;
                return Ok(Self::opened(root, of.join(path)));
            }
            Place::Objects(objects) => objects.below(path)?,
        };
        Ok(Self {
            shown: place.location().to_string(),
            place: Place::Objects(Arc::new(place)),
        })
    }

    /// What people call it.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// The last part of its name, if it has one that is UTF-8.
    pub(crate) fn name(&self) -> Option<&str> {
        match &self.place {
            Place::Directory { path, .. } => path.file_name()?.to_str(),
            Place::Objects(objects) => Some(objects.location().name()),
        }
    }

    /// What it is.
    pub(crate) fn kept(&self) -> Kept<'_> {
        match &self.place {
            Place::Directory { root, path } => Kept::Directory(root.as_fd(), path),
            Place::Objects(objects) => Kept::Objects(objects),
        }
    }

    /// Whether it is in an object store.
    pub(crate) fn is_in_objects(&self) -> bool {
        matches!(self.place, Place::Objects(_))
    }

    /// Opens a file by its path in here.
    pub(crate) fn file(&self, path: &str) -> io::Result<StorageFile> {
        match &self.place {
            Place::Directory { root, .. } => open_file(root.as_fd(), path).map(StorageFile::Local),
            Place::Objects(objects) => objects.file(path).map(StorageFile::Object),
        }
    }

    /// Fails with [`io::ErrorKind::NotFound`] if there is no such directory in here.
    pub(crate) fn has_directory(&self, path: &str) -> io::Result<()> {
        match &self.place {
            Place::Directory { root, .. } => open_directory(root.as_fd(), path).map(drop),
            Place::Objects(objects) => objects.has_directory(path),
        }
    }

    /// The names in a directory, in no order, without those that are not UTF-8.
    pub(crate) fn names(&self, directory: &str) -> io::Result<Vec<String>> {
        match &self.place {
            Place::Directory { root, .. } => {
                names(&open_directory(root.as_fd(), directory)?, |_, _| Ok(true))
            }
            Place::Objects(objects) => objects.names(directory),
        }
    }

    /// The names of the directories in a directory, in no order, without those that are not UTF-8.
    pub(crate) fn directories(&self, directory: &str) -> io::Result<Vec<String>> {
        match &self.place {
            Place::Directory { root, .. } => {
                let opened = open_directory(root.as_fd(), directory)?;
                names(&opened, is_directory)
            }
            Place::Objects(objects) => objects.directories(directory),
        }
    }

    /// Which of these names there are in a directory.
    pub(crate) fn present(
        &self,
        directory: &str,
        names: &[&'static str],
    ) -> io::Result<Vec<&'static str>> {
        let names = names.iter().copied();
        Ok(match &self.place {
            Place::Directory { root, .. } => {
                let opened = open_directory(root.as_fd(), directory)?;
                let is_there = |name: &&str| statat(&opened, *name, AtFlags::SYMLINK_NOFOLLOW);
                names.filter(|name| is_there(name).is_ok()).collect()
            }
            Place::Objects(objects) => {
                let found = objects.names(directory)?;
                names
                    .filter(|name| found.iter().any(|found| found == name))
                    .collect()
            }
        })
    }

    /// Everything of a file that a change of it changes.
    pub(crate) fn identity(&self, path: &str) -> io::Result<String> {
        match &self.place {
            Place::Directory { root, .. } => {
                let stat = statat(root, path, AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(format!(
                    "{} {} {} {}.{} {}.{}",
                    stat.st_dev,
                    stat.st_ino,
                    stat.st_size,
                    stat.st_mtime,
                    stat.st_mtime_nsec,
                    stat.st_ctime,
                    stat.st_ctime_nsec
                ))
            }
            Place::Objects(objects) => {
                let identity = objects.file(path)?.identity();
                Ok(format!("{}/{path} {identity}", self.shown))
            }
        }
    }
}

fn names(
    directory: &OwnedFd,
    is_wanted: fn(&OwnedFd, &rustix::fs::DirEntry) -> io::Result<bool>,
) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_str().ok();
        let Some(name) = name.filter(|name| !matches!(*name, "." | "..")) else {
            continue;
        };
        if is_wanted(directory, &entry)? {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn is_directory(directory: &OwnedFd, entry: &rustix::fs::DirEntry) -> io::Result<bool> {
    let kind = match entry.file_type() {
        // Not every file system tells it here.
        FileType::Unknown => {
            let stat = statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            FileType::from_raw_mode(stat.st_mode)
        }
        kind => kind,
    };
    Ok(kind == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_directory_opens_what_is_in_it_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("a")).unwrap();
        std::fs::write(place.path().join("a/file"), "0123456789").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", place.path().join("a/link")).unwrap();
        let storage = Storage::directory(place.path()).unwrap();
        let file = storage.file("a/file").unwrap();
        assert_eq!(file.size_bytes().unwrap(), 10);
        let mut buffer = [0; 20];
        assert_eq!(file.read_pages_at(8, &mut buffer).unwrap(), 2);
        assert_eq!(&buffer[..2], b"89");
        assert_eq!(file.read_beginning(4).unwrap(), b"0123");
        let mut names = storage.names("a").unwrap();
        names.sort();
        assert_eq!(names, ["file", "link"]);
        assert!(storage.has_directory("a").is_ok());
        assert_eq!(storage.directories("").unwrap(), ["a"]);
        assert!(storage.directories("a").unwrap().is_empty());
        let present = storage.present("a", &["link", "file", "other"]);
        assert_eq!(present.unwrap(), ["link", "file"]);
        let below = storage.below("a").unwrap();
        assert_eq!(below.name(), Some("a"));
        assert!(below.file("file").is_ok() && below.file("../a/file").is_err());
        let identity = below.identity("file").unwrap();
        assert_eq!(storage.identity("a/file").unwrap(), identity);
        std::fs::write(place.path().join("a/file"), "0123456789").unwrap();
        assert_ne!(storage.identity("a/file").unwrap(), identity);
        for path in ["a/link", "a/../a/file", "../x", "a", ""] {
            assert!(storage.file(path).is_err(), "{path}");
        }
        for path in ["b", "a/b"] {
            let error = storage.has_directory(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{path}");
        }
    }
}
