//! The barrier: everything that is in the cache is made durable at once.
//!
//! PostgreSQL that starts after a crash would open and flush each of its files, because a checkpoint covers only what
//! it flushes itself. Here it need not: each checkpoint, and each beginning of a recovery, ends with a write of
//! `pg_control`, and before that write is applied the barrier makes everything else durable that was written until then.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::Ino;
use super::flush::Begun;
use super::node::{Node, NodeState};
use super::record::NodeKind;
use super::store::{Store, errno::error};

/// From this many files on one flush of the whole volume is cheaper than one of each.
const WHOLE_VOLUME_FROM: usize = 500;

/// Nodes whose data files may hold what is not durable: all that are dirty and all that the kernel serves.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    nodes: Mutex<HashSet<Ino>>,
    turn: Mutex<()>,
}

impl Suspects {
    fn lock(&self) -> MutexGuard<'_, HashSet<Ino>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a node.
    pub(crate) fn add(&self, ino: Ino) {
        self.lock().insert(ino);
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> BTreeSet<Ino> {
        self.lock().iter().copied().collect()
    }

    fn take(&self) -> BTreeSet<Ino> {
        std::mem::take(&mut *self.lock()).into_iter().collect()
    }

    fn give_back(&self, nodes: BTreeSet<Ino>) {
        self.lock().extend(nodes);
    }
}

/// Whether PostgreSQL gives this name to what it throws away at its next start: sorts and temporary tables.
pub fn is_temporary_name(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let of_table = || {
        let (backend, rest) = name.strip_prefix('t')?.split_once('_')?;
        let (table, _) = rest.split_once(['_', '.']).unwrap_or((rest, ""));
        Some(is_number(backend) && is_number(table))
    };
    name.starts_with("pgsql_tmp") || of_table().unwrap_or(false)
}

impl Store {
    /// Makes everything durable that was written before: data, then the map and the names.
    pub fn barrier(&self) -> io::Result<()> {
        let _turn = self
            .suspects
            .turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let taken = self.suspects.take();
        let result = self.make_durable(&self.suspected(&taken));
        if result.is_err() {
            // A flush that failed keeps failing: no checkpoint may go by it.
            self.suspects.give_back(taken);
        }
        result
    }

    /// The nodes of these numbers that somebody could find again after a power cut.
    pub(crate) fn suspected(&self, inos: &BTreeSet<Ino>) -> Vec<Arc<Node>> {
        let names = self.names();
        let nodes = inos.iter().filter_map(|ino| names.touched(*ino));
        let is_wanted = |node: &&Arc<Node>| {
            let state = node.lock();
            node.kind == NodeKind::File && state.links > 0 && !state.temporary
        };
        nodes.filter(is_wanted).cloned().collect()
    }

    /// Makes the files and all names durable.
    pub(crate) fn make_durable(&self, nodes: &[Arc<Node>]) -> io::Result<()> {
        // In the order of their numbers, and nobody else holds two.
        let guards: Vec<_> = nodes.iter().map(|node| node.lock_flush()).collect();
        let mut begun = Vec::new();
        for node in nodes {
            let mut state = node.lock();
            if state.is_served_by_kernel() {
                // Its next write will not be seen either.
                self.suspects.add(node.ino);
            }
            let flush = self.begin_if_changed(node, &mut state);
            drop(state);
            match flush {
                Ok(None) => {}
                Ok(Some(flush)) => begun.push((node, flush)),
                Err(failure) => return self.give_up(begun, failure),
            }
        }
        let result = self.flush_data(begun);
        drop(guards);
        result?;
        self.sync_names()
    }

    fn begin_if_changed(&self, node: &Node, state: &mut NodeState) -> io::Result<Option<Begun>> {
        if state.failed {
            return Err(error(Errno::IO));
        }
        if !state.dirty && !state.is_served_by_kernel() {
            return Ok(None);
        }
        if state.base.is_none() && !state.unnamed && state.flushed_as_of.is_some() {
            let changed_at = self.data_file(node, state)?.stat()?.changed_at;
            if state.flushed_as_of == Some(changed_at) {
                state.dirty = false;
                return Ok(None);
            }
        }
        self.begin_flush(node, state).map(Some)
    }

    // Nothing was flushed yet: all is as it was before.
    fn give_up(&self, begun: Vec<(&Arc<Node>, Begun)>, failure: io::Error) -> io::Result<()> {
        for (node, _) in begun {
            let mut state = node.lock();
            for (first, count) in std::mem::take(&mut state.committing).ranges() {
                state.uncommitted.insert_range(first..first + count);
            }
            self.mark_dirty(node.ino, &mut state);
        }
        Err(failure)
    }

    fn flush_data(&self, begun: Vec<(&Arc<Node>, Begun)>) -> io::Result<()> {
        for (_, flush) in &begun {
            // All at once, so that the device can order them; what matters is the flush that follows.
            flush.file.start_writeback(0, 0).ok();
        }
        // Its failure may be somebody else's: then each file is asked.
        let whole = begun.len() >= WHOLE_VOLUME_FROM && self.disk.sync_all().is_ok();
        let unnamed = begun.iter().any(|(_, flush)| flush.unnamed);
        let mut names = Ok(());
        if unnamed && !whole {
            names = self.disk.sync_data_names();
        }
        let mut result = Ok(());
        for (node, flush) in begun {
            let flushed = match (whole, flush.unnamed, &names) {
                (true, ..) => Ok(()),
                (false, true, Err(failure)) => Err(io::Error::from(failure.kind())),
                (false, ..) => flush.file.sync_data(),
            };
            if let Err(failure) = self.end_flush(node, flush, flushed) {
                result = Err(failure);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_what_postgresql_throws_away_are_told_from_all_others() {
        for (name, expected) in [
            ("pgsql_tmp1234.0", true),
            ("pgsql_tmp1234.0.sharedfileset", true),
            ("t3_16384", true),
            ("t3_16384.1", true),
            ("t12_16384_fsm", true),
            ("16384", false),
            ("16384_fsm", false),
            ("t_16384", false),
            ("t3_", false),
            ("table_1", false),
            ("pg_control", false),
        ] {
            assert_eq!(is_temporary_name(name), expected, "{name}");
        }
    }
}
