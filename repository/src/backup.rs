//! The two traits that every format implements.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{
    EntryKind, FileIndex, RepositoryError, RestorePoint, RestorePoints, Standing, Tree, WalArchive,
};

/// Bytes per read of [`Backup::verify_all`].
const VERIFY_READ_BYTES: usize = 1 << 20;

/// A place with backups.
pub trait Repository: Send + Sync + fmt::Debug {
    /// The backups and what each can be recovered to, newest first. Looks at every backup's list of files.
    fn restore_points(&self) -> Result<RestorePoints, RepositoryError>;

    /// Opens one backup: builds its tree, checks it against its manifest, reads no contents.
    fn open(&self, which: BackupChoice<'_>) -> Result<Arc<dyn Backup>, RepositoryError>;

    /// The archive of WAL that recovery of each of these backups can go on with; none where the repository has no archive. What they
    /// have in common is read once, when it is looked at, and not anew after that: for one answer, and not for longer.
    fn wal_archives(&self, points: &[RestorePoint]) -> Result<WalArchives, RepositoryError>;

    /// The archive of one backup.
    fn wal_archive(&self, point: &RestorePoint) -> Result<Option<WalArchive>, RepositoryError> {
        let mut archives = self.wal_archives(std::slice::from_ref(point))?;
        archives.pop().unwrap_or(Ok(None))
    }
}

/// The archive of each backup, in their order.
pub type WalArchives = Vec<Result<Option<WalArchive>, RepositoryError>>;

/// Which backup to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupChoice<'a> {
    /// The one begun last, of those that can be opened.
    Newest,
    /// The one of this label.
    Label(&'a str),
}

/// One backup as a read-only tree with random access.
pub trait Backup: Send + Sync + fmt::Debug {
    /// What it is a backup of, and what it can be recovered to.
    fn restore_point(&self) -> &RestorePoint;

    /// Its files and directories, as PGDATA would have them. Files of the tool itself (`backup_manifest`) are not among them;
    /// `backup_label` and `tablespace_map` are.
    fn tree(&self) -> &Tree;

    /// Reads bytes of a file: as many as the buffer takes, fewer only at the file's end.
    ///
    /// Where the format has checksums of whole files, what is read is counted towards them, and the read that completes
    /// a file and finds another checksum fails, as do all later ones of that file, with a permanent error.
    /// CRC32C is completed by reads in any order; SHA by reads from the beginning to the end. When reads in pieces have left more
    /// than [`crate::Limits::checksum_piece_count`] pieces, those of the file not read for the longest time are forgotten, and it
    /// counts as not read.
    fn read_at(
        &self,
        file: FileIndex,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError>;

    /// Files found corrupt so far, in the tree's order.
    fn corrupt_files(&self) -> Vec<CorruptFile>;

    /// What is known of a file's content.
    fn standing(&self, file: FileIndex) -> Standing;

    /// Reads what the checksum of a file covers, until its standing is known or it ends. That it is corrupt is no error.
    fn check_file(&self, file: FileIndex, buffer: &mut [u8]) -> Result<(), RepositoryError> {
        let mut offset = 0;
        while self.standing(file) == Standing::Pending {
            match self.read_at(file, offset, buffer) {
                Ok(0) => break,
                Ok(count) => offset += count as u64,
                Err(_) if self.standing(file) == Standing::Corrupt => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads every file whose checksum has not been checked yet. Corrupt files do not end it, other errors do; `progress` may.
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
        for entry in self.tree().entries() {
            let EntryKind::File { file, size_bytes } = entry.kind else {
                continue;
            };
            self.check_file(file, &mut buffer)?;
            match self.standing(file) {
                Standing::Verified => report.verified_count += 1,
                Standing::Corrupt => report.corrupt.push(file),
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

/// A file that was found corrupt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorruptFile {
    /// The file.
    pub file: FileIndex,
    /// What is wrong with it, and where: a sentence that begins with its path.
    pub reason: String,
}

/// What kind of backup one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackupKind {
    /// It stands on no other.
    Full,
    /// It stands on a full one.
    Differential,
    /// It stands on any others of its set.
    Incremental,
}

/// How far [`Backup::verify_all`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Files done, of all.
    pub file_count: u64,
    /// Bytes of the files done.
    pub bytes: u64,
}

/// What [`Backup::verify_all`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Files whose checksum is as it should be.
    pub verified_count: u64,
    /// Files that have no checksum to compare with.
    pub unverified_count: u64,
    /// Files found corrupt, in the tree's order.
    pub corrupt: Vec<FileIndex>,
    /// Whether `progress` ended it early.
    pub stopped: bool,
}
