//! The files of an archive as a mount shows them: decoded, of the size of a segment, checked where the format has a checksum.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::history::read_small;
use super::read_ahead::ReadAhead;
use super::shown::ShownWal;
use super::storage::{StoredWal, WalStorage};
use crate::decoded::DecodedRead;
use crate::pgbackrest::{WholeFile, WholeFileReader};
use crate::tree::within_file;
use crate::{DecodedStore, RepositoryError, RepositoryErrorKind};

/// Stored files that are kept open.
const OPEN_COUNT: usize = 4;
/// Decoded ahead at a time; between them it can be stopped.
const AHEAD_BYTES: u64 = 1 << 20;

/// The files of an archive that a mount shows, by their numbers in [`ShownWal::files`].
#[derive(Debug)]
pub struct WalFiles {
    // First: its thread ends before what it reads from goes.
    ahead: ReadAhead,
    reading: Arc<Reading>,
    last_read: AtomicU32,
}

/// What reading takes, shared with the thread that reads ahead.
#[derive(Debug)]
pub(super) struct Reading {
    storage: Arc<dyn WalStorage>,
    store: Arc<DecodedStore>,
    owner: u64,
    shown: ShownWal,
    /// The files read last, the newest at the end.
    open: Mutex<Vec<(u32, Arc<StoredWal>)>>,
    /// Files found corrupt or gone, and why.
    corrupt: Mutex<BTreeMap<u32, String>>,
}

impl WalFiles {
    pub(super) fn start(
        storage: Arc<dyn WalStorage>,
        store: Arc<DecodedStore>,
        shown: ShownWal,
    ) -> Result<Self, RepositoryError> {
        let reading = Arc::new(Reading {
            owner: store.new_owner(),
            storage,
            store,
            shown,
            open: Mutex::default(),
            corrupt: Mutex::default(),
        });
        Ok(Self {
            ahead: ReadAhead::start(&reading)?,
            reading,
            last_read: AtomicU32::new(u32::MAX),
        })
    }

    /// Reads bytes of a file; fewer than the buffer takes only at its end. A file that has gone from the archive or is damaged fails
    /// with a permanent error that names it.
    pub fn read_at(
        &self,
        number: u32,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        if self.last_read.swap(number, Ordering::Relaxed) != number {
            self.ahead.note(number);
            // Recovery goes forward, and reads a segment twice at most.
            if let Some(passed) = number.checked_sub(2) {
                self.reading.forget(passed);
            }
        }
        self.reading.read_at(number, offset, buffer)
    }

    /// What is wrong with files that were found damaged or gone, as sentences, by their numbers.
    pub fn corrupt_files(&self) -> Vec<(u32, String)> {
        let corrupt = self
            .reading
            .corrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        corrupt
            .iter()
            .map(|(number, reason)| (*number, reason.clone()))
            .collect()
    }
}

impl Reading {
    fn forget(&self, number: u32) {
        self.store.forget_file(self.owner, number);
    }

    pub(super) fn is_segment(&self, number: u32) -> bool {
        u64::from(number) < self.shown.segment_count()
    }

    fn read_at(
        &self,
        number: u32,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        let file = self.shown.file(number);
        let (name, size_bytes) = file.ok_or_else(|| {
            RepositoryError::corrupt(format!("wal, file {number}"), "is not shown")
        })?;
        let path = format!("wal/{name}");
        let read = self.stored(number, &name).and_then(|stored| {
            let file = Shown {
                number,
                path: &path,
                size_bytes,
                stored: &stored,
            };
            match self.is_segment(number) {
                true => self.read_segment(&file, offset, buffer),
                false => read_history(&file, offset, buffer),
            }
        });
        read.map_err(|error| self.note(number, error))
    }

    /// Decodes a segment whose bytes do not stand for themselves.
    pub(super) fn decode(&self, number: u32, stop: &AtomicBool) -> Result<(), RepositoryError> {
        let Some((name, size_bytes)) = self.shown.file(number) else {
            return Ok(());
        };
        let stored = self.stored(number, &name)?;
        if is_direct(&stored) {
            return Ok(());
        }
        let path = format!("wal/{name}");
        let file = Shown {
            number,
            path: &path,
            size_bytes,
            stored: &stored,
        };
        let mut end = 0;
        while end < size_bytes && !stop.load(Ordering::Relaxed) {
            end = size_bytes.min(end + AHEAD_BYTES);
            self.read_segment(&file, end - 1, &mut [0; 1])?;
        }
        Ok(())
    }

    /// How a file is stored: as it was found when it was read last, else as it is found now.
    fn stored(&self, number: u32, name: &str) -> Result<Arc<StoredWal>, RepositoryError> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock()
            .iter()
            .find(|(of, _)| *of == number)
            .map(|(_, stored)| Arc::clone(stored));
        if let Some(known) = known {
            return Ok(known);
        }
        let stored = Arc::new(self.storage.open(name)?);
        let mut open = lock();
        if open.len() >= OPEN_COUNT {
            open.remove(0);
        }
        open.push((number, Arc::clone(&stored)));
        Ok(stored)
    }

    fn read_segment(
        &self,
        file: &Shown<'_>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        let stored = file.stored;
        if is_direct(stored) {
            return read_direct(file, offset, buffer);
        }
        let read = DecodedRead {
            owner: self.owner,
            file: file.number,
            path: file.path,
            size_bytes: file.size_bytes,
            offset,
        };
        self.store.read_at(read, buffer, &|_| {
            let whole = WholeFile {
                path: file.path.to_owned(),
                place: stored.path.clone(),
                size_bytes: file.size_bytes,
                sha1: stored.sha1,
            };
            Ok(Box::new(WholeFileReader::new(
                whole,
                stored.range(),
                stored.decoding(),
            )?))
        })
    }

    fn note(&self, number: u32, error: RepositoryError) -> RepositoryError {
        if error.kind() != RepositoryErrorKind::Unreadable {
            let mut corrupt = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
            corrupt.entry(number).or_insert_with(|| error.to_string());
        }
        error
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.store.forget(self.owner);
    }
}

/// A file that is read.
struct Shown<'a> {
    number: u32,
    path: &'a str,
    size_bytes: u64,
    stored: &'a StoredWal,
}

/// Whether stored bytes stand for themselves and nothing is there to compare them with.
fn is_direct(stored: &StoredWal) -> bool {
    stored.decoding().is_plain() && stored.sha1.is_none()
}

fn read_direct(file: &Shown<'_>, offset: u64, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
    let stored = file.stored;
    let unreadable = |error| RepositoryError::unreadable(&stored.path, "read", error);
    let found = stored.file.size_bytes().map_err(unreadable)?;
    let fits = match stored.is_partial {
        true => found <= file.size_bytes,
        false => found == file.size_bytes,
    };
    if !fits {
        let reason = format!(
            "has {found} bytes in {}, and a segment {}",
            stored.path, file.size_bytes
        );
        return Err(RepositoryError::corrupt(file.path, reason));
    }
    let buffer = within_file(file.size_bytes, offset, buffer);
    let count = stored
        .file
        .read_pages_at(offset, buffer)
        .map_err(unreadable)?;
    if let Some(rest) = buffer.get_mut(count..).filter(|rest| !rest.is_empty()) {
        if !stored.is_partial {
            return Err(RepositoryError::corrupt(file.path, "has become shorter"));
        }
        rest.fill(0);
    }
    Ok(buffer.len())
}

fn read_history(
    file: &Shown<'_>,
    offset: u64,
    buffer: &mut [u8],
) -> Result<usize, RepositoryError> {
    let content = read_small(file.stored)?;
    if content.len() as u64 != file.size_bytes {
        let reason = format!(
            "has {} bytes, and had {} when it was first looked at",
            content.len(),
            file.size_bytes
        );
        return Err(RepositoryError::corrupt(file.path, reason));
    }
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let from = content.get(from..).unwrap_or_default();
    let count = from.len().min(buffer.len());
    if let (Some(to), Some(from)) = (buffer.get_mut(..count), from.get(..count)) {
        to.copy_from_slice(from);
    }
    Ok(count)
}
