//! Bytes as they are stored: a range of a file of the repository, with what it takes to decode them.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use super::Framing;
use super::cipher::DecryptReader;
use super::compression::Compression;
use super::passphrase::Passphrase;
use crate::RepositoryError;
use crate::storage::{StorageFile, same_error};

/// A range of an open file, read from its beginning to its end.
#[derive(Debug)]
pub(crate) struct StoredRange {
    file: Arc<StorageFile>,
    at: u64,
    left: u64,
    failure: ReadFailure,
}

/// Why the system could not read, if so: then what comes out of a decoder is no sign of damage.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadFailure(Arc<OnceLock<io::Error>>);

impl ReadFailure {
    /// Whether the system could not read.
    pub(crate) fn happened(&self) -> bool {
        self.0.get().is_some()
    }

    /// The error that a decoder's failure stands for.
    pub(crate) fn explain(&self, path: &str, place: &str, error: &io::Error) -> RepositoryError {
        match self.0.get() {
            Some(cause) => {
                let cause = same_error(cause);
                RepositoryError::unreadable(format!("{path} ({place})"), "read", cause)
            }
            None => RepositoryError::corrupt(path, format!("{place} cannot be decoded: {error}")),
        }
    }
}

impl StoredRange {
    pub(crate) fn new(file: Arc<StorageFile>, offset: u64, length: u64) -> Self {
        Self {
            file,
            at: offset,
            left: length,
            failure: ReadFailure::default(),
        }
    }

    /// Tells later whether reading failed.
    pub(crate) fn failure(&self) -> ReadFailure {
        self.failure.clone()
    }
}

impl Read for StoredRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        match self.file.read_forwards_at(self.at, buffer, Some(self.left)) {
            Ok(count) => {
                self.at += count as u64;
                self.left -= count as u64;
                Ok(count)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    // Only the first failure tells something.
                    self.failure.0.set(same_error(&error)).ok();
                }
                Err(error)
            }
        }
    }
}

/// How stored bytes are turned into what they stand for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoding<'a> {
    pub(crate) compression: Compression,
    pub(crate) framing: Framing,
    pub(crate) passphrase: Option<&'a Passphrase>,
}

impl Decoding<'_> {
    /// Whether any byte can be read where it is stored: as it is there, or decrypted.
    pub(crate) fn is_in_place(&self) -> bool {
        self.compression == Compression::None
    }

    /// Whether stored bytes stand for themselves.
    pub(crate) fn is_plain(&self) -> bool {
        self.compression == Compression::None && self.passphrase.is_none()
    }

    /// A reader of what the stored bytes stand for: decrypted first, then decompressed.
    pub(crate) fn decoder(
        &self,
        source: impl Read + Send + 'static,
    ) -> io::Result<Box<dyn Read + Send>> {
        let source: Box<dyn Read + Send> = match self.passphrase {
            None => Box::new(source),
            Some(passphrase) => Box::new(DecryptReader::new(source, passphrase, self.framing)),
        };
        self.compression.decoder(self.framing, source)
    }
}
