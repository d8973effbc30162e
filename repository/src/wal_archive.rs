//! The archive of WAL that recovery of a backup goes on with: which files of it belong to the backup's future, and their bytes.
//!
//! A format says which files there are and opens one ([`WalStorage`]); everything else is here, once. What a mount shows of an
//! archive is fixed when it is first looked at ([`ShownWal`]): archives grow and are expired, and a mount must stay what it was.
//!
//! What must stay true: nothing is shown that is not of the backup's own history; the run of segments has no hole.

mod backup_history;
mod by_magic;
mod choice;
mod consistency;
mod directory;
mod files;
mod head;
mod history;
mod listed_once;
mod names;
mod read_ahead;
mod shown;
mod storage;
mod supply;

use std::sync::Arc;

pub(crate) use by_magic::{MAGIC_BYTES, compression_of};
use choice::{Begins, HeldSegments, choose};
#[doc(hidden)]
pub use consistency::archive_is_consistent;
pub(crate) use directory::{WAL_ENDINGS, WalDirectory, gone, name_of};
pub use files::WalFiles;
pub(crate) use head::WalHead;
#[doc(hidden)]
pub use head::wal_head_is_sound;
use history::{History, read_history};
pub(crate) use listed_once::shared;
pub(crate) use names::{ArchiveNames, is_segment, may_hold};
pub use shown::{SegmentRun, ShownHistory, ShownWal, WalGap};
pub(crate) use storage::{StoredWal, WalStorage};
pub(crate) use supply::{has_wal, with_archived_wal};

use crate::{DecodedStore, Lsn, RepositoryError, RestorePoint};

/// Most segments that a mount shows: 16 TiB of the usual ones.
const SEGMENT_COUNT_MAX: u64 = 1 << 20;

/// An archive, seen from one backup.
#[derive(Debug)]
pub struct WalArchive {
    storage: Arc<dyn WalStorage>,
    store: Arc<DecodedStore>,
    timeline: u32,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    segment_bytes: Option<u64>,
    system_identifier: Option<u64>,
}

impl WalArchive {
    /// The archive of a backup; `segment_bytes` where the format knows the size of its segments.
    pub(crate) fn new(
        storage: Arc<dyn WalStorage>,
        store: Arc<DecodedStore>,
        point: &RestorePoint,
        segment_bytes: Option<u64>,
    ) -> Self {
        let recoverable = &point.recoverable;
        Self {
            storage,
            store,
            timeline: recoverable.timeline,
            start_lsn: recoverable.from_lsn,
            stop_lsn: recoverable.to_lsn.unwrap_or(recoverable.from_lsn),
            segment_bytes,
            system_identifier: point.system_identifier,
        }
    }

    /// What the archive has for the backup now; none if it has nothing of the backup's history. Lists it and reads the histories of
    /// timelines, no segment but the first page of one.
    pub fn look(&self) -> Result<Option<ShownWal>, RepositoryError> {
        let names = self.storage.list(self.start_lsn)?;
        let Some(any) = names.first_segment_of(self.timeline, self.start_lsn) else {
            return Ok(None);
        };
        let segment_bytes = self.check_segment(any)?;
        let begins = Begins {
            timeline: self.timeline,
            start_lsn: self.start_lsn,
            stop_lsn: self.stop_lsn,
            segment_bytes,
        };
        // What the backup brings along need not be archived, and is gone through one by one.
        let brought = self.stop_lsn.0.saturating_sub(self.start_lsn.0) / segment_bytes;
        if brought > SEGMENT_COUNT_MAX {
            let (start, stop) = (self.start_lsn, self.stop_lsn);
            let reason = format!("belongs to a backup with its WAL from {start} to {stop}");
            return Err(RepositoryError::corrupt(any, reason));
        }
        let held = HeldSegments::of(&names, segment_bytes);
        let histories = self.histories(&names)?;
        let parsed: Vec<&History> = histories.iter().map(|(history, _)| history).collect();
        let chosen = choose(&begins, &held, &parsed);
        let Some(last) = chosen.runs.last() else {
            return Ok(None);
        };
        let count: u64 = chosen.runs.iter().map(SegmentRun::count).sum();
        let last = names::segment_name(last.timeline, last.last, segment_bytes);
        if count > SEGMENT_COUNT_MAX {
            return Err(RepositoryError::unsupported(
                last,
                format!(
                    "is {count} segments from the backup's start, and {SEGMENT_COUNT_MAX} are the most that are followed"
                ),
                "use a newer backup",
            ));
        }
        let archived_at_s = self.storage.open(&last)?.modified_at_s;
        let own = self.timeline;
        let shown = histories
            .into_iter()
            .filter(|(history, _)| history.timeline >= own);
        Ok(Some(ShownWal {
            segment_bytes,
            runs: chosen.runs,
            histories: shown
                .map(|(history, size_bytes)| ShownHistory {
                    timeline: history.timeline,
                    size_bytes,
                })
                .collect(),
            target_timeline: chosen.target_timeline,
            archived_at_s,
            gap: chosen.gap,
        }))
    }

    /// Opens what is shown, whether or not the archive still has it: what has gone fails when it is read.
    pub fn open(&self, shown: ShownWal) -> Result<WalFiles, RepositoryError> {
        WalFiles::start(Arc::clone(&self.storage), Arc::clone(&self.store), shown)
    }

    /// The size of segments, and that this one is of the backup's cluster.
    fn check_segment(&self, name: &str) -> Result<u64, RepositoryError> {
        let stored = self.storage.open(name)?;
        let head = WalHead::read(&stored.path, stored.range(), stored.decoding())?;
        head.check(&stored.path, self.system_identifier, self.segment_bytes)?;
        Ok(head.segment_bytes)
    }

    /// The histories that may have to do with the backup, from its own timeline on, with their sizes.
    fn histories(&self, names: &ArchiveNames) -> Result<Vec<(History, u64)>, RepositoryError> {
        let later = names
            .histories()
            .filter(|timeline| *timeline >= self.timeline);
        later
            .map(|timeline| read_history(&*self.storage, timeline))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, WalPlace};

    #[test]
    fn a_backup_that_claims_absurdly_much_wal_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut head = [0; 40];
        head[..2].copy_from_slice(&0xD110_u16.to_ne_bytes());
        head[32..36].copy_from_slice(&(16_u32 << 20).to_ne_bytes());
        std::fs::write(directory.path().join("000000010000000000000002"), head).unwrap();
        let place = WalPlace::Directory(directory.path().to_owned());
        let look = |stop_lsn| {
            let archive = WalArchive {
                storage: Arc::new(WalDirectory::open(&place).unwrap()),
                store: OpenOptions::default().decoded_store(),
                timeline: 1,
                start_lsn: Lsn(2 << 24),
                stop_lsn,
                segment_bytes: None,
                system_identifier: None,
            };
            archive.look()
        };
        let shown = look(Lsn((2 << 24) + 100)).unwrap().unwrap();
        assert_eq!(shown.segment_count(), 1);
        let error = look(Lsn(u64::MAX)).unwrap_err().to_string();
        assert!(error.contains("with its WAL from"), "{error}");
    }
}
