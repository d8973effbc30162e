//! Open files of a repository.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::RepositoryError;
use crate::beneath::{read_full_at, read_pages_at};
use crate::pg_basebackup::ReadAt;

/// An open file of a repository, read at any place.
#[derive(Debug)]
pub(crate) enum StorageFile {
    /// A file of a local directory.
    Local(File),
}

impl StorageFile {
    /// Its size in bytes, as it is now.
    pub(crate) fn size_bytes(&self) -> io::Result<u64> {
        match self {
            Self::Local(file) => Ok(file.metadata()?.len()),
        }
    }

    /// Reads bytes, none only at the end, for somebody who goes on reading: of so many bytes, the buffer's included.
    pub(crate) fn read_forwards_at(
        &self,
        offset: u64,
        buffer: &mut [u8],
        _left_bytes: u64,
    ) -> io::Result<usize> {
        match self {
            Self::Local(file) => file.read_at(buffer, offset),
        }
    }

    /// Reads until the buffer is full or the file ends.
    pub(crate) fn read_full_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(file) => read_full_at(file, offset, buffer),
        }
    }

    /// As [`Self::read_full_at`], for pages that are handed on.
    pub(crate) fn read_pages_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(file) => read_pages_at(file, offset, buffer),
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
