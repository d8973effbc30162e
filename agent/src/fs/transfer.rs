//! Operations that may need the backup: fetches what is missing, keeps it, and goes on.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::io::Errno;

use crate::base::{Base, BaseError};
use crate::cache::content::{Fetched, Need, Outcome};
use crate::cache::node::Node;
use crate::cache::store::{Store, errno::error};
use crate::cache::{GRANULE_BYTES, Ino};

/// Smallest fetch from the backup.
const UNIT_BYTES: u64 = 64 * 1024;
/// Largest fetch from the backup.
const FETCH_BYTES_MAX: u64 = 1024 * 1024;

/// Moves bytes between readers and writers, the cache and the backup.
#[derive(Debug)]
pub struct Transfer {
    store: Arc<Store>,
    base: Arc<Base>,
    // Units (of a node) that somebody fetches at this moment.
    fetching: Mutex<HashSet<(Ino, u64)>>,
    fetched: Condvar,
}

impl Transfer {
    /// Between this cache and this backup.
    pub fn new(store: Arc<Store>, base: Arc<Base>) -> Self {
        Self {
            store,
            base,
            fetching: Mutex::default(),
            fetched: Condvar::new(),
        }
    }

    /// Reads, waiting for the backup where needed.
    pub fn read(&self, node: &Node, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.carry_out(node, |fetched| {
            self.store.read(node, offset, length, fetched)
        })
    }

    /// Writes, waiting for the backup where needed.
    pub fn write(&self, node: &Node, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.carry_out(node, |fetched| {
            self.store.write(node, offset, bytes, fetched)
        })
    }

    /// Allocates, waiting for the backup where needed.
    pub fn allocate(&self, node: &Node, mode: u32, offset: u64, length: u64) -> io::Result<()> {
        self.carry_out(node, |fetched| {
            self.store.allocate(node, mode, offset, length, fetched)
        })
    }

    fn carry_out<T>(
        &self,
        node: &Node,
        operation: impl Fn(Option<&Fetched>) -> io::Result<Outcome<T>>,
    ) -> io::Result<T> {
        let mut fetched = None;
        loop {
            match operation(fetched.as_ref())? {
                Outcome::Done(done) => return Ok(done),
                Outcome::Needs(need) => fetched = self.fetch(node, need)?,
            }
        }
    }

    /// Fetches the whole of a file.
    pub fn complete(&self, node: &Arc<Node>) -> io::Result<()> {
        let mut offset = 0;
        loop {
            let Some(base) = node.lock().base else {
                return Ok(());
            };
            if offset >= base.length {
                break;
            }
            let need = Need {
                file: base.file,
                offset,
                length: FETCH_BYTES_MAX.min(base.length - offset),
            };
            let is_here = {
                let state = node.lock();
                let last = (need.offset + need.length - 1) / GRANULE_BYTES;
                (need.offset / GRANULE_BYTES..=last).all(|granule| state.is_here(granule))
            };
            if !is_here && !self.store.has_room_for_copies() {
                return Ok(());
            }
            if !is_here {
                let fetched = self.read_base(need)?;
                self.store.fill(node, &fetched)?;
            }
            offset += need.length;
        }
        self.store.note_whole(node);
        Ok(())
    }

    // Fetches around what is needed; `None` when somebody else has just done so.
    fn fetch(&self, node: &Node, need: Need) -> io::Result<Option<Fetched>> {
        let Some(base) = node.lock().base else {
            return Ok(None);
        };
        let start = need.offset / UNIT_BYTES * UNIT_BYTES;
        let end = (need.offset + need.length)
            .next_multiple_of(UNIT_BYTES)
            .min(base.length);
        let units: Vec<(Ino, u64)> = (start / UNIT_BYTES..end.div_ceil(UNIT_BYTES))
            .map(|unit| (node.ino, unit))
            .collect();
        if !self.begin(&units) {
            return Ok(None);
        }
        let result = self.read_base(Need {
            file: need.file,
            offset: start,
            length: end.saturating_sub(start),
        });
        if let Ok(fetched) = &result
            && self.store.has_room_for_copies()
            && let Err(failure) = self.store.fill(node, fetched)
        {
            // The reader is served from what was fetched; a full volume stops writers only.
            tracing::debug!(error = %failure, ino = node.ino, "keep fetched bytes");
        }
        self.end(&units);
        result.map(Some)
    }

    // Claims units for fetching; if somebody fetches one of them, waits for that instead and says no.
    fn begin(&self, units: &[(Ino, u64)]) -> bool {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if units.iter().any(|unit| fetching.contains(unit)) {
            while units.iter().any(|unit| fetching.contains(unit)) {
                fetching = self
                    .fetched
                    .wait(fetching)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            return false;
        }
        fetching.extend(units);
        true
    }

    fn end(&self, units: &[(Ino, u64)]) {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        for unit in units {
            fetching.remove(unit);
        }
        drop(fetching);
        self.fetched.notify_all();
    }

    fn read_base(&self, need: Need) -> io::Result<Fetched> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < need.length {
            let offset = need.offset + bytes.len() as u64;
            let length = (need.length - bytes.len() as u64).min(FETCH_BYTES_MAX * 4);
            let length = u32::try_from(length).map_err(io::Error::other)?;
            let more = self.base.read(need.file, offset, length).map_err(|why| {
                match &why {
                    BaseError::Permanent(_) => {
                        tracing::error!(error = %why, file = need.file, offset, "read the backup");
                    }
                    BaseError::TimedOut(_) => {
                        tracing::warn!(error = %why, file = need.file, offset, "read the backup");
                    }
                }
                error(Errno::IO)
            })?;
            if more.is_empty() {
                tracing::error!(
                    file = need.file,
                    offset,
                    "the backup's file is shorter than its tree says"
                );
                return Err(error(Errno::IO));
            }
            bytes.extend_from_slice(&more);
        }
        bytes.truncate(usize::try_from(need.length).map_err(io::Error::other)?);
        Ok(Fetched {
            offset: need.offset,
            bytes,
        })
    }
}
