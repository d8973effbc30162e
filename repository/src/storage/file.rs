//! Open files of a repository.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::ObjectFile;
use crate::RepositoryError;
use crate::beneath::{fill, read_full_at, read_pages_at};
use crate::pg_basebackup::ReadAt;

/// An open file of a repository, read at any place.
#[derive(Debug)]
pub(crate) enum StorageFile {
    /// A file of a local directory.
    Local(File),
    /// An object in an object store.
    Object(ObjectFile),
}

impl StorageFile {
    /// Its size in bytes: of a local file as it is now, of an object as it was when it was opened, which never changes.
    pub(crate) fn size_bytes(&self) -> io::Result<u64> {
        match self {
            Self::Local(file) => Ok(file.metadata()?.len()),
            Self::Object(object) => Ok(object.size_bytes()),
        }
    }

    /// When it was last changed, in seconds since 1970.
    pub(crate) fn modified_at_s(&self) -> io::Result<i64> {
        match self {
            Self::Local(file) => Ok(file.metadata()?.mtime()),
            Self::Object(object) => Ok(object.modified_at_s()),
        }
    }

    /// What tells this file from another that takes its place, where a reader would not notice: of an object.
    pub(crate) fn identity(&self) -> Option<String> {
        match self {
            Self::Local(_) => None,
            Self::Object(object) => Some(object.identity()),
        }
    }

    /// The error for another file in the place of this one.
    pub(crate) fn changed(&self) -> io::Error {
        match self {
            Self::Local(_) => io::Error::from_raw_os_error(rustix::io::Errno::STALE.raw_os_error()),
            Self::Object(object) => object.changed(),
        }
    }

    /// Reads bytes, none only at the end, for somebody who reads on. `left_bytes` is how many he will want from here on, if he knows.
    pub(crate) fn read_forwards_at(
        &self,
        offset: u64,
        buffer: &mut [u8],
        left_bytes: Option<u64>,
    ) -> io::Result<usize> {
        match self {
            Self::Local(file) => file.read_at(buffer, offset),
            Self::Object(object) => object.read_at(offset, buffer, left_bytes),
        }
    }

    /// Reads until the buffer is full or the file ends.
    pub(crate) fn read_full_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(file) => read_full_at(file, offset, buffer),
            Self::Object(object) => read_object_at(object, offset, buffer),
        }
    }

    /// As [`Self::read_full_at`], for pages that are handed on.
    pub(crate) fn read_pages_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(file) => read_pages_at(file, offset, buffer),
            Self::Object(object) => read_object_at(object, offset, buffer),
        }
    }

    /// The first bytes, as many as wanted if it has them.
    pub(crate) fn read_beginning(&self, bytes_max: u64) -> io::Result<Vec<u8>> {
        let size_bytes = self.size_bytes()?.min(bytes_max);
        let mut bytes = vec![0; usize::try_from(size_bytes).unwrap_or(0)];
        let count = self.read_full_at(0, &mut bytes)?;
        bytes.truncate(count);
        Ok(bytes)
    }
}

fn read_object_at(object: &ObjectFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    fill(offset, buffer, |offset, rest| {
        object.read_at(offset, rest, None)
    })
}

/// A file that is read on and on from where somebody has gone to.
#[derive(Debug)]
pub(crate) struct Forwards {
    file: StorageFile,
    at: u64,
    size_bytes: u64,
}

impl Forwards {
    pub(crate) fn new(file: StorageFile) -> io::Result<Self> {
        Ok(Self {
            size_bytes: file.size_bytes()?,
            file,
            at: 0,
        })
    }
}

impl Read for Forwards {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size_bytes.saturating_sub(self.at);
        let count = self.file.read_forwards_at(self.at, buffer, Some(left))?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Forwards {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size_bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// A file whose size is known.
#[derive(Debug)]
pub(crate) struct SizedFile<'a> {
    /// For errors.
    pub(crate) name: &'a str,
    pub(crate) file: &'a StorageFile,
    pub(crate) size_bytes: u64,
}

impl ReadAt for SizedFile<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        let read = self.file.read_full_at(offset, buffer);
        read.map_err(|error| RepositoryError::unreadable(self.name, "read archive", error))
    }
    fn reaches(&mut self, end: u64) -> Result<bool, RepositoryError> {
        Ok(end <= self.size_bytes)
    }
}
