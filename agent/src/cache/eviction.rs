//! Giving space back: granules that are only a copy of the backup.
//!
//! The order: the catalog says durably that the granules are absent, and only then their space is freed; what was brought back
//! meanwhile keeps its space. A granule that was written is never given back, nor one of a complete file, whose backup is
//! forgotten. What an earlier mount had copied is compared with the backup before: a power cut may have left a write in it.

use std::io;
use std::sync::Arc;

use super::GRANULE_BYTES;
use super::content::Fetched;
use super::flush::in_records;
use super::node::{Node, NodeState};
use super::presence::Presence;
use super::record::{Record, RuntimeRecord};
use super::store::Store;

const PUNCH_HOLE_KEEP_SIZE: u32 = 3;

/// Granules that the catalog says are absent, and whose space is still to be freed.
#[derive(Debug)]
pub struct GivenBack {
    node: Arc<Node>,
    granules: Presence,
}

impl GivenBack {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.granules.count() * GRANULE_BYTES
    }
}

impl Store {
    /// How much less than it should be is free on the volume, in bytes; none where that cannot be told.
    pub fn volume_shortage(&self) -> u64 {
        self.disk.volume().map_or(0, |volume| volume.shortage())
    }

    /// The nodes of which a part is here and a part only in the backup.
    pub fn partly_here(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.all_touched();
        nodes.retain(|node| {
            let state = node.lock();
            state.base.is_some() && !state.present.is_empty()
        });
        nodes
    }

    /// The next granules from `from` on that are not here: (first, count), at most so many.
    pub fn next_missing(&self, node: &Node, from: u64, granules_max: u64) -> Option<(u64, u64)> {
        let state = node.lock();
        if state.is_gone() {
            return None;
        }
        let end = state.base_granules();
        let first = (from..end).find(|granule| !state.present.contains(*granule))?;
        let limit = (first + granules_max).min(end);
        let behind = (first..limit).find(|granule| state.present.contains(*granule));
        Some((first, behind.unwrap_or(limit) - first))
    }

    /// The nodes with copies of the backup, those first that were not used for the longest time.
    pub fn with_copies(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<(u64, Arc<Node>)> = Vec::new();
        for node in self.all_touched() {
            let state = node.lock();
            let any = !state.copied.is_empty() || !state.perhaps_copied.is_empty();
            if any && state.base.is_some() && !state.failed && !state.is_gone() {
                nodes.push((state.used_at, node.clone()));
            }
        }
        nodes.sort_by_key(|(used_at, _)| *used_at);
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// Gives copies back, about so many bytes; [`Self::free`] must follow.
    pub fn give_back(&self, node: &Arc<Node>, bytes: u64) -> io::Result<Option<GivenBack>> {
        let mut state = node.lock();
        if state.base.is_none() || state.failed || state.is_gone() {
            return Ok(None);
        }
        let mut copied = state.copied.clone();
        // A flush that is under way will tell the catalog that these are here.
        copied.remove_all(&state.committing);
        let mut granules = Presence::default();
        for (first, count) in copied.ranges() {
            let left = bytes
                .div_ceil(GRANULE_BYTES)
                .saturating_sub(granules.count());
            if left == 0 {
                break;
            }
            // From the end: what is read in sequence is read from the beginning again.
            granules.insert_range(first + count.saturating_sub(left)..first + count);
        }
        if granules.is_empty() {
            return Ok(None);
        }
        let ino = node.ino;
        // Settled before the runtime journal speaks of it.
        self.data_file(node, &mut state)?;
        let records = in_records(&granules, |granules| Record::Absent { ino, granules });
        self.append(&records)?;
        for (first, count) in granules.ranges() {
            self.runtime
                .append(&RuntimeRecord::Absent { ino, first, count })?;
            state.mark_absent(first, count);
        }
        drop(state);
        let node = node.clone();
        Ok(Some(GivenBack { node, granules }))
    }

    /// Frees the space of what was given back; says how many bytes that may be.
    pub fn free(&self, given_back: &[GivenBack]) -> io::Result<u64> {
        self.catalog.sync(self.catalog.position())?;
        let mut freed = 0;
        for GivenBack { node, granules } in given_back {
            for (first, count) in granules.ranges() {
                freed += self.punch(node, first, first + count)?;
            }
        }
        Ok(freed)
    }

    fn punch(&self, node: &Node, first: u64, end: u64) -> io::Result<u64> {
        let mut freed = 0;
        let mut state = node.lock();
        let mut granule = first;
        while granule < end && !state.is_gone() {
            let from = granule;
            while granule < end && !state.is_here(granule) {
                granule += 1;
            }
            if granule > from {
                let file = self.data_file(node, &mut state)?;
                let length = (granule - from) * GRANULE_BYTES;
                file.allocate(PUNCH_HOLE_KEEP_SIZE, from * GRANULE_BYTES, length)?;
                freed += length;
            }
            granule += 1;
        }
        Ok(freed)
    }

    /// What of a node an earlier mount had copied: (first granule, count), at most one range and so many granules.
    pub fn unproven(&self, node: &Node, granules_max: u64) -> Option<(u64, u64)> {
        let state = node.lock();
        let (first, count) = state.perhaps_copied.ranges().into_iter().next_back()?;
        let count = count.min(granules_max);
        state
            .base
            .filter(|_| !state.is_gone())
            .map(|_| (first, count))
    }

    /// Compares what an earlier mount had copied with the backup: what is the same is a copy for certain.
    pub fn prove(
        &self,
        node: &Node,
        (first, count): (u64, u64),
        pieces: &[Arc<Fetched>],
    ) -> io::Result<()> {
        let mut state = node.lock();
        if state.is_gone() {
            return Ok(());
        }
        let file = self.data_file(node, &mut state)?;
        for granule in first..first + count {
            if !state.perhaps_copied.contains(granule) {
                continue;
            }
            let Some(wanted) = wanted(&state, granule, pieces) else {
                return Ok(());
            };
            let mut found = vec![0; wanted.len()];
            file.read_at(&mut found, granule * GRANULE_BYTES)?;
            let ino = node.ino;
            let (first, count) = (granule, 1);
            if found == wanted {
                self.runtime
                    .append(&RuntimeRecord::Copied { ino, first, count })?;
                state.perhaps_copied.remove_range(granule..granule + 1);
                state.mark_copied(granule, 1);
            } else {
                self.runtime
                    .append(&RuntimeRecord::Rewritten { ino, first, count })?;
                state.mark_rewritten(granule, 1);
            }
        }
        Ok(())
    }

    /// Notes, before it happens, that a write changes what is only a copy.
    pub(super) fn note_rewriting(
        &self,
        node: &Node,
        state: &mut NodeState,
        offset: u64,
        end: u64,
    ) -> io::Result<()> {
        let granules = offset / GRANULE_BYTES..end.div_ceil(GRANULE_BYTES);
        if !state.is_copied(granules.clone()) {
            return Ok(());
        }
        let (first, count) = (granules.start, granules.end - granules.start);
        self.runtime.append(&RuntimeRecord::Rewritten {
            ino: node.ino,
            first,
            count,
        })?;
        state.mark_rewritten(first, count);
        Ok(())
    }
}

// A granule as a copy has it: the backup's part and zeros behind it, to its end or the file's.
fn wanted(state: &NodeState, granule: u64, pieces: &[Arc<Fetched>]) -> Option<Vec<u8>> {
    let at = granule * GRANULE_BYTES;
    let part = GRANULE_BYTES.min(state.base?.length.checked_sub(at)?);
    let mut bytes = super::content::granule_in(pieces, granule, part)?.to_vec();
    let whole = GRANULE_BYTES.min(state.size.checked_sub(at)?);
    bytes.resize(usize::try_from(whole).ok()?, 0);
    Some(bytes)
}
