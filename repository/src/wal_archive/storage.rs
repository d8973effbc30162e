//! What a format says of an archive: which files there are, and how one is stored.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use super::names::ArchiveNames;
use crate::pgbackrest::{Compression, Decoding, Framing, Passphrase, ReadFailure, StoredRange};
use crate::storage::StorageFile;
use crate::{Lsn, RepositoryError};

/// An archive as its format keeps it.
pub(crate) trait WalStorage: Send + Sync + fmt::Debug {
    /// The names of its files; of segments before `from` none need be among them.
    fn list(&self, from: Lsn) -> Result<Arc<ArchiveNames>, RepositoryError>;

    /// Opens the file of a name: of a segment, or of a history.
    fn open(&self, name: &str) -> Result<StoredWal, RepositoryError>;
}

/// One file as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct StoredWal {
    /// Its path below the repository, for errors.
    pub(crate) path: String,
    pub(crate) file: Arc<StorageFile>,
    pub(crate) stored_bytes: u64,
    pub(crate) compression: Compression,
    pub(crate) passphrase: Option<Passphrase>,
    /// The SHA-1 of what it stands for, where the format has it.
    pub(crate) sha1: Option<[u8; 20]>,
    /// Whether it is still being written: what it has not yet counts as zeros.
    pub(crate) is_partial: bool,
    /// When it was written, in seconds since the epoch.
    pub(crate) modified_at_s: i64,
}

impl StoredWal {
    /// A file that stands for itself, as far as is known without looking into it.
    pub(crate) fn plain(path: String, file: StorageFile) -> Result<Self, RepositoryError> {
        let unreadable = |error| RepositoryError::unreadable(&path, "look at", error);
        let stored_bytes = file.size_bytes().map_err(unreadable)?;
        let modified_at_s = file.modified_at_s().map_err(unreadable)?;
        Ok(Self {
            path,
            file: Arc::new(file),
            stored_bytes,
            compression: Compression::None,
            passphrase: None,
            sha1: None,
            is_partial: false,
            modified_at_s,
        })
    }

    /// How its bytes are decoded.
    pub(super) fn decoding(&self) -> Decoding<'_> {
        Decoding {
            compression: self.compression,
            framing: Framing::Standard,
            passphrase: self.passphrase.as_ref(),
        }
    }

    /// Its bytes as they are stored.
    pub(super) fn range(&self) -> StoredRange {
        StoredRange::new(Arc::clone(&self.file), 0, self.stored_bytes)
    }

    /// A reader of what it stands for, and what tells later whether reading failed.
    pub(super) fn decoder(&self) -> Result<(Box<dyn Read + Send>, ReadFailure), RepositoryError> {
        let range = self.range();
        let failure = range.failure();
        let decoder = self.decoding().decoder(range);
        let decoder =
            decoder.map_err(|error| failure.explain(&self.path, "its beginning", &error))?;
        Ok((decoder, failure))
    }
}
