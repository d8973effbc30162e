//! What a sweep does now and then: journals are summed up, and at the end everything is made durable.

use std::io;
use std::sync::Arc;

use super::node::Node;
use super::record::{NodeRecord, Record, RuntimeRecord};
use super::store::Store;

/// Journals smaller than this are left alone.
const JOURNAL_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// How often a journal may hold what it says.
const GROWTH: u64 = 4;

impl Store {
    /// Sums up journals that have become long.
    pub fn sum_up_if_long(&self) -> io::Result<()> {
        let is_long = |size: u64, last: u64| size > JOURNAL_BYTES_MIN.max(GROWTH * last);
        if is_long(self.runtime.size(), self.runtime.size_when_compacted()) {
            self.sum_up_runtime()?;
        }
        if is_long(self.catalog.size(), self.catalog.size_when_summed_up()) {
            self.sum_up_catalog()?;
        }
        Ok(())
    }

    /// Rewrites the runtime journal to what is still true.
    pub fn sum_up_runtime(&self) -> io::Result<()> {
        self.runtime.begin_compaction();
        self.runtime
            .sum_up(&[RuntimeRecord::Cut { ino: 0, size: 0 }]);
        for node in self.all_touched() {
            let state = node.lock();
            let mut records = Vec::new();
            if state.opens != super::node::Opens::default() {
                records.push(RuntimeRecord::Opens {
                    ino: node.ino,
                    cached: state.opens.cached,
                    passthrough: state.opens.passthrough,
                    backing: state.opens.backing,
                    unique: 0,
                });
            }
            if state.failed {
                records.push(RuntimeRecord::Failed { ino: node.ino });
            }
            if state.base.is_some() && state.settled {
                let mut volatile = state.uncommitted.ranges();
                volatile.extend(state.committing.ranges());
                volatile.push((0, 0));
                records.extend(
                    volatile
                        .into_iter()
                        .map(|(first, count)| RuntimeRecord::Present {
                            ino: node.ino,
                            first,
                            count,
                            size: state.size,
                            modified_at: state.attributes.modified_at,
                        }),
                );
            }
            self.runtime.sum_up(&records);
        }
        self.runtime.finish_compaction()
    }

    /// Rewrites the catalog to what is still true. Names do not change meanwhile, contents may.
    pub fn sum_up_catalog(&self) -> io::Result<()> {
        let names = self.names();
        self.catalog.begin_snapshot();
        for node in names.all_touched() {
            let state = node.lock();
            self.catalog.sum_up(&[Record::Node(NodeRecord {
                ino: node.ino,
                kind: node.kind.clone(),
                attributes: state.attributes,
                links: state.links,
                base: state.base,
                size: state.size_in_catalog,
                cut: state.cut,
                present: state.durable().ranges(),
            })]);
        }
        self.catalog.sum_up(&names.snapshot());
        self.catalog.finish_snapshot()
    }

    fn all_touched(&self) -> Vec<Arc<Node>> {
        self.names().all_touched().cloned().collect()
    }

    /// Makes everything durable that is in the cache, also what was only copied: before the mount goes.
    pub fn sync_everything(&self) -> io::Result<()> {
        for node in self.all_touched() {
            let mut state = node.lock();
            if !state.uncommitted.is_empty() {
                self.mark_dirty(node.ino, &mut state);
            }
        }
        let mut nodes = self.suspected(&self.suspects.all());
        nodes.retain(|node| !node.lock().failed);
        self.make_durable(&nodes)?;
        self.complete_whole()?;
        self.sync_names()
    }

    /// Whether there is room for what is only a copy of the backup; where it cannot be told, there is.
    pub fn has_room_for_copies(&self) -> bool {
        self.disk
            .volume()
            .map_or(true, |volume| volume.has_room_for_copies())
    }

    /// Hash of the backup's tree.
    pub fn tree_hash(&self) -> u32 {
        self.tree.hash()
    }

    /// Size of the catalog, in bytes.
    pub fn catalog_bytes(&self) -> u64 {
        self.catalog.size()
    }

    /// Size of the runtime journal, in bytes.
    pub fn runtime_bytes(&self) -> u64 {
        self.runtime.size()
    }

    /// Bytes that the data files occupy.
    pub fn cache_bytes(&self) -> u64 {
        let blocks = self.disk.data_blocks().unwrap_or_default();
        blocks * 512 + self.catalog.size()
    }
}
