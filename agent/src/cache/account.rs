//! How much space the data files take, kept as a running account: each file that was used is looked at again in the next sweep.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Ino;
use super::node::NodeState;
use super::store::Store;

const BLOCK_BYTES: u64 = 512;

/// The account.
#[derive(Debug, Default)]
pub struct Account {
    // Blocks by node, none for those without any.
    blocks: Mutex<HashMap<Ino, u64>>,
    used: Mutex<HashSet<Ino>>,
    total: AtomicU64,
}

impl Account {
    /// Notes that a node's data file is in use, so that its space may change.
    pub(super) fn note(&self, ino: Ino, state: &mut NodeState) {
        if !std::mem::replace(&mut state.uncounted, true) {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.insert(ino);
        }
    }

    /// Notes bytes that a file grows by, until it is counted again.
    pub(super) fn grow(&self, ino: Ino, bytes: u64) {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let count = bytes / BLOCK_BYTES;
        *blocks.entry(ino).or_default() += count;
        self.total.fetch_add(count, Ordering::Relaxed);
    }

    fn set(&self, ino: Ino, count: u64) {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match count {
            0 => blocks.remove(&ino),
            _ => blocks.insert(ino, count),
        };
        // In two steps; the sum is never read as less than nothing, for additions come first.
        self.total.fetch_add(count, Ordering::Relaxed);
        let before = before.unwrap_or(0);
        self.total.fetch_sub(before, Ordering::Relaxed);
    }
}

impl Store {
    /// Bytes that the cache occupies, as of the last sweep.
    pub fn cache_bytes(&self) -> u64 {
        self.account.total.load(Ordering::Relaxed) * BLOCK_BYTES + self.catalog.size()
    }

    /// Counts every data file: once, after the opening.
    pub fn count_all(&self) -> io::Result<()> {
        for ino in self.disk.data_files()? {
            self.account.set(ino, self.disk.data_blocks(ino)?);
        }
        Ok(())
    }

    /// Counts the data files again that were used.
    pub fn count_used(&self) -> io::Result<()> {
        let mut used = self
            .account
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let nodes = std::mem::take(&mut *used);
        drop(used);
        for ino in nodes {
            let node = self.names().touched(ino).cloned();
            let is_still_used = node.is_some_and(|node| {
                let mut state = node.lock();
                // What the kernel writes by itself goes on without being noted.
                state.uncounted = state.opens.passthrough > 0;
                state.uncounted
            });
            if is_still_used {
                let mut used = self
                    .account
                    .used
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                used.insert(ino);
            }
            self.account.set(ino, self.disk.data_blocks(ino)?);
        }
        Ok(())
    }

    /// Notes that a node's data file is gone.
    pub(super) fn count_gone(&self, ino: Ino) {
        self.account.set(ino, 0);
    }
}
