//! Pieces of memory that are used again and again: memory that is touched for the first time costs more than what is done with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a piece: it stays in the processor's cache while it is decoded, hashed and copied.
pub(super) const PIECE_BYTES: usize = 1 << 18;

/// Pieces that nobody uses now, a bounded number of them.
#[derive(Debug)]
pub(super) struct Pieces {
    free: Mutex<Vec<Vec<u8>>>,
    free_count_max: usize,
}

/// A piece in use; it is free again when it goes.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Vec<u8>,
    /// How many of them have been filled.
    filled: usize,
    pieces: Arc<Pieces>,
}

impl Pieces {
    pub(super) fn new(free_count_max: usize) -> Self {
        Self {
            free: Mutex::default(),
            free_count_max,
        }
    }

    /// What is under the lock is never left half done, so one poisoned elsewhere is as good.
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece with nothing in it yet.
    pub(super) fn take(self: &Arc<Self>) -> Piece {
        let used_before = self.lock().pop();
        Piece {
            bytes: used_before.unwrap_or_else(|| vec![0; PIECE_BYTES]),
            filled: 0,
            pieces: Arc::clone(self),
        }
    }

    #[cfg(test)]
    pub(super) fn free_count(&self) -> usize {
        self.lock().len()
    }
}

impl Piece {
    /// What has been filled.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.filled).unwrap_or_default()
    }

    /// What has not, `bytes_max` of it at the most.
    pub(super) fn rest(&mut self, bytes_max: u64) -> &mut [u8] {
        let rest = self.bytes.get_mut(self.filled..).unwrap_or_default();
        let count = usize::try_from(bytes_max).map_or(rest.len(), |max| max.min(rest.len()));
        rest.get_mut(..count).unwrap_or_default()
    }

    /// Counts bytes that have been put where the rest begins.
    pub(super) fn fill(&mut self, count: usize) {
        self.filled += count;
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut free = self.pieces.lock();
        if free.len() < self.pieces.free_count_max {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}
