//! What holds a repository: a local directory, or a part of a bucket in an object store. Readers of formats open files by their paths below it, read them at any place and
//! list directories, and know nothing else of it.
//!
//! What must stay true: a path that leads elsewhere (`..`, links) opens nothing; a page of a local file is read as
//! directly as the system can.

mod failure;
mod file;
mod objects;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::Dir;

pub(crate) use failure::{is_of_storage, same_error};
pub(crate) use file::{SizedFile, StorageFile};
pub use objects::{
    InvalidObjectLocation, ObjectAccess, ObjectLimits, ObjectLocation, ObjectOptions,
    ObjectStoreKind,
};
pub(crate) use objects::{ObjectFailure, ObjectFile};

use crate::RepositoryError;
use crate::beneath::{open_directory, open_file, open_root};
use objects::ObjectStorage;

/// What holds a repository, opened.
#[derive(Debug)]
pub struct Storage {
    place: Place,
    shown: String,
}

#[derive(Debug)]
enum Place {
    Directory(OwnedFd),
    Objects(Arc<ObjectStorage>),
}

impl Storage {
    /// A local directory; links in its path are followed.
    pub fn directory(path: &Path) -> Result<Self, RepositoryError> {
        let shown = path.display().to_string();
        let root = open_root(path)
            .map_err(|error| RepositoryError::unreadable(&shown, "open repository", error))?;
        Ok(Self {
            place: Place::Directory(root),
            shown,
        })
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

    /// What people call it.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Opens a file by its path in here.
    pub(crate) fn file(&self, path: &str) -> io::Result<StorageFile> {
        match &self.place {
            Place::Directory(root) => open_file(root.as_fd(), path).map(StorageFile::Local),
            Place::Objects(objects) => objects.file(path).map(StorageFile::Object),
        }
    }

    /// Fails with [`io::ErrorKind::NotFound`] if there is no such directory in here.
    pub(crate) fn has_directory(&self, path: &str) -> io::Result<()> {
        match &self.place {
            Place::Directory(root) => open_directory(root.as_fd(), path).map(drop),
            Place::Objects(objects) => objects.has_directory(path),
        }
    }

    /// The names in a directory, in no order, without those that are not UTF-8.
    pub(crate) fn names(&self, directory: &str) -> io::Result<Vec<String>> {
        match &self.place {
            Place::Directory(root) => names(&open_directory(root.as_fd(), directory)?),
            Place::Objects(objects) => objects.names(directory),
        }
    }
}

fn names(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_str().ok();
        let name = name.filter(|name| !matches!(*name, "." | ".."));
        names.extend(name.map(str::to_owned));
    }
    Ok(names)
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
        for path in ["a/link", "a/../a/file", "../x", "a", ""] {
            assert!(storage.file(path).is_err(), "{path}");
        }
        for path in ["b", "a/b"] {
            let error = storage.has_directory(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{path}");
        }
    }
}
