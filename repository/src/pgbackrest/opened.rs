//! One opened backup: reads, counts what is read towards checksums, and remembers what is corrupt.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::content::{Checked, Content};
use crate::backup::{Backup, CorruptFile};
use crate::checksums::{Standing, Verifier};
use crate::tree::{FileIndex, Tree};
use crate::{RepositoryError, RepositoryErrorKind, RestorePoint};

#[derive(Debug)]
pub(super) struct OpenedBackup {
    content: Content,
    restore_point: RestorePoint,
    verifier: Verifier,
    /// What is wrong with the files that are corrupt.
    reasons: Mutex<BTreeMap<FileIndex, String>>,
}

impl OpenedBackup {
    pub(super) fn new(content: Content, restore_point: RestorePoint, verifier: Verifier) -> Self {
        Self {
            content,
            restore_point,
            verifier,
            reasons: Mutex::default(),
        }
    }

    /// Notes an error that shows a file to be corrupt.
    fn note(&self, file: FileIndex, error: RepositoryError) -> RepositoryError {
        if error.kind() == RepositoryErrorKind::Corrupt {
            self.verifier.settle(file, false);
            let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
            reasons.entry(file).or_insert_with(|| error.to_string());
        }
        error
    }

    fn known_corrupt(&self, file: FileIndex) -> RepositoryError {
        let path = match self.content.describe(file) {
            Ok((path, _)) => path,
            Err(error) => return error,
        };
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = reasons.get(&file).map(String::as_str).unwrap_or_default();
        let own = format!("{path}: ");
        RepositoryError::corrupt(path, reason.strip_prefix(&own).unwrap_or(reason))
    }
}

impl Backup for OpenedBackup {
    fn restore_point(&self) -> &RestorePoint {
        &self.restore_point
    }

    fn tree(&self) -> &Tree {
        self.content.tree()
    }

    fn read_at(
        &self,
        file: FileIndex,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        if self.verifier.standing(file) == Standing::Corrupt {
            return Err(self.known_corrupt(file));
        }
        let read = self.content.read_at(file, offset, buffer);
        let (count, checked) = read.map_err(|error| self.note(file, error))?;
        match checked {
            Checked::Whole => self.verifier.settle(file, true),
            Checked::Piece => {}
            Checked::Counts => {
                let (path, size_bytes) = self.content.describe(file)?;
                let bytes = buffer.get(..count).unwrap_or_default();
                if self.verifier.feed(file, size_bytes, offset, bytes) == Standing::Corrupt {
                    let label = &self.restore_point.label;
                    let reason = format!(
                        "does not have the checksum that the manifest of backup {label} has for it"
                    );
                    return Err(self.note(file, RepositoryError::corrupt(path, reason)));
                }
            }
        }
        Ok(count)
    }

    fn corrupt_files(&self) -> Vec<CorruptFile> {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let corrupt = reasons.iter().map(|(file, reason)| CorruptFile {
            file: *file,
            reason: reason.clone(),
        });
        corrupt.collect()
    }

    fn standing(&self, file: FileIndex) -> Standing {
        let is_empty = self.content.describe(file).is_ok_and(|(_, size)| size == 0);
        match self.verifier.standing(file) {
            Standing::Unknown | Standing::Pending if is_empty => Standing::Verified,
            // What has no checksum of its own is checked by its compression or its blocks when it is read.
            Standing::Unknown => Standing::Pending,
            known => known,
        }
    }
}
