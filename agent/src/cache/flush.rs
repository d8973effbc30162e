//! Flushes: the data first, then the map that says that it is here.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::Ino;
use super::disk::DiskFile;
use super::node::{Node, NodeState};
use super::record::{Nanoseconds, Record, RuntimeRecord};
use super::store::{Store, errno::error, now};

/// Most ranges of granules in one record.
const RANGES_MAX: usize = 50_000;
/// A file that was changed longer ago than this shows any further change by another time: clocks of file systems are coarse.
const SETTLED_AFTER_NS: i64 = 1_000_000_000;

/// A flush that has begun: what it will promise once the data is on the disk.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) unnamed: bool,
    size: u64,
    cut: Option<u64>,
    modified_at: Nanoseconds,
    changed_at: Option<Nanoseconds>,
}

impl Store {
    /// Notes that the data file may hold what is not durable.
    pub(crate) fn mark_dirty(&self, ino: Ino, state: &mut NodeState) {
        if !state.dirty {
            state.dirty = true;
            self.suspects.add(ino);
        }
    }

    /// Whether a flush of the file would find nothing to do.
    pub fn is_clean(&self, node: &Node) -> bool {
        let Ok(_flush) = node.try_lock_flush() else {
            return false;
        };
        let state = node.lock();
        !state.dirty
            && !state.failed
            && !state.is_served_by_kernel()
            && self.catalog.is_synced(state.position)
    }

    /// Makes a file durable: data, then the map, then nothing is left to do.
    pub fn sync(&self, node: &Node) -> io::Result<()> {
        let _flush = node.lock_flush();
        let position = self.flush(node)?;
        self.catalog.sync(position)
    }

    /// Flushes data and appends to the catalog; returns the position that makes it durable.
    pub(super) fn flush(&self, node: &Node) -> io::Result<u64> {
        let mut state = node.lock();
        if state.failed {
            return Err(error(Errno::IO));
        }
        if !state.dirty && !state.is_served_by_kernel() {
            return Ok(state.position);
        }
        let begun = self.begin_flush(node, &mut state)?;
        drop(state);
        let mut result = begun.file.sync_data();
        if result.is_ok() && begun.unnamed {
            result = self.disk.sync_data_names();
        }
        self.end_flush(node, begun, result)
    }

    /// From here on what is written counts for the next flush. To be called with the right to flush.
    pub(super) fn begin_flush(&self, node: &Node, state: &mut NodeState) -> io::Result<Begun> {
        let file = self.data_file(node, state)?;
        // What the kernel writes by itself shows in the data file's times only.
        let changed_at = match state.base {
            None => Some(file.stat()?.changed_at),
            Some(_) => None,
        };
        state.committing = std::mem::take(&mut state.uncommitted);
        state.dirty = false;
        Ok(Begun {
            file,
            unnamed: state.unnamed,
            size: state.size,
            cut: state.cut,
            modified_at: state.attributes.modified_at,
            changed_at: changed_at.filter(|at| *at < now() - SETTLED_AFTER_NS),
        })
    }

    /// Takes note of what came of the flush; returns the catalog's position that makes it durable.
    pub(super) fn end_flush(
        &self,
        node: &Node,
        begun: Begun,
        result: io::Result<()>,
    ) -> io::Result<u64> {
        let mut state = node.lock();
        if let Err(failure) = result {
            // The kernel may have dropped what it could not write: nothing can be promised any more.
            state.failed = true;
            self.runtime
                .append(&RuntimeRecord::Failed { ino: node.ino })?;
            return Err(failure);
        }
        if begun.unnamed {
            state.unnamed = false;
        }
        state.flushed_as_of = begun.changed_at;
        if state.base.is_some() {
            let size = begun.size.min(state.size);
            let committed = self.append_commit(node.ino, size, begun.modified_at, &state);
            let committing = std::mem::take(&mut state.committing);
            match committed {
                Ok(position) => {
                    state.position = position;
                    state.size_in_catalog = size;
                }
                Err(failure) => {
                    for (first, count) in committing.ranges() {
                        state.uncommitted.insert_range(first..first + count);
                    }
                    self.mark_dirty(node.ino, &mut state);
                    return Err(failure);
                }
            }
            if state.cut == begun.cut {
                state.cut = None;
            }
        }
        Ok(state.position)
    }

    fn append_commit(
        &self,
        ino: Ino,
        size: u64,
        modified_at: i64,
        state: &NodeState,
    ) -> io::Result<u64> {
        let ranges = state.committing.ranges();
        let record = |present: &[(u64, u64)]| Record::Commit {
            ino,
            size,
            modified_at,
            present: present.to_vec(),
        };
        if ranges.is_empty() {
            return self.append(&[record(&[])]);
        }
        let records: Vec<Record> = ranges.chunks(RANGES_MAX).map(record).collect();
        self.append(&records)
    }
}
