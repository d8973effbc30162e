//! The durable journal of names, attributes and presence: appended at once, flushed in groups.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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
    // Bytes in the file.
    length: u64,
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

impl Catalog {
    /// Opens the catalog and reads it to its first torn record, which is cut off.
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
        let good = good as u64;
        if good < size {
            tracing::warn!(
                good,
                size,
                "the catalog ends in a torn record, which is cut off"
            );
            file.set_size(good)?;
        }
        file.sync_data()?;
        disk.sync_catalog_name()?;
        let state = State {
            file,
            length: good,
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
        Ok((catalog, records))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends records; they survive the process at once, and a power cut once [`Self::sync`] has returned for the position.
    pub fn append(&self, records: &[Record]) -> io::Result<u64> {
        let mut bytes = Vec::new();
        for record in records {
            record::encode(record, &mut bytes);
        }
        let mut state = self.lock();
        if state.failed {
            return Err(io::ErrorKind::Other.into());
        }
        if let Err(error) = state.file.write_at(&bytes, state.length) {
            // A half-written record must not be followed by whole ones.
            state.file.set_size(state.length).ok();
            return Err(error);
        }
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
        let opened = self.disk.open(DiskName::CatalogNew, true)?;
        let file = opened.ok_or(io::ErrorKind::NotFound)?;
        file.set_size(0)?;
        file.write_at(&bytes, 0)?;
        file.sync_data()?;
        self.disk.rename(DiskName::CatalogNew, DiskName::Catalog)?;
        state.file = file;
        state.length = bytes.len() as u64;
        state.size_when_summed_up = state.length;
        if let Err(error) = self.disk.sync_catalog_name() {
            // Which of the two files a power cut leaves is unknown.
            state.failed = true;
            return Err(error);
        }
        state.synced = state.written;
        Ok(())
    }
}
