//! The passes that are under way: so many at a time, and so many for one file. Who reads a file again and again, or from several places
//! at once, has it decoded to disk, once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pass::{Pass, REACH_BYTES};
use super::pieces::{PIECE_BYTES, Pieces};
use super::{ByteSource, DecodedRead, window};
use crate::RepositoryError;

/// How often a file may be decoded without being kept: for one who reads it, and for a copy that is made of it afterwards.
const BEGUN_COUNT_MAX: u8 = 2;
/// Of so many files it is known how often they were begun.
const KNOWN_COUNT_MAX: usize = 1 << 16;
/// A pass that was not used while so many others were read from is given up for another file.
const IDLE_READS: u64 = 4096;
/// Most memory of one pass.
const PASS_BYTES: usize = (window::PIECE_COUNT_MAX + 1) * PIECE_BYTES;

/// A file, by the opened backup and its number there.
type Key = (u64, u32);

/// Files that are decoded forwards.
#[derive(Debug)]
pub(super) struct Passes {
    count_max: usize,
    pieces: Arc<Pieces>,
    state: Mutex<State>,
    /// Reads of all files so far.
    reads: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    passes: HashMap<Key, Arc<Pass>>,
    begun: HashMap<Key, u8>,
}

impl Passes {
    /// Room for as many as so much memory suffices for.
    pub(super) fn new(memory_bytes_max: usize) -> Self {
        let count_max = memory_bytes_max / PASS_BYTES;
        Self {
            count_max,
            // What is decoded to disk goes through one, too.
            pieces: Arc::new(Pieces::new(count_max * window::PIECE_COUNT_MAX + 1)),
            state: Mutex::default(),
            reads: AtomicU64::new(0),
        }
    }

    pub(super) fn pieces(&self) -> &Arc<Pieces> {
        &self.pieces
    }

    /// What is under the lock is never left half done, so one poisoned elsewhere is as good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pass that serves a read, if one does.
    pub(super) fn find(&self, read: DecodedRead<'_>) -> Option<Arc<Pass>> {
        let pass = self.lock().passes.get(&read.key()).map(Arc::clone)?;
        pass.reaches(read.offset).then_some(pass)
    }

    /// Counts a read of any file.
    pub(super) fn count_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// The same from a pass.
    pub(super) fn count_read_of(&self, pass: &Pass) {
        let reads = self.reads.load(Ordering::Relaxed);
        pass.used_at.store(reads, Ordering::Relaxed);
    }

    /// A new pass for a file that is read from its beginning on, unless that is not worth while.
    pub(super) fn begin(
        &self,
        read: DecodedRead<'_>,
        open: impl FnOnce() -> Result<Box<dyn ByteSource>, RepositoryError>,
    ) -> Result<Option<Arc<Pass>>, RepositoryError> {
        let room = Room {
            count_max: self.count_max,
            reads: self.reads.load(Ordering::Relaxed),
        };
        let state = self.lock();
        if let Some(others) = state.running(read.key()) {
            // Another has begun it since this read looked for one: his is as good, as far as it reaches.
            drop(state);
            return Ok(others.reaches(read.offset).then_some(others));
        }
        if read.offset > REACH_BYTES || !state.has(room, read.key()) {
            return Ok(None);
        }
        drop(state);
        let pass = Arc::new(Pass::new(open()?, &self.pieces));
        let mut state = self.lock();
        if let Some(others) = state.running(read.key()) {
            return Ok(Some(others));
        }
        let Some(replaced) = state.make(room, read.key()) else {
            return Ok(None);
        };
        pass.used_at.store(room.reads, Ordering::Relaxed);
        if state.begun.len() >= KNOWN_COUNT_MAX {
            state.begun.clear();
        }
        *state.begun.entry(read.key()).or_default() += 1;
        state.passes.insert(read.key(), Arc::clone(&pass));
        drop(state);
        drop(replaced);
        Ok(Some(pass))
    }

    /// Gives up a pass that failed, or that nobody can use.
    pub(super) fn end(&self, read: DecodedRead<'_>, pass: &Arc<Pass>) {
        let mut state = self.lock();
        let is_same = |held: &Arc<Pass>| Arc::ptr_eq(held, pass);
        if state.passes.get(&read.key()).is_some_and(is_same) {
            state.passes.remove(&read.key());
        }
    }

    /// Forgets the files that are picked.
    pub(super) fn forget(&self, mut is_forgotten: impl FnMut(&Key) -> bool) {
        let mut state = self.lock();
        state.begun.retain(|key, _| !is_forgotten(key));
        let forgotten = state.passes.extract_if(|key, _| is_forgotten(key));
        let forgotten: Vec<_> = forgotten.collect();
        drop(state);
        // A pass that goes leaves what it has seen.
        drop(forgotten);
    }
}

/// How much room there is at a time.
#[derive(Clone, Copy)]
struct Room {
    count_max: usize,
    /// Reads until now.
    reads: u64,
}

impl State {
    /// The pass of a file that is under way.
    fn running(&self, key: Key) -> Option<Arc<Pass>> {
        let own = self.passes.get(&key);
        own.filter(|pass| !pass.is_over()).map(Arc::clone)
    }

    /// Whether a pass of this file may begin: it was not begun too often, none is under way, and there is room.
    fn has(&self, room: Room, key: Key) -> bool {
        let begun = self.begun.get(&key).copied().unwrap_or(0);
        let own = self.passes.get(&key);
        begun < BEGUN_COUNT_MAX
            && own.is_none_or(|pass| pass.is_over())
            && (own.is_some()
                || self.passes.len() < room.count_max
                || self.replaceable(room).is_some())
    }

    /// Takes away what a pass of this file takes the place of, if anything; none if there is no place.
    fn make(&mut self, room: Room, key: Key) -> Option<Option<Arc<Pass>>> {
        if !self.has(room, key) {
            return None;
        }
        let own = self.passes.remove(&key);
        if own.is_some() || self.passes.len() < room.count_max {
            return Some(own);
        }
        let replaced = self.replaceable(room)?;
        Some(self.passes.remove(&replaced))
    }

    /// The pass that is missed least: one that is over, else one that nobody has read from for long.
    fn replaceable(&self, room: Room) -> Option<Key> {
        let candidates = self.passes.iter().filter_map(|(key, pass)| {
            let used_at = pass.used_at.load(Ordering::Relaxed);
            let is_idle = room.reads.saturating_sub(used_at) > IDLE_READS;
            (pass.is_over() || is_idle).then_some((!pass.is_over(), used_at, *key))
        });
        candidates.min().map(|(.., key)| key)
    }
}

#[cfg(test)]
mod tests;
