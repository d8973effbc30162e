//! One opened backup as a mount shows it: its tree laid out, and its pages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use common::agent::hand::{TreeEntry, TreeFinish};
use common::ids::{BackupLabel, RepositoryName};
use common::messages::MountedWal;
use common::problem::{ErrorCode, Problem};
use repository::{
    Backup, BackupChoice, EntryKind, FileIndex, OpenProgress, Repository, RepositoryError,
    RestorePoint, ShownWal, WalFiles,
};

use crate::config::RepositoryConfig;
use crate::layout::{self, BackupEntry};
use crate::page_server::{PageFailure, PageSource};
use crate::record::Pinned;
use crate::repositories::{self, Shared};

/// An opened backup, ready to be served.
pub struct BackupSource {
    backup: Arc<dyn Backup>,
    pinned: Pinned,
    wal: Option<WalFiles>,
    /// The number of the first file of the archive; those before it are of the backup.
    first_wal_file: u32,
    tree: Vec<TreeEntry>,
    finish: TreeFinish,
    reported_corrupt: Mutex<BTreeSet<u32>>,
}

/// Which backup is opened, and as what.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The repository.
    pub name: &'a RepositoryName,
    /// Its configuration.
    pub config: &'a RepositoryConfig,
    /// The backup; the newest one when absent.
    pub label: Option<&'a BackupLabel>,
    /// What an earlier opening for the same mount showed.
    pub pinned: Option<&'a Pinned>,
    /// Is told how far the opening is.
    pub progress: Arc<OpenProgress>,
}

impl std::fmt::Debug for BackupSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupSource")
            .field("label", &self.pinned.backup)
            .finish_non_exhaustive()
    }
}

impl BackupSource {
    /// Opens a backup for a mount point: what an earlier opening showed, else what there is now. Blocks: reads its list of files.
    pub fn open(wanted: &Wanted<'_>, shared: &Shared, mount_point: &Path) -> Result<Self, Problem> {
        let name = wanted.name;
        let label = wanted.pinned.map(|pinned| &pinned.backup).or(wanted.label);
        let choice = label.map_or(BackupChoice::Newest, |label| {
            BackupChoice::Label(label.as_str())
        });
        let problem = |error| repositories::problem_of(name, &error);
        let repository = repositories::open_telling(name, wanted.config, shared, &wanted.progress)?;
        let backup = repository.open(choice).map_err(problem)?;
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
        let mut tree = layout::lay_out(entries, mount_point);
        let (shown, wal) =
            open_wal(&*repository, backup.restore_point(), wanted.pinned).map_err(problem)?;
        let first_wal_file = u32::try_from(backup.tree().file_count()).unwrap_or(u32::MAX);
        if let Some(shown) = &shown {
            layout::lay_out_wal(&mut tree, shown, first_wal_file);
        }
        let finish = layout::finish(&tree);
        Ok(Self {
            backup,
            pinned: Pinned {
                backup: label,
                wal: shown,
            },
            wal,
            first_wal_file,
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
        &self.pinned.backup
    }

    /// What is shown, so that a later opening can show the same.
    pub fn pinned(&self) -> &Pinned {
        &self.pinned
    }

    /// What recovery can go on with behind the backup's end, in the words of the contract.
    pub fn wal(&self) -> Option<MountedWal> {
        let shown = self.pinned.wal.as_ref()?;
        Some(mounted_wal(shown))
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

    /// Why its pages are slow to read at random, and what makes later backups fast; none if they are not slow.
    pub fn slow_layout(&self) -> Option<String> {
        let slow = self.backup.restore_point().slow_layout.as_ref();
        slow.map(ToString::to_string)
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
        let of_backup = self.backup.corrupt_files().into_iter();
        let of_backup = of_backup.map(|corrupt| (corrupt.file.0, corrupt.reason));
        let of_wal = self.wal.iter().flat_map(WalFiles::corrupt_files);
        let of_wal =
            of_wal.map(|(file, reason)| (self.first_wal_file.saturating_add(file), reason));
        let all = of_backup.chain(of_wal);
        let new = all.filter(|(file, _)| reported.insert(*file));
        new.map(|(_, reason)| {
            format!(
                "backup {}: {reason}: reading this file gives an IO error; publish another backup",
                self.pinned.backup
            )
        })
        .collect()
    }
}

/// What is shown of the repository's archive of WAL, and its bytes. What an earlier opening showed is shown again, also if the archive is
/// gone: a mount whose recovery has ended does not need it any more, and others are told when they read.
fn open_wal(
    repository: &dyn Repository,
    point: &RestorePoint,
    pinned: Option<&Pinned>,
) -> Result<(Option<ShownWal>, Option<WalFiles>), RepositoryError> {
    let Some(pinned) = pinned else {
        let Some(archive) = repository.wal_archive(point)? else {
            return Ok((None, None));
        };
        let shown = archive.look()?;
        let files = shown.clone().map(|shown| archive.open(shown));
        return Ok((shown, files.transpose()?));
    };
    let Some(shown) = &pinned.wal else {
        return Ok((None, None));
    };
    let opened = match repository.wal_archive(point) {
        Ok(Some(archive)) => archive.open(shown.clone()).map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    let files = match opened {
        Err(error) if error.is_permanent() => {
            tracing::warn!(%error, "the archive of WAL cannot be opened any more");
            None
        }
        opened => opened?,
    };
    Ok((Some(shown.clone()), files))
}

fn mounted_wal(shown: &ShownWal) -> MountedWal {
    MountedWal {
        target_timeline: shown
            .has_history_of_target()
            .then_some(shown.target_timeline),
        end_lsn: shown.end_lsn().map(|lsn| lsn.to_string()),
        gap: shown.gap.as_ref().map(repositories::gap_of),
    }
}

impl PageSource for BackupSource {
    fn read_at(&self, file: u32, offset: u64, buffer: &mut [u8]) -> Result<usize, PageFailure> {
        let read = match (file.checked_sub(self.first_wal_file), &self.wal) {
            (None, _) => self.backup.read_at(FileIndex(file), offset, buffer),
            (Some(number), Some(wal)) => wal.read_at(number, offset, buffer),
            (Some(_), None) => {
                return Err(PageFailure {
                    permanent: true,
                    message: "the repository has no archive of WAL any more".to_owned(),
                });
            }
        };
        read.map_err(|error| PageFailure {
            permanent: error.is_permanent(),
            message: error.to_string(),
        })
    }
}
