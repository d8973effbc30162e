//! The durable journal of names, attributes and presence: appended at once, flushed in groups.
//!
//! Behind its records the file holds written zeros, so that a full volume does not keep from being noted what
//! needs no other space: flushes, cuts, removals. A zero does not begin a record.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::disk::{Disk, DiskFile, DiskName};
use super::record::{self, Record};

/// An open catalog.
#[derive(Debug)]
pub struct Catalog {
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
    flushed: Condvar,
}

#[derive(Debug)]
struct State {
    file: Arc<dyn DiskFile>,
    // Bytes of records in the file.
    length: u64,
    // Bytes in the file, the zeros behind the records counted.
    reserved: u64,
    // When the volume had no room for more zeros.
    refused_at: Option<Instant>,
    // Position: grows with every append and never falls, over snapshots too.
    written: u64,
    synced: u64,
    flushing: bool,
    // A failed flush leaves the file's state unknown: nothing is promised any more.
    failed: bool,
    // While a snapshot is made: the successor, which also gets what is appended meanwhile.
    successor: Option<Vec<u8>>,
    size_when_summed_up: u64,
}

/// How many zeros are kept behind the records, in bytes.
const RESERVE_BYTES: u64 = 1024 * 1024;
/// What of them new names leave to flushes, cuts and removals.
const KEPT_FROM_NAMES_BYTES: u64 = RESERVE_BYTES / 4;
/// A full volume is not asked for room more often.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Catalog {
    /// Opens the catalog and reads it to its first torn record, which is wiped out.
    pub fn open(disk: Arc<dyn Disk>) -> io::Result<(Self, Vec<Record>)> {
        disk.remove(DiskName::CatalogNew)?;
        let file = disk
            .open(DiskName::Catalog, true)?
            .ok_or(io::ErrorKind::NotFound)?;
        let size = file.stat()?.size;
        let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        let count = file.read_at(&mut bytes, 0)?;
        bytes.truncate(count);
        let (records, good) = record::decode(&bytes);
        let torn = bytes.get(good..).unwrap_or_default();
        let good = good as u64;
        if let Some(last) = torn.iter().rposition(|byte| *byte != 0) {
            tracing::warn!(good, size, "the catalog ends in a torn record");
            // In place: the volume may be full.
            file.write_at(&vec![0; last + 1], good)?;
        }
        file.sync_data()?;
        disk.sync_catalog_name()?;
        let state = State {
            file,
            length: good,
            reserved: size,
            refused_at: None,
            written: 0,
            synced: 0,
            flushing: false,
            failed: false,
            successor: None,
            size_when_summed_up: good,
        };
        let catalog = Self {
            disk,
            state: Mutex::new(state),
            flushed: Condvar::new(),
        };
        catalog.lock().make_room(0);
        Ok((catalog, records))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends records; they survive the process at once, and a power cut once [`Self::sync`] has returned for the position.
    pub fn append(&self, records: &[Record]) -> io::Result<u64> {
        self.append_leaving(records, 0)
    }

    /// As [`Self::append`], for what makes something new: refused on a full volume while there still are zeros for
    /// what must be noted of the things that are there.
    pub fn append_new(&self, records: &[Record]) -> io::Result<u64> {
        self.append_leaving(records, KEPT_FROM_NAMES_BYTES)
    }

    fn append_leaving(&self, records: &[Record], left_bytes: u64) -> io::Result<u64> {
        let mut bytes = Vec::new();
        for record in records {
            record::encode(record, &mut bytes);
        }
        let mut state = self.lock();
        if state.failed {
            return Err(io::ErrorKind::Other.into());
        }
        let needed = bytes.len() as u64 + left_bytes;
        state.make_room(needed);
        if left_bytes > 0 && state.room() < needed {
            return Err(Errno::NOSPC.into());
        }
        if let Err(error) = state.file.write_at(&bytes, state.length) {
            state.wipe(bytes.len());
            return Err(error);
        }
        state.reserved = state.reserved.max(state.length + bytes.len() as u64);
        if let Some(successor) = &mut state.successor {
            successor.extend_from_slice(&bytes);
        }
        state.length += bytes.len() as u64;
        state.written += bytes.len() as u64;
        Ok(state.written)
    }

    /// Whether everything up to the position is durable.
    pub fn is_synced(&self, position: u64) -> bool {
        self.lock().synced >= position
    }

    /// Position of the last record.
    pub fn position(&self) -> u64 {
        self.lock().written
    }

    /// Size of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.lock().length
    }

    /// Size right after the last snapshot, in bytes.
    pub fn size_when_summed_up(&self) -> u64 {
        self.lock().size_when_summed_up
    }

    /// Makes everything up to the position durable; one flush serves all who wait for it.
    pub fn sync(&self, position: u64) -> io::Result<()> {
        let mut state = self.lock();
        loop {
            if state.failed {
                return Err(io::ErrorKind::Other.into());
            }
            if state.synced >= position {
                return Ok(());
            }
            if state.flushing {
                state = self
                    .flushed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.flushing = true;
            let (file, written) = (state.file.clone(), state.written);
            drop(state);
            let result = file.sync_data();
            state = self.lock();
            state.flushing = false;
            match &result {
                Ok(()) => state.synced = state.synced.max(written),
                Err(_) => state.failed = true,
            }
            self.flushed.notify_all();
            result?;
        }
    }

    /// Begins a snapshot: from now on all that is appended counts for the successor too.
    pub fn begin_snapshot(&self) {
        self.lock().successor = Some(Vec::new());
    }

    /// Puts records that sum up earlier ones into the successor.
    pub fn sum_up(&self, records: &[Record]) {
        if let Some(successor) = &mut self.lock().successor {
            for record in records {
                record::encode(record, successor);
            }
        }
    }

    /// Puts the successor in place, durably.
    pub fn finish_snapshot(&self) -> io::Result<()> {
        let mut state = self.lock();
        while state.flushing {
            let waited = self.flushed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let Some(bytes) = state.successor.take() else {
            return Ok(());
        };
        let written = self.write_successor(&bytes);
        let file = match written {
            Ok(file) => file,
            Err(error) => {
                // The present file stays what it is.
                self.disk.remove(DiskName::CatalogNew).ok();
                return Err(error);
            }
        };
        state.file = file;
        state.length = bytes.len() as u64;
        state.reserved = state.length + RESERVE_BYTES;
        state.size_when_summed_up = state.length;
        if let Err(error) = self.disk.sync_catalog_name() {
            // Which of the two files a power cut leaves is unknown.
            state.failed = true;
            return Err(error);
        }
        state.synced = state.written;
        Ok(())
    }

    fn write_successor(&self, bytes: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
        let opened = self.disk.open(DiskName::CatalogNew, true)?;
        let file = opened.ok_or(io::ErrorKind::NotFound)?;
        file.set_size(0)?;
        file.write_at(bytes, 0)?;
        write_zeros(file.as_ref(), bytes.len() as u64, RESERVE_BYTES)?;
        file.sync_data()?;
        self.disk.rename(DiskName::CatalogNew, DiskName::Catalog)?;
        Ok(file)
    }
}

impl State {
    fn room(&self) -> u64 {
        self.reserved.saturating_sub(self.length)
    }

    // Writes zeros behind the records when few are left; without room on the volume it stays as it is.
    fn make_room(&mut self, needed: u64) {
        if self.room() >= needed.max(RESERVE_BYTES / 2) {
            return;
        }
        if self
            .refused_at
            .is_some_and(|at| at.elapsed() < ASK_AGAIN_AFTER)
        {
            return;
        }
        let wanted = self.length + needed + RESERVE_BYTES;
        match write_zeros(self.file.as_ref(), self.reserved, wanted - self.reserved) {
            Ok(()) => {
                self.reserved = wanted;
                self.refused_at = None;
            }
            Err(error) => {
                if self.refused_at.is_none() {
                    tracing::warn!(%error, "the volume of the cache has no room");
                }
                self.refused_at = Some(Instant::now());
                // Not the last of the space for nothing.
                self.file.set_size(self.reserved).ok();
            }
        }
    }

    // A half-written record must not be followed by whole ones, nor read as one by itself.
    fn wipe(&self, length: usize) {
        let inside = self.room().min(length as u64);
        write_zeros(self.file.as_ref(), self.length, inside).ok();
        self.file.set_size(self.reserved).ok();
    }
}

fn write_zeros(file: &dyn DiskFile, offset: u64, length: u64) -> io::Result<()> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    file.write_at(&vec![0; length], offset)
}
