//! One opened backup: reads, counts what is read towards checksums, and remembers what is corrupt.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use super::content::{Checked, Content};
use crate::backup::{Backup, CorruptFile, VerifyProgress, VerifyReport};
use crate::checksums::{Standing, Verifier};
use crate::tree::{EntryKind, FileIndex, Tree};
use crate::{RepositoryError, RepositoryErrorKind, RestorePoint};

/// Bytes per read of [`Backup::verify_all`].
const VERIFY_READ_BYTES: usize = 1 << 20;

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

    fn read_to_end(&self, file: FileIndex, buffer: &mut [u8]) -> Result<(), RepositoryError> {
        let mut offset = 0;
        loop {
            match self.read_at(file, offset, buffer)? {
                0 => return Ok(()),
                count => offset += count as u64,
            }
        }
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

    fn verify_all(
        &self,
        progress: &mut dyn FnMut(VerifyProgress) -> ControlFlow<()>,
    ) -> Result<VerifyReport, RepositoryError> {
        let mut buffer = vec![0; VERIFY_READ_BYTES];
        let mut report = VerifyReport {
            verified_count: 0,
            unverified_count: 0,
            corrupt: Vec::new(),
            stopped: false,
        };
        let mut done = VerifyProgress {
            file_count: 0,
            bytes: 0,
        };
        for entry in self.content.tree().entries() {
            let EntryKind::File { file, size_bytes } = entry.kind else {
                continue;
            };
            let known = self.verifier.standing(file);
            if !matches!(known, Standing::Verified | Standing::Corrupt)
                && let Err(error) = self.read_to_end(file, &mut buffer)
                && error.kind() != RepositoryErrorKind::Corrupt
            {
                return Err(error);
            }
            match self.verifier.standing(file) {
                Standing::Corrupt => report.corrupt.push(file),
                // An empty file has nothing to check.
                _ if size_bytes == 0 => report.verified_count += 1,
                Standing::Verified => report.verified_count += 1,
                Standing::Unknown | Standing::Pending => report.unverified_count += 1,
            }
            done.file_count += 1;
            done.bytes += size_bytes;
            if progress(done).is_break() {
                report.stopped = true;
                break;
            }
        }
        Ok(report)
    }
}
