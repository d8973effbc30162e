//! What an archive supplies to a backup that lacks it: the WAL of one that was taken without any (`--wal-method=none`), and where a
//! backup without a manifest ends.

use std::sync::Arc;

use super::backup_history::{backup_history_name, parse_stop};
use super::directory::WalDirectory;
use super::head::WalHead;
use super::history::read_small;
use super::names::{is_segment, segment_name};
use super::storage::WalStorage;
use crate::pgbackrest::Compression;
use crate::with_wal::{BackupWithWal, Parts, Segment};
use crate::{Backup, Lsn, OpenOptions, RepositoryError, RestorePoint, Tree, WalPlace};

/// Most segments of one backup: 64 TiB with the largest segments, 1 TiB with the usual ones.
const SEGMENT_COUNT_MAX: u64 = 1 << 16;

/// Whether a backup brings WAL along, all of it or not.
pub(crate) fn has_wal(tree: &Tree) -> bool {
    let mut entries = tree.entries();
    entries.any(|entry| entry.path.strip_prefix("pg_wal/").is_some_and(is_segment))
}

/// The backup with what the archive supplies. One with WAL of its own is opened whatever the archive is worth.
pub(crate) fn with_archived_wal(
    backup: Arc<dyn Backup>,
    archive: &WalPlace,
    options: &OpenOptions,
) -> Result<Arc<dyn Backup>, RepositoryError> {
    let point = backup.restore_point();
    let supplied = match (has_wal(backup.tree()), point.recoverable.to_lsn) {
        (true, Some(_)) => return Ok(backup),
        (true, None) => match Supplied::stop_only(archive, point) {
            Ok(supplied) => supplied,
            Err(error) => {
                tracing::debug!(%error, "look for the end of a backup in the archive");
                return Ok(backup);
            }
        },
        (false, _) => Supplied::all(archive, point)?,
    };
    let mut restore_point = point.clone();
    restore_point.recoverable.to_lsn = Some(supplied.stop_lsn);
    Ok(Arc::new(BackupWithWal::new(Parts {
        storage: Arc::clone(supplied.archive.storage()),
        segments: supplied.segments,
        segment_bytes: supplied.segment_bytes,
        restore_point,
        store: options.decoded_store(),
        limits: options.limits,
        backup,
    })?))
}

/// What an archive has for a backup.
struct Supplied {
    archive: WalDirectory,
    segment_bytes: u64,
    stop_lsn: Lsn,
    segments: Vec<Segment>,
}

impl Supplied {
    /// Where it ends, and nothing else.
    fn stop_only(place: &WalPlace, point: &RestorePoint) -> Result<Self, RepositoryError> {
        let archive = WalDirectory::open(place)?;
        let begins = &point.recoverable;
        let names = archive.list(begins.from_lsn)?;
        let any = names
            .first_segment_of(begins.timeline, begins.from_lsn)
            .ok_or_else(|| lacking(&archive.path(&format!("(timeline {})", begins.timeline))))?;
        let stored = archive.open(any)?;
        let head = WalHead::read(&stored.path, stored.range(), stored.decoding())?;
        head.check(&stored.path, point.system_identifier, None)?;
        let stop_lsn = match begins.to_lsn {
            Some(stop_lsn) => stop_lsn,
            None => find_stop(&archive, point, head.segment_bytes)?,
        };
        Ok(Self {
            archive,
            segment_bytes: head.segment_bytes,
            stop_lsn,
            segments: Vec::new(),
        })
    }

    /// The same, and all WAL from the backup's start to its end.
    fn all(place: &WalPlace, point: &RestorePoint) -> Result<Self, RepositoryError> {
        let mut supplied = Self::stop_only(place, point)?;
        let begins = &point.recoverable;
        let (archive, segment_bytes) = (&supplied.archive, supplied.segment_bytes);
        let first = begins.from_lsn.0 / segment_bytes;
        // An end at a segment's very beginning needs nothing of that segment.
        let last = supplied.stop_lsn.0.saturating_sub(1) / segment_bytes;
        if last < first || last - first >= SEGMENT_COUNT_MAX {
            let reason = format!(
                "has its WAL from {} to {}",
                begins.from_lsn, supplied.stop_lsn
            );
            return Err(RepositoryError::corrupt(&point.label, reason));
        }
        let names =
            (first..=last).map(|number| segment_name(begins.timeline, number, segment_bytes));
        let segments: Result<_, _> = names
            .map(|name| find_segment(archive, &name, segment_bytes))
            .collect();
        supplied.segments = segments?;
        Ok(supplied)
    }
}

fn find_segment(
    archive: &WalDirectory,
    name: &str,
    segment_bytes: u64,
) -> Result<Segment, RepositoryError> {
    let found = archive.find(name)?;
    let (file, stored) = found
        .filter(|(_, stored)| !stored.is_partial)
        .ok_or_else(|| lacking(&archive.path(name)))?;
    let (compression, stored_bytes) = (stored.compression, stored.stored_bytes);
    if compression == Compression::None && stored_bytes != segment_bytes {
        let reason = format!("has {stored_bytes} bytes, and a WAL segment {segment_bytes}");
        return Err(RepositoryError::corrupt(stored.path, reason));
    }
    Ok(Segment {
        name: name.to_owned(),
        path: file,
        compression,
        stored_bytes,
    })
}

fn find_stop(
    archive: &WalDirectory,
    point: &RestorePoint,
    segment_bytes: u64,
) -> Result<Lsn, RepositoryError> {
    let begins = &point.recoverable;
    let name = backup_history_name(begins.timeline, begins.from_lsn, segment_bytes);
    let (_, stored) = archive.find(&name)?.ok_or_else(|| {
        RepositoryError::unsupported(
            archive.path(&name),
            "is not in the WAL archive, and the backup has no backup_manifest: nothing else says where the backup ends",
            "take backups with their manifest and their WAL (--wal-method=stream)",
        )
    })?;
    let content = read_small(&stored)?;
    parse_stop(&content, begins.from_lsn)
        .map_err(|reason| RepositoryError::corrupt(&stored.path, reason))
}

fn lacking(path: &str) -> RepositoryError {
    RepositoryError::unsupported(
        path,
        "is not in the WAL archive, nor whole in the backup, and recovery of the backup needs it",
        "wait until it is archived, or take backups with --wal-method=stream",
    )
}
