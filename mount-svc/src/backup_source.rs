//! One opened backup as a mount shows it: its tree laid out, and its pages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use common::agent::hand::{TreeEntry, TreeFinish};
use common::ids::{BackupLabel, RepositoryName};
use common::problem::{ErrorCode, Problem};
use repository::{Backup, BackupChoice, EntryKind, FileIndex};

use crate::config::RepositoryConfig;
use crate::layout::{self, BackupEntry};
use crate::page_server::{PageFailure, PageSource};
use crate::repositories::{self, Shared};

/// An opened backup, ready to be served.
pub struct BackupSource {
    backup: Arc<dyn Backup>,
    label: BackupLabel,
    tree: Vec<TreeEntry>,
    finish: TreeFinish,
    reported_corrupt: Mutex<BTreeSet<FileIndex>>,
}

impl std::fmt::Debug for BackupSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupSource")
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

impl BackupSource {
    /// Opens a backup (the newest when no label is given) for a mount point. Blocks: reads its list of files.
    pub fn open(
        name: &RepositoryName,
        config: &RepositoryConfig,
        shared: &Shared,
        label: Option<&BackupLabel>,
        mount_point: &Path,
    ) -> Result<Self, Problem> {
        let choice = label.map_or(BackupChoice::Newest, |label| {
            BackupChoice::Label(label.as_str())
        });
        let backup = repositories::open(name, config, shared)?
            .open(choice)
            .map_err(|error| repositories::problem_of(name, &error))?;
        let label = BackupLabel::new(backup.restore_point().label.clone()).map_err(|error| {
            Problem::new(
                ErrorCode::UnsupportedBackup,
                format!("repository {name}: {error}"),
                "rename the backup's directory",
            )
        })?;
        let entries = backup.tree().entries().map(|entry| BackupEntry {
            path: entry.path,
            file: match entry.kind {
                EntryKind::Directory => None,
                EntryKind::File { file, size_bytes } => Some((file.0, size_bytes)),
            },
            mode: entry.mode,
            modified_at_s: entry.modified_at_s,
        });
        let tree = layout::lay_out(entries, mount_point);
        let finish = layout::finish(&tree);
        Ok(Self {
            backup,
            label,
            tree,
            finish,
            reported_corrupt: Mutex::default(),
        })
    }

    /// The tree that the mount shows.
    pub fn tree(&self) -> &[TreeEntry] {
        &self.tree
    }

    /// The tree's end and hash.
    pub fn finish(&self) -> TreeFinish {
        self.finish
    }

    /// The backup's label.
    pub fn label(&self) -> &BackupLabel {
        &self.label
    }

    /// PostgreSQL's major version.
    pub fn postgresql_major(&self) -> u32 {
        self.backup.restore_point().postgresql_major
    }

    /// Where recovery is consistent, if the backup says so.
    pub fn end_lsn(&self) -> Option<String> {
        self.backup
            .restore_point()
            .recoverable
            .to_lsn
            .map(|lsn| lsn.to_string())
    }

    /// Size of its files, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.backup.restore_point().size_bytes
    }

    /// Where its tablespaces were on the original, by oid.
    pub fn tablespaces(&self) -> BTreeMap<u32, PathBuf> {
        let tablespaces = &self.backup.restore_point().tablespaces;
        tablespaces
            .iter()
            .map(|tablespace| (tablespace.oid, PathBuf::from(&tablespace.location)))
            .collect()
    }

    /// Files found corrupt since the last call, as sentences.
    pub fn take_new_corrupt_files(&self) -> Vec<String> {
        let mut reported = self
            .reported_corrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let new = self
            .backup
            .corrupt_files()
            .into_iter()
            .filter(|corrupt| reported.insert(corrupt.file));
        new.map(|corrupt| {
            format!(
                "backup {}: {}: reading this file gives an IO error; publish another backup",
                self.label, corrupt.reason
            )
        })
        .collect()
    }
}

impl PageSource for BackupSource {
    fn read_at(&self, file: u32, offset: u64, buffer: &mut [u8]) -> Result<usize, PageFailure> {
        self.backup
            .read_at(FileIndex(file), offset, buffer)
            .map_err(|error| PageFailure {
                permanent: error.is_permanent(),
                message: error.to_string(),
            })
    }
}
