//! A backup, and the WAL that its recovery needs beside it in `pg_wal`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::decoded::DecodedRead;
use crate::handles::Handles;
use crate::pgbackrest::{Compression, Decoding, Framing, StoredRange, WholeFile, WholeFileReader};
use crate::storage::Storage;
use crate::tree::{
    EntryKind, FileIndex, Found, Location, Tree, TreeBuilder, no_such_file, within_file,
};
use crate::{
    Backup, CorruptFile, DecodedStore, Limits, RepositoryError, RepositoryErrorKind, RestorePoint,
    Standing,
};

/// A WAL segment as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Its name in `pg_wal`.
    pub(crate) name: String,
    /// Its path in what holds it.
    pub(crate) path: String,
    pub(crate) compression: Compression,
    pub(crate) stored_bytes: u64,
}

impl Segment {
    /// How its bytes become WAL.
    pub(crate) fn decoding(&self) -> Decoding<'static> {
        Decoding {
            compression: self.compression,
            framing: Framing::Standard,
            passphrase: None,
        }
    }
}

/// What such a backup is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) backup: Arc<dyn Backup>,
    /// What holds the segments.
    pub(crate) storage: Arc<Storage>,
    pub(crate) segments: Vec<Segment>,
    /// Size of each segment.
    pub(crate) segment_bytes: u64,
    pub(crate) restore_point: RestorePoint,
    pub(crate) store: Arc<DecodedStore>,
    pub(crate) limits: Limits,
}

/// A backup with its WAL.
#[derive(Debug)]
pub(crate) struct BackupWithWal {
    backup: Arc<dyn Backup>,
    storage: Arc<Storage>,
    segments: Vec<Segment>,
    segment_bytes: u64,
    tree: Tree,
    /// By file: whether it is of the backup or a segment, and which.
    locations: Vec<Location>,
    restore_point: RestorePoint,
    store: Arc<DecodedStore>,
    owner: u64,
    handles: Handles<u32>,
    /// Segments found corrupt, and why.
    corrupt: Mutex<BTreeMap<FileIndex, String>>,
}

const OF_BACKUP: u32 = 0;
const SEGMENT: u32 = 1;

enum Place<'a> {
    OfBackup(FileIndex),
    Segment(u32, &'a Segment),
}

impl BackupWithWal {
    pub(crate) fn new(parts: Parts) -> Result<Self, RepositoryError> {
        let mut tree = TreeBuilder::new(parts.limits);
        let shown = parts.backup.tree();
        for entry in shown.entries() {
            let (size_bytes, number) = match entry.kind {
                EntryKind::Directory => (None, 0),
                EntryKind::File { file, size_bytes } => (Some(size_bytes), u64::from(file.0)),
            };
            tree.add(Found {
                path: entry.path,
                size_bytes,
                mode: entry.mode,
                modified_at_s: entry.modified_at_s,
                location: Location {
                    source: OF_BACKUP,
                    offset: number,
                },
            })?;
        }
        let stopped_at = parts.restore_point.stopped_at;
        for (number, segment) in (0..).zip(&parts.segments) {
            let path = format!("pg_wal/{}", segment.name);
            // What the backup brings along itself was made with it.
            if shown.find(&path).is_some() {
                continue;
            }
            tree.add(Found {
                path: &path,
                size_bytes: Some(parts.segment_bytes),
                mode: 0o600,
                modified_at_s: stopped_at.map_or(0, jiff::Timestamp::as_second),
                location: Location {
                    source: SEGMENT,
                    offset: number,
                },
            })?;
        }
        let (tree, locations) = tree.finish()?;
        let mut restore_point = parts.restore_point;
        restore_point.size_bytes = tree.size_bytes();
        restore_point.file_count = tree.file_count();
        Ok(Self {
            backup: parts.backup,
            storage: parts.storage,
            segments: parts.segments,
            segment_bytes: parts.segment_bytes,
            tree,
            locations,
            restore_point,
            owner: parts.store.new_owner(),
            store: parts.store,
            handles: Handles::new(parts.limits.open_file_count),
            corrupt: Mutex::default(),
        })
    }

    fn place(&self, file: FileIndex) -> Result<Place<'_>, RepositoryError> {
        let location = self.locations.get(file.0 as usize);
        let found = location.and_then(|location| {
            let number = u32::try_from(location.offset).ok()?;
            match location.source {
                OF_BACKUP => Some(Place::OfBackup(FileIndex(number))),
                _ => {
                    let segment = self.segments.get(number as usize)?;
                    Some(Place::Segment(number, segment))
                }
            }
        });
        found.ok_or_else(|| no_such_file(file))
    }

    fn read_segment(
        &self,
        number: u32,
        segment: &Segment,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        let shown = format!("pg_wal/{}", segment.name);
        let size_bytes = self.segment_bytes;
        let file = self.handles.get(number, &shown, || {
            let opened = self.storage.file(&segment.path);
            opened.map_err(|error| RepositoryError::unreadable(&segment.path, "open", error))
        })?;
        let unreadable = |error| RepositoryError::unreadable(&segment.path, "read", error);
        if file.size_bytes().map_err(unreadable)? != segment.stored_bytes {
            let reason = format!(
                "{} has another size than when the backup was opened",
                segment.path
            );
            return Err(RepositoryError::corrupt(shown, reason));
        }
        let buffer = within_file(size_bytes, offset, buffer);
        let wanted = buffer.len();
        if segment.compression == Compression::None {
            let count = file.read_pages_at(offset, buffer).map_err(unreadable)?;
            return match count == wanted {
                true => Ok(count),
                false => Err(RepositoryError::corrupt(shown, "has become shorter")),
            };
        }
        let read = DecodedRead {
            owner: self.owner,
            file: number,
            path: &shown,
            size_bytes,
            offset,
        };
        self.store.read_at(read, buffer, &|_| {
            let whole = WholeFile {
                path: shown.clone(),
                place: segment.path.clone(),
                size_bytes,
                sha1: None,
            };
            let range = StoredRange::new(Arc::clone(&file), 0, segment.stored_bytes);
            Ok(Box::new(WholeFileReader::new(
                whole,
                range,
                segment.decoding(),
            )?))
        })
    }

    /// Notes an error that shows a segment to be corrupt.
    fn note(&self, file: FileIndex, error: RepositoryError) -> RepositoryError {
        if error.kind() == RepositoryErrorKind::Corrupt {
            let mut corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
            corrupt.entry(file).or_insert_with(|| error.to_string());
        }
        error
    }
}

impl Backup for BackupWithWal {
    fn restore_point(&self) -> &RestorePoint {
        &self.restore_point
    }

    fn tree(&self) -> &Tree {
        &self.tree
    }

    fn read_at(
        &self,
        file: FileIndex,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        match self.place(file)? {
            Place::OfBackup(file) => self.backup.read_at(file, offset, buffer),
            Place::Segment(number, segment) => {
                let read = self.read_segment(number, segment, offset, buffer);
                read.map_err(|error| self.note(file, error))
            }
        }
    }

    fn corrupt_files(&self) -> Vec<CorruptFile> {
        let mut all = Vec::new();
        for found in self.backup.corrupt_files() {
            let path = self.backup.tree().file(found.file).map(|entry| entry.path);
            let shown = path.and_then(|path| self.tree.find_file(path));
            all.extend(shown.map(|(file, _)| CorruptFile { file, ..found }));
        }
        let corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(corrupt.iter().map(|(file, reason)| CorruptFile {
            file: *file,
            reason: reason.clone(),
        }));
        all.sort_by_key(|found| found.file);
        all
    }

    fn standing(&self, file: FileIndex) -> Standing {
        match self.place(file) {
            Ok(Place::OfBackup(file)) => self.backup.standing(file),
            // There are no checksums of WAL; PostgreSQL has one in each record.
            Ok(Place::Segment(..)) => {
                let corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
                match corrupt.contains_key(&file) {
                    true => Standing::Corrupt,
                    false => Standing::Unknown,
                }
            }
            Err(_) => Standing::Unknown,
        }
    }

    fn check_file(&self, file: FileIndex, buffer: &mut [u8]) -> Result<(), RepositoryError> {
        match self.place(file)? {
            Place::OfBackup(file) => self.backup.check_file(file, buffer),
            Place::Segment(..) => Ok(()),
        }
    }
}

impl Drop for BackupWithWal {
    fn drop(&mut self) {
        self.store.forget(self.owner);
    }
}
