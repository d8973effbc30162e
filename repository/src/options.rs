//! How a repository is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{DecodedLimits, DecodedStore, Storage};

/// How a repository is opened; [`Default`] is right for most.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Directories beside the repository's own into which a plain backup's links (`pg_tblspc/<oid>`, `pg_wal`)
    /// may lead. Anything else is refused: on the production host a link may lead to a live tablespace.
    pub tablespace_directories: Vec<PathBuf>,
    /// What the caller calls the setting behind `tablespace_directories`, for refusals to name; `tablespace_directories` when empty.
    pub tablespace_setting: String,
    /// Where WAL is archived, of a repository that is a directory of backups; other formats have their own.
    pub wal_archive: Option<WalPlace>,
    /// What is too much.
    pub limits: Limits,
    /// Where decoded bytes lie; without one each repository that needs it makes its own.
    pub decoded: Option<Arc<DecodedStore>>,
    /// Is told how far the opening of backups is.
    pub progress: Arc<OpenProgress>,
}

/// How far the opening of a backup is, where that takes long: compressed archives are read to their end. Of backups that are opened
/// quickly nothing is told.
#[derive(Debug, Default)]
pub struct OpenProgress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl OpenProgress {
    /// Stored bytes that have been read.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Stored bytes that there are to read, as far as that is known.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn add_total(&self, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_done(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Where WAL is archived.
#[derive(Debug, Clone)]
pub enum WalPlace {
    /// A local directory, opened when it is needed.
    Directory(PathBuf),
    /// A part of a bucket.
    Objects(Arc<Storage>),
}

impl OpenOptions {
    /// The place for decoded bytes: the caller's, else one of the repository's own.
    pub(crate) fn decoded_store(&self) -> Arc<DecodedStore> {
        let own = || Arc::new(DecodedStore::new(DecodedLimits::default()));
        self.decoded.clone().unwrap_or_else(own)
    }

    pub(crate) fn tablespace_setting(&self) -> &str {
        match self.tablespace_setting.as_str() {
            "" => "tablespace_directories",
            name => name,
        }
    }
}

/// What is too much for one backup or repository: beyond it, the backup is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest file, in bytes.
    pub file_bytes: u64,
    /// Most files and directories.
    pub entry_count: u64,
    /// Longest path below PGDATA, in bytes.
    pub path_bytes: usize,
    /// All paths together, in bytes: with `entry_count` the bound of the memory that a tree takes.
    pub all_paths_bytes: u64,
    /// Deepest nesting of directories.
    pub depth: usize,
    /// Most directories looked at in a repository.
    pub backup_count: usize,
    /// Most files of one backup held open.
    pub open_file_count: usize,
    /// Most pieces of checksums held for files that are read in pieces; see [`crate::Backup::read_at`].
    pub checksum_piece_count: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 1 << 40,
            entry_count: 10_000_000,
            path_bytes: 4096,
            all_paths_bytes: 1 << 30,
            depth: 32,
            backup_count: 1_000,
            open_file_count: 256,
            checksum_piece_count: 1 << 20,
        }
    }
}
